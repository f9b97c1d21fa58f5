//! Data sets: a list of texts, each of which can become one window.
//!
//! | provider | file | texts |
//! |---|---|---|
//! | `local_jsonl` | one JSON object per line | the string under the text field; blank lines and blank texts are skipped; at most 2000 texts |
//! | `text` | plain UTF-8 | if a blank line follows a text, documents are separated by blank lines; otherwise every line is one |
//!
//! Texts keep their order and their inner white space.

use crate::canonical::sha256_hex;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// A `local_jsonl` data set is cut after so many texts, as in the reference.
pub const MAX_TEXTS: usize = 2000;

/// How a data set's file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// One JSON object per line.
    LocalJsonl,
    /// Lines, or documents separated by blank lines.
    Text,
}

impl Provider {
    /// The name in reports and configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LocalJsonl => "local_jsonl",
            Self::Text => "text",
        }
    }
}

/// A list of texts and where it came from.
#[derive(Debug, Clone)]
pub struct Dataset {
    provider: Provider,
    path: PathBuf,
    digest: String,
    texts: Vec<String>,
}

/// Which data set it was, as reports name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatasetIdentity<'a> {
    /// How the file was read.
    pub provider: &'a str,
    /// SHA-256 of the file's bytes, in lower-case hexadecimal.
    pub digest: &'a str,
}

impl Dataset {
    /// Open a file by its ending: `.jsonl` and `.ndjson` as [`Dataset::local_jsonl`] with the field `text`, anything else
    /// as [`Dataset::text`].
    pub fn open(path: &Path) -> Result<Self> {
        let ending = path.extension().and_then(|ending| ending.to_str());
        match ending.map(str::to_ascii_lowercase).as_deref() {
            Some("jsonl" | "ndjson") => Self::local_jsonl(path, "text"),
            _ => Self::text(path),
        }
    }

    /// Read one JSON object per line and take the string under `field`.
    ///
    /// Errors name the line: not JSON, not an object, no such field, or a field that is not text.
    pub fn local_jsonl(path: &Path, field: &str) -> Result<Self> {
        let (content, digest) = read(path)?;
        let mut texts = Vec::new();
        let mut lines = 0;
        for (index, line) in content.lines().enumerate() {
            lines += 1;
            if line.trim().is_empty() || texts.len() == MAX_TEXTS {
                continue;
            }
            let bad = |reason: String| Error::BadLine {
                path: path.to_owned(),
                line: index + 1,
                reason,
            };
            let value: serde_json::Value =
                serde_json::from_str(line).map_err(|error| bad(format!("is not JSON: {error}")))?;
            let object = value
                .as_object()
                .ok_or_else(|| bad("is not a JSON object".into()))?;
            let value = object.get(field).ok_or_else(|| {
                let known: Vec<&str> = object.keys().map(String::as_str).collect();
                bad(format!(
                    "has no field `{field}` (it has: {})",
                    known.join(", ")
                ))
            })?;
            let text = value
                .as_str()
                .ok_or_else(|| bad(format!("field `{field}` is not text")))?;
            if !text.trim().is_empty() {
                texts.push(text.to_owned());
            }
        }
        Self::new(Provider::LocalJsonl, path, digest, texts, lines)
    }

    /// Read plain text. If a blank line stands between two texts, documents are separated by blank lines and keep their
    /// line breaks; otherwise every line is a document.
    pub fn text(path: &Path) -> Result<Self> {
        let (content, digest) = read(path)?;
        let lines = content.lines().count();
        let mut blocks: Vec<String> = Vec::new();
        let mut open = false;
        for line in content.lines() {
            if line.trim().is_empty() {
                open = false;
            } else if open {
                if let Some(block) = blocks.last_mut() {
                    block.push('\n');
                    block.push_str(line);
                }
            } else {
                blocks.push(line.to_owned());
                open = true;
            }
        }
        if blocks.len() == 1 {
            blocks = content
                .lines()
                .filter(|line| !line.trim().is_empty())
                .map(str::to_owned)
                .collect();
        }
        Self::new(Provider::Text, path, digest, blocks, lines)
    }

    fn new(
        provider: Provider,
        path: &Path,
        digest: String,
        texts: Vec<String>,
        lines: usize,
    ) -> Result<Self> {
        if texts.is_empty() {
            return Err(Error::EmptyDataset {
                path: path.to_owned(),
                lines,
            });
        }
        Ok(Self {
            provider,
            path: path.to_owned(),
            digest,
            texts,
        })
    }

    /// Which data set it is.
    #[must_use]
    pub fn identity(&self) -> DatasetIdentity<'_> {
        DatasetIdentity {
            provider: self.provider.name(),
            digest: &self.digest,
        }
    }

    /// How the file was read.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of the file's bytes, in lower-case hexadecimal.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The texts, at least one, none blank.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        &self.texts
    }
}

fn read(path: &Path) -> Result<(String, String)> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let digest = sha256_hex(&bytes);
    let content = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        Error::BadLine {
            path: path.to_owned(),
            line: 1 + valid.iter().filter(|byte| **byte == b'\n').count(),
            reason: "is not UTF-8".into(),
        }
    })?;
    Ok((content, digest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(ending: &str, content: &[u8]) -> tempfile::TempPath {
        let mut file = tempfile::Builder::new().suffix(ending).tempfile().unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
        file.into_temp_path()
    }

    #[test]
    fn json_lines() {
        let path = file(
            ".jsonl",
            b"{\"text\": \"a b\"}\n\n{\"text\": \"  \"}\n{\"text\": \"c\\nd\"}",
        );
        let data = Dataset::open(&path).unwrap();
        assert_eq!(data.texts(), ["a b", "c\nd"]);
        assert_eq!(data.provider().name(), "local_jsonl");
        assert_eq!(data.digest().len(), 64);
    }

    #[test]
    fn bad_lines_are_named() {
        for (content, line, reason) in [
            (&b"{\"text\": \"a\"}\n{oops"[..], 2, "is not JSON"),
            (b"[1]\n", 1, "is not a JSON object"),
            (
                b"{\"body\": \"a\"}\n",
                1,
                "has no field `text` (it has: body)",
            ),
            (b"\n\n{\"text\": 7}\n", 3, "field `text` is not text"),
            (b"{\"text\": \"a\"}\n\xff\n", 2, "is not UTF-8"),
        ] {
            let path = file(".jsonl", content);
            let message = Dataset::open(&path).unwrap_err().to_string();
            assert!(
                message.contains(&format!("line {line}: {reason}")),
                "{message}"
            );
        }
        let path = file(".jsonl", b"\n  \n{\"text\": \"\"}\n");
        let message = Dataset::open(&path).unwrap_err().to_string();
        assert!(
            message.contains("the data set is empty: 3 lines"),
            "{message}"
        );
        let message = Dataset::open(Path::new("no/such.jsonl"))
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("no/such.jsonl: cannot be read"),
            "{message}"
        );
    }

    #[test]
    fn plain_text() {
        let path = file(".txt", b"\none\ntwo\n\n\nthree\n");
        assert_eq!(Dataset::open(&path).unwrap().texts(), ["one\ntwo", "three"]);
        let path = file(".txt", b"one\ntwo\nthree\n\n");
        assert_eq!(
            Dataset::open(&path).unwrap().texts(),
            ["one", "two", "three"]
        );
    }
}
