//! Presets as YAML: objects in block form with the reference's order of keys, everything else as JSON, which YAML contains.
//! The reader takes this form back, and files written by hand in the same plain style; it is no general YAML reader.

use crate::canonical::to_line;
use crate::{Error, Result};
use serde_json::{Map, Value};

/// Keys in the order of the reference's presets; others follow by name.
const ORDER: [&str; 39] = [
    "_calibration_meta",
    "model_name",
    "num_runs",
    "tier",
    "drift_mean",
    "drift_std",
    "drift_band_compatible",
    "suggested_drift_band",
    "edit_type",
    "model",
    "id",
    "dataset",
    "provider",
    "split",
    "seq_len",
    "stride",
    "preview_n",
    "final_n",
    "seed",
    "guards",
    "order",
    "spectral",
    "rmt",
    "variance",
    "family_caps",
    "sigma_quantile",
    "epsilon_by_family",
    "margin",
    "deadband",
    "max_caps",
    "min_effect_lognll",
    "min_gain",
    "primary_metric",
    "drift_band",
    "min",
    "max",
    "assurance",
    "kappa",
    "structure",
];

/// A preset's text.
#[must_use]
pub fn to_yaml(preset: &Value) -> String {
    let mut out = String::new();
    if let Value::Object(map) = preset {
        write(&mut out, map, 0);
    }
    out
}

fn write(out: &mut String, map: &Map<String, Value>, depth: usize) {
    let mut entries: Vec<(&String, &Value)> = map.iter().collect();
    let place = |key: &str| ORDER.iter().position(|known| *known == key);
    entries.sort_by_key(|(key, _)| (place(key).unwrap_or(ORDER.len()), (*key).clone()));
    for (key, value) in entries {
        out.push_str(&"  ".repeat(depth));
        out.push_str(&key_text(key));
        out.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                write(out, inner, depth + 1);
            }
            value => {
                out.push(' ');
                out.push_str(to_line(value).trim_end());
                out.push('\n');
            }
        }
    }
}

/// A key as it stands, or in quotes where YAML could read something else.
fn key_text(key: &str) -> String {
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&key);
    if plain {
        key.to_owned()
    } else {
        to_line(&Value::String(key.to_owned()))
            .trim_end()
            .to_owned()
    }
}

/// Reads a preset's text.
///
/// # Errors
/// In words, with the line: what is not in this form.
pub fn from_yaml(text: &str) -> Result<Value> {
    let mut root = Value::Object(Map::new());
    // Keys on the way to the object that is being read, each with its indentation.
    let mut path: Vec<(usize, String)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') || line.trim_end() == "---" {
            continue;
        }
        let bad = |what: &str| Error::Preset(format!("line {}: {what}: `{line}`", number + 1));
        let indent = line.len() - content.len();
        let (key, rest) = split_key(content).ok_or_else(|| bad("is no `key: value`"))?;
        while path.last().is_some_and(|(outer, _)| *outer >= indent) {
            path.pop();
        }
        let mut place = &mut root;
        for (_, key) in &path {
            place = &mut place[key.as_str()];
        }
        let Value::Object(map) = place else {
            return Err(bad("stands below a value"));
        };
        if map.contains_key(&key) {
            return Err(bad("repeats a key"));
        }
        if rest.is_empty() {
            map.insert(key.clone(), Value::Object(Map::new()));
            path.push((indent, key));
        } else {
            let value = scalar(rest).ok_or_else(|| bad("has a value that is not read"))?;
            map.insert(key, value);
        }
    }
    Ok(root)
}

/// The key of a line and what stands after its colon.
fn split_key(content: &str) -> Option<(String, &str)> {
    if content.starts_with('"') {
        let mut stream = serde_json::Deserializer::from_str(content).into_iter::<String>();
        let key = stream.next()?.ok()?;
        let rest = content[stream.byte_offset()..].strip_prefix(':')?;
        return Some((key, rest.trim()));
    }
    let (key, rest) = content.split_once(':')?;
    let separated = rest.is_empty() || rest.starts_with(' ');
    (separated && !key.is_empty()).then(|| (key.to_owned(), rest.trim()))
}

/// JSON, or a plain word.
fn scalar(text: &str) -> Option<Value> {
    if let Ok(value) = serde_json::from_str(text) {
        return Some(value);
    }
    let plain = !text.starts_with([
        '[', '{', '"', '\'', '&', '*', '!', '|', '>', '%', '@', '`', '-',
    ]) && !text.contains(" #")
        && !text.contains(": ");
    plain.then(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn there_and_back_in_the_references_order() {
        let preset = json!({
            "primary_metric": {"drift_band": {"max": 1.07, "min": 0.9}},
            "guards": {
                "spectral": {"max_caps": 5, "family_caps": {"attn": {"kappa": 3.068}}},
                "order": ["invariants", "spectral"],
                "weight_shift": {"calibration": {"runs": 5, "places": {"a.weight": [0.5, 1e-9]}}},
            },
            "model": {"id": "org/model: a \"name\""},
            "dataset": {},
            "_calibration_meta": {"num_runs": 5, "tier": "balanced", "suggested_drift_band": [0.9, 1.07]},
        });
        let text = to_yaml(&preset);
        assert_eq!(from_yaml(&text).unwrap(), preset);
        let first: Vec<&str> = text.lines().filter(|line| !line.starts_with(' ')).collect();
        assert_eq!(
            first,
            [
                "_calibration_meta:",
                "model:",
                "dataset: {}",
                "guards:",
                "primary_metric:"
            ]
        );
        assert!(text.contains(
            "  spectral:\n    family_caps:\n      attn:\n        kappa: 3.068\n    max_caps: 5\n"
        ));
    }

    #[test]
    fn other_texts_are_refused_with_their_line() {
        for (text, what) in [
            ("a: 1\na: 2\n", "line 2: repeats a key"),
            ("a:\n  - 1\n", "line 2: is no `key: value`"),
            ("a: &x 1\n", "line 1: has a value"),
            ("nothing\n", "line 1: is no"),
        ] {
            let error = from_yaml(text).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
