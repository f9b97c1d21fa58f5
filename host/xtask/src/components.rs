//! `cargo xtask components`: builds every first-party component and lays it beside its sources.
//!
//! The plugins are a workspace of their own under `plugins/`. Each member becomes `plugins/<kind>/<name>/component.wasm`. The
//! same sources give the same bytes wherever the project lies: paths are remapped, and nothing else of the machine enters.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::toolchain::{self, Toolchain};

/// Folders of `plugins/` that hold components.
const KINDS: [&str; 3] = ["edits", "errors", "guards"];

/// Where they are built, within `plugins/`.
const TARGET_DIR: &str = "target/components";

/// Sets up what is needed, builds every component, copies each one beside its sources and prints their sizes.
///
/// # Errors
/// A sentence that tells what is missing or what failed.
pub fn run(root: &Path) -> Result<(), String> {
    let root = fs::canonicalize(root).map_err(|error| format!("{}: {error}", root.display()))?;
    let plugins = root.join("plugins");
    let components = find(&plugins)?;
    let toolchain = toolchain::ready(&plugins)?;
    build(&root, &plugins, &toolchain)?;

    let built = plugins
        .join(TARGET_DIR)
        .join(toolchain::TARGET)
        .join("release");
    for component in &components {
        let from = built.join(format!("{}.wasm", component.package.replace('-', "_")));
        let to = component.folder.join("component.wasm");
        let size = install(&from, &to)?;
        let shown = to.strip_prefix(&root).unwrap_or(&to);
        println!("{:>9}  {}", thousands(size), shown.display());
    }
    Ok(())
}

/// A component's sources.
struct Component {
    folder: PathBuf,
    package: String,
}

/// Every folder `plugins/<kind>/<name>` with a `plugin.toml`, in the order of their paths.
fn find(plugins: &Path) -> Result<Vec<Component>, String> {
    let mut components = Vec::new();
    for kind in KINDS {
        // A kind without plugins has no folder.
        let Ok(entries) = fs::read_dir(plugins.join(kind)) else {
            continue;
        };
        for entry in entries {
            let folder = entry
                .map_err(|error| format!("{}: {error}", plugins.join(kind).display()))?
                .path();
            if !folder.join("plugin.toml").is_file() {
                continue;
            }
            let manifest = folder.join("Cargo.toml");
            let text = fs::read_to_string(&manifest)
                .map_err(|error| format!("{}: {error}", manifest.display()))?;
            let package = package_name(&text)
                .ok_or_else(|| format!("{}: no package name", manifest.display()))?;
            components.push(Component { folder, package });
        }
    }
    components.sort_by(|a, b| a.folder.cmp(&b.folder));
    if components.is_empty() {
        return Err(format!("no plugin.toml found under {}", plugins.display()));
    }
    Ok(components)
}

/// The first `name = "..."` of a manifest, which is the package's.
fn package_name(manifest: &str) -> Option<String> {
    manifest.lines().find_map(|line| {
        let value = line
            .trim()
            .strip_prefix("name")?
            .trim_start()
            .strip_prefix('=')?;
        Some(value.trim().trim_matches('"').to_owned())
    })
}

/// Runs cargo over the workspace of plugins.
fn build(root: &Path, plugins: &Path, toolchain: &Toolchain) -> Result<(), String> {
    let mut command = Command::new(&toolchain.cargo);
    command
        .current_dir(plugins)
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            toolchain::TARGET,
        ])
        // What another cargo (the one that runs this program) has set must not leak in.
        // A folder of its own: a plain `cargo build` there gives crates another identity.
        .env("CARGO_TARGET_DIR", plugins.join(TARGET_DIR))
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root).join("\u{1f}"))
        .env(
            "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER",
            &toolchain.linker,
        )
        .env("CARGO_INCREMENTAL", "0")
        .env("PACKHOST_ROOT", root)
        .env("RUSTC_WRAPPER", &toolchain.wrapper);
    toolchain.apply(&mut command);
    let status = command
        .status()
        .map_err(|error| format!("cannot start {}: {error}", toolchain.cargo.display()))?;
    if status.success() {
        Ok(())
    } else {
        Err("the components did not build; cargo's messages above tell why".into())
    }
}

/// Compiler flags: the same name for the project and for the registry's sources on every machine.
fn flags(root: &Path) -> Vec<String> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let mut flags = vec![format!("--remap-path-prefix={}=/packhost", root.display())];
    if let Some(sources) = home.map(|home| home.join("registry").join("src")) {
        // The folder of one registry has a name that depends on its address.
        for registry in fs::read_dir(&sources).into_iter().flatten().flatten() {
            flags.push(format!(
                "--remap-path-prefix={}=/registry",
                registry.path().display()
            ));
        }
    }
    flags.sort();
    flags
}

/// Copies a component unless the same bytes are there already; returns its size.
fn install(from: &Path, to: &Path) -> Result<usize, String> {
    let bytes = fs::read(from).map_err(|error| format!("{}: {error}", from.display()))?;
    // A component's header differs from a core module's in its fifth byte.
    if bytes.get(..8) != Some(b"\0asm\x0d\0\x01\0") {
        return Err(format!(
            "{} is no component: the linker did not encode it",
            from.display()
        ));
    }
    if fs::read(to).is_ok_and(|present| present == bytes) {
        return Ok(bytes.len());
    }
    let staged = to.with_extension("wasm.tmp");
    fs::write(&staged, &bytes)
        .and_then(|()| fs::rename(&staged, to))
        .map_err(|error| format!("cannot write {}: {error}", to.display()))?;
    Ok(bytes.len())
}

/// A number with a comma before every third digit.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let manifest = "[package]\nname = \"quant-rtn\"\n[lib]\nname = \"other\"\n";
        assert_eq!(package_name(manifest).as_deref(), Some("quant-rtn"));
        assert_eq!(package_name("[workspace]\n"), None);
        assert_eq!(
            [thousands(7), thousands(173_555), thousands(1_000_000)],
            ["7", "173,555", "1,000,000"]
        );
    }
}
