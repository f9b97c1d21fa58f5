//! Guests that attack. Each must end in its own classified error, soon, and leave the engine and other plugins working.

use std::time::{Duration, Instant};

use insta::assert_snapshot;
use packhost_plugin::{CallErrorKind, Error, Limits};

use crate::{
    device::{
        Plain, apply, engine, engine_with, info, load_edit, load_guard, model, target, tensor,
        tight,
    },
    guest::{Guest, edit, guard, strings},
};

/// A call may end this long after its deadline.
const GRACE: Duration = Duration::from_secs(1);

/// Runs `apply` of `guest` under `limits` and returns its error; then shows that an honest plugin still works in the same
/// engine, and that the evil one can be called again.
fn fails_under(limits: Limits, guest: Guest) -> String {
    let engine = engine_with(limits);
    let honest = load_edit(&engine, &edit());
    let evil = load_edit(&engine, &guest);
    let first = apply(&evil)
        .expect_err("the attack did nothing")
        .to_string();
    assert!(apply(&honest).is_ok());
    assert!(apply(&evil).is_err());
    assert!(apply(&honest).is_ok());
    first
}

fn fails(guest: Guest) -> String {
    fails_under(tight(), guest)
}

/// Attacks in `apply`.
fn applying(body: &str) -> Guest {
    edit().on("apply", body)
}

/// Replaces the figures that depend on the clock.
fn redact(text: &str) -> String {
    let Some((start, rest)) = text.split_once("got ") else {
        return text.into();
    };
    let (_, end) = rest.split_once(',').unwrap();
    format!("{start}got [time],{end}")
}

#[test]
fn trap() {
    assert_snapshot!(fails(applying("(unreachable)")), @"test-plugin: apply of `w`: trapped: wasm `unreachable` instruction executed (in `apply`)");
}

#[test]
fn division_by_zero() {
    assert_snapshot!(fails(applying("(i32.div_u (i32.const 1) (i32.const 0))")), @"test-plugin: apply of `w`: trapped: integer divide by zero (in `apply`)");
}

#[test]
fn endless_loop_in_every_export_that_runs() {
    const SPIN: &str = "(loop (br 0)) (unreachable)";
    let engine = engine_with(tight());
    // By the call's own account: on a busy machine, compiling the guest takes its time too.
    let soon = |error: &Error| {
        let Error::Call(call) = error else {
            panic!("{error}")
        };
        assert!(
            call.stats.wall < tight().own_time + GRACE,
            "{:?}",
            call.stats
        );
    };
    let error = apply(&load_edit(&engine, &applying(SPIN))).unwrap_err();
    soon(&error);
    assert_snapshot!(redact(&error.to_string()), @"test-plugin: apply of `w`: limit `own_time` exceeded: got [time], limit 300 ms");
    let error = load_edit(&engine, &edit().on("plan", SPIN))
        .plan("{}", &model())
        .unwrap_err();
    soon(&error);
    assert_snapshot!(redact(&error.to_string()), @"test-plugin: plan: limit `own_time` exceeded: got [time], limit 300 ms");
    let error = load_guard(&engine, &guard().on("judge", SPIN))
        .judge("{}", &[], &[])
        .unwrap_err();
    soon(&error);
    assert_snapshot!(redact(&error.to_string()), @"test-plugin: judge: limit `own_time` exceeded: got [time], limit 300 ms");

    // `describe` runs at load; so does a start function.
    let guest = edit().on("describe", "(loop (br 0)) (unreachable)");
    let error = engine
        .load_bytes("test-plugin", &guest.build(), None)
        .err()
        .unwrap();
    assert_snapshot!(redact(&error.to_string()), @"test-plugin: describe: limit `own_time` exceeded: got [time], limit 300 ms");
    let guest = edit().with("(func $spin (loop (br 0))) (start $spin)");
    let error = engine
        .load_bytes("test-plugin", &guest.build(), None)
        .err()
        .unwrap();
    assert_snapshot!(redact(&error.to_string()), @"test-plugin: describe: limit `own_time` exceeded: got [time], limit 300 ms");
}

#[test]
fn too_much_fuel() {
    let limits = Limits {
        fuel: 1_000_000,
        ..Limits::default()
    };
    assert_snapshot!(fails_under(limits, applying("(loop (br 0)) (unreachable)")), @"test-plugin: apply of `w`: limit `fuel` exceeded: got 1000001, limit 1000000");
}

#[test]
fn endless_recursion() {
    let guest = applying("(call $deep)")
        .with("(func $deep (result i32) (i32.add (call $deep) (i32.const 1)))");
    assert_snapshot!(fails(guest), @"test-plugin: apply of `w`: trapped: call stack exhausted (in `deep`)");
}

#[test]
fn memory_in_small_steps() {
    assert_snapshot!(fails(applying("(loop (drop (memory.grow (i32.const 16))) (br 0)) (unreachable)")), @"test-plugin: apply of `w`: limit `memory_bytes` exceeded: got 67698688, limit 67108864");
}

#[test]
fn memory_at_once() {
    assert_snapshot!(fails(applying("(drop (memory.grow (i32.const 60000))) (unreachable)")), @"test-plugin: apply of `w`: limit `memory_bytes` exceeded: got 3932749824, limit 67108864");
}

#[test]
fn memory_to_begin_with() {
    let guest = edit().memory("4000");
    let error = engine_with(tight())
        .load_bytes("test-plugin", &guest.build(), None)
        .err()
        .unwrap();
    assert_snapshot!(error, @"test-plugin: describe: limit `memory_bytes` exceeded: got 262144000, limit 67108864");
}

#[test]
fn tables_without_end() {
    let guest = applying(
        "(loop (drop (table.grow $t (ref.null func) (i32.const 10000))) (br 0)) (unreachable)",
    )
    .with("(table $t 1 funcref)");
    assert_snapshot!(fails(guest), @"test-plugin: apply of `w`: limit `table_elements` exceeded: got 200011, limit 200000");
}

#[test]
fn memory_out_of_bounds() {
    let text = fails(applying("(i32.load (i32.const -16))"));
    assert_snapshot!(text, @"test-plugin: apply of `w`: trapped: out of bounds memory access (in `apply`)");
}

#[test]
fn answer_out_of_bounds() {
    assert_snapshot!(fails(applying("(i32.const -16)")), @"test-plugin: apply of `w`: trapped: pointer out of bounds of memory");
}

#[test]
fn reading_out_of_bounds_is_a_failure_that_the_plugin_sees() {
    // The failure's text is what `read` left: pass it on.
    let body = r#"
        (call $read (local.get $tensor) (i64.const 7) (i32.const 2) (i32.const 64))
        (if (i32.eqz (i32.load8_u (i32.const 64))) (then unreachable))
        (call $fail (i32.load (i32.const 72)) (i32.load (i32.const 76)))"#;
    assert_snapshot!(fails(applying(body)), @"test-plugin: apply of `w`: read: 2 elements from 7 on are not inside a tensor of 8 elements");
    let overflow = body.replace("(i64.const 7)", "(i64.const -1)");
    assert_snapshot!(fails(applying(&overflow)), @"test-plugin: apply of `w`: read: 2 elements from 18446744073709551615 on are not inside a tensor of 8 elements");
}

#[test]
fn reading_four_billion_elements() {
    let body = "(call $read (local.get $tensor) (i64.const 0) (i32.const -1) (i32.const 64)) (unreachable)";
    assert_snapshot!(fails(applying(body)), @"test-plugin: apply of `w`: limit `transfer_bytes` exceeded: got 17179869180, limit 67108864");
}

#[test]
fn writing_to_a_lent_tensor() {
    let body = r#"
        (call $write (local.get $tensor) (i64.const 0) (i32.const 2048) (i32.const 1) (i32.const 64))
        (if (i32.eqz (i32.load8_u (i32.const 64))) (then unreachable))
        (call $fail (i32.load (i32.const 72)) (i32.load (i32.const 76)))"#;
    assert_snapshot!(fails(applying(body)), @"test-plugin: apply of `w`: write: this tensor was lent for reading; duplicate it and write to the copy");
}

#[test]
fn writing_more_than_may_pass() {
    let limits = Limits {
        transfer_bytes: 1 << 20,
        ..tight()
    };
    let body = "(call $write (local.get $tensor) (i64.const 0) (i32.const 0) (i32.const 1000000) (i32.const 64)) (unreachable)";
    assert_snapshot!(fails_under(limits, applying(body).memory("100")), @"test-plugin: apply of `w`: limit `transfer_bytes` exceeded: got 1048577, limit 1048576");
}

#[test]
fn log_without_end() {
    let body =
        "(loop (call $log (i32.const 1) (i32.const 1024) (i32.const 100)) (br 0)) (unreachable)";
    let guest = applying(body).with(&strings(1200, &["x"]));
    assert_snapshot!(fails(guest), @"test-plugin: apply of `w`: limit `log_bytes` exceeded: got 65600, limit 65536");
}

#[test]
fn log_of_empty_lines() {
    let text = "\n".repeat(50_000);
    let body = format!(
        "(call $log (i32.const 1) (i32.const {}) (i32.const 50000)) (unreachable)",
        3000 * 16
    );
    let guest = applying(&body).with(&strings(3000, &[&text])).memory("10");
    assert_snapshot!(fails(guest), @"test-plugin: apply of `w`: limit `log_bytes` exceeded: got 65552, limit 65536");
}

#[test]
fn handles_without_end() {
    let body = "(loop (drop (call $duplicate (local.get $tensor))) (br 0)) (unreachable)";
    assert_snapshot!(fails(applying(body)), @"test-plugin: apply of `w`: limit `handles` exceeded: got 4097, limit 4096");
}

#[test]
fn a_tensor_too_large() {
    // reshape to [2^20, 2^20]
    let body = "(call $reshape (local.get $tensor) (i32.const 2048) (i32.const 2) (i32.const 64)) (unreachable)";
    let data = r#"(data (i32.const 2048) "\00\00\10\00\00\00\00\00\00\00\10\00\00\00\00\00")"#;
    assert_snapshot!(fails(applying(body).with(data)), @"test-plugin: apply of `w`: limit `tensor_factor` exceeded: got 1099511627776 elements, limit 16777216 elements");
}

#[test]
fn large_tensors_in_number() {
    // Nine live tensors of eight times the floor's share each.
    let limits = Limits {
        tensor_floor: 64,
        tensor_factor: 8,
        ..tight()
    };
    let body = "(loop (drop (call $duplicate (local.get $tensor))) (br 0)) (unreachable)";
    assert_snapshot!(fails_under(limits, applying(body)), @"test-plugin: apply of `w`: limit `tensor_factor` exceeded: got 72 elements, limit 64 elements");
}

#[test]
fn dropping_gives_back() {
    let limits = Limits {
        tensor_floor: 8,
        tensor_factor: 1,
        handles: 1,
        ..Limits::default()
    };
    let engine = engine_with(limits);
    let body = r#"
        (local $count i32)
        (loop $again
          (call $drop_tensor (call $duplicate (local.get $tensor)))
          (local.set $count (i32.add (local.get $count) (i32.const 1)))
          (br_if $again (i32.lt_u (local.get $count) (i32.const 1000))))
        (call $ok (call $duplicate (local.get $tensor)))"#;
    assert!(apply(&load_edit(&engine, &applying(body))).is_ok());
}

#[test]
fn programs_without_end() {
    let body =
        "(loop (call $compile (i32.const 2048) (i32.const 1) (i32.const 64)) (br 0)) (unreachable)";
    assert_snapshot!(fails(applying(body)), @"test-plugin: apply of `w`: limit `programs` exceeded: got 257, limit 256");
}

#[test]
fn a_program_of_a_million_operations() {
    let body = r#"
        (call $compile (i32.const 2097152) (i32.const 1000000) (i32.const 64))
        (if (i32.eqz (i32.load8_u (i32.const 64))) (then unreachable))
        (call $fail (i32.load (i32.const 72)) (i32.load (i32.const 76)))"#;
    assert_snapshot!(fails(applying(body).memory("300")), @"test-plugin: apply of `w`: kernel program, operation 16: input(0) makes the stack deeper than 16");
}

#[test]
fn calls_of_the_host_without_end() {
    let limits = Limits {
        host_calls: 1000,
        ..tight()
    };
    let body =
        "(loop (call $kth (local.get $tensor) (i64.const 1) (i32.const 64)) (br 0)) (unreachable)";
    assert_snapshot!(fails_under(limits, applying(body)), @"test-plugin: apply of `w`: limit `host_calls` exceeded: got 1001, limit 1000");
}

#[test]
fn kernels_without_end_meet_the_deadline() {
    let limits = Limits {
        deadline: Duration::from_millis(200),
        ..tight()
    };
    let body =
        "(loop (call $kth (local.get $tensor) (i64.const 1) (i32.const 64)) (br 0)) (unreachable)";
    let plugin = load_edit(&engine_with(limits), &applying(body));
    let slow = Plain {
        slow: Duration::from_millis(30),
    };
    let begin = Instant::now();
    let error = plugin
        .apply(&target(), &tensor(), &info(), &slow)
        .unwrap_err();
    assert!(begin.elapsed() < Duration::from_millis(200) + GRACE);
    assert_snapshot!(redact(&error.to_string()), @"test-plugin: apply of `w`: limit `deadline` exceeded: got [time], limit 200 ms");
    let Error::Call(error) = error else { panic!() };
    assert!(
        error.stats.in_host >= Duration::from_millis(150),
        "{:?}",
        error.stats
    );
}

#[test]
fn time_in_kernels_is_not_the_plugins_own() {
    let limits = Limits {
        own_time: Duration::from_millis(100),
        ..Limits::default()
    };
    let body = "(call $kth (local.get $tensor) (i64.const 1) (i32.const 64)) (call $ok (call $duplicate (local.get $tensor)))";
    let plugin = load_edit(&engine_with(limits), &applying(body));
    let slow = Plain {
        slow: Duration::from_millis(400),
    };
    assert!(plugin.apply(&target(), &tensor(), &info(), &slow).is_ok());
}

#[test]
fn handles_that_are_not_there() {
    assert_snapshot!(fails(applying("(call $ok (i32.const 77))")), @"test-plugin: apply of `w`: trapped: unknown handle index 77");
    assert_snapshot!(fails(applying("(call $drop_tensor (i32.const 77)) (unreachable)")), @"test-plugin: apply of `w`: trapped: unknown handle index 77 (in `apply`)");
    // A lent handle cannot be returned as one's own.
    assert_snapshot!(fails(applying("(call $ok (local.get $tensor))")), @"test-plugin: apply of `w`: trapped: unknown handle index 1");
}

#[test]
fn an_answer_that_is_not_utf8() {
    let guest = applying("(call $fail (i32.const 2048) (i32.const 2))")
        .with(r#"(data (i32.const 2048) "\ff\fe")"#);
    assert_snapshot!(fails(guest), @"test-plugin: apply of `w`: trapped: invalid utf-8 sequence of 1 bytes from index 0");
}

#[test]
fn a_failure_with_a_long_text_is_cut() {
    let limits = Limits {
        text_bytes: 10,
        ..tight()
    };
    let body = "(call $fail (i32.const 32768) (i32.const 100))";
    let guest = applying(body).with(&strings(2048, &[&"x".repeat(100)]));
    assert_snapshot!(fails_under(limits, guest), @"test-plugin: apply of `w`: xxxxxxxxxx…");
}

#[test]
fn the_class_and_the_log_come_with_the_error() {
    let body = "(call $log (i32.const 0) (i32.const 1104) (i32.const 2)) (unreachable)";
    let plugin = load_edit(&engine(), &applying(body));
    let Err(Error::Call(error)) = apply(&plugin) else {
        panic!()
    };
    assert_eq!(error.kind.class().name(), "trap");
    assert!(matches!(error.kind, CallErrorKind::Trap(_)));
    assert_eq!(error.log[0].message, "{}");
    assert_eq!(error.subject.as_deref(), Some("w"));
    assert_eq!(plugin.totals().calls, 2);
}
