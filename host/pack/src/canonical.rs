//! JSON text as Python's `json.dumps` writes it, byte for byte.
//!
//! Two forms: one line with sorted keys (`", "` and `": "`), which is what gets signed and hashed, and an indented one for files that people read.
//! Both escape everything outside printable ASCII and print floats in their shortest round-trip form in Python's notation.

use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

/// One line, keys sorted at every level, ASCII only, no final line feed: `json.dumps(value, sort_keys=True)`.
pub fn to_line(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value, None);
    out
}

/// Indented by two, keys sorted, ASCII only, no final line feed: `json.dumps(value, sort_keys=True, indent=2)`.
pub fn to_pretty(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value, Some(0));
    out
}

/// The bytes of a one-line file: [`to_line`] and a line feed.
pub fn line_file(value: &Value) -> Vec<u8> {
    let mut text = to_line(value);
    text.push('\n');
    text.into_bytes()
}

/// The bytes of an indented file: [`to_pretty`] and a line feed.
pub fn pretty_file(value: &Value) -> Vec<u8> {
    let mut text = to_pretty(value);
    text.push('\n');
    text.into_bytes()
}

/// `indent` is the depth of the enclosing line, or nothing for the one-line form.
fn write_value(out: &mut String, value: &Value, indent: Option<usize>) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write_number(out, number),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => write_array(out, items, indent),
        Value::Object(fields) => write_object(out, fields, indent),
    }
}

fn write_array(out: &mut String, items: &[Value], indent: Option<usize>) {
    if items.is_empty() {
        out.push_str("[]");
        return;
    }
    out.push('[');
    for (position, item) in items.iter().enumerate() {
        separate(out, position > 0, indent);
        write_value(out, item, indent.map(|depth| depth + 1));
    }
    close(out, ']', indent);
}

fn write_object(out: &mut String, fields: &Map<String, Value>, indent: Option<usize>) {
    if fields.is_empty() {
        out.push_str("{}");
        return;
    }
    // The map may keep insertion order, depending on what else is linked in: sort in any case. Byte order of UTF-8 is code point order.
    let mut sorted: Vec<_> = fields.iter().collect();
    sorted.sort_unstable_by_key(|(key, _)| key.as_str());
    out.push('{');
    for (position, (key, item)) in sorted.into_iter().enumerate() {
        separate(out, position > 0, indent);
        write_string(out, key);
        out.push_str(": ");
        write_value(out, item, indent.map(|depth| depth + 1));
    }
    close(out, '}', indent);
}

fn separate(out: &mut String, comma: bool, indent: Option<usize>) {
    match indent {
        None if comma => out.push_str(", "),
        None => {}
        Some(depth) => {
            if comma {
                out.push(',');
            }
            new_line(out, depth + 1);
        }
    }
}

fn close(out: &mut String, bracket: char, indent: Option<usize>) {
    if let Some(depth) = indent {
        new_line(out, depth);
    }
    out.push(bracket);
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    for _ in 0..depth {
        out.push_str("  ");
    }
}

fn write_number(out: &mut String, number: &Number) {
    if number.is_f64() {
        out.push_str(&float(number.as_f64().unwrap_or(f64::NAN)));
    } else {
        // Writing to a string cannot fail.
        let _ = write!(out, "{number}");
    }
}

/// A float as Python's `repr` prints it: shortest digits that read back as the same number, an exponent below 1e-4 and from 1e16 on.
///
/// Infinities and NaN become the words that Python writes; a `serde_json::Value` never holds them.
pub fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    // `{:e}` gives the shortest digits: `d.ddde<exponent>`.
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let mut plain = format!("{value}");
        if !plain.contains('.') {
            plain.push_str(".0");
        }
        plain
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
    }
}

fn write_string(out: &mut String, text: &str) {
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
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn floats_are_printed_as_python_prints_them() {
        // Left: the number. Right: what `repr` answers in Python 3.12.
        let cases: [(f64, &str); 16] = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1.0 / 3.0, "0.3333333333333333"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1e22, "1e+22"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (5e-324, "5e-324"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
            (-2.5e-10, "-2.5e-10"),
            (21.831051418620845, "21.831051418620845"),
        ];
        for (number, text) in cases {
            assert_eq!(float(number), text);
        }
    }

    #[test]
    fn one_line_form() {
        let value = json!({"z": [1, 2.0, null, true, {}], "a": {"é": "\u{7f}\u{1f600}\"\\\n\u{1}"}, "e": []});
        assert_eq!(
            to_line(&value),
            r#"{"a": {"\u00e9": "\u007f\ud83d\ude00\"\\\n\u0001"}, "e": [], "z": [1, 2.0, null, true, {}]}"#
        );
    }

    #[test]
    fn indented_form() {
        let value = json!({"b": [1, [], {}], "a": "x"});
        assert_eq!(
            to_pretty(&value),
            "{\n  \"a\": \"x\",\n  \"b\": [\n    1,\n    [],\n    {}\n  ]\n}"
        );
    }
}
