//! What can go wrong with checkpoints. Every message names the file and the tensor or field, and reads on from
//! "failed to": `read the header of DIR/model.safetensors: ...`.

use std::{io, path::PathBuf};

use packhost_tensor::DType;

/// Result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a checkpoint, its configuration or its tokenizer was refused, or could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// Verb, such as `open`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own words.
        source: io::Error,
    },
    /// There is no folder of this name.
    #[error("open the checkpoint {}: there is no such folder", path.display())]
    NoFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is no checkpoint.
    #[error("open the checkpoint {}: {problem}", path.display())]
    Checkpoint {
        /// The folder.
        path: PathBuf,
        /// What is missing, and what to do.
        problem: String,
    },
    /// A safetensors file is malformed.
    #[error("read the header of {}: {problem}", path.display())]
    Header {
        /// The shard.
        path: PathBuf,
        /// What is wrong with it.
        problem: HeaderProblem,
    },
    /// The index of a sharded checkpoint is malformed or does not fit its shards.
    #[error("read the shard index {}: {problem}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        problem: IndexProblem,
    },
    /// A field of `config.json` is not what it should be.
    #[error("read {}: {}{problem}", path.display(), if field.is_empty() { String::new() } else { format!("`{field}` ") })]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// Name of the field; empty for the whole file.
        field: String,
        /// What it is and what it should be.
        problem: String,
    },
    /// The checkpoint can be edited but not run.
    #[error("run a network of type {name}: {}", problems.join("; "))]
    Unserved {
        /// Architecture as `config.json` spells it.
        name: String,
        /// Everything that stands in the way.
        problems: Vec<String>,
    },
    /// There is no tensor of this name.
    #[error("find the tensor `{name}` in {}", path.display())]
    NoTensor {
        /// The tensor asked for.
        name: String,
        /// The checkpoint.
        path: PathBuf,
    },
    /// A tensor is there but does not have the shape or dtype that the configuration or the caller's plan asks for.
    #[error("use the tensor `{name}`: {problem}")]
    Tensor {
        /// The tensor.
        name: String,
        /// Both sides of the mismatch.
        problem: String,
    },
    /// The tokenizer is missing or broken.
    #[error("read the tokenizer {}: {problem}", path.display())]
    Tokenizer {
        /// The tokenizer file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Text could not be encoded.
    #[error("encode text: {problem}")]
    Encode {
        /// The tokenizer's own words.
        problem: String,
    },
    /// The place to write to is taken.
    #[error("write the checkpoint {}: it exists already", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The place to write to has no room.
    #[error("write {}: no space left on the device, this file needs {needed} bytes; free some or choose another folder", path.display())]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// Its full size in bytes.
        needed: u64,
    },
    /// What was asked of the writer makes no sense.
    #[error("write the checkpoint {}: {problem}", path.display())]
    Write {
        /// The folder.
        path: PathBuf,
        /// What is wrong with the request.
        problem: String,
    },
    /// The forward pass was asked for something that it cannot do.
    #[error("score windows: {problem}")]
    Score {
        /// What is wrong with the request.
        problem: String,
    },
    /// The forward pass was told to stop.
    #[error("finish the forward pass: it was cancelled")]
    Cancelled,
    /// A tensor operation was refused.
    #[error("compute: {0}")]
    Compute(#[from] packhost_tensor::Error),
}

impl Error {
    /// An [`Error::Io`] builder for `map_err`.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// What is wrong with a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderProblem {
    /// Not even room for the length field.
    #[error(
        "the file has {len} bytes, a header alone has at least 10; it is truncated or not a safetensors file"
    )]
    TooShort {
        /// Bytes in the file.
        len: u64,
    },
    /// The length field is absurd.
    #[error(
        "header length {length} is above the limit of {limit} bytes; this is not a safetensors file"
    )]
    LengthTooLarge {
        /// What the file says.
        length: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The header would go past the end.
    #[error(
        "header length {length} goes beyond the end of the file ({len} bytes); it is truncated"
    )]
    LengthBeyondFile {
        /// What the file says.
        length: u64,
        /// Bytes in the file.
        len: u64,
    },
    /// The header is not text.
    #[error("the header is not UTF-8 (first bad byte at {at})")]
    NotUtf8 {
        /// Offset within the header.
        at: usize,
    },
    /// The header is not the JSON that the format prescribes.
    #[error("{0}")]
    Json(String),
    /// An element type that is not known.
    #[error("tensor `{tensor}` has the unknown dtype `{dtype}`")]
    UnknownDtype {
        /// The tensor.
        tensor: String,
        /// The name in the header.
        dtype: String,
    },
    /// The element count overflows.
    #[error("tensor `{tensor}` has shape {shape:?}, more elements than this machine can address")]
    ShapeTooLarge {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// An interval that runs backwards.
    #[error("tensor `{tensor}` ends at byte {end}, before its start at {start}")]
    Reversed {
        /// The tensor.
        tensor: String,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// The interval is not as long as dtype and shape ask for.
    #[error(
        "tensor `{tensor}` ({dtype}, shape {shape:?}) needs {expected} bytes, its offsets span {found}"
    )]
    Size {
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: DType,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes by dtype and shape.
        expected: u64,
        /// Bytes by offsets.
        found: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors `{first}` and `{second}` overlap at byte {at}")]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The other.
        second: String,
        /// Where the other starts.
        at: u64,
    },
    /// Bytes that belong to no tensor.
    #[error("bytes {start} to {end} before tensor `{tensor}` belong to no tensor")]
    Hole {
        /// The tensor after the hole.
        tensor: String,
        /// First unclaimed byte.
        start: u64,
        /// Where the tensor starts.
        end: u64,
    },
    /// A tensor goes past the end of the file.
    #[error(
        "tensor `{tensor}` ends at byte {end} of the data, the file has only {len}; it is truncated"
    )]
    ShortFile {
        /// The first tensor that is cut.
        tensor: String,
        /// Where it should end.
        end: u64,
        /// Data bytes in the file.
        len: u64,
    },
    /// Bytes after the last tensor.
    #[error("{bytes} bytes after the last tensor belong to no tensor")]
    Trailing {
        /// How many.
        bytes: u64,
    },
}

/// What is wrong with the index of a sharded checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexProblem {
    /// Not the JSON that the format prescribes.
    #[error("{0}")]
    Json(String),
    /// `weight_map` names no tensor.
    #[error("`weight_map` is empty")]
    Empty,
    /// A shard name that leads out of the folder.
    #[error(
        "`weight_map` places `{tensor}` in `{shard}`, which is not a plain path inside the checkpoint"
    )]
    ShardPath {
        /// The tensor.
        tensor: String,
        /// The offending path.
        shard: String,
    },
    /// A shard that is not there.
    #[error("shard `{shard}` is missing, it should hold `{tensor}`")]
    NoShard {
        /// The shard.
        shard: String,
        /// One of its tensors.
        tensor: String,
    },
    /// A tensor that is not there.
    #[error("tensor `{tensor}` is not in shard `{shard}`")]
    NoTensor {
        /// The tensor.
        tensor: String,
        /// The shard that should hold it.
        shard: String,
    },
    /// A tensor that the index does not know.
    #[error("shard `{shard}` holds the tensor `{tensor}`, which `weight_map` does not list")]
    Unlisted {
        /// The shard.
        shard: String,
        /// The tensor.
        tensor: String,
    },
}
