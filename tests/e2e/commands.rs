//! The command line itself: help, tables, settings and their layers.

use insta::assert_snapshot;
use serde_json::Value;

use crate::support::Bench;

fn stdout(bench: &Bench, line: &str) -> String {
    let output = bench.line(line).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", bench.render(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help() {
    assert_snapshot!(Bench::new().says("--help"), @r"
    exit: 0
    ----- stdout -----
    Did this change to the weights damage the model, and can someone else check that?

    Usage: packhost [OPTIONS] <COMMAND>

    Commands:
      run          Run a suite: make every subject, measure and judge it, seal the evidence
      plan         Show what a run would do and the memory it needs, without loading or running anything
      edit         Apply one edit to a checkpoint and write the result as a checkpoint
      evaluate     Measure any checkpoint against a baseline on the same text and let the guards judge
      study        Study the guards on a model: what each says of each scenario, false alarms, smallest
                   detectable strength
      pack         Make, check and look into evidence packs
      report       Read packs on a terminal: what one says, what changed between two
      plugin       Look at plugins
      doctor       Say what this machine offers and what is missing
      completions  Print a completion script for a shell
      help         Print this message or the help of the given subcommand(s)

    Options:
          --events <FORM>  What to write about progress on standard error: human (live on a terminal,
                           lines elsewhere), json (one JSON object per line), quiet [default: human]
                           [possible values: human, json, quiet]
      -h, --help           Print help
      -V, --version        Print version

    Results go to standard output, everything else to standard error.
    Exit codes are listed by `packhost doctor --exit-codes`.
    ");
}

#[test]
fn every_command_shows_an_example() {
    let bench = Bench::new();
    for command in [
        "run",
        "plan",
        "edit",
        "evaluate",
        "study",
        "doctor",
        "completions",
        "pack keygen",
        "pack build",
        "pack verify",
        "pack inspect",
        "plugin list",
        "plugin inspect",
        "plugin lock",
    ] {
        let help = stdout(&bench, &format!("{command} --help"));
        let example = help
            .split_once("Example:\n")
            .map(|(_, example)| example.trim());
        let example = example.unwrap_or_else(|| panic!("{command}: {help}"));
        assert!(
            example.starts_with(&format!("packhost {command}")),
            "{example}"
        );
    }
}

#[test]
fn wrong_command_lines() {
    let bench = Bench::new();
    assert_snapshot!(bench.says("edit model --speck x"), @r"
    exit: 2
    ----- stderr -----
    error: unexpected argument '--speck' found

      tip: a similar argument exists: '--spec'

    Usage: packhost edit --spec <SPEC> --out <DIR> <MODEL>

    For more information, try '--help'.
    ");
    assert_snapshot!(bench.says("bake"), @r"
    exit: 2
    ----- stderr -----
    error: unrecognized subcommand 'bake'

    Usage: packhost [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
    assert_snapshot!(bench.says("edit model"), @r"
    exit: 2
    ----- stderr -----
    error: the following required arguments were not provided:
      --spec <SPEC>
      --out <DIR>

    Usage: packhost edit --spec <SPEC> --out <DIR> <MODEL>

    For more information, try '--help'.
    ");
    assert_snapshot!(bench.says("plan --preview many"), @r"
    exit: 2
    ----- stderr -----
    error: invalid value 'many' for '--preview <N>': invalid digit found in string

    For more information, try '--help'.
    ");
}

#[test]
fn exit_codes() {
    assert_snapshot!(Bench::new().says("doctor --exit-codes"), @r"
    exit: 0
    ----- stdout -----
       0  Done; for `run`, the verdict is PASS.
       1  A defect in packhost itself. Please report it.
       2  The command line, the configuration or the environment is wrong.
       3  A file or folder that was named, by an option or a setting, is not there.
       4  An input is there but malformed: checkpoint, manifest, data set, configuration of a model.
       5  A signature or key is absent, malformed, wrong or not trusted.
       6  Bytes are not the ones that a digest promised.
       7  A report in a pack does not hold.
      10  The run ended and its verdict is FAIL; with `--require-pass` nothing was sealed.
      11  Tasks failed; the rest is done and `--resume` goes on from there.
      12  The run does not fit this machine.
      13  A plugin is absent, is not what it says, or was built for another interface.
      14  A plugin trapped, exceeded a limit or answered wrongly.
      15  The output exists, cannot be written or the disk is full.
      16  The data set is empty or has too few windows or tokens.
      17  A parameter of an edit, a fault or a guard is wrong.
      18  The subject of `evaluate` cannot be run; the report, a structural failure, was written.
      19  What a pack claims does not follow from the measurements and guards that it holds.
      20  What a pack says was measured is not what measuring it again gives.
     130  Interrupted by a signal; the run can be resumed.
    ");
}

#[test]
fn settings_are_listed_with_their_variables() {
    let text = stdout(&Bench::new(), "doctor --settings");
    for name in [
        "PACK_SUITE",
        "PACK_OUTPUT_DIR",
        "PACK_SCENARIO_IDS",
        "CLEAN_EDIT_RUNS",
        "DRIFT_CALIBRATION_RUNS",
        "INVARLOCK_TIER",
        "PACK_SIGNING_KEY",
        "PACKHOST_PLUGINS",
    ] {
        assert!(text.contains(name), "{name}: {text}");
    }
}

#[test]
fn doctor_names_what_the_machine_has() {
    let text = stdout(&Bench::new(), "doctor");
    assert!(text.starts_with("packhost "), "{text}");
    for line in [
        "cores: ",
        "matrix tiles: ",
        "plugin interface: packhost:plugin@",
        "tensor device: cpu",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&Bench::new(), &format!("completions {shell}"));
        assert!(
            script.contains("packhost") && script.contains("evaluate"),
            "{shell}"
        );
    }
}

#[test]
fn plugin_list() {
    let bench = Bench::new();
    let text = stdout(&bench, "plugin list --plugins [REPO]/plugins");
    for id in [
        "quant-rtn",
        "fp8",
        "magnitude-prune",
        "lowrank-svd",
        "invariants",
        "primary-metric",
    ] {
        assert!(text.contains(id), "{text}");
    }
    let json: Value = serde_json::from_str(&stdout(
        &bench,
        "plugin list --plugins [REPO]/plugins --json",
    ))
    .unwrap();
    assert_eq!(json["version"], 1);
    let plugins = json["plugins"].as_array().unwrap();
    assert_eq!(plugins.len(), text.lines().count());
    assert!(
        plugins
            .iter()
            .all(|plugin| plugin["sha256"].as_str().unwrap().len() == 64)
    );
}

#[test]
fn plugin_inspect() {
    let bench = Bench::new();
    let json: Value = serde_json::from_str(&stdout(
        &bench,
        "plugin inspect quant-rtn --plugins [REPO]/plugins",
    ))
    .unwrap();
    assert_eq!(json["kind"], "edit");
    assert!(json["schema"]["properties"]["bits"].is_object(), "{json}");
    assert_snapshot!(bench.says("plugin inspect quant-rtm --plugins [REPO]/plugins"), @r"
    exit: 13
    ----- stderr -----
    error: there is no plugin `quant-rtm`; there are activation-shift, collapse-faults, distribution-shift, fp8, graded-faults, invariants, lowrank-svd, magnitude-prune, primary-metric, quant-rtn, rmt, rmt-faults, spectral, spectral-faults, structural-faults, variance, variance-faults, weight-shift
    ");
}

const PLAN: &str = "plan --suite demo --suites-file [REPO]/scenarios/suites.json --plugins [REPO]/plugins --scenario-ids \
                    quant_4bit_clean,nan_injection";

#[test]
fn plan() {
    let bench = Bench::new();
    assert_snapshot!(bench.says(PLAN), @r"
    exit: 0
    ----- stdout -----
    suite demo: 16 tasks

         3  CALIBRATION_RUN
         2  CLEANUP_SUBJECT
         2  CREATE_SUBJECT
         3  EVALUATE_SUBJECT
         1  GENERATE_PRESET
         1  PACK
         1  SETUP_BASELINE
         2  SETUP_EVALUATE_BASELINE_REPORT
         1  VERDICT

    model                                weights   subject  activations  peak of one worker
    packhost/demo                         2.9 MB    2.9 MB       8.4 MB            157.0 MB

    scenarios
      quant_4bit_clean
      nan_injection
    ");
    let json: Value = serde_json::from_str(&stdout(&bench, &format!("{PLAN} --json"))).unwrap();
    assert!(json["version"].is_number(), "{json}");
}

#[test]
fn wrong_suites_and_scenarios() {
    let bench = Bench::new();
    let suites = "--suites-file [REPO]/scenarios/suites.json --plugins [REPO]/plugins";
    assert_snapshot!(bench.says("plan --suite demo"), @r"
    exit: 3
    ----- stderr -----
    error: failed to read the suite file scenarios/suites.json: No such file or directory (os error 2)
    ");
    assert_snapshot!(bench.says(&format!("plan --suite demi {suites}")), @r"
    exit: 2
    ----- stderr -----
    error: failed to find suite `demi`; there are demo, full, showcase, subset, workshop3
    ");
    assert_snapshot!(bench.says(&format!("plan --suite demo {suites} --scenario-ids quant_5bit")), @r"
    exit: 2
    ----- stderr -----
    error: failed to find scenario `quant_5bit`; the manifest has quant_4bit_clean, fp8_e5m2_clean, prune_clean, svd_rank32_clean, prune_50pct_stress, svd_rank32_stress, quant_4bit_stress, fp8_e5m2_stress, nan_injection, inf_injection, shape_mismatch, missing_tensors, extreme_quant, scale_explosion, rank_collapse, norm_collapse, weight_tying_break, rmt_norm_noise, spectral_moderate_scale, ve_mlp_scale_skew, rmt_norm_noise_strong, spectral_moderate_scale_mlp, ve_mlp_scale_skew_up
    ");
    assert_snapshot!(bench.says(&format!("run --suite subset {suites} --dataset [REPO]/scenarios/demo/eval.jsonl --out run")), @r"
    exit: 3
    ----- stderr -----
    error: failed to find the checkpoint of model `mistralai/Mistral-7B-v0.1` at models/mistralai__mistral-7b-v01/baseline; fetch it there, or name its folder with --model-path `mistralai/Mistral-7B-v0.1`=DIR
    ");
    bench.write("scenarios.json", "{\"schema\": \"other\"}");
    assert_snapshot!(bench.says(&format!("plan --suite demo {suites} --scenarios scenarios.json")), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the scenario manifest scenarios.json: missing field `schema_version` at line 1 column 19
    ");
    assert!(!bench.path("run").exists());
}

#[test]
fn a_run_that_fits_no_memory() {
    let bench = Bench::new();
    let output = bench
        .line(&format!(
            "run {} --out run",
            PLAN.trim_start_matches("plan")
        ))
        .env("PACKHOST_MEMORY", "1000000")
        .output()
        .unwrap();
    assert_snapshot!(bench.render(&output), @r"
    exit: 12
    ----- stderr -----
    error: failed to fit the run into memory: 157.0 MB are needed and 1.0 MB are there
    hint: use fewer or shorter windows (--preview, --final, --seq-len) or fewer calibration runs, or free memory; what a run may use is the setting `memory` (PACKHOST_MEMORY), and `packhost plan` shows what it needs
    ");
    assert!(!bench.path("run").exists());
}

#[test]
fn unknown_settings_are_refused() {
    let bench = Bench::new();
    bench.write("packhost.toml", "suite = \"demo\"\nplugin = \"plugins\"\n");
    assert_snapshot!(bench.says("plugin list"), @r#"
    exit: 2
    ----- stderr -----
    error: failed to read packhost.toml: TOML parse error at line 2, column 1
      |
    2 | plugin = "plugins"
      | ^^^^^^
    unknown field `plugin`, expected one of `suite`, `suites_file`, `scenarios_file`, `scenario_ids`, `models`, `models_dir`, `plugins`, `locked`, `out`, `mode`, `tier`, `guards`, `dataset`, `dataset_file`, `text_field`, `selection`, `seq_len`, `preview`, `final_windows`, `seed`, `bootstrap`, `calibration_runs`, `clean_runs`, `stress_runs`, `errors`, `tuned_edit_params`, `preset`, `materialize`, `threads`, `matrix_tiles`, `workers`, `memory`, `plugin_cache`, `pack_dir`, `sign`, `signing_key`, `profile`, `report_assurance`, `require_pass`, `limits`
    "#);
    bench.write("packhost.toml", "[limits]\nown_tome = 1\n");
    assert_snapshot!(bench.says("plugin list"), @r"
    exit: 2
    ----- stderr -----
    error: failed to read packhost.toml: TOML parse error at line 2, column 1
      |
    2 | own_tome = 1
      | ^^^^^^^^
    unknown field `own_tome`, expected one of `own_time`, `deadline`, `fuel`, `memory_bytes`, `table_elements`, `instances`, `component_bytes`, `stack_bytes`, `host_calls`, `log_bytes`, `transfer_bytes`, `handles`, `tensor_factor`, `tensor_floor`, `draft_factor`, `programs`, `targets`, `facts`, `requests`, `findings`, `probe_values`, `name_bytes`, `text_bytes`, `json_bytes`, `json_depth`
    ");
    bench.write("packhost.toml", "seed = -1\n");
    assert_snapshot!(bench.says("plugin list"), @r"
    exit: 2
    ----- stderr -----
    error: failed to read packhost.toml: TOML parse error at line 1, column 8
      |
    1 | seed = -1
      |        ^^
    invalid value: integer `-1`, expected u64
    ");
    assert_snapshot!(bench.says("plan --config absent.toml"), @r"
    exit: 3
    ----- stderr -----
    error: failed to read absent.toml: No such file or directory (os error 2)
    ");
}

#[test]
fn variables_that_do_not_parse_are_named() {
    let bench = Bench::new();
    let output = bench
        .line("plugin list")
        .env("CLEAN_EDIT_RUNS", "three")
        .output()
        .unwrap();
    assert_snapshot!(bench.render(&output), @r"
    exit: 2
    ----- stderr -----
    error: environment variable CLEAN_EDIT_RUNS: `three` is not a whole number that is not negative
    ");
}

/// Flag before variable before file before default, shown by which absent folder is complained of.
#[test]
fn layers() {
    let bench = Bench::new();
    let complaint = |line: &str, variable: Option<&str>| {
        let mut command = bench.line(line);
        if let Some(value) = variable {
            command.env("PACKHOST_PLUGINS", value);
        }
        bench.render(&command.output().unwrap())
    };
    assert_snapshot!(complaint("plugin list", None), @r"
    exit: 3
    ----- stderr -----
    error: plugins: there is no such folder; plugins (edits, faults, guards) are looked for in it
    hint: name the folder with `--plugins`; in a checkout, `cargo xtask components` builds the first-party ones into `plugins`
    ");
    bench.write("packhost.toml", "plugins = \"from-file\"\n");
    assert!(complaint("plugin list", None).contains("from-file"));
    assert!(complaint("plugin list", Some("from-variable")).contains("from-variable"));
    assert!(
        complaint("plugin list --plugins from-flag", Some("from-variable")).contains("from-flag")
    );
}

#[test]
fn a_lock_that_is_absent() {
    let bench = Bench::new();
    bench.plugin("edits/fp8");
    assert_snapshot!(bench.says("plugin list --plugins plugins --locked"), @r"
    exit: 3
    ----- stderr -----
    error: plugins/plugins.lock: there is no such file; it pins the version and the bytes of each plugin, and `--locked` compares them
    hint: write one from the installed plugins with `packhost plugin lock`, or leave out `--locked`
    ");
}
