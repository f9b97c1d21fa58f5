//! What every task of a run needs: the device, and the plugins, each loaded once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use packhost_plugin::{
    CallCosts, EditPlugin, Engine, EngineOptions, Entry, GuardPlugin, InjectionPlugin, Lock,
    Plugin, PluginKind, Registry,
};
use packhost_tensor::cpu::Cpu;

use crate::{Error, Result};

/// File in the plugin folder that pins plugins.
pub const LOCK_FILE: &str = "plugins.lock";

/// Device and plugins.
pub struct Toolbox {
    pub device: Cpu,
    registry: Registry,
    engine: Engine,
    loaded: Mutex<BTreeMap<String, Plugin>>,
}

/// Which component did something: enough to find it again.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginIdentity {
    pub id: String,
    pub version: String,
    pub interface: String,
    pub sha256: String,
}

impl PluginIdentity {
    fn of(entry: &Entry) -> Self {
        let manifest = entry.manifest();
        Self {
            id: manifest.id.clone(),
            version: manifest.version.to_string(),
            interface: manifest.interface.to_string(),
            sha256: entry.digest().into(),
        }
    }
}

impl Toolbox {
    /// Finds the plugins under `dir`; with `locked`, every one of them must be as `plugins.lock` there pins it.
    ///
    /// # Errors
    /// An unusable folder, manifest or lock file, or an engine that does not start.
    pub fn open(
        dir: &Path,
        locked: bool,
        options: EngineOptions,
        threads: Option<usize>,
    ) -> Result<Self> {
        let registry = Registry::scan(dir)?;
        if locked {
            Lock::load(&dir.join(LOCK_FILE))?.check(&registry)?;
        }
        Ok(Self {
            device: Cpu::new(threads)?,
            registry,
            engine: Engine::new(options)?,
            loaded: Mutex::new(BTreeMap::new()),
        })
    }

    /// The plugins that were found.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Every plugin that was found, sorted by id.
    pub fn identities(&self) -> Vec<PluginIdentity> {
        self.registry.entries().map(PluginIdentity::of).collect()
    }

    /// What one plugin call may use.
    pub fn limits(&self) -> &packhost_plugin::Limits {
        self.engine.limits()
    }

    /// The edit that serves `edit_type`.
    ///
    /// # Errors
    /// There is none, or it does not load.
    pub fn edit(&self, edit_type: &str) -> Result<(EditPlugin, PluginIdentity)> {
        let entry = self.registry.serving(PluginKind::Edit, edit_type)?;
        match self.load(entry)? {
            Plugin::Edit(plugin) => Ok((plugin, PluginIdentity::of(entry))),
            _ => Err(Error::PluginAbsent {
                what: format!("edit type `{edit_type}`"),
            }),
        }
    }

    /// The injection that serves `error_type`.
    ///
    /// # Errors
    /// There is none, or it does not load.
    pub fn injection(&self, error_type: &str) -> Result<(InjectionPlugin, PluginIdentity)> {
        let entry = self.registry.serving(PluginKind::Injection, error_type)?;
        match self.load(entry)? {
            Plugin::Injection(plugin) => Ok((plugin, PluginIdentity::of(entry))),
            _ => Err(Error::PluginAbsent {
                what: format!("error type `{error_type}`"),
            }),
        }
    }

    /// The guard called `id`, if it is installed.
    ///
    /// # Errors
    /// It does not load.
    pub fn guard(&self, id: &str) -> Result<Option<(GuardPlugin, PluginIdentity)>> {
        let Some(entry) = self
            .registry
            .get(id)
            .filter(|entry| entry.kind() == PluginKind::Guard)
        else {
            return Ok(None);
        };
        match self.load(entry)? {
            Plugin::Guard(plugin) => Ok(Some((plugin, PluginIdentity::of(entry)))),
            _ => Ok(None),
        }
    }

    /// What all plugin calls so far cost: by plugin, then by the function that was called.
    pub fn costs(&self) -> BTreeMap<String, CallCosts> {
        let loaded = self
            .loaded
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        loaded
            .iter()
            .map(|(id, plugin)| (id.clone(), plugin.costs()))
            .collect()
    }

    fn load(&self, entry: &Entry) -> Result<Plugin> {
        let mut loaded = self
            .loaded
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(plugin) = loaded.get(entry.id()) {
            return Ok(plugin.clone());
        }
        let plugin = self.engine.load(entry)?;
        loaded.insert(entry.id().into(), plugin.clone());
        Ok(plugin)
    }
}
