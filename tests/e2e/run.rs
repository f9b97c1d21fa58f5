//! Whole runs on the demo model: what they print, what they leave, and that the same request gives the same bytes.
//!
//! One run with the demo's full windows is shared by the tests that need a PASS; the others draw few windows, where no metric
//! reaches the tier's token floor, so that their verdict is FAIL by rule.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use insta::assert_snapshot;
use serde_json::Value;

use crate::support::{Bench, files, json, text};

const SUITE: &str =
    "--suite demo --suites-file [REPO]/scenarios/suites.json --plugins [REPO]/plugins";

/// Few windows of a clean edit, a stress edit and a fault.
const SMALL: &str = "--scenario-ids fp8_e5m2_clean,prune_50pct_stress,nan_injection --preview 10 --final 10 \
                     --calibration-runs 2 --clean-runs 2 --profile dev";

/// Where a pack's source is named when the run happens outside a checkout.
pub fn source(bench: &Bench) {
    bench.write(
        "GPU_RUN_SOURCE.txt",
        format!("source_commit={}\n", "0123456789".repeat(4)),
    );
}

/// The line of a small run into `out`.
pub fn small(out: &str) -> String {
    format!("run {SUITE} {SMALL} --workers 1 --out {out}")
}

/// A finished full-size run in `run`, and what it printed.
fn passed() -> &'static (Bench, Output) {
    static RUN: OnceLock<(Bench, Output)> = OnceLock::new();
    RUN.get_or_init(|| {
        let bench = Bench::shared("passed");
        source(&bench);
        let made = bench.line("pack keygen signer.key.pem").output().unwrap();
        assert!(made.status.success());
        let line = format!(
            "run {SUITE} --scenario-ids quant_4bit_clean,prune_50pct_stress,nan_injection --calibration-runs 1 --clean-runs 1 \
             --workers 1 --signing-key signer.key.pem --out run"
        );
        let output = bench.line(&line).output().unwrap();
        (bench, output)
    })
}

/// A finished small run in `run`.
fn finished() -> &'static Bench {
    static RUN: OnceLock<Bench> = OnceLock::new();
    RUN.get_or_init(|| {
        let bench = Bench::shared("finished");
        source(&bench);
        let output = bench.line(&small("run")).output().unwrap();
        assert_eq!(output.status.code(), Some(10), "{}", bench.render(&output));
        bench
    })
}

/// The finished small run for one test alone: two processes that resume it at once would see each other.
fn finished_alone() -> (&'static Bench, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    (finished(), turn)
}

/// What a run must reproduce byte for byte: measurement tables, presets, and the verdict less its times.
pub fn results(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found: BTreeMap<String, Vec<u8>> = files(run)
        .into_iter()
        .filter(|(name, _)| !name.starts_with("evidence_pack/"))
        .filter(|(name, _)| name.contains("/tables/") || name.starts_with("presets/"))
        .collect();
    for (name, bytes) in files(run) {
        if name.starts_with("evidence_pack/")
            || !(name.ends_with("/evaluation.report.json")
                || name.ends_with("/baseline_report.json")
                || name == "reports/final_verdict.json")
        {
            continue;
        }
        let mut value: Value = serde_json::from_slice(&bytes).unwrap();
        forget_times(&mut value);
        found.insert(name, value.to_string().into_bytes());
    }
    found
}

/// Removes every time stamp, and what is derived from one.
fn forget_times(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| {
                ![
                    "timestamp",
                    "generated_at",
                    "created_at",
                    "began_at",
                    "ts",
                    "resolved_at",
                ]
                .contains(&key.as_str())
            });
            map.values_mut().for_each(forget_times);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_times),
        _ => {}
    }
}

/// Names of the files that differ or exist on one side only.
pub fn differences(one: &Path, other: &Path) -> Vec<String> {
    let (one, other) = (results(one), results(other));
    assert!(
        one.keys().any(|name| name.contains("/tables/")),
        "{:?}",
        one.keys()
    );
    let names = one
        .keys()
        .chain(other.keys().filter(|name| !one.contains_key(*name)));
    names
        .filter(|name| one.get(*name) != other.get(*name))
        .cloned()
        .collect()
}

#[test]
fn a_run_that_passes() {
    let (bench, output) = passed();
    assert_snapshot!(bench.render(output), @r"
    exit: 0
    ----- stdout -----
    PASS run/evidence_pack
    ----- stderr -----
    running suite demo in run: 15 tasks
    [time] s  packhost/demo: opened, 1443456 parameters
    [time] s  calibration run 1, seed 42: drift 1.0023
    [time] s  preset derived from 1 calibration runs
    [time] s  quant_4bit_clean                   run 1  ratio 1.0297       warn: spectral, weight-shift, activation-shift
    [time] s  prune_50pct_stress                 run 1  ratio 2.0697       fail: primary-metric, distribution-shift, activation-shift; warn: spectral, weight-shift
    [time] s  nan_injection                      run 1  no ratio           fail: invariants, primary-metric, weight-shift, distribution-shift, activation-shift; warn: spectral, rmt, variance
    [time] s  verdict PASS
    [time] s  sealed 53 files in run/evidence_pack, signed by sha256:[digest]
    verdict PASS: 15 tasks done, 0 failed, 0 blocked in [time] s, [share] % of it in plugins
    ");
    assert_snapshot!(bench.says("pack verify run/evidence_pack --strict --profile ci --require-pass"), @r"
    exit: 0
    ----- stdout -----
    verified: every byte is as signed by sha256:[digest]; whether that is the right signer was not asked (--expected-fingerprint)
    ");
    // Nothing of the run's own folder names leaks machine paths into the pack.
    for (name, bytes) in files(&bench.path("run/evidence_pack")) {
        let root = text(&bench.path("")).trim_end_matches('/').to_string();
        assert!(
            !String::from_utf8_lossy(&bytes).contains(&root),
            "{name} names {root}"
        );
    }
}

#[test]
fn a_damaged_pack_of_a_run_is_refused() {
    let (bench, _) = passed();
    let copy = Bench::new();
    crate::support::copy(&bench.path("run/evidence_pack"), &copy.path("pack"));
    let table = files(&copy.path("pack"))
        .into_keys()
        .find(|name| name.contains("/tables/"))
        .expect("the pack holds tables");
    crate::support::flip(&copy.path("pack").join(table), 20);
    let output = copy
        .line("pack verify pack --strict --profile ci")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(6), "{}", copy.render(&output));
}

#[test]
fn events() {
    let bench = Bench::new();
    source(&bench);
    let line = format!(
        "run {SUITE} --scenario-ids fp8_e5m2_clean --preview 4 --final 4 --calibration-runs 1 --clean-runs 1 --profile dev \
         --events json --out run"
    );
    let output = bench.line(&line).output().unwrap();
    let lines = String::from_utf8(output.stderr.clone()).unwrap();
    // A verdict of FAIL adds no line of its own: the last event says it.
    let events: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    assert!(
        events
            .iter()
            .all(|event| event["version"] == 1 && event["event"].is_string()),
        "{lines}"
    );
    assert_eq!(events[0]["event"], "run_started");
    assert_eq!(events.last().unwrap()["event"], "run_finished");
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count() as u64;
    assert_eq!(Some(count("task_started")), events[0]["tasks"].as_u64());
    assert_eq!(count("task_started"), count("task_completed"));
}

/// At the demo's own size, plugins' code and their sandbox take no more than a fiftieth of the time.
#[test]
fn the_share_of_plugins() {
    let bench = Bench::new();
    source(&bench);
    let number = |call: &Value, key: &str| call[key].as_f64().unwrap();
    let run = |out: usize| -> (f64, Vec<Value>) {
        let line = format!(
            "run {SUITE} --scenario-ids quant_4bit_clean,nan_injection --calibration-runs 1 --clean-runs 1 --profile dev \
             --events json --out run{out}"
        );
        let output = bench.line(&line).output().unwrap();
        let lines = String::from_utf8(output.stderr.clone()).unwrap();
        let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert_eq!(last["event"], "run_finished", "{lines}");
        let calls = last["plugin_calls"].as_array().unwrap();
        let outside: f64 = calls
            .iter()
            .map(|call| number(call, "seconds") - number(call, "host_seconds"))
            .sum();
        let share = outside / number(&last, "seconds");
        println!("plugin calls outside kernels / whole run: {share:.4}");
        assert!((100.0 * share - number(&last, "plugin_percent")).abs() < 1e-6);
        (share, calls.clone())
    };
    // A call that waits for its turn on a busy machine counts in full, so the least of a few runs is what it takes.
    let mut runs = (0..3).map(run);
    let (mut share, calls) = runs.next().unwrap();
    while share >= 0.02
        && let Some((other, _)) = runs.next()
    {
        share = share.min(other);
    }
    assert!(share < 0.02, "{share}: {calls:#?}");
    // Every function is there, asked as often as it is needed: who it is once, to judge once per subject and for the
    // unedited model against itself.
    let times = |plugin: &str, call: &str| {
        let found = calls
            .iter()
            .find(|entry| entry["plugin"] == plugin && entry["call"] == call);
        found.map_or(0, |entry| entry["calls"].as_u64().unwrap())
    };
    assert_eq!(times("primary-metric", "describe"), 1);
    assert_eq!(times("primary-metric", "judge"), 3);
    assert_eq!(times("quant-rtn", "plan"), 1);
    assert_eq!(times("structural-faults", "inject"), 1);
}

#[test]
fn quiet_is_quiet() {
    let (bench, _turn) = finished_alone();
    assert_snapshot!(bench.says(&format!("{} --resume --events quiet", small("run"))), @r"
    exit: 10
    ----- stdout -----
    FAIL run/evidence_pack
    ");
}

#[test]
fn resuming_a_finished_run_does_nothing() {
    let (bench, _turn) = finished_alone();
    let before = files(&bench.path("run/reports"));
    assert_snapshot!(bench.says(&format!("{} --resume", small("run"))), @r"
    exit: 10
    ----- stdout -----
    FAIL run/evidence_pack
    ----- stderr -----
    resuming suite demo in run: 18 of 18 tasks are done
    verdict FAIL: 18 tasks done, 0 failed, 0 blocked in [time] s, [share] % of it in plugins
    ");
    assert_eq!(files(&bench.path("run/reports")), before);
}

#[test]
fn what_a_run_began_with_cannot_change() {
    let (bench, _turn) = finished_alone();
    assert_snapshot!(bench.says(&format!("{} --resume --seed 7", small("run"))), @r"
    exit: 2
    ----- stderr -----
    error: failed to resume: `seed` was 42 when the run began and is 7 now; use the same settings or start a new run
    ");
    assert_snapshot!(bench.says(&small("run")), @r"
    exit: 15
    ----- stderr -----
    error: failed to start a run in run: it exists; choose another folder, or go on with --resume
    ");
    assert_snapshot!(bench.says(&format!("{} --resume", small("other"))), @r"
    exit: 3
    ----- stderr -----
    error: failed to resume a run in other: there is none; start one without --resume
    ");
}

#[test]
fn the_same_request_gives_the_same_bytes_for_any_number_of_threads_and_workers() {
    let bench = Bench::new();
    source(&bench);
    for (out, threads, workers) in [("one", 1, 1), ("two", 2, 2)] {
        let line =
            format!("run {SUITE} {SMALL} --threads {threads} --workers {workers} --out {out}");
        let output = bench.line(&line).output().unwrap();
        assert_eq!(output.status.code(), Some(10), "{}", bench.render(&output));
        assert_eq!(
            differences(&bench.path(out), &finished().path("run")),
            Vec::<String>::new(),
            "{out}"
        );
    }
}

#[test]
fn another_seed_draws_other_windows() {
    let bench = Bench::new();
    source(&bench);
    let line = format!("{} --seed 7", small("run"));
    let output = bench.line(&line).output().unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", bench.render(&output));
    assert!(!differences(&bench.path("run"), &finished().path("run")).is_empty());
}

/// A manifest in which heavy pruning must pass.
fn impossible(bench: &Bench) {
    let mut manifest = json(&crate::support::repository().join("scenarios/demo/scenarios.json"));
    let scenarios = manifest["scenarios"].as_array_mut().unwrap();
    let clean = scenarios
        .iter()
        .find(|scenario| scenario["id"] == "prune_clean")
        .unwrap()
        .clone();
    *scenarios = vec![clean];
    scenarios[0]["id"] = "prune_half".into();
    scenarios[0]["generation"] = serde_json::json!({"kind": "edit", "edit_spec": "magnitude_prune:0.5:ffn", "version": "clean"});
    bench.write("scenarios.json", manifest.to_string());
}

#[test]
fn a_verdict_of_fail() {
    let bench = Bench::new();
    source(&bench);
    impossible(&bench);
    let line = format!(
        "run {SUITE} --scenarios scenarios.json --preview 40 --final 40 --calibration-runs 1 --clean-runs 1 --profile dev --workers 1"
    );
    assert_snapshot!(bench.says(&format!("{line} --out run")), @r"
    exit: 10
    ----- stdout -----
    FAIL run/evidence_pack
    ----- stderr -----
    running suite demo in run: 9 tasks
    [time] s  packhost/demo: opened, 1443456 parameters
    [time] s  calibration run 1, seed 42: drift 0.9895
    [time] s  preset derived from 1 calibration runs
    [time] s  prune_half                         run 1  ratio 1.2204       fail: primary-metric, distribution-shift; warn: spectral, weight-shift, activation-shift
    [time] s  verdict FAIL (clean_all_pass)
    [time] s  sealed 39 files in run/evidence_pack, signed by sha256:[digest]; warning: `reports/packhost__demo/prune_half/run_1/evaluation.report.json` does not verify: meta.model_profile.cert_lints[2] does not hold: validation.primary_metric_acceptable must be true.
    verdict FAIL: 9 tasks done, 0 failed, 0 blocked in [time] s, [share] % of it in plugins
    ");
    assert!(bench.path("run/evidence_pack/manifest.json").is_file());
    assert_snapshot!(bench.says(&format!("{line} --require-pass --out strict")), @r"
    exit: 10
    ----- stdout -----
    FAIL
    ----- stderr -----
    running suite demo in strict: 9 tasks
    [time] s  packhost/demo: opened, 1443456 parameters
    [time] s  calibration run 1, seed 42: drift 0.9895
    [time] s  preset derived from 1 calibration runs
    [time] s  prune_half                         run 1  ratio 1.2204       fail: primary-metric, distribution-shift; warn: spectral, weight-shift, activation-shift
    [time] s  verdict FAIL (clean_all_pass)
    verdict FAIL: 8 tasks done, 0 failed, 0 blocked in [time] s, [share] % of it in plugins
    error: the verdict is FAIL and a PASS is required (--require-pass), so nothing was sealed; strict/reports/final_verdict.json says what failed
    hint: to seal the evidence all the same, go on with --resume and without --require-pass
    ");
    assert!(!bench.path("strict/evidence_pack").exists());
}

#[test]
fn calibration_and_the_rest_in_two_steps() {
    let bench = Bench::new();
    source(&bench);
    assert_snapshot!(bench.says(&format!("{} --calibrate-only", small("run"))), @r"
    exit: 0
    ----- stdout -----
    calibrated run
    ----- stderr -----
    running suite demo in run: 18 tasks
    [time] s  packhost/demo: opened, 1443456 parameters
    [time] s  calibration run 1, seed 42: drift 1.0113
    [time] s  calibration run 2, seed 43: drift 0.9818
    [time] s  preset derived from 2 calibration runs
    verdict none: 4 tasks done, 0 failed, 0 blocked in [time] s, [share] % of it in plugins
    ");
    assert!(!bench.path("run/evidence_pack").exists());
    let output = bench
        .line(&format!("{} --run-only", small("run")))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", bench.render(&output));
    assert_eq!(
        differences(&bench.path("run"), &finished().path("run")),
        Vec::<String>::new()
    );
}

#[test]
fn a_source_that_cannot_be_named_is_found_out_before_the_work() {
    let bench = Bench::new();
    assert_snapshot!(bench.says(&small("run")), @r"
    exit: 4
    ----- stderr -----
    error: the source repository cannot be recorded: Git gives nothing (`git rev-parse HEAD` failed: fatal: not a git repository (or any of the parent directories): .git), and the marker file `[DIR]/GPU_RUN_SOURCE.txt` cannot be read (No such file or directory (os error 2)); run inside a Git checkout with a commit, or write that file with a line `source_commit=<40 hex digits>`
    ");
    assert!(!bench.path("run").exists());
}

#[test]
fn a_scenario_that_cannot_be_made_is_found_out_before_the_work() {
    let bench = Bench::new();
    source(&bench);
    for plugin in ["guards/invariants", "guards/primary-metric", "edits/fp8"] {
        bench.plugin(plugin);
    }
    let run = small("run").replace("[REPO]/plugins", "plugins");
    assert_snapshot!(bench.says(&run), @r"
    exit: 13
    ----- stderr -----
    error: scenario `prune_50pct_stress` cannot be run: plugins: no edit plugin serves type `magnitude_prune`; served: fp8_quant
    hint: install a plugin that serves it, or name the folder that holds one with `--plugins`; in a checkout, `cargo xtask components` builds the first-party ones; --scenario-ids chooses the scenarios of a run
    ");
    let plan = format!("plan {SUITE} --scenario-ids fp8_e5m2_clean,prune_50pct_stress")
        .replace("[REPO]/plugins", "plugins");
    assert_snapshot!(bench.says(&plan), @r"
    exit: 13
    ----- stderr -----
    error: scenario `prune_50pct_stress` cannot be run: plugins: no edit plugin serves type `magnitude_prune`; served: fp8_quant
    hint: install a plugin that serves it, or name the folder that holds one with `--plugins`; in a checkout, `cargo xtask components` builds the first-party ones; --scenario-ids chooses the scenarios of a run
    ");
    let fault = run.replace("fp8_e5m2_clean,prune_50pct_stress,", "fp8_e5m2_clean,");
    assert_snapshot!(bench.says(&fault), @r"
    exit: 13
    ----- stderr -----
    error: scenario `nan_injection` cannot be run: plugins: no injection plugin serves type `nan_injection`; served: none
    hint: install a plugin that serves it, or name the folder that holds one with `--plugins`; in a checkout, `cargo xtask components` builds the first-party ones; --scenario-ids chooses the scenarios of a run
    ");
    // A scenario that is not evaluated needs no plugin.
    let unused = bench.says(&format!("{plan} --stress-runs 0"));
    assert!(unused.starts_with("exit: 0\n"), "{unused}");
    // Neither does a specification without sense wait for its turn.
    let mut manifest = json(&crate::support::repository().join("scenarios/demo/scenarios.json"));
    for scenario in manifest["scenarios"].as_array_mut().unwrap() {
        if scenario["id"] == "fp8_e5m2_clean" {
            scenario["generation"]["edit_spec"] = "fp8_quant:e6m1:ffn".into();
        }
    }
    bench.write("scenarios.json", manifest.to_string());
    assert_snapshot!(bench.says(&format!("{run} --scenarios scenarios.json")), @r"
    exit: 17
    ----- stderr -----
    error: scenario `fp8_e5m2_clean` cannot be run: failed to resolve edit `fp8_quant:e6m1:ffn`: invalid, invalid_fp_format
    hint: write fp8_quant:FORMAT:SCOPE, such as fp8_quant:e5m2:ffn; FORMAT is e4m3 or e5m2 (also with fn or fnuz), or f16; --scenario-ids chooses the scenarios of a run
    ");
    assert!(!bench.path("run").exists());
}

/// A detector that looks at movement sees the baseline's own report on the same windows.
#[test]
fn the_verdict_compares_with_the_baselines_own_report() {
    let bench = Bench::new();
    source(&bench);
    let mut manifest = json(&crate::support::repository().join("scenarios/demo/scenarios.json"));
    let scenarios = manifest["scenarios"].as_array_mut().unwrap();
    scenarios.retain(|scenario| scenario["id"] == "prune_50pct_stress");
    scenarios[0]["strictness"] = "must_detect".into();
    // A stress scenario decides by its detectors when its guard is required.
    scenarios[0]["requirements"] = serde_json::json!({
        "primary_guard_required": true,
        "detectors_any_of": [{"kind": "guard_signal_baseline_relative", "guard": "primary_metric"}]
    });
    bench.write("scenarios.json", manifest.to_string());
    let run = |out: &str, windows: u32| {
        let line = format!(
            "run {SUITE} --scenarios scenarios.json --preview {windows} --final {windows} --calibration-runs 1 --stress-runs 2 \
             --profile dev --events quiet --out {out}"
        );
        let output = bench.line(&line).output().unwrap();
        assert!(
            output
                .status
                .code()
                .is_some_and(|code| code == 0 || code == 10),
            "{}",
            bench.render(&output)
        );
        // One seed is a calibration run's, the other is measured for its report.
        for seed in [42, 43] {
            let path = format!("packhost__demo/baseline_reports/seed_{seed}/baseline_report.json");
            let report = json(&bench.path(out).join(&path));
            assert_eq!(report["edit"]["name"], "noop", "{report}");
            assert_eq!(report["primary_metric"]["ratio_vs_baseline"], 1.0);
            let packed = format!(
                "evidence_pack/metadata/packhost/baseline_reports/packhost__demo/seed_{seed}.json"
            );
            assert_eq!(json(&bench.path(out).join(packed)), report);
            assert!(
                bench
                    .path(out)
                    .join(format!("packhost__demo/tables/baseline/seed_{seed}.json"))
                    .is_file()
            );
        }
        let verdict = json(&bench.path(out).join("reports/final_verdict.json"));
        verdict["verdict"].clone()
    };
    assert_eq!(run("full", 200), "PASS");
    // On little text the unedited model misses the token floor as well, so what the subject shows is no movement.
    assert_eq!(run("little", 10), "FAIL");
}

#[test]
fn the_journal_tells_of_each_task_once() {
    let journal = fs::read_to_string(finished().path("run/state/journal.jsonl")).unwrap();
    let completed = crate::interrupted::completions(&journal);
    assert!(
        completed.len() > 10 && completed.values().all(|&count| count == 1),
        "{completed:?}"
    );
}
