//! The run's journal: which tasks were started, finished or failed, in an append-only file that survives `kill -9`.
//!
//! Line 1 names the format and the plan; each further line is one transition, written and synced before the run goes on. A
//! task counts as complete only when its record was written whole *and* the files that the record lists still have the
//! digests it states, so a crash between a report and its record costs one repetition and never a false "done". A torn last
//! line (the process died while writing) is cut off when the journal is opened again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

const FORMAT: &str = "packhost-run-journal";
const VERSION: u32 = 1;

#[derive(Debug, Deserialize, Serialize)]
struct Header {
    format: String,
    version: u32,
    plan: String,
}

/// What a transition was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transition {
    Started,
    Completed,
    Failed,
}

/// One transition of one task.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Record {
    pub task: String,
    pub transition: Transition,
    /// Counts from 1; larger than 1 after a failure or a crash.
    pub attempt: u32,
    /// UTC time, RFC 3339.
    pub at: String,
    /// Files that the task wrote, relative to the run directory, with their SHA-256.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// An open journal.
pub struct Journal {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
}

impl Journal {
    /// Opens the journal at `path`, creating it for the plan with this digest when it is absent.
    ///
    /// # Errors
    /// The file cannot be read or written, is of another format or version, or belongs to another plan.
    pub fn open(path: &Path, plan: &str) -> Result<Self> {
        let fail = |error: std::io::Error| Error::io("open the journal", path, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fail)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(fail)?;
        // A line without its line feed was being written when the process died.
        let whole = text.rfind('\n').map_or(0, |position| position + 1);
        let mut lines = text[..whole].lines();
        let Some(first) = lines.next() else {
            file.set_len(0).map_err(fail)?;
            file.seek(SeekFrom::Start(0)).map_err(fail)?;
            let mut journal = Self {
                path: path.into(),
                file,
                records: Vec::new(),
            };
            journal.write_line(&Header {
                format: FORMAT.into(),
                version: VERSION,
                plan: plan.into(),
            })?;
            return Ok(journal);
        };
        let broken = |message: String| Error::Journal {
            path: path.into(),
            message,
        };
        let header: Header =
            serde_json::from_str(first).map_err(|error| broken(format!("line 1: {error}")))?;
        if header.format != FORMAT || header.version != VERSION {
            return Err(broken(format!(
                "format `{}` version {} is not `{FORMAT}` version {VERSION}",
                header.format, header.version
            )));
        }
        if header.plan != plan {
            return Err(broken("it belongs to a run with another plan".into()));
        }
        let records = lines
            .enumerate()
            .map(|(index, line)| {
                serde_json::from_str(line).map_err(|e| broken(format!("line {}: {e}", index + 2)))
            })
            .collect::<Result<Vec<Record>>>()?;
        file.set_len(whole as u64).map_err(fail)?;
        file.seek(SeekFrom::End(0)).map_err(fail)?;
        Ok(Self {
            path: path.into(),
            file,
            records,
        })
    }

    /// Appends a transition and waits until it is on the disk.
    ///
    /// # Errors
    /// When it cannot be written; the run must stop then, for it could not be resumed.
    pub fn append(&mut self, record: Record) -> Result<()> {
        self.write_line(&record)?;
        self.records.push(record);
        Ok(())
    }

    /// Everything recorded so far, oldest first.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Number of the next attempt of `task`.
    pub fn next_attempt(&self, task: &str) -> u32 {
        let started = self
            .records
            .iter()
            .filter(|r| r.task == task && r.transition == Transition::Started);
        started.count() as u32 + 1
    }

    /// The record by which `task` is complete, unless a later transition undid it.
    pub fn completion(&self, task: &str) -> Option<&Record> {
        self.records
            .iter()
            .rev()
            .find(|r| r.task == task)
            .filter(|r| r.transition == Transition::Completed)
    }

    fn write_line(&mut self, value: &impl Serialize) -> Result<()> {
        let fail = |error: std::io::Error| Error::io("write the journal", &self.path, error);
        let mut line = serde_json::to_vec(value).map_err(|error| fail(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(fail)?;
        self.file.sync_data().map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(task: &str, transition: Transition, attempt: u32) -> Record {
        Record {
            task: task.into(),
            transition,
            attempt,
            at: "2026-01-02T03:04:05Z".into(),
            outputs: BTreeMap::new(),
            message: None,
        }
    }

    #[test]
    fn what_was_written_is_read_again_and_every_torn_tail_is_cut() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("journal.jsonl");
        let mut journal = Journal::open(&path, "plan").expect("creates");
        journal
            .append(record("a", Transition::Started, 1))
            .expect("appends");
        let whole = std::fs::metadata(&path).expect("exists").len();
        journal
            .append(record("a", Transition::Completed, 1))
            .expect("appends");
        let bytes = std::fs::read(&path).expect("reads");
        for cut in whole as usize..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).expect("writes");
            let mut journal = Journal::open(&path, "plan").expect("opens after a crash");
            assert!(journal.completion("a").is_none());
            assert_eq!(journal.next_attempt("a"), 2);
            journal
                .append(record("a", Transition::Completed, 2))
                .expect("appends");
            assert!(
                Journal::open(&path, "plan")
                    .expect("opens")
                    .completion("a")
                    .is_some()
            );
        }
    }

    #[test]
    fn a_failure_after_completion_undoes_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut journal = Journal::open(&dir.path().join("j"), "plan").expect("creates");
        journal
            .append(record("a", Transition::Completed, 1))
            .expect("appends");
        journal
            .append(record("a", Transition::Started, 2))
            .expect("appends");
        assert!(journal.completion("a").is_none());
    }

    #[test]
    fn another_plan_version_or_garbage_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("j");
        Journal::open(&path, "plan").expect("creates");
        assert!(matches!(
            Journal::open(&path, "other"),
            Err(Error::Journal { .. })
        ));
        std::fs::write(
            &path,
            "{\"format\":\"packhost-run-journal\",\"version\":2,\"plan\":\"plan\"}\n",
        )
        .expect("writes");
        assert!(matches!(
            Journal::open(&path, "plan"),
            Err(Error::Journal { .. })
        ));
        std::fs::write(&path, "garbage\n").expect("writes");
        assert!(matches!(
            Journal::open(&path, "plan"),
            Err(Error::Journal { .. })
        ));
    }
}
