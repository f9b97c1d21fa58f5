//! The guards of a run: what they want measured, and how they judge it.

use packhost_measure::Request;
use packhost_measure::report::{Finding, Judged, Status};
use packhost_measure::table::{Table, Value as Measured};
use packhost_measure::tiers::{MetricOptions, Policies};
use packhost_model::TensorMeta;
use packhost_plugin::{GuardPlugin, ModelInfo, Row, Step, Value as Lent, Verdict};
use packhost_tensor::{Device, Tensor};
use serde_json::Value;

use crate::convert::tensor_info;
use crate::toolbox::{PluginIdentity, Toolbox};
use crate::{Error, Result};

/// The canonical order. Guards that are not installed are left out, and reports say so.
pub const ORDER: [&str; 5] = [
    "invariants",
    "spectral",
    "rmt",
    "variance",
    "primary-metric",
];

/// Guards that judge only when they are named: this host does not measure yet what they ask for.
const WAITING: [&str; 6] = [
    "spectral",
    "rmt",
    "variance",
    "weight-shift",
    "distribution-shift",
    "activation-shift",
];

/// Without this guard there is no metric and no report.
const REQUIRED: &str = "primary-metric";

/// How often a guard may ask for more before it must decide.
const MAX_ROUNDS: usize = 8;

/// Measures what a guard asks for beside its plan: the baseline's and the subject's tables with the new rows in them.
pub type More<'a> = dyn FnMut(&[Request]) -> Result<(Table, Table)> + 'a;

/// The guards that judge, in order.
pub struct Guards {
    guards: Vec<(GuardPlugin, PluginIdentity)>,
}

impl Guards {
    /// Loads the guards called `order`; an empty list means every installed guard of [`ORDER`] and then every other one,
    /// those of [`WAITING`] excepted.
    /// Repetitions count once: a guard is a function of tables, so a second answer would equal the first.
    ///
    /// # Errors
    /// A guard that was named is absent, one does not load, or `primary-metric` is missing.
    pub fn load(toolbox: &Toolbox, order: &[String]) -> Result<Self> {
        let mut guards: Vec<(GuardPlugin, PluginIdentity)> = Vec::new();
        let mut add = |id: &str, must_exist: bool| -> Result<()> {
            if guards.iter().any(|(_, known)| known.id == id) {
                return Ok(());
            }
            match toolbox.guard(id)? {
                Some(guard) => guards.push(guard),
                None if must_exist => {
                    return Err(Error::PluginAbsent {
                        what: format!("guard `{id}`"),
                    });
                }
                None => {}
            }
            Ok(())
        };
        if order.is_empty() {
            for id in ORDER.iter().filter(|id| !WAITING.contains(id)) {
                add(id, false)?;
            }
            let installed = toolbox
                .registry()
                .entries()
                .filter(|e| e.kind() == packhost_plugin::PluginKind::Guard);
            for entry in installed.filter(|entry| !WAITING.contains(&entry.id())) {
                add(entry.id(), true)?;
            }
        }
        for id in order {
            add(id, true)?;
        }
        add(REQUIRED, true)?;
        Ok(Self { guards })
    }

    /// Ids in order.
    pub fn ids(&self) -> Vec<String> {
        self.guards
            .iter()
            .map(|(_, identity)| identity.id.clone())
            .collect()
    }

    /// Which components judge.
    pub fn identities(&self) -> Vec<PluginIdentity> {
        self.guards
            .iter()
            .map(|(_, identity)| identity.clone())
            .collect()
    }

    /// What all guards want measured of a model.
    ///
    /// # Errors
    /// A guard declines its policy or the model.
    pub fn plan(
        &self,
        policies: &Policies,
        metric: &MetricOptions,
        model: &ModelInfo,
    ) -> Result<Vec<Request>> {
        let mut requests = Vec::new();
        for (guard, identity) in &self.guards {
            let policy = policies.for_guard(&identity.id, metric).to_string();
            let wanted = guard.plan(&policy, model)?.value;
            requests.extend(
                wanted
                    .into_iter()
                    .map(|request| request_of(&identity.id, request)),
            );
        }
        requests.sort();
        requests.dedup();
        Ok(requests)
    }

    /// Lets every guard that `may_judge` allows judge. A guard that asks for more gets it from `more`, which returns the
    /// baseline's and the subject's tables with the new rows in them; it must decide within a few rounds. `tables` are the
    /// baseline's and the subject's.
    ///
    /// # Errors
    /// A guard fails, asks for what cannot be measured, or never decides.
    pub fn judge(
        &self,
        policies: &Policies,
        metric: &MetricOptions,
        tables: (&Table, &Table),
        may_judge: &dyn Fn(&str) -> bool,
        more: &mut More<'_>,
    ) -> Result<Vec<Judged>> {
        let mut judged = Vec::new();
        for (guard, identity) in self
            .guards
            .iter()
            .filter(|(_, identity)| may_judge(&identity.id))
        {
            let policy = policies.for_guard(&identity.id, metric);
            let verdict = decide(guard, identity, &policy, tables, more)?;
            judged.push(judged_of(identity, policy, verdict)?);
        }
        Ok(judged)
    }

    /// A guard's own statistic of one tensor, for a request `probe.<guard>.<name>`.
    ///
    /// # Errors
    /// In words: there is no such guard, or it fails.
    pub fn probe(
        &self,
        request: &Request,
        meta: &TensorMeta,
        tensor: &Tensor,
        device: &dyn Device,
    ) -> std::result::Result<Vec<f64>, String> {
        let guard = self
            .guards
            .iter()
            .find(|(_, identity)| identity.id == request.guard);
        let (guard, identity) =
            guard.ok_or_else(|| format!("there is no guard `{}`", request.guard))?;
        let name = request
            .quantity
            .trim_start_matches(&format!("probe.{}.", identity.id));
        let called = guard.probe(name, tensor, &tensor_info(meta), device);
        called
            .map(|called| called.value)
            .map_err(|error| error.to_string())
    }

    /// Policies fitted to repeated measurements of the unedited model, by guard.
    ///
    /// # Errors
    /// A guard fails or answers no JSON.
    pub fn calibrate(
        &self,
        policies: &Policies,
        metric: &MetricOptions,
        runs: &[Table],
    ) -> Result<Vec<(String, Value)>> {
        let runs: Vec<Vec<Row>> = runs.iter().map(rows).collect();
        let runs: Vec<&[Row]> = runs.iter().map(Vec::as_slice).collect();
        let fit = |(guard, identity): &(GuardPlugin, PluginIdentity)| {
            let policy = policies.for_guard(&identity.id, metric).to_string();
            let fitted = guard.calibrate(&policy, &runs)?.value;
            Ok((identity.id.clone(), parse(identity, &fitted)?))
        };
        self.guards.iter().map(fit).collect()
    }
}

/// Plays rounds until the guard decides.
fn decide(
    guard: &GuardPlugin,
    identity: &PluginIdentity,
    policy: &Value,
    tables: (&Table, &Table),
    more: &mut More<'_>,
) -> Result<Verdict> {
    let policy = policy.to_string();
    let (mut baseline, mut subject) = (rows(tables.0), rows(tables.1));
    for _ in 0..MAX_ROUNDS {
        match guard.judge(&policy, &baseline, &subject)?.value {
            Step::Verdict(verdict) => return Ok(verdict),
            Step::Measure(wanted) => {
                let wanted: Vec<_> = wanted
                    .into_iter()
                    .map(|request| request_of(&identity.id, request))
                    .collect();
                let (new_baseline, new_subject) = more(&wanted)?;
                (baseline, subject) = (rows(&new_baseline), rows(&new_subject));
            }
        }
    }
    Err(Error::EndlessRounds {
        guard: identity.id.clone(),
        rounds: MAX_ROUNDS,
    })
}

fn request_of(guard: &str, request: packhost_plugin::Request) -> Request {
    Request {
        guard: guard.into(),
        quantity: request.quantity,
        scope: request.scope,
        params: request.params,
    }
}

/// A table as a guard sees it.
fn rows(table: &Table) -> Vec<Row> {
    let lend = |row: packhost_measure::table::Row| Row {
        scope: row.scope,
        quantity: row.quantity,
        value: match row.value {
            Measured::Number(number) => Lent::Number(number),
            Measured::Vector(vector) => Lent::Vector(vector),
            Measured::Text(text) => Lent::Text(text),
        },
    };
    table.rows().map(lend).collect()
}

fn judged_of(identity: &PluginIdentity, policy: Value, verdict: Verdict) -> Result<Judged> {
    let details = parse(identity, &verdict.details)?;
    let finding = |finding: packhost_plugin::Finding| Finding {
        scope: finding.scope,
        code: finding.code,
        message: finding.message,
        value: finding.value,
        limit: finding.limit,
    };
    Ok(Judged {
        id: identity.id.clone(),
        version: identity.version.clone(),
        digest: identity.sha256.clone(),
        policy,
        status: match verdict.status {
            packhost_plugin::Status::Pass => Status::Pass,
            packhost_plugin::Status::Warn => Status::Warn,
            packhost_plugin::Status::Fail => Status::Fail,
        },
        findings: verdict.findings.into_iter().map(finding).collect(),
        details,
    })
}

/// The plugin host has checked that this is a JSON object; a defect there must not become a silent default here.
fn parse(identity: &PluginIdentity, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::GuardAnswer {
        guard: identity.id.clone(),
        message: error.to_string(),
    })
}
