//! Building a directory beside its final place and putting it there by one rename.
//!
//! The hidden sibling `.<name>.tmp.<random>` lies in the same file system, so that the rename is atomic: whoever is killed at any moment leaves either the
//! whole pack or none. On failure the sibling is deleted; after a kill it stays as rubbish that nothing reads.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::digest::{self, Hasher};
use crate::error::{Error, ExitClass, Result};

/// Bytes copied at a time.
const BLOCK: usize = 1 << 17;

/// A directory under construction.
pub(crate) struct Staging {
    folder: TempDir,
    target: PathBuf,
}

/// What may be at the target beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Nothing.
    Absent,
    /// Nothing, or an empty directory.
    AbsentOrEmpty,
}

impl Staging {
    /// Begins beside `target`; creates the parent if needed.
    pub(crate) fn begin(target: &Path, allowed: Target) -> Result<Self> {
        check_target(target, allowed)?;
        let name = target.file_name().ok_or_else(|| {
            Error::refused(
                ExitClass::Usage,
                1,
                "usage.output",
                format!("`{}` names no directory to create", target.display()),
            )
        })?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent)
            .map_err(|source| Error::io("create the directory", parent, source))?;
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".tmp.");
        let folder = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(parent)
            .map_err(|source| Error::io("create a directory in", parent, source))?;
        Ok(Self {
            folder,
            target: target.to_path_buf(),
        })
    }

    /// Where the files lie for now.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a new file durably. Answers its hex digest.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<String> {
        let (mut file, path) = self.create(name)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|source| Error::io("write", &path, source))?;
        Ok(digest::hex(bytes))
    }

    /// Copies a file durably, hashing on the way. Answers the hex digest of what was copied.
    pub(crate) fn copy(&self, name: &str, from: &Path) -> Result<String> {
        let mut source_file = File::open(from).map_err(|source| Error::io("read", from, source))?;
        let (mut file, path) = self.create(name)?;
        let mut hasher = Hasher::default();
        let mut block = vec![0; BLOCK];
        loop {
            let count = source_file
                .read(&mut block)
                .map_err(|source| Error::io("read", from, source))?;
            if count == 0 {
                break;
            }
            hasher.update(&block[..count]);
            file.write_all(&block[..count])
                .map_err(|source| Error::io("write", &path, source))?;
        }
        file.sync_all()
            .map_err(|source| Error::io("write", &path, source))?;
        Ok(hasher.finish().0)
    }

    /// Each file is written once: an existing one is an error.
    fn create(&self, name: &str) -> Result<(File, PathBuf)> {
        let path = self.path().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .map_err(|source| Error::io("create the directory", parent, source))?;
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| Error::io("create", &path, source))?;
        Ok((file, path))
    }

    /// Puts the directory in its place.
    pub(crate) fn commit(self, allowed: Target) -> Result<PathBuf> {
        let Self { folder, target } = self;
        let staged = folder.path();
        sync_tree(staged)?;
        open_permissions(staged)?;
        check_target(&target, allowed)?;
        // A rename onto an empty directory replaces it; onto anything else that appeared meanwhile it fails.
        fs::rename(staged, &target)
            .map_err(|source| Error::io("put the finished directory at", &target, source))?;
        // Nothing is left to delete.
        let _ = folder.keep();
        if let Some(parent) = target
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            sync_folder(parent)?;
        }
        Ok(target)
    }
}

fn check_target(target: &Path, allowed: Target) -> Result<()> {
    let refuse = |what: &str| {
        Err(Error::refused(
            ExitClass::Usage,
            1,
            "usage.output_exists",
            format!("`{}` {what}", target.display()),
        ))
    };
    let Ok(metadata) = target.symlink_metadata() else {
        return Ok(());
    };
    if allowed == Target::Absent {
        return refuse("exists; choose another name or remove it yourself");
    }
    if !metadata.is_dir() {
        return refuse("exists and is not a directory; choose another name");
    }
    let mut entries = fs::read_dir(target).map_err(|source| Error::io("read", target, source))?;
    if entries.next().is_some() {
        refuse("is not empty; choose another name or empty it yourself")
    } else {
        Ok(())
    }
}

/// Makes the entries of all directories durable.
fn sync_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|source| Error::io("read", folder, source))? {
        let path = entry
            .map_err(|source| Error::io("read", folder, source))?
            .path();
        if path.is_dir() {
            sync_tree(&path)?;
        }
    }
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(|source| Error::io("make durable", folder, source))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Temporary directories are private; the finished one gets the mode that any new directory of this process has.
fn open_permissions(folder: &Path) -> Result<()> {
    let probe = folder.join(".mode");
    fs::create_dir(&probe)
        .and_then(|()| fs::metadata(&probe))
        .and_then(|metadata| fs::set_permissions(folder, metadata.permissions()))
        .and_then(|()| fs::remove_dir(&probe))
        .map_err(|source| Error::io("set the permissions of", folder, source))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_at_the_target_before_the_rename() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new/pack");
        let staging = Staging::begin(&target, Target::AbsentOrEmpty).unwrap();
        assert_eq!(staging.write("a/b", b"abc").unwrap(), digest::hex(b"abc"));
        assert_eq!(
            staging.copy("c", &staging.path().join("a/b")).unwrap(),
            digest::hex(b"abc")
        );
        assert!(
            staging.write("c", b"").is_err(),
            "each file is written once"
        );
        assert!(!target.exists());
        staging.commit(Target::AbsentOrEmpty).unwrap();
        assert_eq!(fs::read(target.join("a/b")).unwrap(), b"abc");
        assert_eq!(
            fs::read_dir(target.parent().unwrap()).unwrap().count(),
            1,
            "the sibling is gone"
        );
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&target), mode(&target.join("a")));
        }
    }

    #[test]
    fn a_target_that_holds_something_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("pack");
        fs::create_dir(&target).unwrap();
        assert!(Staging::begin(&target, Target::Absent).is_err());
        let staging = Staging::begin(&target, Target::AbsentOrEmpty).unwrap();
        staging.write("x", b"x").unwrap();
        fs::write(target.join("theirs"), "t").unwrap();
        assert_eq!(
            staging.commit(Target::AbsentOrEmpty).unwrap_err().exit(),
            ExitClass::Usage
        );
        assert!(Staging::begin(&target, Target::AbsentOrEmpty).is_err());
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "the sibling is gone"
        );
        assert_eq!(fs::read(target.join("theirs")).unwrap(), b"t");
    }
}
