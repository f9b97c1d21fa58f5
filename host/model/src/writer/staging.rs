//! A folder that appears under its name only when it is complete.
//!
//! For a target `NAME` everything is written to the sibling `.NAME.tmp`. To commit, a `NAME` that is in the way becomes
//! `.NAME.bak`, the staging folder becomes `NAME`, and the backup goes. Whatever fails, the old `NAME` is put back; whoever
//! starts next repairs what a killed process left. Two processes must not write the same target at the same time.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// The staging folder of one target. Dropping it uncommitted removes it.
#[derive(Debug)]
pub(super) struct Staging {
    target: PathBuf,
    parent: PathBuf,
    dir: PathBuf,
    backup: PathBuf,
    replace: bool,
    committed: bool,
}

impl Staging {
    /// Makes the staging folder of `target`. `base` is the folder being read, which must not be replaced.
    pub fn create(target: &Path, base: &Path, replace: bool) -> Result<Self> {
        let refuse = |problem: &str| Error::Write {
            path: target.into(),
            problem: problem.into(),
        };
        let Some(name) = target.file_name() else {
            return Err(refuse("this path names no folder of its own"));
        };
        let sibling = |ending: &str| {
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(ending);
            target.with_file_name(hidden)
        };
        let parent = match target.parent() {
            Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
            Some(parent) => parent.into(),
            None => return Err(refuse("this path names no folder of its own")),
        };
        let staging = Self {
            target: target.into(),
            parent,
            dir: sibling(".tmp"),
            backup: sibling(".bak"),
            replace,
            committed: false,
        };

        fs::create_dir_all(&staging.parent)
            .map_err(Error::io("make the folder", &staging.parent))?;
        staging.repair()?;
        if exists(target) {
            if !replace {
                return Err(Error::Exists {
                    path: target.into(),
                });
            }
            if matches!((fs::canonicalize(target), fs::canonicalize(base)), (Ok(a), Ok(b)) if a == b)
            {
                return Err(refuse("this is the baseline itself; choose another folder"));
            }
        }
        remove(&staging.dir)?;
        fs::create_dir(&staging.dir).map_err(Error::io("make the folder", &staging.dir))?;
        Ok(staging)
    }

    /// Where to write.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where it will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Puts the folder in its place.
    pub fn commit(mut self) -> Result<()> {
        sync(&self.dir)?;
        let replaced = exists(&self.target);
        if replaced && !self.replace {
            // It was not there when writing began.
            return Err(Error::Exists {
                path: self.target.clone(),
            });
        }
        if replaced {
            fs::rename(&self.target, &self.backup)
                .map_err(Error::io("move aside", &self.target))?;
        }
        if let Err(source) = fs::rename(&self.dir, &self.target) {
            if replaced {
                // If this fails too, the backup stays and the next writer restores it.
                fs::rename(&self.backup, &self.target)
                    .map_err(Error::io("restore", &self.target))?;
            }
            return Err(Error::Io {
                action: "rename into place",
                path: self.target.clone(),
                source,
            });
        }
        self.committed = true;
        sync(&self.parent)?;
        if replaced {
            remove(&self.backup)
        } else {
            Ok(())
        }
    }

    /// Ends what a killed process began: a backup without its target goes back, one beside its target goes.
    fn repair(&self) -> Result<()> {
        if !exists(&self.backup) {
            return Ok(());
        }
        if exists(&self.target) {
            return remove(&self.backup);
        }
        fs::rename(&self.backup, &self.target).map_err(Error::io("restore", &self.target))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.committed {
            // Already failing: the error under way says more, and the next writer removes what is left.
            drop(remove(&self.dir));
        }
    }
}

/// Whether there is anything at `path`, a broken link included.
fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Removes a file, link or folder; nothing there is fine.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes the names in the folder `dir` durable.
fn sync(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|handle| handle.sync_all())
        .map_err(Error::io("sync", dir))
}
