//! Answers against the rules of the interface.

use insta::assert_snapshot;
use packhost_plugin::Limits;

use crate::{
    device::{apply, engine, engine_with, load_edit, load_guard, model},
    guest::{ZEROS, edit, guard, strings},
};

/// `plan` answers `count` targets that begin at `at`.
fn plans_at(at: u32, count: u32, data: &str) -> String {
    let body = format!("(call $ok2 (i32.const {at}) (i32.const {count}))");
    let plugin = load_edit(
        &engine(),
        &edit().on("plan", &body).with(data).memory("1000"),
    );
    plugin.plan("{}", &model()).unwrap_err().to_string()
}

/// `plan` answers `count` targets that begin at 2048.
fn plans(count: u32, data: &str) -> String {
    plans_at(2048, count, data)
}

#[test]
fn the_same_target_twice() {
    assert_snapshot!(plans(2, &strings(2048, &["w", "{}", "w", "{}"])), @"test-plugin: plan: answered the same target twice: `w`");
}

#[test]
fn a_target_that_is_not_there() {
    assert_snapshot!(plans(1, &strings(2048, &["u", "{}"])), @"test-plugin: plan: answered a target that the model does not have: `u`");
}

#[test]
fn targets_without_a_name_or_with_a_bad_one() {
    assert_snapshot!(plans(1, &strings(2048, &["", "{}"])), @"test-plugin: plan: answered a target with an empty name");
    assert_snapshot!(plans(1, &strings(2048, &["a\nb", "{}"])), @r#"test-plugin: plan: answered a target with a name with control characters: "a\nb""#);
    assert_snapshot!(plans(1, &strings(2048, &[&"x".repeat(5000), "{}"])), @"test-plugin: plan: limit `name_bytes` exceeded: got 5000, limit 1024");
    assert_snapshot!(plans(1, &strings(2048, &["w", &" ".repeat(70_000)])), @"test-plugin: plan: limit `text_bytes` exceeded: got 70000, limit 65536");
}

#[test]
fn a_million_targets() {
    assert_snapshot!(plans_at(ZEROS, 1_000_000, ""), @"test-plugin: plan: limit `targets` exceeded: got 1000000, limit 200000");
}

#[test]
fn more_targets_than_may_pass() {
    assert_snapshot!(plans_at(ZEROS, 3_000_000, ""), @"test-plugin: plan: limit `transfer_bytes` exceeded: got 67108865, limit 67108864");
}

#[test]
fn few_targets_with_huge_overlapping_texts() {
    // A hundred targets, each with the same 10 MiB of parameters: 1 GiB if it were copied.
    let mut data = String::from("(data (i32.const 2048) \"");
    for _ in 0..100 {
        data.push_str(r"\00\44\00\00\01\00\00\00\00\00\20\00\00\00\a0\00");
    }
    data.push_str("\")");
    assert_snapshot!(plans(100, &data), @"test-plugin: plan: limit `transfer_bytes` exceeded: got 67108865, limit 67108864");
}

#[test]
fn a_result_of_another_shape() {
    let body = r#"
        (call $reshape (local.get $tensor) (i32.const 2048) (i32.const 2) (i32.const 64))
        (call $ok (i32.load (i32.const 68)))"#;
    // [4, 2]
    let data = r#"(data (i32.const 2048) "\04\00\00\00\00\00\00\00\02\00\00\00\00\00\00\00")"#;
    let plugin = load_edit(&engine(), &edit().on("apply", body).with(data));
    assert_snapshot!(apply(&plugin).unwrap_err(), @"test-plugin: apply of `w`: returned a tensor BF16 [4, 2], the target is BF16 [2, 4]");
}

#[test]
fn a_result_of_another_dtype() {
    let body = r#"
        (call $convert (local.get $tensor) (i32.const 1) (i32.const 0) (i32.const 64))
        (call $ok (i32.load (i32.const 68)))"#;
    let plugin = load_edit(&engine(), &edit().on("apply", body));
    assert_snapshot!(apply(&plugin).unwrap_err(), @"test-plugin: apply of `w`: returned a tensor F32 [2, 4], the target is BF16 [2, 4]");
}

/// `apply` answers the tensor with `count` facts that begin at `at`.
fn facts(at: u32, count: u32, data: &str) -> String {
    let body = format!(
        "(drop (call $ok (call $duplicate (local.get $tensor))))
         (i32.store (i32.const 24) (i32.const {at})) (i32.store (i32.const 28) (i32.const {count})) (i32.const 16)"
    );
    let plugin = load_edit(
        &engine(),
        &edit().on("apply", &body).with(data).memory("40"),
    );
    apply(&plugin).unwrap_err().to_string()
}

#[test]
fn too_many_facts_and_facts_twice() {
    assert_snapshot!(facts(ZEROS, 1000, ""), @"test-plugin: apply of `w`: limit `facts` exceeded: got 1000, limit 64");
    // Two facts named by the letter at 1088 * 16, value 0. A fact is 16 bytes.
    let fact = r"\00\44\00\00\01\00\00\00\00\00\00\00\00\00\00\00";
    assert_snapshot!(facts(2048, 2, &format!("(data (i32.const 2048) \"{fact}{fact}\")")), @"test-plugin: apply of `w`: answered the same fact twice: `w`");
}

/// `summarize` answers `text`.
fn summary(text: &str, limits: Limits) -> String {
    let body = format!(
        "(call $ok2 (i32.const {}) (i32.const {}))",
        2048 * 16,
        text.len()
    );
    let plugin = load_edit(
        &engine_with(limits),
        &edit().on("summarize", &body).with(&strings(2048, &[text])),
    );
    plugin.summarize("{}", &[]).unwrap_err().to_string()
}

#[test]
fn json_that_is_none_too_deep_or_too_long() {
    assert_snapshot!(summary("[1]", Limits::default()), @"test-plugin: summarize: answered a summary that cannot be used: not a JSON object: invalid type: sequence, expected a map at line 1 column 0");
    assert_snapshot!(summary("{\"a\": }", Limits::default()), @"test-plugin: summarize: answered a summary that cannot be used: not a JSON object: expected value at line 1 column 7");
    let deep = "{\"a\":".repeat(100) + "1" + &"}".repeat(100);
    assert_snapshot!(summary(&deep, Limits::default()), @"test-plugin: summarize: limit `json_depth` exceeded: got 100, limit 64");
    assert_snapshot!(summary("{\"a\": 12}", Limits { json_bytes: 8, ..Limits::default() }), @"test-plugin: summarize: limit `json_bytes` exceeded: got 9, limit 8");
}

/// `judge` answers by `body`.
fn judges(body: &str, data: &str) -> String {
    let plugin = load_guard(&engine(), &guard().on("judge", body).with(data));
    plugin.judge("{}", &[], &[]).unwrap_err().to_string()
}

#[test]
fn steps_that_lead_nowhere() {
    // ok(measure([]))
    let body = r#"
        (i32.store8 (i32.const 16) (i32.const 0)) (i32.store8 (i32.const 20) (i32.const 1))
        (i64.store (i32.const 24) (i64.const 0)) (i32.const 16)"#;
    assert_snapshot!(judges(body, ""), @"test-plugin: judge: answered a step that asks for nothing more and gives no verdict");
}

#[test]
fn verdicts_against_the_rules() {
    let details =
        "(call $verdict (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2048) (i32.const 4))";
    assert_snapshot!(judges(details, "(data (i32.const 2048) \"null\")"), @"test-plugin: judge: answered details that cannot be used: not a JSON object: invalid type: null, expected a map at line 1 column 4");
    let findings = "(call $verdict (i32.const 2) (i32.const 2097152) (i32.const 20000) (i32.const 1104) (i32.const 2))";
    let plugin = load_guard(&engine(), &guard().on("judge", findings).memory("50"));
    assert_snapshot!(plugin.judge("{}", &[], &[]).unwrap_err(), @"test-plugin: judge: limit `findings` exceeded: got 20000, limit 10000");
}

#[test]
fn a_descriptor_against_the_rules() {
    let describe = |data: &str| {
        let guest = edit().on("describe", "(i32.const 2048)").with(data);
        engine()
            .load_bytes("test-plugin", &guest.build(), None)
            .err()
            .unwrap()
            .to_string()
    };
    assert_snapshot!(describe(&strings(2048, &["", "1", "t", "{}"])), @"test-plugin: describe: answered a descriptor's id with an empty name");
    assert_snapshot!(describe(&strings(2048, &["a", "1", "t", "true"])), @"test-plugin: describe: answered a parameter schema that cannot be used: not a JSON object: invalid type: boolean `true`, expected a map at line 1 column 4");
}
