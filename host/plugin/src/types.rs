//! The plain types that cross this crate's surface: what plugins are told and what they answer.
//!
//! They mirror `wit/` one to one, without the generated bindings, so that a caller needs no knowledge of the sandbox and a
//! change of the engine changes no signature.

use std::fmt;

use packhost_tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::CallStats;

/// What a plugin is for. One component serves one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PluginKind {
    /// Changes weights on purpose: quantisation, pruning. World `edit-plugin`.
    Edit,
    /// Damages a checkpoint on purpose. World `error-plugin`.
    Injection,
    /// Judges measurements. World `guard-plugin`.
    Guard,
}

impl PluginKind {
    /// Every kind, in order.
    pub const ALL: [PluginKind; 3] = [PluginKind::Edit, PluginKind::Injection, PluginKind::Guard];

    /// The name in `plugin.toml`, which is also the name of the exported interface.
    pub fn name(self) -> &'static str {
        match self {
            PluginKind::Edit => "edit",
            PluginKind::Injection => "injection",
            PluginKind::Guard => "guard",
        }
    }

    /// The world in `wit/` that such a plugin is built for.
    pub fn world(self) -> &'static str {
        match self {
            PluginKind::Edit => "edit-plugin",
            PluginKind::Injection => "error-plugin",
            PluginKind::Guard => "guard-plugin",
        }
    }
}

impl fmt::Display for PluginKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a tensor does in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are the field's own")]
pub enum Role {
    Embedding,
    LmHead,
    Norm,
    AttnQ,
    AttnK,
    AttnV,
    AttnOut,
    FfnGate,
    FfnUp,
    FfnDown,
    Router,
    Bias,
    Other,
}

/// Facts about one tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorInfo {
    /// Name in the checkpoint.
    pub name: String,
    /// Axes, outermost first; a linear layer's weight is `[out, in]`.
    pub shape: Vec<u64>,
    /// Element type.
    #[serde(with = "dtype_name")]
    pub dtype: DType,
    /// What it does in the network.
    pub role: Role,
    /// Which transformer layer it belongs to, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Which expert it belongs to, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<u32>,
    /// The tensor whose storage this one shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tied_to: Option<String>,
}

/// Facts about a model, as plugins see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// Name of the architecture, as the host understands it.
    pub architecture: String,
    /// Number of transformer layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// Experts per layer; 0 for a dense model.
    pub experts: u32,
    /// All tensors in module order.
    pub tensors: Vec<TensorInfo>,
}

/// Element types by their spelling in safetensors files.
mod dtype_name {
    use packhost_tensor::DType;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde decides the signature"
    )]
    pub(super) fn serialize<S: Serializer>(
        dtype: &DType,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(dtype.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<DType, D::Error> {
        let name = String::deserialize(deserializer)?;
        DType::from_name(&name)
            .ok_or_else(|| D::Error::custom(format!("there is no element type `{name}`")))
    }
}

/// Who a plugin says it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Descriptor {
    /// Lower-case, dots and dashes: `quant-rtn`.
    pub id: String,
    /// The plugin's own version.
    pub version: String,
    /// One line for people.
    pub title: String,
    /// JSON Schema of the parameters (edits, injections) or of the policy (guards).
    pub schema: String,
}

/// One tensor that an edit wants to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name of the tensor.
    pub tensor: String,
    /// Parameters for it, JSON of the plugin's own.
    pub params: String,
}

/// A number about one changed tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fact {
    /// What it is, such as `relative-error`.
    pub name: String,
    /// Its value; may be NaN or infinite.
    pub value: f64,
}

/// A changed tensor.
#[derive(Debug, Clone)]
pub struct Edited {
    /// The new values, in the target's shape and dtype.
    pub tensor: Tensor,
    /// Numbers about the change, in the plugin's order.
    pub facts: Vec<Fact>,
}

/// The facts of one target, for [`EditPlugin::summarize`](crate::EditPlugin::summarize).
#[derive(Debug, Clone, PartialEq)]
pub struct TargetFacts {
    /// Name of the tensor.
    pub tensor: String,
    /// What `apply` reported about it.
    pub facts: Vec<Fact>,
}

/// Something a guard wants measured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// Which quantity, such as `window.loss`.
    pub quantity: String,
    /// Of what: a tensor, a module, a glob, or `model`.
    pub scope: String,
    /// Parameters of the quantity, JSON.
    pub params: String,
}

/// One measured value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A single number.
    Number(f64),
    /// A vector, such as one number per window.
    Vector(Vec<f64>),
    /// Text, such as a dtype.
    Text(String),
}

/// One row of a measurement table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Of what.
    pub scope: String,
    /// Which quantity.
    pub quantity: String,
    /// What was found.
    pub value: Value,
}

/// How a verdict reads in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Nothing wrong.
    Pass,
    /// Worth a look, not damage.
    Warn,
    /// Damaged.
    Fail,
}

/// One thing that a guard found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// Where: a tensor, a module, or `model`.
    pub scope: String,
    /// A stable code in the guard's own terms.
    pub code: String,
    /// One sentence for people.
    pub message: String,
    /// The measured figure.
    pub value: Option<f64>,
    /// The figure it was held against.
    pub limit: Option<f64>,
}

/// What a guard concluded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// In one word.
    pub status: Status,
    /// In detail, in the guard's order.
    pub findings: Vec<Finding>,
    /// A JSON object for the report, in the guard's own terms.
    pub details: String,
}

/// What a guard answers: a verdict, or what it still has to know.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// It has decided.
    Verdict(Verdict),
    /// It wants more measured, then to be asked again.
    Measure(Vec<Request>),
}

/// Why a plugin declined a call, in its own words; also what a host service answers a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The parameters or the policy are wrong.
    InvalidParams(String),
    /// It cannot do this to this model.
    Unsupported(String),
    /// Anything else.
    Failed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::InvalidParams(text) => write!(f, "invalid parameters: {text}"),
            Failure::Unsupported(text) => write!(f, "unsupported: {text}"),
            Failure::Failed(text) => f.write_str(text),
        }
    }
}

/// A checkpoint that an injection may damage. The host implements it over an overlay.
///
/// Every method may refuse; the refusal reaches the plugin as its `failure`, and the plugin usually passes it on.
pub trait Draft: Send {
    /// The model as it stands now, damage included.
    ///
    /// # Errors
    /// When the damaged state cannot be described.
    fn model(&self) -> Result<ModelInfo, Failure>;

    /// A tensor and its facts as they stand now. The tensor shares the checkpoint's bytes.
    ///
    /// # Errors
    /// When there is no such tensor or it cannot be read.
    fn get(&self, name: &str) -> Result<(TensorInfo, Tensor), Failure>;

    /// Replaces a tensor or adds one.
    ///
    /// # Errors
    /// When the name cannot be written to a checkpoint.
    fn put(&mut self, name: &str, tensor: Tensor) -> Result<(), Failure>;

    /// Removes a tensor.
    ///
    /// # Errors
    /// When there is no such tensor.
    fn remove(&mut self, name: &str) -> Result<(), Failure>;

    /// `config.json` as it stands now.
    fn config(&self) -> String;

    /// A new `config.json`, known to be a JSON object.
    ///
    /// # Errors
    /// When the host cannot use it.
    fn set_config(&mut self, config: &str) -> Result<(), Failure>;
}

/// How loud a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// For the plugin's author.
    Debug,
    /// Progress and facts.
    Info,
    /// Something is odd.
    Warn,
}

/// One line that a plugin wrote, through `log` or to its standard output or error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// How loud.
    pub level: Level,
    /// The text, without a line end.
    pub message: String,
}

/// A plugin's answer together with what the call cost and wrote.
#[derive(Debug, Clone)]
pub struct Called<T> {
    /// The checked answer.
    pub value: T,
    /// What the call cost.
    pub stats: CallStats,
    /// What the plugin wrote, in order.
    pub log: Vec<LogLine>,
}
