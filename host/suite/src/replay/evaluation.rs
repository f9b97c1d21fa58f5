//! One evaluation again: what the guards say to the stored tables, and the report that follows.

use std::collections::{BTreeMap, BTreeSet};

use packhost_measure::Request;
use packhost_measure::dataset::DatasetIdentity;
use packhost_measure::report::{EditIdentity, Judged, ReportInputs};
use packhost_measure::table::Table;
use packhost_measure::tiers::Policies;
use packhost_measure::windows::{Reduction, Window, WindowPlan, Windows};
use packhost_pack::canonical::to_pretty;
use serde_json::Value;

use super::difference::Findings;
use super::evidence::{Evidence, ModelFacts, bound_to};
use super::stored::Tables;
use crate::guards::Plan;
use crate::run::bound;
use crate::run::record::ENGINE;
use crate::{Result, judging};

/// An evaluation to derive.
pub struct Evaluation<'a> {
    pub evidence: &'a Evidence<'a>,
    pub model: &'a ModelFacts,
    /// `baseline`, or the scenario.
    pub what: &'a str,
    pub seed: u64,
    pub policies: Policies,
    pub edit: EditIdentity,
    /// Guards whose probe was run.
    pub probes: BTreeSet<String>,
    pub windows: &'a Windows,
    /// What every guard asks for of this model.
    pub requests: &'a [Request],
    pub baseline: &'a Table,
    /// Names in the pack.
    pub report: String,
    pub baseline_table: String,
    pub subject_table: String,
    pub rounds_table: String,
    /// What the pack says of the subject beside its report.
    pub about: Option<About>,
}

/// Files of the pack about a subject.
pub struct About {
    /// Which tensors changed.
    pub changes: String,
    /// SHA-256 of that file.
    pub changes_sha256: String,
    /// What the plugin said.
    pub metadata: String,
}

/// What was derived.
pub struct Evaluated {
    pub report: Value,
    pub judgements: usize,
    /// Answers of the probes, by guard.
    pub probes: BTreeMap<String, Value>,
}

impl Evaluation<'_> {
    /// Derives the report and compares it with the pack's.
    pub fn derive(&self, stated: &Value, findings: &mut Findings) -> Option<Evaluated> {
        let files = self.evidence.files;
        let subject = self.evidence.table(&self.subject_table, findings);
        let rounds = match files.has(&self.rounds_table) {
            true => self.evidence.table(&self.rounds_table, findings),
            false => Some(Table::new()),
        };
        let (subject, rounds) = (subject?, rounds?);
        self.evidence.settled(&self.report, stated, findings);
        if let Some(about) = &self.about {
            let named = bound::get(&subject, bound::CHANGES);
            let (changes, digest) = (&about.changes, &about.changes_sha256);
            bound_to(changes, digest, &self.subject_table, named, findings);
            let named = stated["edit"]["plan_digest"].as_str().unwrap_or_default();
            let (metadata, digest) = (&about.metadata, &self.edit.digest);
            bound_to(metadata, digest, &self.report, named, findings);
        }
        for (key, name, table) in [
            ("baseline", &self.baseline_table, self.baseline),
            ("baseline_rounds", &self.rounds_table, &rounds),
            ("subject", &self.subject_table, &subject),
        ] {
            let named = stated["packhost"]["tables"][key]["sha256"].as_str();
            if named == Some(&table.digest()) {
                findings.derived.insert(name.clone());
            } else if files.has(name) {
                let why = format!(
                    "has the digest {}, but `{}` was judged by the table {}",
                    table.digest(),
                    self.report,
                    named.unwrap_or("that it does not name")
                );
                findings.fail("replay.table", name, why);
            }
        }
        let failure = stated["packhost"]["structural_failure"].as_str();
        let derived = self.judge(&subject, &rounds, failure, stated);
        let (report, judged) = derived
            .map_err(|error| findings.fail("replay.guard", &self.report, error.sentence()))
            .ok()?;
        let bytes = to_pretty(&report).into_bytes();
        findings.file(files, &check, &self.report, &bytes);
        Some(Evaluated {
            probes: judging::probe_answers(&judged, &self.probes),
            judgements: judged.len(),
            report,
        })
    }

    /// Lets the guards judge the tables.
    fn judge(
        &self,
        subject: &Table,
        rounds: &Table,
        failure: Option<&str>,
        stated: &Value,
    ) -> Result<(Value, Vec<Judged>)> {
        let evidence = self.evidence;
        let metric = evidence.metric(self.seed);
        let plan = Plan {
            policies: &self.policies,
            metric: &metric,
            probes: &self.probes,
        };
        let network = &self.model.facts.network;
        let wanted = judging::wanted(&evidence.guards, &plan, network, self.requests)?.all;
        let mut both = self.baseline.clone();
        both.copy_from(rounds, |_, _| true);
        let mut tables = Tables {
            baseline: both,
            subject: subject.clone(),
        };
        let guards = &evidence.guards;
        let mut judged = judging::verdicts(guards, &plan, &wanted, failure, &mut tables)?;
        if evidence.record.engine != ENGINE {
            // Another engine may count otherwise; what the guard answered is compared all the same.
            for (position, judged) in judged.iter_mut().enumerate() {
                let fuel = stated["packhost"]["guards"][position]["fuel"].as_u64();
                judged.fuel = fuel.unwrap_or_default();
            }
        }
        let named = self.model.named();
        let record = &evidence.record;
        let inputs = ReportInputs {
            timestamp: &record.began,
            host_version: &record.host_version,
            device: "cpu",
            subject: &named.identity(self.what, self.seed),
            baseline: &named.identity("baseline", self.seed),
            edit: &self.edit,
            dataset: DatasetIdentity {
                provider: &record.dataset.provider,
                digest: &record.dataset.sha256,
            },
            windows: self.windows,
            baseline_table: self.baseline,
            baseline_rounds: rounds,
            subject_table: subject,
            policies: &self.policies,
            metric,
            guards: &judged,
        };
        let report = judging::report(&inputs, failure, &evidence.settings)?;
        Ok((report, judged))
    }
}

/// The check that a place in a report belongs to.
pub fn check(pointer: &str) -> &'static str {
    let begins = |with: &[&str]| with.iter().any(|with| pointer.starts_with(with));
    if begins(&["/packhost/tables"]) {
        "replay.table"
    } else if begins(&["/validation"]) {
        "replay.flag"
    } else if begins(&["/primary_metric", "/evaluation_windows", "/confidence"]) {
        "replay.metric"
    } else if begins(&[
        "/packhost/guards",
        "/guards",
        "/invariants",
        "/spectral",
        "/rmt",
        "/variance",
    ]) {
        "replay.guard"
    } else {
        "replay.report"
    }
}

/// The windows that a baseline's report lists.
///
/// # Errors
/// In words: what the report lacks.
pub fn windows(report: &Value, plan: WindowPlan) -> std::result::Result<Windows, String> {
    let ours = &report["packhost"]["windows"];
    let count = |value: &Value, what: &str| {
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        count.ok_or_else(|| format!("its windows have no number `{what}`"))
    };
    let arm = |name: &str| -> std::result::Result<Vec<Window>, String> {
        let listed = &report["evaluation_windows"][name];
        let list = |value: &Value, what: &str| {
            let list = value.as_array().cloned();
            list.ok_or_else(|| format!("its {name} windows have no list `{what}`"))
        };
        let ids = list(&listed["window_ids"], "window_ids")?;
        let tokens = list(&listed["input_ids"], "input_ids")?;
        let texts = list(&ours["texts"][name], "texts")?;
        if ids.len() != tokens.len() || ids.len() != texts.len() {
            return Err(format!(
                "its {name} windows are {} ids, {} token lists and {} texts",
                ids.len(),
                tokens.len(),
                texts.len()
            ));
        }
        let narrow = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        ids.iter()
            .zip(&tokens)
            .zip(&texts)
            .map(|((id, tokens), text)| {
                let tokens = list(tokens, "input_ids")?;
                Ok(Window {
                    id: narrow(id).ok_or_else(|| format!("{id} is no id of a window"))?,
                    text: count(text, "texts")?,
                    tokens: tokens
                        .iter()
                        .map(|token| narrow(token).ok_or_else(|| format!("{token} is no token")))
                        .collect::<std::result::Result<_, String>>()?,
                })
            })
            .collect()
    };
    let reductions = ours["reductions"].as_array().into_iter().flatten();
    Ok(Windows {
        preview: arm("preview")?,
        final_: arm("final")?,
        plan,
        short: count(&ours["short_texts"], "short_texts")?,
        duplicates: count(&ours["repeated_texts"], "repeated_texts")?,
        reductions: reductions
            .map(|step| {
                Ok(Reduction {
                    deficit: count(&step["deficit"], "deficit")?,
                    per_arm: count(&step["per_arm"], "per_arm")?,
                })
            })
            .collect::<std::result::Result<_, String>>()?,
        // Only measuring pads.
        pad: 0,
    })
}
