//! The meaning of a kernel program, spelled out: one operation after another over whole arrays, nothing fused.
//!
//! Devices are compared with this; it is far too slow for anything else.

use crate::{Computed, Result, Tensor, cast};

use super::{Op, Program, Span, Statistic, scalar};

/// Runs `program` as [`crate::Device::compute`] must: the tensor bit for bit, and of the measures the extremes and whatever
/// is exact in f64; other sums are added here from the first element to the last.
///
/// # Errors
/// Those of [`Program::check_compute`].
pub fn interpret(program: &Program, inputs: &[&Tensor], scalars: &[f32]) -> Result<Computed> {
    program.check_compute(inputs, scalars)?;
    let len = inputs[0].len();
    let (_, columns) = inputs[0].rows_columns();
    let mut stack: Vec<Vec<f32>> = Vec::new();
    let mut measures = Vec::new();
    for op in program.ops() {
        let mut operands = stack.split_off(stack.len() - op.arity().0);
        match *op {
            Op::Duplicate => {
                stack.push(operands[0].clone());
                stack.push(operands.remove(0));
            }
            Op::Swap => stack.extend(operands.into_iter().rev()),
            Op::Input(index) => stack.push(inputs[usize::from(index)].to_f32()),
            Op::Scalar(index) => stack.push(vec![scalars[usize::from(index)]; len]),
            Op::Constant(value) => stack.push(vec![value; len]),
            Op::Reduce(statistic, span) => {
                stack.push(reduce(statistic, span, &operands[0], columns))
            }
            Op::Measure(statistic) => {
                let measure = statistic_of(statistic, &operands[0]);
                measures.push(if measure.is_nan() { f64::NAN } else { measure });
            }
            op => stack.push((0..len).map(|i| element(op, &operands, i)).collect()),
        }
    }
    let result = stack.pop().unwrap_or_default();
    Ok(Computed {
        tensor: Tensor::from_f32(inputs[0].dtype(), inputs[0].shape(), &result)?,
        measures,
    })
}

/// One element of an operation without a span.
fn element(op: Op, operands: &[Vec<f32>], i: usize) -> f32 {
    let at = |which: usize| operands[which][i];
    match op {
        Op::Add => at(0) + at(1),
        Op::Sub => at(0) - at(1),
        Op::Mul => at(0) * at(1),
        Op::Div => at(0) / at(1),
        Op::Min => scalar::min(at(0), at(1)),
        Op::Max => scalar::max(at(0), at(1)),
        Op::Neg => -at(0),
        Op::Abs => at(0).abs(),
        Op::Sqrt => at(0).sqrt(),
        Op::Exp2 => scalar::exp2(at(0)),
        Op::Log2 => scalar::log2(at(0)),
        Op::Round(rounding) => scalar::round(rounding, at(0)),
        Op::Compare(comparison) => scalar::compare(comparison, at(0), at(1)),
        Op::Select => at(if at(0) != 0.0 { 1 } else { 2 }),
        Op::IsFinite => f32::from(at(0).is_finite()),
        Op::CopySign => scalar::copy_sign(at(0), at(1)),
        Op::Cast(dtype, saturate) => cast::through(dtype, saturate, at(0)),
        Op::Input(_)
        | Op::Scalar(_)
        | Op::Constant(_)
        | Op::Reduce(..)
        | Op::Measure(_)
        | Op::Duplicate
        | Op::Swap => {
            unreachable!("handled by the caller")
        }
    }
}

/// The statistic of every element's span, at that element's place.
fn reduce(statistic: Statistic, span: Span, values: &[f32], columns: usize) -> Vec<f32> {
    let key = |i: usize| match span {
        Span::Group(size) => (i / columns, i % columns / size as usize),
        Span::Row => (i / columns, 0),
        Span::Column => (0, i % columns),
        Span::Whole => (0, 0),
    };
    let mut spans = std::collections::BTreeMap::<_, Vec<f32>>::new();
    for (i, &value) in values.iter().enumerate() {
        spans.entry(key(i)).or_default().push(value);
    }
    let results: std::collections::BTreeMap<_, f32> = spans
        .into_iter()
        .map(|(key, members)| (key, statistic_of(statistic, &members) as f32))
        .collect();
    (0..values.len()).map(|i| results[&key(i)]).collect()
}

/// The statistic of the members of one span; sums in f64.
fn statistic_of(statistic: Statistic, members: &[f32]) -> f64 {
    let wide = || members.iter().map(|&x| f64::from(x));
    let extreme = |start: f32, join: fn(f32, f32) -> f32| {
        f64::from(members.iter().copied().fold(start, join))
    };
    match statistic {
        Statistic::Max => extreme(f32::NEG_INFINITY, scalar::max),
        Statistic::Min => extreme(f32::INFINITY, scalar::min),
        Statistic::AbsMax => extreme(0.0, |a, b| scalar::max(a, b.abs())),
        Statistic::Sum => wide().sum(),
        Statistic::Mean => wide().sum::<f64>() / members.len() as f64,
        Statistic::SumOfSquares => wide().map(|x| x * x).sum(),
    }
}
