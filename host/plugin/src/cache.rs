//! Compiled components on disk.
//!
//! Compiling takes from tens of milliseconds to seconds, loading compiled code under one. An entry is named by the SHA-256
//! of the component's bytes and of everything that decides the compiled code: the engine's version, its settings, the
//! processor's features. It begins with the SHA-256 of its own content, so that a torn or flipped file is compiled anew and
//! replaced, silently.
//!
//! # Trust
//!
//! Compiled code is machine code and runs outside the sandbox: whoever can write an entry can run anything. The digest
//! inside an entry finds damage, not malice. So the cache is used only in a folder that this user owns and nobody else may
//! write to (mode 0700 when we make it); compiled code is never taken from anywhere else, a pack or a download least of all.

use std::{
    fs,
    hash::{Hash, Hasher},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use crate::registry::hex;

/// Changes when the layout of entries does.
const FORMAT: &str = "packhost component cache 1";
/// File name extension of entries.
const EXTENSION: &str = "cwasm";
/// Entries kept; the least recently written go first.
const MAX_ENTRIES: usize = 256;
/// Length of the digest at the start of an entry.
const DIGEST: usize = 32;

/// An open cache.
pub(crate) struct Cache {
    dir: PathBuf,
    settings: [u8; DIGEST],
}

impl Cache {
    /// The folder that the XDG rules give: `$XDG_CACHE_HOME/packhost/components`, else below `~/.cache`.
    pub(crate) fn user_dir() -> Option<PathBuf> {
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
        Some(base.join("packhost").join("components"))
    }

    /// Opens the cache in `dir`, made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made, or others may write to it.
    pub(crate) fn open(dir: &Path, engine: &wasmtime::Engine) -> io::Result<Self> {
        make_private(dir)?;
        let mut settings = Digesting(Sha256::new_with_prefix(FORMAT));
        engine.precompile_compatibility_hash().hash(&mut settings);
        Ok(Self {
            dir: dir.to_path_buf(),
            settings: settings.0.finalize().into(),
        })
    }

    /// The component of `bytes`, from the cache or compiled (and then stored, as far as the disk allows).
    ///
    /// # Errors
    /// When it does not compile.
    pub(crate) fn component(
        &self,
        engine: &wasmtime::Engine,
        bytes: &[u8],
    ) -> wasmtime::Result<Component> {
        let path = self.path(bytes);
        if let Some(component) = self.load(engine, &path) {
            return Ok(component);
        }
        let compiled = engine.precompile_component(bytes)?;
        // A cache that cannot be written to costs time, not the run.
        let _ = self.store(&path, &compiled);
        // SAFETY: `compiled` was made by this engine just now.
        unsafe { Component::deserialize(engine, &compiled) }
    }

    fn path(&self, bytes: &[u8]) -> PathBuf {
        let key = Sha256::new()
            .chain_update(self.settings)
            .chain_update(Sha256::digest(bytes))
            .finalize();
        self.dir.join(hex(&key)).with_extension(EXTENSION)
    }

    /// The entry, if it is there and whole.
    fn load(&self, engine: &wasmtime::Engine, path: &Path) -> Option<Component> {
        let entry = fs::read(path).ok()?;
        let (digest, compiled) = entry.split_at_checked(DIGEST)?;
        if digest != Sha256::digest(compiled).as_slice() {
            return None;
        }
        // SAFETY: the bytes are as `store` wrote them (digest), for this engine's version and settings (file name), and
        // `make_private` saw that nobody else may write to the folder. See the module's documentation on trust.
        unsafe { Component::deserialize(engine, compiled) }.ok()
    }

    fn store(&self, path: &Path, compiled: &[u8]) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".new-")
            .tempfile_in(&self.dir)?;
        file.write_all(&Sha256::digest(compiled))?;
        file.write_all(compiled)?;
        file.persist(path)?;
        self.prune()
    }

    /// Removes the oldest entries beyond the allowed number.
    fn prune(&self) -> io::Result<()> {
        let mut entries: Vec<(SystemTime, PathBuf)> = fs::read_dir(&self.dir)?
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let written = fs::metadata(&path).and_then(|data| data.modified()).ok()?;
                path.extension()
                    .is_some_and(|extension| extension == EXTENSION)
                    .then_some((written, path))
            })
            .collect();
        entries.sort();
        let surplus = entries.len().saturating_sub(MAX_ENTRIES);
        for (_, path) in entries.iter().take(surplus) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// Feeds what is hashed into SHA-256: the standard hashers promise nothing across versions.
struct Digesting(Sha256);

impl Hasher for Digesting {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

/// Makes `dir` with mode 0700 if need be, and refuses one that others own or may write to.
#[cfg(unix)]
fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};

    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::metadata(dir)?;
    // A file that we make belongs to us: its owner is who we are.
    let ours = tempfile::Builder::new()
        .prefix(".who-")
        .tempfile_in(dir)?
        .as_file()
        .metadata()?
        .uid();
    if found.uid() != ours || found.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "others may write to this folder; a cache of compiled code must be private (chmod 700)",
        ));
    }
    Ok(())
}

/// Elsewhere a folder below the user's own is private by the system's defaults.
#[cfg(not(unix))]
fn make_private(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)
}
