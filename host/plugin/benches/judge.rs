//! What the sandbox costs a guard: `judge` of `primary-metric`, and the bootstraps that are nearly all of it, natively.
//!
//! 200 windows in each arm and 2000 replicates, as in the demo: four intervals, 1.6 million draws. Both ways take turns, and
//! the best of several rounds counts; the ratio is the sandbox's tax. `rows` is the judge with one replicate, that is without
//! bootstraps: instance, tables in, verdict out.
//!
//! The components must be built (`cargo xtask components`).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

use std::time::{Duration, Instant};

use packhost_plugin::{GuardPlugin, Row, Value};
use packhost_stats::bootstrap;

const ROUNDS: usize = 20;
const WINDOWS: usize = 200;
const REPLICATES: usize = 2000;
const INTERVALS: usize = 4;

fn main() {
    let Some((registry, engine)) = support::components() else {
        return;
    };
    let plugin = engine
        .load(registry.get("primary-metric").unwrap())
        .unwrap();
    let guard = plugin.guard().unwrap();
    let (baseline, subject) = (table(0.1), table(0.3));
    let deltas: Vec<f64> = losses(0.3)
        .iter()
        .zip(losses(0.1))
        .map(|(s, b)| s - b)
        .collect();
    let [sandbox, rows, native] = best([
        &mut || judge(guard, REPLICATES, &baseline, &subject),
        &mut || judge(guard, 1, &baseline, &subject),
        &mut || {
            for seed in 0..INTERVALS as u64 {
                let interval = bootstrap::bca(&deltas, None, REPLICATES, 0.05, seed);
                std::hint::black_box(interval.unwrap());
            }
        },
    ]);
    let draws = (WINDOWS * REPLICATES * INTERVALS) as f64;
    let per_draw = |time: Duration| time.as_secs_f64() * 1e9 / draws;
    println!("{:<28} {sandbox:>12.3?}", "judge in the sandbox");
    println!("{:<28} {rows:>12.3?}", "without bootstraps");
    println!("{:<28} {native:>12.3?}", "bootstraps natively");
    println!(
        "ns per draw: sandbox {:.2}, native {:.2}; ratio {:.2}",
        per_draw(sandbox - rows),
        per_draw(native),
        (sandbox - rows).as_secs_f64() / native.as_secs_f64()
    );
}

fn judge(guard: &GuardPlugin, replicates: usize, baseline: &[Row], subject: &[Row]) {
    let policy = format!(
        r#"{{"bootstrap": {{"method": "bca", "replicates": {replicates}, "alpha": 0.05, "seed": 1}}}}"#
    );
    guard.judge(&policy, baseline, subject).unwrap();
}

fn losses(spread: f64) -> Vec<f64> {
    (0..WINDOWS)
        .map(|at| 2.0 + spread * (at as f64).sin())
        .collect()
}

fn table(spread: f64) -> Vec<Row> {
    let row = |scope: &str, quantity: &str, value| Row {
        scope: scope.into(),
        quantity: quantity.into(),
        value: Value::Vector(value),
    };
    let arm = |scope: &str, first: usize, sign: f64| {
        let ids = (first..first + WINDOWS).map(|id| id as f64).collect();
        [
            row(scope, "window.ids", ids),
            row(scope, "window.loss", losses(sign * spread)),
            row(scope, "window.tokens", vec![128.0; WINDOWS]),
        ]
    };
    [arm("preview", 0, 1.0), arm("final", WINDOWS, -1.0)].concat()
}

/// The best time of each contender over rounds in which all take turns.
fn best<const N: usize>(mut contenders: [&mut dyn FnMut(); N]) -> [Duration; N] {
    let mut best = [Duration::MAX; N];
    for _ in 0..ROUNDS {
        for (contender, best) in contenders.iter_mut().zip(&mut best) {
            let begin = Instant::now();
            contender();
            *best = begin.elapsed().min(*best);
        }
    }
    best
}
