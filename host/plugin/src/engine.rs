//! The engine: settings, linkers, the clock that interrupts, and the way from bytes to a [`Plugin`].
//!
//! # One engine
//!
//! Fuel and epochs are both on, for every kind of plugin. Either alone makes tight SIMD loops in plugin code 3 to 5 times
//! slower, because values spill around the check at the loop's end; both together cost about a tenth more than one. Epochs
//! are needed to stop a loop by the clock; fuel is needed because it stops at the same place on every machine and so may
//! decide in a replay. Heavy math belongs in kernel programs, which run in the host and pay for neither. A second engine
//! without fuel would buy that tenth at the price of compiling and caching every component twice.
//!
//! # The same bits everywhere
//!
//! NaNs are canonicalised (1.6 to 2.5 times slower float loops in plugin code). Relaxed SIMD, whose results differ between
//! processors, is off: such a component is refused. So are threads, 64-bit memories and proposals beyond WebAssembly 2.0
//! that the compiler would allow by default.

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

use wasmtime::{
    Config,
    component::{Component, HasSelf, Linker},
};

use crate::{
    Descriptor, Entry, Error, LimitExceeded, Limits, LoadError, LoadErrorKind, PluginKind, Result,
    bindings,
    cache::Cache,
    call::Core,
    edit::EditPlugin,
    guard::GuardPlugin,
    injection::InjectionPlugin,
    inspect,
    loaded::{Loaded, World},
    plugin::Plugin,
    registry,
    state::State,
    wasi,
};

/// How often running plugin code looks at the clock.
const TICK: Duration = Duration::from_millis(10);

/// Where compiled components are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CacheDir {
    /// In the user's cache folder: `$XDG_CACHE_HOME/packhost/components`, else `~/.cache/packhost/components`. Without
    /// one, or when it is not private, nothing is kept.
    #[default]
    User,
    /// In this folder, which must be the user's own and writable by nobody else.
    At(PathBuf),
    /// Nowhere: components are compiled each time.
    Off,
}

/// Settings of an [`Engine`].
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// What one call may use.
    pub limits: Limits,
    /// Where compiled components are kept.
    pub cache: CacheDir,
}

/// Compiles and runs components. Make one for the process and share it; cloning is cheap.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    engine: wasmtime::Engine,
    limits: Arc<Limits>,
    cache: Option<Cache>,
    edit: Linker<State>,
    injection: Linker<State>,
    guard: Linker<State>,
}

impl Engine {
    /// Sets up the engine and its clock: one thread that wakes a hundred times a second until the engine and everything
    /// loaded by it are gone.
    ///
    /// # Errors
    /// When the platform cannot run the engine or a given cache folder cannot be used.
    pub fn new(options: EngineOptions) -> Result<Self> {
        let EngineOptions { limits, cache } = options;
        let refuse = |error: wasmtime::Error| Error::Engine {
            message: format!("{error:#}"),
        };
        let engine = wasmtime::Engine::new(&config(&limits)).map_err(refuse)?;
        let cache = match cache {
            CacheDir::Off => None,
            CacheDir::User => Cache::user_dir().and_then(|dir| Cache::open(&dir, &engine).ok()),
            CacheDir::At(dir) => {
                Some(Cache::open(&dir, &engine).map_err(|source| Error::io(&dir, source))?)
            }
        };
        let link = |kind| linker(&engine, kind).map_err(refuse);
        let inner = Inner {
            edit: link(PluginKind::Edit)?,
            injection: link(PluginKind::Injection)?,
            guard: link(PluginKind::Guard)?,
            limits: Arc::new(limits),
            cache,
            engine,
        };
        let weak = inner.engine.weak();
        let ticker = thread::Builder::new()
            .name("plugin-clock".into())
            .spawn(move || {
                loop {
                    thread::sleep(TICK);
                    match weak.upgrade() {
                        Some(engine) => engine.increment_epoch(),
                        None => break,
                    }
                }
            });
        ticker.map_err(|error| Error::Engine {
            message: format!("its clock's thread did not start: {error}"),
        })?;
        Ok(Self(Arc::new(inner)))
    }

    /// What one call may use.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Loads an installed plugin: reads it, checks that it is what the registry saw and what its manifest says, compiles or
    /// takes it from the cache, links it and asks it to describe itself.
    ///
    /// # Errors
    /// A [`LoadError`] that says which of these failed; an [`Error::Call`] when `describe` does.
    pub fn load(&self, entry: &Entry) -> Result<Plugin> {
        let refuse = |kind| LoadError {
            plugin: entry.id().to_owned(),
            kind,
        };
        let path = entry.component();
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        let found = registry::digest(&bytes);
        if found != entry.digest() {
            return Err(refuse(LoadErrorKind::Changed {
                expected: entry.digest().to_owned(),
                found,
            })
            .into());
        }
        let plugin = self.load_bytes(entry.id(), &bytes, Some(entry.kind()))?;
        let Descriptor { id, version, .. } = plugin.describe();
        for (field, described, announced) in [
            ("id", id, entry.id()),
            ("version", version, &*entry.manifest().version.to_string()),
        ] {
            if described != announced {
                let (described, announced) = (described.clone(), announced.to_owned());
                return Err(refuse(LoadErrorKind::Description {
                    field,
                    described,
                    announced,
                })
                .into());
            }
        }
        Ok(plugin)
    }

    /// Loads a component without a manifest, such as one from a pack. `name` stands for it in messages; `kind`, where given,
    /// must be its kind.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_bytes(&self, name: &str, bytes: &[u8], kind: Option<PluginKind>) -> Result<Plugin> {
        let refuse = |kind| LoadError {
            plugin: name.to_owned(),
            kind,
        };
        let limits = &self.0.limits;
        LimitExceeded::check(
            "component_bytes",
            bytes.len() as u64,
            limits.component_bytes,
        )
        .map_err(|limit| refuse(LoadErrorKind::Limit(limit)))?;
        let inspection = inspect(bytes, kind).map_err(refuse)?;
        LimitExceeded::check("instances", inspection.instances, limits.instances)
            .map_err(|limit| refuse(LoadErrorKind::Limit(limit)))?;
        let component = match &self.0.cache {
            Some(cache) => cache.component(&self.0.engine, bytes),
            None => Component::new(&self.0.engine, bytes),
        };
        let component = component.map_err(|error| refuse(LoadErrorKind::Compile(chain(&error))))?;
        let core = Core {
            id: name.to_owned(),
            engine: self.0.engine.clone(),
            limits: limits.clone(),
            totals: Default::default(),
        };
        let linker = match inspection.kind {
            PluginKind::Edit => &self.0.edit,
            PluginKind::Injection => &self.0.injection,
            PluginKind::Guard => &self.0.guard,
        };
        let mismatch = |error: wasmtime::Error| refuse(LoadErrorKind::Mismatch(mismatch(&error)));
        let linked = linker.instantiate_pre(&component).map_err(mismatch)?;
        Ok(match inspection.kind {
            PluginKind::Edit => {
                let world = World::new(linked).map_err(mismatch)?;
                Plugin::Edit(EditPlugin::new(Loaded::new(core, world)?))
            }
            PluginKind::Injection => {
                let world = World::new(linked).map_err(mismatch)?;
                Plugin::Injection(InjectionPlugin::new(Loaded::new(core, world)?))
            }
            PluginKind::Guard => {
                let world = World::new(linked).map_err(mismatch)?;
                Plugin::Guard(GuardPlugin::new(Loaded::new(core, world)?))
            }
        })
    }
}

/// An engine error in one line, outermost first.
fn chain(error: &wasmtime::Error) -> String {
    error
        .chain()
        .map(|cause| cause.to_string().replace('\n', " "))
        .collect::<Vec<_>>()
        .join(": ")
}

/// What does not fit between a component and its world, in our words where the engine's are known: it names the interface
/// first, then the function, then the difference.
fn mismatch(error: &wasmtime::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let quoted = |text: &str| text.split('`').nth(1).map(str::to_owned);
    let (Some(first), Some(last)) = (causes.first(), causes.last()) else {
        return chain(error);
    };
    let names: Vec<String> = causes.iter().filter_map(|cause| quoted(cause)).collect();
    match &names[..] {
        [interface, function, ..] if last.ends_with("implementation is missing") => {
            format!(
                "it imports `{function}` of `{interface}`, which this host's version of that interface lacks"
            )
        }
        [interface, function, ..] if first.starts_with("component imports") => {
            format!(
                "it imports `{function}` of `{interface}` with another type than this host's: {last}"
            )
        }
        _ => chain(error),
    }
}

/// See the module's documentation.
fn config(limits: &Limits) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .consume_fuel(true)
        .cranelift_nan_canonicalization(true)
        .wasm_relaxed_simd(false)
        .wasm_shared_everything_threads(false)
        .wasm_memory64(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        .wasm_stack_switching(false)
        .wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable)
        .max_wasm_stack(usize::try_from(limits.stack_bytes).unwrap_or(usize::MAX));
    config
}

/// What plugins of `kind` may import.
fn linker(engine: &wasmtime::Engine, kind: PluginKind) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasi::link(&mut linker)?;
    bindings::types::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    bindings::tensors::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    bindings::log::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    if kind == PluginKind::Injection {
        bindings::drafts::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    }
    Ok(linker)
}
