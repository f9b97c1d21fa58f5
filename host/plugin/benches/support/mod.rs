//! What benches start from: the built components, and an engine that keeps nothing on disk.

use std::path::Path;

use packhost_plugin::{CacheDir, Engine, EngineOptions, Registry};

/// The project's components and an engine for them; none, with a word of why, where they are not built.
pub fn components() -> Option<(Registry, Engine)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins");
    let registry = Registry::scan(&root)
        .map_err(|error| println!("components are not built: {error}"))
        .ok()?;
    let options = EngineOptions {
        cache: CacheDir::Off,
        ..EngineOptions::default()
    };
    Some((registry, Engine::new(options).unwrap()))
}
