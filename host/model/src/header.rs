//! The safetensors header: strict parsing, and writing.
//!
//! A file is an 8-byte little-endian header length, a JSON header padded with spaces, and the data. The header maps each
//! tensor's name to `{dtype, shape, data_offsets}`, offsets counted from the first data byte; `__metadata__` maps text to
//! text. The parser here is stricter than most: names and keys must be unique, and the tensors must tile the data without
//! overlap, hole or remainder, so that every byte of a file means something. It touches no files.

use std::collections::{BTreeMap, HashSet};

use packhost_tensor::DType;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};

use crate::error::HeaderProblem;

/// Longest header accepted, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes of the length field.
const LENGTH_FIELD: usize = 8;

/// One tensor of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Full name, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    /// First byte, counted from the first data byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// The checked header of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Tensors in the order in which the header names them.
    pub entries: Vec<Entry>,
    /// Free text, such as `format: pt`. Empty when the file has none.
    pub metadata: BTreeMap<String, String>,
    /// Offset of the first data byte in the file.
    pub data_start: usize,
}

impl Header {
    /// Parses and checks the header of `file`, the whole file's bytes. Only the header's pages are read.
    ///
    /// # Errors
    /// The first thing that breaks the format, by name of tensor and field.
    pub fn parse(file: &[u8]) -> Result<Self, HeaderProblem> {
        let len = file.len() as u64;
        let (length, rest) = file
            .split_first_chunk::<LENGTH_FIELD>()
            .ok_or(HeaderProblem::TooShort { len })?;
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER {
            return Err(HeaderProblem::LengthTooLarge {
                length,
                limit: MAX_HEADER,
            });
        }
        // The limit above makes the conversion exact.
        let Some((json, data)) = rest.split_at_checked(length as usize) else {
            return Err(HeaderProblem::LengthBeyondFile { length, len });
        };
        let text = std::str::from_utf8(json).map_err(|error| HeaderProblem::NotUtf8 {
            at: error.valid_up_to(),
        })?;
        if !text.starts_with('{') {
            return Err(HeaderProblem::Json(
                "the header does not start with `{`".into(),
            ));
        }
        let raw: RawHeader =
            serde_json::from_str(text).map_err(|error| HeaderProblem::Json(error.to_string()))?;

        let entries = raw
            .tensors
            .into_iter()
            .map(|(name, raw)| raw.check(name))
            .collect::<Result<Vec<_>, _>>()?;
        check_tiling(&entries, data.len())?;
        Ok(Self {
            entries,
            metadata: raw.metadata,
            data_start: LENGTH_FIELD + json.len(),
        })
    }

    /// The bytes of length field and header, padded so that the data starts at a multiple of eight. Tensors are written
    /// in the order of `entries`; the same header always gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut json = String::from("{");
        let text = |value: &str| serde_json::Value::from(value).to_string();
        if !self.metadata.is_empty() {
            let pairs: Vec<_> = self
                .metadata
                .iter()
                .map(|(key, value)| format!("{}:{}", text(key), text(value)))
                .collect();
            json += &format!("\"__metadata__\":{{{}}}", pairs.join(","));
        }
        for entry in &self.entries {
            if json.len() > 1 {
                json.push(',');
            }
            let shape: Vec<_> = entry.shape.iter().map(usize::to_string).collect();
            json += &format!(
                "{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                text(&entry.name),
                entry.dtype.name(),
                shape.join(","),
                entry.start,
                entry.end
            );
        }
        json.push('}');
        while !json.len().is_multiple_of(8) {
            json.push(' ');
        }
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes
    }
}

/// Checks that `entries` tile `0..data_len` exactly.
fn check_tiling(entries: &[Entry], data_len: usize) -> Result<(), HeaderProblem> {
    let mut by_start: Vec<&Entry> = entries.iter().collect();
    by_start.sort_by_key(|entry| (entry.start, entry.end));
    let mut at = 0;
    let mut previous = "";
    for entry in by_start {
        if entry.start < at {
            return Err(HeaderProblem::Overlap {
                first: previous.into(),
                second: entry.name.clone(),
                at: entry.start as u64,
            });
        }
        if entry.start > at {
            return Err(HeaderProblem::Hole {
                tensor: entry.name.clone(),
                start: at as u64,
                end: entry.start as u64,
            });
        }
        if entry.end > data_len {
            return Err(HeaderProblem::ShortFile {
                tensor: entry.name.clone(),
                end: entry.end as u64,
                len: data_len as u64,
            });
        }
        at = entry.end;
        previous = &entry.name;
    }
    if at < data_len {
        return Err(HeaderProblem::Trailing {
            bytes: (data_len - at) as u64,
        });
    }
    Ok(())
}

/// The header's JSON before any check of meaning.
struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

/// One tensor's JSON. A repeated, missing or unknown key is refused by name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawEntry {
    fn check(self, name: String) -> Result<Entry, HeaderProblem> {
        let Some(dtype) = DType::from_name(&self.dtype) else {
            return Err(HeaderProblem::UnknownDtype {
                tensor: name,
                dtype: self.dtype,
            });
        };
        let shape: Option<Vec<usize>> = self
            .shape
            .iter()
            .map(|&axis| usize::try_from(axis).ok())
            .collect();
        let bytes = shape.as_ref().and_then(|shape| {
            shape
                .iter()
                .try_fold(dtype.size(), |product, &axis| product.checked_mul(axis))
        });
        let (Some(shape), Some(bytes)) = (shape, bytes) else {
            return Err(HeaderProblem::ShapeTooLarge {
                tensor: name,
                shape: self.shape,
            });
        };
        let (start, end) = self.data_offsets;
        if end < start {
            return Err(HeaderProblem::Reversed {
                tensor: name,
                start,
                end,
            });
        }
        let (expected, found) = (bytes as u64, end - start);
        if expected != found {
            return Err(HeaderProblem::Size {
                tensor: name,
                dtype,
                shape,
                expected,
                found,
            });
        }
        match (usize::try_from(start), usize::try_from(end)) {
            (Ok(start), Ok(end)) => Ok(Entry {
                name,
                dtype,
                shape,
                start,
                end,
            }),
            _ => Err(HeaderProblem::ShapeTooLarge {
                tensor: name,
                shape: self.shape,
            }),
        }
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object that maps tensor names to tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader {
                    tensors: Vec::new(),
                    metadata: BTreeMap::new(),
                };
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(de::Error::custom(format!(
                            "the name `{name}` appears twice"
                        )));
                    }
                    let within = |error: A::Error| de::Error::custom(format!("`{name}`: {error}"));
                    if name == "__metadata__" {
                        let UniqueMap(metadata) = map.next_value().map_err(within)?;
                        header.metadata = metadata;
                    } else {
                        let entry = map.next_value().map_err(within)?;
                        header.tensors.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A map of text to text that refuses a repeated key. Used for metadata and for the index's `weight_map`.
pub(crate) struct UniqueMap(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UniqueVisitor;
        impl<'de> Visitor<'de> for UniqueVisitor {
            type Value = UniqueMap;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object that maps text to text")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if pairs.contains_key(&key) {
                        return Err(de::Error::custom(format!("the key `{key}` appears twice")));
                    }
                    pairs.insert(key, value);
                }
                Ok(UniqueMap(pairs))
            }
        }
        deserializer.deserialize_map(UniqueVisitor)
    }
}
