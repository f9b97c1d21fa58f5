//! Folders of plugins, and the lock file.

use std::{fs, path::Path};

use insta::assert_snapshot;
use packhost_plugin::{Lock, PluginKind, Registry};

use crate::{
    device::engine,
    guest::{edit, guard},
};

/// A plugin folder `dir/name`.
fn install(dir: &Path, name: &str, manifest: &str, component: Option<&[u8]>) {
    let dir = dir.join(name);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("plugin.toml"), manifest).unwrap();
    if let Some(component) = component {
        fs::write(dir.join("component.wasm"), component).unwrap();
    }
}

fn manifest(id: &str, kind: &str) -> String {
    format!(
        "id = \"{id}\"\nkind = \"{kind}\"\nversion = \"0.1.0\"\ninterface = \"0.1.0\"\ntitle = \"A test\"\ntypes = [\"{id}_type\"]\n"
    )
}

/// The error's text and hint without the folder's name.
fn told<T>(dir: &Path, result: packhost_plugin::Result<T>) -> String {
    let error = result.err().expect("no error");
    let hint = error
        .hint()
        .map(|hint| format!("\nhint: {hint}"))
        .unwrap_or_default();
    format!("{error}{hint}").replace(&dir.display().to_string(), "[dir]")
}

#[test]
fn plugins_are_found_and_sorted() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path(), "edits/b", &manifest("b", "edit"), Some(b"bb"));
    install(dir.path(), "guards/a", &manifest("a", "guard"), Some(b"a"));
    install(dir.path(), "target/x", &manifest("x", "guard"), None);
    install(dir.path(), ".hidden", &manifest("y", "guard"), None);
    let registry = Registry::scan(dir.path()).unwrap();
    let ids: Vec<&str> = registry.entries().map(|entry| entry.id()).collect();
    assert_eq!(ids, ["a", "b"]);
    let entry = registry.get("b").unwrap();
    assert_eq!(entry.size(), 2);
    assert_eq!(
        entry.digest(),
        "3b64db95cb55c763391c707108489ae18b4112d783300de38e033b4c98c3deaf"
    );
    assert_eq!(registry.require("a", PluginKind::Guard).unwrap().id(), "a");
    assert_eq!(
        registry.serving(PluginKind::Edit, "b_type").unwrap().id(),
        "b"
    );
    assert_snapshot!(told(dir.path(), registry.require("a", PluginKind::Edit)), @"[dir]/guards/a/plugin.toml: plugin `a` is of kind `guard`, but `edit` is needed here");
    assert_snapshot!(told(dir.path(), registry.require("z", PluginKind::Edit)), @r"
    [dir]: there is no plugin `z`; found: a, b
    hint: install a plugin that serves it, or name the folder that holds one with `--plugins`; in a checkout, `cargo xtask components` builds the first-party ones
    ");
    assert_snapshot!(told(dir.path(), registry.serving(PluginKind::Edit, "a_type")), @r"
    [dir]: no edit plugin serves type `a_type`; served: b_type
    hint: install a plugin that serves it, or name the folder that holds one with `--plugins`; in a checkout, `cargo xtask components` builds the first-party ones
    ");
}

#[test]
fn types_are_served_exactly_or_by_the_longest_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let serves = |id: &str, types: &str, prefixes: &str| {
        let start = manifest(id, "injection")
            .lines()
            .take(5)
            .collect::<Vec<_>>()
            .join("\n");
        let text = format!("{start}\ntypes = [{types}]\nprefixes = [{prefixes}]\n");
        install(dir.path(), id, &text, Some(b""));
    };
    serves("a", "", r#""noise""#);
    serves("b", r#""noise_exact""#, r#""noise_st""#);
    let registry = Registry::scan(dir.path()).unwrap();
    let of = |name| {
        registry
            .serving(PluginKind::Injection, name)
            .map(|entry| entry.id().to_owned())
    };
    assert_eq!(of("noise").unwrap(), "a");
    assert_eq!(of("noise_exact").unwrap(), "b");
    assert_eq!(of("noise_exactly").unwrap(), "a");
    assert_eq!(of("noise_strong").unwrap(), "b");
    assert_snapshot!(told(dir.path(), of("nois")), @r"
    [dir]: no injection plugin serves type `nois`; served: noise*, noise_exact, noise_st*
    hint: install a plugin that serves it, or name the folder that holds one with `--plugins`; in a checkout, `cargo xtask components` builds the first-party ones
    ");
    serves("c", r#""noise_exact""#, "");
    let registry = Registry::scan(dir.path()).unwrap();
    assert_snapshot!(told(dir.path(), registry.serving(PluginKind::Injection, "noise_exact")), @r"
    [dir]/c/plugin.toml: type `noise_exact` is already served by [dir]/b/plugin.toml
    hint: rename or remove one of the two
    ");
}

#[test]
fn folders_that_are_wrong() {
    let scan = |files: &[(&str, &str, Option<&[u8]>)]| {
        let dir = tempfile::tempdir().unwrap();
        for (name, manifest, component) in files {
            install(dir.path(), name, manifest, *component);
        }
        told(dir.path(), Registry::scan(dir.path()))
    };
    assert_snapshot!(scan(&[("a", &manifest("a", "edit"), None)]), @r"
    [dir]/a/plugin.toml: plugin `a` has not been built: there is no `component.wasm` beside its `plugin.toml`
    hint: build the first-party components with `cargo xtask components`, or copy the plugin's .wasm there
    ");
    assert_snapshot!(scan(&[("a", &manifest("a", "edit"), Some(b"")), ("b", &manifest("a", "edit"), Some(b""))]), @r"
    [dir]/b/plugin.toml: plugin id `a` is already taken by [dir]/a/plugin.toml
    hint: rename or remove one of the two
    ");
    assert_snapshot!(scan(&[("a", &(manifest("a", "edit") + "colour = 1\n"), Some(b""))]), @r"
    [dir]/a/plugin.toml: TOML parse error at line 7, column 1
      |
    7 | colour = 1
      | ^^^^^^
    unknown field `colour`, expected one of `id`, `kind`, `version`, `interface`, `title`, `types`, `prefixes`
    hint: a plugin.toml has the keys id, kind, version, interface, title and, where scenarios name types, types and prefixes
    ");
    assert_snapshot!(scan(&[("a", &manifest("a", "editor"), Some(b""))]), @r#"
    [dir]/a/plugin.toml: TOML parse error at line 2, column 8
      |
    2 | kind = "editor"
      |        ^^^^^^^^
    unknown variant `editor`, expected one of `edit`, `injection`, `guard`
    hint: a plugin.toml has the keys id, kind, version, interface, title and, where scenarios name types, types and prefixes
    "#);
    assert_snapshot!(scan(&[("a", &manifest("A..b", "edit"), Some(b""))]), @r"
    [dir]/a/plugin.toml: id `A..b` is not lower-case letters and digits joined by single dots or dashes, 100 bytes at most
    hint: a plugin.toml has the keys id, kind, version, interface, title and, where scenarios name types, types and prefixes
    ");
    assert_snapshot!(scan(&[("a", &manifest("a", "edit").replace("interface = \"0.1.0\"", "interface = \"2.0.0\""), Some(b""))]), @r"
    [dir]/a/plugin.toml: interface version 2.0.0 is not served; this host serves ^0.1.0
    hint: a plugin.toml has the keys id, kind, version, interface, title and, where scenarios name types, types and prefixes
    ");
    assert_snapshot!(scan(&[("a", "id = ", Some(b""))]), @r"
    [dir]/a/plugin.toml: TOML parse error at line 1, column 6
      |
    1 | id = 
      |      ^
    string values must be quoted, expected literal string
    hint: a plugin.toml has the keys id, kind, version, interface, title and, where scenarios name types, types and prefixes
    ");
    let nowhere = Path::new("does-not-exist");
    assert_snapshot!(Registry::scan(nowhere).unwrap_err(), @r"
    does-not-exist: there is no such folder; plugins (edits, faults, guards) are looked for in it
    ");
}

#[test]
fn a_component_must_be_what_its_manifest_says() {
    let load = |manifest: &str, component: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), "p", manifest, Some(component));
        let registry = Registry::scan(dir.path()).unwrap();
        let entry = registry.entries().next().unwrap().clone();
        engine().load(&entry)
    };
    let dir = Path::new("nowhere");
    let good = edit().build();
    assert_eq!(
        load(&manifest("test-plugin", "edit"), &good)
            .unwrap()
            .kind(),
        PluginKind::Edit
    );
    assert_snapshot!(told(dir, load(&manifest("other-thing", "edit"), &good)), @r"
    other-thing: id is `test-plugin` by the component and `other-thing` by its plugin.toml
    hint: make plugin.toml and the component's describe() agree
    ");
    assert_snapshot!(told(dir, load(&manifest("test-plugin", "edit").replace("version = \"0.1.0\"", "version = \"0.2.0\""), &good)), @r"
    test-plugin: version is `0.1.0` by the component and `0.2.0` by its plugin.toml
    hint: make plugin.toml and the component's describe() agree
    ");
    assert_snapshot!(told(dir, load(&manifest("test-plugin", "edit"), &guard().build())), @r"
    test-plugin: is announced as kind `edit`, but exports the interface of kind `guard`
    hint: correct `kind` in plugin.toml, or install the component that belongs to it
    ");
}

#[test]
fn a_component_replaced_after_the_scan() {
    let dir = tempfile::tempdir().unwrap();
    install(
        dir.path(),
        "p",
        &manifest("test-plugin", "edit"),
        Some(&edit().build()),
    );
    let registry = Registry::scan(dir.path()).unwrap();
    fs::write(dir.path().join("p/component.wasm"), b"other").unwrap();
    let text = told(
        dir.path(),
        engine().load(registry.get("test-plugin").unwrap()),
    );
    assert!(
        text.starts_with("test-plugin: component.wasm changed since it was found: digest was "),
        "{text}"
    );
}

#[test]
fn the_lock_file_pins() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path(), "a", &manifest("a", "edit"), Some(b"a"));
    install(dir.path(), "b", &manifest("b", "guard"), Some(b"b"));
    install(dir.path(), "d", &manifest("d", "guard"), Some(b"d"));
    let registry = Registry::scan(dir.path()).unwrap();
    let path = dir.path().join("plugins.lock");
    Lock::of(&registry, &path).write().unwrap();
    let lock = Lock::load(&path).unwrap();
    assert_eq!(lock, Lock::of(&registry, &path));
    lock.check(&registry).unwrap();
    lock.check_entry(registry.get("a").unwrap()).unwrap();
    assert_snapshot!(lock.to_toml().unwrap(), @r#"
    # Written by packhost. Pins the plugins by version and SHA-256.
    format = 1

    [[plugin]]
    id = "a"
    version = "0.1.0"
    sha256 = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"

    [[plugin]]
    id = "b"
    version = "0.1.0"
    sha256 = "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"

    [[plugin]]
    id = "d"
    version = "0.1.0"
    sha256 = "18ac3e7343f016890c510e93f935261169d9e3f565436429830faf0934f4f8e4"
    "#);

    // a: other bytes. b: another version. c: new. d: gone.
    fs::write(dir.path().join("a/component.wasm"), b"changed").unwrap();
    install(
        dir.path(),
        "b",
        &manifest("b", "guard").replace("version = \"0.1.0\"", "version = \"0.1.1\""),
        Some(b"b"),
    );
    install(dir.path(), "c", &manifest("c", "edit"), Some(b"c"));
    fs::remove_dir_all(dir.path().join("d")).unwrap();
    let registry = Registry::scan(dir.path()).unwrap();
    assert_snapshot!(told(dir.path(), lock.check(&registry)), @r"
    [dir]/plugins.lock: plugin `a` 0.1.0 has digest d67e2e944994496c8d8ec76eed0cf9f09679448d584b532bebf941852a37f5ed, pinned is ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb; plugin `b` is pinned at version 0.1.0, installed is 0.1.1; plugin `c` 0.1.0 is installed but not pinned; plugin `d` 0.1.0 is pinned but not installed
    hint: if the change is intended, write the lock file anew from the installed plugins; if not, restore the components that it pins
    ");
    assert!(lock.check_entry(registry.get("a").unwrap()).is_err());
    assert!(lock.check_entry(registry.get("c").unwrap()).is_err());
}

#[test]
fn lock_files_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plugins.lock");
    let load = |text: &str| {
        fs::write(&path, text).unwrap();
        told(dir.path(), Lock::load(&path))
    };
    assert_snapshot!(load("format = 2\n"), @r"
    [dir]/plugins.lock: lock format 2; this host reads format 1
    hint: if the change is intended, write the lock file anew from the installed plugins; if not, restore the components that it pins
    ");
    assert_snapshot!(load("format = 1\n[[plugin]]\nid = \"a\"\nversion = \"1\"\nsha256 = \"xyz\"\n"), @r"
    [dir]/plugins.lock: sha256 of plugin `a` is not 64 lower-case hexadecimal digits
    hint: if the change is intended, write the lock file anew from the installed plugins; if not, restore the components that it pins
    ");
    let pin = format!(
        "[[plugin]]\nid = \"a\"\nversion = \"1\"\nsha256 = \"{}\"\n",
        "0".repeat(64)
    );
    assert_snapshot!(load(&format!("format = 1\n{pin}{pin}")), @r"
    [dir]/plugins.lock: plugin `a` is pinned twice
    hint: if the change is intended, write the lock file anew from the installed plugins; if not, restore the components that it pins
    ");
}
