//! Parameters: from JSON with messages that name the field, range checks, and their schema.

use std::borrow::Cow;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::{Failure, Result};

/// Parameters from JSON. An empty text counts as `{}`.
///
/// # Errors
/// Invalid parameters, naming the field that could not be read.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    let text = if text.trim().is_empty() { "{}" } else { text };
    serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        match field_before(text, error.line(), error.column()) {
            // Messages about unknown and missing fields name the field themselves.
            Some(field) if !message.contains("field `") => {
                Failure::invalid(format!("`{field}`: {message}"))
            }
            _ => Failure::invalid(message),
        }
    })
}

/// A value as JSON.
///
/// # Errors
/// When the value has no JSON form, such as a map with keys that are no strings.
pub fn write<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Failure::failed(format!("cannot write parameters as JSON: {error}")))
}

/// The JSON Schema of a parameter type.
pub fn schema<T: JsonSchema>() -> String {
    schemars::schema_for!(T).to_value().to_string()
}

/// Refuses a value outside `range`.
///
/// # Errors
/// Invalid parameters, with field, value and range.
pub fn within<T: PartialOrd + Display>(
    field: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T> {
    if range.contains(&value) {
        Ok(value)
    } else {
        let (low, high) = (range.start(), range.end());
        Err(Failure::invalid(format!(
            "`{field}` is {value}, allowed are {low} to {high}"
        )))
    }
}

/// Refuses a value below `least`.
///
/// # Errors
/// Invalid parameters, with field, value and bound.
pub fn at_least<T: PartialOrd + Display>(field: &str, value: T, least: T) -> Result<T> {
    if value >= least {
        Ok(value)
    } else {
        Err(Failure::invalid(format!(
            "`{field}` is {value}, it must be at least {least}"
        )))
    }
}

/// Turns any error into a refusal of parameters.
pub trait Failures<T> {
    /// The value, or invalid parameters with this message.
    ///
    /// # Errors
    /// Invalid parameters.
    fn invalid(self, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E> Failures<T> for std::result::Result<T, E> {
    fn invalid(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|_| Failure::InvalidParams(message()))
    }
}

/// A setting that scenarios may write as a string, a number or a boolean: `"0.90"`, `0.9`, `true`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting<T>(pub T);

impl<T: Default> Default for Setting<T> {
    fn default() -> Self {
        Self(T::default())
    }
}

/// A switch: `1`, `true`, `yes` and `on` against `0`, `false`, `no`, `off` and nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(Self(true)),
            "0" | "false" | "no" | "off" | "" => Ok(Self(false)),
            _ => Err(()),
        }
    }
}

impl<'de, T: FromStr> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            Value::Bool(switch) => switch.to_string(),
            other => {
                return Err(D::Error::custom(format!(
                    "{other} is neither a string, a number nor a boolean"
                )));
            }
        };
        match text.trim().parse() {
            Ok(value) => Ok(Self(value)),
            Err(_) => Err(D::Error::custom(format!(
                "cannot read \"{text}\" as {}",
                kind::<T>()
            ))),
        }
    }
}

/// What a setting of this type is called in messages.
fn kind<T>() -> &'static str {
    match std::any::type_name::<T>() {
        "f64" | "f32" => "a number",
        "u32" | "u64" | "usize" => "a whole number from 0 on",
        name if name.ends_with("Switch") => "a switch (1 or 0)",
        _ => "such a value",
    }
}

impl<T> JsonSchema for Setting<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Setting".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

/// The last key of a JSON object that begins before the given place (lines and columns count from 1).
fn field_before(text: &str, line: usize, column: usize) -> Option<&str> {
    let start: usize = text
        .split_inclusive('\n')
        .take(line.checked_sub(1)?)
        .map(str::len)
        .sum();
    let before = text.get(..(start + column).min(text.len()))?;
    let mut end = before.len();
    // Keys are strings followed by a colon: walk the colons backwards until one follows a quote.
    while let Some(colon) = before[..end].rfind(':') {
        let head = before[..colon].trim_end();
        if let Some(head) = head.strip_suffix('"')
            && let Some(open) = head.rfind('"')
        {
            return Some(&head[open + 1..]);
        }
        end = colon;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only its parsing is looked at")]
    struct Example {
        bits: u8,
        #[serde(default)]
        scope: String,
    }

    fn message(text: &str) -> String {
        parse::<Example>(text)
            .err()
            .map(|failure| failure.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn messages_name_the_field() {
        assert_eq!(
            message(r#"{"scope": "ffn", "bits": "four"}"#),
            "invalid parameters: `bits`: invalid type: string \"four\", expected u8 at line 1 column 31"
        );
        assert_eq!(
            message("{\n \"bits\": 700\n}"),
            "invalid parameters: `bits`: invalid value: integer `700`, expected u8 at line 2 column 12"
        );
        assert!(
            message(r#"{"bit": 4}"#)
                .starts_with("invalid parameters: unknown field `bit`, expected `bits` or `scope`")
        );
        assert!(message("").starts_with("invalid parameters: missing field `bits`"));
    }

    #[test]
    fn ranges_name_value_and_bounds() {
        let failure = within("bits", 17, 1..=16)
            .err()
            .map(|failure| failure.to_string());
        assert_eq!(
            failure.as_deref(),
            Some("invalid parameters: `bits` is 17, allowed are 1 to 16")
        );
        assert!(within("sparsity", f64::NAN, 0.0..=1.0).is_err());
        assert_eq!(at_least("rank", 1, 1), Ok(1));
    }
}
