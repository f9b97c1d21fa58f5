//! Texts that cannot be measured on.

use insta::assert_snapshot;

use crate::support::Bench;

/// Compares the demo model with itself on `dataset`.
fn evaluate(bench: &Bench, more: &str) -> String {
    let said = bench.says(&format!(
        "evaluate --baseline [REPO]/scenarios/demo/model --subject [REPO]/scenarios/demo/model \
         --plugins [REPO]/plugins --out report {more}"
    ));
    assert!(!bench.path("report/evaluation.report.json").exists());
    said
}

#[test]
fn absent_file() {
    assert_snapshot!(evaluate(&Bench::new(), "--dataset text.jsonl"), @r"
    exit: 3
    ----- stderr -----
    error: text.jsonl: cannot be read: No such file or directory (os error 2)
    ");
}

#[test]
fn empty_data_sets() {
    let bench = Bench::new();
    bench.write("text.jsonl", "");
    bench.write("blank.jsonl", "\n{\"text\": \"  \"}\n\n");
    bench.write("text.txt", " \n");
    assert_snapshot!(evaluate(&bench, "--dataset text.jsonl"), @r"
    exit: 16
    ----- stderr -----
    error: text.jsonl: the data set is empty: 0 lines, none with text; give a file with at least as many texts as windows are asked for
    ");
    assert_snapshot!(evaluate(&bench, "--dataset blank.jsonl"), @r"
    exit: 16
    ----- stderr -----
    error: blank.jsonl: the data set is empty: 3 lines, none with text; give a file with at least as many texts as windows are asked for
    ");
    assert_snapshot!(evaluate(&bench, "--dataset text.txt"), @r"
    exit: 16
    ----- stderr -----
    error: text.txt: the data set is empty: 1 lines, none with text; give a file with at least as many texts as windows are asked for
    ");
}

#[test]
fn too_few_windows() {
    let bench = Bench::new();
    bench.write(
        "text.jsonl",
        "{\"text\": \"The potter keeps 20 green bells.\"}\n{\"text\": \"The potter keeps 20 green bells.\"}\n{\"text\": \"Ida is a smith.\"}\n",
    );
    assert_snapshot!(evaluate(&bench, "--dataset text.jsonl --preview 4 --final 4"), @r"
    exit: 16
    ----- stderr -----
    error: too few windows: 4 preview and 4 final were asked for, but of 3 texts only 2 can be used (0 are shorter than two tokens, 1 repeat another); ask for fewer windows or give more text
    ");
    assert_snapshot!(evaluate(&bench, "--dataset text.jsonl --preview 0 --final 0"), @r"
    exit: 17
    ----- stderr -----
    error: window plan: both arms need windows, but preview is 0 and final is 0
    ");
}

#[test]
fn lines_that_are_not_json() {
    let bench = Bench::new();
    bench.write("text.jsonl", "{\"text\": \"one\"}\n{\"text\": \n");
    assert_snapshot!(evaluate(&bench, "--dataset text.jsonl"), @r"
    exit: 4
    ----- stderr -----
    error: text.jsonl: line 2: is not JSON: EOF while parsing a value at line 1 column 9
    ");
    bench.write("text.jsonl", b"{\"text\": \"\xff\"}\n");
    assert_snapshot!(evaluate(&bench, "--dataset text.jsonl"), @r"
    exit: 4
    ----- stderr -----
    error: text.jsonl: line 1: is not UTF-8
    ");
}

#[test]
fn missing_field() {
    let bench = Bench::new();
    bench.write(
        "text.jsonl",
        "{\"text\": \"one\"}\n{\"content\": \"two\"}\n",
    );
    assert_snapshot!(evaluate(&bench, "--dataset text.jsonl"), @r"
    exit: 4
    ----- stderr -----
    error: text.jsonl: line 2: has no field `text` (it has: content)
    ");
    bench.write("number.jsonl", "{\"text\": 1}\n");
    assert_snapshot!(evaluate(&bench, "--dataset number.jsonl"), @r"
    exit: 4
    ----- stderr -----
    error: number.jsonl: line 1: field `text` is not text
    ");
}

#[test]
fn settings_that_make_no_sense() {
    let bench = Bench::new();
    let text = "--dataset [REPO]/scenarios/demo/eval.jsonl";
    assert_snapshot!(evaluate(&bench, &format!("{text} --selection backwards")), @r"
    exit: 2
    ----- stderr -----
    error: failed to draw windows by `backwards`; there are file_order, stratified and shuffled
    ");
    assert_snapshot!(evaluate(&bench, &format!("{text} --tier lenient")), @r"
    exit: 17
    ----- stderr -----
    error: policy: there is no tier `lenient`; use conservative, balanced or aggressive
    ");
    assert_snapshot!(evaluate(&bench, &format!("{text} --seq-len 1")), @r"
    exit: 17
    ----- stderr -----
    error: window plan: a window of 1 tokens has no loss; seq_len must be at least 2
    ");
}

#[test]
fn a_run_without_a_data_set() {
    let bench = Bench::new();
    let line = "run --suite subset --suites-file [REPO]/scenarios/suites.json --plugins [REPO]/plugins --out run";
    assert_snapshot!(bench.says(line), @r"
    exit: 2
    ----- stderr -----
    error: the suite brings no text of its own: name a data set with --dataset FILE
    ");
    assert!(!bench.path("run").exists());
}
