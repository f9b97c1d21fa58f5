//! The sandbox: it loads WebAssembly components, calls them within limits, and checks what they answer.
//!
//! A caller finds plugins with [`Registry::scan`], pins them with a [`Lock`], loads one with [`Engine::load`] and gets a
//! [`Plugin`] whose methods mirror the exports of its world in `wit/`:
//!
//! | kind | methods |
//! | --- | --- |
//! | [`EditPlugin`] | `describe`, `plan`, `apply` (from many threads at once), `summarize` |
//! | [`InjectionPlugin`] | `describe`, `inject` |
//! | [`GuardPlugin`] | `describe`, `plan`, `probe`, `judge`, `calibrate` |
//!
//! Every call runs in a fresh store and instance, so that nothing is carried from one call to the next; calls of one plugin
//! may run in parallel. A call returns [`Called`]: the checked answer, its [`CallStats`] and the plugin's log. What a call
//! may use is set by [`Limits`]. Calls block; do not make them from the worker threads of an asynchronous runtime.
//!
//! This crate knows tensors only through [`packhost_tensor::Device`] and [`packhost_tensor::Tensor`]. It knows no models, no
//! files but components, manifests, the lock file and its own cache. The generated bindings stay private.

mod bindings;
mod cache;
mod call;
mod check;
mod convert;
mod drafts;
mod edit;
mod engine;
mod error;
mod guard;
mod injection;
mod inspect;
mod lend;
mod limits;
mod loaded;
mod lock;
mod plugin;
mod registry;
mod state;
mod stats;
mod tensors;
mod types;
mod wasi;

pub use edit::EditPlugin;
pub use engine::{CacheDir, Engine, EngineOptions};
pub use error::{
    CallError, CallErrorClass, CallErrorKind, Error, LoadError, LoadErrorKind, LockError,
    LockProblem, RegistryError, RegistryErrorKind, Result,
};
pub use guard::GuardPlugin;
pub use injection::InjectionPlugin;
pub use inspect::{Inspection, SERVED as INTERFACE_VERSION, inspect};
pub use limits::{LimitExceeded, Limits};
pub use lock::Lock;
pub use plugin::Plugin;
pub use registry::{Entry, Manifest, Registry};
pub use stats::{CallCosts, CallStats};
pub use types::{
    Called, Descriptor, Draft, Edited, Fact, Failure, Finding, Level, LogLine, ModelInfo,
    PluginKind, Request, Role, Row, Status, Step, Target, TargetFacts, TensorInfo, Value, Verdict,
};
