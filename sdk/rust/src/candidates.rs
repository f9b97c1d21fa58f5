//! How fault injections choose their targets: by words in names, by block, shuffled and cut.

use crate::params::Failures;
use crate::scope::layer_of;
use crate::{Failure, ModelInfo, Result, rng};

/// Words of attention tensors.
pub const ATTENTION: [&str; 10] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "c_attn",
    "c_proj",
    "out_proj",
    "query_key_value",
    "self_attn",
    "attention",
];
/// Words of feed-forward tensors.
pub const FEED_FORWARD: [&str; 10] = [
    "mlp",
    "ffn",
    "feed_forward",
    "gate_proj",
    "up_proj",
    "down_proj",
    "fc1",
    "fc2",
    "c_fc",
    "experts",
];
/// Words of embeddings.
pub const EMBEDDING: [&str; 3] = ["embed", "wte", "wpe"];
/// Words of query, key and value projections.
pub const QUERY_KEY_VALUE: [&str; 5] = ["q_proj", "k_proj", "v_proj", "c_attn", "query_key_value"];

/// A rule for candidates.
pub struct Rule<'a> {
    /// Whether a tensor's lower-case name belongs to the family.
    pub family: &'a dyn Fn(&str) -> bool,
    /// Comma-separated words of which the name must contain one; empty for no further filter.
    pub containing: &'a str,
    /// Layers: empty for the last `default_last` that have candidates, `all` or `*` for every one, else numbers and
    /// `a-b` ranges separated by commas. What lies outside the model is dropped.
    pub layers: &'a str,
    /// How many layers an empty `layers` means.
    pub default_last: usize,
    /// Whether tensors outside any block are candidates, too.
    pub outside_blocks: bool,
}

/// Tensors that a rule chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidates {
    /// In layer order and, within a layer, in module order; those outside blocks come last.
    pub names: Vec<String>,
    /// The layers that were meant, as far as they exist.
    pub layers: Vec<u32>,
    /// One more than the highest layer with candidates.
    pub total_layers: u32,
}

impl Rule<'_> {
    /// The candidates among a model's floating-point tensors with two or more axes.
    ///
    /// # Errors
    /// When `layers` cannot be read.
    pub fn find(&self, model: &ModelInfo) -> Result<Candidates> {
        let containing: Vec<String> = self
            .containing
            .split(',')
            .map(|word| word.trim().to_lowercase())
            .filter(|word| !word.is_empty())
            .collect();
        let mut in_blocks: Vec<(u32, &str)> = Vec::new();
        let mut outside: Vec<String> = Vec::new();
        for tensor in model
            .tensors
            .iter()
            .filter(|tensor| tensor.is_matrix_like() && tensor.dtype.is_float())
        {
            let name = tensor.name.to_lowercase();
            let wanted =
                containing.is_empty() || containing.iter().any(|word| name.contains(word.as_str()));
            if !wanted || !(self.family)(&name) {
                continue;
            }
            match layer_of(&tensor.name) {
                Some(layer) => in_blocks.push((layer, &tensor.name)),
                None => outside.push(tensor.name.clone()),
            }
        }
        let mut present: Vec<u32> = in_blocks.iter().map(|candidate| candidate.0).collect();
        present.sort_unstable();
        present.dedup();
        let total_layers = present.last().map_or(0, |last| last + 1);
        let layers = layers(self.layers, total_layers, &present, self.default_last)?;
        let of = |layer: &u32| {
            let layer = *layer;
            in_blocks
                .iter()
                .filter(move |candidate| candidate.0 == layer)
                .map(|candidate| candidate.1.to_owned())
        };
        let mut names: Vec<String> = layers.iter().flat_map(of).collect();
        if self.outside_blocks {
            names.extend(outside);
        }
        Ok(Candidates {
            names,
            layers,
            total_layers,
        })
    }
}

impl Candidates {
    /// Shuffles with Python's generator and keeps the first `most`.
    #[must_use]
    pub fn shuffled(mut self, seed: u64, most: usize) -> Self {
        rng::python_shuffle(seed, &mut self.names);
        self.names.truncate(most);
        self
    }

    /// Refuses an empty choice: an injection that changes nothing is no injection.
    ///
    /// # Errors
    /// When there is no candidate.
    pub fn or_refuse(self, error_type: &str) -> Result<Self> {
        if self.names.is_empty() {
            return Err(Failure::unsupported(format!(
                "{error_type}: no tensor of this model matches the settings (layers {:?} of {}), nothing would be injected",
                self.layers, self.total_layers
            )));
        }
        Ok(self)
    }
}

/// The layers that a text means.
fn layers(text: &str, total: u32, present: &[u32], default_last: usize) -> Result<Vec<u32>> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(present[present.len().saturating_sub(default_last)..].to_vec());
    }
    if text.eq_ignore_ascii_case("all") || text == "*" {
        return Ok((0..total).collect());
    }
    let number = |part: &str| {
        part.trim()
            .parse::<u32>()
            .invalid(|| format!("layers `{text}`: `{part}` is no layer; write 3, 0-3, 1,5 or all"))
    };
    let mut layers = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (from, to) = match part.split_once('-') {
            Some((from, to)) => (number(from)?, number(to)?),
            None => (number(part)?, number(part)?),
        };
        layers.extend((from..=to.min(total.saturating_sub(1))).filter(|layer| *layer < total));
    }
    Ok(layers)
}
