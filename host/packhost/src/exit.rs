//! Exit codes: one documented constant each. Their meanings are part of the program's interface.
//!
//! 0 to 7 are the evidence-pack format's own and mean the same in every command; 10 and above are packhost's.

use packhost_suite::Error as SuiteError;

macro_rules! exit_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal;)+) => {
        /// The codes that packhost can end with.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Exit {
            $($(#[doc = $doc])+ $name = $code,)+
        }

        impl Exit {
            /// Every code with its documentation, for the table that `packhost help` prints.
            pub const TABLE: &'static [(u8, &'static str)] = &[$(($code, concat!($($doc),+)),)+];
        }
    };
}

exit_codes! {
    /// Done; for `run`, the verdict is PASS.
    Success = 0;
    /// A defect in packhost itself. Please report it.
    Internal = 1;
    /// The command line, the configuration or the environment is wrong.
    Usage = 2;
    /// A file or folder that was named, by an option or a setting, is not there.
    Missing = 3;
    /// An input is there but malformed: checkpoint, manifest, data set, configuration of a model.
    Format = 4;
    /// A signature or key is absent, malformed, wrong or not trusted.
    Signature = 5;
    /// Bytes are not the ones that a digest promised.
    Integrity = 6;
    /// A report in a pack does not hold.
    Report = 7;
    /// The run ended and its verdict is FAIL; with `--require-pass` nothing was sealed.
    VerdictFail = 10;
    /// Tasks failed; the rest is done and `--resume` goes on from there.
    TasksFailed = 11;
    /// The run does not fit this machine.
    Infeasible = 12;
    /// A plugin is absent, is not what it says, or was built for another interface.
    PluginRefused = 13;
    /// A plugin trapped, exceeded a limit or answered wrongly.
    PluginFailed = 14;
    /// The output exists, cannot be written or the disk is full.
    Output = 15;
    /// The data set is empty or has too few windows or tokens.
    Data = 16;
    /// A parameter of an edit, a fault or a guard is wrong.
    Parameter = 17;
    /// The subject of `evaluate` cannot be run; the report, a structural failure, was written.
    SubjectBroken = 18;
    /// What a pack claims does not follow from the measurements and guards that it holds.
    ReplayDiffers = 19;
    /// What a pack says was measured is not what measuring it again gives.
    RecomputeDiffers = 20;
    /// Interrupted by a signal; the run can be resumed.
    Interrupted = 130;
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Something that ends the program: what to say and with which code.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    /// Fits "error: failed to ..." when it comes from an error, or stands for itself.
    pub message: String,
}

impl Failure {
    /// A failure that stands for itself.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }
}

impl Failure {
    /// The failure behind an error of the libraries: "failed to ..." and, where there is something to do, a hint.
    pub fn from_suite(error: SuiteError) -> Self {
        let mut message = error.sentence();
        if let Some(hint) = hint(&error) {
            message += &format!("\nhint: {hint}");
        }
        Self::new(Exit::of(&error), message)
    }
}

/// What to do about an error, where its message does not say it.
fn hint(error: &SuiteError) -> Option<String> {
    match error {
        SuiteError::Plugin(error) => error.hint(),
        SuiteError::EditSpec { reason, .. } => Some(edit_hint(reason)),
        SuiteError::Scenario { why, .. } => hint(why)
            .map(|hint| format!("{hint}; --scenario-ids chooses the scenarios of a run")),
        SuiteError::TasksFailed { first, .. } => Some(match hint(first) {
            Some(hint) => format!("{hint}; then go on with --resume"),
            None => "repair the cause and go on with --resume".into(),
        }),
        SuiteError::Infeasible { .. } => Some(
            "use fewer or shorter windows (--preview, --final, --seq-len) or fewer calibration runs, or free memory; \
             what a run may use is the setting `memory` (PACKHOST_MEMORY), and `packhost plan` shows what it needs"
                .into(),
        ),
        SuiteError::Model(packhost_model::Error::Exists { .. }) => {
            Some("choose another folder, or have this one replaced with --replace".into())
        }
        _ => None,
    }
}

/// What to do about a specification that was refused for `reason`, one of the evidence-pack suite's own words.
fn edit_hint(reason: &str) -> String {
    match reason {
        "unknown_edit_type" => {
            "the type comes first: quant_rtn, fp8_quant, magnitude_prune or lowrank_svd, or one that an installed plugin serves, followed by JSON"
        }
        "invalid_quant_params" => {
            "write quant_rtn:BITS:GROUP_SIZE:SCOPE, such as quant_rtn:8:128:ffn; BITS is 1 to 16"
        }
        "invalid_fp_format" => {
            "write fp8_quant:FORMAT:SCOPE, such as fp8_quant:e5m2:ffn; FORMAT is e4m3 or e5m2 (also with fn or fnuz), or f16"
        }
        "invalid_prune_sparsity" => {
            "write magnitude_prune:SPARSITY:SCOPE, such as magnitude_prune:0.1:ffn; SPARSITY is 0 to 1"
        }
        "invalid_lowrank_rank" => {
            "write lowrank_svd:RANK:SCOPE, such as lowrank_svd:32:ffn; RANK is at least 1"
        }
        "invalid_json_params" => {
            "after the type comes one JSON object: quant_rtn:{\"bits\":8,\"group_size\":128,\"scope\":\"ffn\"}"
        }
        "missing_tuned_edit_params_file" => {
            "the clean form takes its parameters from a file: name it with --tuned-edit-params, or write the parameters out"
        }
        _ => "write it as TYPE:PARAMETERS:SCOPE, such as quant_rtn:8:128:ffn",
    }
    .into()
}

impl From<SuiteError> for Failure {
    fn from(error: SuiteError) -> Self {
        Self::from_suite(error)
    }
}

impl From<packhost_model::Error> for Failure {
    fn from(error: packhost_model::Error) -> Self {
        Self::from_suite(error.into())
    }
}

impl From<packhost_measure::Error> for Failure {
    fn from(error: packhost_measure::Error) -> Self {
        Self::from_suite(error.into())
    }
}

impl From<packhost_plugin::Error> for Failure {
    fn from(error: packhost_plugin::Error) -> Self {
        Self::from_suite(error.into())
    }
}

impl From<packhost_pack::Error> for Failure {
    fn from(error: packhost_pack::Error) -> Self {
        Self::from_suite(error.into())
    }
}

impl Exit {
    /// The code of an error. No wildcard where it matters: a new kind of error must choose.
    fn of(error: &SuiteError) -> Self {
        match error {
            SuiteError::Io { source, .. } => Self::of_io(source),
            SuiteError::Manifest { .. }
            | SuiteError::Suites { .. }
            | SuiteError::Study { .. }
            | SuiteError::TunedParams { .. } => Self::Format,
            SuiteError::Scenario { why, .. } => Self::of(why),
            SuiteError::Preset { .. } | SuiteError::Journal { .. } | SuiteError::Replay { .. } => {
                Self::Format
            }
            SuiteError::UnknownSuite { .. }
            | SuiteError::UnknownScenario { .. }
            | SuiteError::EmptySuite { .. } => Self::Usage,
            SuiteError::DatasetKind { .. }
            | SuiteError::SelectionName { .. }
            | SuiteError::Recompute { .. } => Self::Usage,
            SuiteError::ModelCollision { .. } | SuiteError::PlanChanged { .. } => Self::Usage,
            SuiteError::ScenarioSetting { .. } | SuiteError::EditSpec { .. } => Self::Parameter,
            SuiteError::NothingSelected { .. } | SuiteError::NothingChanged { .. } => {
                Self::Parameter
            }
            SuiteError::ModelAbsent { .. } | SuiteError::NothingToResume { .. } => Self::Missing,
            SuiteError::RunExists { .. }
            | SuiteError::StudyExists { .. }
            | SuiteError::RunIsBusy { .. } => Self::Output,
            SuiteError::PluginAbsent { .. } => Self::PluginRefused,
            SuiteError::EndlessRounds { .. } | SuiteError::GuardAnswer { .. } => Self::PluginFailed,
            SuiteError::BaselineFails { .. } | SuiteError::Tensor(_) => Self::Format,
            SuiteError::Infeasible { .. } => Self::Infeasible,
            SuiteError::Interrupted => Self::Interrupted,
            SuiteError::TasksFailed { .. } => Self::TasksFailed,
            SuiteError::Model(error) => Self::of_model(error),
            SuiteError::Measure(error) => Self::of_measure(error),
            SuiteError::Plugin(error) => Self::of_plugin(error),
            SuiteError::Pack(error) => Self::of_pack(error),
        }
    }
}

impl Exit {
    fn of_io(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::NotFound => Self::Missing,
            std::io::ErrorKind::InvalidData => Self::Format,
            _ => Self::Output,
        }
    }

    fn of_model(error: &packhost_model::Error) -> Self {
        use packhost_model::Error;
        match error {
            Error::Io { source, .. } => Self::of_io(source),
            Error::NoFolder { .. } => Self::Missing,
            Error::Exists { .. } | Error::DiskFull { .. } | Error::Write { .. } => Self::Output,
            Error::Cancelled => Self::Interrupted,
            Error::Encode { .. } | Error::Score { .. } => Self::Data,
            _ => Self::Format,
        }
    }

    fn of_measure(error: &packhost_measure::Error) -> Self {
        use packhost_measure::Error;
        match error {
            Error::Read { source, .. } => Self::of_io(source),
            Error::BadLine { .. } | Error::Table(_) | Error::Preset(_) => Self::Format,
            Error::EmptyDataset { .. }
            | Error::TooFewWindows { .. }
            | Error::BelowWindowFloor { .. } => Self::Data,
            Error::TooFewTokens { .. } | Error::Coverage { .. } | Error::Tokenise { .. } => {
                Self::Data
            }
            Error::WindowPlan(_) | Error::Policy(_) => Self::Parameter,
            Error::Request { .. } => Self::PluginFailed,
            Error::Cancelled => Self::Interrupted,
            Error::Model(error) => Self::of_model(error),
            _ => Self::Internal,
        }
    }

    fn of_plugin(error: &packhost_plugin::Error) -> Self {
        use packhost_plugin::{CallErrorClass, Error, RegistryErrorKind};
        match error {
            Error::Io { source, .. } => Self::of_io(source),
            Error::Registry(error) if matches!(error.kind, RegistryErrorKind::NoFolder) => {
                Self::Missing
            }
            Error::Lock(error) if error.is_absent() => Self::Missing,
            Error::Registry(_) | Error::Lock(_) | Error::Load(_) => Self::PluginRefused,
            // A plugin that says no is right about the parameters until proven otherwise.
            Error::Call(error) if error.kind.class() == CallErrorClass::Declined => Self::Parameter,
            Error::Call(_) => Self::PluginFailed,
            _ => Self::Internal,
        }
    }

    fn of_pack(error: &packhost_pack::Error) -> Self {
        match error {
            packhost_pack::Error::Io { source, .. } => Self::of_io(source),
            packhost_pack::Error::Key { .. } => Self::Signature,
            other => Self::of_class(other.exit()),
        }
    }

    /// The evidence-pack format's classes, which are our first codes.
    pub fn of_class(class: packhost_pack::ExitClass) -> Self {
        use packhost_pack::ExitClass;
        match class {
            ExitClass::Ok => Self::Success,
            ExitClass::Usage => Self::Usage,
            ExitClass::Missing => Self::Missing,
            ExitClass::Format => Self::Format,
            ExitClass::Signature => Self::Signature,
            ExitClass::Integrity => Self::Integrity,
            ExitClass::Reports => Self::Report,
            ExitClass::Verdict => Self::VerdictFail,
        }
    }
}
