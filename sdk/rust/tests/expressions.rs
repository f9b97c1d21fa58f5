//! Kernel programs from expressions: the same numbers as a direct evaluation, rounding after each step, sharing.
#![allow(clippy::unwrap_used, reason = "tests")]

use packhost_sdk::expr::{self, Expr, Kernel};
use packhost_sdk::{DType, MAX_OPS, Op, Program, Span, bench, round_to, stats::rng::Pcg64};

fn run(dtype: DType, values: &[f32], body: impl FnOnce(Kernel) -> Expr) -> Vec<f32> {
    let tensor = bench::tensor("x", dtype, &[1, values.len() as u64], values);
    let program = Program::rounded(dtype, body).unwrap();
    bench::values(&tensor.compute(&program, &[&tensor], &[0.3]).unwrap().tensor)
}

#[test]
fn quantisation_shares_its_step() {
    let body = |k: Kernel| {
        let x = k.input(0);
        let step = (x.reduce_absmax(Span::Group(32)) / 7.0).max(1e-10);
        (x / &step).round_half_even().clamp(-8.0, 7.0) * step
    };
    let ops = expr::build(DType::F32, body).unwrap();
    let reductions = ops.iter().filter(|op| matches!(op, Op::Reduce(..))).count();
    assert_eq!((reductions, ops.len()), (1, 17));
    // In bf16 the two quotients are rounded, and nothing else has to be: the maximum's bound is rounded beforehand,
    // integers up to 8 are bf16 numbers, and the host rounds the product.
    let ops = expr::build(DType::BF16, body).unwrap();
    assert_eq!(
        ops.iter().filter(|op| matches!(op, Op::Cast(..))).count(),
        2
    );
    assert!(ops.contains(&Op::Constant(round_to(DType::BF16, 1e-10, false))));
}

#[test]
fn every_step_is_rounded() {
    // 1 + 2^-8 is a tie in bf16 and becomes 1; in f32 the small number survives the sum and the difference.
    let small = 2.0_f32.powi(-8);
    let body = |k: Kernel| (k.input(0) + small) - 1.0;
    assert_eq!(run(DType::F32, &[1.0], body), [small]);
    assert_eq!(run(DType::BF16, &[1.0], body), [0.0]);
    // And f32 arithmetic on a bf16 tensor, on purpose.
    assert_eq!(
        run(DType::BF16, &[1.0], |k| (k.input(0).in_f32() + small) - 1.0),
        [small]
    );
    let back = |k: Kernel| (k.input(0).in_f32() + small).in_dtype(DType::BF16) - 1.0;
    assert_eq!(run(DType::BF16, &[1.0], back), [0.0]);
}

#[test]
fn operands_keep_their_order() {
    let x = [3.0, -5.0];
    assert_eq!(run(DType::F32, &x, |k| 1.0 - k.input(0)), [-2.0, 6.0]);
    assert_eq!(run(DType::F32, &x, |k| k.input(0) - 1.0), [2.0, -6.0]);
    assert_eq!(
        run(DType::F32, &x, |k| k
            .input(0)
            .less(0.0)
            .select(-1.0, k.input(0))),
        [3.0, -1.0]
    );
    assert_eq!(
        run(DType::F32, &x, |k| k.input(0).at_least(3.0)),
        [1.0, 0.0]
    );
    assert_eq!(
        run(DType::F32, &x, |k| k.constant(2.0).copy_sign(k.input(0))),
        [2.0, -2.0]
    );
    assert_eq!(
        run(DType::F32, &x, |k| -(k.scalar(0) / k.input(1))),
        [-0.3 / 3.0, 0.3 / 5.0]
    );
    // A shared value on the right, then on the left, of operations whose order matters.
    let shared = |k: Kernel| {
        let a = k.input(0) * 2.0;
        (k.input(0) - &a) / (&a - 1.0)
    };
    assert_eq!(
        run(DType::F32, &x, shared),
        [(3.0 - 6.0) / 5.0, (-5.0 + 10.0) / -11.0]
    );
}

/// A value computed along with its expression.
#[derive(Clone)]
struct Pair {
    expr: Expr,
    value: f32,
}

/// Random expressions with much sharing give the numbers of a direct evaluation.
#[test]
fn random_expressions_with_sharing() {
    let (x, scalar) = (1.75_f32, 0.3_f32);
    let mut written = 0;
    for seed in 0..2_000 {
        let mut random = Pcg64::new(seed);
        let mut value = 0.0;
        let build = |k: Kernel| {
            let mut pool = vec![
                Pair {
                    expr: k.input(0),
                    value: x,
                },
                Pair {
                    expr: k.scalar(0),
                    value: scalar,
                },
                Pair {
                    expr: k.constant(-0.5),
                    value: -0.5,
                },
            ];
            for _ in 0..random.below(9) + 1 {
                let mut pick = || pool[random.below(pool.len() as u32) as usize].clone();
                let (a, b, c) = (pick(), pick(), pick());
                let next = match random.below(8) {
                    0 => Pair {
                        expr: &a.expr + &b.expr,
                        value: a.value + b.value,
                    },
                    1 => Pair {
                        expr: &a.expr - &b.expr,
                        value: a.value - b.value,
                    },
                    2 => Pair {
                        expr: &a.expr * &b.expr,
                        value: a.value * b.value,
                    },
                    3 => Pair {
                        expr: a.expr.abs(),
                        value: a.value.abs(),
                    },
                    4 => Pair {
                        expr: -&a.expr,
                        value: -a.value,
                    },
                    5 => Pair {
                        expr: a.expr.less(&b.expr),
                        value: f32::from(a.value < b.value),
                    },
                    6 => Pair {
                        expr: a.expr.select(&b.expr, &c.expr),
                        value: if a.value != 0.0 { b.value } else { c.value },
                    },
                    _ => Pair {
                        expr: a.expr.copy_sign(&b.expr),
                        value: a.value.copysign(b.value),
                    },
                };
                pool.push(next);
            }
            let last = pool[pool.len() - 1].clone();
            value = last.value;
            last.expr
        };
        // Conflicts between shared values may make a program too long; then it is refused, which the last test looks at.
        let Ok(ops) = expr::build(DType::F32, build) else {
            continue;
        };
        let tensor = bench::tensor("x", DType::F32, &[1, 1], &[x]);
        let result = tensor
            .compute(&Program::from_ops(&ops).unwrap(), &[], &[scalar])
            .unwrap();
        assert_eq!(
            bench::values(&result.tensor)[0].to_bits(),
            value.to_bits(),
            "seed {seed}: {ops:?}"
        );
        written += 1;
    }
    assert_eq!(written, 2_000);
}

/// Values that are used twice, each made from the one before, do not double the program.
#[test]
fn nested_sharing_stays_linear() {
    let chain = |steps: usize| {
        move |k: Kernel| {
            let mut value = k.input(0);
            for _ in 0..steps {
                value = &value * &value + 1.0;
            }
            value
        }
    };
    assert_eq!(
        expr::build(DType::F32, chain(40)).unwrap().len(),
        1 + 40 * 4 - 1 + 1
    );
    let failure = expr::build(DType::F32, chain(200)).unwrap_err().to_string();
    assert!(
        failure.contains(&format!("more than {MAX_OPS} operations")),
        "{failure}"
    );
}

/// Measures come in the order in which they were asked for, whatever the program leaves; what is measured is rounded to the
/// working dtype as any other step.
#[test]
fn programs_measure_what_they_are_told() {
    use packhost_sdk::Statistic;
    let x = bench::tensor("x", DType::BF16, &[2, 2], &[1.0, -3.0, 0.0, 0.00390625]);
    let body = |k: Kernel| {
        let grown = k.input(0) + 1.0;
        k.measure(Statistic::Max, &grown);
        k.measure(Statistic::Sum, k.input(0).equals(0.0));
        k.measure(Statistic::SumOfSquares, grown.clone());
        grown
    };
    let rounded = Program::rounded(DType::BF16, body).unwrap();
    let (tensor, measures) = x.compute(&rounded, &[], &[]).unwrap().split().unwrap();
    assert_eq!(bench::values(&tensor), [2.0, -2.0, 1.0, 1.0]);
    assert_eq!(measures, [2.0, 1.0, 10.0]);
    // Without rounding the last element is a little above 1, and nothing is stored.
    let plain = Program::new(|k| {
        body(k);
    });
    let [max, zeros, squares] = x.measure(&plain.unwrap(), &[], &[]).unwrap();
    assert_eq!((max, zeros), (2.0, 1.0));
    assert_eq!(squares, 9.0 + 1.00390625f64.powi(2));
    // The number of measures is checked, and a program without a value cannot be stored.
    let one = Program::new(|k| k.measure(Statistic::Mean, k.scalar(0))).unwrap();
    let wrong = x.measure::<2>(&one, &[], &[7.0]).unwrap_err().to_string();
    assert!(wrong.contains("takes 1 measures, not 2"), "{wrong}");
    let unstored = x.compute(&one, &[], &[7.0]).unwrap_err().to_string();
    assert!(unstored.contains("can only be measured"), "{unstored}");
    let empty = bench::tensor("e", DType::F32, &[0], &[]);
    let nothing = empty
        .measure::<1>(&one, &[], &[7.0])
        .unwrap_err()
        .to_string();
    assert!(nothing.contains("an empty tensor has no mean"), "{nothing}");
}
