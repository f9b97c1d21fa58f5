//! What can go wrong with tensors.

use crate::DType;

/// Result with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a tensor operation was refused. Each message names the operation and both sides of a mismatch.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant says what its fields are"
)]
pub enum Error {
    /// Byte count and shape disagree.
    #[error("{dtype} tensor of shape {shape:?} needs {expected} bytes, found {found}")]
    Size {
        dtype: DType,
        shape: Vec<usize>,
        expected: usize,
        found: usize,
    },
    /// The element count does not fit the address space.
    #[error("shape {shape:?} has more elements than this machine can address")]
    TooLarge { shape: Vec<usize> },
    /// Two operands that must agree do not.
    #[error("{op}: shapes do not fit, {lhs:?} and {rhs:?}")]
    Shape {
        op: &'static str,
        lhs: Vec<usize>,
        rhs: Vec<usize>,
    },
    /// The operation does not serve this dtype.
    #[error("{op}: not defined for {dtype} tensors")]
    DType { op: &'static str, dtype: DType },
    /// An argument is out of range.
    #[error("{op}: {message}")]
    Argument { op: &'static str, message: String },
    /// The operating system gave no threads.
    #[error("cannot start {threads} worker threads: {message}")]
    Threads { threads: usize, message: String },
    /// A kernel program would need more working memory than is served.
    #[error(
        "compute: on {rows} rows of {columns} elements the program needs {needed} bytes {what}, limit {limit}; use fewer reductions, or group sizes that divide each other"
    )]
    Memory {
        what: &'static str,
        rows: usize,
        columns: usize,
        needed: u64,
        limit: u64,
    },
    /// The time set by [`deadline::within`](crate::deadline::within) was up.
    #[error("{op}: stopped, its time is up")]
    Interrupted { op: &'static str },
    /// A kernel program is not well-formed.
    #[error("kernel program, operation {index}: {message}")]
    Program { index: usize, message: String },
}
