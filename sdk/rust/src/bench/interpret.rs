//! A plain interpreter of kernel programs: one whole array per stack value, one operation after the other.

use std::rc::Rc;

use crate::ops::{Comparison, MAX_MEASURES, MAX_STACK, Op, Rounding, Span, Statistic};
use crate::{Failure, Result, round_to};

/// How many values an operation pops and pushes.
fn arity(op: Op) -> (usize, usize) {
    match op {
        Op::Input(_) | Op::Scalar(_) | Op::Constant(_) => (0, 1),
        Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::Min
        | Op::Max
        | Op::Compare(_)
        | Op::CopySign => (2, 1),
        Op::Select => (3, 1),
        Op::Measure(_) => (1, 0),
        Op::Duplicate => (1, 2),
        Op::Swap => (2, 2),
        _ => (1, 1),
    }
}

/// Refuses programs whose stack does not work out.
pub fn check(ops: &[Op]) -> Result<()> {
    let mut depth = 0;
    for (index, &op) in ops.iter().enumerate() {
        let (pops, pushes) = arity(op);
        if depth < pops {
            return Err(Failure::failed(format!(
                "kernel program, operation {index}: {op:?} needs {pops} values, found {depth}"
            )));
        }
        depth = depth - pops + pushes;
        if depth > MAX_STACK {
            return Err(Failure::failed(format!(
                "kernel program, operation {index}: more than {MAX_STACK} values on the stack"
            )));
        }
    }
    let measures = ops.iter().filter(|op| matches!(op, Op::Measure(_))).count();
    if measures > MAX_MEASURES {
        return Err(Failure::failed(format!(
            "kernel program: takes {measures} measures, allowed are {MAX_MEASURES}"
        )));
    }
    // A stack that ends empty has been emptied by measures.
    if depth <= 1 {
        Ok(())
    } else {
        Err(Failure::failed(format!(
            "kernel program: leaves {depth} values, must leave one"
        )))
    }
}

/// Runs a checked program over inputs of one shape: the value that it leaves, if it does, and its measures.
pub fn run(
    ops: &[Op],
    shape: &[u64],
    inputs: &[Rc<Vec<f32>>],
    scalars: &[f32],
) -> Result<(Option<Vec<f32>>, Vec<f64>)> {
    let len = inputs.first().map_or(0, |input| input.len());
    let mut stack: Vec<Vec<f32>> = Vec::new();
    let mut measures = Vec::new();
    for &op in ops {
        let mut pop = || {
            stack
                .pop()
                .ok_or_else(|| Failure::failed("kernel program: the stack is empty"))
        };
        let result = match op {
            Op::Input(index) => inputs
                .get(usize::from(index))
                .map(|input| input.as_ref().clone())
                .ok_or_else(|| {
                    Failure::failed(format!(
                        "compute: the program reads input {index}, which was not given"
                    ))
                })?,
            Op::Scalar(index) => {
                let scalar = scalars.get(usize::from(index)).copied();
                vec![
                    scalar.ok_or_else(|| Failure::failed(format!(
                        "compute: scalar {index} was not given"
                    )))?;
                    len
                ]
            }
            Op::Constant(value) => vec![value; len],
            Op::Duplicate => {
                let top = pop()?;
                stack.push(top.clone());
                top
            }
            Op::Swap => {
                let (top, below) = (pop()?, pop()?);
                stack.push(top);
                below
            }
            Op::Select => {
                let (otherwise, then, condition) = (pop()?, pop()?, pop()?);
                let choices = then.into_iter().zip(otherwise);
                choices
                    .zip(condition)
                    .map(|((then, otherwise), c)| if c != 0.0 { then } else { otherwise })
                    .collect()
            }
            Op::Reduce(statistic, span) => reduce(&pop()?, shape, statistic, span)?,
            Op::Measure(statistic) => {
                measures.push(measure(statistic, &pop()?)?);
                continue;
            }
            _ if arity(op).0 == 2 => {
                let (right, left) = (pop()?, pop()?);
                left.into_iter()
                    .zip(right)
                    .map(|(left, right)| binary(op, left, right))
                    .collect()
            }
            _ => pop()?.into_iter().map(|value| unary(op, value)).collect(),
        };
        stack.push(result);
    }
    Ok((stack.pop(), measures))
}

/// A statistic of all values.
fn measure(statistic: Statistic, values: &[f32]) -> Result<f64> {
    if values.is_empty() && !matches!(statistic, Statistic::Sum | Statistic::SumOfSquares) {
        let name = format!("{statistic:?}").to_lowercase();
        return Err(Failure::failed(format!(
            "measure: an empty tensor has no {name}"
        )));
    }
    let wide = || values.iter().map(|&value| f64::from(value));
    let extreme =
        |start: f32, join: fn(f32, f32) -> f32| f64::from(values.iter().copied().fold(start, join));
    Ok(match statistic {
        Statistic::Max => extreme(f32::NEG_INFINITY, max),
        Statistic::Min => extreme(f32::INFINITY, |a, b| -max(-a, -b)),
        Statistic::AbsMax => extreme(0.0, |a, b| max(a, b.abs())),
        Statistic::Sum => wide().sum(),
        Statistic::Mean => wide().sum::<f64>() / values.len() as f64,
        Statistic::SumOfSquares => wide().map(|value| value * value).sum(),
    })
}

/// An operation of one operand.
fn unary(op: Op, value: f32) -> f32 {
    match op {
        Op::Neg => -value,
        Op::Abs => value.abs(),
        Op::Sqrt => value.sqrt(),
        Op::Exp2 => value.exp2(),
        Op::Log2 => value.log2(),
        Op::IsFinite => f32::from(value.is_finite()),
        Op::Round(Rounding::HalfEven) => value.round_ties_even(),
        Op::Round(Rounding::HalfAway) => value.round(),
        Op::Round(Rounding::Floor) => value.floor(),
        Op::Round(Rounding::Ceil) => value.ceil(),
        Op::Round(Rounding::Trunc) => value.trunc(),
        Op::Cast(dtype, saturate) => round_to(dtype, value, saturate),
        // Operations with other numbers of operands never get here: `run` has taken them out.
        _ => value,
    }
}

/// An operation of two operands.
fn binary(op: Op, left: f32, right: f32) -> f32 {
    match op {
        Op::Add => left + right,
        Op::Sub => left - right,
        Op::Mul => left * right,
        Op::Div => left / right,
        Op::Min => -max(-left, -right),
        Op::Max => max(left, right),
        Op::CopySign => left.copysign(right),
        Op::Compare(Comparison::Lt) => f32::from(left < right),
        Op::Compare(Comparison::Le) => f32::from(left <= right),
        Op::Compare(Comparison::Eq) => f32::from(left == right),
        Op::Compare(Comparison::Ne) => f32::from(left != right),
        // As in `unary`.
        _ => left,
    }
}

/// The larger; a NaN wins; +0 is above -0.
fn max(left: f32, right: f32) -> f32 {
    if left.is_nan() || right.is_nan() {
        f32::NAN
    } else if left.total_cmp(&right).is_lt() {
        right
    } else {
        left
    }
}

/// A reduction, broadcast back.
fn reduce(values: &[f32], shape: &[u64], statistic: Statistic, span: Span) -> Result<Vec<f32>> {
    let columns = shape.iter().skip(1).product::<u64>().max(1) as usize;
    let last = shape.last().copied().unwrap_or(1).max(1) as usize;
    // Which span an element belongs to.
    let key = |index: usize| match span {
        Span::Group(size) => {
            index / last * last.div_ceil(size as usize) + index % last / size as usize
        }
        Span::Row => index / columns,
        Span::Column => index % columns,
        Span::Whole => 0,
    };
    if span == Span::Group(0) {
        return Err(Failure::failed("kernel program: groups of 0 elements"));
    }
    let spans = (0..values.len()).map(key).max().map_or(0, |most| most + 1);
    let mut members: Vec<Vec<f32>> = vec![Vec::new(); spans];
    for (index, &value) in values.iter().enumerate() {
        members[key(index)].push(value);
    }
    let reduced: Vec<f32> = members
        .iter()
        .map(|members| Ok(measure(statistic, members)? as f32))
        .collect::<Result<_>>()?;
    Ok((0..values.len()).map(|index| reduced[key(index)]).collect())
}
