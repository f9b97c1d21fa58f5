//! Measurement tables: everything that a guard may know about one subject.
//!
//! A row is (scope, quantity, value). Rows are sorted and unique, and a table has exactly one text, whose SHA-256 is its
//! identity: a verdict is a function of two tables, and whoever holds the tables can derive it again.

use crate::canonical::{number, push, sha256_hex, write_text};
use crate::{Error, Result};
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// The format's name, first in every table.
pub const SCHEMA: &str = "packhost-measurements-v1";

/// What a row holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// One number; NaN and infinities are allowed.
    Number(f64),
    /// One number per window, axis or the like.
    Vector(Vec<f64>),
    /// Text, such as a dtype.
    Text(String),
}

/// One measured value.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Of what: a tensor, an arm of the windows, or `model`.
    pub scope: String,
    /// Which quantity, such as `window.loss`.
    pub quantity: String,
    /// What was found.
    pub value: Value,
}

/// All measurements of one subject, sorted by scope and quantity.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    rows: BTreeMap<(String, String), Value>,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Record a value; a second one for the same scope and quantity replaces the first.
    pub fn put(&mut self, scope: &str, quantity: &str, value: Value) {
        self.rows.insert((scope.into(), quantity.into()), value);
    }

    /// Record a number.
    pub fn put_number(&mut self, scope: &str, quantity: &str, value: f64) {
        self.put(scope, quantity, Value::Number(value));
    }

    /// Record a text.
    pub fn put_text(&mut self, scope: &str, quantity: &str, value: impl Into<String>) {
        self.put(scope, quantity, Value::Text(value.into()));
    }

    /// Record a vector.
    pub fn put_vector(&mut self, scope: &str, quantity: &str, value: Vec<f64>) {
        self.put(scope, quantity, Value::Vector(value));
    }

    /// The value at a scope.
    #[must_use]
    pub fn get(&self, scope: &str, quantity: &str) -> Option<&Value> {
        self.rows.get(&(scope.to_owned(), quantity.to_owned()))
    }

    /// The number at a scope, if there is one and it is a number.
    #[must_use]
    pub fn number(&self, scope: &str, quantity: &str) -> Option<f64> {
        match self.get(scope, quantity) {
            Some(Value::Number(value)) => Some(*value),
            _ => None,
        }
    }

    /// The vector at a scope, if there is one.
    #[must_use]
    pub fn vector(&self, scope: &str, quantity: &str) -> Option<&[f64]> {
        match self.get(scope, quantity) {
            Some(Value::Vector(value)) => Some(value),
            _ => None,
        }
    }

    /// The text at a scope, if there is one.
    #[must_use]
    pub fn text(&self, scope: &str, quantity: &str) -> Option<&str> {
        match self.get(scope, quantity) {
            Some(Value::Text(value)) => Some(value),
            _ => None,
        }
    }

    /// The rows in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row> + '_ {
        self.rows.iter().map(|((scope, quantity), value)| Row {
            scope: scope.clone(),
            quantity: quantity.clone(),
            value: value.clone(),
        })
    }

    /// Scope and quantity of each row, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.rows
            .keys()
            .map(|(scope, quantity)| (scope.as_str(), quantity.as_str()))
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Copy the rows of another table whose scope and quantity satisfy a condition.
    pub fn copy_from(&mut self, other: &Table, mut wanted: impl FnMut(&str, &str) -> bool) {
        for ((scope, quantity), value) in &other.rows {
            if wanted(scope, quantity) {
                self.rows
                    .insert((scope.clone(), quantity.clone()), value.clone());
            }
        }
    }

    /// The one text of this table: canonical JSON (see [`crate::canonical`]) with a final line feed. A row is
    /// `{"number"|"text"|"vector": …, "quantity": …, "scope": …}`; non-finite numbers are the strings `NaN`, `Infinity`
    /// and `-Infinity`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = String::from("{\"rows\":[");
        for (position, ((scope, quantity), value)) in self.rows.iter().enumerate() {
            if position > 0 {
                out.push(',');
            }
            out.push('{');
            // Keys in ASCII order: "number" before "quantity" before "scope" before "text" and "vector".
            if let Value::Number(value) = value {
                out.push_str("\"number\":");
                write_number(&mut out, *value);
                out.push(',');
            }
            out.push_str("\"quantity\":");
            write_text(&mut out, quantity);
            out.push_str(",\"scope\":");
            write_text(&mut out, scope);
            match value {
                Value::Number(_) => {}
                Value::Text(text) => {
                    out.push_str(",\"text\":");
                    write_text(&mut out, text);
                }
                Value::Vector(values) => {
                    out.push_str(",\"vector\":[");
                    for (position, value) in values.iter().enumerate() {
                        if position > 0 {
                            out.push(',');
                        }
                        write_number(&mut out, *value);
                    }
                    out.push(']');
                }
            }
            out.push('}');
        }
        push(&mut out, format_args!("],\"schema\":\"{SCHEMA}\"}}\n"));
        out
    }

    /// SHA-256 of [`Table::to_json`], in lower-case hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        sha256_hex(self.to_json().as_bytes())
    }

    /// Read a table, accepting nothing but its one text.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |reason: String| Error::Table(reason);
        let json: Json =
            serde_json::from_str(text).map_err(|error| bad(format!("is not JSON: {error}")))?;
        if json["schema"] != SCHEMA {
            return Err(bad(format!(
                "schema must be `{SCHEMA}`, not {}",
                json["schema"]
            )));
        }
        let rows = json["rows"]
            .as_array()
            .ok_or_else(|| bad("`rows` is missing or not a list".into()))?;
        let mut table = Self::new();
        for (position, row) in rows.iter().enumerate() {
            let text = |key: &str| {
                row[key]
                    .as_str()
                    .ok_or_else(|| bad(format!("row {position}: `{key}` is missing or not text")))
            };
            let number = |value: &Json| {
                read_number(value)
                    .ok_or_else(|| bad(format!("row {position}: {value} is no number")))
            };
            let value = if let Some(value) = row.get("number") {
                Value::Number(number(value)?)
            } else if let Some(Json::Array(items)) = row.get("vector") {
                Value::Vector(items.iter().map(number).collect::<Result<_>>()?)
            } else {
                Value::Text(text("text")?.to_owned())
            };
            let key = (text("scope")?.to_owned(), text("quantity")?.to_owned());
            let last = table.rows.last_key_value();
            if last.is_some_and(|(last, _)| *last >= key) {
                return Err(bad(format!(
                    "row {position} (`{}` of `{}`) is out of order or repeated",
                    key.1, key.0
                )));
            }
            table.rows.insert(key, value);
        }
        if table.to_json() != text {
            return Err(bad(
                "is not in canonical form (extra keys, spaces or other spellings of numbers)"
                    .into(),
            ));
        }
        Ok(table)
    }
}

fn write_number(out: &mut String, value: f64) {
    if value.is_finite() {
        out.push_str(&number(value));
    } else {
        push(out, format_args!("\"{}\"", number(value)));
    }
}

fn read_number(value: &Json) -> Option<f64> {
    match value {
        Json::Number(number) => number.as_f64(),
        Json::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn table() -> Table {
        let mut table = Table::new();
        table.put_vector("final", "window.loss", vec![5.5, f64::NAN, 1e-7]);
        table.put_number("model", "parameter.count", 3.0);
        table.put_text("a.weight", "tensor.dtype", "bf16 \"é\"");
        table.put_number("model", "kl.max", f64::INFINITY);
        table
    }

    #[test]
    fn one_text() {
        let text = table().to_json();
        assert_eq!(
            text,
            concat!(
                r#"{"rows":[{"quantity":"tensor.dtype","scope":"a.weight","text":"bf16 \"\u00e9\""},"#,
                r#"{"quantity":"window.loss","scope":"final","vector":[5.5,"NaN",1e-07]},"#,
                r#"{"number":"Infinity","quantity":"kl.max","scope":"model"},"#,
                r#"{"number":3.0,"quantity":"parameter.count","scope":"model"}],"#,
                r#""schema":"packhost-measurements-v1"}"#,
                "\n"
            )
        );
        let read = Table::parse(&text).unwrap();
        assert_eq!(read.to_json(), text);
        assert_eq!(read.digest(), table().digest());
        assert_eq!(read.len(), 4);
    }

    #[test]
    fn refuses_other_texts() {
        let text = table().to_json();
        let cases = [
            (text.replace("\"rows\":", "\"rows\": "), "canonical"),
            (text.replace("3.0", "3"), "canonical"),
            (text.replace("3.0", "true"), "no number"),
            (text.replace("kl.max", "zz"), "out of order"),
            (text.replace("v1", "v2"), "schema"),
            (
                text.replace("\"scope\":\"model\"}", "\"scope\":\"model\",\"x\":1}"),
                "canonical",
            ),
            (text.replace("\"final\"", "7"), "`scope`"),
            (text[..40].to_owned(), "not JSON"),
        ];
        for (text, reason) in cases {
            let error = Table::parse(&text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error} should mention {reason}");
        }
    }
}
