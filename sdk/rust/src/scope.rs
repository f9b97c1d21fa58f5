//! Which tensors an edit touches: the scope strings of the evidence-pack suites.
//!
//! `ffn`, `attn` and `all` select matrices by words in their names, as the reference does. What is decided differently here,
//! and why:
//! - a scope word that is not known, and a scope that selects nothing, are errors, because an edit that changes nothing is
//!   no edit;
//! - the layer suffix (`ffn@layer=15`, `attn@layers=4`) works for every edit type and for `layers`, `h` and `blocks`;
//! - Mixtral's experts as stored (`experts.N.w1`, `w2`, `w3`) count as feed-forward matrices, which the word list misses;
//! - the router gate is left alone, since it decides which expert works and is no feed-forward weight, unless the suffix
//!   asks for it: `ffn@router`.

use std::fmt;
use std::str::FromStr;

use crate::{Failure, ModelInfo, Result, Role, TensorInfo};

/// Path segments that mark parts of a multimodal model which are never edited.
const NEVER: [&str; 7] = [
    "connector",
    "mm_projector",
    "multi_modal_projector",
    "vision_encoder",
    "vision_model",
    "vision_resampler",
    "vision_tower",
];

/// A group of matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Feed-forward blocks, experts included.
    Ffn,
    /// Attention projections.
    Attn,
    /// Both.
    All,
}

impl Family {
    /// Words of which a selected tensor's lower-case name contains one.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Ffn => &[
                "mlp",
                "fc",
                "dense",
                "gate",
                "up_proj",
                "down_proj",
                "dense_h_to_4h",
                "dense_4h_to_h",
            ],
            Self::Attn => &[
                "attn",
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "wqkv",
                "out_proj",
                "query_key_value",
            ],
            Self::All => &[
                "linear",
                "dense",
                "proj",
                "fc",
                "mlp",
                "attn",
                "wqkv",
                "query_key_value",
            ],
        }
    }
}

/// A parsed scope string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    text: String,
    family: Family,
    only_layer: Option<i64>,
    below_layer: Option<i64>,
    router: bool,
}

impl FromStr for Scope {
    type Err = Failure;

    /// `word["@"item{","item}]` with words `ffn`, `attn`, `all` and items `layer=K`, `layers=N`, `router`. As in the
    /// reference, an item that is not known and a layer that is no integer are ignored.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let (word, suffix) = text.split_once('@').unwrap_or((text, ""));
        let family = match word.trim() {
            "ffn" => Family::Ffn,
            "attn" => Family::Attn,
            "all" => Family::All,
            other => {
                return Err(Failure::invalid(format!(
                    "`scope` is `{text}`: there is no scope `{other}`; use ffn, attn or all, \
                     optionally with @layer=K, @layers=N or @router"
                )));
            }
        };
        let mut scope = Self {
            text: text.to_owned(),
            family,
            only_layer: None,
            below_layer: None,
            router: false,
        };
        for item in suffix
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            match key.trim() {
                "layer" => scope.only_layer = value.trim().parse().ok(),
                "layers" => scope.below_layer = value.trim().parse().ok(),
                "router" => scope.router = true,
                _ => {}
            }
        }
        Ok(scope)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Scope {
    /// The word before the `@`.
    pub fn base(&self) -> &'static str {
        match self.family {
            Family::Ffn => "ffn",
            Family::Attn => "attn",
            Family::All => "all",
        }
    }

    /// The layer that `@layer=K` keeps.
    pub fn layer(&self) -> Option<i64> {
        self.only_layer
    }

    /// The bound of `@layers=N`.
    pub fn layer_limit(&self) -> Option<i64> {
        self.below_layer
    }

    /// Whether the router gate was asked for.
    pub fn includes_router(&self) -> bool {
        self.router
    }

    /// Whether this scope selects a tensor.
    pub fn selects(&self, tensor: &TensorInfo) -> bool {
        if !tensor.is_matrix_like() {
            return false;
        }
        if self.only_layer.is_some() || self.below_layer.is_some() {
            let Some(layer) = layer_of(&tensor.name).map(i64::from) else {
                return false;
            };
            if self.only_layer.is_some_and(|only| layer != only)
                || self.below_layer.is_some_and(|below| layer >= below)
            {
                return false;
            }
        }
        let name = tensor.name.to_lowercase();
        let path_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name
            .split(|c| !path_char(c))
            .any(|segment| NEVER.contains(&segment))
        {
            return false;
        }
        if is_router(tensor) {
            return self.router && self.family != Family::Attn;
        }
        let expert = self.family != Family::Attn && is_expert_matrix(&name);
        expert || self.family.words().iter().any(|word| name.contains(word))
    }

    /// The names of the selected tensors, in module order.
    ///
    /// # Errors
    /// When nothing is selected.
    pub fn select(&self, model: &ModelInfo) -> Result<Vec<String>> {
        let names: Vec<String> = model
            .tensors
            .iter()
            .filter(|tensor| self.selects(tensor))
            .map(|tensor| tensor.name.clone())
            .collect();
        if names.is_empty() {
            return Err(Failure::invalid(format!(
                "scope `{self}` selects no tensor of this {} model with {} layers: nothing would be edited",
                model.architecture, model.layers
            )));
        }
        Ok(names)
    }
}

/// The block index in a tensor's name: the digits after the first `layers.`, `h.` or `blocks.`.
pub fn layer_of(name: &str) -> Option<u32> {
    let segments: Vec<&str> = name.split('.').collect();
    segments.windows(3).find_map(|window| {
        let number = window[1];
        let block = ["layers", "h", "blocks"]
            .iter()
            .any(|word| window[0].ends_with(word));
        (block && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| number.parse().ok())?
    })
}

/// Whether a tensor is the gate that routes tokens to experts.
pub fn is_router(tensor: &TensorInfo) -> bool {
    tensor.role == Role::Router
        || tensor
            .name
            .split('.')
            .rev()
            .nth(1)
            .is_some_and(|segment| segment == "gate" || segment == "router")
}

/// Whether a lower-case name is one of Mixtral's stored expert matrices: `experts.N.w1`, `w2` or `w3`.
fn is_expert_matrix(name: &str) -> bool {
    let segments: Vec<&str> = name.split('.').collect();
    segments.windows(3).any(|window| {
        window[0] == "experts"
            && !window[1].is_empty()
            && window[1].bytes().all(|byte| byte.is_ascii_digit())
            && ["w1", "w2", "w3"].contains(&window[2])
    })
}
