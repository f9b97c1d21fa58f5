//! A study: what every guard says about every scenario, how often it is wrong about harmless changes, and how much of a
//! fault it needs.
//!
//! A study *is* a run ([`crate::run`], mode study): the same components, calibration, presets and evaluator, the baseline
//! resident, with every probe on every subject and without verdict and pack. Its scenarios come from a study file
//! ([`mod@file`]). Afterwards the reports in the run directory are read (`observe`), summed up (`summary`) and shown as JSON,
//! as text (`text`) and as a page (`page`).
//!
//! ```text
//! <out>/study.json   canonical, without times and paths
//!       index.html   the page
//!       run/         the run: every report and table that the figures come from
//! ```

pub mod file;
pub(crate) mod observe;
pub(crate) mod page;
mod summary;
pub(crate) mod text;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use packhost_pack::canonical::to_pretty;
use serde::Serialize;

pub use self::file::StudyFile;
use self::observe::{Level, Observed};
use self::summary::{FalseAlarms, LadderResult};
use crate::events::Sink;
use crate::run::{self, RunRequest};
use crate::rundir::write_whole;
use crate::suites::EvaluationSize;
use crate::toolbox::Toolbox;
use crate::{Error, Result};

/// What a study found: `study.json`.
#[derive(Debug, Serialize)]
pub struct Study {
    pub schema: &'static str,
    pub host_version: &'static str,
    pub title: String,
    pub model: Model,
    pub dataset: Dataset,
    pub windows: EvaluationSize,
    pub selection: &'static str,
    pub tier: &'static str,
    pub profile: &'static str,
    pub seed: u64,
    pub calibration_runs: u32,
    /// In the order in which they judge.
    pub guards: Vec<String>,
    /// In the order of the study file.
    pub scenarios: Vec<Observed>,
    /// By guard, in order.
    pub false_alarms: Vec<FalseAlarms>,
    pub ladders: Vec<LadderResult>,
}

/// Which model was studied.
#[derive(Debug, Serialize)]
pub struct Model {
    pub id: String,
    pub architecture: String,
    pub parameters: u64,
    /// Digest of all weights.
    pub sha256: String,
}

/// On which text.
#[derive(Debug, Serialize)]
pub struct Dataset {
    pub kind: String,
    pub sha256: String,
}

/// A finished study.
pub struct Done {
    /// The tables for standard output.
    pub text: String,
    pub json: PathBuf,
    pub page: PathBuf,
}

/// Carries out a study of the one model of `request`, whose manifest is that of `file`; writes into `out`, which must be
/// absent or empty, with the run itself in the request's folder.
///
/// # Errors
/// As [`run::run`]; a scenario that cannot be applied to the model is no error.
pub fn study(
    file: &StudyFile,
    request: &RunRequest,
    out: &std::path::Path,
    toolbox: &Toolbox,
    sink: &dyn Sink,
    cancel: &AtomicBool,
    now: &(dyn Fn() -> String + Sync),
) -> Result<Done> {
    let occupied = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if occupied || out.is_file() {
        return Err(Error::StudyExists { path: out.into() });
    }
    run::run(request, toolbox, sink, cancel, now)?;
    let study = collect(file, request, toolbox)?;
    let value = serde_json::to_value(&study).unwrap_or_default();
    let (json, page) = (out.join("study.json"), out.join("index.html"));
    let put = |path: &std::path::Path, text: &str| {
        write_whole(path, text.as_bytes()).map_err(|error| Error::io("write", path, error))
    };
    put(&json, &to_pretty(&value))?;
    put(&page, &page::page(&study).render())?;
    Ok(Done {
        text: text::text(&study),
        json,
        page,
    })
}

/// Reads what a finished run found.
fn collect(file: &StudyFile, request: &RunRequest, toolbox: &Toolbox) -> Result<Study> {
    let guards = crate::guards::Guards::load(toolbox, &request.guards)?.ids();
    let dataset = run::open_dataset(&request.dataset)?;
    let scenarios = observe::all(file, request, &guards)?;
    let model = &request.models[0];
    let checkpoint = packhost_model::Checkpoint::open(&model.dir)?;
    Ok(Study {
        schema: "packhost-study-result-v1",
        host_version: env!("CARGO_PKG_VERSION"),
        title: file.title.clone(),
        model: Model {
            id: model.id.clone(),
            architecture: checkpoint.config().architecture_name.clone(),
            parameters: checkpoint
                .tensors()
                .iter()
                .map(packhost_model::TensorMeta::len)
                .sum(),
            sha256: checkpoint.fingerprint()?,
        },
        dataset: Dataset {
            kind: request.dataset.kind.clone(),
            sha256: dataset.digest().into(),
        },
        windows: model.size,
        selection: request.selection.name(),
        tier: request.tier.name(),
        profile: request.pack.profile.name(),
        seed: request.counts.seed,
        calibration_runs: request.counts.calibration_runs,
        false_alarms: summary::false_alarms(&scenarios, &guards),
        ladders: summary::ladders(file, &scenarios, &guards),
        guards,
        scenarios,
    })
}

/// The strongest of what some guards say of a subject.
fn strongest<'a>(run: &observe::Judgement, guards: impl Iterator<Item = &'a String>) -> Level {
    let levels = guards.filter_map(|guard| run.guards.get(guard)?.level);
    levels.max().unwrap_or_default()
}
