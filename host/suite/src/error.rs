//! What can go wrong with a suite.

use std::path::{Path, PathBuf};

/// Result with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a run, a plan or an edit could not be carried out. Messages fit "failed to ..." and name what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("read the scenario manifest {}: {message}", path.display())]
    Manifest { path: PathBuf, message: String },
    #[error("read the suite file {}: {message}", path.display())]
    Suites { path: PathBuf, message: String },
    #[error("write a study to {}: it is not empty; choose another folder", path.display())]
    StudyExists { path: PathBuf },
    #[error("read the study {}: {message}", path.display())]
    Study { path: PathBuf, message: String },
    #[error("find suite `{name}`; there are {}", known.join(", "))]
    UnknownSuite { name: String, known: Vec<String> },
    #[error("find scenario `{id}`; the manifest has {}", known.join(", "))]
    UnknownScenario { id: String, known: Vec<String> },
    #[error("select scenarios: suite `{suite}` has none in this manifest")]
    EmptySuite { suite: String },
    #[error(
        "use setting `{key}` of scenario `{scenario}`: names are INVARLOCK_ and capitals, values are strings, numbers or booleans"
    )]
    ScenarioSetting { scenario: String, key: String },
    #[error("read the tuned edit parameters {}: {message}", path.display())]
    TunedParams { path: PathBuf, message: String },
    #[error("resolve edit `{spec}`: {status}{}", if reason.is_empty() { String::new() } else { format!(", {reason}") })]
    EditSpec {
        spec: String,
        status: String,
        reason: String,
    },
    #[error("find the checkpoint of model `{model}` at {}; fetch it there, or name its folder with --model-path `{model}`=DIR", path.display())]
    ModelAbsent { model: String, path: PathBuf },
    #[error(
        "use models `{first}` and `{second}` in one run: both are called `{folder}` as a folder"
    )]
    ModelCollision {
        first: String,
        second: String,
        folder: String,
    },
    #[error("find a plugin for {what}; name the folder that holds it with --plugins")]
    PluginAbsent { what: String },
    /// Found out before any work.
    #[error("scenario `{scenario}` cannot be run: {}", why.sentence())]
    Scenario { scenario: String, why: Box<Error> },
    #[error("apply edit `{edit}`: scope `{scope}` selects no tensor of this model")]
    NothingSelected { edit: String, scope: String },
    #[error("apply scenario `{scenario}`: it changed no tensor, so nothing would be tested")]
    NothingChanged { scenario: String },
    #[error("start a run in {}: it exists; choose another folder, or go on with --resume", path.display())]
    RunExists { path: PathBuf },
    #[error("resume a run in {}: there is none; start one without --resume", path.display())]
    NothingToResume { path: PathBuf },
    #[error("use the run directory {}: another packhost is running in it", path.display())]
    RunIsBusy { path: PathBuf },
    #[error(
        "resume: `{key}` was {stored} when the run began and is {now} now; use the same settings or start a new run"
    )]
    PlanChanged {
        key: String,
        stored: String,
        now: String,
    },
    #[error("use the journal {}: {message}", path.display())]
    Journal { path: PathBuf, message: String },
    #[error("use the preset {}: {message}", path.display())]
    Preset { path: PathBuf, message: String },
    #[error(
        "fit the run into memory: {:.1} MB are needed and {:.1} MB are there",
        *needed as f64 / 1e6, *available as f64 / 1e6
    )]
    Infeasible { needed: u64, available: u64 },
    #[error(
        "get a verdict from guard `{guard}`: it asked for more {rounds} times and never decided"
    )]
    EndlessRounds { guard: String, rounds: usize },
    #[error("judge again: {message}")]
    Replay { message: String },
    #[error("measure again: {message}")]
    Recompute { message: String },
    #[error("read the answer of guard `{guard}`: {message}")]
    GuardAnswer { guard: String, message: String },
    #[error("run the baseline `{model}`: {message}")]
    BaselineFails { model: String, message: String },
    #[error("interrupted; the run can be resumed")]
    Interrupted,
    #[error("draw windows by `{name}`; there are file_order, stratified and shuffled")]
    SelectionName { name: String },
    #[error("use a data set of kind `{kind}`; there are local_jsonl and text")]
    DatasetKind { kind: String },
    #[error("tasks failed: {failed}, could not run because of that: {blocked}; the first: {}; logs are in {}", first.sentence(), log.display())]
    TasksFailed {
        failed: usize,
        blocked: usize,
        log: PathBuf,
        first: Box<Error>,
    },
    #[error(transparent)]
    Tensor(#[from] packhost_tensor::Error),
    #[error(transparent)]
    Model(#[from] packhost_model::Error),
    #[error(transparent)]
    Measure(#[from] packhost_measure::Error),
    #[error(transparent)]
    Plugin(#[from] packhost_plugin::Error),
    #[error(transparent)]
    Pack(#[from] packhost_pack::Error),
}

impl Error {
    /// A stable word for logs, events and retry rules.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Io { .. }
            | Self::RunExists { .. }
            | Self::RunIsBusy { .. }
            | Self::StudyExists { .. }
            | Self::NothingToResume { .. } => "io",
            Self::Manifest { .. }
            | Self::Suites { .. }
            | Self::Study { .. }
            | Self::TunedParams { .. }
            | Self::Preset { .. } => "config",
            Self::UnknownSuite { .. } | Self::UnknownScenario { .. } | Self::EmptySuite { .. } => {
                "config"
            }
            Self::ScenarioSetting { .. } | Self::EditSpec { .. } | Self::PlanChanged { .. } => {
                "config"
            }
            Self::ModelAbsent { .. } | Self::ModelCollision { .. } | Self::Model(_) => "model",
            Self::PluginAbsent { .. } | Self::Plugin(_) => "plugin",
            Self::Scenario { why, .. } => why.class(),
            Self::EndlessRounds { .. } | Self::GuardAnswer { .. } => "guard",
            Self::Replay { .. } | Self::Recompute { .. } => "replay",
            Self::BaselineFails { .. } => "baseline",
            Self::NothingSelected { .. } | Self::NothingChanged { .. } => "no_change",
            Self::Journal { .. } => "journal",
            Self::Infeasible { .. } => "memory",
            Self::Interrupted => "interrupted",
            Self::TasksFailed { .. } => "tasks",
            Self::DatasetKind { .. } | Self::SelectionName { .. } => "config",
            Self::Tensor(_) => "tensor",
            Self::Measure(_) => "measure",
            Self::Pack(_) => "pack",
        }
    }

    /// Whether a change cannot be made of a model because of what the model is: nothing of it is selected or would change,
    /// or the plugin declines it.
    pub fn is_inapplicable(&self) -> bool {
        use packhost_plugin::{CallErrorClass, Error as Plugin};
        match self {
            Self::NothingSelected { .. } | Self::NothingChanged { .. } => true,
            Self::Plugin(Plugin::Call(error)) => error.kind.class() == CallErrorClass::Declined,
            _ => false,
        }
    }

    /// The message as a sentence of its own: "failed to ..." where [`Display`](std::fmt::Display) fits after that.
    pub fn sentence(&self) -> String {
        let stands_alone = match self {
            Self::Measure(packhost_measure::Error::Model(_)) => false,
            Self::Interrupted | Self::Scenario { .. } | Self::TasksFailed { .. } => true,
            Self::Measure(_) | Self::Plugin(_) | Self::Pack(_) => true,
            _ => false,
        };
        if stands_alone {
            self.to_string()
        } else {
            format!("failed to {self}")
        }
    }

    /// A failed file operation; `action` fits "failed to {action} {path}".
    pub fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}
