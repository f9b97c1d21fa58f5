//! What can go wrong with plugins: finding them, loading them, calling them.
//!
//! An outer error says where (file, plugin, call), an inner kind says what; [`Error::hint`] says what to do.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::{CallStats, Failure, LimitExceeded, LogLine, PluginKind};

/// Result with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that this crate refuses or sees fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The engine could not be set up; the settings or the platform do not allow it.
    #[error("the plugin engine could not be set up: {message}")]
    Engine {
        /// The engine's own words.
        message: String,
    },
    /// A registry entry is wrong.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A lock file is wrong or does not match.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A component was refused before it ran.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A call of a plugin did not give an answer that can be used.
    #[error(transparent)]
    Call(#[from] Box<CallError>),
}

impl Error {
    /// An I/O error about `path`.
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    /// What to do about it, when there is something better to say than the message.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Registry(error) => error.hint(),
            Error::Lock(error) if error.is_absent() => Some(
                "write one from the installed plugins with `packhost plugin lock`, or leave out `--locked`".into(),
            ),
            Error::Lock(_) => Some(
                "if the change is intended, write the lock file anew from the installed plugins; \
                 if not, restore the components that it pins"
                    .into(),
            ),
            Error::Load(error) => error.kind.hint(),
            Error::Call(error) => error.kind.hint(),
            Error::Io { .. } | Error::Engine { .. } => None,
        }
    }
}

/// A plugin folder that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub struct RegistryError {
    /// The file it is about.
    pub path: PathBuf,
    /// What is wrong with it.
    pub kind: RegistryErrorKind,
}

/// What is wrong with a plugin folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryErrorKind {
    /// The folder is not there.
    #[error("there is no such folder; plugins (edits, faults, guards) are looked for in it")]
    NoFolder,
    /// `plugin.toml` is not as it must be.
    #[error("{0}")]
    Manifest(String),
    /// There is no `component.wasm` beside `plugin.toml`.
    #[error(
        "plugin `{id}` has not been built: there is no `component.wasm` beside its `plugin.toml`"
    )]
    NotBuilt {
        /// The plugin's id.
        id: String,
    },
    /// Two folders claim one id.
    #[error("plugin id `{id}` is already taken by {}", first.display())]
    Duplicate {
        /// The id.
        id: String,
        /// The manifest that was read first.
        first: PathBuf,
    },
    /// No plugin has this id.
    #[error("there is no plugin `{id}`; found: {known}")]
    Unknown {
        /// What was asked for.
        id: String,
        /// What there is, comma-separated.
        known: String,
    },
    /// No plugin serves this type of scenario.
    #[error("no {kind} plugin serves type `{name}`; served: {known}")]
    UnknownType {
        /// The kind that was looked for.
        kind: PluginKind,
        /// The type.
        name: String,
        /// The types that are served, comma-separated.
        known: String,
    },
    /// Two plugins serve this type of scenario.
    #[error("type `{name}` is already served by {}", first.display())]
    TypeTwice {
        /// The type.
        name: String,
        /// The manifest that was read first.
        first: PathBuf,
    },
    /// There is a plugin of this id but of another kind.
    #[error("plugin `{id}` is of kind `{found}`, but `{wanted}` is needed here")]
    Kind {
        /// The id.
        id: String,
        /// Kind in its manifest.
        found: PluginKind,
        /// Kind that was asked for.
        wanted: PluginKind,
    },
}

impl RegistryError {
    fn hint(&self) -> Option<String> {
        match &self.kind {
            RegistryErrorKind::NoFolder => Some(
                "name the folder with `--plugins`; in a checkout, `cargo xtask components` builds the first-party ones into `plugins`".into(),
            ),
            RegistryErrorKind::NotBuilt { .. } => {
                Some("build the first-party components with `cargo xtask components`, or copy the plugin's .wasm there".into())
            }
            RegistryErrorKind::Manifest(_) => {
                Some("a plugin.toml has the keys id, kind, version, interface, title and, where scenarios name types, types and prefixes".into())
            }
            RegistryErrorKind::Duplicate { .. } | RegistryErrorKind::TypeTwice { .. } => {
                Some("rename or remove one of the two".into())
            }
            RegistryErrorKind::Unknown { .. } | RegistryErrorKind::UnknownType { .. } => Some(
                "install a plugin that serves it, or name the folder that holds one with `--plugins`; in a checkout, `cargo xtask components` builds the first-party ones".into(),
            ),
            RegistryErrorKind::Kind { .. } => None,
        }
    }
}

/// A lock file that cannot be read or that installed plugins do not match.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}", path.display(), messages(problems))]
pub struct LockError {
    /// The lock file.
    pub path: PathBuf,
    /// Every problem, sorted by id.
    pub problems: Vec<LockProblem>,
}

impl LockError {
    /// Whether there is no lock file at all.
    pub fn is_absent(&self) -> bool {
        self.problems == [LockProblem::Absent]
    }
}

fn messages(problems: &[LockProblem]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// One way in which plugins and lock file disagree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockProblem {
    /// There is no lock file.
    #[error(
        "there is no such file; it pins the version and the bytes of each plugin, and `--locked` compares them"
    )]
    Absent,
    /// The file is not a lock file.
    #[error("{0}")]
    Format(String),
    /// Pinned, but not there.
    #[error("plugin `{id}` {version} is pinned but not installed")]
    Missing {
        /// The plugin.
        id: String,
        /// The pinned version.
        version: String,
    },
    /// There, but not pinned.
    #[error("plugin `{id}` {version} is installed but not pinned")]
    Unpinned {
        /// The plugin.
        id: String,
        /// The installed version.
        version: String,
    },
    /// Another version.
    #[error("plugin `{id}` is pinned at version {pinned}, installed is {installed}")]
    Version {
        /// The plugin.
        id: String,
        /// Pinned version.
        pinned: String,
        /// Installed version.
        installed: String,
    },
    /// Other bytes.
    #[error("plugin `{id}` {version} has digest {installed}, pinned is {pinned}")]
    Digest {
        /// The plugin.
        id: String,
        /// Its version.
        version: String,
        /// Pinned SHA-256, hexadecimal.
        pinned: String,
        /// Installed SHA-256, hexadecimal.
        installed: String,
    },
}

/// A component that was refused before it ran.
#[derive(Debug, thiserror::Error)]
#[error("{plugin}: {kind}")]
pub struct LoadError {
    /// The plugin's id, or its file where no id is known.
    pub plugin: String,
    /// Why.
    pub kind: LoadErrorKind,
}

/// Why a component was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadErrorKind {
    /// The bytes are not WebAssembly, or cut short, or damaged.
    #[error("not a WebAssembly component: {0}")]
    Malformed(String),
    /// WebAssembly, but a core module.
    #[error("this is a core WebAssembly module, not a component")]
    CoreModule,
    /// A component that exports none of the plugin interfaces.
    #[error(
        "exports no plugin interface: a plugin exports one of {expected}; this component exports {found}"
    )]
    NoInterface {
        /// What the host looks for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A component of another kind than announced.
    #[error("is announced as kind `{announced}`, but exports the interface of kind `{found}`")]
    WrongKind {
        /// Kind in `plugin.toml`.
        announced: PluginKind,
        /// Kind by its export.
        found: PluginKind,
    },
    /// Built against an interface version that this host does not serve.
    #[error(
        "is built against `{interface}` version {found}; this host serves {served} and compatible versions ({range})"
    )]
    Interface {
        /// Which interface, without version.
        interface: String,
        /// The component's version.
        found: String,
        /// The host's version.
        served: String,
        /// Range of versions that the host serves.
        range: String,
    },
    /// An import that the host does not offer.
    #[error("needs `{import}`, which this host does not offer to {world}; it offers {offered}")]
    Import {
        /// What the component asks for.
        import: String,
        /// The world that it is built for.
        world: &'static str,
        /// What the host offers there.
        offered: String,
    },
    /// An import that exists but with other types, or an export that lacks a function.
    #[error("does not fit the interface that it names: {0}")]
    Mismatch(String),
    /// Valid in itself, but uses WebAssembly features that this host refuses, or is too large.
    #[error("refused by the engine: {0}")]
    Compile(String),
    /// `describe()` and `plugin.toml` disagree.
    #[error("{field} is `{described}` by the component and `{announced}` by its plugin.toml")]
    Description {
        /// Which field.
        field: &'static str,
        /// What `describe()` says.
        described: String,
        /// What `plugin.toml` says.
        announced: String,
    },
    /// The file is not the one that the registry saw.
    #[error("component.wasm changed since it was found: digest was {expected}, is {found}")]
    Changed {
        /// SHA-256 when it was found.
        expected: String,
        /// SHA-256 now.
        found: String,
    },
    /// A limit of the load itself.
    #[error(transparent)]
    Limit(LimitExceeded),
}

impl LoadErrorKind {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                LoadErrorKind::Malformed(_) => "check that the file was copied whole; build it again if in doubt",
                LoadErrorKind::CoreModule => {
                    "build with `wasm-component-ld` as the linker, or turn the module into a component with wit-component"
                }
                LoadErrorKind::NoInterface { .. } => "export one with the SDK's `export_edit!`, `export_injection!` or `export_guard!`",
                LoadErrorKind::WrongKind { .. } => "correct `kind` in plugin.toml, or install the component that belongs to it",
                LoadErrorKind::Interface { .. } => {
                    "build the plugin again with an SDK of a version that this host serves, or use the packhost that serves the plugin's"
                }
                LoadErrorKind::Import { .. } => "remove that use from the plugin: it gets only what its world lists",
                LoadErrorKind::Mismatch(_) => "build the plugin again with the WIT files of the interface version that it names",
                LoadErrorKind::Compile(_) => "threads, relaxed SIMD, 64-bit memories and other proposals are off, for reproducible results",
                LoadErrorKind::Description { .. } => "make plugin.toml and the component's describe() agree",
                LoadErrorKind::Changed { .. } => "do not replace components during a run; start it again",
                LoadErrorKind::Limit(_) => return None,
            }
            .into(),
        )
    }
}

/// A call that gave no usable answer. The plugin's instance is gone; the next call starts afresh.
#[derive(Debug, thiserror::Error)]
#[error("{plugin}: {call}{}: {kind}", about(subject))]
pub struct CallError {
    /// The plugin's id.
    pub plugin: String,
    /// The function that was called.
    pub call: &'static str,
    /// What it was called for: a tensor, a probe.
    pub subject: Option<String>,
    /// What went wrong.
    pub kind: CallErrorKind,
    /// What the call had cost until then.
    pub stats: CallStats,
    /// What the plugin had written until then.
    pub log: Vec<LogLine>,
}

fn about(subject: &Option<String>) -> String {
    subject
        .as_ref()
        .map(|subject| format!(" of `{subject}`"))
        .unwrap_or_default()
}

/// Why a call gave no usable answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CallErrorKind {
    /// The plugin declined, in its own words.
    #[error("{0}")]
    Declined(Failure),
    /// It wanted more than it may have.
    #[error(transparent)]
    Limit(LimitExceeded),
    /// It trapped: a panic, an access out of bounds, too deep a recursion.
    #[error("trapped: {0}")]
    Trap(String),
    /// `apply` returned a tensor of another shape or dtype.
    #[error("returned a tensor {found}, the target is {expected}")]
    WrongResult {
        /// Dtype and shape of the target.
        expected: String,
        /// Dtype and shape of the answer.
        found: String,
    },
    /// The answer breaks a rule of the interface.
    #[error("answered {0}")]
    Answer(String),
    /// The host itself failed; not the plugin's doing.
    #[error("host failure: {0}")]
    Host(String),
}

impl CallErrorKind {
    fn hint(&self) -> Option<String> {
        match self {
            CallErrorKind::Limit(limit) => Some(format!("if the plugin can be trusted with more, raise `{}`", limit.name)),
            CallErrorKind::Trap(_) => Some("a panic's message is lost in the sandbox: return an error or write to the log instead".into()),
            _ => None,
        }
    }

    /// A stable word for reports and retry rules.
    pub fn class(&self) -> CallErrorClass {
        match self {
            CallErrorKind::Declined(_) => CallErrorClass::Declined,
            CallErrorKind::Limit(_) => CallErrorClass::Limit,
            CallErrorKind::Trap(_) => CallErrorClass::Trap,
            CallErrorKind::WrongResult { .. } | CallErrorKind::Answer(_) => CallErrorClass::Answer,
            CallErrorKind::Host(_) => CallErrorClass::Host,
        }
    }
}

/// Classes of [`CallErrorKind`]. Only [`Host`](CallErrorClass::Host) and a limit on time may end otherwise when retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallErrorClass {
    /// The plugin said no.
    Declined,
    /// A limit fired.
    Limit,
    /// The plugin's code failed.
    Trap,
    /// The answer cannot be used.
    Answer,
    /// The host failed.
    Host,
}

impl CallErrorClass {
    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            CallErrorClass::Declined => "declined",
            CallErrorClass::Limit => "limit",
            CallErrorClass::Trap => "trap",
            CallErrorClass::Answer => "answer",
            CallErrorClass::Host => "host",
        }
    }
}

impl fmt::Display for CallErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
