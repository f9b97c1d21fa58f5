//! Kernel programs: the language in which a plugin describes tensor math, and its checker.
//!
//! A program is a stack program over one output element and its group. [`Program::check`] proves that it is well-formed
//! (types, stack, sizes) and is the only way to get a [`Program`]; devices may rely on what it proved.

use std::fmt;

use crate::{DType, Error, Result, Tensor};

mod interpret;
pub mod scalar;

pub use interpret::interpret;

/// How a number becomes an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// To the nearest; halves to the even neighbour.
    HalfEven,
    /// To the nearest; halves away from zero.
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
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Equal; zeros of either sign are equal.
    Eq,
    /// Not equal.
    Ne,
}

/// One number over many elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Statistic {
    /// Largest value; NaN wins.
    Max,
    /// Smallest value; NaN wins.
    Min,
    /// Largest absolute value; NaN wins.
    AbsMax,
    /// Sum, accumulated in f64 in a fixed order.
    Sum,
    /// [`Statistic::Sum`] divided by the count.
    Mean,
    /// Sum of squares, squared and accumulated in f64 in a fixed order.
    SumOfSquares,
}

impl Statistic {
    /// Whether there is such a number over no elements at all.
    pub fn serves_nothing(self) -> bool {
        matches!(self, Statistic::Sum | Statistic::SumOfSquares)
    }
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
    /// All elements.
    Whole,
}

/// One operation. See `wit/tensors.wit` for each one's meaning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// Pushes the element of the tensor with this index.
    Input(u8),
    /// Pushes the scalar with this index.
    Scalar(u8),
    /// Pushes the number.
    Constant(f32),
    /// Sum of two.
    Add,
    /// First pushed minus second.
    Sub,
    /// Product of two.
    Mul,
    /// First pushed divided by second.
    Div,
    /// The smaller; a NaN wins, -0 is below +0.
    Min,
    /// The larger; a NaN wins, -0 is below +0.
    Max,
    /// Sign flipped.
    Neg,
    /// Sign cleared.
    Abs,
    /// Square root, correctly rounded.
    Sqrt,
    /// 2 to this power, by [`scalar::exp2`].
    Exp2,
    /// Logarithm to base 2, by [`scalar::log2`].
    Log2,
    /// Rounded to an integer.
    Round(Rounding),
    /// 1 where the first pushed compares so with the second, else 0.
    Compare(Comparison),
    /// Pops else, then, condition; gives `then` where the condition is not 0 (a NaN is not 0).
    Select,
    /// 1 where finite, else 0.
    IsFinite,
    /// Magnitude of the first pushed, sign of the second; a NaN counts as positive.
    CopySign,
    /// Rounded to the dtype and widened again; `true` saturates.
    Cast(DType, bool),
    /// The statistic of the element's span, rounded to f32.
    Reduce(Statistic, Span),
    /// Pops a value; its statistic over all elements, in f64, is the next of the program's measures.
    Measure(Statistic),
    /// Pushes the top again.
    Duplicate,
    /// Exchanges the two topmost values.
    Swap,
}

impl Op {
    /// How many values the operation pops and how many it pushes.
    pub fn arity(&self) -> (usize, usize) {
        match self {
            Op::Input(_) | Op::Scalar(_) | Op::Constant(_) => (0, 1),
            Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Min | Op::Max => (2, 1),
            Op::Compare(_) | Op::CopySign => (2, 1),
            Op::Neg | Op::Abs | Op::Sqrt | Op::Exp2 | Op::Log2 | Op::Round(_) => (1, 1),
            Op::IsFinite | Op::Cast(..) | Op::Reduce(..) => (1, 1),
            Op::Select => (3, 1),
            Op::Measure(_) => (1, 0),
            Op::Duplicate => (1, 2),
            Op::Swap => (2, 2),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Input(index) => write!(f, "input({index})"),
            Op::Scalar(index) => write!(f, "scalar({index})"),
            Op::Constant(value) => write!(f, "constant({value})"),
            Op::IsFinite => write!(f, "is-finite"),
            Op::CopySign => write!(f, "copy-sign"),
            other => write!(f, "{}", format!("{other:?}").to_lowercase()),
        }
    }
}

/// A checked program.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    ops: Vec<Op>,
    inputs: usize,
    scalars: usize,
    measures: Vec<Statistic>,
    leaves_value: bool,
}

impl Program {
    /// Most operations a program may have.
    pub const MAX_OPS: usize = 256;
    /// Deepest stack a program may need.
    pub const MAX_STACK: usize = 16;
    /// Most inputs, and most scalars, a program may name.
    pub const MAX_INPUTS: usize = 8;
    /// Most measures a program may take.
    pub const MAX_MEASURES: usize = 16;

    /// Checks `ops`: every operation finds its operands, exactly one value is left (none, if the program takes measures),
    /// indices and sizes are within the limits, casts name float dtypes, groups are not empty.
    ///
    /// # Errors
    /// Names the first operation that is wrong and why.
    pub fn check(ops: &[Op]) -> Result<Self> {
        let refuse = |index, message: String| Err(Error::Program { index, message });
        if ops.is_empty() {
            return refuse(0, "the program is empty; it must leave one value".into());
        }
        let (mut depth, mut inputs, mut scalars) = (0usize, 0usize, 0usize);
        let mut measures = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            if index == Self::MAX_OPS {
                return refuse(
                    index,
                    format!("a program may have at most {} operations", Self::MAX_OPS),
                );
            }
            match *op {
                Op::Input(which) | Op::Scalar(which) if usize::from(which) >= Self::MAX_INPUTS => {
                    return refuse(
                        index,
                        format!(
                            "{op} is out of range, indices go from 0 to {}",
                            Self::MAX_INPUTS - 1
                        ),
                    );
                }
                Op::Input(which) => inputs = inputs.max(usize::from(which) + 1),
                Op::Scalar(which) => scalars = scalars.max(usize::from(which) + 1),
                Op::Cast(dtype, _) if !dtype.is_float() => {
                    return refuse(
                        index,
                        format!("a cast goes through a float dtype, not {dtype}"),
                    );
                }
                Op::Reduce(_, Span::Group(0)) => {
                    return refuse(
                        index,
                        "a reduction over groups needs a group size of 1 or more".into(),
                    );
                }
                Op::Measure(_) if measures.len() == Self::MAX_MEASURES => {
                    return refuse(
                        index,
                        format!("a program may take at most {} measures", Self::MAX_MEASURES),
                    );
                }
                Op::Measure(statistic) => measures.push(statistic),
                _ => {}
            }
            let (pops, pushes) = op.arity();
            let Some(rest) = depth.checked_sub(pops) else {
                return refuse(
                    index,
                    format!(
                        "{op} takes {pops} {} from the stack, which holds {depth}",
                        plural(pops)
                    ),
                );
            };
            depth = rest + pushes;
            if depth > Self::MAX_STACK {
                return refuse(
                    index,
                    format!("{op} makes the stack deeper than {}", Self::MAX_STACK),
                );
            }
        }
        // A stack that ends empty has been emptied by measures: nothing else takes more than it gives back.
        if depth > 1 {
            return refuse(
                ops.len() - 1,
                format!("the program ends with {depth} values on the stack, it must leave one"),
            );
        }
        Ok(Self {
            ops: ops.to_vec(),
            inputs,
            scalars,
            measures,
            leaves_value: depth == 1,
        })
    }

    /// Checks the arguments of [`crate::Device::compute`]: those of [`Program::check_measure`], and that the program leaves
    /// a value to store.
    ///
    /// # Errors
    /// Names what is missing or does not fit.
    pub fn check_compute(&self, inputs: &[&Tensor], scalars: &[f32]) -> Result<()> {
        let op = "compute";
        if !self.leaves_value {
            return Err(Error::Argument {
                op,
                message: "the program leaves no value to store; it can only be measured".into(),
            });
        }
        self.check_call(op, inputs, scalars)
    }

    /// Checks the arguments of [`crate::Device::measure`]: enough inputs, all float and of one shape, enough scalars, and
    /// elements where a measure needs one.
    ///
    /// # Errors
    /// Names what is missing or does not fit.
    pub fn check_measure(&self, inputs: &[&Tensor], scalars: &[f32]) -> Result<()> {
        self.check_call("measure", inputs, scalars)
    }

    fn check_call(&self, op: &'static str, inputs: &[&Tensor], scalars: &[f32]) -> Result<()> {
        let refuse = |message| Err(Error::Argument { op, message });
        let Some((first, others)) = inputs.split_first() else {
            return refuse(
                "needs at least one tensor, whose shape and dtype the result takes".into(),
            );
        };
        let impossible = self.measures.iter().find(|m| !m.serves_nothing());
        if let (true, Some(measure)) = (first.is_empty(), impossible) {
            let name = format!("{measure:?}").to_lowercase();
            return refuse(format!("an empty tensor has no {name}"));
        }
        if inputs.len() < self.inputs {
            return refuse(format!(
                "the program reads {} tensors, {} were given",
                self.inputs,
                inputs.len()
            ));
        }
        if scalars.len() < self.scalars {
            return refuse(format!(
                "the program reads {} scalars, {} were given",
                self.scalars,
                scalars.len()
            ));
        }
        for other in others {
            if other.shape() != first.shape() {
                return Err(Error::Shape {
                    op,
                    lhs: first.shape().to_vec(),
                    rhs: other.shape().to_vec(),
                });
            }
        }
        match inputs.iter().find(|input| !input.dtype().is_float()) {
            Some(input) => Err(Error::DType {
                op,
                dtype: input.dtype(),
            }),
            None => Ok(()),
        }
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

    /// The measures that the program takes, in order.
    pub fn measures(&self) -> &[Statistic] {
        &self.measures
    }

    /// Whether the program leaves a value for each element, so that its result can be stored.
    pub fn leaves_value(&self) -> bool {
        self.leaves_value
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "value" } else { "values" }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn refused(ops: &[Op]) -> String {
        Program::check(ops).unwrap_err().to_string()
    }

    #[test]
    fn messages_name_operation_and_reason() {
        assert_eq!(
            refused(&[]),
            "kernel program, operation 0: the program is empty; it must leave one value"
        );
        assert_eq!(
            refused(&[Op::Input(0), Op::Add]),
            "kernel program, operation 1: add takes 2 values from the stack, which holds 1"
        );
        assert_eq!(
            refused(&[Op::Input(0), Op::Input(1)]),
            "kernel program, operation 1: the program ends with 2 values on the stack, it must leave one"
        );
        assert_eq!(
            refused(&[Op::Scalar(8)]),
            "kernel program, operation 0: scalar(8) is out of range, indices go from 0 to 7"
        );
        assert_eq!(
            refused(&[Op::Input(0), Op::Cast(DType::I8, true)]),
            "kernel program, operation 1: a cast goes through a float dtype, not I8"
        );
        assert_eq!(
            refused(&[Op::Input(0), Op::Reduce(Statistic::Sum, Span::Group(0))]),
            "kernel program, operation 1: a reduction over groups needs a group size of 1 or more"
        );
        assert_eq!(
            refused(&[Op::Input(0); 17]),
            "kernel program, operation 16: input(0) makes the stack deeper than 16"
        );
        assert_eq!(
            refused(&[Op::Measure(Statistic::Sum)]),
            "kernel program, operation 0: measure(sum) takes 1 value from the stack, which holds 0"
        );
        assert_eq!(
            refused(&[Op::Input(0), Op::Measure(Statistic::Max)].repeat(17)),
            "kernel program, operation 33: a program may take at most 16 measures"
        );
        let mut long = vec![Op::Input(0)];
        long.extend([Op::Neg; 256]);
        assert_eq!(
            refused(&long),
            "kernel program, operation 256: a program may have at most 256 operations"
        );
        assert_eq!(Program::check(&long[..256]).unwrap().inputs(), 1);
    }

    #[test]
    fn highest_indices_count() {
        let program = Program::check(&[Op::Input(3), Op::Scalar(1), Op::Mul]).unwrap();
        assert_eq!((program.inputs(), program.scalars()), (4, 2));
        assert!(program.leaves_value() && program.measures().is_empty());
    }

    #[test]
    fn measures_count_in_order_and_may_take_the_last_value() {
        let mut ops = vec![Op::Input(0), Op::Duplicate, Op::Measure(Statistic::Mean)];
        let both = Program::check(&ops).unwrap();
        assert!(both.leaves_value());
        ops.push(Op::Measure(Statistic::SumOfSquares));
        let only = Program::check(&ops).unwrap();
        assert!(!only.leaves_value());
        assert_eq!(only.measures(), [Statistic::Mean, Statistic::SumOfSquares]);
        let empty = Tensor::zeros(DType::F32, [0]).unwrap();
        assert_eq!(
            only.check_compute(&[&empty], &[]).unwrap_err().to_string(),
            "compute: the program leaves no value to store; it can only be measured"
        );
        assert_eq!(
            both.check_measure(&[&empty], &[]).unwrap_err().to_string(),
            "measure: an empty tensor has no mean"
        );
    }

    fn any_op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u8..10).prop_map(Op::Input),
            (0u8..10).prop_map(Op::Scalar),
            any::<f32>().prop_map(Op::Constant),
            Just(Op::Add),
            Just(Op::Select),
            Just(Op::Duplicate),
            Just(Op::Swap),
            Just(Op::Abs),
            (0u32..3).prop_map(|group| Op::Reduce(Statistic::Max, Span::Group(group))),
            Just(Op::Measure(Statistic::Sum)),
            prop_oneof![Just(DType::BF16), Just(DType::U8)]
                .prop_map(|dtype| Op::Cast(dtype, false)),
        ]
    }

    proptest! {
        /// What the checker accepts can be run without looking at the stack; what it refuses has a reason at that place.
        #[test]
        fn accepted_programs_keep_the_stack_within_bounds(ops in prop::collection::vec(any_op(), 0..40)) {
            match Program::check(&ops) {
                Ok(program) => {
                    let mut depth = 0;
                    for op in program.ops() {
                        let (pops, pushes) = op.arity();
                        prop_assert!(depth >= pops);
                        depth = depth - pops + pushes;
                        prop_assert!(depth <= Program::MAX_STACK);
                    }
                    prop_assert_eq!(depth, usize::from(program.leaves_value()));
                }
                Err(Error::Program { index, .. }) => {
                    prop_assert!(index < ops.len().max(1));
                    // The operations before the culprit are a prefix of some good program.
                    let mut repaired = ops[..index].to_vec();
                    let depth = repaired.iter().fold(0, |depth, op| depth - op.arity().0 + op.arity().1);
                    if depth == 0 {
                        repaired.push(Op::Constant(0.0));
                    }
                    repaired.extend(std::iter::repeat_n(Op::Add, usize::saturating_sub(depth, 1)));
                    prop_assert!(Program::check(&repaired).is_ok());
                }
                Err(other) => return Err(TestCaseError::fail(other.to_string())),
            }
        }
    }
}
