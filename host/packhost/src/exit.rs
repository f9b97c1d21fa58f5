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
    /// A file or folder that was named is not there.
    Missing = 3;
    /// An input is malformed: checkpoint, manifest, data set, configuration of a model.
    Format = 4;
    /// A signature or key is absent, malformed, wrong or not trusted.
    Signature = 5;
    /// Bytes are not the ones that a digest promised.
    Integrity = 6;
    /// A report in a pack does not hold.
    Report = 7;
    /// The run ended and its verdict is FAIL.
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
        Self { exit, message: message.into() }
    }
}
