//! `packhost report`: what people want of packs on a terminal. `pack diff` is `report diff` by an older name.

use packhost_pack::canonical;
use packhost_pack::diff::{Change, diff};
use packhost_plain::line;
use packhost_suite::page::{summary, summary_json};
use serde_json::{Value, json};

use super::pack::intact;
use super::{print, print_line};
use crate::cli::{DiffArgs, ReportCommand, ShowArgs};
use crate::exit::{Exit, Failure};

pub fn run(command: ReportCommand) -> Result<Exit, Failure> {
    match command {
        ReportCommand::Show(arguments) => show(&arguments),
        ReportCommand::Diff(arguments) => diff_packs(&arguments),
    }
}

/// What the pack's page shows. Only that the pack is as it was signed is checked; by whom is `pack verify`'s to ask.
fn show(arguments: &ShowArgs) -> Result<Exit, Failure> {
    let (files, signer) = intact(&arguments.pack)?;
    if arguments.json {
        let mut answer = summary_json(&files);
        answer["format_version"] = json!("packhost-report-show-v1");
        answer["signer_fingerprint"] = json!(signer);
        print_line(&canonical::to_line(&answer));
        return Ok(Exit::Success);
    }
    print(&summary(&files).text());
    let signer = signer.as_deref().unwrap_or("nobody");
    print_line(&format!(
        "\nEvery byte is as signed by {signer}. Whether that is the right signer, and whether reports and verdict follow from \
         the evidence, `packhost pack verify --replay` tells."
    ));
    Ok(Exit::Success)
}

/// What changed from one pack to another.
pub fn diff_packs(arguments: &DiffArgs) -> Result<Exit, Failure> {
    let ((before, _), (after, _)) = (intact(&arguments.before)?, intact(&arguments.after)?);
    let changes = diff(&before, &after).map_err(|reason| Failure::new(Exit::Format, reason))?;
    if arguments.json {
        let listed: Vec<Value> = changes.iter().map(Change::json).collect();
        let answer = json!({"format_version": "packhost-pack-diff-v1", "changes": listed});
        print_line(&canonical::to_line(&answer));
        return Ok(Exit::Success);
    }
    for change in &changes {
        print_line(&line(&change.line()));
    }
    if changes.is_empty() {
        print_line("the packs hold the same files");
    }
    Ok(Exit::Success)
}
