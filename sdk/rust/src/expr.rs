//! Kernel programs written as expressions.
//!
//! ```
//! use packhost_sdk::{DType, Span, expr};
//!
//! // Round-to-nearest to 4 bits in groups of 32, with the arithmetic of a bf16 tensor.
//! let ops = expr::build(DType::BF16, |k| {
//!     let x = k.input(0);
//!     let step = (x.reduce_absmax(Span::Group(32)) / 7.0).max(1e-10);
//!     (x / &step).round_half_even().clamp(-8.0, 7.0) * step
//! });
//! assert!(ops.unwrap().len() < 24);
//! ```
//!
//! **Rounding.** Reference arithmetic on bf16 and f16 tensors rounds after every elementary step. A [`Kernel`] carries the
//! working dtype, and every step whose result might not be a number of that dtype is followed by a cast. Steps that cannot
//! leave it (absolute value, maximum, rounding to integers, ...) are left alone. Constants are taken as f32; where
//! one meets a maximum or minimum it is rounded beforehand, which gives the same result as rounding afterwards.
//!
//! **Sharing.** The host's programs are stack programs with `duplicate` and `swap` and no variables. An expression used
//! several times is evaluated once and kept on top of the stack for as long as another shared value does not have to be
//! there; otherwise it is written out again. A program that would get longer than [`MAX_OPS`] is refused. Where the result
//! and what is measured share an expression, it is written for each, and the host computes it once.

use std::cell::RefCell;
use std::ops::{Add, Div, Mul, Neg, Sub};
use std::rc::Rc;

use crate::ops::{Comparison, MAX_OPS, MAX_STACK, Op, Rounding, Span, Statistic};
use crate::round::round_to;
use crate::{DType, Failure, Result};

/// Where a program's expressions start, and where it notes what is to be measured.
#[derive(Debug, Clone)]
pub struct Kernel {
    working: Option<DType>,
    measured: Rc<RefCell<Vec<(Statistic, Expr)>>>,
}

impl Kernel {
    /// The element of input `index`; input 0 is the tensor that the program runs on.
    pub fn input(&self, index: u8) -> Expr {
        Expr::leaf(self.working, Op::Input(index), true)
    }

    /// Scalar parameter `index`.
    pub fn scalar(&self, index: u8) -> Expr {
        Expr::leaf(self.working, Op::Scalar(index), false)
    }

    /// A constant. Numbers in expressions become constants by themselves.
    pub fn constant(&self, value: f32) -> Expr {
        Expr::constant(self.working, value)
    }

    /// Measures `value` over all elements, in the same pass as everything else; the numbers come in the order of these
    /// calls, in [`Computed::measures`](crate::Computed) or from [`Tensor::measure`](crate::Tensor::measure). Sums are f64
    /// and added in a fixed order.
    pub fn measure(&self, statistic: Statistic, value: impl Operand) {
        let value = value.beside(&self.constant(0.0), false);
        self.measured.borrow_mut().push((statistic, value));
    }
}

/// What the body of a program ends with: the new element, or nothing where the program only measures.
pub trait Leaves {
    /// The new element.
    fn value(self) -> Option<Expr>;
}

impl Leaves for Expr {
    fn value(self) -> Option<Expr> {
        Some(self)
    }
}

impl Leaves for () {
    fn value(self) -> Option<Expr> {
        None
    }
}

/// A value per element. Cloning is cheap and shares the value.
#[derive(Debug, Clone)]
pub struct Expr(Rc<Node>);

/// One operation and its operands, in the order in which they are pushed.
#[derive(Debug)]
struct Node {
    op: Op,
    operands: Vec<Expr>,
    /// The dtype that results are rounded to; none for plain f32.
    working: Option<DType>,
    /// Whether the value is certainly a number of the working dtype.
    exact: bool,
}

/// Whether `value` is a number of `dtype`.
fn fits(value: f32, dtype: DType) -> bool {
    value.is_nan() || round_to(dtype, value, false) == value
}

impl Expr {
    /// An expression without operands.
    fn leaf(working: Option<DType>, op: Op, exact: bool) -> Expr {
        Expr(Rc::new(Node {
            op,
            operands: Vec::new(),
            working,
            exact,
        }))
    }

    /// A constant.
    fn constant(working: Option<DType>, value: f32) -> Expr {
        let exact = working.is_none_or(|dtype| fits(value, dtype));
        Expr::leaf(working, Op::Constant(value), exact)
    }

    /// An operation whose result is a number of the working dtype whenever the operands are.
    fn closed(op: Op, operands: Vec<Expr>) -> Expr {
        let working = operands.iter().find_map(|operand| operand.0.working);
        let exact = operands.iter().all(|operand| operand.0.exact);
        Expr(Rc::new(Node {
            op,
            operands,
            working,
            exact,
        }))
        .settled()
    }

    /// An operation whose result has to be rounded.
    fn rounded(op: Op, operands: Vec<Expr>) -> Expr {
        let working = operands.iter().find_map(|operand| operand.0.working);
        Expr(Rc::new(Node {
            op,
            operands,
            working,
            exact: working.is_none(),
        }))
        .settled()
    }

    /// This value, rounded to the working dtype if it may not be one of its numbers.
    fn settled(self) -> Expr {
        match self.0.working {
            Some(dtype) if !self.0.exact => Expr(Rc::new(Node {
                op: Op::Cast(dtype, false),
                operands: vec![self],
                working: Some(dtype),
                exact: true,
            })),
            _ => self,
        }
    }

    /// A number as an operand of this expression. With `bound` it is rounded to the working dtype first, which
    /// changes nothing for maximum and minimum.
    fn number(&self, value: f32, bound: bool) -> Expr {
        let working = self.0.working;
        let value = match working {
            Some(dtype) if bound => round_to(dtype, value, false),
            _ => value,
        };
        Expr::constant(working, value)
    }

    /// Magnitude.
    #[must_use]
    pub fn abs(&self) -> Expr {
        Self::closed(Op::Abs, vec![self.clone()])
    }

    /// Square root.
    #[must_use]
    pub fn sqrt(&self) -> Expr {
        Self::rounded(Op::Sqrt, vec![self.clone()])
    }

    /// Power of two.
    #[must_use]
    pub fn exp2(&self) -> Expr {
        Self::rounded(Op::Exp2, vec![self.clone()])
    }

    /// Logarithm to base two.
    #[must_use]
    pub fn log2(&self) -> Expr {
        Self::rounded(Op::Log2, vec![self.clone()])
    }

    /// To an integer, in the given way.
    #[must_use]
    pub fn round(&self, rounding: Rounding) -> Expr {
        Self::closed(Op::Round(rounding), vec![self.clone()])
    }

    /// To the nearest integer, ties to even.
    #[must_use]
    pub fn round_half_even(&self) -> Expr {
        self.round(Rounding::HalfEven)
    }

    /// The larger of the two; a NaN wins.
    #[must_use]
    pub fn max(&self, other: impl Operand) -> Expr {
        Self::closed(Op::Max, vec![self.clone(), other.beside(self, true)])
    }

    /// The smaller of the two; a NaN wins.
    #[must_use]
    pub fn min(&self, other: impl Operand) -> Expr {
        Self::closed(Op::Min, vec![self.clone(), other.beside(self, true)])
    }

    /// Not below `low` and not above `high`; a NaN stays.
    #[must_use]
    pub fn clamp(&self, low: f32, high: f32) -> Expr {
        self.max(low).min(high)
    }

    /// Magnitude of this, sign of `other`.
    #[must_use]
    pub fn copy_sign(&self, other: impl Operand) -> Expr {
        Self::closed(Op::CopySign, vec![self.clone(), other.beside(self, false)])
    }

    /// 1 where this is neither NaN nor infinite, else 0.
    #[must_use]
    pub fn is_finite(&self) -> Expr {
        Self::flag(Op::IsFinite, vec![self.clone()])
    }

    /// 1 where this is less than `other`, else 0.
    #[must_use]
    pub fn less(&self, other: impl Operand) -> Expr {
        Self::flag(
            Op::Compare(Comparison::Lt),
            vec![self.clone(), other.beside(self, false)],
        )
    }

    /// 1 where this is at most `other`, else 0.
    #[must_use]
    pub fn at_most(&self, other: impl Operand) -> Expr {
        Self::flag(
            Op::Compare(Comparison::Le),
            vec![self.clone(), other.beside(self, false)],
        )
    }

    /// 1 where this is at least `other`, else 0.
    #[must_use]
    pub fn at_least(&self, other: impl Operand) -> Expr {
        Self::flag(
            Op::Compare(Comparison::Le),
            vec![other.beside(self, false), self.clone()],
        )
    }

    /// 1 where this equals `other`, else 0.
    #[must_use]
    pub fn equals(&self, other: impl Operand) -> Expr {
        Self::flag(
            Op::Compare(Comparison::Eq),
            vec![self.clone(), other.beside(self, false)],
        )
    }

    /// A comparison: 0 and 1 are numbers of every dtype, whatever was compared.
    fn flag(op: Op, operands: Vec<Expr>) -> Expr {
        let working = operands.iter().find_map(|operand| operand.0.working);
        Expr(Rc::new(Node {
            op,
            operands,
            working,
            exact: true,
        }))
    }

    /// `then` where this is not 0, else `otherwise`.
    #[must_use]
    pub fn select(&self, then: impl Operand, otherwise: impl Operand) -> Expr {
        let (then, otherwise) = (then.beside(self, true), otherwise.beside(self, true));
        let exact = then.0.exact && otherwise.0.exact;
        let working = then.0.working.or(otherwise.0.working);
        Expr(Rc::new(Node {
            op: Op::Select,
            operands: vec![self.clone(), then, otherwise],
            working,
            exact,
        }))
        .settled()
    }

    /// Through `dtype` and back; overflow as the dtype has it, or to its largest number with `saturate`.
    #[must_use]
    pub fn cast(&self, dtype: DType, saturate: bool) -> Expr {
        Self::rounded(Op::Cast(dtype, saturate), vec![self.clone()])
    }

    /// Reduce over `span` and broadcast back.
    #[must_use]
    pub fn reduce(&self, statistic: Statistic, span: Span) -> Expr {
        let operands = vec![self.clone()];
        match statistic {
            Statistic::Max | Statistic::Min | Statistic::AbsMax => {
                Self::closed(Op::Reduce(statistic, span), operands)
            }
            _ => Self::rounded(Op::Reduce(statistic, span), operands),
        }
    }

    /// Largest value of the span.
    #[must_use]
    pub fn reduce_max(&self, span: Span) -> Expr {
        self.reduce(Statistic::Max, span)
    }

    /// Smallest value of the span.
    #[must_use]
    pub fn reduce_min(&self, span: Span) -> Expr {
        self.reduce(Statistic::Min, span)
    }

    /// Largest magnitude of the span.
    #[must_use]
    pub fn reduce_absmax(&self, span: Span) -> Expr {
        self.reduce(Statistic::AbsMax, span)
    }

    /// Sum of the span.
    #[must_use]
    pub fn reduce_sum(&self, span: Span) -> Expr {
        self.reduce(Statistic::Sum, span)
    }

    /// Mean of the span.
    #[must_use]
    pub fn reduce_mean(&self, span: Span) -> Expr {
        self.reduce(Statistic::Mean, span)
    }

    /// The same value, from here on in f32 without rounding to the working dtype.
    #[must_use]
    pub fn in_f32(&self) -> Expr {
        self.rebased(None, true)
    }

    /// This value rounded to `dtype`, and from here on in that working dtype.
    #[must_use]
    pub fn in_dtype(&self, dtype: DType) -> Expr {
        let working = working(dtype);
        self.rebased(working, working.is_none()).settled()
    }

    /// The same operation under another working dtype.
    fn rebased(&self, working: Option<DType>, exact: bool) -> Expr {
        let node = &self.0;
        if node.operands.is_empty() {
            return Expr(Rc::new(Node {
                op: node.op,
                operands: Vec::new(),
                working,
                exact,
            }));
        }
        // An identity that costs no operation: the same op over the same operands, so sharing of the operands stays.
        Expr(Rc::new(Node {
            op: node.op,
            operands: node.operands.clone(),
            working,
            exact,
        }))
    }

    /// Whether `self` and `other` are the same value.
    fn is(&self, other: &Expr) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Whether this has no operands and is cheaper to write again than to keep.
    fn is_leaf(&self) -> bool {
        self.0.operands.is_empty()
    }
}

/// An expression or a number beside one.
pub trait Operand {
    /// This as an operand beside `other`; `bound` as in maximum and minimum.
    fn beside(self, other: &Expr, bound: bool) -> Expr;
}

impl Operand for Expr {
    fn beside(self, _: &Expr, _: bool) -> Expr {
        self
    }
}

impl Operand for &Expr {
    fn beside(self, _: &Expr, _: bool) -> Expr {
        self.clone()
    }
}

impl Operand for f32 {
    fn beside(self, other: &Expr, bound: bool) -> Expr {
        other.number(self, bound)
    }
}

/// The four operators between expressions, references to them and numbers.
macro_rules! operators {
    ($($trait:ident $method:ident $op:expr;)*) => {$(
        impl<T: Operand> $trait<T> for Expr {
            type Output = Expr;
            fn $method(self, other: T) -> Expr {
                (&self).$method(other)
            }
        }
        impl<T: Operand> $trait<T> for &Expr {
            type Output = Expr;
            fn $method(self, other: T) -> Expr {
                let other = other.beside(self, false);
                Expr::rounded($op, vec![self.clone(), other])
            }
        }
        impl $trait<Expr> for f32 {
            type Output = Expr;
            fn $method(self, other: Expr) -> Expr {
                self.$method(&other)
            }
        }
        impl $trait<&Expr> for f32 {
            type Output = Expr;
            fn $method(self, other: &Expr) -> Expr {
                Expr::rounded($op, vec![other.number(self, false), other.clone()])
            }
        }
    )*};
}

operators! {
    Add add Op::Add;
    Sub sub Op::Sub;
    Mul mul Op::Mul;
    Div div Op::Div;
}

impl Neg for Expr {
    type Output = Expr;
    fn neg(self) -> Expr {
        -&self
    }
}

impl Neg for &Expr {
    type Output = Expr;
    fn neg(self) -> Expr {
        Expr::closed(Op::Neg, vec![self.clone()])
    }
}

/// The dtype that steps are rounded to: none for f32, in which the host computes.
fn working(dtype: DType) -> Option<DType> {
    (dtype != DType::F32 && dtype != DType::F64).then_some(dtype)
}

/// The operations of the program that `body` describes, for a tensor of dtype `dtype`.
///
/// # Errors
/// When the program needs more than [`MAX_OPS`] operations or more than [`MAX_STACK`] values at a time.
pub fn build<R: Leaves>(dtype: DType, body: impl FnOnce(Kernel) -> R) -> Result<Vec<Op>> {
    let measured = Rc::new(RefCell::new(Vec::new()));
    let result = body(Kernel {
        working: working(dtype),
        measured: measured.clone(),
    });
    let mut writer = Writer { ops: Vec::new() };
    for (statistic, value) in measured.borrow().iter() {
        writer.write(value, None)?;
        writer.push(Op::Measure(*statistic))?;
    }
    if let Some(result) = result.value() {
        // The host rounds the result to the tensor's dtype anyway.
        match result.0.op {
            Op::Cast(cast, false) if cast == dtype && !result.is_leaf() => {
                writer.write(&result.0.operands[0], None)?
            }
            _ => writer.write(&result, None)?,
        }
    }
    let depth = depth(&writer.ops);
    if depth > MAX_STACK {
        return Err(Failure::failed(format!(
            "kernel program: needs {depth} values on the stack, {MAX_STACK} are allowed; compute a part into a tensor first"
        )));
    }
    Ok(writer.ops)
}

/// Writes expressions as stack operations.
struct Writer {
    ops: Vec<Op>,
}

impl Writer {
    /// Appends an operation. Exchanging a value with its duplicate is left out.
    fn push(&mut self, op: Op) -> Result<()> {
        if op == Op::Swap && self.ops.last() == Some(&Op::Duplicate) {
            return Ok(());
        }
        if self.ops.len() == MAX_OPS {
            return Err(Failure::failed(format!(
                "kernel program: more than {MAX_OPS} operations; compute a part into a tensor first"
            )));
        }
        self.ops.push(op);
        Ok(())
    }

    /// Writes `node`. With `live`, that value lies on top of the stack, `node` contains it, and it is used up:
    /// the stack ends as `[.., node]`.
    fn write(&mut self, node: &Expr, live: Option<&Expr>) -> Result<()> {
        if live.is_some_and(|live| live.is(node)) {
            return Ok(());
        }
        if let Some(shared) = shared_by_operands(node) {
            let bind = match live {
                None => true,
                // The value on top may be replaced only if nothing but the shared expression needs it.
                Some(live) => {
                    !live.is(&shared)
                        && contains(&shared, live, None)
                        && !contains(node, live, Some(&shared))
                }
            };
            if bind {
                self.write(&shared, live)?;
                return self.operands(node, Some(&shared));
            }
        }
        self.operands(node, live)
    }

    /// Writes the operands of `node` from left to right, then its operation. The live value stays on top of the finished
    /// operands until the last operand that needs it takes it.
    fn operands(&mut self, node: &Expr, live: Option<&Expr>) -> Result<()> {
        let operands = &node.0.operands;
        let last = live.and_then(|live| {
            operands
                .iter()
                .rposition(|operand| contains(operand, live, None))
        });
        for (index, operand) in operands.iter().enumerate() {
            match (live, last) {
                (Some(live), Some(last)) if index <= last => {
                    let uses = contains(operand, live, None);
                    if index == last {
                        self.write(operand, Some(live))?;
                        continue;
                    }
                    if uses {
                        self.push(Op::Duplicate)?;
                    }
                    self.write(operand, uses.then_some(live))?;
                    self.push(Op::Swap)?;
                }
                _ => self.write(operand, None)?,
            }
        }
        self.push(node.0.op)
    }
}

/// The largest expression that at least two operands of `node` contain.
fn shared_by_operands(node: &Expr) -> Option<Expr> {
    let operands = &node.0.operands;
    let mut best: Option<(usize, Expr)> = None;
    for (index, operand) in operands.iter().enumerate() {
        for candidate in reachable(operand) {
            if candidate.is_leaf()
                || !operands[index + 1..]
                    .iter()
                    .any(|other| contains(other, &candidate, None))
            {
                continue;
            }
            let size = reachable(&candidate).len();
            if best.as_ref().is_none_or(|(most, _)| size > *most) {
                best = Some((size, candidate));
            }
        }
    }
    best.map(|(_, shared)| shared)
}

/// Every distinct expression within `node`, itself included.
fn reachable(node: &Expr) -> Vec<Expr> {
    let mut seen: Vec<Expr> = Vec::new();
    let mut open = vec![node.clone()];
    while let Some(next) = open.pop() {
        if seen.iter().any(|known| known.is(&next)) {
            continue;
        }
        open.extend(next.0.operands.iter().cloned());
        seen.push(next);
    }
    seen
}

/// Whether `target` lies within `node`; paths through `without` do not count.
fn contains(node: &Expr, target: &Expr, without: Option<&Expr>) -> bool {
    let mut seen: Vec<&Expr> = Vec::new();
    let mut open = vec![node];
    while let Some(next) = open.pop() {
        if next.is(target) {
            return true;
        }
        if without.is_some_and(|without| without.is(next))
            || seen.iter().any(|known| known.is(next))
        {
            continue;
        }
        open.extend(&next.0.operands);
        seen.push(next);
    }
    false
}

/// The deepest that the stack gets.
fn depth(ops: &[Op]) -> usize {
    let (mut now, mut most) = (0_usize, 0);
    for op in ops {
        now = match op {
            Op::Input(_) | Op::Scalar(_) | Op::Constant(_) | Op::Duplicate => now + 1,
            Op::Add
            | Op::Sub
            | Op::Mul
            | Op::Div
            | Op::Min
            | Op::Max
            | Op::Compare(_)
            | Op::CopySign => now.saturating_sub(1),
            Op::Measure(_) => now.saturating_sub(1),
            Op::Select => now.saturating_sub(2),
            _ => now,
        };
        most = most.max(now);
    }
    most
}
