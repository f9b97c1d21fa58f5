//! Plugins that are not what they say, are not the ones that were agreed on, or misbehave: each ends as a classified error
//! and leaves nothing half done.

use std::fs;

use insta::assert_snapshot;

use crate::guest::{self, Guest, ZEROS, strings};
use crate::support::{Bench, flip};

const EDIT: &str = "edit model --spec quant_rtn:8:32:ffn --plugins plugins --out out";

/// Has the plugins of the bench edit the tiny model, and shows that nothing was written.
fn edit(bench: &Bench, more: &str) -> String {
    bench.tiny("model");
    let said = bench.says(&format!("{EDIT} {more}"));
    assert!(!bench.path("out").exists(), "{said}");
    assert!(bench.leftovers(".").is_empty(), "{said}");
    said
}

/// The bench with `component` as its only plugin.
fn installed(bench: &Bench, component: &[u8]) {
    bench.write(
        "plugins/test/plugin.toml",
        "id = \"test-plugin\"\nkind = \"edit\"\nversion = \"0.1.0\"\ninterface = \"0.1.0\"\ntitle = \"A test plugin\"\ntypes = [\"quant_rtn\"]\n",
    );
    bench.write("plugins/test/component.wasm", component);
}

/// What comes of `component` as an edit.
fn component(component: &[u8]) -> String {
    let bench = Bench::new();
    installed(&bench, component);
    edit(&bench, "")
}

/// An edit that plans one tensor of the tiny model.
fn one_target() -> Guest {
    guest::edit()
        .with(&strings(2048, &["model.norm.weight", "{}"]))
        .on("plan", "(call $ok2 (i32.const 2048) (i32.const 1))")
}

#[test]
fn an_honest_guest_works() {
    let bench = Bench::new();
    installed(&bench, &one_target().build());
    bench.tiny("model");
    assert_snapshot!(bench.says(EDIT), @r"
    exit: 0
    ----- stdout -----
    out: 1 tensors edited, 1 shards written, 0 linked, 0 copied
    ");
}

#[test]
fn not_a_component() {
    assert_snapshot!(component(b"This is not WebAssembly."), @r"
    exit: 13
    ----- stderr -----
    error: test-plugin: not a WebAssembly component: the file does not begin like WebAssembly
    hint: check that the file was copied whole; build it again if in doubt
    ");
    assert_snapshot!(component(b""), @r"
    exit: 13
    ----- stderr -----
    error: test-plugin: not a WebAssembly component: the file is empty
    hint: check that the file was copied whole; build it again if in doubt
    ");
    // The smallest core module.
    assert_snapshot!(component(b"\0asm\x01\0\0\0"), @r"
    exit: 13
    ----- stderr -----
    error: test-plugin: this is a core WebAssembly module, not a component
    hint: build with `wasm-component-ld` as the linker, or turn the module into a component with wit-component
    ");
}

#[test]
fn truncated_component() {
    let whole = one_target().build();
    let cut = component(&whole[..whole.len() - 1]);
    assert_snapshot!(guest::without_offsets(&cut), @r"
    exit: 13
    ----- stderr -----
    error: test-plugin: not a WebAssembly component: unexpected end-of-file (at offset [n])
    hint: check that the file was copied whole; build it again if in doubt
    ");
}

#[test]
fn another_world() {
    assert_snapshot!(component(&guest::guard().build()), @r"
    exit: 13
    ----- stderr -----
    error: test-plugin: is announced as kind `edit`, but exports the interface of kind `guard`
    hint: correct `kind` in plugin.toml, or install the component that belongs to it
    ");
}

#[test]
fn another_interface_version() {
    let wit = guest::wit().replace("packhost:plugin@0.1.0", "packhost:plugin@7.0.0");
    assert_snapshot!(component(&guest::edit().wit(wit).build()), @r"
    exit: 13
    ----- stderr -----
    error: test-plugin: is built against `packhost:plugin/edit` version 7.0.0; this host serves 0.1.0 and compatible versions (^0.1.0)
    hint: build the plugin again with an SDK of a version that this host serves, or use the packhost that serves the plugin's
    ");
}

#[test]
fn trapping() {
    assert_snapshot!(component(&one_target().on("apply", "(unreachable)").build()), @r"
    exit: 14
    ----- stderr -----
    error: test-plugin: apply of `model.norm.weight`: trapped: wasm `unreachable` instruction executed (in `apply`)
    hint: a panic's message is lost in the sandbox: return an error or write to the log instead
    ");
}

#[test]
fn looping() {
    let bench = Bench::new();
    installed(
        &bench,
        &one_target()
            .on("apply", "(loop (br 0)) (unreachable)")
            .build(),
    );
    bench.write("packhost.toml", "[limits]\nown_time = 0.2\n");
    assert_snapshot!(edit(&bench, ""), @r"
    exit: 14
    ----- stderr -----
    error: test-plugin: apply of `model.norm.weight`: limit `own_time` exceeded: got [time] ms, limit 200 ms
    hint: if the plugin can be trusted with more, raise `own_time`
    ");
}

#[test]
fn allocating_without_end() {
    let body = "(loop (drop (memory.grow (i32.const 16))) (br 0)) (unreachable)";
    assert_snapshot!(component(&one_target().on("apply", body).build()), @r"
    exit: 14
    ----- stderr -----
    error: test-plugin: apply of `model.norm.weight`: limit `memory_bytes` exceeded: got 269025280, limit 268435456
    hint: if the plugin can be trusted with more, raise `memory_bytes`
    ");
}

#[test]
fn returning_another_shape() {
    let body = "(call $reshape (local.get $tensor) (i32.const 4096) (i32.const 2) (i32.const 64)) (call $ok (i32.load (i32.const 68)))";
    // [8, 8] for a vector of 64.
    let shape = r#"(data (i32.const 4096) "\08\00\00\00\00\00\00\00\08\00\00\00\00\00\00\00")"#;
    assert_snapshot!(component(&one_target().with(shape).on("apply", body).build()), @r"
    exit: 14
    ----- stderr -----
    error: test-plugin: apply of `model.norm.weight`: returned a tensor BF16 [8, 8], the target is BF16 [64]
    ");
}

#[test]
fn a_million_targets() {
    let body = format!("(call $ok2 (i32.const {ZEROS}) (i32.const 1000000))");
    assert_snapshot!(component(&guest::edit().memory("1000").on("plan", &body).build()), @r"
    exit: 14
    ----- stderr -----
    error: test-plugin: plan: limit `targets` exceeded: got 1000000, limit 200000
    hint: if the plugin can be trusted with more, raise `targets`
    ");
}

#[test]
fn targets_that_the_model_does_not_have() {
    assert_snapshot!(component(&guest::edit().build()), @r"
    exit: 14
    ----- stderr -----
    error: test-plugin: plan: answered a target that the model does not have: `w`
    ");
}

#[test]
fn a_fault_that_changes_nothing() {
    let bench = Bench::new();
    crate::run::source(&bench);
    for guard in ["guards/invariants", "guards/primary-metric"] {
        bench.plugin(guard);
    }
    bench.write(
        "plugins/test/plugin.toml",
        "id = \"test-plugin\"\nkind = \"injection\"\nversion = \"0.1.0\"\ninterface = \"0.1.0\"\ntitle = \"A test plugin\"\ntypes = [\"nan_injection\"]\n",
    );
    bench.write("plugins/test/component.wasm", guest::injection().build());
    let said = bench.says(
        "run --suite demo --suites-file [REPO]/scenarios/suites.json --scenario-ids nan_injection --plugins plugins \
         --preview 10 --final 10 --calibration-runs 1 --profile dev --workers 1 --out run",
    );
    assert_snapshot!(said, @r"
    exit: 11
    ----- stderr -----
    running suite demo in run: 9 tasks
    [time] s  packhost/demo: opened, 1443456 parameters
    [time] s  calibration run 1, seed 42: drift 1.0113
    [time] s  preset derived from 1 calibration runs
    [time] s  FAILED packhost__demo_CREATE_SUBJECT_005_7378: failed to apply scenario `nan_injection`: it changed no tensor, so nothing would be tested
               cannot run packhost__demo_EVALUATE_SUBJECT_006_1986: a task that it needs failed
               cannot run packhost__demo_CLEANUP_SUBJECT_007_cf3a: a task that it needs failed
               cannot run run_VERDICT_008_5340: a task that it needs failed
               cannot run run_PACK_009_77b1: a task that it needs failed
    verdict none: 4 tasks done, 1 failed, 4 blocked in [time] s
    error: tasks failed: 1, could not run because of that: 4; the first: failed to apply scenario `nan_injection`: it changed no tensor, so nothing would be tested; logs are in run/logs/tasks
    hint: repair the cause and go on with --resume
    ");
}

#[test]
fn absent_plugins() {
    let bench = Bench::new();
    bench.tiny("model");
    assert_snapshot!(edit(&bench, ""), @r"
    exit: 3
    ----- stderr -----
    error: plugins: there is no such folder; plugins (edits, faults, guards) are looked for in it
    hint: name the folder with `--plugins`; in a checkout, `cargo xtask components` builds the first-party ones into `plugins`
    ");
    fs::create_dir(bench.path("plugins")).unwrap();
    assert_snapshot!(edit(&bench, ""), @r"
    exit: 13
    ----- stderr -----
    error: plugins: no edit plugin serves type `quant_rtn`; served: none
    hint: install a plugin that serves it, or name the folder that holds one with `--plugins`; in a checkout, `cargo xtask components` builds the first-party ones
    ");
    bench.plugin("edits/fp8");
    assert_snapshot!(edit(&bench, ""), @r"
    exit: 13
    ----- stderr -----
    error: plugins: no edit plugin serves type `quant_rtn`; served: fp8_quant
    hint: install a plugin that serves it, or name the folder that holds one with `--plugins`; in a checkout, `cargo xtask components` builds the first-party ones
    ");
}

#[test]
fn absent_component() {
    let bench = Bench::new();
    let plugin = bench.plugin("edits/quant-rtn");
    fs::remove_file(plugin.join("component.wasm")).unwrap();
    assert_snapshot!(edit(&bench, ""), @r"
    exit: 13
    ----- stderr -----
    error: plugins/edits/quant-rtn/plugin.toml: plugin `quant-rtn` has not been built: there is no `component.wasm` beside its `plugin.toml`
    hint: build the first-party components with `cargo xtask components`, or copy the plugin's .wasm there
    ");
}

#[test]
fn manifests_that_cannot_be_read() {
    let bench = Bench::new();
    let manifest = bench.plugin("edits/quant-rtn").join("plugin.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, format!("{text}\ncolour = \"blue\"\n")).unwrap();
    assert_snapshot!(edit(&bench, ""), @r#"
    exit: 13
    ----- stderr -----
    error: plugins/edits/quant-rtn/plugin.toml: TOML parse error at line 9, column 1
      |
    9 | colour = "blue"
      | ^^^^^^
    unknown field `colour`, expected one of `id`, `kind`, `version`, `interface`, `title`, `types`, `prefixes`
    hint: a plugin.toml has the keys id, kind, version, interface, title and, where scenarios name types, types and prefixes
    "#);
    fs::write(
        &manifest,
        text.replace("kind = \"edit\"", "kind = \"edits\""),
    )
    .unwrap();
    assert_snapshot!(edit(&bench, ""), @r#"
    exit: 13
    ----- stderr -----
    error: plugins/edits/quant-rtn/plugin.toml: TOML parse error at line 2, column 8
      |
    2 | kind = "edits"
      |        ^^^^^^^
    unknown variant `edits`, expected one of `edit`, `injection`, `guard`
    hint: a plugin.toml has the keys id, kind, version, interface, title and, where scenarios name types, types and prefixes
    "#);
    fs::write(&manifest, "id =").unwrap();
    assert_snapshot!(edit(&bench, ""), @r"
    exit: 13
    ----- stderr -----
    error: plugins/edits/quant-rtn/plugin.toml: TOML parse error at line 1, column 5
      |
    1 | id =
      |     ^
    string values must be quoted, expected literal string
    hint: a plugin.toml has the keys id, kind, version, interface, title and, where scenarios name types, types and prefixes
    ");
}

#[test]
fn two_plugins_for_one_type() {
    let bench = Bench::new();
    bench.plugin("edits/quant-rtn");
    installed(&bench, &one_target().build());
    assert_snapshot!(edit(&bench, ""), @r"
    exit: 13
    ----- stderr -----
    error: plugins/test/plugin.toml: type `quant_rtn` is already served by plugins/edits/quant-rtn/plugin.toml
    hint: rename or remove one of the two
    ");
}

#[test]
fn locks() {
    let bench = Bench::new();
    let plugin = bench.plugin("edits/quant-rtn");
    assert_snapshot!(edit(&bench, "--locked"), @r"
    exit: 3
    ----- stderr -----
    error: plugins/plugins.lock: there is no such file; it pins the version and the bytes of each plugin, and `--locked` compares them
    hint: write one from the installed plugins with `packhost plugin lock`, or leave out `--locked`
    ");

    assert_snapshot!(bench.says("plugin lock --plugins plugins"), @r"
    exit: 0
    ----- stdout -----
    plugins/plugins.lock: 1 plugins pinned
    ");
    let output = bench.line(&format!("{EDIT} --locked")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", bench.render(&output));
    fs::remove_dir_all(bench.path("out")).unwrap();

    // A byte of a custom section's name would do as well: the digest covers every byte.
    flip(&plugin.join("component.wasm"), 100_000);
    assert_snapshot!(edit(&bench, "--locked"), @r"
    exit: 13
    ----- stderr -----
    error: plugins/plugins.lock: plugin `quant-rtn` 0.1.0 has digest [digest], pinned is [digest]
    hint: if the change is intended, write the lock file anew from the installed plugins; if not, restore the components that it pins
    ");
    bench.plugin("edits/quant-rtn");
    bench.plugin("edits/fp8");
    assert_snapshot!(edit(&bench, "--locked"), @r"
    exit: 13
    ----- stderr -----
    error: plugins/plugins.lock: plugin `fp8` 0.1.0 is installed but not pinned
    hint: if the change is intended, write the lock file anew from the installed plugins; if not, restore the components that it pins
    ");
    bench.write("plugins/plugins.lock", "format = 1\nplugins = 3\n");
    assert_snapshot!(edit(&bench, "--locked"), @r"
    exit: 13
    ----- stderr -----
    error: plugins/plugins.lock: TOML parse error at line 2, column 1
      |
    2 | plugins = 3
      | ^^^^^^^
    unknown field `plugins`, expected `format` or `plugin`
    hint: if the change is intended, write the lock file anew from the installed plugins; if not, restore the components that it pins
    ");
}
