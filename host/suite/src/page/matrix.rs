//! What each guard says of each report, and what the verdict makes of it.

use packhost_report::{Block, Cell, Group, Matrix, Row, Tone};

use super::read::{Contents, Subject};
use crate::study::page::{cell, legend};

/// A matrix for each model.
pub fn blocks(contents: &Contents) -> Vec<Block> {
    let mut blocks = vec![Block::Text(
        "What a guard finds in the unedited model on the same windows too is not the change's doing and does not count here."
            .into(),
    )];
    for (model, subjects) in contents.by_model() {
        let mut columns = contents.guards.clone();
        columns.push("verdict".into());
        let mut groups: Vec<Group> = Vec::new();
        for subject in subjects {
            let title = category_title(subject.category());
            if groups.last().is_none_or(|group| group.title != title) {
                groups.push(Group {
                    title: title.into(),
                    rows: Vec::new(),
                });
            }
            if let Some(group) = groups.last_mut() {
                group.rows.push(row(contents, subject));
            }
        }
        let mut legend = legend();
        legend.extend([
            (
                outcome("+", Tone::Good, ""),
                "the report came out as its scenario demands".into(),
            ),
            (outcome("!", Tone::Fail, ""), "it did not".into()),
            (
                outcome("i", Tone::Quiet, ""),
                "for information: nothing is demanded of it".into(),
            ),
        ]);
        blocks.push(Block::Matrix(Matrix {
            title: match contents.models.len() > 1 {
                true => format!("What each guard says of each report: {}", model.id),
                false => "What each guard says of each report".into(),
            },
            columns,
            groups,
            legend,
            note:
                "Point at a mark, or open the report below, to read which findings it stands for."
                    .into(),
        }));
    }
    match contents.subjects.is_empty() {
        true => Vec::new(),
        false => blocks,
    }
}

/// The heading of a category of scenarios.
pub fn category_title(category: &str) -> &'static str {
    match category {
        "clean" => "Clean edits",
        "stress" => "Stress edits",
        "error_injection" => "Injected faults",
        _ => "Reports",
    }
}

fn row(contents: &Contents, subject: &Subject) -> Row {
    let judged = &subject.judged.guards;
    let guards = contents
        .guards
        .iter()
        .map(|guard| cell(guard, judged.get(guard)));
    let (met, words) = demanded(subject);
    let (mark, tone) = match met {
        Some(true) => ("+", Tone::Good),
        Some(false) => ("!", Tone::Fail),
        None => ("i", Tone::Quiet),
    };
    Row {
        label: subject.label(),
        cells: guards.chain([outcome(mark, tone, &words)]).collect(),
    }
}

fn outcome(mark: &str, tone: Tone, tip: &str) -> Cell {
    Cell {
        tone,
        mark: mark.into(),
        tip: tip.into(),
    }
}

/// Whether a report came out as its scenario's strictness demands (none where it demands nothing), and that in words.
pub fn demanded(subject: &Subject) -> (Option<bool>, String) {
    let record = &subject.record;
    let strictness = record["strictness"].as_str().unwrap_or("nothing");
    let passed = record["passed"].as_bool();
    let detected = record["detectors_hit"] == true;
    let met = match strictness {
        "must_pass" => passed,
        "must_fail" => passed.map(|passed| !passed),
        "must_detect" => Some(detected),
        _ => None,
    };
    let report = match passed {
        Some(true) => "the report passes",
        Some(false) => "the report fails",
        None => "the verdict says nothing of this report",
    };
    let detectors = match (detected, strictness) {
        (true, _) => ", a detector sees the change",
        (false, "must_detect") => ", no detector sees the change",
        (false, _) => "",
    };
    (
        met,
        format!("{}: {report}{detectors}", strictness.replace('_', " ")),
    )
}
