//! Comparing any two checkpoints on the same text: what the command `evaluate` does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use packhost_measure::report::{EditIdentity, ModelIdentity, run_id};
use packhost_measure::tiers::{MetricOptions, Policies, PolicyInputs, Profile, Tier};
use packhost_measure::windows::{Selection, select};
use packhost_model::{Checkpoint, TensorMeta, Tokenizer, Weights};
use packhost_pack::canonical::to_pretty;
use serde_json::Value;

use crate::convert::model_info;
use crate::evaluate::{ALPHA, Evaluator, MeasuredBaseline, SubjectInput};
use crate::guards::Guards;
use crate::rundir::write_whole;
use crate::suites::{Dataset, EvaluationSize};
use crate::toolbox::Toolbox;
use crate::{Error, Result, presets};

/// What to compare, and how.
#[derive(Debug, Clone)]
pub struct CompareRequest {
    pub baseline: PathBuf,
    pub subject: PathBuf,
    pub dataset: Dataset,
    /// Folder for the report and the tables.
    pub out: PathBuf,
    pub size: EvaluationSize,
    pub seed: u64,
    /// Name of the window selection; none means the data set's usual one.
    pub selection: Option<String>,
    /// Name of the tier.
    pub tier: String,
    pub preset: Option<PathBuf>,
    /// Guard ids in order; empty means every installed one.
    pub guards: Vec<String>,
    /// Bootstrap replicates.
    pub replicates: usize,
    /// Guards whose probe is run as well; the answers stand in the report.
    pub probes: BTreeSet<String>,
}

impl CompareRequest {
    /// With the settings that `evaluate` has by itself.
    #[must_use]
    pub fn new(baseline: PathBuf, subject: PathBuf, dataset: Dataset, out: PathBuf) -> Self {
        Self {
            baseline,
            subject,
            dataset,
            out,
            size: EvaluationSize {
                seq_len: 512,
                preview: 32,
                final_: 32,
            },
            seed: 42,
            selection: None,
            tier: Tier::Balanced.name().into(),
            preset: None,
            guards: Vec::new(),
            replicates: 1000,
            probes: BTreeSet::new(),
        }
    }

    fn selection(&self) -> Result<Selection> {
        let Some(name) = &self.selection else {
            return Ok(self.dataset.usual_selection());
        };
        Selection::from_name(name).ok_or_else(|| Error::SelectionName { name: name.clone() })
    }
}

/// What came out.
pub struct Compared {
    pub report: Value,
    /// Where the report lies.
    pub path: PathBuf,
}

impl Compared {
    /// Why the subject cannot be run, if it cannot: then the report is one of structural failure.
    pub fn structural_failure(&self) -> Option<&str> {
        self.report["packhost"]["structural_failure"].as_str()
    }
}

/// Compares; writes `evaluation.report.json` and the tables that it names (`baseline`, `baseline_rounds` and `subject`, each
/// `.table.json`) into the output folder.
///
/// # Errors
/// A checkpoint, the tokenizer, the data set or the preset cannot be used; a guard fails; the output cannot be written.
pub fn compare(
    request: &CompareRequest,
    toolbox: &Toolbox,
    timestamp: &str,
    cancel: &AtomicBool,
) -> Result<Compared> {
    let comparison = Comparison::open(request, toolbox, timestamp, cancel, 0)?;
    comparison.with(&request.subject, &request.out)
}

/// A measured baseline that any number of subjects can be compared with.
pub struct Comparison<'a> {
    request: &'a CompareRequest,
    toolbox: &'a Toolbox,
    timestamp: &'a str,
    cancel: &'a AtomicBool,
    guards: Guards,
    dataset: packhost_measure::dataset::Dataset,
    policies: Policies,
    metric: MetricOptions,
    baseline: Arc<Checkpoint>,
    measured: MeasuredBaseline,
}

impl<'a> Comparison<'a> {
    /// Measures the baseline of `request`. Of its hidden states `hidden_bytes` are kept at most, so that subjects start at
    /// their first changed layer: worth it where there are several.
    ///
    /// # Errors
    /// As [`compare`], the output excepted. Of the subject that `request` names no more is asked than that it opens: the
    /// work would be for nothing.
    pub fn open(
        request: &'a CompareRequest,
        toolbox: &'a Toolbox,
        timestamp: &'a str,
        cancel: &'a AtomicBool,
        hidden_bytes: u64,
    ) -> Result<Self> {
        let selection = request.selection()?;
        let guards = Guards::load(toolbox, &request.guards)?;
        let dataset = crate::run::open_dataset(&request.dataset)?;
        let baseline = Checkpoint::open(&request.baseline)?;
        baseline.config().served()?;
        let policies = policies(request, &baseline)?;
        Checkpoint::open(&request.subject)?;
        let tokenizer = Tokenizer::open(&request.baseline)?;
        let plan = request
            .size
            .window_plan(request.seed, selection, Profile::Dev);
        let windows = select(dataset.texts(), &tokenizer, &plan)?;
        let metric = MetricOptions {
            seed: request.seed,
            replicates: request.replicates,
            alpha: ALPHA,
        };
        let requests = guards.plan(&policies, &metric, &model_info(&*baseline))?;
        let evaluator = Evaluator {
            device: &toolbox.device,
            guards: &guards,
            dataset: dataset.identity(),
            timestamp,
            hidden_bytes,
            cancel,
        };
        let fixed = evaluator.fixed(&*baseline, &windows, &requests)?;
        let identity = identity(&baseline, &tokenizer, request);
        let measured = evaluator.baseline(&*baseline, identity, windows, requests, &fixed)?;
        Ok(Self {
            request,
            toolbox,
            timestamp,
            cancel,
            guards,
            dataset,
            policies,
            metric,
            baseline,
            measured,
        })
    }

    /// Compares the checkpoint in `folder` with the baseline and writes to `out` what [`compare`] writes.
    ///
    /// # Errors
    /// As [`compare`], of the subject and the output.
    pub fn with(&self, folder: &Path, out: &Path) -> Result<Compared> {
        let subject = Checkpoint::open(folder)?;
        let changed = differences(&self.baseline, &subject)?;
        let of_subject = Tokenizer::open(folder)?;
        let input = SubjectInput {
            weights: &*subject,
            base: &*self.baseline,
            identity: identity(&subject, &of_subject, self.request),
            edit: EditIdentity {
                name: if changed.is_empty() { "noop" } else { "custom" }.into(),
                spec: String::new(),
                digest: String::new(),
                layers_modified: layers(&changed, &*subject),
                params_changed: changed
                    .iter()
                    .filter_map(|name| subject.meta(name))
                    .map(TensorMeta::len)
                    .sum(),
            },
            changed,
            changes: None,
            settings: Value::Null,
            probes: self.request.probes.clone(),
        };
        let evaluator = Evaluator {
            device: &self.toolbox.device,
            guards: &self.guards,
            dataset: self.dataset.identity(),
            timestamp: self.timestamp,
            hidden_bytes: 0,
            cancel: self.cancel,
        };
        let evaluation = evaluator.subject(&self.measured, &input, &self.policies, self.metric)?;
        let path = out.join("evaluation.report.json");
        for (name, table) in [
            ("baseline.table.json", &self.measured.table),
            ("baseline_rounds.table.json", &evaluation.rounds),
            ("subject.table.json", &evaluation.table),
        ] {
            put(&out.join(name), &table.to_json())?;
        }
        put(&path, &to_pretty(&evaluation.report))?;
        Ok(Compared {
            report: evaluation.report,
            path,
        })
    }
}

fn policies(request: &CompareRequest, baseline: &Checkpoint) -> Result<Policies> {
    let inputs = PolicyInputs {
        tier: Tier::from_name(&request.tier)?,
        profile: Profile::Dev,
        edit: None,
        overrides: None,
    };
    let Some(path) = &request.preset else {
        return Ok(Policies::resolve(&inputs)?);
    };
    let preset = presets::read(path)?;
    let policies = presets::policies(path, &preset, &inputs)?;
    presets::check_weights(path, &preset, baseline)?;
    Ok(policies)
}

fn identity(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    request: &CompareRequest,
) -> ModelIdentity {
    let name = checkpoint
        .dir()
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    ModelIdentity {
        run_id: run_id(&[&name, tokenizer.digest(), &request.seed.to_string()]),
        model_id: name,
        revision: String::new(),
        family: checkpoint.config().architecture_name.clone(),
        tokenizer_digest: tokenizer.digest().into(),
        vocab_size: tokenizer.vocab_size(),
    }
}

/// Names of the tensors that differ, by content. Both files are read once.
fn differences(baseline: &Checkpoint, subject: &Checkpoint) -> Result<BTreeSet<String>> {
    let mut changed = BTreeSet::new();
    for meta in baseline.tensors() {
        let same = subject
            .meta(&meta.name)
            .is_some_and(|other| other.shape == meta.shape && other.dtype == meta.dtype)
            && baseline.tensor(&meta.name)?.bytes() == subject.tensor(&meta.name)?.bytes();
        if !same {
            changed.insert(meta.name.clone());
        }
    }
    let added = subject
        .tensors()
        .iter()
        .filter(|meta| baseline.meta(&meta.name).is_none());
    changed.extend(added.map(|meta| meta.name.clone()));
    Ok(changed)
}

fn layers(changed: &BTreeSet<String>, subject: &dyn Weights) -> usize {
    changed
        .iter()
        .filter_map(|name| subject.meta(name)?.layer)
        .collect::<BTreeSet<_>>()
        .len()
}

fn put(path: &Path, text: &str) -> Result<()> {
    write_whole(path, text.as_bytes()).map_err(|error| Error::io("write", path, error))
}
