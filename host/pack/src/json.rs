//! Reading JSON that may be hostile: sizes and depths are bounded, repeated keys are noticed, bare NaN and Infinity are refused.
//!
//! The text must be UTF-8 without a byte order mark. Where a key is repeated the last value wins, as in Python, and the reader lists the repetition, so
//! that a caller can refuse it (all readers in this crate do) after checking what the lenient reading means.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Largest control file (manifest, checksum list, signature, scenario table) that is read.
pub const CONTROL_LIMIT: u64 = 64 << 20;
/// Largest report that is read.
pub const REPORT_LIMIT: u64 = 256 << 20;
/// Deepest nesting that is read.
pub const DEPTH_LIMIT: usize = 64;

/// A document and the keys that it repeats.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The value; of a repeated key the last one.
    pub value: Value,
    /// Repeated keys, in the order of their second appearance; at most 16 are listed.
    pub repeated: Vec<String>,
}

/// Why a text is not acceptable JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// There is no such file.
    #[error("cannot be read: there is no such file")]
    Absent,
    /// The file could not be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The file is larger than its kind may be.
    #[error("is larger than {limit} bytes, the most that is read of such a file")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// Not UTF-8, or it begins with a byte order mark.
    #[error("is not plain UTF-8 text: {0}")]
    Encoding(String),
    /// Not JSON.
    #[error("is not JSON: {0}")]
    Syntax(String),
    /// A bare NaN or Infinity, which JSON does not have.
    #[error("holds a bare NaN or Infinity, which is not JSON: {0}")]
    NonFinite(String),
    /// Nested deeper than [`DEPTH_LIMIT`].
    #[error("is nested deeper than {DEPTH_LIMIT} levels")]
    TooDeep,
    /// A key is given twice in one object.
    #[error("repeats the key {0}, so its meaning depends on the reader")]
    Repeated(String),
}

impl Document {
    /// The value, unless a key is repeated.
    pub fn strict(self) -> Result<Value, Fault> {
        match self.repeated.first() {
            None => Ok(self.value),
            Some(key) => Err(Fault::Repeated(format!("`{key}`"))),
        }
    }
}

/// Reads a file of at most `limit` bytes.
pub fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>, Fault> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Fault::Absent,
        _ => Fault::Unreadable(error.to_string()),
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        return Err(Fault::TooLarge { limit });
    }
    Ok(bytes)
}

/// Parses a whole text.
pub fn parse(bytes: &[u8]) -> Result<Document, Fault> {
    let text = std::str::from_utf8(bytes).map_err(|error| Fault::Encoding(error.to_string()))?;
    if text.starts_with('\u{feff}') {
        return Err(Fault::Encoding(
            "it begins with a byte order mark".to_owned(),
        ));
    }
    let state = State::default();
    let mut reader = serde_json::Deserializer::from_str(text);
    let parsed = Seed {
        state: &state,
        depth: 0,
    }
    .deserialize(&mut reader)
    .and_then(|value| reader.end().map(|()| value));
    match parsed {
        Ok(value) => Ok(Document {
            value,
            repeated: state.repeated.into_inner(),
        }),
        Err(_) if state.too_deep.get() => Err(Fault::TooDeep),
        Err(error) if names_non_finite(text, error.line(), error.column()) => {
            Err(Fault::NonFinite(error.to_string()))
        }
        Err(error) => Err(Fault::Syntax(error.to_string())),
    }
}

/// Reads and parses a file strictly: no repeated keys.
pub fn read_strict(path: &Path, limit: u64) -> Result<Value, Fault> {
    parse(&read_bytes(path, limit)?)?.strict()
}

/// Whether the parser stopped at one of the words that Python writes for non-finite floats. Lines and columns count from 1, columns in bytes.
fn names_non_finite(text: &str, line: usize, column: usize) -> bool {
    let Some(line) = text
        .as_bytes()
        .split(|byte| *byte == b'\n')
        .nth(line.saturating_sub(1))
    else {
        return false;
    };
    // The parser reports the column of the offending character or of the one after it.
    let from = column.saturating_sub(2).min(line.len());
    let near = &line[from..line.len().min(from + 12)];
    [&b"NaN"[..], b"Infinity"].iter().any(|word| {
        near.windows(word.len())
            .take(3)
            .any(|window| window == *word)
    })
}

#[derive(Default)]
struct State {
    repeated: RefCell<Vec<String>>,
    too_deep: Cell<bool>,
}

#[derive(Clone, Copy)]
struct Seed<'s> {
    state: &'s State,
    depth: usize,
}

impl Seed<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= DEPTH_LIMIT {
            self.state.too_deep.set(true);
            return Err(E::custom("nested too deeply"));
        }
        Ok(Self {
            state: self.state,
            depth: self.depth + 1,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(seed)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut fields = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value_seed(seed)?;
            if fields.contains_key(&key) {
                let mut repeated = self.state.repeated.borrow_mut();
                if repeated.len() < 16 {
                    repeated.push(key.clone());
                }
            }
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

/// Short ways into a value. All answer nothing, rather than fail, where the shape is another.
pub(crate) mod get {
    use serde_json::{Map, Value};

    /// The value below a chain of object keys.
    pub(crate) fn at<'v>(value: &'v Value, path: &[&str]) -> Option<&'v Value> {
        path.iter()
            .try_fold(value, |value, key| value.as_object()?.get(*key))
    }

    /// The object below a chain of object keys.
    pub(crate) fn object<'v>(value: &'v Value, path: &[&str]) -> Option<&'v Map<String, Value>> {
        at(value, path)?.as_object()
    }

    /// The number below a chain of object keys. Booleans are never numbers.
    pub(crate) fn number(value: &Value, path: &[&str]) -> Option<f64> {
        at(value, path)?.as_f64()
    }

    /// The text below a chain of object keys.
    pub(crate) fn text<'v>(value: &'v Value, path: &[&str]) -> Option<&'v str> {
        at(value, path)?.as_str()
    }

    /// Whether the boolean `true` is below a chain of object keys.
    pub(crate) fn is_true(value: &Value, path: &[&str]) -> bool {
        at(value, path) == Some(&Value::Bool(true))
    }

    /// Python's idea of truth.
    pub(crate) fn truthy(value: Option<&Value>) -> bool {
        match value {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Bool(true)) => true,
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(items)) => !items.is_empty(),
            Some(Value::Object(fields)) => !fields.is_empty(),
        }
    }

    /// An integer in the sense of JSON Schema: `1.0` is one.
    pub(crate) fn integer(value: &Value) -> Option<f64> {
        value.as_f64().filter(|number| number.fract() == 0.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_are_listed_and_the_last_wins() {
        let document = parse(br#"{"a": 1, "b": {"c": 1, "c": 2}, "a": 3}"#).unwrap();
        assert_eq!(document.value, serde_json::json!({"a": 3, "b": {"c": 2}}));
        assert_eq!(document.repeated, ["c", "a"]);
        assert!(matches!(document.strict(), Err(Fault::Repeated(_))));
    }

    #[test]
    fn faults_have_their_own_kind() {
        assert!(matches!(parse(b"{\"a\": NaN}"), Err(Fault::NonFinite(_))));
        assert!(matches!(
            parse(b"{\"a\":\n -Infinity}"),
            Err(Fault::NonFinite(_))
        ));
        assert!(matches!(parse(b"{\"a\": nope}"), Err(Fault::Syntax(_))));
        assert!(matches!(parse(b"{\"a\": 1} 2"), Err(Fault::Syntax(_))));
        assert!(matches!(parse(b""), Err(Fault::Syntax(_))));
        assert!(matches!(parse(b"\xef\xbb\xbf{}"), Err(Fault::Encoding(_))));
        assert!(matches!(parse(b"{\"\xff\": 1}"), Err(Fault::Encoding(_))));
        assert!(matches!(
            parse("[".repeat(5000).as_bytes()),
            Err(Fault::TooDeep)
        ));
        let deepest = format!("{}{}", "[".repeat(DEPTH_LIMIT), "]".repeat(DEPTH_LIMIT));
        assert!(parse(deepest.as_bytes()).is_ok());
    }
}
