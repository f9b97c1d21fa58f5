//! Finding plugins: a folder tree in which each `plugin.toml` stands beside its `component.wasm`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, PluginKind, RegistryError, RegistryErrorKind, Result, inspect};

/// The manifest's file name.
const MANIFEST: &str = "plugin.toml";
/// The component's file name.
const COMPONENT: &str = "component.wasm";
/// Folders are walked this deep below the given one.
const MAX_DEPTH: usize = 8;
/// Longest id.
const MAX_ID: usize = 100;

/// What `plugin.toml` says. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Lower-case letters, digits, dots and dashes: `quant-rtn`. Unique within a registry; the same as `describe()` says.
    pub id: String,
    /// `edit`, `injection` or `guard`.
    pub kind: PluginKind,
    /// The plugin's own version; the same as `describe()` says.
    pub version: semver::Version,
    /// Version of the package `packhost:plugin` that it was built against.
    pub interface: semver::Version,
    /// One line for people.
    pub title: String,
    /// What scenarios call it by: the edit types (`quant_rtn`) or error types that it serves. One plugin may serve several.
    #[serde(default)]
    pub types: Vec<String>,
    /// Types that it serves by how they begin: `rmt_norm_noise` also serves `rmt_norm_noise_strong`. An exact name in
    /// another plugin's `types` goes first, then the longest beginning.
    #[serde(default)]
    pub prefixes: Vec<String>,
}

impl Manifest {
    /// How well this plugin serves the scenario type `name`: higher is closer, `None` is not at all.
    fn closeness(&self, name: &str) -> Option<usize> {
        let exact = self.types.iter().any(|served| served == name);
        let beginning = || {
            let matching = self
                .prefixes
                .iter()
                .filter(|prefix| name.starts_with(prefix.as_str()));
            matching.map(String::len).max()
        };
        if exact { Some(usize::MAX) } else { beginning() }
    }
}

/// A plugin that was found: manifest, place and digest of the component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    manifest: Manifest,
    component: PathBuf,
    digest: String,
    size: u64,
}

impl Entry {
    /// Reads `plugin.toml` at `manifest_path` and hashes the component beside it.
    ///
    /// # Errors
    /// When either cannot be read or the manifest is wrong; see [`RegistryErrorKind`].
    pub fn open(manifest_path: &Path) -> Result<Self> {
        let refuse = |kind| RegistryError {
            path: manifest_path.to_path_buf(),
            kind,
        };
        let text =
            fs::read_to_string(manifest_path).map_err(|source| Error::io(manifest_path, source))?;
        let manifest: Manifest = toml::from_str(&text).map_err(|error| {
            refuse(RegistryErrorKind::Manifest(
                error.to_string().trim_end().into(),
            ))
        })?;
        check(&manifest).map_err(|message| refuse(RegistryErrorKind::Manifest(message)))?;
        let component = manifest_path.with_file_name(COMPONENT);
        let bytes = match fs::read(&component) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(refuse(RegistryErrorKind::NotBuilt { id: manifest.id }).into());
            }
            Err(source) => return Err(Error::io(&component, source)),
        };
        Ok(Self {
            manifest,
            component,
            digest: digest(&bytes),
            size: bytes.len() as u64,
        })
    }

    /// What `plugin.toml` says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The plugin's id.
    pub fn id(&self) -> &str {
        &self.manifest.id
    }

    /// The plugin's kind.
    pub fn kind(&self) -> PluginKind {
        self.manifest.kind
    }

    /// Where the component is.
    pub fn component(&self) -> &Path {
        &self.component
    }

    /// SHA-256 of the component when it was found, hexadecimal. [`Engine::load`](crate::Engine::load) refuses other bytes.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Size of the component in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// The plugins below a folder, sorted by id.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    /// The folder that was searched, for messages.
    dir: PathBuf,
    entries: BTreeMap<String, (PathBuf, Entry)>,
}

impl Registry {
    /// Finds every plugin below `dir`, up to eight folders deep. Hidden folders and `target` are left out, links are not
    /// followed.
    ///
    /// # Errors
    /// When there is no such folder, a manifest is wrong, a component is missing or an id is claimed twice: an error names the file. A folder
    /// without any plugin is no error.
    pub fn scan(dir: &Path) -> Result<Self> {
        if !dir.exists() {
            let kind = RegistryErrorKind::NoFolder;
            return Err(RegistryError {
                path: dir.into(),
                kind,
            }
            .into());
        }
        let mut manifests = Vec::new();
        walk(dir, MAX_DEPTH, &mut manifests)?;
        let mut registry = Self {
            dir: dir.into(),
            entries: BTreeMap::new(),
        };
        for path in manifests {
            registry.add(path)?;
        }
        Ok(registry)
    }

    /// Adds the plugins of another folder to these.
    ///
    /// # Errors
    /// As [`scan`](Self::scan); an id that is here already is refused.
    pub fn scan_more(&mut self, dir: &Path) -> Result<()> {
        for (path, _) in Self::scan(dir)?.entries.into_values() {
            self.add(path)?;
        }
        Ok(())
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let entry = Entry::open(&path)?;
        if let Some((first, _)) = self.entries.get(entry.id()) {
            let kind = RegistryErrorKind::Duplicate {
                id: entry.id().into(),
                first: first.clone(),
            };
            return Err(RegistryError { path, kind }.into());
        }
        self.entries.insert(entry.id().into(), (path, entry));
        Ok(())
    }

    /// All plugins, sorted by id.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.values().map(|(_, entry)| entry)
    }

    /// The plugin `id`, if it is there.
    pub fn get(&self, id: &str) -> Option<&Entry> {
        self.entries.get(id).map(|(_, entry)| entry)
    }

    /// The plugin of `kind` that serves the scenario type `name`, such as `quant_rtn`.
    ///
    /// # Errors
    /// When none does, with the types that are served, or when two claim it.
    pub fn serving(&self, kind: PluginKind, name: &str) -> Result<&Entry> {
        let of_kind = || {
            self.entries
                .values()
                .filter(|(_, entry)| entry.kind() == kind)
        };
        let closest = of_kind()
            .filter_map(|(_, entry)| entry.manifest.closeness(name))
            .max();
        let mut serving = of_kind()
            .filter(|(_, entry)| closest.is_some() && entry.manifest.closeness(name) == closest);
        match (serving.next(), serving.next()) {
            (Some((_, entry)), None) => Ok(entry),
            (Some((first, _)), Some((path, _))) => {
                let kind = RegistryErrorKind::TypeTwice {
                    name: name.into(),
                    first: first.clone(),
                };
                Err(RegistryError {
                    path: path.clone(),
                    kind,
                }
                .into())
            }
            (None, _) => {
                let known: BTreeSet<String> = of_kind()
                    .flat_map(|(_, entry)| {
                        let prefixes = entry
                            .manifest
                            .prefixes
                            .iter()
                            .map(|prefix| format!("{prefix}*"));
                        entry.manifest.types.iter().cloned().chain(prefixes)
                    })
                    .collect();
                let known = if known.is_empty() {
                    "none".into()
                } else {
                    Vec::from_iter(known).join(", ")
                };
                let kind = RegistryErrorKind::UnknownType {
                    kind,
                    name: name.into(),
                    known,
                };
                Err(RegistryError {
                    path: self.dir.clone(),
                    kind,
                }
                .into())
            }
        }
    }

    /// The plugin `id`, which must be of `kind`.
    ///
    /// # Errors
    /// When there is none, with the ids that there are, or when it is of another kind.
    pub fn require(&self, id: &str, kind: PluginKind) -> Result<&Entry> {
        match self.entries.get(id) {
            Some((_, entry)) if entry.kind() == kind => Ok(entry),
            Some((path, entry)) => {
                let kind = RegistryErrorKind::Kind {
                    id: id.into(),
                    found: entry.kind(),
                    wanted: kind,
                };
                Err(RegistryError {
                    path: path.clone(),
                    kind,
                }
                .into())
            }
            None => {
                let known: Vec<&str> = self.entries.keys().map(String::as_str).collect();
                let known = if known.is_empty() {
                    "none".into()
                } else {
                    known.join(", ")
                };
                let kind = RegistryErrorKind::Unknown {
                    id: id.into(),
                    known,
                };
                Err(RegistryError {
                    path: self.dir.clone(),
                    kind,
                }
                .into())
            }
        }
    }
}

/// SHA-256, hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('?'));
            }
            text
        })
}

/// Rules for the manifest beyond its syntax.
fn check(manifest: &Manifest) -> std::result::Result<(), String> {
    let id = &manifest.id;
    let shaped = id.split(['.', '-']).all(|part| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    });
    if !shaped || id.len() > MAX_ID {
        return Err(format!(
            "id `{id}` is not lower-case letters and digits joined by single dots or dashes, {MAX_ID} bytes at most"
        ));
    }
    if manifest.title.trim().is_empty() || manifest.title.contains('\n') {
        return Err("title must be one line of text".into());
    }
    if !inspect::serves(&manifest.interface) {
        return Err(format!(
            "interface version {} is not served; this host serves {}",
            manifest.interface,
            inspect::served_range()
        ));
    }
    Ok(())
}

/// Collects manifests below `dir`, sorted.
fn walk(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut children = fs::read_dir(dir)
        .and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>())
        .map_err(|source| Error::io(dir, source))?;
    children.sort_by_key(fs::DirEntry::file_name);
    for child in children {
        let path = child.path();
        let kind = child
            .file_type()
            .map_err(|source| Error::io(&path, source))?;
        let name = child.file_name();
        let name = name.to_string_lossy();
        if kind.is_file() && name == MANIFEST {
            found.push(path);
        } else if kind.is_dir() && depth > 0 && !name.starts_with('.') && name != "target" {
            walk(&path, depth - 1, found)?;
        }
    }
    Ok(())
}
