//! `packhost plugin`.

use packhost_plugin::{Engine, EngineOptions, Limits, Lock, Registry};
use packhost_suite::toolbox::LOCK_FILE;
use serde_json::json;

use super::{plugin_dir, plugin_layer, print, print_line};
use crate::cli::PluginCommand;
use crate::exit::{Exit, Failure};

pub fn run(command: PluginCommand) -> Result<Exit, Failure> {
    match command {
        PluginCommand::List { limits: true, .. } => {
            let limits = serde_json::to_value(Limits::default()).unwrap_or_default();
            print(&packhost_pack::canonical::to_pretty(&limits));
        }
        PluginCommand::List { plugins, json, .. } => {
            let registry = registry(&plugin_dir(&plugin_layer(&plugins)?), plugins.locked)?;
            list(&registry, json);
        }
        PluginCommand::Inspect { id, plugins } => {
            let layer = plugin_layer(&plugins)?;
            let registry = registry(&plugin_dir(&layer), plugins.locked)?;
            inspect(&registry, &id, layer.limits.unwrap_or_default())?;
        }
        PluginCommand::Lock { plugins } => {
            let dir = plugin_dir(&plugin_layer(&plugins)?);
            let path = dir.join(LOCK_FILE);
            let registry = Registry::scan(&dir)?;
            Lock::of(&registry, &path).write()?;
            print_line(&format!(
                "{}: {} plugins pinned",
                path.display(),
                registry.entries().len()
            ));
        }
    }
    Ok(Exit::Success)
}

fn registry(dir: &std::path::Path, locked: bool) -> Result<Registry, Failure> {
    let registry = Registry::scan(dir)?;
    if locked {
        Lock::load(&dir.join(LOCK_FILE))?.check(&registry)?;
    }
    Ok(registry)
}

fn list(registry: &Registry, as_json: bool) {
    if as_json {
        let entries: Vec<_> = registry
            .entries()
            .map(|entry| {
                let manifest = entry.manifest();
                json!({
                    "id": manifest.id,
                    "kind": entry.kind().name(),
                    "version": manifest.version.to_string(),
                    "interface": manifest.interface.to_string(),
                    "title": manifest.title,
                    "types": manifest.types,
                    "prefixes": manifest.prefixes,
                    "bytes": entry.size(),
                    "sha256": entry.digest(),
                })
            })
            .collect();
        print(&packhost_pack::canonical::to_pretty(
            &json!({"version": 1, "plugins": entries}),
        ));
        return;
    }
    for entry in registry.entries() {
        let manifest = entry.manifest();
        print_line(&format!(
            "{:<20} {:<10} {:<8} {:>9} bytes  {}  {}",
            manifest.id,
            entry.kind().name(),
            manifest.version,
            entry.size(),
            &entry.digest()[..16],
            manifest.title
        ));
    }
}

fn inspect(registry: &Registry, id: &str, limits: Limits) -> Result<(), Failure> {
    let entry = registry.get(id).ok_or_else(|| {
        let known: Vec<_> = registry.entries().map(|entry| entry.id()).collect();
        let message = format!("there is no plugin `{id}`; there are {}", known.join(", "));
        Failure::new(Exit::PluginRefused, message)
    })?;
    let engine = Engine::new(EngineOptions {
        limits,
        ..EngineOptions::default()
    })?;
    let plugin = engine.load(entry)?;
    let descriptor = plugin.describe();
    let schema: serde_json::Value = serde_json::from_str(&descriptor.schema).unwrap_or_default();
    let answer = json!({
        "version": 1,
        "id": descriptor.id,
        "kind": entry.kind().name(),
        "plugin_version": descriptor.version,
        "interface": entry.manifest().interface.to_string(),
        "title": descriptor.title,
        "types": entry.manifest().types,
        "prefixes": entry.manifest().prefixes,
        "bytes": entry.size(),
        "sha256": entry.digest(),
        "schema": schema,
    });
    print(&packhost_pack::canonical::to_pretty(&answer));
    Ok(())
}
