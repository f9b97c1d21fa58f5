//! Kernel programs: the language in which a plugin describes tensor math, and its checker.
//!
//! A program is a stack program over one output element and its group. [`Program::check`] proves that it is well-formed
//! (types, stack, sizes) and is the only way to get a [`Program`]; devices may rely on what it proved.

use crate::{DType, Error, Result};

/// How a number becomes an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rounding {
    HalfEven,
    HalfAway,
    Floor,
    Ceil,
    Trunc,
}

/// Comparison of two numbers; gives 1 or 0. With a NaN only `Ne` is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    Lt,
    Le,
    Eq,
    Ne,
}

/// What a reduction computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Statistic {
    Max,
    Min,
    AbsMax,
    Sum,
    Mean,
}

/// Over which elements a reduction runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Span {
    /// Groups of so many elements within a row; the last may be shorter.
    Group(u32),
    /// All elements with the same first index.
    Row,
    /// All elements with the same position within their row.
    Column,
    Whole,
}

/// One operation. See `wit/tensors.wit` for each one's meaning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    Input(u8),
    Scalar(u8),
    Constant(f32),
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    Neg,
    Abs,
    Sqrt,
    Exp2,
    Log2,
    Round(Rounding),
    Compare(Comparison),
    Select,
    IsFinite,
    CopySign,
    Cast(DType, bool),
    Reduce(Statistic, Span),
    Duplicate,
    Swap,
}

/// A checked program.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    ops: Vec<Op>,
    inputs: usize,
    scalars: usize,
}

impl Program {
    /// Most operations a program may have.
    pub const MAX_OPS: usize = 256;
    /// Deepest stack a program may need.
    pub const MAX_STACK: usize = 16;
    /// Most inputs, and most scalars, a program may name.
    pub const MAX_INPUTS: usize = 8;

    /// Checks `ops`.
    ///
    /// # Errors
    /// Names the first operation that is wrong and why.
    pub fn check(ops: &[Op]) -> Result<Self> {
        let _ = (ops, Error::Program { index: 0, message: String::new() });
        Err(Error::Program { index: 0, message: "not written yet".into() })
    }

    /// The operations, in order.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// How many inputs the program reads (highest index plus one).
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How many scalars the program reads (highest index plus one).
    pub fn scalars(&self) -> usize {
        self.scalars
    }
}
