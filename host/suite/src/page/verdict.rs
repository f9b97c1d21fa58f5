//! The verdict, and why it is what it is: failed requirements, and what each demand met.

use packhost_report::{Banner, Block, Table, Tone};
use serde_json::Value;

use super::read::Contents;
use crate::study::page::{figures, words};

/// The word, with how much it rests on.
pub fn verdict(contents: &Contents) -> Vec<Block> {
    let word = contents.verdict["verdict"].as_str().map(str::trim);
    let pass = word.is_some_and(|word| word.eq_ignore_ascii_case("PASS"));
    let evaluations = contents.subjects.len();
    let models = contents.models.len();
    let reports = match evaluations {
        1 => "one report".to_owned(),
        _ => format!("{evaluations} reports"),
    };
    let basis = match models {
        0 => reports,
        1 => format!("{reports} on one model"),
        _ => format!("{reports} on {models} models"),
    };
    let text = match (word, pass) {
        (None, _) => format!("The pack states no verdict; it holds {basis}."),
        (_, true) => format!("Every requirement is met, by {basis}."),
        (_, false) => {
            let failed = failed(contents).len().max(1);
            let noun = if failed == 1 {
                "requirement is"
            } else {
                "requirements are"
            };
            format!("{failed} {noun} not met, by {basis}.")
        }
    };
    vec![Block::Banner(Banner {
        tone: match (word, pass) {
            (None, _) => Tone::Doubt,
            (_, true) => Tone::Good,
            (_, false) => Tone::Fail,
        },
        word: word.unwrap_or("NO VERDICT").to_owned(),
        text,
    })]
}

fn failed(contents: &Contents) -> &[Value] {
    let listed = contents.verdict["failed_requirements"].as_array();
    listed.map_or(&[], Vec::as_slice)
}

/// What failed, and what each demand met.
pub fn why(contents: &Contents) -> Vec<Block> {
    let mut blocks = Vec::new();
    for requirement in failed(contents) {
        let id = requirement["id"].as_str().map(str::to_owned);
        blocks.push(Block::Heading(format!(
            "Not met: {}",
            id.unwrap_or_else(|| requirement.to_string())
        )));
        let details = requirement["details"].as_array().into_iter().flatten();
        let details: Vec<String> = details.map(in_words).collect();
        if !details.is_empty() {
            blocks.push(Block::List(details));
        }
    }
    let rows: Vec<Vec<String>> = DEMANDS
        .iter()
        .filter_map(|demand| demand.row(contents))
        .collect();
    if !rows.is_empty() {
        blocks.push(Block::Table(Table {
            caption: "What was demanded, and what came of it".into(),
            columns: vec![words("demand"), figures("met"), figures("of")],
            rows,
        }));
    }
    blocks
}

fn in_words(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// A demand on a group of reports, and the counts of the verdict that tell how it went.
struct Demand {
    words: &'static str,
    met: &'static str,
    of: &'static str,
}

const DEMANDS: [Demand; 6] = [
    Demand {
        words: "Clean edits pass",
        met: "clean_pass",
        of: "clean_total",
    },
    Demand {
        words: "Edits that must do damage were run",
        met: "catastrophic_required_present",
        of: "catastrophic_required_total",
    },
    Demand {
        words: "Edits that must do damage fail",
        met: "catastrophic_required_fail",
        of: "catastrophic_required_total",
    },
    Demand {
        words: "Injected faults are detected",
        met: "error_injection_detected",
        of: "error_injection_total",
    },
    Demand {
        words: "The guard that a scenario names sees it, where that is demanded",
        met: "primary_guard_required_hits",
        of: "primary_guard_required_records",
    },
    Demand {
        words: "Stress edits for information show a signal (half of them suffice)",
        met: "informational_stress_signaled",
        of: "informational_stress_total",
    },
];

impl Demand {
    fn row(&self, contents: &Contents) -> Option<Vec<String>> {
        let counts = &contents.verdict["counts"];
        let (met, of) = (counts[self.met].as_u64()?, counts[self.of].as_u64()?);
        (of > 0).then(|| vec![self.words.into(), met.to_string(), of.to_string()])
    }
}
