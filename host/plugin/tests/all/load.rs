//! What is loaded and what is refused, and the sentences that say why.

use insta::assert_snapshot;
use packhost_plugin::{Error, Limits, LoadErrorKind, PluginKind, inspect};

use crate::{
    device::{apply, engine, engine_with, load_edit},
    guest::{Guest, edit, guard, injection, wit, without_offsets},
};

/// The error of loading `bytes` as an edit, with its hint.
fn refused(bytes: &[u8]) -> String {
    let error = engine()
        .load_bytes("test-plugin", bytes, Some(PluginKind::Edit))
        .err()
        .expect("loaded");
    match error.hint() {
        Some(hint) => without_offsets(&format!("{error}\nhint: {hint}")),
        None => without_offsets(&error.to_string()),
    }
}

/// A component of `fields` that claims to export the edit interface.
fn exporting(fields: &str) -> Vec<u8> {
    let export = "(instance $e) (export \"packhost:plugin/edit@0.1.0\" (instance $e))";
    wat::parse_str(format!("(component {fields} {export})")).unwrap()
}

/// An edit built against another version of the interface.
fn version(version: &str) -> Guest {
    edit().wit(wit().replace(
        "packhost:plugin@0.1.0",
        &format!("packhost:plugin@{version}"),
    ))
}

#[test]
fn a_core_module() {
    assert_snapshot!(refused(&wat::parse_str("(module)").unwrap()), @r"
    test-plugin: this is a core WebAssembly module, not a component
    hint: build with `wasm-component-ld` as the linker, or turn the module into a component with wit-component
    ");
}

#[test]
fn not_webassembly() {
    assert_snapshot!(refused(b""), @r"
    test-plugin: not a WebAssembly component: the file is empty
    hint: check that the file was copied whole; build it again if in doubt
    ");
    assert_snapshot!(refused(b"#!/bin/sh\necho hello\n"), @r"
    test-plugin: not a WebAssembly component: the file does not begin like WebAssembly
    hint: check that the file was copied whole; build it again if in doubt
    ");
}

#[test]
fn an_empty_component() {
    assert_snapshot!(refused(&wat::parse_str("(component)").unwrap()), @r"
    test-plugin: exports no plugin interface: a plugin exports one of `packhost:plugin/edit@0.1.0`, `packhost:plugin/injection@0.1.0`, `packhost:plugin/guard@0.1.0`; this component exports nothing
    hint: export one with the SDK's `export_edit!`, `export_injection!` or `export_guard!`
    ");
}

#[test]
fn another_kind() {
    assert_snapshot!(refused(&guard().build()), @r"
    test-plugin: is announced as kind `edit`, but exports the interface of kind `guard`
    hint: correct `kind` in plugin.toml, or install the component that belongs to it
    ");
    assert_snapshot!(refused(&injection().build()), @r"
    test-plugin: is announced as kind `edit`, but exports the interface of kind `injection`
    hint: correct `kind` in plugin.toml, or install the component that belongs to it
    ");
}

#[test]
fn interface_versions() {
    for served in ["0.1.0", "0.1.7"] {
        apply(&load_edit(&engine(), &version(served))).unwrap();
    }
    assert_snapshot!(refused(&version("0.2.0").build()), @r"
    test-plugin: is built against `packhost:plugin/edit` version 0.2.0; this host serves 0.1.0 and compatible versions (^0.1.0)
    hint: build the plugin again with an SDK of a version that this host serves, or use the packhost that serves the plugin's
    ");
    assert_snapshot!(refused(&version("1.0.0").build()), @r"
    test-plugin: is built against `packhost:plugin/edit` version 1.0.0; this host serves 0.1.0 and compatible versions (^0.1.0)
    hint: build the plugin again with an SDK of a version that this host serves, or use the packhost that serves the plugin's
    ");
    assert_snapshot!(refused(&version("0.1.0-beta.1").build()), @r"
    test-plugin: is built against `packhost:plugin/edit` version 0.1.0-beta.1; this host serves 0.1.0 and compatible versions (^0.1.0)
    hint: build the plugin again with an SDK of a version that this host serves, or use the packhost that serves the plugin's
    ");
}

#[test]
fn a_newer_patch_that_needs_a_newer_function() {
    let wit = wit()
        .replace("packhost:plugin@0.1.0", "packhost:plugin@0.1.9")
        .replace(
            "duplicate: func() -> tensor;",
            "duplicate: func() -> tensor;\n    transpose: func() -> tensor;",
        );
    let import = r#"(import "packhost:plugin/tensors@0.1.9" "[method]tensor.transpose" (func (param i32) (result i32)))"#;
    assert_snapshot!(refused(&edit().wit(wit).with(import).build()), @r"
    test-plugin: does not fit the interface that it names: it imports `[method]tensor.transpose` of `packhost:plugin/tensors@0.1.9`, which this host's version of that interface lacks
    hint: build the plugin again with the WIT files of the interface version that it names
    ");
}

#[test]
fn a_function_of_another_type() {
    let wit = wit().replace("kth-magnitude: func(k: u64)", "kth-magnitude: func(k: s64)");
    assert_snapshot!(refused(&edit().wit(wit).build()), @r"
    test-plugin: does not fit the interface that it names: it imports `[method]tensor.kth-magnitude` of `packhost:plugin/tensors@0.1.0` with another type than this host's: expected `u64` found `s64`
    hint: build the plugin again with the WIT files of the interface version that it names
    ");
}

#[test]
fn an_import_that_nobody_offers() {
    let wit = wit().replace(
        "world edit-plugin {",
        "world edit-plugin {\n  import secrets;",
    ) + "\ninterface secrets { read: func() -> u32; }";
    let import = r#"(import "packhost:plugin/secrets@0.1.0" "read" (func (result i32)))"#;
    assert_snapshot!(refused(&edit().wit(wit).with(import).build()), @r"
    test-plugin: needs `packhost:plugin/secrets@0.1.0`, which this host does not offer to edit-plugin; it offers `packhost:plugin/types@0.1.0`, `packhost:plugin/tensors@0.1.0`, `packhost:plugin/log@0.1.0` and WASI 0.2 (wasi:cli, wasi:clocks, wasi:filesystem, wasi:io, wasi:random, wasi:sockets)
    hint: remove that use from the plugin: it gets only what its world lists
    ");
}

#[test]
fn an_import_of_another_world() {
    let wit = wit().replace(
        "world edit-plugin {",
        "world edit-plugin {\n  import drafts;",
    );
    let import =
        r#"(import "packhost:plugin/drafts@0.1.0" "[method]draft.config" (func (param i32 i32)))"#;
    assert_snapshot!(refused(&edit().wit(wit).with(import).build()), @r"
    test-plugin: needs `packhost:plugin/drafts@0.1.0`, which this host does not offer to edit-plugin; it offers `packhost:plugin/types@0.1.0`, `packhost:plugin/tensors@0.1.0`, `packhost:plugin/log@0.1.0` and WASI 0.2 (wasi:cli, wasi:clocks, wasi:filesystem, wasi:io, wasi:random, wasi:sockets)
    hint: remove that use from the plugin: it gets only what its world lists
    ");
}

#[test]
fn proposals_that_differ_between_processors() {
    let relaxed = "(func (param v128) (result v128) (f32x4.relaxed_madd (local.get 0) (local.get 0) (local.get 0)))";
    assert_snapshot!(refused(&edit().with(relaxed).build()), @r"
    test-plugin: refused by the engine: failed to compile: wasm[0]::function[12]: WebAssembly translation error: Invalid input WebAssembly code at offset [n]: relaxed SIMD support is not enabled
    hint: threads, relaxed SIMD, 64-bit memories and other proposals are off, for reproducible results
    ");
    assert_snapshot!(refused(&edit().memory("4 100 shared").build()), @r"
    test-plugin: refused by the engine: failed to parse WebAssembly module: threads must be enabled for shared memories (at offset [n])
    hint: threads, relaxed SIMD, 64-bit memories and other proposals are off, for reproducible results
    ");
    let wide = exporting("(core module (memory i64 1))");
    assert_snapshot!(refused(&wide), @r"
    test-plugin: refused by the engine: failed to parse WebAssembly module: memory64 must be enabled for 64-bit memories (at offset [n])
    hint: threads, relaxed SIMD, 64-bit memories and other proposals are off, for reproducible results
    ");
}

#[test]
fn plain_simd_is_served() {
    let simd = "(func (param v128) (result v128) (f32x4.add (local.get 0) (local.get 0)))";
    apply(&load_edit(&engine(), &edit().with(simd))).unwrap();
}

#[test]
fn too_large() {
    let engine = engine_with(Limits {
        component_bytes: 1000,
        ..Limits::default()
    });
    let error = engine
        .load_bytes("test-plugin", &edit().build(), None)
        .err()
        .unwrap();
    let Error::Load(error) = error else { panic!() };
    assert!(matches!(error.kind, LoadErrorKind::Limit(limit) if limit.name == "component_bytes"));
}

#[test]
fn instances_multiplied_out() {
    // Four levels, each instantiating the one inside 64 times: 16 million core instances in 2 kB.
    let mut text = String::from("(core module $m) (core instance (instantiate $m))");
    for level in 0..4 {
        let instances = format!("(instance (instantiate $c{level}))").repeat(64);
        text = format!("(component $c{level} {text}) {instances}");
    }
    let begin = std::time::Instant::now();
    assert_snapshot!(refused(&exporting(&text)), @"test-plugin: limit `instances` exceeded: got 17850625, limit 1024");
    assert!(begin.elapsed() < std::time::Duration::from_secs(5));
    let honest = inspect(&edit().build(), None).unwrap();
    assert!(honest.instances <= 16, "{}", honest.instances);
}

#[test]
fn cut_at_every_length() {
    let whole = edit().build();
    let engine = engine();
    let mut loaded = 0;
    for length in 0..whole.len() {
        // The names come last but for custom sections; where only those are cut off, the component is whole.
        if inspect(&whole[..length], Some(PluginKind::Edit)).is_ok() {
            loaded += usize::from(
                engine
                    .load_bytes("cut", &whole[..length], Some(PluginKind::Edit))
                    .is_ok(),
            );
        }
    }
    assert!(loaded < 8, "{loaded}");
}

#[test]
fn flipped_bits_never_harm() {
    let whole = edit().build();
    let engine = engine();
    let honest = load_edit(&engine, &edit());
    let step = (whole.len() / 150).max(1);
    for (index, bit) in (0..whole.len())
        .step_by(step)
        .zip([0_u8, 3, 6, 1, 7, 4].into_iter().cycle())
    {
        let mut bytes = whole.clone();
        bytes[index] ^= 1 << bit;
        if let Ok(plugin) = engine.load_bytes("flipped", &bytes, Some(PluginKind::Edit)) {
            let _ = apply(plugin.edit().unwrap());
        }
    }
    apply(&honest).unwrap();
}

#[test]
fn names_can_be_inspected() {
    let inspection = inspect(&edit().build(), None).unwrap();
    assert_eq!(inspection.kind, PluginKind::Edit);
    assert_eq!(inspection.interface.to_string(), "0.1.0");
    assert_snapshot!(inspection.imports.join("\n"), @r"
    packhost:plugin/log@0.1.0
    packhost:plugin/tensors@0.1.0
    packhost:plugin/types@0.1.0
    ");
    assert_snapshot!(inspection.exports.join("\n"), @"packhost:plugin/edit@0.1.0");
}
