//! `packhost report`: a pack on the terminal, and what changed between two.

use std::collections::BTreeSet;

use insta::assert_snapshot;
use serde_json::Value;

use crate::replay::{Forgery, MODEL, sealed};
use crate::support::Bench;

const RUN: &str = "[REPO]/tests/vectors/released/run-1";

#[test]
fn a_pack_is_shown() {
    let bench = Bench::new();
    assert_snapshot!(bench.says(&format!("report show {RUN}")), @r#"
    exit: 0
    ----- stdout -----
    Suite demo: packhost/demo

    VERDICT
      PASS: Every requirement is met, by one report on one model.

    WHY

      What was demanded, and what came of it
      demand            met  of
      Clean edits pass    1   1

    SCENARIOS AND GUARDS
      What a guard finds in the unedited model on the same windows too is not the change's doing and
      does not count here.

      What each guard says of each report
                          invariants
                          | primary-metric
                          | | verdict
                          | | |
      Clean edits
        quant_4bit_clean  . . +
        D  damaged: status fail
        M  marked: status warn, or the guard's probe signals
        c  changed beyond what rounding explains, and harmless as far as it goes
        .  nothing
        s  stock: only what the unedited model shows too
        -  could not judge: no predictions to look at
        +  the report came out as its scenario demands
        !  it did not
        i  for information: nothing is demanded of it

    WHAT THE CHANGES COST

      The same in figures
      report            perplexity    ratio  interval of the ratio         KL  same top token
      quant_4bit_clean      3.1316  1.02897       1.0249 to 1.0336  0.0246819          0.8369

    PROVENANCE
      packhost                     0.1.0
      Began                        2026-11-24T13:36:15Z
      Suite                        demo
      Tier                         conservative
      Profile                      dev
      Window draw                  stratified
      First seed                   42
      Calibration runs             1
      Text, kind                   local_jsonl
      Text, SHA-256                [digest]
      Engine of the plugins        wasmtime 48.0.8
      Plugin interface             0.1.0
      Source                       urn:packhost:source-snapshot
      Commit                       [digest]
      Branch                       detached-snapshot
      Uncommitted changes          no
      Platform                     linux-x86_64
      Reports verified at profile  dev
      Reports at assurance         report

      Unedited models
      model          revision  architecture      parameters  file               SHA-256
      packhost/demo  -         LlamaForCausalLM  1443456     model.safetensors  [digest]

      Guards that judged
      guard           version  interface  SHA-256 of the component
      invariants      0.1.0    0.1.0      [digest]
      primary-metric  0.1.0    0.1.0      [digest]

    Every byte is as signed by sha256:[digest]. Whether that is the right signer, and whether reports and verdict follow from the evidence, `packhost pack verify --replay` tells.
    "#);
    assert_snapshot!(bench.says("report show [REPO]/tests/vectors/released/build-1"), @r#"
    exit: 0
    ----- stdout -----
    Evidence pack

    VERDICT
      PASS: Every requirement is met, by one report.

    SCENARIOS AND GUARDS
      What a guard finds in the unedited model on the same windows too is not the change's doing and
      does not count here.

      What each guard says of each report
                    verdict
                    |
      Reports
        report-001  i
        D  damaged: status fail
        M  marked: status warn, or the guard's probe signals
        c  changed beyond what rounding explains, and harmless as far as it goes
        .  nothing
        s  stock: only what the unedited model shows too
        -  could not judge: no predictions to look at
        +  the report came out as its scenario demands
        !  it did not
        i  for information: nothing is demanded of it

    WHAT THE CHANGES COST

      The same in figures
      report      perplexity    ratio  interval of the ratio  KL  same top token
      report-001     22.5000  1.00000                      -   -               -

    Every byte is as signed by sha256:[digest]. Whether that is the right signer, and whether reports and verdict follow from the evidence, `packhost pack verify --replay` tells.
    "#);
    let output = bench
        .line(&format!("report show {RUN} --json"))
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["format_version"], "packhost-report-show-v1");
    assert_eq!(answer["verdict"], "PASS");
    let report = &answer["reports"][0];
    assert_eq!(report["scenario"], "quant_4bit_clean");
    assert_eq!(
        (&report["met"], &report["interval"][1]),
        (&true.into(), &1.033619286547812.into())
    );
    assert_eq!(report["guards"]["invariants"]["level"], "silent");
    assert_eq!(answer["provenance"]["models"][0]["id"], "packhost/demo");
}

#[test]
fn what_is_no_pack_is_not_shown() {
    let bench = Bench::new();
    assert_snapshot!(bench.says("report show nowhere"), @r#"
    exit: 3
    ----- stderr -----
    error: [missing.pack] `nowhere` is not a directory
    "#);
    let forgery = Forgery::new();
    std::fs::write(forgery.pack().join("README.md"), "other").unwrap();
    assert!(
        forgery
            .bench
            .says("report show pack")
            .starts_with("exit: 6")
    );
}

#[test]
fn every_kind_of_change_is_told() {
    let bench = Bench::new();
    let same = bench.says(&format!("report diff {RUN} {RUN}"));
    assert_snapshot!(same, @r"
    exit: 0
    ----- stdout -----
    the packs hold the same files
    ");
    let forgery = Forgery::new();
    let before = sealed().path("run/evidence_pack");
    let report = format!("reports/{MODEL}/quant_4bit_clean/run_1/evaluation.report.json");
    forgery.change(&report, |report| {
        report["primary_metric"]["display_ci"][1] = 1.5.into();
        report["packhost"]["guards"][0]["status"] = "fail".into();
        report["policies"]["metrics"]["pm_ratio"]["ratio_limit_base"] = 9.0.into();
    });
    forgery.change("results/verdicts/final_verdict.json", |verdict| {
        verdict["verdict"] = "FAIL".into();
        verdict["records"][0]["passed"] = false.into();
    });
    forgery.change("metadata/environment.json", |machine| {
        machine["platform"] = "other".into()
    });
    forgery.change("metadata/packhost/run.json", |run| {
        run["tier"] = "aggressive".into()
    });
    let lock = forgery.pack().join("metadata/packhost/plugins.lock");
    let text = std::fs::read_to_string(&lock).unwrap();
    std::fs::write(
        &lock,
        text.replacen("version = \"0.1.0\"", "version = \"9.9.9\"", 1),
    )
    .unwrap();
    forgery.reseal();
    let line = format!("report diff {} pack", before.display());
    let told = forgery.bench.says(&line);
    for part in [
        "verdict     final verdict verdict: ",
        " -> FAIL",
        "scenario    packhost__demo/quant_4bit_clean run 1 passed: true -> false",
        "guard       reports/packhost__demo/quant_4bit_clean/run_1/evaluation.report.json invariants status: pass -> fail",
        "number      reports/packhost__demo/quant_4bit_clean/run_1/evaluation.report.json interval: [",
        "policy      reports/packhost__demo/quant_4bit_clean/run_1/evaluation.report.json /metrics/pm_ratio/ratio_limit_base: 1.1 -> 9.0",
        " version: 0.1.0 -> 9.9.9",
        "setting     metadata/packhost/run.json /tier: balanced -> aggressive",
        "environment metadata/environment.json /platform: ",
        "file        metadata/packhost/plugins.lock: ",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // One mechanism by two names.
    assert_eq!(
        told,
        forgery
            .bench
            .says(&line.replace("report diff", "pack diff"))
    );
    let output = forgery
        .bench
        .line(&format!("{line} --json"))
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let changes = answer["changes"].as_array().unwrap().iter();
    let kinds: BTreeSet<&str> = changes
        .map(|change| change["kind"].as_str().unwrap())
        .collect();
    let expected = [
        "environment",
        "file",
        "guard",
        "number",
        "plugin",
        "policy",
        "scenario",
        "setting",
        "verdict",
    ];
    assert_eq!(kinds, BTreeSet::from(expected));
}
