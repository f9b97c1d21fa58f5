//! JSON in one form only, so that a digest of it means something.
//!
//! One line, keys sorted, no spaces, everything outside ASCII escaped, numbers as the shortest decimal that reads back
//! to the same double, written as Python's `repr` writes it. Python's `json.dumps(value, sort_keys=True,
//! separators=(",", ":"))` gives the same bytes, so an auditor needs none of our code to check a digest.

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// The canonical text of a value.
#[must_use]
pub fn to_line(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value);
    out
}

/// SHA-256 of bytes, in lower-case hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        push(&mut out, format_args!("{byte:02x}"));
    }
    out
}

/// A double as Python's `repr` writes it; NaN and infinities as the words NaN, Infinity, -Infinity.
#[must_use]
pub fn number(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let scientific = format!("{value:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    match exponent.parse::<i32>() {
        Ok(power) if (-4..16).contains(&power) => {
            let plain = value.to_string();
            if plain.contains('.') {
                plain
            } else {
                plain + ".0"
            }
        }
        Ok(power) => {
            let sign = if power < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", power.abs())
        }
        Err(_) => scientific,
    }
}

fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Number(value) => match (value.as_i64(), value.as_u64(), value.as_f64()) {
            (Some(integer), _, _) => push(out, format_args!("{integer}")),
            (_, Some(integer), _) => push(out, format_args!("{integer}")),
            (_, _, Some(double)) => out.push_str(&number(double)),
            _ => out.push_str("null"),
        },
        Value::String(text) => write_text(out, text),
        Value::Array(items) => {
            out.push('[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                write_value(out, item);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (position, (key, item)) in entries.into_iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                write_text(out, key);
                out.push(':');
                write_value(out, item);
            }
            out.push('}');
        }
    }
}

/// A JSON string in ASCII.
pub(crate) fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    push(out, format_args!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push('"');
}

/// Append formatted text; writing to a string cannot fail.
pub(crate) fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_as_python_writes_them() {
        for (value, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-1.25e-7, "-1.25e-07"),
            (5e-324, "5e-324"),
            (-0.0, "-0.0"),
            (113.03442409741805, "113.03442409741805"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn one_form() {
        let value = json!({"b": [1, 2.0, null], "a": {"é": "\u{1F600}\n\u{7f}", "Z": true}});
        assert_eq!(
            to_line(&value),
            r#"{"a":{"Z":true,"\u00e9":"\ud83d\ude00\n\u007f"},"b":[1,2.0,null]}"#
        );
    }
}
