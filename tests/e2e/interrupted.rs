//! Runs that are killed, interrupted or disturbed: they go on where they stopped and end as if nothing had happened.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};

use insta::assert_snapshot;
use serde_json::Value;

use crate::run::{differences, small, source};
use crate::support::Bench;

/// A small run in `run`, started and read up to its second completed task.
struct Started {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

/// More windows than other small runs have, so that something is left to do when the signal comes.
fn line(out: &str) -> String {
    small(out).replace("--preview 10 --final 10", "--preview 60 --final 60")
}

impl Started {
    fn new(bench: &Bench) -> Self {
        source(bench);
        let mut child = bench
            .line(&format!("{} --events json", line("run")))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut completed = 0;
        while completed < 2 {
            let mut line = String::new();
            assert_ne!(
                stderr.read_line(&mut line).unwrap(),
                0,
                "it ended too early"
            );
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            completed += usize::from(event["event"] == "task_completed");
        }
        Self { child, stderr }
    }

    /// Sends a signal by its name.
    fn signal(&self, name: &str) {
        let line = format!("kill -{name} {}", self.child.id());
        assert!(
            Command::new("sh")
                .args(["-c", &line])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for the end; the exit code, or none after a kill, and the rest of standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.stderr, &mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

/// How often each task was recorded as completed.
pub fn completions(journal: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for line in journal.lines().skip(1) {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        if record["transition"] == "completed" {
            *found
                .entry(record["task"].as_str().unwrap().to_string())
                .or_default() += 1;
        }
    }
    found
}

/// Resumes the run in `run` and compares it with one that nobody disturbed.
fn resume_and_compare(bench: &Bench) {
    let output = bench
        .line(&format!("{} --resume --events json", line("run")))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", bench.render(&output));
    let events = String::from_utf8(output.stderr).unwrap();
    let started: Value = serde_json::from_str(events.lines().next().unwrap()).unwrap();
    assert_eq!(started["resumed"], true);
    let (done, tasks) = (
        started["already_completed"].as_u64().unwrap(),
        started["tasks"].as_u64().unwrap(),
    );
    assert!(done >= 2 && done < tasks, "{started}");
    let repeated = events
        .lines()
        .filter(|line| line.contains("\"task_started\""))
        .count() as u64;
    assert_eq!(repeated, tasks - done, "finished tasks stay finished");

    let journal = fs::read_to_string(bench.path("run/state/journal.jsonl")).unwrap();
    let completed = completions(&journal);
    assert_eq!(completed.len() as u64, tasks);
    assert!(completed.values().all(|&count| count == 1), "{completed:?}");

    let output = bench.line(&line("undisturbed")).output().unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", bench.render(&output));
    assert_eq!(
        differences(&bench.path("run"), &bench.path("undisturbed")),
        Vec::<String>::new()
    );
    let verified = bench
        .line("pack verify run/evidence_pack --strict")
        .output()
        .unwrap();
    let other = bench
        .line("pack verify undisturbed/evidence_pack --strict")
        .output()
        .unwrap();
    assert_eq!(
        verified.status.code(),
        other.status.code(),
        "{}",
        bench.render(&verified)
    );
}

#[test]
fn killed_in_the_middle() {
    let bench = Bench::new();
    let mut run = Started::new(&bench);
    run.child.kill().unwrap();
    assert_eq!(run.end().0, None);
    resume_and_compare(&bench);
}

#[test]
fn killed_in_the_middle_of_a_journal_line() {
    let bench = Bench::new();
    let mut run = Started::new(&bench);
    run.child.kill().unwrap();
    run.end();
    let journal = bench.path("run/state/journal.jsonl");
    let mut text = fs::read_to_string(&journal).unwrap();
    text.push_str("{\"task\":\"packhost__demo_EVAL");
    fs::write(&journal, text).unwrap();
    resume_and_compare(&bench);
}

#[test]
fn interrupted_by_a_person() {
    for signal in ["INT", "TERM"] {
        let bench = Bench::new();
        let run = Started::new(&bench);
        run.signal(signal);
        let (code, rest) = run.end();
        assert_eq!(code, Some(130), "{rest}");
        assert!(rest.contains("go on with --resume --out run"), "{rest}");
        if signal == "INT" {
            resume_and_compare(&bench);
        }
    }
}

#[test]
fn a_second_process_in_the_same_directory() {
    let bench = Bench::new();
    let run = Started::new(&bench);
    // The first holds still, so that it is certainly there.
    run.signal("STOP");
    let said = bench.says(&format!("{} --resume", line("run")));
    run.signal("CONT");
    assert_snapshot!(said, @r"
    exit: 15
    ----- stderr -----
    error: failed to use the run directory run: another packhost is running in it
    ");
    // It was not disturbed.
    assert_eq!(run.end().0, Some(10));
}

#[test]
fn a_result_that_was_damaged_between_two_lives_is_made_again() {
    let bench = Bench::new();
    let mut run = Started::new(&bench);
    run.child.kill().unwrap();
    run.end();
    // The first calibration table, complete by now.
    let table = bench.path("run/packhost__demo/tables/baseline/seed_42.json");
    assert!(table.is_file());
    fs::write(&table, "{}").unwrap();
    let output = bench
        .line(&format!("{} --resume", line("run")))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", bench.render(&output));
    assert!(fs::metadata(&table).unwrap().len() > 100);
}
