//! The run directory: where everything of one run lies, and how it is written.
//!
//! ```text
//! <out>/
//!   state/      plan.json, journal.jsonl, scenarios.json, suite.json, tuned_edit_params.json, progress.json, lock
//!   queue/      {pending,ready,running,completed,failed,blocked}/<task>.task   views of the journal, for people
//!   logs/       main.log, tasks/<task>.log
//!   analysis/   memory_plan.csv
//!   presets/    calibrated_preset_<model>.json
//!   <model>/    .baseline_path, .model_id, tables/, models/<subject>/, reports/{calibration,<scenario>,errors}/run_<n>/
//!   reports/    final_verdict.json and its sidecars
//!   evidence_pack/
//! ```
//!
//! The journal is the truth; every other file of `state/` and `queue/` is a view or an input. Files appear whole: they are
//! written beside their place, synced and renamed.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{Error, Result};
use serde::de::DeserializeOwned;

/// A run directory that this process owns: no other process can open it until it is dropped.
pub struct RunDir {
    root: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Creates `root` for a new run, or opens it again when `resume` is set.
    ///
    /// # Errors
    /// The directory exists and `resume` is not set, is absent and `resume` is set, cannot be written, or another process
    /// is running in it.
    pub fn open(root: &Path, resume: bool) -> Result<Self> {
        match (root.join("state/plan.json").is_file(), resume) {
            (true, false) => return Err(Error::RunExists { path: root.into() }),
            (false, true) => return Err(Error::NothingToResume { path: root.into() }),
            (false, false) if !is_absent_or_empty(root) => {
                return Err(Error::RunExists { path: root.into() });
            }
            _ => {}
        }
        let fail = |error| Error::io("create the run directory", root, error);
        for folder in ["state", "logs/tasks", "analysis", "presets", "reports"] {
            fs::create_dir_all(root.join(folder)).map_err(fail)?;
        }
        let lock = File::create(root.join("state/lock")).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                root: root.into(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(Error::RunIsBusy { path: root.into() }),
            Err(TryLockError::Error(error)) => Err(fail(error)),
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path inside.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Writes a file whole: it is either as before or as given, never in between. Returns the SHA-256 of `bytes`.
    ///
    /// # Errors
    /// When a folder or the file cannot be written.
    pub fn write(&self, relative: &str, bytes: &[u8]) -> Result<String> {
        let path = self.path(relative);
        write_whole(&path, bytes).map_err(|error| Error::io("write", &path, error))?;
        Ok(hex_digest(bytes))
    }

    /// Reads a file whole.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, relative: &str) -> Result<Vec<u8>> {
        let path = self.path(relative);
        fs::read(&path).map_err(|error| Error::io("read", &path, error))
    }

    /// Whether the file is there and has this SHA-256.
    pub fn has(&self, relative: &str, digest: &str) -> bool {
        fs::read(self.path(relative)).is_ok_and(|bytes| hex_digest(&bytes) == digest)
    }
}

/// SHA-256 as 64 lower-case hex digits.
pub fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn is_absent_or_empty(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Reads a text file that a person named. `action` fits "failed to {action} {path}".
pub(crate) fn read_named(action: &'static str, path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| Error::io(action, path, error))
}

/// What a JSON file says that a person named; `refuse` makes an error of what is wrong with its content.
pub(crate) fn parse_named<T: DeserializeOwned>(
    action: &'static str,
    path: &Path,
    refuse: impl Fn(String) -> Error,
) -> Result<T> {
    let text = read_named(action, path)?;
    serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))
}

/// Writes beside, syncs, renames.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let mut file = tempfile::Builder::new()
        .prefix(".write.")
        .tempfile_in(parent)?;
    file.write_all(bytes)?;
    file.as_file().sync_data()?;
    set_readable(file.as_file())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Temporary files are private; results are for everyone who may enter the directory.
#[cfg(unix)]
fn set_readable(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_readable(_: &File) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_has_one_owner_and_is_not_overwritten() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = dir.path().join("run");
        assert!(matches!(
            RunDir::open(&root, true),
            Err(Error::NothingToResume { .. })
        ));
        let run = RunDir::open(&root, false).expect("creates");
        let digest = run.write("state/plan.json", b"{}").expect("writes");
        assert!(run.has("state/plan.json", &digest) && !run.has("state/plan.json", "00"));
        assert!(matches!(
            RunDir::open(&root, true),
            Err(Error::RunIsBusy { .. })
        ));
        drop(run);
        assert!(matches!(
            RunDir::open(&root, false),
            Err(Error::RunExists { .. })
        ));
        assert!(RunDir::open(&root, true).is_ok());
    }

    #[test]
    fn a_folder_with_other_files_is_not_taken() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join("precious"), "x").expect("writes");
        assert!(matches!(
            RunDir::open(dir.path(), false),
            Err(Error::RunExists { .. })
        ));
    }
}
