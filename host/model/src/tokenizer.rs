//! Text to token ids, by a checkpoint's `tokenizer.json`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde_json::Value;

use crate::{
    digest,
    error::{Error, Result},
};

/// A loaded tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    digest: String,
    /// `tokenizer_config.json`, or null.
    settings: Value,
    /// The id that begins every text, where no template of the tokenizer puts it there.
    first: Option<u32>,
}

impl Tokenizer {
    /// Loads `dir/tokenizer.json`, and `dir/tokenizer_config.json` if it is there.
    ///
    /// # Errors
    /// When the first is missing or either is broken.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let refuse = |path: &PathBuf, problem| Error::Tokenizer {
            path: path.clone(),
            problem,
        };
        let bytes = fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => refuse(
                &path,
                "the file is missing; a slow tokenizer must be saved as tokenizer.json first, for example with \
                 AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(...)"
                    .into(),
            ),
            _ => refuse(&path, error.to_string()),
        })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|error| refuse(&path, format!("it is not a tokenizer: {error}")))?;
        // What the file says about cutting and padding is for training; windows are cut by who measures.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| refuse(&path, error.to_string()))?;

        let settings_path = dir.join("tokenizer_config.json");
        let settings = match fs::read(&settings_path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| refuse(&settings_path, format!("it is not JSON: {error}")))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Value::Null,
            Err(error) => return Err(refuse(&settings_path, error.to_string())),
        };
        let templated = inner.get_post_processor().is_some();
        let mut tokenizer = Self {
            inner,
            digest: digest::bytes(&bytes),
            settings,
            first: None,
        };
        let wanted = tokenizer.settings.get("add_bos_token") != Some(&Value::Bool(false));
        if !templated && wanted {
            tokenizer.first = tokenizer.special_id("bos_token");
        }
        Ok(tokenizer)
    }

    /// Token ids of `text`, with the special tokens that the tokenizer's own template adds. A tokenizer without a template
    /// begins a text with the `bos_token` of `tokenizer_config.json`, unless that file says `"add_bos_token": false`: so
    /// does the library that the reference uses.
    ///
    /// # Errors
    /// When the tokenizer cannot express the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|error| Error::Encode {
                problem: error.to_string(),
            })?;
        Ok(self
            .first
            .iter()
            .chain(encoding.get_ids())
            .copied()
            .collect())
    }

    /// [`encode`](Self::encode) for many texts, in parallel; the result is in the order of `texts`.
    ///
    /// # Errors
    /// When one of them cannot be expressed.
    pub fn encode_all<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Vec<Vec<u32>>> {
        texts
            .par_iter()
            .map(|text| self.encode(text.as_ref()))
            .collect()
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of `token`, spelt as in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The id of a special token by its name in `tokenizer_config.json`, such as `pad_token` or `bos_token`.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        let value = self.settings.get(name)?;
        // Plain text, or an object that describes an added token.
        let token = value.as_str().or_else(|| value.get("content")?.as_str())?;
        self.token_id(token)
    }

    /// SHA-256 of `tokenizer.json`, hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} ids)", self.vocab_size())
    }
}
