//! `config.json`, as written by current and by older versions of the model library.
//!
//! Reading is in two steps, because editing a checkpoint asks for less than running it. [`Config::parse`] takes any causal
//! language model's configuration and refuses only values of the wrong kind; whatever stands in the way of a forward pass
//! (another architecture, a scaled rotary embedding, a missing size) is collected and comes out of [`Config::served`].
//! Nothing that would change the numbers is ignored.

use std::{fmt, path::Path};

use packhost_tensor::DType;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// More layers or experts than this is a damaged file.
const MAX_COUNT: u64 = 65_536;

/// The architectures whose forward pass this crate has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Architecture {
    /// Llama and Yi.
    Llama,
    /// Mistral, with or without a sliding window.
    Mistral,
    /// Qwen 1.5, 2 and 2.5: biases on query, key and value.
    Qwen2,
    /// Qwen 3: norms on query and key.
    Qwen3,
    /// Mixtral: a mixture of experts, some of which serve each token.
    Mixtral,
}

impl Architecture {
    /// Every served architecture.
    pub const ALL: [Self; 5] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Mixtral,
    ];

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Mixtral => "mixtral",
        }
    }

    /// Entry of `architectures` in `config.json`.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Mixtral => "MixtralForCausalLM",
        }
    }

    fn from_names(class_name: Option<&str>, model_type: Option<&str>) -> Option<Self> {
        let by =
            |matches: &dyn Fn(Self) -> bool| Self::ALL.into_iter().find(|&known| matches(known));
        match class_name {
            Some(name) => by(&|known| known.class_name() == name),
            None => by(&|known| Some(known.model_type()) == model_type),
        }
    }

    /// Key/value heads when the field is absent, which in the model library depends on the architecture.
    fn default_kv_heads(self, heads: usize) -> usize {
        match self {
            Self::Llama => heads,
            Self::Mistral | Self::Mixtral => 8,
            Self::Qwen2 | Self::Qwen3 => 32,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class_name())
    }
}

/// What `config.json` says about a causal language model. Sizes that are absent are 0 and named by
/// [`served`](Self::served).
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The architecture, when it is one whose forward pass is served.
    pub architecture: Option<Architecture>,
    /// Name as written: the first of `architectures`, else `model_type`, else `unknown`.
    pub architecture_name: String,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Width of the feed-forward layer (of one expert, where there are experts).
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding's wavelengths.
    pub rope_theta: f64,
    /// Attention window in tokens, the current one included; `None` is full attention. See [`window`](Self::window).
    pub sliding_window: Option<usize>,
    /// For architectures that mix: which layers use the window. Empty means that all do.
    sliding_layers: Vec<bool>,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has one.
    pub output_bias: bool,
    /// Whether the feed-forward projections have them.
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised per head before rotation (Qwen 3).
    pub query_key_norm: bool,
    /// Experts per layer; 0 for a dense model.
    pub num_local_experts: usize,
    /// Experts that serve each token; 0 for a dense model.
    pub num_experts_per_tok: usize,
    /// The dtype that the file says its weights have. The tensors' own dtypes are what counts.
    pub dtype: Option<DType>,
    /// What stands in the way of a forward pass.
    problems: Vec<String>,
}

impl Config {
    /// Reads `json`, the contents of the file `path` (which is only named in errors).
    ///
    /// # Errors
    /// When the architecture is served and a field is of the wrong kind or out of range; when there are absurdly many
    /// layers or experts.
    pub fn parse(json: &Value, path: &Path) -> Result<Self> {
        let Value::Object(object) = json else {
            return Err(Error::Config {
                path: path.into(),
                field: String::new(),
                problem: format!("it is {}, it should be an object", kind(json)),
            });
        };
        Reader {
            object,
            path,
            known: true,
            problems: Vec::new(),
        }
        .read()
    }

    /// The architecture, if this crate can run the network exactly as configured.
    ///
    /// # Errors
    /// Lists everything that stands in the way.
    pub fn served(&self) -> Result<Architecture> {
        match self.architecture {
            Some(architecture) if self.problems.is_empty() => Ok(architecture),
            _ => Err(Error::Unserved {
                name: self.architecture_name.clone(),
                problems: self.problems.clone(),
            }),
        }
    }

    /// Attention window of `layer` in tokens, the current one included; `None` is full attention.
    pub fn window(&self, layer: usize) -> Option<usize> {
        match self.sliding_layers.get(layer) {
            Some(false) => None,
            _ => self.sliding_window,
        }
    }
}

/// Name of a JSON value's kind, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A field that may be absent, null or there.
enum Field<T> {
    Absent,
    Null,
    Value(T),
}

impl<T> Field<T> {
    fn or(self, absent: T, null: T) -> T {
        match self {
            Self::Absent => absent,
            Self::Null => null,
            Self::Value(value) => value,
        }
    }

    fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }
}

struct Reader<'a> {
    object: &'a Map<String, Value>,
    path: &'a Path,
    /// Whether the architecture is served. What fields of others mean is their own affair, so there a value of the wrong
    /// kind is one more thing that stands in the way of a forward pass, but no error.
    known: bool,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    fn read(mut self) -> Result<Config> {
        let class_name = self.class_name()?;
        let model_type = self.text("model_type")?;
        let architecture = Architecture::from_names(class_name, model_type);
        self.known = architecture.is_some();
        let architecture_name = class_name.or(model_type).unwrap_or("unknown").to_owned();
        match architecture {
            None => {
                let served: Vec<_> = Architecture::ALL
                    .iter()
                    .map(|known| known.class_name())
                    .collect();
                self.problems.push(format!(
                    "the architectures served are {}",
                    served.join(", ")
                ));
            }
            Some(known) => {
                if let Some(other) = model_type.filter(|&name| name != known.model_type()) {
                    self.problems
                        .push(format!("`model_type` is {other}, which does not fit"));
                }
            }
        }

        let hidden_size = self.size(&["hidden_size", "n_embd", "d_model"])?;
        let num_hidden_layers = self.size(&["num_hidden_layers", "n_layer", "num_layers"])?;
        let num_attention_heads = self.size(&["num_attention_heads", "n_head"])?;
        let vocab_size = self.size(&["vocab_size"])?;
        let intermediate_size = self.size(&["intermediate_size", "n_inner", "ffn_dim"])?;
        self.limit("num_hidden_layers", num_hidden_layers)?;

        let kv_default = architecture.map_or(num_attention_heads, |known| {
            known.default_kv_heads(num_attention_heads)
        });
        let num_key_value_heads = self
            .count("num_key_value_heads")?
            .or(kv_default, num_attention_heads);
        if num_attention_heads != 0
            && (num_key_value_heads == 0
                || !num_attention_heads.is_multiple_of(num_key_value_heads))
        {
            self.problems.push(format!(
                "`num_attention_heads` {num_attention_heads} is no multiple of `num_key_value_heads` {num_key_value_heads}"
            ));
        }
        let head_dim = self.head_dim(architecture, hidden_size, num_attention_heads)?;

        let rms_norm_eps = self
            .number("rms_norm_eps")?
            .value()
            .unwrap_or(match architecture {
                Some(Architecture::Mixtral) => 1e-5,
                _ => 1e-6,
            });
        if !(rms_norm_eps.is_finite() && rms_norm_eps >= 0.0) {
            let problem = format!("is {rms_norm_eps}, it should be finite and not negative");
            self.refuse("rms_norm_eps", problem)?;
        }
        let rope_theta = self.rope_theta(architecture)?;
        self.activation(architecture)?;
        let (sliding_window, sliding_layers) = self.sliding(architecture, num_hidden_layers)?;
        // The model library's base class ties unless told otherwise; every served architecture overrides that.
        let tie_word_embeddings = self
            .flag("tie_word_embeddings")?
            .or(architecture.is_none(), false);

        let attention_bias = self.flag("attention_bias")?.or(false, false);
        let mlp_bias =
            self.flag("mlp_bias")?.or(false, false) && architecture == Some(Architecture::Llama);
        let (qkv_bias, output_bias) = match architecture {
            Some(Architecture::Qwen2) => (true, false),
            Some(Architecture::Llama | Architecture::Qwen3) | None => {
                (attention_bias, attention_bias)
            }
            Some(Architecture::Mistral | Architecture::Mixtral) => (false, false),
        };

        let experts = self.count("num_local_experts")?;
        let active = self.count("num_experts_per_tok")?;
        let (num_local_experts, num_experts_per_tok) = match architecture {
            Some(Architecture::Mixtral) => (experts.or(8, 8), active.or(2, 2)),
            Some(_) => (0, 0),
            None => (experts.or(0, 0), active.or(0, 0)),
        };
        self.limit("num_local_experts", num_local_experts)?;
        if architecture == Some(Architecture::Mixtral)
            && (num_experts_per_tok == 0 || num_experts_per_tok > num_local_experts)
        {
            self.problems.push(format!(
                "`num_experts_per_tok` {num_experts_per_tok} is not between 1 and `num_local_experts` {num_local_experts}"
            ));
        }
        if matches!(self.object.get("quantization_config"), Some(value) if !value.is_null()) {
            self.problems.push(
                "`quantization_config`: packed weights are not served, use the dense checkpoint"
                    .into(),
            );
        }

        Ok(Config {
            architecture,
            architecture_name,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size,
            rms_norm_eps,
            rope_theta,
            sliding_window,
            sliding_layers,
            tie_word_embeddings,
            qkv_bias,
            output_bias,
            mlp_bias,
            query_key_norm: architecture == Some(Architecture::Qwen3),
            num_local_experts,
            num_experts_per_tok,
            dtype: self.dtype()?,
            problems: self.problems,
        })
    }

    /// A value that cannot be used: an error where the architecture is served, else one more problem.
    fn refuse(&mut self, field: &str, problem: impl Into<String>) -> Result<()> {
        if self.known {
            return Err(self.wrong(field, problem));
        }
        self.problems.push(format!("`{field}` {}", problem.into()));
        Ok(())
    }

    fn wrong(&self, field: &str, problem: impl Into<String>) -> Error {
        Error::Config {
            path: self.path.into(),
            field: field.into(),
            problem: problem.into(),
        }
    }

    fn field<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Field<T>> {
        match self.object.get(name) {
            None => Ok(Field::Absent),
            Some(Value::Null) => Ok(Field::Null),
            Some(value) => match read(value) {
                Some(value) => Ok(Field::Value(value)),
                None => {
                    self.refuse(
                        name,
                        format!("is {}, it should be {expected}", shown(value)),
                    )?;
                    Ok(Field::Absent)
                }
            },
        }
    }

    fn text(&mut self, name: &str) -> Result<Option<&'a str>> {
        Ok(self.field(name, "text", Value::as_str)?.value())
    }

    fn flag(&mut self, name: &str) -> Result<Field<bool>> {
        self.field(name, "true or false", Value::as_bool)
    }

    fn number(&mut self, name: &str) -> Result<Field<f64>> {
        self.field(name, "a number", Value::as_f64)
    }

    fn count(&mut self, name: &str) -> Result<Field<usize>> {
        self.field(name, "a whole number, zero or more", |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    /// The first of `names` that is there. The first name is the one that a forward pass needs.
    fn size(&mut self, names: &[&str]) -> Result<usize> {
        for name in names {
            if let Field::Value(size) = self.count(name)? {
                if size == 0 {
                    self.problems.push(format!("`{name}` is 0"));
                }
                return Ok(size);
            }
        }
        self.problems
            .push(format!("`{}` is missing", names.first().unwrap_or(&"")));
        Ok(0)
    }

    fn limit(&self, name: &str, count: usize) -> Result<()> {
        if count as u64 > MAX_COUNT {
            return Err(self.wrong(name, format!("is {count}, at most {MAX_COUNT} are served")));
        }
        Ok(())
    }

    fn class_name(&mut self) -> Result<Option<&'a str>> {
        let list = self.field("architectures", "a list of text", |value| {
            value
                .as_array()?
                .iter()
                .map(Value::as_str)
                .collect::<Option<Vec<_>>>()
        })?;
        Ok(list.value().and_then(|names| names.first().copied()))
    }

    fn head_dim(
        &mut self,
        architecture: Option<Architecture>,
        hidden: usize,
        heads: usize,
    ) -> Result<usize> {
        let derived = hidden.checked_div(heads).unwrap_or(0);
        // Qwen 3 has a default of its own; null still means the quotient.
        let absent = if architecture == Some(Architecture::Qwen3) {
            128
        } else {
            derived
        };
        let given = self.count("head_dim")?;
        if !matches!(given, Field::Value(_))
            && absent == derived
            && heads != 0
            && !hidden.is_multiple_of(heads)
        {
            self.problems.push(format!(
                "`hidden_size` {hidden} is no multiple of `num_attention_heads` {heads}"
            ));
        }
        let head_dim = given.or(absent, derived);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            self.problems.push(format!(
                "`head_dim` is {head_dim}; rotation needs an even number, at least 2"
            ));
        }
        Ok(head_dim)
    }

    /// Current files have `rope_parameters {rope_theta, rope_type}`; older ones `rope_theta` beside `rope_scaling`.
    fn rope_theta(&mut self, architecture: Option<Architecture>) -> Result<f64> {
        let mut theta = self.number("rope_theta")?.value();
        for name in ["rope_parameters", "rope_scaling"] {
            let Field::Value(rope) = self.field(name, "an object or null", Value::as_object)?
            else {
                continue;
            };
            if let Some(value) = rope.get("rope_theta").filter(|value| !value.is_null()) {
                match value.as_f64() {
                    Some(inner) => theta = Some(inner),
                    None => {
                        let problem = format!("is {}, it should be a number", shown(value));
                        self.refuse(&format!("{name}.rope_theta"), problem)?;
                    }
                }
            }
            // Older files say `type`, and `linear` or `dynamic` beside a `factor`.
            for key in ["rope_type", "type"] {
                match rope.get(key) {
                    None | Some(Value::Null) => {}
                    Some(Value::String(kind)) if kind == "default" => {}
                    Some(kind) => self.problems.push(format!(
                        "`{name}.{key}` {} is not served, only default",
                        shown(kind)
                    )),
                }
            }
            if rope.values().any(Value::is_object) {
                self.problems.push(format!(
                    "`{name}` differs by kind of layer, which is not served"
                ));
            }
            match rope.get("partial_rotary_factor").and_then(Value::as_f64) {
                None | Some(1.0) => {}
                Some(part) => self.problems.push(format!(
                    "`{name}.partial_rotary_factor` {part} is not served, only 1"
                )),
            }
        }
        if let Field::Value(part) = self.number("partial_rotary_factor")?
            && part != 1.0
        {
            self.problems.push(format!(
                "`partial_rotary_factor` {part} is not served, only 1"
            ));
        }
        let theta = theta.unwrap_or(if architecture == Some(Architecture::Mixtral) {
            1e6
        } else {
            1e4
        });
        if !(theta.is_finite() && theta > 0.0) {
            self.refuse(
                "rope_theta",
                format!("is {theta}, it should be finite and positive"),
            )?;
        }
        Ok(theta)
    }

    fn activation(&mut self, architecture: Option<Architecture>) -> Result<()> {
        let activation = self.text("hidden_act")?.unwrap_or("silu");
        if architecture.is_some() && !matches!(activation, "silu" | "swish") {
            self.problems.push(format!(
                "`hidden_act` {activation} is not served, only silu"
            ));
        }
        Ok(())
    }

    /// The window, and for Qwen which layers use it.
    fn sliding(
        &mut self,
        architecture: Option<Architecture>,
        layers: usize,
    ) -> Result<(Option<usize>, Vec<bool>)> {
        let window = self.count("sliding_window")?;
        let window = match architecture {
            // Llama has no window, whatever the file says.
            Some(Architecture::Llama) => None,
            // A Mistral file without the field is an early one, written when the default was 4096.
            Some(Architecture::Mistral) => match window {
                Field::Absent => Some(4096),
                other => other.value(),
            },
            Some(Architecture::Qwen2 | Architecture::Qwen3) => {
                let used = self.flag("use_sliding_window")?.or(false, false);
                if used {
                    Some(window.or(4096, 0)).filter(|&size| size > 0)
                } else {
                    None
                }
            }
            Some(Architecture::Mixtral) | None => window.value(),
        };
        if window == Some(0) {
            self.refuse("sliding_window", "is 0, it should be null or at least 1")?;
        }
        let sliding_layers = match architecture {
            Some(Architecture::Qwen2 | Architecture::Qwen3) => {
                self.sliding_layers(layers, window.is_some())?
            }
            _ => Vec::new(),
        };
        Ok((window, sliding_layers))
    }

    /// `layer_types` where it is given, else the rule that layers from `max_window_layers` on use the window.
    fn sliding_layers(&mut self, layers: usize, windowed: bool) -> Result<Vec<bool>> {
        let types = self.field("layer_types", "a list of text", |value| {
            value
                .as_array()?
                .iter()
                .map(Value::as_str)
                .collect::<Option<Vec<_>>>()
        })?;
        let Field::Value(types) = types else {
            let first = self.count("max_window_layers")?.or(28, 28);
            return Ok((0..layers)
                .map(|layer| windowed && layer >= first)
                .collect());
        };
        if types.len() != layers {
            self.problems.push(format!(
                "`layer_types` lists {} layers of {layers}",
                types.len()
            ));
        }
        if let Some(other) = types
            .iter()
            .find(|&&name| name != "full_attention" && name != "sliding_attention")
        {
            self.problems.push(format!(
                "`layer_types` has {other}, served are full_attention and sliding_attention"
            ));
        }
        Ok(types
            .iter()
            .map(|&name| name == "sliding_attention")
            .collect())
    }

    /// `dtype`, or `torch_dtype` in older files. A name that is not known is no obstacle: tensors have their own.
    fn dtype(&mut self) -> Result<Option<DType>> {
        let name = match self.text("dtype")? {
            Some(name) => Some(name),
            None => self.text("torch_dtype")?,
        };
        Ok(match name.map(|name| name.trim_start_matches("torch.")) {
            Some("bfloat16") => Some(DType::BF16),
            Some("float16") => Some(DType::F16),
            Some("float32") => Some(DType::F32),
            Some("float64") => Some(DType::F64),
            _ => None,
        })
    }
}

/// A value for a message: short ones as they are, long ones by kind.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.len() <= 40 {
        text
    } else {
        kind(value).to_owned()
    }
}
