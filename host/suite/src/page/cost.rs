//! What each change cost: perplexity against the baseline's, and divergence of the predictions.

use packhost_report::{Bar, Bars, Block, Mark, Table};
use serde_json::Value;

use super::read::{Contents, Subject};
use crate::study::page::{figures, words};
use crate::study::text::number;

/// Two charts and a table for each model.
pub fn blocks(contents: &Contents) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (model, subjects) in contents.by_model() {
        if contents.models.len() > 1 {
            blocks.push(Block::Heading(model.id.clone()));
        }
        blocks.extend([
            perplexity(&subjects),
            divergence(&subjects),
            table(&subjects),
        ]);
    }
    blocks
}

fn bars(
    subjects: &[&Subject],
    value: impl Fn(&Subject) -> Option<f64>,
    shown: impl Fn(&Subject) -> String,
) -> Vec<Bar> {
    let bar = |subject: &&Subject| Bar {
        label: subject.label(),
        value: value(subject),
        shown: shown(subject),
        missing: "no finite value".into(),
    };
    subjects.iter().map(bar).collect()
}

fn perplexity(subjects: &[&Subject]) -> Block {
    let limit = subjects.iter().find_map(|subject| subject.ratio_limit);
    let mark = limit.filter(|limit| *limit > 1.0).map(|limit| Mark {
        value: libm::log(limit),
        label: format!("limit {limit}"),
    });
    Block::Bars(Bars {
        title: "Perplexity against the baseline's".into(),
        logarithmic: true,
        bars: bars(
            subjects,
            |subject| subject.judged.ratio.map(|ratio| libm::log(ratio).abs()),
            |subject| number(subject.judged.ratio, 4),
        ),
        marks: mark.into_iter().collect(),
        note: "Ratio on the final windows, as the primary metric states it; a bar is as long as the magnitude of its logarithm."
            .into(),
    })
}

fn divergence(subjects: &[&Subject]) -> Block {
    let limit = subjects
        .iter()
        .find_map(|subject| divergence_limit(&subject.guards));
    Block::Bars(Bars {
        title: "Divergence from the baseline (KL)".into(),
        logarithmic: true,
        bars: bars(
            subjects,
            |subject| subject.judged.kl,
            |subject| number(subject.judged.kl, 6),
        ),
        marks: limit
            .map(|value| Mark {
                value,
                label: format!("limit {value}"),
            })
            .into_iter()
            .collect(),
        note: "Mean Kullback-Leibler divergence per scored token, in nats, with the baseline's probabilities in front; the limit is \
               that of the guard distribution-shift."
            .into(),
    })
}

/// From which divergence on the guard `distribution-shift` says damaged.
fn divergence_limit(guards: &Value) -> Option<f64> {
    let mut guards = guards.as_array()?.iter();
    let guard = guards.find(|guard| guard["id"] == "distribution-shift")?;
    guard.pointer("/details/limits/divergence/fail")?.as_f64()
}

fn table(subjects: &[&Subject]) -> Block {
    let rows = subjects.iter().map(|subject| {
        let metric = |key: &str| number(subject.metric[key].as_f64(), 4);
        let interval = subject.metric["display_ci"].as_array();
        let interval = match interval.map(Vec::as_slice) {
            Some([low, high]) => format!(
                "{} to {}",
                number(low.as_f64(), 4),
                number(high.as_f64(), 4)
            ),
            _ => "-".into(),
        };
        vec![
            subject.label(),
            metric("final"),
            number(subject.judged.ratio, 5),
            interval,
            number(subject.judged.kl, 7),
            number(subject.judged.same_top, 4),
        ]
    });
    Block::Table(Table {
        caption: "The same in figures".into(),
        columns: vec![
            words("report"),
            figures("perplexity"),
            figures("ratio"),
            figures("interval of the ratio"),
            figures("KL"),
            figures("same top token"),
        ],
        rows: rows.collect(),
    })
}
