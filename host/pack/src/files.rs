//! Reading a pack that was verified: every byte is held against the checksum list once more when it is read, so that what was
//! verified is what is used.

use std::collections::BTreeMap;
use std::path::Path;

use crate::digest;
use crate::json;
use crate::paths::{Place, Root};

/// Whether a path, which may not exist yet, would lie inside a pack, where no list covers it.
pub fn inside(pack: &Path, path: &Path) -> bool {
    Root::open(pack).is_some_and(|root| root.holds(path))
}

/// The payload of a pack by name, of one that was verified or of one that is being sealed.
pub trait Payload: Sync {
    /// Names of all files, sorted.
    fn names(&self) -> Vec<&str>;

    /// The bytes of a file.
    ///
    /// # Errors
    /// In words: there is no such file, or it cannot be read.
    fn read(&self, name: &str) -> Result<Vec<u8>, String>;
}

impl Payload for Files {
    fn names(&self) -> Vec<&str> {
        self.names().collect()
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        self.read(name)
    }
}

/// The files that the checksum list of a verified pack covers.
#[derive(Clone, Debug)]
pub struct Files {
    root: Root,
    digests: BTreeMap<String, String>,
    manifest: Vec<u8>,
}

impl Files {
    pub(crate) fn new(root: Root, digests: BTreeMap<String, String>, manifest: Vec<u8>) -> Self {
        Self {
            root,
            digests,
            manifest,
        }
    }

    /// Names of all files, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.digests.keys().map(String::as_str)
    }

    /// Digest of each file.
    pub fn digests(&self) -> &BTreeMap<String, String> {
        &self.digests
    }

    /// Whether the list has this file.
    pub fn has(&self, name: &str) -> bool {
        self.digests.contains_key(name)
    }

    /// The bytes of `manifest.json`, which the signature covers.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// In words: the list does not have it, it cannot be read, or it was changed since it was verified.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        let Some(expected) = self.digests.get(name) else {
            return Err(format!("the pack has no file `{name}`"));
        };
        let Place::File(path) = self.root.resolve(name) else {
            return Err(format!("`{name}` vanished while the pack was verified"));
        };
        let bytes = json::read_bytes(&path, json::REPORT_LIMIT)
            .map_err(|fault| format!("`{name}` {fault}"))?;
        if digest::hex(&bytes) != *expected {
            return Err(format!("`{name}` was changed while the pack was verified"));
        }
        Ok(bytes)
    }
}
