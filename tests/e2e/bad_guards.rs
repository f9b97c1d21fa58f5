//! Guards that ask for what nobody measures, never decide, or answer what is no verdict: the evaluation ends with their name
//! and leaves no report.

use insta::assert_snapshot;

use crate::guest::{self, Guest, strings};
use crate::support::Bench;

/// A step that asks for the requests at 2048.
const ASKS: &str = "(i32.store8 (i32.const 16) (i32.const 0)) (i32.store8 (i32.const 20) (i32.const 1)) \
                    (i32.store (i32.const 24) (i32.const 2048)) (i32.store (i32.const 28) (i32.const 1)) (i32.const 16)";

/// What an evaluation says that this guard takes part in.
fn judged_by(guard: &Guest) -> String {
    let bench = Bench::new();
    bench.plugin("guards/primary-metric");
    bench.write(
        "plugins/test/plugin.toml",
        "id = \"test-plugin\"\nkind = \"guard\"\nversion = \"0.1.0\"\ninterface = \"0.1.0\"\ntitle = \"A test plugin\"\n",
    );
    bench.write("plugins/test/component.wasm", guard.build());
    let said = bench.says(
        "evaluate --baseline [REPO]/scenarios/demo/model --subject [REPO]/scenarios/demo/model --dataset \
         [REPO]/scenarios/demo/eval.jsonl --preview 4 --final 4 --seq-len 32 --plugins plugins --out report",
    );
    let report = bench.path("report/evaluation.report.json").exists();
    assert_eq!(report, said.starts_with("exit: 0"), "{said}");
    said
}

/// A guard whose plan asks for one quantity.
fn planning(quantity: &str, scope: &str, params: &str) -> Guest {
    guest::guard()
        .with(&strings(2048, &[quantity, scope, params]))
        .on("plan", "(call $ok2 (i32.const 2048) (i32.const 1))")
}

#[test]
fn an_honest_guard_takes_part() {
    assert_snapshot!(judged_by(&planning("window.loss", "final", "")), @r"
    exit: 0
    ----- stdout -----
    perplexity: baseline 4.2592, subject 4.2592, ratio 1.000000 [1.000000, 1.000000]
    divergence: KL mean 0.000000, same top token 1.0000
    guards: fail: primary-metric
    report: report/evaluation.report.json
    ");
}

#[test]
fn asking_for_an_unknown_quantity() {
    assert_snapshot!(judged_by(&planning("weight.colour", "*", "")), @r"
    exit: 14
    ----- stderr -----
    error: guard test-plugin asks for quantity `weight.colour` of `*`, which is no statistic of a weight; they are weight.sigma.START.N, weight.frobenius_sq, weight.row_norms, weight.column_norms, weight.singular, weight.zeros, weight.shift, weight.overlap
    ");
}

#[test]
fn asking_with_parameters_that_nobody_can_read() {
    assert_snapshot!(judged_by(&planning("window.loss", "final", "{\"scale\": 3")), @r#"
    exit: 14
    ----- stderr -----
    error: guard test-plugin asks for quantity `window.loss` of `final`, which has no parameters, with `{"scale": 3`; leave them out
    "#);
}

#[test]
fn asking_for_an_unknown_quantity_in_a_further_round() {
    let guard = guest::guard()
        .with(&strings(2048, &["weight.colour", "*", ""]))
        .on("judge", ASKS);
    assert_snapshot!(judged_by(&guard), @r"
    exit: 14
    ----- stderr -----
    error: guard test-plugin asks for quantity `weight.colour` of `*`, which is no statistic of a weight; they are weight.sigma.START.N, weight.frobenius_sq, weight.row_norms, weight.column_norms, weight.singular, weight.zeros, weight.shift, weight.overlap
    ");
}

#[test]
fn never_deciding() {
    let guard = guest::guard()
        .with(&strings(2048, &["window.loss", "final", ""]))
        .on("judge", ASKS);
    assert_snapshot!(judged_by(&guard), @r"
    exit: 14
    ----- stderr -----
    error: failed to get a verdict from guard `test-plugin`: it asked for more 8 times and never decided
    ");
}

#[test]
fn details_that_are_no_json() {
    let details =
        "(call $verdict (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1104) (i32.const 1))";
    assert_snapshot!(judged_by(&guest::guard().on("judge", details)), @r"
    exit: 14
    ----- stderr -----
    error: test-plugin: judge: answered details that cannot be used: not a JSON object: EOF while parsing an object at line 1 column 1
    ");
}

#[test]
fn looping_while_judging() {
    let guard = guest::guard().on("judge", "(loop $again (br $again)) (i32.const 16)");
    assert_snapshot!(judged_by(&guard), @r"
    exit: 14
    ----- stderr -----
    error: test-plugin: judge: limit `own_time` exceeded: got [time] ms, limit 10000 ms
    hint: if the plugin can be trusted with more, raise `own_time`
    ");
}

#[test]
fn trapping_while_judging() {
    assert_snapshot!(judged_by(&guest::guard().on("judge", "(unreachable)")), @r"
    exit: 14
    ----- stderr -----
    error: test-plugin: judge: trapped: wasm `unreachable` instruction executed (in `judge`)
    hint: a panic's message is lost in the sandbox: return an error or write to the log instead
    ");
}
