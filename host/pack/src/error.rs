//! Errors, failures and exit classes of this crate.
//!
//! A *failure* is one finding of a check, with a stable id; a run of a check can have many. An *error* ends a function.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// How a pack command ended; the number is the process's exit code.
///
/// The numbers 0 and 2 to 7 are those of the format's reference verifier. Code 1 is never produced on purpose. Code 8 is ours and occurs only where
/// the caller asked for a verdict of PASS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ExitClass {
    /// Verified (warnings possible), built or inspected.
    Ok = 0,
    /// A bad option, fingerprint, trust store or assurance mode, or an output inside the pack.
    Usage = 2,
    /// The pack directory, its `manifest.json` or its `checksums.sha256` is absent.
    Missing = 3,
    /// The manifest is no JSON or violates its schema; for building: an input is malformed.
    Format = 4,
    /// The signature is absent, malformed, invalid, or its signer is not accepted.
    Signature = 5,
    /// A file of the pack is missing, changed, unlisted, or leads out of the pack.
    Integrity = 6,
    /// The reports inside the pack do not verify as their scenarios demand.
    Reports = 7,
    /// The pack is sound, but its verdict is not PASS and the caller asked for PASS.
    Verdict = 8,
}

impl ExitClass {
    /// The process exit code.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// One finding that makes a pack unacceptable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Stable name of the check, such as `integrity.extra_files`.
    pub check_id: &'static str,
    /// Stage of the verification, 1 to 7 (8 for a required verdict).
    pub stage: u8,
    /// What was wrong, where, and what to do.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.check_id, self.message)
    }
}

/// One finding that does not make a pack unacceptable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Stable name of the check, such as `integrity.extra_files`.
    pub check_id: &'static str,
    /// What was found, where, and what to do.
    pub message: String,
}

/// Why a function of this crate ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to read or write.
    #[error("failed to {action} `{}`: {source}", path.display())]
    Io {
        /// What was attempted, such as `read`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A key file is not what it should be.
    #[error("{role} key `{}` cannot be used: {reason}", path.display())]
    Key {
        /// `signing` or `public`.
        role: &'static str,
        /// The key file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The request was refused; every fault found is listed.
    #[error("{}", join(failures))]
    Refused {
        /// The exit class of the first fault.
        exit: ExitClass,
        /// All faults, in the order in which they were checked.
        failures: Vec<Failure>,
    },
    /// Where the sources come from could not be told.
    #[error("the source repository cannot be recorded: {0}")]
    Provenance(String),
    /// A scenario or a record handed to the verdict is unusable.
    #[error("{0}")]
    Verdict(String),
}

impl Error {
    /// The exit class that this error stands for.
    pub fn exit(&self) -> ExitClass {
        match self {
            Self::Refused { exit, .. } => *exit,
            Self::Key { .. } | Self::Provenance(_) | Self::Verdict(_) => ExitClass::Format,
            Self::Io { .. } => ExitClass::Usage,
        }
    }

    /// A request that cannot be: stage 1, [`ExitClass::Usage`].
    pub fn usage(check_id: &'static str, message: impl Into<String>) -> Self {
        Self::refused(ExitClass::Usage, 1, check_id, message)
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn refused(
        exit: ExitClass,
        stage: u8,
        check_id: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::Refused {
            exit,
            failures: vec![Failure {
                check_id,
                stage,
                message: message.into(),
            }],
        }
    }
}

fn join(failures: &[Failure]) -> String {
    failures
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
