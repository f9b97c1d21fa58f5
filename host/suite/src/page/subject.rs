//! Each report: what was changed, what every guard found where, and z scores and spectra by layer.

use std::collections::{BTreeMap, BTreeSet};

use packhost_report::{Align, Block, Column, Fold, Lines, Series, Table};
use serde_json::Value;

use super::matrix::{category_title, demanded};
use super::read::{Contents, Model, Place, Spectra, Subject};
use crate::study::page::{figures, words};
use crate::study::text::number;

/// How many findings of one guard are listed.
const MOST_FINDINGS: usize = 8;

/// The unedited models' spectra, then every report.
pub fn blocks(contents: &Contents) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (model, subjects) in contents.by_model() {
        let several = contents.models.len() > 1;
        if several {
            blocks.push(Block::Heading(model.id.clone()));
        }
        blocks.extend(unedited(&model));
        let mut category = "";
        for subject in subjects {
            if subject.category() != category {
                category = subject.category();
                blocks.push(Block::Heading(category_title(category).into()));
            }
            blocks.push(Block::Fold(Fold {
                title: subject.label(),
                note: summary(subject),
                blocks: details(contents, &model, subject),
            }));
        }
    }
    blocks
}

fn summary(subject: &Subject) -> String {
    format!(
        "ratio {}, KL {}; {}",
        number(subject.judged.ratio, 4),
        number(subject.judged.kl, 5),
        demanded(subject).1
    )
}

fn details(contents: &Contents, model: &Model, subject: &Subject) -> Vec<Block> {
    let mut blocks = vec![Block::Facts(facts(contents, subject))];
    blocks.push(guards(contents, subject));
    if let Some(findings) = findings(subject) {
        blocks.push(findings);
    }
    let charts: Vec<Lines> = [z_by_layer(model, subject), spectrum(model, subject)]
        .into_iter()
        .flatten()
        .collect();
    if charts.is_empty() {
        blocks.push(Block::Text(
            "No chart by layer: the report states no z scores, and no matrix's singular values changed or were measured.".into(),
        ));
    } else {
        blocks.push(Block::Lines(charts));
    }
    blocks
}

fn facts(contents: &Contents, subject: &Subject) -> Vec<(String, String)> {
    let scenario = contents.scenarios.get(&subject.scenario);
    let generation = scenario.map(|scenario| &scenario["generation"]);
    let change = generation
        .and_then(|generation| {
            let named = generation["edit_spec"].as_str();
            named.or_else(|| generation["error_type"].as_str())
        })
        .unwrap_or("-");
    let text = |key: &str| match &subject.record[key] {
        Value::String(text) => text.clone(),
        _ => "-".into(),
    };
    let reasons = subject.record["reasons"].as_array().into_iter().flatten();
    let reasons: Vec<&str> = reasons.filter_map(Value::as_str).collect();
    let facts = [
        ("Change", change.to_owned()),
        ("Expected", text("failure_class")),
        ("Demanded", text("strictness").replace('_', " ")),
        ("Guard in charge", text("primary_guard").replace('_', "-")),
        (
            "Reasons of failure",
            match reasons.is_empty() {
                true => "none".into(),
                false => reasons.join(", "),
            },
        ),
        ("Seed of the windows", subject.judged.seed.to_string()),
        ("Report", subject.path.clone()),
    ];
    facts.map(|(name, value)| (name.into(), value)).into()
}

/// Each guard's own word.
fn guards(contents: &Contents, subject: &Subject) -> Block {
    let listed = subject.guards.as_array();
    let rows = contents.guards.iter().map(|id| {
        let entry = listed
            .into_iter()
            .flatten()
            .find(|entry| entry["id"] == id.as_str());
        let field = |key: &str| entry.and_then(|entry| entry[key].as_str()).unwrap_or("-");
        let count = entry.and_then(|entry| Some(entry["findings"].as_array()?.len()));
        let answer = subject.judged.guards.get(id);
        let new: Vec<&str> = answer
            .into_iter()
            .flat_map(|answer| &answer.codes)
            .map(String::as_str)
            .collect();
        vec![
            id.clone(),
            field("version").into(),
            field("status").into(),
            count.map_or("-".into(), |count| count.to_string()),
            new.join(", "),
        ]
    });
    Block::Table(Table {
        caption: "Guards".into(),
        columns: vec![
            words("guard"),
            words("version"),
            words("status"),
            figures("findings"),
            prose("kinds that the unedited model does not show"),
        ],
        rows: rows.collect(),
    })
}

fn prose(title: &str) -> Column {
    Column {
        title: title.into(),
        align: Align::Prose,
    }
}

fn findings(subject: &Subject) -> Option<Block> {
    let mut rows = Vec::new();
    for guard in subject.guards.as_array().into_iter().flatten() {
        let id = guard["id"].as_str().unwrap_or_default();
        let found = guard["findings"].as_array().map_or(&[][..], Vec::as_slice);
        for finding in found.iter().take(MOST_FINDINGS) {
            let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
            rows.push(vec![id.into(), text("code"), text("message")]);
        }
        if found.len() > MOST_FINDINGS {
            let more = format!("and {} more, in the report", found.len() - MOST_FINDINGS);
            rows.push(vec![id.into(), String::new(), more]);
        }
    }
    (!rows.is_empty()).then(|| {
        Block::Table(Table {
            caption: "Findings".into(),
            columns: vec![words("guard"), words("kind"), prose("what it says")],
            rows,
        })
    })
}

/// A value for some layers and kinds of tensor; of several the one that is largest in magnitude.
#[derive(Default)]
struct ByLayer {
    values: BTreeMap<String, BTreeMap<usize, f64>>,
    last: usize,
}

impl ByLayer {
    fn put(&mut self, place: &Place, kind: &str, value: f64) {
        let of_kind = self.values.entry(kind.to_owned()).or_default();
        let held = of_kind.entry(place.layer).or_insert(value);
        if value.abs() > held.abs() {
            *held = value;
        }
        self.last = self.last.max(place.layer);
    }

    /// A chart; none where nothing was put.
    fn chart(
        self,
        model: &Model,
        title: &str,
        y_title: &str,
        logarithmic: bool,
        note: &str,
    ) -> Option<Lines> {
        if self.values.is_empty() {
            return None;
        }
        let layers = model.places.values().map(|place| place.layer).max();
        let layers = layers.unwrap_or(0).max(self.last) + 1;
        let series = self
            .values
            .iter()
            .enumerate()
            .map(|(look, (kind, values))| Series {
                name: kind.clone(),
                look,
                values: (0..layers)
                    .map(|layer| values.get(&layer).copied())
                    .collect(),
            });
        Some(Lines {
            title: title.into(),
            x_title: "layer".into(),
            y_title: y_title.into(),
            x: (0..layers).map(|layer| layer.to_string()).collect(),
            logarithmic,
            series: series.collect(),
            note: note.into(),
        })
    }
}

/// The z scores that the report lists.
fn z_by_layer(model: &Model, subject: &Subject) -> Option<Lines> {
    let mut layers = ByLayer::default();
    let families = subject.z_scores.as_object().into_iter().flatten();
    for (family, listed) in families {
        for entry in listed.as_array().into_iter().flatten() {
            let (Some(module), Some(z)) = (entry["module"].as_str(), entry["z"].as_f64()) else {
                continue;
            };
            if let Some(place) = model.places.get(&format!("{module}.weight")) {
                layers.put(place, family, z);
            }
        }
    }
    layers.chart(
        model,
        "z of the largest singular value, by layer",
        "z",
        false,
        "The guard spectral's: modules with the largest z of each family, as far as the report lists them.",
    )
}

/// By how much each matrix's largest singular value changed.
fn spectrum(model: &Model, subject: &Subject) -> Option<Lines> {
    let top = |spectra: &Spectra, name: &str| spectra.get(name)?.first().copied();
    let mut layers = ByLayer::default();
    for (name, place) in &model.places {
        let (Some(before), Some(after)) = (top(&model.spectra, name), top(&subject.spectra, name))
        else {
            continue;
        };
        let change = 100.0 * (after / before - 1.0);
        if change != 0.0 && change.is_finite() {
            layers.put(place, &place.role, change);
        }
    }
    layers.chart(
        model,
        "Change of the largest singular value, by layer",
        "per cent of the baseline's",
        false,
        "Matrices that changed; where a layer has several of a kind, the one that changed most.",
    )
}

/// The unedited model's singular values.
fn unedited(model: &Model) -> Option<Block> {
    let chart = |at: usize, title: &str| {
        let mut layers = ByLayer::default();
        for (name, place) in &model.places {
            let value = model.spectra.get(name).and_then(|values| values.get(at));
            if let Some(value) = value {
                layers.put(place, &place.role, *value);
            }
        }
        layers.chart(model, title, "singular value", true, "")
    };
    // Nine places from the largest to the smallest: the middle one is the median.
    let charts: Vec<Lines> = [
        chart(0, "Unedited model: largest singular value"),
        chart(4, "Unedited model: median singular value"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let kinds: BTreeSet<&str> = model
        .places
        .values()
        .map(|place| place.role.as_str())
        .collect();
    (!charts.is_empty() && !kinds.is_empty()).then_some(Block::Lines(charts))
}
