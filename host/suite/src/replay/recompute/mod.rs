//! Measuring again, for who holds the model: the one thing that a replay must take as it stands.
//!
//! 1. The facts about each model that was given are made again from its checkpoint: architecture, tokenizer, and the digest of
//!    every tensor.
//! 2. Of everything that can be measured again (`draw::Unit`), as many as were asked for are drawn, by the pack's
//!    manifest and the auditor's seed. Without a seed a signer can know the choice before signing.
//! 3. A drawn subject is made again from the weights by the pack's own component; what it changed, to the digest of every
//!    tensor, and what its plugin says are compared with the pack.
//! 4. It is measured on the windows that the pack's report lists, with the baseline, and every row of both tables is compared:
//!    bit for bit where the pack was made on the same kind of processor, else within [`Bound::OTHER_PROCESSOR`].
//!
//! Everything else follows from the tables, as [`replay_pack`](super::replay_pack) shows.

mod draw;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use packhost_measure::dataset::DatasetIdentity;
use packhost_measure::preset;
use packhost_measure::table::Table;
use packhost_model::Checkpoint;
use packhost_pack::canonical::to_pretty;
use packhost_pack::digest;
use packhost_pack::files::Files;
use packhost_plugin::{Engine, Plugin, PluginKind};
use packhost_tensor::cpu::Cpu;
use packhost_tensor::cpu::matmul::uses_matrix_tiles;
use serde_json::{Value, json};

pub use rows::Bound;

use self::draw::{Unit, What};
use self::rows::Compared;
use super::components;
use super::difference::{Difference, Findings};
use super::evaluation::windows;
use super::evidence::{Evidence, ModelFacts};
use crate::evaluate::{Evaluator, MeasuredBaseline, SubjectInput};
use crate::run::baselines::perturbation;
use crate::run::changes::{Changes, nothing};
use crate::run::model::ModelState;
use crate::run::{ModelRequest, bound, paths};
use crate::scenarios::{Generation, Scenario};
use crate::spec::{Resolution, Tuned, resolve};
use crate::subject::{PlannedEdit, Subject, inject_by, perturbed};
use crate::toolbox::PluginIdentity;
use crate::{Error, Result, presets};

/// What an auditor brings.
#[derive(Debug, Clone)]
pub struct Audit {
    /// How many measurements to make again.
    pub count: usize,
    /// Chooses among them, with the pack.
    pub seed: String,
    /// Checkpoints: of which model, unless the pack has only one, and where.
    pub models: Vec<(Option<String>, PathBuf)>,
}

/// What measuring again showed.
#[derive(Debug, Clone)]
pub struct Recompute {
    /// Where the pack is not what was measured, in the order of the steps.
    pub differences: Vec<Difference>,
    /// Tables of the measurements that the choice fell on.
    pub drawn: Vec<String>,
    /// How many there were to choose from, of the models that were given.
    pub of: usize,
    /// Tensors of the unedited models that were hashed.
    pub tensors: usize,
    /// Values that were compared.
    pub values: usize,
    /// How many of these are not the same, but within the bound.
    pub within: usize,
    /// What they were held to.
    pub bound: Bound,
    /// Files that were made again from the weights and agree.
    pub measured: Vec<String>,
    /// Models of the pack of which no checkpoint was given.
    pub absent: Vec<String>,
}

impl Recompute {
    /// Whether everything that was measured is what the pack says.
    pub fn agrees(&self) -> bool {
        self.differences.is_empty()
    }

    /// As the output of `pack verify --json` shows it.
    pub fn json(&self) -> Value {
        json!({
            "status": if self.agrees() { "agrees" } else { "differs" },
            "drawn": self.drawn,
            "of": self.of,
            "tensors": self.tensors,
            "values": self.values,
            "within": self.within,
            "bound": {"relative": self.bound.relative, "absolute": self.bound.absolute},
            "measured": self.measured,
            "absent": self.absent,
            "differences": self.differences,
        })
    }
}

/// Measures again what the auditor's choice falls on. `files` are those of a pack that was verified.
///
/// # Errors
/// A checkpoint that was given cannot be opened, or belongs to no model of the pack. What cannot be made again of the pack
/// is no error but a difference.
pub fn recompute(files: &Files, engine: &Engine, device: &Cpu, audit: &Audit) -> Result<Recompute> {
    let mut findings = Findings::default();
    let mut answer = Recompute {
        differences: Vec::new(),
        drawn: Vec::new(),
        of: 0,
        tensors: 0,
        values: 0,
        within: 0,
        bound: Bound::EXACT,
        measured: Vec::new(),
        absent: Vec::new(),
    };
    let Some(evidence) = Evidence::read(files, engine, &mut findings) else {
        answer.differences = findings.differences;
        return Ok(answer);
    };
    // What reading shows is the replay's to say.
    let mut findings = Findings::default();
    let models = given(&evidence, audit)?;
    let folder = |index: usize| evidence.models[index].record.folder.clone();
    answer.absent = (0..evidence.models.len())
        .filter(|index| !models.contains_key(index))
        .map(folder)
        .collect();
    answer.bound = bound_of(&evidence, &mut findings);
    for (&index, model) in &models {
        let facts = model.facts()?;
        let name = paths::packed_profile(&folder(index));
        let bytes = to_pretty(&facts).into_bytes();
        findings.file(files, &|_| "recompute.model", &name, &bytes);
        answer.tensors += model.open()?.checkpoint.tensors().len();
    }
    let mut units = draw::units(&evidence);
    units.retain(|unit| models.contains_key(&unit.model));
    answer.of = units.len();
    let drawn = draw::draw(&evidence, units, audit.count, &audit.seed);
    let cancel = AtomicBool::new(false);
    let mut again = Again {
        evidence: &evidence,
        tuned: evidence.tuned(&mut findings),
        loaded: BTreeMap::new(),
        evaluator: Evaluator {
            device,
            guards: &evidence.guards,
            dataset: DatasetIdentity {
                provider: &evidence.record.dataset.provider,
                digest: &evidence.record.dataset.sha256,
            },
            timestamp: &evidence.record.began,
            hidden_bytes: 0,
            cancel: &cancel,
        },
        bound: answer.bound,
        compared: Compared::default(),
        findings,
    };
    let same = |a: &Unit<'_>, b: &Unit<'_>| (a.model, a.seed) == (b.model, b.seed);
    for units in drawn.chunk_by(same) {
        let first = &units[0];
        let (facts, model) = (&evidence.models[first.model], &models[&first.model]);
        let names = units.iter().map(|unit| unit.table(&facts.record.folder));
        answer.drawn.extend(names);
        match again.baseline(facts, model, first.seed) {
            Ok(baseline) => {
                for unit in units {
                    again.unit(facts, model, &baseline, unit);
                }
            }
            Err(why) => {
                let name = paths::packed_baseline_report(&facts.record.folder, first.seed);
                again.findings.fail("recompute.baseline", &name, why);
            }
        }
    }
    let Again {
        compared, findings, ..
    } = again;
    Ok(Recompute {
        differences: findings.differences,
        values: compared.values,
        within: compared.within,
        measured: findings.derived.into_iter().collect(),
        ..answer
    })
}

/// The models of which a checkpoint was given, by their place in the pack.
fn given(evidence: &Evidence<'_>, audit: &Audit) -> Result<BTreeMap<usize, ModelState>> {
    let mut models = BTreeMap::new();
    for (name, dir) in &audit.models {
        let records = || evidence.models.iter().map(|model| &model.record);
        let named = match name {
            Some(name) => records().position(|record| [&record.id, &record.folder].contains(&name)),
            None if evidence.models.len() == 1 => Some(0),
            None => None,
        };
        let known = || {
            records()
                .map(|record| record.id.as_str())
                .collect::<Vec<_>>()
        };
        let Some(index) = named else {
            return Err(Error::Recompute {
                message: format!(
                    "it is not clear which model `{}` is; write --model ID={}, where ID is one of {}",
                    dir.display(),
                    dir.display(),
                    known().join(", ")
                ),
            });
        };
        let record = &evidence.models[index].record;
        let model = ModelState::new(ModelRequest {
            id: record.id.clone(),
            folder: record.folder.clone(),
            revision: record.revision.clone(),
            dir: dir.clone(),
            size: record.size,
        });
        model.open()?;
        models.insert(index, model);
    }
    Ok(models)
}

/// Bit for bit if the pack says that it was made on such a processor as this.
fn bound_of(evidence: &Evidence<'_>, findings: &mut Findings) -> Bound {
    let machine = evidence.json("metadata/environment.json", findings);
    let machine = machine.unwrap_or_default();
    let here = format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH);
    let same =
        machine["platform"] == json!(here) && machine["matrix_tiles"] == json!(uses_matrix_tiles());
    match same {
        true => Bound::EXACT,
        false => Bound::OTHER_PROCESSOR,
    }
}

/// What measuring again needs, and what it found.
struct Again<'a> {
    evidence: &'a Evidence<'a>,
    tuned: Tuned,
    loaded: BTreeMap<String, (Plugin, PluginIdentity)>,
    evaluator: Evaluator<'a>,
    bound: Bound,
    compared: Compared,
    findings: Findings,
}

type Said<T> = std::result::Result<T, String>;

fn said(error: Error) -> String {
    error.sentence()
}

impl Again<'_> {
    /// The baseline on the windows that its report lists; its table is compared.
    fn baseline(
        &mut self,
        facts: &ModelFacts,
        model: &ModelState,
        seed: u64,
    ) -> Said<MeasuredBaseline> {
        let evidence = self.evidence;
        let folder = &facts.record.folder;
        let report = evidence
            .files
            .read(&paths::packed_baseline_report(folder, seed))?;
        let report: Value = serde_json::from_slice(&report).map_err(|error| error.to_string())?;
        let mut windows = windows(&report, evidence.window_plan(facts, seed))?;
        let measure = || {
            let opened = model.open()?;
            windows.pad = opened.tokenizer.special_id("pad_token").unwrap_or(0);
            let drawn = bound::windows(&windows);
            let tier = presets::judging(None, evidence.tier, evidence.profile, None)?;
            let metric = evidence.metric(seed);
            let requests = evidence.guards.plan(&tier, &metric, &opened.info)?;
            let weights = &*opened.checkpoint;
            let fixed = model.fixed(|| self.evaluator.fixed(weights, &windows, &requests))?;
            let identity = model.identity("baseline", seed)?;
            let mut measured = self
                .evaluator
                .baseline(weights, identity, windows, requests, fixed)?;
            let of = digest::hex(to_pretty(&model.facts()?).as_bytes());
            bound::put(&mut measured.table, bound::MODEL, &of);
            bound::put(&mut measured.table, bound::WINDOWS, &drawn);
            Ok(measured)
        };
        let measured = measure().map_err(said)?;
        let name = paths::packed_table(&paths::baseline_table(folder, seed));
        self.rows(&name, &measured.table);
        Ok(measured)
    }

    /// One measurement.
    fn unit(
        &mut self,
        facts: &ModelFacts,
        model: &ModelState,
        baseline: &MeasuredBaseline,
        unit: &Unit<'_>,
    ) {
        let name = unit.table(&facts.record.folder);
        let made = match unit.what {
            What::Perturbation => perturbation(&self.evaluator, model, baseline, unit.seed)
                .map(|table| self.rows(&name, &table))
                .map_err(said),
            What::Itself => self.itself(facts, model, baseline, unit),
            What::Subject { scenario, run } => {
                self.subject(facts, model, baseline, unit, (scenario, run))
            }
        };
        if let Err(why) = made {
            self.findings.fail("recompute.subject", &name, why);
        }
    }

    fn itself(
        &mut self,
        facts: &ModelFacts,
        model: &ModelState,
        baseline: &MeasuredBaseline,
        unit: &Unit<'_>,
    ) -> Said<()> {
        let base = &model.open().map_err(said)?.checkpoint;
        let input = SubjectInput {
            weights: &**base,
            base: &**base,
            identity: model.identity("baseline", unit.seed).map_err(said)?,
            edit: nothing(),
            changed: BTreeSet::new(),
            changes: None,
            settings: Value::Null,
            probes: BTreeSet::new(),
        };
        let rounds = paths::baseline_rounds_table(&facts.record.folder, unit.seed);
        self.evaluation(facts, baseline, unit, &input, None, &rounds)
    }

    /// A scenario's subject: made, held against what the pack says of it, and measured.
    fn subject(
        &mut self,
        facts: &ModelFacts,
        model: &ModelState,
        baseline: &MeasuredBaseline,
        unit: &Unit<'_>,
        (scenario, run): (&Scenario, u32),
    ) -> Said<()> {
        let folder = &facts.record.folder;
        let dir = paths::packed_report_dir(folder, scenario, run);
        let metadata = format!("{dir}/{}", paths::metadata_name(scenario));
        let base = &model.open().map_err(said)?.checkpoint;
        let subject = self.make(facts, base, scenario, &metadata)?;
        let files = self.evidence.files;
        let bytes = to_pretty(&subject.metadata).into_bytes();
        self.findings
            .file(files, &|_| "recompute.metadata", &metadata, &bytes);
        let changes = Changes::of(&subject);
        let listed = to_pretty(&changes.json()).into_bytes();
        let name = paths::packed(&paths::changes(folder, scenario));
        self.findings
            .file(files, &|_| "recompute.changes", &name, &listed);
        let input = SubjectInput {
            weights: &subject.overlay,
            base: &**base,
            identity: model.identity(&scenario.id, unit.seed).map_err(said)?,
            edit: changes.identity(scenario, &subject.metadata),
            changed: subject.overlay.changed().keys().cloned().collect(),
            changes: Some(digest::hex(&listed)),
            settings: Value::Null,
            probes: scenario.probes(),
        };
        let spec = match &scenario.generation {
            Generation::Edit { edit_spec, .. } => Some(edit_spec.as_str()),
            Generation::Error { .. } | Generation::Perturbation { .. } => None,
        };
        let rounds = paths::rounds_table(folder, &scenario.id, run);
        self.evaluation(facts, baseline, unit, &input, spec, &rounds)
    }

    /// Measures a subject as a run does, guards' further questions included, and compares its tables.
    fn evaluation(
        &mut self,
        facts: &ModelFacts,
        baseline: &MeasuredBaseline,
        unit: &Unit<'_>,
        input: &SubjectInput<'_>,
        spec: Option<&str>,
        rounds: &str,
    ) -> Said<()> {
        let evidence = self.evidence;
        let folder = &facts.record.folder;
        let name = paths::packed(&paths::preset(folder));
        let preset = match evidence.files.has(&name) {
            false => None,
            true => {
                let text = evidence.files.read(&name)?;
                let preset = preset::parse(&String::from_utf8_lossy(&text));
                Some(preset.map_err(|error| error.to_string())?)
            }
        };
        let (tier, profile) = (evidence.tier, evidence.profile);
        let policies = presets::judging(preset.as_ref(), tier, profile, spec).map_err(said)?;
        let metric = evidence.metric(unit.seed);
        let evaluation = self.evaluator.subject(baseline, input, &policies, metric);
        let evaluation = evaluation.map_err(said)?;
        self.rows(&unit.table(folder), &evaluation.table);
        self.rows(&paths::packed_table(rounds), &evaluation.rounds);
        Ok(())
    }

    /// The subject of a scenario, by the component that the pack says made it.
    fn make(
        &mut self,
        facts: &ModelFacts,
        base: &Arc<Checkpoint>,
        scenario: &Scenario,
        metadata: &str,
    ) -> Said<Subject> {
        let keys = [facts.record.id.as_str(), facts.record.folder.as_str()];
        let device = self.evaluator.device;
        match &scenario.generation {
            Generation::Edit { edit_spec, version } => {
                let edit = match resolve(edit_spec, version, &self.tuned, &keys) {
                    Resolution::Selected(edit) => edit,
                    Resolution::Skipped { reason } | Resolution::Refused { reason, .. } => {
                        return Err(format!("`{edit_spec}` cannot be made: {reason}"));
                    }
                };
                let (Plugin::Edit(plugin), identity) = self.load(metadata, PluginKind::Edit)?
                else {
                    return Err("was made by no edit".into());
                };
                PlannedEdit::by((plugin, identity), device, base, &edit)
                    .and_then(|planned| planned.into_subject(base))
                    .map_err(said)
            }
            Generation::Error { error_type, .. } => {
                let env = scenario.injection_env(&keys).map_err(said)?;
                let loaded = self.load(metadata, PluginKind::Injection)?;
                let (Plugin::Injection(plugin), identity) = loaded else {
                    return Err("was made by no injection".into());
                };
                inject_by((plugin, identity), device, base, error_type, &env).map_err(said)
            }
            Generation::Perturbation { seed } => perturbed(base, *seed).map_err(said),
        }
    }

    /// The component that the metadata of a subject names, compiled once.
    fn load(&mut self, metadata: &str, kind: PluginKind) -> Said<(Plugin, PluginIdentity)> {
        let said: Value = serde_json::from_slice(&self.evidence.files.read(metadata)?)
            .map_err(|error| format!("`{metadata}` cannot be read: {error}"))?;
        let sha256 = said["packhost_plugin"]["sha256"].as_str();
        let sha256 = sha256.unwrap_or_default();
        if let Some(loaded) = self.loaded.get(sha256) {
            return Ok(loaded.clone());
        }
        let loaded = components::load(self.evidence, sha256, kind)
            .map_err(|why| format!("`{}` {why}", paths::packed_component(sha256)))?;
        self.loaded.insert(sha256.to_owned(), loaded.clone());
        Ok(loaded)
    }

    /// Compares a table of the pack with the one that was measured. One without rows is not in the pack.
    fn rows(&mut self, name: &str, measured: &Table) {
        let findings = &mut self.findings;
        let stated = match self.evidence.files.has(name) {
            true => self.evidence.table(name, findings),
            false => Some(Table::new()),
        };
        let Some(stated) = stated else {
            return;
        };
        let before = findings.differences.len();
        self.compared += rows::compare(name, &stated, measured, self.bound, findings);
        if findings.differences.len() == before && !stated.is_empty() {
            findings.derived.insert(name.to_owned());
        }
    }
}
