//! Edits that cannot be made, and places that cannot be written to.

use std::fs;

use insta::assert_snapshot;

use crate::support::{Bench, SmallDisk, files};

/// Asks for `spec` on the tiny model and shows that nothing was written.
fn edit(spec: &str) -> String {
    let bench = Bench::new();
    bench.tiny("model");
    let said = bench.says(&format!(
        "edit model --spec {spec} --plugins [REPO]/plugins --out out"
    ));
    assert!(!bench.path("out").exists(), "{said}");
    assert!(bench.leftovers(".").is_empty(), "{said}");
    said
}

#[test]
fn unknown_type() {
    assert_snapshot!(edit("quant_rtm:8:32:ffn"), @r"
    exit: 17
    ----- stderr -----
    error: failed to resolve edit `quant_rtm:8:32:ffn`: invalid, unknown_edit_type
    hint: the type comes first: quant_rtn, fp8_quant, magnitude_prune or lowrank_svd, or one that an installed plugin serves, followed by JSON
    ");
}

#[test]
fn malformed_specifications() {
    assert_snapshot!(edit("quant_rtn"), @r"
    exit: 17
    ----- stderr -----
    error: failed to resolve edit `quant_rtn`: invalid, invalid_quant_params
    hint: write quant_rtn:BITS:GROUP_SIZE:SCOPE, such as quant_rtn:8:128:ffn; BITS is 1 to 16
    ");
    assert_snapshot!(edit("quant_rtn:8:32"), @r"
    exit: 17
    ----- stderr -----
    error: quant-rtn: plan: invalid parameters: `scope` is `32`: there is no scope `32`; use ffn, attn or all, optionally with @layer=K, @layers=N or @router
    ");
    assert_snapshot!(edit("quant_rtn:eight:32:ffn"), @r"
    exit: 17
    ----- stderr -----
    error: failed to resolve edit `quant_rtn:eight:32:ffn`: invalid, invalid_quant_params
    hint: write quant_rtn:BITS:GROUP_SIZE:SCOPE, such as quant_rtn:8:128:ffn; BITS is 1 to 16
    ");
    assert_snapshot!(edit(":8:32:ffn"), @r"
    exit: 17
    ----- stderr -----
    error: failed to resolve edit `:8:32:ffn`: invalid, unknown_edit_type
    hint: the type comes first: quant_rtn, fp8_quant, magnitude_prune or lowrank_svd, or one that an installed plugin serves, followed by JSON
    ");
    assert_snapshot!(edit("quant_rtn:{\"bits\":8"), @r#"
    exit: 17
    ----- stderr -----
    error: failed to resolve edit `quant_rtn:{"bits":8`: invalid, invalid_json_params
    hint: after the type comes one JSON object: quant_rtn:{"bits":8,"group_size":128,"scope":"ffn"}
    "#);
}

#[test]
fn parameters_out_of_range() {
    assert_snapshot!(edit("quant_rtn:0:32:all"), @r"
    exit: 17
    ----- stderr -----
    error: failed to resolve edit `quant_rtn:0:32:all`: invalid, invalid_quant_params
    hint: write quant_rtn:BITS:GROUP_SIZE:SCOPE, such as quant_rtn:8:128:ffn; BITS is 1 to 16
    ");
    assert_snapshot!(edit("lowrank_svd:0:all"), @r"
    exit: 17
    ----- stderr -----
    error: failed to resolve edit `lowrank_svd:0:all`: invalid, invalid_lowrank_rank
    hint: write lowrank_svd:RANK:SCOPE, such as lowrank_svd:32:ffn; RANK is at least 1
    ");
    assert_snapshot!(edit("fp8_quant:e6m1:ffn"), @r"
    exit: 17
    ----- stderr -----
    error: failed to resolve edit `fp8_quant:e6m1:ffn`: invalid, invalid_fp_format
    hint: write fp8_quant:FORMAT:SCOPE, such as fp8_quant:e5m2:ffn; FORMAT is e4m3 or e5m2 (also with fn or fnuz), or f16
    ");
    assert_snapshot!(edit("fp8_quant:{\"format\":\"e6m1\",\"scope\":\"ffn\"}"), @r"
    exit: 17
    ----- stderr -----
    error: fp8: plan: invalid parameters: `format`: unknown variant `e6m1`, expected one of `e4m3`, `e4m3fn`, `e4m3fnuz`, `e5m2`, `e5m2fn`, `e5m2fnuz`, `f16` at line 1 column 16
    ");
    assert_snapshot!(edit("magnitude_prune:2:all"), @r"
    exit: 17
    ----- stderr -----
    error: failed to resolve edit `magnitude_prune:2:all`: invalid, invalid_prune_sparsity
    hint: write magnitude_prune:SPARSITY:SCOPE, such as magnitude_prune:0.1:ffn; SPARSITY is 0 to 1
    ");
    assert_snapshot!(edit("quant_rtn:{\"bits\":99,\"group_size\":32,\"scope\":\"all\"}"), @r"
    exit: 17
    ----- stderr -----
    error: quant-rtn: plan: invalid parameters: `bits` is 99, allowed are 1 to 16
    ");
}

#[test]
fn unknown_parameter() {
    assert_snapshot!(edit(r#"quant_rtn:{"bits":8,"group_size":32,"scope":"ffn","bitz":1}"#), @r"
    exit: 17
    ----- stderr -----
    error: quant-rtn: plan: invalid parameters: unknown field `bitz`, expected one of `bits`, `group_size`, `scope` at line 1 column 16
    ");
}

#[test]
fn scopes_that_select_nothing() {
    assert_snapshot!(edit("quant_rtn:8:32:ffn@layer=9"), @r"
    exit: 17
    ----- stderr -----
    error: quant-rtn: plan: invalid parameters: scope `ffn@layer=9` selects no tensor of this LlamaForCausalLM model with 2 layers: nothing would be edited
    ");
    assert_snapshot!(edit("quant_rtn:8:32:fnn"), @r"
    exit: 17
    ----- stderr -----
    error: quant-rtn: plan: invalid parameters: `scope` is `fnn`: there is no scope `fnn`; use ffn, attn or all, optionally with @layer=K, @layers=N or @router
    ");
}

#[test]
fn clean_form_without_tuned_parameters() {
    assert_snapshot!(edit("quant_rtn:clean:ffn"), @r"
    exit: 17
    ----- stderr -----
    error: failed to resolve edit `quant_rtn:clean:ffn`: missing, missing_tuned_edit_params_file
    hint: the clean form takes its parameters from a file: name it with --tuned-edit-params, or write the parameters out
    ");
}

#[test]
fn output_that_exists() {
    let bench = Bench::new();
    bench.tiny("model");
    bench.write("out/precious.txt", "keep me");
    let line = "edit model --spec quant_rtn:8:32:ffn --plugins [REPO]/plugins --out out";
    assert_snapshot!(bench.says(line), @r"
    exit: 15
    ----- stderr -----
    error: failed to write the checkpoint out: it exists already
    hint: choose another folder, or have this one replaced with --replace
    ");
    assert_eq!(
        fs::read(bench.path("out/precious.txt")).unwrap(),
        b"keep me"
    );
    // Replacing is an explicit wish, and then nothing of the old folder remains.
    let output = bench.line(&format!("{line} --replace")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", bench.render(&output));
    assert!(!bench.path("out/precious.txt").exists() && bench.path("out/config.json").exists());
    assert!(bench.leftovers(".").is_empty());
}

#[test]
fn output_over_its_own_model() {
    let bench = Bench::new();
    let before = files(&bench.tiny("model"));
    assert_snapshot!(bench.says("edit model --spec quant_rtn:8:32:ffn --plugins [REPO]/plugins --out model --replace"), @r"
    exit: 15
    ----- stderr -----
    error: failed to write the checkpoint model: this is the baseline itself; choose another folder
    ");
    assert_eq!(files(&bench.path("model")), before);
}

#[test]
fn output_under_a_file() {
    let bench = Bench::new();
    bench.tiny("model");
    bench.write("file", "");
    assert_snapshot!(bench.says("edit model --spec quant_rtn:8:32:ffn --plugins [REPO]/plugins --out file/out"), @r"
    exit: 15
    ----- stderr -----
    error: failed to make the folder file: File exists (os error 17)
    ");
}

#[test]
fn full_disk() {
    let bench = Bench::new();
    bench.demo("model");
    let Some(_disk) = SmallDisk::mount(&bench.path("disk"), "size=512k") else {
        return;
    };
    assert_snapshot!(bench.says("edit model --spec quant_rtn:8:32:ffn --plugins [REPO]/plugins --out disk/out"), @r"
    exit: 15
    ----- stderr -----
    error: failed to write disk/.out.tmp/model.safetensors: no space left on the device, this file needs 2892992 bytes; free some or choose another folder
    ");
    assert!(
        files(&bench.path("disk")).is_empty(),
        "the failed attempt was not cleaned up"
    );
}

#[test]
fn read_only_disk() {
    let bench = Bench::new();
    bench.tiny("model");
    let Some(_disk) = SmallDisk::mount(&bench.path("disk"), "size=512k,ro") else {
        return;
    };
    assert_snapshot!(bench.says("edit model --spec quant_rtn:8:32:ffn --plugins [REPO]/plugins --out disk/out"), @r"
    exit: 15
    ----- stderr -----
    error: failed to make the folder disk/.out.tmp: Read-only file system (os error 30)
    ");
}
