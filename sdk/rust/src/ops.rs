//! The operations of a kernel program, as in `wit/tensors.wit`.

use crate::DType;

/// How a number becomes an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// Ties to the even neighbour.
    HalfEven,
    /// Ties away from zero.
    HalfAway,
    /// Down.
    Floor,
    /// Up.
    Ceil,
    /// Towards zero.
    Trunc,
}

/// Comparison of two numbers; gives 1 or 0. With a NaN only `Ne` is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// Less than.
    Lt,
    /// At most.
    Le,
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
}

/// One number over many elements. A count is the [`Sum`](Statistic::Sum) of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Statistic {
    /// Largest; a NaN wins.
    Max,
    /// Smallest; a NaN wins.
    Min,
    /// Largest magnitude; a NaN wins.
    AbsMax,
    /// Sum.
    Sum,
    /// Mean.
    Mean,
    /// Sum of squares.
    SumOfSquares,
}

/// Over which elements a reduction runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Span {
    /// Groups of so many elements along the last axis; the last group of a row may be shorter.
    Group(u32),
    /// All elements with the same first index.
    Row,
    /// All elements with the same position within their row.
    Column,
    /// All elements.
    Whole,
}

/// One operation of the stack program.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// Push an element of an input.
    Input(u8),
    /// Push a scalar parameter.
    Scalar(u8),
    /// Push a constant.
    Constant(f32),
    /// Sum.
    Add,
    /// First pushed minus second.
    Sub,
    /// Product.
    Mul,
    /// First pushed by second.
    Div,
    /// Smaller; a NaN wins.
    Min,
    /// Larger; a NaN wins.
    Max,
    /// Other sign.
    Neg,
    /// Magnitude.
    Abs,
    /// Square root.
    Sqrt,
    /// Power of two.
    Exp2,
    /// Logarithm to base two.
    Log2,
    /// To an integer.
    Round(Rounding),
    /// 1 or 0.
    Compare(Comparison),
    /// Pops else, then, condition.
    Select,
    /// 1 or 0.
    IsFinite,
    /// Magnitude of the first pushed, sign of the second.
    CopySign,
    /// Through a dtype and back; `true` saturates.
    Cast(DType, bool),
    /// Reduce over a span and broadcast back.
    Reduce(Statistic, Span),
    /// Push the top again.
    Duplicate,
    /// Exchange the two on top.
    Swap,
    /// Pop a value; its statistic over all elements is the next of the program's measures.
    Measure(Statistic),
}

/// Most operations that a program may have.
pub const MAX_OPS: usize = 256;
/// Most measures that a program may take.
pub const MAX_MEASURES: usize = 16;
/// Deepest stack that a program may need.
pub const MAX_STACK: usize = 16;
