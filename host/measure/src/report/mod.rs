//! `evaluation.report.json`: one comparison of a subject with its baseline, in the reference's fields.
//!
//! Everything that was decided comes from the guards' answers and everything that was measured from the tables; the report
//! only arranges it, so that a reader of the reference's reports (its verifier included) finds what it expects. Figures
//! that the reference does not have stand under the one key `packhost`.
//!
//! **Guards that were not evaluated.** The fields of spectral, RMT and variance exist for readers that require them. Where
//! no such guard judged, the block says `"evaluated": false, "status": "not_evaluated"`, `packhost.not_evaluated` lists it,
//! and the flags `spectral_stable` and `rmt_stable` are true in the sense of "nothing was found": a missing flag would
//! count as damage, which nobody has measured either. No measurement contract is claimed for them.
//!
//! **Guards of our own** are listed under `packhost.guards` with all their details. They raise none of the reference's flags.
//!
//! A report is a function of its inputs: time stamps are one of them, and nothing is read from clocks or the environment.

mod blocks;
mod guards;
mod structural;

pub use guards::own as guard_entry;
pub use guards::statuses as guard_statuses;
pub use structural::{StructuralFailure, run_id, structural_failure};

use crate::dataset::DatasetIdentity;
use crate::table::Table;
use crate::tiers::{MetricOptions, Policies};
use crate::windows::Windows;
use crate::{Error, Request, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// How a guard's verdict reads in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing found.
    Pass,
    /// Worth a look.
    Warn,
    /// Damaged.
    Fail,
}

/// One thing that a guard found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// Where: a tensor, a module, an arm or `model`.
    pub scope: String,
    /// A stable word for machines.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// What was measured.
    pub value: Option<f64>,
    /// What was allowed.
    pub limit: Option<f64>,
}

/// One guard's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// The component's id, such as `primary-metric`.
    pub id: String,
    /// The component's version.
    pub version: String,
    /// SHA-256 of the component.
    pub digest: String,
    /// The policy that it was given.
    pub policy: Value,
    /// What it asked for, in its plan and in further rounds: it saw the rows of these requests and no others.
    pub asked: Vec<Request>,
    /// In one word.
    pub status: Status,
    /// In detail.
    pub findings: Vec<Finding>,
    /// The guard's details, an object.
    pub details: Value,
    /// Fuel that its calls burnt while it judged: the same on every machine for the same tables and the same engine.
    pub fuel: u64,
}

/// Who a model is.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelIdentity {
    /// This run of it.
    pub run_id: String,
    /// Name or folder.
    pub model_id: String,
    /// Commit of the checkpoint, where known, else empty.
    pub revision: String,
    /// The architecture's `model_type`.
    pub family: String,
    /// Digest of the tokenizer.
    pub tokenizer_digest: String,
    /// Entries of the tokenizer's vocabulary.
    pub vocab_size: usize,
}

/// How the subject came to be.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EditIdentity {
    /// Type of the edit or fault, `noop` for the baseline against itself, `custom` for a checkpoint from elsewhere.
    pub name: String,
    /// The edit as it was asked for, such as `quant_rtn:8:128:ffn`.
    pub spec: String,
    /// Digest of what was done, empty where unknown.
    pub digest: String,
    /// Layers with a changed tensor.
    pub layers_modified: usize,
    /// Elements of all changed tensors.
    pub params_changed: u64,
}

/// Everything that a report is made of.
#[derive(Debug, Clone, Copy)]
pub struct ReportInputs<'a> {
    /// Time of the report, ISO 8601 in UTC.
    pub timestamp: &'a str,
    /// Version of the host.
    pub host_version: &'a str,
    /// Where the model ran, such as `cpu`.
    pub device: &'a str,
    /// The subject.
    pub subject: &'a ModelIdentity,
    /// The baseline.
    pub baseline: &'a ModelIdentity,
    /// How the subject came to be.
    pub edit: &'a EditIdentity,
    /// The data set.
    pub dataset: DatasetIdentity<'a>,
    /// The windows both were scored on.
    pub windows: &'a Windows,
    /// The baseline's measurements.
    pub baseline_table: &'a Table,
    /// What was measured of the baseline beside its table while this subject was judged: further rounds and probes.
    pub baseline_rounds: &'a Table,
    /// The subject's measurements.
    pub subject_table: &'a Table,
    /// The policies of the run.
    pub policies: &'a Policies,
    /// How the metric's intervals were made.
    pub metric: MetricOptions,
    /// The guards' answers, in the order in which they judged.
    pub guards: &'a [Judged],
}

impl ReportInputs<'_> {
    /// The answer of the guard with that id.
    fn judged(&self, id: &str) -> Option<&Judged> {
        self.guards.iter().find(|judged| judged.id == id)
    }
}

/// Guards that the reference's format has a block for, beside the metric and invariants.
const OPTIONAL_GUARDS: [&str; 3] = ["spectral", "rmt", "variance"];

/// The guards of the reference's chain. Guards of our own stand under `packhost` only and gate none of its flags.
const CHAIN: [&str; 4] = ["invariants", "spectral", "rmt", "variance"];

/// The guard without which there is no report.
const METRIC: &str = "primary-metric";

/// Whether a guard is the reference's; every other one is our own.
#[must_use]
pub fn is_parity(guard: &str) -> bool {
    CHAIN.contains(&guard) || guard == METRIC
}

/// Put a report together. Fails when the guard `primary-metric` did not judge: without it use [`structural_failure`].
pub fn build(inputs: &ReportInputs<'_>) -> Result<Value> {
    let metric = inputs.judged(METRIC).ok_or_else(|| {
        Error::Report("the guard primary-metric did not judge, so there is no metric".into())
    })?;
    let metric = &metric.details;
    let mut report = Map::new();
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    put("schema_version", json!("v1"));
    put("run_id", json!(inputs.subject.run_id));
    put("artifacts", blocks::artifacts(inputs));
    put("assurance", blocks::assurance(inputs));
    put("auto", blocks::auto(inputs));
    put("baseline_ref", blocks::baseline_ref(inputs, Some(metric)));
    put("confidence", blocks::confidence(metric));
    put("context", blocks::context(inputs));
    put("dataset", blocks::dataset(inputs, Some(metric)));
    put("edit", blocks::edit(inputs));
    put("edit_name", json!(inputs.edit.name));
    put("evaluation_windows", blocks::evaluation_windows(inputs));
    put("guard_overhead", blocks::guard_overhead());
    put("guards", guards::list(inputs));
    if let Some(invariants) = inputs.judged("invariants") {
        put("invariants", guards::invariants(invariants));
    }
    put("meta", blocks::meta(inputs));
    put("packhost", blocks::own(inputs, metric));
    put("plugins", blocks::plugins(inputs));
    put(
        "policies",
        Value::Object(inputs.policies.sections().clone()),
    );
    put("policy_digest", blocks::policy_digest(inputs));
    put("policy_provenance", blocks::policy_provenance(inputs));
    put("primary_metric", blocks::primary_metric(inputs, metric));
    put("primary_metric_tail", metric["tail"].clone());
    put("provenance", blocks::provenance(inputs, Some(metric)));
    put(
        "report_build",
        json!({"fallback_fields": [], "repaired_fields": [], "synthesized_fields": []}),
    );
    put("resolved_policy", guards::resolved_policy(inputs));
    for guard in OPTIONAL_GUARDS {
        put(guard, guards::block(inputs, guard));
    }
    put("structure", blocks::structure(inputs));
    put("telemetry", blocks::telemetry(inputs, metric));
    put("validation", blocks::validation(inputs, metric));
    Ok(Value::Object(report))
}
