//! Honest plugins: what they see, what they give back, what it costs.

use std::time::Duration;

use packhost_plugin::{Fact, Level, LogLine, Row, Status, Step, TargetFacts, Value};
use packhost_tensor::DType;

use crate::{
    device::{Plain, apply, engine, info, load_edit, load_guard, model, target, tensor},
    guest::{edit, guard, strings},
};

#[test]
fn an_edit_plans_applies_and_summarises() {
    let plugin = load_edit(&engine(), &edit());
    assert_eq!(plugin.describe().id, "test-plugin");
    assert_eq!(plugin.describe().version, "0.1.0");
    let plan = plugin.plan("{}", &model()).unwrap();
    assert_eq!(plan.value, [target()]);
    let edited = apply(&plugin).unwrap();
    assert_eq!(edited.value.tensor.bytes(), tensor().bytes());
    let facts = vec![Fact {
        name: "relative-error".into(),
        value: 0.5,
    }];
    let summary = plugin
        .summarize(
            "{}",
            &[TargetFacts {
                tensor: "w".into(),
                facts,
            }],
        )
        .unwrap();
    assert_eq!(summary.value, "{}");
    // describe, plan, apply, summarize
    assert_eq!(plugin.totals().calls, 4);
}

#[test]
fn a_duplicate_shares_the_elements() {
    let plugin = load_edit(&engine(), &edit());
    let given = tensor();
    let edited = plugin
        .apply(&target(), &given, &info(), &Plain::default())
        .unwrap();
    assert_eq!(edited.value.tensor.bytes().as_ptr(), given.bytes().as_ptr());
}

#[test]
fn the_first_write_copies_and_leaves_the_lent_tensor_alone() {
    // Copy, then write 9 and 10 from element 1 on, then 11 at element 7.
    let body = r#"
        (local $copy i32)
        (local.set $copy (call $duplicate (local.get $tensor)))
        (call $write (local.get $copy) (i64.const 1) (i32.const 2048) (i32.const 2) (i32.const 64))
        (call $write (local.get $copy) (i64.const 7) (i32.const 2056) (i32.const 1) (i32.const 64))
        (call $ok (local.get $copy))"#;
    let data = r#"(data (i32.const 2048) "\00\00\10\41\00\00\20\41\00\00\30\41")"#;
    let plugin = load_edit(&engine(), &edit().on("apply", body).with(data));
    let given = tensor();
    let edited = plugin
        .apply(&target(), &given, &info(), &Plain::default())
        .unwrap()
        .value;
    assert_eq!(
        edited.tensor.to_f32(),
        [1.0, 9.0, 10.0, 4.0, 5.0, 6.0, 7.0, 11.0]
    );
    assert_eq!(given.to_f32(), tensor().to_f32());
}

#[test]
fn values_read_are_the_elements() {
    // Read elements 2..5 and write them back at 5..8 of a copy.
    let body = r#"
        (local $copy i32)
        (local.set $copy (call $duplicate (local.get $tensor)))
        (call $read (local.get $tensor) (i64.const 2) (i32.const 3) (i32.const 64))
        (call $write (local.get $copy) (i64.const 5) (i32.load (i32.const 68)) (i32.load (i32.const 72)) (i32.const 64))
        (call $ok (local.get $copy))"#;
    let plugin = load_edit(&engine(), &edit().on("apply", body));
    let edited = apply(&plugin).unwrap();
    assert_eq!(
        edited.value.tensor.to_f32(),
        [1.0, 2.0, 3.0, 4.0, 5.0, 3.0, 4.0, 5.0]
    );
    // duplicate, read, write
    assert_eq!(edited.stats.host_calls, 3);
}

#[test]
fn a_program_runs_on_the_device() {
    // compile [input(0), scalar(0), mul], then compute with scalar 3. An op is 16 bytes: its case, then its payload at 4.
    let data = r#"(data (i32.const 2048) "\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\01\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\05\00\00\00")
        (data (i32.const 2100) "\00\00\40\40")"#;
    let body = r#"
        (call $compile (i32.const 2048) (i32.const 3) (i32.const 64))
        (if (i32.load8_u (i32.const 64)) (then unreachable))
        (call $compute (local.get $tensor) (i32.load (i32.const 68)) (i32.const 0) (i32.const 0) (i32.const 2100) (i32.const 1)
          (i32.const 80))
        (if (i32.load8_u (i32.const 80)) (then unreachable))
        (call $ok (i32.load (i32.const 84)))"#;
    let plugin = load_edit(&engine(), &edit().on("apply", body).with(data));
    let edited = apply(&plugin).unwrap();
    assert_eq!(
        edited.value.tensor.to_f32(),
        [3.0, 6.0, 9.0, 12.0, 15.0, 18.0, 21.0, 24.0]
    );
}

#[test]
fn a_program_measures_on_the_device() {
    // compile [input(0), measure(sum)], then measure: a list of one f64 comes back, which is written into the tensor's copy.
    let data = r#"(data (i32.const 2048) "\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\17\00\00\00\03\00\00\00")
        (data (i32.const 2100) "\00\00\40\40")"#;
    let body = r#"
        (local $copy i32)
        (call $compile (i32.const 2048) (i32.const 2) (i32.const 64))
        (if (i32.load8_u (i32.const 64)) (then unreachable))
        (call $measure (local.get $tensor) (i32.load (i32.const 68)) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
          (i32.const 80))
        (if (i32.load8_u (i32.const 80)) (then unreachable))
        (if (i32.ne (i32.load (i32.const 88)) (i32.const 1)) (then unreachable))
        (f32.store (i32.const 2100) (f32.demote_f64 (f64.load (i32.load (i32.const 84)))))
        (local.set $copy (call $duplicate (local.get $tensor)))
        (call $write (local.get $copy) (i64.const 0) (i32.const 2100) (i32.const 1) (i32.const 80))
        (if (i32.load8_u (i32.const 80)) (then unreachable))
        (call $ok (local.get $copy))"#;
    let plugin = load_edit(&engine(), &edit().on("apply", body).with(data));
    let edited = apply(&plugin).unwrap();
    assert_eq!(
        edited.value.tensor.to_f32(),
        [36.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    );
}

#[test]
fn time_in_kernels_is_told_from_time_in_the_plugin() {
    let body = "(call $kth (local.get $tensor) (i64.const 1) (i32.const 64)) (call $ok (call $duplicate (local.get $tensor)))";
    let plugin = load_edit(&engine(), &edit().on("apply", body));
    let slow = Plain {
        slow: Duration::from_millis(80),
    };
    let stats = plugin
        .apply(&target(), &tensor(), &info(), &slow)
        .unwrap()
        .stats;
    assert!(stats.in_host >= slow.slow, "{stats:?}");
    assert!(
        stats.outside_host() < Duration::from_millis(60),
        "{stats:?}"
    );
    assert_eq!(stats.host_calls, 2);
}

#[test]
fn fuel_is_the_same_each_time() {
    let plugin = load_edit(&engine(), &edit());
    let fuel = |_| apply(&plugin).unwrap().stats.fuel;
    let burnt: Vec<u64> = (0..3).map(fuel).collect();
    assert!(
        burnt[0] > 0 && burnt.iter().all(|fuel| *fuel == burnt[0]),
        "{burnt:?}"
    );
}

#[test]
fn the_log_comes_back_in_lines_and_tame() {
    let text = "one\ntwo \u{1b}[31mred";
    let body = format!(
        "(call $log (i32.const 2) (i32.const {}) (i32.const {})) (call $ok (call $duplicate (local.get $tensor)))",
        2048 * 16,
        text.len()
    );
    let plugin = load_edit(
        &engine(),
        &edit().on("apply", &body).with(&strings(2048, &[text])),
    );
    let log = apply(&plugin).unwrap().log;
    let line = |message: &str| LogLine {
        level: Level::Warn,
        message: message.into(),
    };
    assert_eq!(log, [line("one"), line("two \u{fffd}[31mred")]);
}

#[test]
fn one_plugin_serves_many_threads() {
    let plugin = load_edit(&engine(), &edit());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(
                        apply(&plugin).unwrap().value.tensor.bytes(),
                        tensor().bytes()
                    );
                }
            });
        }
    });
    assert_eq!(plugin.totals().calls, 1 + 8 * 50);
}

#[test]
fn instances_do_not_remember() {
    // Counts its calls in a global; a second call that sees 1 traps.
    let body = r#"
        (if (global.get $seen) (then unreachable))
        (global.set $seen (i32.const 1))
        (call $ok (call $duplicate (local.get $tensor)))"#;
    let plugin = load_edit(
        &engine(),
        &edit()
            .on("apply", body)
            .with("(global $seen (mut i32) (i32.const 0))"),
    );
    for _ in 0..3 {
        apply(&plugin).unwrap();
    }
}

#[test]
fn a_guard_plans_judges_and_calibrates() {
    let plugin = load_guard(&engine(), &guard());
    assert!(plugin.plan("{}", &model()).unwrap().value.is_empty());
    assert!(
        plugin
            .probe("x", &tensor(), &info(), &Plain::default())
            .unwrap()
            .value
            .is_empty()
    );
    let rows = [
        Row {
            scope: "model".into(),
            quantity: "a".into(),
            value: Value::Number(1.0),
        },
        Row {
            scope: "final".into(),
            quantity: "b".into(),
            value: Value::Vector(vec![1.0, 2.0]),
        },
        Row {
            scope: "w".into(),
            quantity: "c".into(),
            value: Value::Text("BF16".into()),
        },
    ];
    let Step::Verdict(verdict) = plugin.judge("{}", &rows, &rows).unwrap().value else {
        panic!()
    };
    assert_eq!(verdict.status, Status::Pass);
    assert_eq!(verdict.details, "{}");
    assert_eq!(plugin.calibrate("{}", &[&rows, &rows]).unwrap().value, "{}");
}

#[test]
fn facts_about_a_result_follow_its_form() {
    // Converts to fp32 and asks the result for its info: dtype code 1 and shape 2 x 4 must be there. Then converts back.
    let body = r#"
        (call $convert (local.get $tensor) (i32.const 1) (i32.const 0) (i32.const 64))
        (call $info (i32.load (i32.const 68)) (i32.const 128))
        ;; name (8 bytes), shape (8), dtype, role
        (if (i32.ne (i32.load8_u (i32.const 144)) (i32.const 1)) (then unreachable))
        (if (i32.ne (i32.load (i32.const 140)) (i32.const 2)) (then unreachable))
        (if (i64.ne (i64.load offset=8 (i32.load (i32.const 136))) (i64.const 4)) (then unreachable))
        (call $convert (i32.load (i32.const 68)) (i32.const 3) (i32.const 0) (i32.const 64))
        (call $ok (i32.load (i32.const 68)))"#;
    let plugin = load_edit(&engine(), &edit().on("apply", body));
    let edited = apply(&plugin).unwrap();
    assert_eq!(edited.value.tensor.dtype(), DType::BF16);
}
