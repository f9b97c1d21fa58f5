//! Random programs on random tensors: the fused kernels have the bits of the definition, on every instruction set and for
//! any number of threads.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

use packhost_tensor::{
    DType, Device, Tensor,
    cpu::{Cpu, Level},
    program::{Comparison, Op, Program, Rounding, Span, Statistic, interpret},
};
use proptest::prelude::*;

const FLOATS: [DType; 6] = [
    DType::F64,
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::F8E4M3,
    DType::F8E5M2,
];

fn devices() -> &'static [Cpu] {
    static DEVICES: std::sync::OnceLock<Vec<Cpu>> = std::sync::OnceLock::new();
    DEVICES.get_or_init(|| {
        let levels = Level::available();
        let best = *levels.last().unwrap();
        let with = |threads, level| Cpu::with_level(Some(threads), level).unwrap();
        levels
            .iter()
            .map(|&level| with(2, level))
            .chain([with(1, best), with(5, best)])
            .collect()
    })
}

fn any_dtype() -> impl Strategy<Value = DType> {
    prop_oneof![3 => Just(DType::BF16), 2 => Just(DType::F32), 2 => prop::sample::select(FLOATS.to_vec())]
}

/// Shapes around the places where the layout of tiles changes.
fn any_shape() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        3 => (1usize..6, 1usize..300).prop_map(|(r, c)| vec![r, c]),
        2 => (1usize..40, prop::sample::select(vec![16usize, 32, 128, 256, 384])).prop_map(|(r, c)| vec![r, c]),
        1 => (1usize..4, 1usize..5, 1usize..40).prop_map(|(a, b, c)| vec![a, b, c]),
        1 => (1usize..9000).prop_map(|n| vec![n]),
        1 => (1usize..3, 4000usize..9000).prop_map(|(r, c)| vec![r, c]),
        1 => prop::sample::select(vec![vec![2, 66_000], vec![1, 70_000], vec![3000, 3], vec![2, 65_552], vec![600, 512]]),
    ]
}

/// Ordinary weights, bit patterns, special values.
fn any_values(len: usize) -> impl Strategy<Value = Vec<f32>> {
    (any::<u64>(), 0..4u32).prop_map(move |(seed, kind)| {
        let mut state = seed | 1;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32 ^ (state >> 13) as u32
        };
        (0..len)
            .map(|_| {
                let bits = next();
                let ordinary = (bits >> 8) as f32 / 16_777_216.0 - 0.5;
                match (kind, next() % 64) {
                    (3, _) => f32::from_bits(bits),
                    (2, 0) => [f32::NAN, f32::INFINITY, -f32::INFINITY, -0.0][bits as usize % 4],
                    (1 | 2, 1..4) => {
                        [0.0, -0.0, 1e-40, -3e-39, 65504.0, 448.0, 1e30, 2.5][bits as usize % 8]
                    }
                    (0, _) => ordinary * 0.1,
                    _ => ordinary * 30.0,
                }
            })
            .collect()
    })
}

fn any_leaf() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u8..2).prop_map(Op::Input),
        1 => (0u8..2).prop_map(Op::Scalar),
        1 => prop_oneof![any::<f32>(), prop::sample::select(vec![0.0, -0.0, 1.0, -128.0, 127.0, 0.5, f32::NAN])]
            .prop_map(Op::Constant),
    ]
}

fn any_span() -> impl Strategy<Value = Span> {
    prop_oneof![
        3 => prop::sample::select(vec![1u32, 7, 16, 24, 32, 48, 64, 128, 1000, 66_000]).prop_map(Span::Group),
        2 => Just(Span::Row),
        1 => Just(Span::Column),
        1 => Just(Span::Whole),
    ]
}

fn any_unary() -> impl Strategy<Value = Op> {
    let rounding = vec![
        Rounding::HalfEven,
        Rounding::HalfAway,
        Rounding::Floor,
        Rounding::Ceil,
        Rounding::Trunc,
    ];
    prop_oneof![
        4 => prop::sample::select(vec![Op::Neg, Op::Abs, Op::Sqrt, Op::Exp2, Op::Log2, Op::IsFinite]),
        2 => prop::sample::select(rounding).prop_map(Op::Round),
        5 => (any_dtype(), any::<bool>()).prop_map(|(dtype, saturate)| Op::Cast(dtype, saturate)),
        4 => (any_extreme(), any_span()).prop_map(|(statistic, span)| Op::Reduce(statistic, span)),
    ]
}

fn any_extreme() -> impl Strategy<Value = Statistic> {
    prop::sample::select(vec![Statistic::Max, Statistic::Min, Statistic::AbsMax])
}

fn any_binary() -> impl Strategy<Value = Op> {
    let comparison = vec![
        Comparison::Lt,
        Comparison::Le,
        Comparison::Eq,
        Comparison::Ne,
    ];
    prop_oneof![
        6 => prop::sample::select(vec![Op::Add, Op::Sub, Op::Mul, Op::Div, Op::Min, Op::Max, Op::CopySign]),
        2 => prop::sample::select(comparison).prop_map(Op::Compare),
    ]
}

/// A program of expressions: a few that are measured, by statistics that are exact in any order, and the one that is
/// stored. Whatever is measured, and what is stored, may be measured once more.
fn any_program() -> impl Strategy<Value = Program> {
    let measured = prop_oneof![
        any_extreme().prop_map(|statistic| vec![Op::Measure(statistic)]),
        any_extreme().prop_map(|statistic| vec![
            Op::Duplicate,
            Op::Measure(statistic),
            Op::IsFinite,
            Op::Measure(Statistic::Sum)
        ]),
    ];
    (
        prop::collection::vec((any_expression(), measured), 0..3),
        any_expression(),
        prop::option::of(any_extreme()),
    )
        .prop_filter_map("too long", |(measured, stored, again)| {
            let mut ops: Vec<Op> = measured
                .into_iter()
                .flat_map(|(a, b)| [a, b])
                .flatten()
                .collect();
            ops.extend(stored);
            if let Some(statistic) = again {
                ops.extend([Op::Duplicate, Op::Measure(statistic)]);
            }
            Program::check(&ops).ok()
        })
}

/// Expressions in postfix order, with shared parts by duplication.
fn any_expression() -> impl Strategy<Value = Vec<Op>> {
    let expression = any_leaf().prop_map(|op| vec![op]).prop_recursive(6, 40, 3, |inner| {
        prop_oneof![
            4 => (inner.clone(), any_unary()).prop_map(|(mut a, op)| { a.push(op); a }),
            4 => (inner.clone(), inner.clone(), any_binary(), any::<bool>()).prop_map(|(mut a, b, op, swap)| {
                a.extend(b);
                if swap { a.push(Op::Swap); }
                a.push(op);
                a
            }),
            1 => (inner.clone(), any_binary()).prop_map(|(mut a, op)| { a.extend([Op::Duplicate, op]); a }),
            1 => (inner.clone(), inner.clone(), inner).prop_map(|(mut a, b, c)| {
                a.extend(b);
                a.extend(c);
                a.push(Op::Select);
                a
            }),
        ]
    });
    expression.prop_filter("too deep", |ops| Program::check(ops).is_ok())
}

/// A program, and shape, dtypes, elements of two tensors, and two scalars.
type Case = (Program, Vec<usize>, [DType; 2], [Vec<f32>; 2], [f32; 2]);

fn any_case() -> impl Strategy<Value = Case> {
    any_shape().prop_flat_map(|shape| {
        let len = shape.iter().product();
        (
            any_program(),
            Just(shape),
            [any_dtype(), any_dtype()],
            [any_values(len), any_values(len)],
            (any::<f32>(), -3f32..3.0).prop_map(|(a, b)| [a, b]),
        )
    })
}

fn assert_same(found: &Tensor, expected: &Tensor, what: &str) -> Result<(), TestCaseError> {
    if found.bytes() == expected.bytes() {
        return Ok(());
    }
    for (i, (a, b)) in found
        .to_f32()
        .into_iter()
        .zip(expected.to_f32())
        .enumerate()
    {
        prop_assert_eq!(
            a.to_bits(),
            b.to_bits(),
            "{}, element {}: {:e}, expected {:e}",
            what,
            i,
            a,
            b
        );
    }
    Err(TestCaseError::fail(format!(
        "{what}: equal numbers in different bytes"
    )))
}

/// Equal numbers, NaN included.
fn bits(measures: &[f64]) -> Vec<u64> {
    measures.iter().map(|measure| measure.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn kernels_equal_the_definition((program, shape, dtypes, values, scalars) in any_case()) {
        let inputs = [0, 1].map(|i| Tensor::from_f32(dtypes[i], shape.clone(), &values[i]).unwrap());
        let inputs = [&inputs[0], &inputs[1]];
        let expected = interpret(&program, &inputs, &scalars).unwrap();
        for device in devices() {
            let found = device.compute(&program, &inputs, &scalars).unwrap();
            assert_same(&found.tensor, &expected.tensor, device.level().name())?;
            prop_assert_eq!(bits(&found.measures), bits(&expected.measures), "{}", device.level().name());
            if !program.measures().is_empty() {
                let measured = device.measure(&program, &inputs, &scalars).unwrap();
                prop_assert_eq!(bits(&measured), bits(&expected.measures), "{}", device.level().name());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Sums: the same bits on every level and for any thread count, and close to the definition.
    #[test]
    fn sums_agree(
        shape in any_shape(),
        span in any_span(),
        statistic in 0usize..3,
        seed in any::<u32>(),
    ) {
        let len: usize = shape.iter().product();
        let values: Vec<f32> =
            (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) ^ seed) as f32 / 4e9 + 0.1).collect();
        let tensor = Tensor::from_f32(DType::F32, shape, &values).unwrap();
        let statistic = [Statistic::Sum, Statistic::Mean, Statistic::SumOfSquares][statistic];
        let ops = [
            Op::Input(0), Op::Duplicate, Op::Measure(statistic),
            Op::Duplicate, Op::Mul, Op::Reduce(statistic, span), Op::Sqrt, Op::Duplicate, Op::Measure(Statistic::Mean),
        ];
        let program = Program::check(&ops).unwrap();
        let expected = interpret(&program, &[&tensor], &[]).unwrap();
        let mut all = devices().iter().map(|device| device.compute(&program, &[&tensor], &[]).unwrap());
        let first = all.next().unwrap();
        for other in all {
            prop_assert_eq!(first.tensor.bytes(), other.tensor.bytes());
            prop_assert_eq!(&first.measures, &other.measures);
        }
        for (found, expected) in first.tensor.to_f32().into_iter().zip(expected.tensor.to_f32()) {
            prop_assert!((found / expected - 1.0).abs() < 1e-6, "{} {}", found, expected);
        }
        for (found, expected) in first.measures.iter().zip(&expected.measures) {
            prop_assert!((found / expected - 1.0).abs() < 1e-6, "{} {}", found, expected);
        }
        for device in devices() {
            prop_assert_eq!(&device.measure(&program, &[&tensor], &[]).unwrap(), &first.measures);
        }
    }
}

/// Division by a number per group, rounded to bf16, is replaced by a multiplication where that is exact. Every bf16 number
/// is divided by a spread of divisors that covers every exponent, and the same significands for both.
#[test]
fn division_by_a_group_is_exact() {
    let device = Cpu::new(None).unwrap();
    let ops = [
        Op::Input(0),
        Op::Input(1),
        Op::Reduce(Statistic::Max, Span::Row),
        Op::Div,
        Op::Cast(DType::BF16, false),
    ];
    let program = Program::check(&ops).unwrap();
    let numerators: Vec<f32> = (0..=u16::MAX)
        .map(|bits| f32::from_bits(u32::from(bits) << 16))
        .collect();
    // Rows of one divisor each. With PACKHOST_EXHAUSTIVE set, all of them (a minute or two); else a prime step visits all exponents and all significands.
    let step = if std::env::var_os("PACKHOST_EXHAUSTIVE").is_some() {
        1
    } else {
        509
    };
    let divisors: Vec<f32> = (0..=u16::MAX)
        .step_by(step)
        .map(|bits| f32::from_bits(u32::from(bits) << 16))
        .collect();
    let first = Tensor::from_f32(DType::BF16, [1, 1 << 16], &numerators).unwrap();
    for divisor in divisors {
        let second = Tensor::from_f32(DType::BF16, [1, 1 << 16], &vec![divisor; 1 << 16]).unwrap();
        // Two rows, so that the span is a group and not the whole tensor.
        let two = |t: &Tensor| {
            Tensor::new(DType::BF16, [2, 1 << 16], t.bytes().repeat(2).into()).unwrap()
        };
        let found = device
            .compute(&program, &[&two(&first), &two(&second)], &[])
            .unwrap()
            .tensor;
        let expected: Vec<f32> = numerators.iter().map(|x| x / divisor).collect();
        let expected = Tensor::from_f32(DType::BF16, [1, 1 << 16], &expected).unwrap();
        assert_eq!(
            found.bytes()[..1 << 17],
            expected.bytes()[..],
            "divisor {divisor:e}"
        );
    }
}

/// Large results are stored in another way; they hold the same as the same elements in small tensors.
#[test]
fn large_results_equal_small_ones() {
    let program = Program::check(&[
        Op::Input(0),
        Op::Constant(3.0),
        Op::Mul,
        Op::Duplicate,
        Op::Measure(Statistic::AbsMax),
    ])
    .unwrap();
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        // Just above 8 MiB, with an incomplete tile at the end.
        let len = (8 << 20) / dtype.size() + 77;
        let values: Vec<f32> = (0..len)
            .map(|i| {
                if i % 1009 == 0 {
                    f32::NAN
                } else {
                    (i % 4093) as f32 - 2000.5
                }
            })
            .collect();
        let large = Tensor::from_f32(dtype, [len], &values).unwrap();
        for device in devices() {
            let found = device.compute(&program, &[&large], &[]).unwrap();
            assert!(found.measures[0].is_nan());
            let piece = 100_000;
            for (i, part) in values.chunks(piece).enumerate() {
                let small = Tensor::from_f32(dtype, [part.len()], part).unwrap();
                let expected = device.compute(&program, &[&small], &[]).unwrap().tensor;
                let start = i * piece * dtype.size();
                let same = &found.tensor.bytes()[start..start + expected.bytes().len()];
                assert!(
                    same == &expected.bytes()[..],
                    "{dtype}, {}, part {i}",
                    device.level().name()
                );
            }
        }
    }
}

#[test]
fn calls_are_checked() {
    let device = Cpu::new(Some(1)).unwrap();
    let program = Program::check(&[Op::Input(1), Op::Scalar(0), Op::Mul]).unwrap();
    let tensor = Tensor::zeros(DType::BF16, [2, 3]).unwrap();
    let other = Tensor::zeros(DType::BF16, [3, 2]).unwrap();
    let integer = Tensor::zeros(DType::I32, [2, 3]).unwrap();
    let message = |inputs: &[&Tensor], scalars: &[f32]| {
        device
            .compute(&program, inputs, scalars)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        message(&[&tensor], &[1.0]),
        "compute: the program reads 2 tensors, 1 were given"
    );
    assert_eq!(
        message(&[&tensor, &tensor], &[]),
        "compute: the program reads 1 scalars, 0 were given"
    );
    assert_eq!(
        message(&[&tensor, &other], &[1.0]),
        "compute: shapes do not fit, [2, 3] and [3, 2]"
    );
    assert_eq!(
        message(&[&tensor, &integer], &[1.0]),
        "compute: not defined for I32 tensors"
    );
    assert_eq!(
        message(&[], &[]),
        "compute: needs at least one tensor, whose shape and dtype the result takes"
    );
    let empty = Tensor::zeros(DType::BF16, [0, 3]).unwrap();
    assert!(
        device
            .compute(&support::prune(), &[&empty], &[0.0])
            .unwrap()
            .tensor
            .is_empty()
    );
    let count = Program::check(&[Op::Input(0), Op::Measure(Statistic::Sum)]).unwrap();
    assert_eq!(device.measure(&count, &[&empty], &[]).unwrap(), [0.0]);
    assert_eq!(
        device
            .compute(&count, &[&tensor], &[])
            .unwrap_err()
            .to_string(),
        "compute: the program leaves no value to store; it can only be measured"
    );
}
