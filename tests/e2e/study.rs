//! `packhost study`: a small study of the demo model, its page, and what it refuses.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use insta::assert_snapshot;
use serde_json::Value;

use crate::support::{Bench, files, json, text};

/// A study of a few scenarios: one of each kind.
const STUDY: &str = r#"{
  "schema": "packhost_study_v1", "title": "Small study",
  "runs": {"calibration": 3, "clean": 2, "stress": 1, "error": 1},
  "perturbation_seeds": [1001],
  "controls": [{"id": "quant_8bit", "edit_spec": "quant_rtn:8:128:ffn"}],
  "ladders": [
    {"id": "noise", "title": "Noise", "strength": "share of the norm", "strengths": [0.01, 0.3],
     "change": {"kind": "error", "error_type": "relative_noise", "setting": "INVARLOCK_GRADED_STRENGTH"},
     "repeats": [{"INVARLOCK_GRADED_SEED": 1}, {"INVARLOCK_GRADED_SEED": 2}]},
    {"id": "head", "title": "A head", "strength": "share", "strengths": [1.0],
     "change": {"kind": "error", "error_type": "head_fade", "setting": "INVARLOCK_GRADED_STRENGTH"},
     "repeats": [{"INVARLOCK_GRADED_TARGET_LAYERS": "2"}, {"INVARLOCK_GRADED_TARGET_LAYERS": "77"}]},
    {"id": "bits", "title": "Bits", "strength": "bits", "strengths": [8, 2],
     "change": {"kind": "edit", "edit_spec": "quant_rtn:{}:32:all"}}
  ]
}"#;

const LINE: &str = "study --model [REPO]/scenarios/demo/model --dataset [REPO]/scenarios/demo/eval.jsonl --plugins [REPO]/plugins \
                    --study study.json --preview 4 --final 4 --seq-len 48 --events quiet --out";

fn has_components() -> bool {
    let present = crate::support::repository()
        .join("plugins/errors/graded/component.wasm")
        .is_file();
    assert!(
        present || std::env::var("PACKHOST_COMPONENTS").as_deref() != Ok("require"),
        "the components are not built"
    );
    if !present {
        eprintln!("SKIPPED: the components are not built; run `cargo xtask components`");
    }
    present
}

/// One study that the tests look at: its folder, and what it printed.
fn studied() -> Option<&'static (PathBuf, String)> {
    static STUDIED: OnceLock<Option<(PathBuf, String)>> = OnceLock::new();
    let make = || {
        has_components().then(|| {
            let bench = Bench::shared("study");
            bench.write("study.json", STUDY);
            let output = bench.line(&format!("{LINE} one")).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{}", bench.render(&output));
            (bench.path("one"), String::from_utf8(output.stdout).unwrap())
        })
    };
    STUDIED.get_or_init(make).as_ref()
}

fn scenario<'a>(study: &'a Value, id: &str) -> &'a Value {
    let mut scenarios = study["scenarios"].as_array().unwrap().iter();
    scenarios.find(|scenario| scenario["id"] == id).unwrap()
}

#[test]
fn a_study_says_what_each_guard_sees() {
    let Some((out, printed)) = studied() else {
        return;
    };
    let study = json(&out.join("study.json"));
    assert_eq!(study["guards"].as_array().unwrap().len(), 8);
    // The unedited model is silent, in every run and for every guard, by the movement rule.
    let noop = scenario(&study, "noop");
    assert_eq!(noop["runs"].as_array().unwrap().len(), 2);
    for run in noop["runs"].as_array().unwrap() {
        assert_eq!(run["ratio"], 1.0);
        for answer in run["guards"].as_object().unwrap().values() {
            assert_eq!(answer["level"], "silent");
        }
    }
    // What destroys the model is damage; a weak fault is seen by our guards only.
    let level =
        |id: &str, guard: &str| scenario(&study, id)["runs"][0]["guards"][guard]["level"].clone();
    assert_eq!(level("bits.2.1", "primary-metric"), "damaged");
    assert_eq!(level("bits.2.1", "distribution-shift"), "damaged");
    assert_eq!(level("noise.0.01.1", "primary-metric"), "silent");
    assert_eq!(level("noise.0.01.1", "weight-shift"), "changed");
    assert_eq!(level("noise.0.3.1", "weight-shift"), "marked");
    // A layer that the model does not have.
    let absent = scenario(&study, "head.1.0.2");
    assert!(
        absent["inapplicable"]
            .as_str()
            .unwrap()
            .contains("nothing would be injected")
    );
    assert!(absent["runs"].as_array().unwrap().is_empty());
    let noise = &study["ladders"][0];
    assert_eq!(noise["smallest"]["weight-shift"]["changed"], 0.01);
    assert_eq!(noise["smallest"]["weight-shift"]["marked"], 0.3);
    assert_eq!(noise["steps"][0]["subjects"], 2);
    assert!(
        printed.contains("Smallest strength") && printed.contains("noise"),
        "{printed}"
    );
    // The reports that the figures come from are there.
    assert!(
        out.join("run/model/reports/quant_8bit/run_2/evaluation.report.json")
            .is_file()
    );
}

#[test]
fn a_study_is_the_same_every_time() {
    if studied().is_none() {
        return;
    }
    let (out, printed) = studied().unwrap();
    let bench = Bench::new();
    bench.write("study.json", STUDY);
    let output = bench
        .line(&format!("{LINE} two --threads 1 --workers 1"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", bench.render(&output));
    let (one, two) = (top(out), top(&bench.path("two")));
    assert!(one == two, "study.json or index.html differ");
    let tables = |text: &str| text.split("\nstudy: ").next().unwrap().to_owned();
    assert_eq!(
        tables(printed),
        tables(&String::from_utf8(output.stdout).unwrap())
    );
}

fn top(out: &Path) -> [Vec<u8>; 2] {
    ["study.json", "index.html"].map(|name| std::fs::read(out.join(name)).unwrap())
}

#[test]
fn the_page_is_whole_and_refers_to_nothing() {
    let Some((out, _)) = studied() else {
        return;
    };
    let html = std::fs::read_to_string(out.join("index.html")).unwrap();
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..Default::default()
    };
    let page = roxmltree::Document::parse_with_options(&html, options).unwrap();
    let drawings = page
        .descendants()
        .filter(|node| node.tag_name().name() == "svg")
        .count();
    // The matrix; for each of three ladders two of shares and one of costs; two of bars.
    assert_eq!(drawings, 1 + 3 * 3 + 2);
    for node in page.descendants().filter(roxmltree::Node::is_element) {
        assert_ne!(node.tag_name().name(), "script");
        for attribute in node.attributes() {
            let inside = attribute.value().starts_with('#');
            assert!(
                !["src", "href"].contains(&attribute.name()) || inside,
                "{}",
                attribute.value()
            );
        }
    }
    for section in ["scenarios", "false-alarms", "strength", "damage"] {
        assert!(
            page.descendants()
                .any(|node| node.attribute("id") == Some(section)),
            "{section}"
        );
    }
    assert!(!html.contains("NaN"));
    // Nothing about this machine.
    assert!(!html.contains(text(crate::support::repository())) && !html.contains(text(out)));
    assert!(!files(out).is_empty());
}

#[test]
fn what_cannot_be_studied_is_refused() {
    let bench = Bench::new();
    bench.write("study.json", STUDY);
    bench.write("full/file", "x");
    bench.write("bad.json", STUDY.replace("ladders", "laders"));
    let says = |line: &str| bench.says(line);
    assert_snapshot!(says(&LINE.replace("[REPO]/scenarios/demo/model", "nowhere").replace("--out", "--out out")), @r"
    exit: 3
    ----- stderr -----
    error: failed to open the checkpoint nowhere: there is no such folder
    ");
    assert_snapshot!(says(&format!("{} out", LINE.replace("eval.jsonl", "none.jsonl"))), @r"
    exit: 3
    ----- stderr -----
    error: [REPO]/scenarios/demo/none.jsonl: cannot be read: No such file or directory (os error 2)
    ");
    assert_snapshot!(says(&format!("{LINE} out --guards acme")), @r"
    exit: 13
    ----- stderr -----
    error: failed to find a plugin for guard `acme`; name the folder that holds it with --plugins
    ");
    assert_snapshot!(says(&format!("{LINE} full")), @r"
    exit: 15
    ----- stderr -----
    error: failed to write a study to full: it is not empty; choose another folder
    ");
    assert_snapshot!(says(&format!("{} out", LINE.replace("study.json", "bad.json"))), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the study bad.json: unknown field `laders`, expected one of `schema`, `title`, `manifest`, `suite`, `clean`, `perturbation_seeds`, `controls`, `ladders`, `runs` at line 6 column 10
    ");
    assert_snapshot!(says(&format!("{} out", LINE.replace("study.json", "none.json"))), @r"
    exit: 3
    ----- stderr -----
    error: failed to read the study none.json: No such file or directory (os error 2)
    ");
    assert!(!bench.path("out/study.json").exists());
}

#[test]
fn help() {
    assert_snapshot!(Bench::new().says("study --help"), @r"
    exit: 0
    ----- stdout -----
    Study the guards on a model: what each says of each scenario, false alarms, smallest detectable
    strength

    Usage: packhost study [OPTIONS] --model <DIR> --dataset <FILE> --out <DIR>

    Options:
          --model <DIR>         Folder of the checkpoint
          --model-id <ID>       Name of the model in the results [default: the folder's name]
          --dataset <FILE>      Text: a JSON-lines file (.jsonl) or plain text
          --text-field <NAME>   Field of a JSON line that holds the text [default: text]
          --out <DIR>           Folder for study.json, index.html and the run that they come from; it
                                must be absent or empty
          --study <FILE>        Scenarios and strengths [default: scenarios/study.json]
          --guards <ID,...>     Guards that judge; primary-metric always does [default: every installed
                                one]
          --preview <N>         Preview windows [default: 32]
          --final <N>           Final windows [default: 32]
          --seq-len <N>         Tokens per window at most [default: 512]
          --events <FORM>       What to write about progress on standard error: human (live on a
                                terminal, lines elsewhere), json (one JSON object per line), quiet
                                [default: human] [possible values: human, json, quiet]
          --seed <S>            Seed of the first run; run r uses seed + r - 1 [default: 42]
          --selection <HOW>     How windows are drawn: file_order, stratified or shuffled [default:
                                stratified]
          --tier <TIER>         Guard tier: conservative, balanced or aggressive [default: balanced]
          --profile <PROFILE>   Profile: dev, ci or release [default: dev]
          --plugins <DIR>       Folder with plugins [default: plugins]
          --locked              Refuse every plugin that plugins.lock in that folder does not pin
          --plugin-cache <DIR>  Folder for compiled components [default: the user's cache folder]
          --threads <N>         Threads for tensor work [default: one per core]
          --workers <N>         Tasks at once at most [default: 2]
      -h, --help                Print help
      -V, --version             Print version

    Example:
      packhost study --model models/base --dataset text.jsonl --plugins plugins --out study1
    ");
}
