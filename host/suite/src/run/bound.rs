//! What ties the files of a pack to its measurement tables.
//!
//! Every report names its tables by digest, and a table names, in rows of its own, what it was measured on: the facts about
//! the model, the windows, and which tensors a subject changed. A forger of one of those files must forge every table and
//! every report as well, and whoever compares tables with those of another pack sees it.
//!
//! No guard is shown these rows. What does not decide measurements is named by every report, see [`settings`].

use packhost_measure::canonical::{sha256_hex, to_line};
use packhost_measure::table::Table;
use packhost_measure::windows::{Window, Windows};
use packhost_pack::canonical::to_pretty;
use packhost_plugin::Lock;
use serde_json::{Value, json};

use super::record::RunRecord;
use super::work::Work;
use crate::Result;
use crate::spec::Tuned;
use crate::toolbox::LOCK_FILE;

/// SHA-256 of the facts about the model, as their file has them.
pub const MODEL: &str = "bound.model";
/// Digest of the windows, see [`windows`].
pub const WINDOWS: &str = "bound.windows";
/// SHA-256 of the list of a subject's changes, as its file has it.
pub const CHANGES: &str = "bound.changes";

/// Names something in a table.
pub fn put(table: &mut Table, quantity: &str, digest: &str) {
    table.put_text("model", quantity, digest);
}

/// What a table names; empty where it names nothing.
pub fn get<'a>(table: &'a Table, quantity: &str) -> &'a str {
    table.text("model", quantity).unwrap_or_default()
}

/// SHA-256 over the canonical JSON of everything about the windows that settings do not say: of both arms the ids, the texts'
/// numbers and the tokens, and what was left out.
pub fn windows(windows: &Windows) -> String {
    let arm = |arm: &[Window]| -> Value {
        let window = |window: &Window| json!([window.id, window.text, window.tokens]);
        arm.iter().map(window).collect()
    };
    let reductions = windows.reductions.iter();
    let document = json!({
        "preview": arm(&windows.preview),
        "final": arm(&windows.final_),
        "short": windows.short,
        "duplicates": windows.duplicates,
        "reductions": reductions.map(|step| json!([step.deficit, step.per_arm])).collect::<Value>(),
    });
    sha256_hex(to_line(&document).as_bytes())
}

/// Digests of a run's settings, which its reports name: of the record, without the time that reports say themselves, and of the
/// scenario table in canonical JSON; of the lock file; and of the tuned parameters where there are some.
pub fn settings(record: &RunRecord, lock: &[u8], scenarios: &Value, tuned: Option<&[u8]>) -> Value {
    let mut record = record.json();
    if let Some(record) = record.as_object_mut() {
        record.remove("began");
    }
    json!({
        "run": sha256_hex(to_line(&record).as_bytes()),
        "plugins": sha256_hex(lock),
        "scenarios": sha256_hex(to_line(scenarios).as_bytes()),
        "tuned_edit_params": tuned.map(sha256_hex),
    })
}

/// The same of a run, as its pack will hold them.
///
/// # Errors
/// The lock file cannot be written.
pub fn settings_of(work: &Work<'_>) -> Result<Value> {
    let lock = Lock::of(work.toolbox.registry(), LOCK_FILE).to_toml()?;
    let scenarios = serde_json::to_value(&work.request.manifest).unwrap_or_default();
    let tuned = match &work.request.tuned {
        Tuned::File(tuned) => Some(to_pretty(&Value::Object(tuned.clone()))),
        Tuned::Absent | Tuned::Unusable => None,
    };
    let tuned = tuned.as_ref().map(String::as_bytes);
    Ok(settings(
        &RunRecord::of(work),
        lock.as_bytes(),
        &scenarios,
        tuned,
    ))
}
