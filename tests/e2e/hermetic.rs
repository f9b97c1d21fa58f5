//! Verifying is a function of the pack and the trust inputs: it works without any network, opens no socket, and writes nothing.
//!
//! Needs `unshare` and `strace` and the right to use them. Where that is not so a test says so and passes; with
//! `PACKHOST_HERMETIC=require`, as CI sets it where both work, it fails.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::replay::sealed;
use crate::support::{Bench, files, text};

/// Every way of asking about a pack that promises to be hermetic.
const LINES: [&str; 3] = [
    "pack verify run/evidence_pack --strict",
    "pack verify run/evidence_pack --strict --replay --json",
    "pack inspect run/evidence_pack --json",
];

/// A test that cannot run here says why.
fn skipped(program: &str, reason: &str) {
    let sentence = format!("this test needs the program {program}: {reason}");
    assert!(
        std::env::var("PACKHOST_HERMETIC").as_deref() != Ok("require"),
        "{sentence}; on Debian the packages are strace and util-linux"
    );
    eprintln!("SKIPPED: {sentence}");
}

/// Runs a line of packhost under another program; nothing where that program cannot work here.
pub fn under(bench: &Bench, program: &[&str], line: &str) -> Option<Output> {
    let mut tried = Command::new(program[0]);
    match tried.args(&program[1..]).arg("true").output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            skipped(program[0], &String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Err(error) => {
            skipped(program[0], &error.to_string());
            return None;
        }
    }
    let packhost = bench.line(line);
    let mut command = Command::new(program[0]);
    command
        .args(&program[1..])
        .arg(packhost.get_program())
        .args(packhost.get_args())
        .current_dir(packhost.get_current_dir().unwrap())
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", bench.path("home"));
    Some(command.output().unwrap())
}

/// Whether a line of packhost under another program could be tried; if so, it ended well.
fn accepts(bench: &Bench, program: &[&str], line: &str) -> bool {
    let Some(output) = under(bench, program, line) else {
        return false;
    };
    let code = output.status.code();
    assert_eq!(code, Some(0), "{line}: {}", bench.render(&output));
    true
}

#[test]
fn packs_verify_where_there_is_no_network() {
    let bench = sealed();
    for line in LINES {
        if !accepts(bench, &["unshare", "--map-root-user", "--net"], line) {
            return;
        }
    }
}

/// System calls that make, change or remove something in a file system.
const CHANGES: [&str; 18] = [
    "creat(",
    "rename",
    "unlink",
    "mkdir",
    "rmdir",
    "link(",
    "linkat(",
    "symlink",
    "truncate",
    "mknod",
    "chmod",
    "fchmod",
    "chown",
    "utime",
    "setxattr",
    "removexattr",
    "mount(",
    "futimesat(",
];

/// Whether a line of a trace is a call that promises broke.
fn forbidden(call: &str) -> bool {
    let name = call.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
    let socket = [
        "socket", "connect", "bind", "sendto", "sendmsg", "recvfrom", "recvmsg",
    ];
    let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_TMPFILE"];
    socket.iter().any(|call| name.starts_with(call))
        || CHANGES.iter().any(|call| name.starts_with(call))
        || (name.starts_with("open") && writes.iter().any(|flag| name.contains(flag)))
}

#[test]
fn verifying_opens_no_socket_and_writes_nothing() {
    let bench = sealed();
    let work = Bench::new();
    for (number, line) in LINES.into_iter().enumerate() {
        let trace = work.path(&format!("trace.{number}"));
        let strace = [
            "strace",
            "-f",
            "-qq",
            "-e",
            "trace=%network,%file,ftruncate,fchmod,fchown",
            "-o",
            text(&trace),
        ];
        let before = files(&bench.path("run"));
        if !accepts(bench, &strace, line) {
            return;
        }
        let calls = fs::read_to_string(&trace).unwrap();
        assert!(
            calls.contains("manifest.json"),
            "the trace shows nothing:\n{calls}"
        );
        let found: Vec<&str> = calls.lines().filter(|call| forbidden(call)).collect();
        assert!(found.is_empty(), "{line}: {found:#?}");
        assert!(
            files(&bench.path("run")) == before,
            "{line} changed the run"
        );
        assert!(!bench.path("home").exists(), "{line} made a home");
    }
    // The trace would show it: the one output that can be asked for.
    let trace = work.path("trace.out");
    let out = work.path("nested.json");
    let strace = [
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=%network,%file",
        "-o",
        text(&trace),
    ];
    let line = format!("{} --json-out {}", LINES[0], out.display());
    if under(bench, &strace, &line).is_some() {
        let calls = fs::read_to_string(&trace).unwrap();
        let found: Vec<&str> = calls.lines().filter(|call| forbidden(call)).collect();
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains(text(&out)) && Path::new(&out).is_file());
    }
}
