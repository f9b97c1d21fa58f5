//! The facts that every world shares, as plain Rust types.
//!
//! They mirror `wit/types.wit`, so that a plugin never sees generated bindings and runs unchanged in the native test bench.

use std::fmt;

/// Result with this crate's [`Failure`].
pub type Result<T> = std::result::Result<T, Failure>;

/// Why a call could not be served. The text is shown to a person: say what was wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The parameters or the policy are wrong.
    InvalidParams(String),
    /// The plugin cannot do this to this model.
    Unsupported(String),
    /// Anything else.
    Failed(String),
}

impl Failure {
    /// The parameters are wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::InvalidParams(message.into())
    }

    /// The plugin cannot do this to this model.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::Unsupported(message.into())
    }

    /// Something else went wrong.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// The text for a person.
    pub fn message(&self) -> &str {
        match self {
            Self::InvalidParams(text) | Self::Unsupported(text) | Self::Failed(text) => text,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidParams(_) => "invalid parameters: ",
            Self::Unsupported(_) => "unsupported: ",
            Self::Failed(_) => "failed: ",
        })?;
        f.write_str(self.message())
    }
}

impl std::error::Error for Failure {}

/// Element types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    BF16,
    /// 1-4-3, bias 7, largest 448, no infinity (e4m3fn).
    F8E4M3,
    /// 1-5-2, bias 15, largest 57344, has infinity.
    F8E5M2,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 64 bits.
    U64,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 8 bits.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Whether elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(
            self,
            Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::F8E4M3 | Self::F8E5M2
        )
    }
}

/// What a tensor does in the network, as the host understands the architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The input embedding.
    Embedding,
    /// The output projection onto the vocabulary.
    LmHead,
    /// A normalisation's weight.
    Norm,
    /// Query projection.
    AttnQ,
    /// Key projection.
    AttnK,
    /// Value projection.
    AttnV,
    /// Attention output projection.
    AttnOut,
    /// Gate projection of a feed-forward block or expert.
    FfnGate,
    /// Up projection of a feed-forward block or expert.
    FfnUp,
    /// Down projection of a feed-forward block or expert.
    FfnDown,
    /// The gate that routes tokens to experts.
    Router,
    /// Any bias.
    Bias,
    /// Something else.
    Other,
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Full dotted name.
    pub name: String,
    /// Row-major; a linear layer's weight is `[out, in]`.
    pub shape: Vec<u64>,
    /// Element type.
    pub dtype: DType,
    /// What it does.
    pub role: Role,
    /// Its decoder layer, counted from 0.
    pub layer: Option<u32>,
    /// Its expert, counted from 0.
    pub expert: Option<u32>,
    /// The tensor whose storage this one shares.
    pub tied_to: Option<String>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the tensor has two or more axes.
    pub fn is_matrix_like(&self) -> bool {
        self.shape.len() >= 2
    }

    /// `(rows, columns)`: the first axis, and all others flattened. A scalar is `(1, 1)`, a vector `(n, 1)`.
    pub fn rows_columns(&self) -> (u64, u64) {
        match self.shape.split_first() {
            None => (1, 1),
            Some((&rows, rest)) => (rows, rest.iter().product()),
        }
    }
}

/// A model as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelInfo {
    /// Such as `llama` or `mixtral`.
    pub architecture: String,
    /// Decoder layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// Experts per layer; 0 for a dense model.
    pub experts: u32,
    /// In module order: the order in which the reference library walks the network's parameters. A tied head is listed
    /// once, under the embedding's name.
    pub tensors: Vec<TensorInfo>,
}

impl ModelInfo {
    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Elements of all tensors together.
    pub fn total_len(&self) -> u64 {
        self.tensors.iter().map(TensorInfo::len).sum()
    }
}
