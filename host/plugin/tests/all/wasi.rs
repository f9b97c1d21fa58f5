//! WASI is there and empty.

use insta::assert_snapshot;
use packhost_plugin::Level;

use crate::{
    device::{apply, engine, load_edit},
    guest::{Guest, edit, wit},
};

/// The parts of WASI that these guests use, as a runtime would import them.
const WASI: &str = r#"
package wasi:io@0.2.6 {
  interface poll {
    resource pollable { block: func(); }
  }
  interface error { resource error; }
  interface streams {
    use error.{error};
    variant stream-error { last-operation-failed(error), closed }
    resource output-stream {
      blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
    }
  }
}
package wasi:clocks@0.2.6 {
  interface monotonic-clock {
    use wasi:io/poll@0.2.6.{pollable};
    now: func() -> u64;
    subscribe-duration: func(when: u64) -> pollable;
  }
}
package wasi:random@0.2.6 {
  interface random { get-random-u64: func() -> u64; }
}
package wasi:cli@0.2.6 {
  interface environment {
    get-environment: func() -> list<tuple<string, string>>;
    get-arguments: func() -> list<string>;
  }
  interface stdout {
    use wasi:io/streams@0.2.6.{output-stream};
    get-stdout: func() -> output-stream;
  }
}
package wasi:filesystem@0.2.6 {
  interface types { resource descriptor; }
  interface preopens {
    use types.{descriptor};
    get-directories: func() -> list<tuple<descriptor, string>>;
  }
}
package wasi:sockets@0.2.6 {
  interface network {
    enum error-code {
      unknown, access-denied, not-supported, invalid-argument, out-of-memory, timeout, concurrency-conflict,
      not-in-progress, would-block, invalid-state, new-socket-limit, address-not-bindable, address-in-use,
      remote-unreachable, connection-refused, connection-reset, connection-aborted, datagram-too-large,
      name-unresolvable, temporary-resolver-failure, permanent-resolver-failure,
    }
    enum ip-address-family { ipv4, ipv6 }
  }
  interface tcp { resource tcp-socket; }
  interface tcp-create-socket {
    use network.{error-code, ip-address-family};
    use tcp.{tcp-socket};
    create-tcp-socket: func(address-family: ip-address-family) -> result<tcp-socket, error-code>;
  }
}
"#;

const IMPORTS: &str = r#"
(import "wasi:clocks/monotonic-clock@0.2.6" "now" (func $now (result i64)))
(import "wasi:clocks/monotonic-clock@0.2.6" "subscribe-duration" (func $subscribe (param i64) (result i32)))
(import "wasi:io/poll@0.2.6" "[method]pollable.block" (func $block (param i32)))
(import "wasi:random/random@0.2.6" "get-random-u64" (func $random (result i64)))
(import "wasi:cli/environment@0.2.6" "get-environment" (func $environment (param i32)))
(import "wasi:cli/environment@0.2.6" "get-arguments" (func $arguments (param i32)))
(import "wasi:cli/stdout@0.2.6" "get-stdout" (func $stdout (result i32)))
(import "wasi:io/streams@0.2.6" "[method]output-stream.blocking-write-and-flush" (func $print (param i32 i32 i32 i32)))
(import "wasi:filesystem/preopens@0.2.6" "get-directories" (func $directories (param i32)))
(import "wasi:sockets/tcp-create-socket@0.2.6" "create-tcp-socket" (func $socket (param i32 i32)))
"#;

/// An edit that imports WASI and applies `body`.
fn guest(body: &str) -> Guest {
    let world = r#"
world edit-with-wasi {
  import wasi:clocks/monotonic-clock@0.2.6;
  import wasi:random/random@0.2.6;
  import wasi:cli/environment@0.2.6;
  import wasi:cli/stdout@0.2.6;
  import wasi:filesystem/preopens@0.2.6;
  import wasi:sockets/tcp-create-socket@0.2.6;
  import tensors;
  import log;
  export edit;
}"#;
    edit()
        .wit(format!("{}\n{world}\n{WASI}", wit()))
        .world("edit-with-wasi")
        .with(IMPORTS)
        .on("apply", body)
}

const KEEP: &str = "(call $ok (call $duplicate (local.get $tensor)))";

#[test]
fn nothing_can_be_reached() {
    // No variables, no arguments, no folders; a socket is refused with access-denied (1).
    let body = format!(
        r#"
        (call $environment (i32.const 64)) (if (i32.load (i32.const 68)) (then unreachable))
        (call $arguments (i32.const 64)) (if (i32.load (i32.const 68)) (then unreachable))
        (call $directories (i32.const 64)) (if (i32.load (i32.const 68)) (then unreachable))
        (call $socket (i32.const 0) (i32.const 64))
        (if (i32.ne (i32.load8_u (i32.const 64)) (i32.const 1)) (then unreachable))
        (if (i32.ne (i32.load8_u (i32.const 68)) (i32.const 1)) (then unreachable))
        {KEEP}"#
    );
    apply(&load_edit(&engine(), &guest(&body))).unwrap();
}

#[test]
fn clocks_stand_still_and_nobody_sleeps() {
    // Sleeping for 2^62 ns returns at once.
    let body = format!(
        r#"
        (if (i64.ne (call $now) (i64.const 0)) (then unreachable))
        (call $block (call $subscribe (i64.const 0x4000000000000000)))
        (if (i64.ne (call $now) (i64.const 0)) (then unreachable))
        {KEEP}"#
    );
    let begin = std::time::Instant::now();
    apply(&load_edit(&engine(), &guest(&body))).unwrap();
    assert!(begin.elapsed() < std::time::Duration::from_secs(60));
}

#[test]
fn randomness_is_the_same_each_time() {
    // Fails with eight random bytes, as letters, for its text.
    let body = r#"
        (i64.store (i32.const 64) (i64.or (i64.and (call $random) (i64.const 0x0f0f0f0f0f0f0f0f)) (i64.const 0x6060606060606060)))
        (call $fail (i32.const 64) (i32.const 8))"#;
    let plugin = load_edit(&engine(), &guest(body));
    let first = apply(&plugin).unwrap_err().to_string();
    assert_eq!(apply(&plugin).unwrap_err().to_string(), first);
    assert_snapshot!(first, @"test-plugin: apply of `w`: nhco`hdf");
}

#[test]
fn standard_output_goes_to_the_log() {
    let print = |count: u32| {
        format!(
            r#"
        (local $left i32) (local $out i32)
        (local.set $out (call $stdout))
        (local.set $left (i32.const {count}))
        (loop $again
          (call $print (local.get $out) (i32.const 17408) (i32.const 3) (i32.const 64))
          (local.set $left (i32.sub (local.get $left) (i32.const 1)))
          (br_if $again (local.get $left)))
        {KEEP}"#
        )
    };
    let called = apply(&load_edit(&engine(), &guest(&print(1)))).unwrap();
    assert_eq!(called.log.len(), 1);
    assert_eq!(
        (called.log[0].level, called.log[0].message.as_str()),
        (Level::Info, "w{}")
    );
    let error = apply(&load_edit(&engine(), &guest(&print(50_000)))).unwrap_err();
    assert_snapshot!(error, @"test-plugin: apply of `w`: limit `log_bytes` exceeded: got 65537, limit 65536");
}
