//! Kernel programs of the usual edits, as a plugin would write them. Shared by tests and benches.

#![allow(dead_code, reason = "each test uses some of them")]

use packhost_tensor::{
    DType, cast,
    program::{Comparison, Op, Program, Rounding, Span, Statistic},
};

/// Round-to-nearest quantisation to `bits` in groups of `group` (`None`: rows), each step rounded to `dtype`.
pub fn quant_rtn(dtype: DType, bits: u32, group: Option<u32>) -> Program {
    let lowest = -2f32.powi(bits as i32 - 1);
    let highest = (2f32.powi(bits as i32 - 1) - 1.0).max(1.0);
    let rounded = Op::Cast(dtype, false);
    let span = group.map_or(Span::Row, Span::Group);
    let scale = [
        Op::Input(0),
        Op::Reduce(Statistic::AbsMax, span),
        Op::Constant(highest),
        Op::Div,
        rounded,
        Op::Constant(cast::through(dtype, false, 1e-10)),
        Op::Max,
        rounded,
    ];
    let mut ops = vec![Op::Input(0)];
    ops.extend(scale);
    ops.extend([Op::Div, rounded, Op::Round(Rounding::HalfEven), rounded]);
    ops.extend([
        Op::Constant(lowest),
        Op::Max,
        rounded,
        Op::Constant(highest),
        Op::Min,
        rounded,
    ]);
    ops.extend(scale);
    ops.extend([Op::Mul, rounded]);
    Program::check(&ops).expect("well-formed")
}

/// A cast of `dtype` numbers to `format` and back, and the means of what it moved them by and of their magnitudes.
pub fn fp8(dtype: DType, format: DType) -> Program {
    let rounded = Op::Cast(dtype, false);
    let cast = [
        Op::Input(0),
        Op::Cast(format, cast::saturates(format)),
        rounded,
    ];
    let moved = [
        Op::Input(0),
        Op::Sub,
        rounded,
        Op::Abs,
        Op::Measure(Statistic::Mean),
    ];
    let size = [Op::Input(0), Op::Abs, Op::Measure(Statistic::Mean)];
    let mut ops = cast.to_vec();
    ops.extend(moved);
    ops.extend(size);
    ops.extend(cast);
    Program::check(&ops).expect("well-formed")
}

/// Zeroes what is smaller than scalar 0 in magnitude, by multiplication: signs and NaN stay. Counts the zeros.
pub fn prune() -> Program {
    let ops = [
        Op::Input(0),
        Op::Scalar(0),
        Op::Input(0),
        Op::Abs,
        Op::Compare(Comparison::Le),
        Op::Mul,
        Op::Duplicate,
        Op::Constant(0.0),
        Op::Compare(Comparison::Eq),
        Op::Measure(Statistic::Sum),
    ];
    Program::check(&ops).expect("well-formed")
}
