//! `plugins.lock`: which version and which bytes of each plugin a project has agreed to.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Entry, Error, LockError, LockProblem, Registry, Result};

/// Version of the lock file's own format.
const FORMAT: u32 = 1;

/// The pinned plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    path: PathBuf,
    plugins: BTreeMap<String, Pin>,
}

/// What is pinned of one plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pin {
    version: String,
    sha256: String,
}

/// The file as written: an array of tables sorted by id, so that a change of one plugin changes its lines alone.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    #[serde(default, rename = "plugin")]
    plugins: Vec<FilePin>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePin {
    id: String,
    version: String,
    sha256: String,
}

impl Lock {
    /// A lock of what is installed; [`write`](Self::write) puts it at `path`.
    pub fn of(registry: &Registry, path: impl Into<PathBuf>) -> Self {
        let plugins = registry
            .entries()
            .map(|entry| (entry.id().to_owned(), Pin::of(entry)))
            .collect();
        Self {
            path: path.into(),
            plugins,
        }
    }

    /// Reads the lock file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, is of another format, or pins an id twice.
    pub fn load(path: &Path) -> Result<Self> {
        let refuse = |message: String| LockError {
            path: path.to_path_buf(),
            problems: vec![LockProblem::Format(message)],
        };
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(LockError {
                    path: path.to_path_buf(),
                    problems: vec![LockProblem::Absent],
                }
                .into());
            }
            read => read.map_err(|source| Error::io(path, source))?,
        };
        let file: File =
            toml::from_str(&text).map_err(|error| refuse(error.to_string().trim_end().into()))?;
        if file.format != FORMAT {
            return Err(refuse(format!(
                "lock format {}; this host reads format {FORMAT}",
                file.format
            ))
            .into());
        }
        let mut plugins = BTreeMap::new();
        for FilePin {
            id,
            version,
            sha256,
        } in file.plugins
        {
            if sha256.len() != 64
                || !sha256
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            {
                return Err(refuse(format!(
                    "sha256 of plugin `{id}` is not 64 lower-case hexadecimal digits"
                ))
                .into());
            }
            if plugins
                .insert(id.clone(), Pin { version, sha256 })
                .is_some()
            {
                return Err(refuse(format!("plugin `{id}` is pinned twice")).into());
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            plugins,
        })
    }

    /// The file's text: the same bytes for the same pins.
    ///
    /// # Errors
    /// In practice none: strings and a number always have a TOML form.
    pub fn to_toml(&self) -> Result<String> {
        let plugins = self
            .plugins
            .iter()
            .map(|(id, pin)| FilePin {
                id: id.clone(),
                version: pin.version.clone(),
                sha256: pin.sha256.clone(),
            })
            .collect();
        let text = toml::to_string(&File {
            format: FORMAT,
            plugins,
        })
        .map_err(|error| LockError {
            path: self.path.clone(),
            problems: vec![LockProblem::Format(error.to_string())],
        })?;
        Ok(format!(
            "# Written by packhost. Pins the plugins by version and SHA-256.\n{text}"
        ))
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self) -> Result<()> {
        let dir = match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let text = self.to_toml()?;
        let store = || -> std::io::Result<()> {
            let mut file = tempfile::Builder::new()
                .prefix(".plugins.lock.")
                .tempfile_in(dir)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            Ok(())
        };
        store().map_err(|source| Error::io(&self.path, source))
    }

    /// Whether exactly the pinned plugins are installed.
    ///
    /// # Errors
    /// One [`LockError`] with every difference.
    pub fn check(&self, registry: &Registry) -> Result<()> {
        let pinned = self
            .plugins
            .iter()
            .filter_map(|(id, pin)| match registry.get(id) {
                None => Some((
                    id.clone(),
                    LockProblem::Missing {
                        id: id.clone(),
                        version: pin.version.clone(),
                    },
                )),
                Some(entry) => pin.problem(entry).map(|problem| (id.clone(), problem)),
            });
        let unpinned = registry
            .entries()
            .filter(|entry| !self.plugins.contains_key(entry.id()))
            .map(|entry| {
                let problem = LockProblem::Unpinned {
                    id: entry.id().into(),
                    version: entry.manifest().version.to_string(),
                };
                (entry.id().to_owned(), problem)
            });
        let problems: BTreeMap<String, LockProblem> = pinned.chain(unpinned).collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(LockError {
            path: self.path.clone(),
            problems: problems.into_values().collect(),
        }
        .into())
    }

    /// Whether this one plugin is as pinned.
    ///
    /// # Errors
    /// A [`LockError`] with the difference.
    pub fn check_entry(&self, entry: &Entry) -> Result<()> {
        let problem = match self.plugins.get(entry.id()) {
            None => Some(LockProblem::Unpinned {
                id: entry.id().into(),
                version: entry.manifest().version.to_string(),
            }),
            Some(pin) => pin.problem(entry),
        };
        match problem {
            None => Ok(()),
            Some(problem) => Err(LockError {
                path: self.path.clone(),
                problems: vec![problem],
            }
            .into()),
        }
    }
}

impl Pin {
    fn of(entry: &Entry) -> Self {
        Self {
            version: entry.manifest().version.to_string(),
            sha256: entry.digest().to_owned(),
        }
    }

    fn problem(&self, entry: &Entry) -> Option<LockProblem> {
        let installed = Self::of(entry);
        let id = entry.id().to_owned();
        if self.version != installed.version {
            Some(LockProblem::Version {
                id,
                pinned: self.version.clone(),
                installed: installed.version,
            })
        } else if self.sha256 != installed.sha256 {
            let (pinned, installed_digest) = (self.sha256.clone(), installed.sha256);
            Some(LockProblem::Digest {
                id,
                version: installed.version,
                pinned,
                installed: installed_digest,
            })
        } else {
            None
        }
    }
}
