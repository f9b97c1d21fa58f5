//! The guards of a run: what they want measured, and how they judge it.

use std::collections::BTreeSet;

use packhost_measure::report::{Finding, Judged, Status};
use packhost_measure::table::{Table, Value as Measured};
use packhost_measure::tiers::{Calibration, MetricOptions, Policies};
use packhost_measure::{Request, is_asked};
use packhost_model::TensorMeta;
use packhost_plugin::{
    Engine, GuardPlugin, LoadError, ModelInfo, Plugin, PluginKind, Row, Step, Value as Lent,
    Verdict, inspect,
};
use packhost_tensor::{Device, Tensor};
use serde_json::Value;

use crate::convert::tensor_info;
use crate::rundir::hex_digest;
use crate::toolbox::{PluginIdentity, Toolbox};
use crate::{Error, Result};

/// The canonical order: the reference's chain, the metric, then guards of our own. A guard that is not installed is left out,
/// and reports say so.
pub const ORDER: [&str; 8] = [
    "invariants",
    "spectral",
    "rmt",
    "variance",
    "primary-metric",
    "weight-shift",
    "distribution-shift",
    "activation-shift",
];

/// Without this guard there is no metric and no report.
const REQUIRED: &str = "primary-metric";

/// How often a guard may ask for more before it must decide.
const MAX_ROUNDS: usize = 8;

/// What guards judge from, and the way to more of it.
pub trait Measurements {
    /// The baseline's and the subject's tables as far as measured.
    fn tables(&self) -> (&Table, &Table);

    /// Adds rows that a guard asks for beside its plan, of both models.
    ///
    /// # Errors
    /// They cannot be measured.
    fn measure(&mut self, wanted: &[Request]) -> Result<()>;
}

/// By what guards judge.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    pub policies: &'a Policies,
    pub metric: &'a MetricOptions,
    /// Guards whose probe is run as well.
    pub probes: &'a BTreeSet<String>,
}

impl Plan<'_> {
    fn policy(&self, guard: &str) -> Value {
        let mut policy = self.policies.for_guard(guard, self.metric);
        if self.probes.contains(guard) {
            policy["probe"] = Value::Bool(true);
        }
        policy
    }
}

/// The guards that judge, in order.
pub struct Guards {
    guards: Vec<(GuardPlugin, PluginIdentity)>,
}

impl Guards {
    /// Loads the guards called `order`; an empty list means every installed guard of [`ORDER`] and then every other one.
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
            for id in ORDER {
                add(id, false)?;
            }
            let installed = toolbox
                .registry()
                .entries()
                .filter(|e| e.kind() == PluginKind::Guard);
            for entry in installed {
                add(entry.id(), true)?;
            }
        }
        for id in order {
            add(id, true)?;
        }
        add(REQUIRED, true)?;
        Ok(Self { guards })
    }

    /// Guards from their components alone, in this order: each a name for messages and the component's bytes.
    ///
    /// # Errors
    /// A component is no guard of an interface that this host serves, or `primary-metric` is not among them.
    pub fn of_components(engine: &Engine, components: &[(String, Vec<u8>)]) -> Result<Self> {
        let load = |(name, bytes): &(String, Vec<u8>)| {
            let inspection = inspect(bytes, Some(PluginKind::Guard)).map_err(|kind| LoadError {
                plugin: name.clone(),
                kind,
            });
            let interface = inspection.map_err(packhost_plugin::Error::from)?.interface;
            let Plugin::Guard(guard) = engine.load_bytes(name, bytes, Some(PluginKind::Guard))?
            else {
                return Err(Error::PluginAbsent {
                    what: format!("guard `{name}`"),
                });
            };
            let described = guard.describe();
            let identity = PluginIdentity {
                id: described.id.clone(),
                version: described.version.clone(),
                interface: interface.to_string(),
                sha256: hex_digest(bytes),
            };
            Ok((guard, identity))
        };
        let guards: Vec<_> = components.iter().map(load).collect::<Result<_>>()?;
        if !guards.iter().any(|(_, identity)| identity.id == REQUIRED) {
            return Err(Error::PluginAbsent {
                what: format!("guard `{REQUIRED}`"),
            });
        }
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
        let none = BTreeSet::new();
        let plan = Plan {
            policies,
            metric,
            probes: &none,
        };
        self.requests(&plan, model, |_| true)
    }

    /// What the guards want whose probe is run: their plans with it.
    ///
    /// # Errors
    /// As [`Guards::plan`].
    pub fn plan_probes(&self, plan: &Plan<'_>, model: &ModelInfo) -> Result<Vec<Request>> {
        self.requests(plan, model, |guard| plan.probes.contains(guard))
    }

    fn requests(
        &self,
        plan: &Plan<'_>,
        model: &ModelInfo,
        of: impl Fn(&str) -> bool,
    ) -> Result<Vec<Request>> {
        let mut requests = Vec::new();
        for (guard, identity) in self.guards.iter().filter(|(_, identity)| of(&identity.id)) {
            let wanted = guard
                .plan(&plan.policy(&identity.id).to_string(), model)?
                .value;
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

    /// Lets every guard that `may_judge` allows judge. A guard sees the rows of those among `requests` that are its own, and
    /// no others. One that asks for more gets it from `measurements`; it must decide within a few rounds.
    ///
    /// # Errors
    /// A guard fails, asks for what cannot be measured, or never decides.
    pub fn judge(
        &self,
        plan: &Plan<'_>,
        requests: &[Request],
        may_judge: &dyn Fn(&str) -> bool,
        measurements: &mut dyn Measurements,
    ) -> Result<Vec<Judged>> {
        let mut judged = Vec::new();
        for (guard, identity) in self
            .guards
            .iter()
            .filter(|(_, identity)| may_judge(&identity.id))
        {
            let asked = requests
                .iter()
                .filter(|request| request.guard == identity.id);
            let mut case = Case {
                guard,
                identity,
                policy: plan.policy(&identity.id),
                asked: asked.cloned().collect(),
                fuel: 0,
            };
            let verdict = case.decide(measurements)?;
            judged.push(case.judged(verdict)?);
        }
        Ok(judged)
    }

    /// Lets one guard judge again by the policy and the requests of an earlier verdict.
    ///
    /// # Errors
    /// As [`Guards::judge`]; there is no such guard.
    pub fn judge_again(
        &self,
        id: &str,
        policy: Value,
        asked: Vec<Request>,
        measurements: &mut dyn Measurements,
    ) -> Result<Judged> {
        let found = self.guards.iter().find(|(_, identity)| identity.id == id);
        let (guard, identity) = found.ok_or_else(|| Error::PluginAbsent {
            what: format!("guard `{id}`"),
        })?;
        let mut case = Case {
            guard,
            identity,
            policy,
            asked,
            fuel: 0,
        };
        let verdict = case.decide(measurements)?;
        case.judged(verdict)
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

    /// Policies fitted to repeated measurements of the unedited model, by guard. The last `perturbations` of `runs` are
    /// those of harmless perturbations.
    ///
    /// # Errors
    /// A guard fails or answers no JSON.
    pub fn calibrate(
        &self,
        policies: &Policies,
        metric: &MetricOptions,
        runs: &[Table],
        perturbations: usize,
    ) -> Result<Vec<(String, Value)>> {
        let calibration = Calibration {
            runs: runs.len() - perturbations,
            perturbations,
        };
        let runs: Vec<Vec<Row>> = runs.iter().map(|run| rows(run, |_, _| true)).collect();
        let runs: Vec<&[Row]> = runs.iter().map(Vec::as_slice).collect();
        let fit = |(guard, identity): &(GuardPlugin, PluginIdentity)| {
            let policy = policies.for_calibration(&identity.id, metric, calibration);
            let policy = policy.to_string();
            let fitted = guard.calibrate(&policy, &runs)?.value;
            Ok((identity.id.clone(), parse(identity, &fitted)?))
        };
        self.guards.iter().map(fit).collect()
    }
}

/// One guard about to judge.
struct Case<'a> {
    guard: &'a GuardPlugin,
    identity: &'a PluginIdentity,
    policy: Value,
    /// What it asked for so far.
    asked: Vec<Request>,
    /// What its calls burnt so far.
    fuel: u64,
}

impl Case<'_> {
    /// Plays rounds until the guard decides.
    fn decide(&mut self, measurements: &mut dyn Measurements) -> Result<Verdict> {
        let policy = self.policy.to_string();
        for _ in 0..MAX_ROUNDS {
            let (baseline, subject) = measurements.tables();
            let asked = &self.asked;
            let wanted = |scope: &str, quantity: &str| {
                let mut asked = asked.iter();
                asked.any(|request| is_asked(request, scope, quantity))
            };
            let (baseline, subject) = (rows(baseline, wanted), rows(subject, wanted));
            let called = self.guard.judge(&policy, &baseline, &subject)?;
            self.fuel += called.stats.fuel;
            match called.value {
                Step::Verdict(verdict) => return Ok(verdict),
                Step::Measure(wanted) => {
                    let id = &self.identity.id;
                    let wanted = wanted.into_iter().map(|request| request_of(id, request));
                    let wanted: Vec<Request> = wanted.collect();
                    measurements.measure(&wanted)?;
                    self.asked.extend(wanted);
                    self.asked.sort();
                    self.asked.dedup();
                }
            }
        }
        Err(Error::EndlessRounds {
            guard: self.identity.id.clone(),
            rounds: MAX_ROUNDS,
        })
    }

    fn judged(self, verdict: Verdict) -> Result<Judged> {
        let identity = self.identity;
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
            policy: self.policy,
            asked: self.asked,
            status: match verdict.status {
                packhost_plugin::Status::Pass => Status::Pass,
                packhost_plugin::Status::Warn => Status::Warn,
                packhost_plugin::Status::Fail => Status::Fail,
            },
            findings: verdict.findings.into_iter().map(finding).collect(),
            details,
            fuel: self.fuel,
        })
    }
}

fn request_of(guard: &str, request: packhost_plugin::Request) -> Request {
    Request {
        guard: guard.into(),
        quantity: request.quantity,
        scope: request.scope,
        params: request.params,
    }
}

/// Those rows of a table that are `wanted`, as a guard sees them.
fn rows(table: &Table, wanted: impl Fn(&str, &str) -> bool) -> Vec<Row> {
    let lend = |row: packhost_measure::table::Row| Row {
        scope: row.scope,
        quantity: row.quantity,
        value: match row.value {
            Measured::Number(number) => Lent::Number(number),
            Measured::Vector(vector) => Lent::Vector(vector),
            Measured::Text(text) => Lent::Text(text),
        },
    };
    let rows = table.rows();
    rows.filter(|row| wanted(&row.scope, &row.quantity))
        .map(lend)
        .collect()
}

/// The plugin host has checked that this is a JSON object; a defect there must not become a silent default here.
fn parse(identity: &PluginIdentity, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::GuardAnswer {
        guard: identity.id.clone(),
        message: error.to_string(),
    })
}
