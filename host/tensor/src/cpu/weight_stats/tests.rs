#![allow(clippy::unwrap_used, clippy::expect_used)]
use serde_json::Value;

use crate::cpu::{Cpu, noise::Noise};
use crate::{DType, Device, Leading, Power, Start, Tensor, WeightStats, WeightWish};

const VECTORS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/vectors/guards/spectral.json"
);

fn cpu() -> Cpu {
    Cpu::new(Some(2)).unwrap()
}

fn power(start: Start, iterations: u32) -> Power {
    Power { start, iterations }
}

fn everything() -> WeightWish {
    WeightWish {
        powers: vec![
            power(Start::Ones, 4),
            power(Start::First, 1),
            power(Start::Hashed, 10),
        ],
        norms: true,
        leading: true,
    }
}

fn stats(tensor: &Tensor) -> WeightStats {
    cpu().weight_stats(tensor, &everything()).unwrap()
}

fn random(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    let blocks = (rows * columns).div_ceil(4) as u64;
    let values = (0..blocks).flat_map(|block| Noise::Normal.block(seed, block));
    values.take(rows * columns).collect()
}

fn tensor(dtype: DType, rows: usize, columns: usize, values: &[f32]) -> Tensor {
    Tensor::from_f32(dtype, [rows, columns], values).unwrap()
}

/// Reflects every column of a matrix: an orthogonal matrix from the left.
fn reflected(values: &[f32], columns: usize, seed: u64) -> Vec<f32> {
    let rows = values.len() / columns;
    let normal: Vec<f64> = random(rows, 1, seed).into_iter().map(f64::from).collect();
    let square: f64 = normal.iter().map(|x| x * x).sum();
    let mut out = vec![0.0; values.len()];
    for column in 0..columns {
        let along: f64 = (0..rows)
            .map(|row| normal[row] * f64::from(values[row * columns + column]))
            .sum();
        for (row, normal) in normal.iter().enumerate() {
            let at = row * columns + column;
            out[at] = (f64::from(values[at]) - 2.0 * along / square * normal) as f32;
        }
    }
    out
}

fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns;
    let at = |index: usize| values[index % rows * columns + index / rows];
    (0..values.len()).map(at).collect()
}

/// A matrix with these singular values.
fn with_spectrum(rows: usize, columns: usize, spectrum: &[f32]) -> Vec<f32> {
    let mut values = vec![0.0; rows * columns];
    for (index, value) in spectrum.iter().enumerate() {
        values[index * columns + index] = *value;
    }
    for seed in 0..3 {
        values = reflected(&values, columns, 100 + seed);
        values = transposed(&values, columns);
        values = reflected(&values, rows, 200 + seed);
        values = transposed(&values, rows);
    }
    values
}

fn close(what: &str, got: f64, expected: f64, tolerance: f64) {
    assert!(
        (got - expected).abs() <= tolerance * expected.abs(),
        "{what}: {got} for {expected}"
    );
}

#[test]
fn reference_cases() {
    let json: Value = serde_json::from_str(&std::fs::read_to_string(VECTORS).unwrap()).unwrap();
    let cases = json["vectors"].as_array().unwrap();
    let cases = cases.iter().filter(|case| case["fn"] == "sigma_max");
    let mut seen = 0;
    for case in cases {
        seen += 1;
        let id = case["id"].as_str().unwrap();
        let rows: Vec<Vec<f32>> = serde_json::from_value(case["matrix"].clone()).unwrap();
        let tensor = tensor(DType::F32, rows.len(), rows[0].len(), &rows.concat());
        let expected = &case["expected"];
        let number = |value: &Value| value.as_f64().unwrap();
        let tolerance = number(&case["tolerance_rel"]["f32"]);
        let iterations = [1, 4, 10, 50];
        let mut powers = iterations.map(|count| power(Start::Ones, count)).to_vec();
        powers.push(power(Start::First, 4));
        let wish = WeightWish {
            powers,
            norms: true,
            leading: true,
        };
        let stats = cpu().weight_stats(&tensor, &wish).unwrap();
        for (count, sigma) in iterations.iter().zip(&stats.sigmas) {
            let expected = number(&expected["iters"][count.to_string()]);
            close(id, f64::from(*sigma), expected, tolerance);
        }
        close(
            id,
            f64::from(stats.sigmas[4]),
            number(&expected["iters4_e0"]),
            tolerance,
        );
        let norms = stats.norms.unwrap();
        close(
            id,
            norms.frobenius_sq,
            number(&expected["frobenius_sq"]),
            tolerance,
        );
        for (key, value) in [
            ("row_min", norms.rows.min),
            ("row_median", norms.rows.median),
            ("row_max", norms.rows.max),
            ("col_min", norms.columns.min),
            ("col_median", norms.columns.median),
            ("col_max", norms.columns.max),
        ] {
            close(
                key,
                f64::from(value),
                number(&expected["row_col"][key]),
                tolerance,
            );
        }
        let leading = stats.leading.unwrap();
        let top = number(&expected["svd_top"]);
        assert!(leading.values[0] <= top * (1.0 + 2e-6), "{id}");
        assert!(
            top - leading.values[0] <= leading.bound + 2e-6 * top,
            "{id}: {leading:?}"
        );
        if rows.len().min(rows[0].len()) <= 8 {
            close(id, leading.values[0], top, 2e-6);
        }
    }
    assert_eq!(seen, 9);
}

#[test]
fn special_matrices() {
    let bad = tensor(DType::F32, 2, 2, &[1.0, f32::NAN, 0.0, 1.0]);
    let of_bad = stats(&bad);
    assert_eq!((of_bad.non_finite, of_bad.zeros), (1, 1));
    assert_eq!(of_bad.sigmas, [0.0; 3]);
    assert!(of_bad.norms.unwrap().rows.min.is_nan());
    assert!(
        of_bad
            .leading
            .unwrap()
            .values
            .iter()
            .all(|value| value.is_nan())
    );

    let of_zero = stats(&Tensor::zeros(DType::BF16, [40, 70]).unwrap());
    assert_eq!(of_zero.sigmas, [1e-12; 3]);
    assert_eq!((of_zero.zeros, of_zero.non_finite), (2800, 0));
    let leading = of_zero.leading.unwrap();
    assert_eq!((leading.values, leading.bound), ([0.0; 8], 0.0));
    assert!(leading.right.is_empty());
    assert_eq!(of_zero.norms.unwrap().columns.max, 1e-12);

    let of_nothing = stats(&Tensor::zeros(DType::F32, [0, 7]).unwrap());
    assert_eq!(of_nothing.sigmas, [0.0; 3]);
    assert_eq!(of_nothing.norms.unwrap().frobenius_sq, 0.0);
}

#[test]
fn what_is_no_matrix_of_floats_is_refused() {
    let cpu = cpu();
    let vector = Tensor::zeros(DType::F32, [5]).unwrap();
    let error = cpu.weight_stats(&vector, &everything()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "weight-stats: norms and singular values are those of a matrix, and shape [5] has not two axes"
    );
    assert_eq!(
        cpu.weight_stats(&vector, &WeightWish::default())
            .unwrap()
            .zeros,
        5
    );
    let whole = Tensor::zeros(DType::I32, [2, 2]).unwrap();
    assert!(cpu.weight_stats(&whole, &everything()).is_err());
    let never = WeightWish {
        powers: vec![power(Start::Ones, 0)],
        ..WeightWish::default()
    };
    let error = cpu.weight_stats(&bf16(2, 2), &never).unwrap_err();
    assert!(error.to_string().contains("at least 1"));
    assert!(cpu.shift(&bf16(2, 2), &bf16(4, 1)).is_err());
}

fn bf16(rows: usize, columns: usize) -> Tensor {
    tensor(DType::BF16, rows, columns, &random(rows, columns, 7))
}

#[test]
fn counts_do_not_see_padding() {
    for (rows, columns) in [(5, 33), (4, 32), (700, 650), (3, 40_000), (301, 1000)] {
        let mut values = random(rows, columns, 3);
        values[0] = 0.0;
        values[columns + 1] = -0.0;
        for dtype in [DType::BF16, DType::F32, DType::F16] {
            let tensor = tensor(dtype, rows, columns, &values);
            let expected = tensor
                .to_f32()
                .iter()
                .filter(|value| **value == 0.0)
                .count() as u64;
            let few = cpu().weight_stats(&tensor, &WeightWish::default()).unwrap();
            assert_eq!((few.zeros, few.non_finite), (expected, 0));
            assert_eq!(stats(&tensor).zeros, expected);
        }
    }
}

#[test]
fn the_same_bits_for_any_storage_and_thread_count() {
    // Kept, stored, and decoded by the group; one strip and several.
    for (rows, columns) in [(130, 96), (77, 61), (1301, 640), (2100, 1000), (9, 70_000)] {
        let narrow = bf16(rows, columns);
        let wide = tensor(DType::F32, rows, columns, &narrow.to_f32());
        let once = Cpu::new(Some(1)).unwrap();
        let once = once.weight_stats(&narrow, &everything()).unwrap();
        for threads in [1, 2, 5] {
            let cpu = Cpu::new(Some(threads)).unwrap();
            assert!(cpu.weight_stats(&narrow, &everything()).unwrap() == once);
            assert!(cpu.weight_stats(&wide, &everything()).unwrap() == once);
        }
        // Each statistic is the same alone and in company.
        for (index, &power) in everything().powers.iter().enumerate() {
            let alone = WeightWish {
                powers: vec![power],
                ..WeightWish::default()
            };
            let alone = cpu().weight_stats(&narrow, &alone).unwrap();
            assert_eq!(alone.sigmas[0].to_bits(), once.sigmas[index].to_bits());
        }
    }
}

/// Power iteration in f64.
fn plain_sigma(values: &[f32], columns: usize, iterations: usize) -> f64 {
    let mut v = vec![1.0 / (columns as f64).sqrt(); columns];
    let mut sigma = 0.0;
    for _ in 0..iterations {
        let rows = values.chunks(columns);
        let u: Vec<f64> = rows
            .map(|row| row.iter().zip(&v).map(|(w, v)| f64::from(*w) * v).sum())
            .collect();
        sigma = u.iter().map(|x| x * x).sum::<f64>().sqrt();
        v.fill(0.0);
        for (row, u) in values.chunks(columns).zip(&u) {
            row.iter()
                .zip(&mut v)
                .for_each(|(w, v)| *v += f64::from(*w) * u);
        }
        let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        v.iter_mut().for_each(|x| *x /= length);
    }
    sigma
}

#[test]
fn large_matrices_agree_with_arithmetic_in_f64() {
    for (rows, columns) in [(2000, 300), (300, 2000), (5000, 128)] {
        let tensor = bf16(rows, columns);
        let values = tensor.to_f32();
        let stats = stats(&tensor);
        close(
            "sigma",
            f64::from(stats.sigmas[0]),
            plain_sigma(&values, columns, 4),
            2e-6,
        );
        let norms = stats.norms.unwrap();
        let square: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
        close("frobenius", norms.frobenius_sq, square, 1e-6);
        let row = |row: &[f32]| {
            row.iter()
                .map(|x| f64::from(*x).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        let mut rows: Vec<f64> = values.chunks(columns).map(row).collect();
        rows.sort_by(f64::total_cmp);
        let middle = (rows[rows.len() / 2] + rows[(rows.len() - 1) / 2]) / 2.0;
        close("rows", f64::from(norms.rows.median), middle, 2e-6);
        let turned = transposed(&values, columns);
        let mut columns: Vec<f64> = turned.chunks(turned.len() / columns).map(row).collect();
        columns.sort_by(f64::total_cmp);
        close("columns", f64::from(norms.columns.min), columns[0], 2e-6);
        close(
            "columns",
            f64::from(norms.columns.max),
            columns[columns.len() - 1],
            2e-6,
        );
    }
}

#[test]
fn a_known_spectrum_is_found() {
    for (rows, columns) in [(60, 45), (45, 90), (400, 300)] {
        let few = stats(&tensor(
            DType::F32,
            rows,
            columns,
            &with_spectrum(rows, columns, &[10.0, 8.0, 6.0, 4.0, 3.0]),
        ));
        let leading = few.leading.unwrap();
        for (got, expected) in leading.values.iter().zip([10.0, 8.0, 6.0, 4.0, 3.0]) {
            close("value", *got, expected, 1e-5);
        }
        assert!(
            leading.values[5..].iter().all(|value| *value < 1e-4),
            "{leading:?}"
        );
        assert_eq!(leading.right.len(), 5);
        assert!(leading.bound < 1e-3);
        // Many values: eight steps find the leading one, and the bound says how well.
        let slow: Vec<f32> = (0..40).map(|index| 20.0 * 0.9f32.powi(index)).collect();
        let many = stats(&tensor(
            DType::F32,
            rows,
            columns,
            &with_spectrum(rows, columns, &slow),
        ));
        let leading = many.leading.unwrap();
        assert!(leading.values[0] <= 20.0 * 1.000_01);
        let nearest = slow
            .iter()
            .map(|value| (f64::from(*value) - leading.values[0]).abs());
        assert!(nearest.fold(f64::INFINITY, f64::min) <= leading.bound + 1e-4);
        close("first", leading.values[0], 20.0, 0.02);
        assert!(leading.values.is_sorted_by(|a, b| a >= b));
    }
}

#[test]
fn rank_one_and_orthogonal_matrices() {
    let (left, right) = (random(300, 1, 1), random(1, 200, 2));
    let product: Vec<f32> = left
        .iter()
        .flat_map(|l| right.iter().map(move |r| l * r))
        .collect();
    let length = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let expected = length(&left) * length(&right);
    let of_one = stats(&tensor(DType::F32, 300, 200, &product));
    let leading = of_one.leading.unwrap();
    close("rank one", leading.values[0], expected, 1e-5);
    close("rank one", f64::from(of_one.sigmas[0]), expected, 1e-5);
    assert!(
        leading.values[1..]
            .iter()
            .all(|value| *value < 1e-4 * expected),
        "{leading:?}"
    );
    assert_eq!(leading.right.len(), 1);
    let cosine: f64 = leading.right[0]
        .iter()
        .zip(&right)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum();
    close("direction", cosine.abs(), length(&right), 1e-5);

    let ones = vec![1.0; 80];
    let orthogonal = stats(&tensor(DType::F32, 80, 80, &with_spectrum(80, 80, &ones)));
    for value in orthogonal.leading.unwrap().values {
        close("orthogonal", value, 1.0, 1e-5);
    }
}

#[test]
fn an_orthogonal_matrix_from_the_left_changes_nothing() {
    let values = random(500, 220, 11);
    let turned = tensor(DType::F32, 500, 220, &reflected(&values, 220, 5));
    let (a, b) = (
        stats(&tensor(DType::F32, 500, 220, &values)),
        stats(&turned),
    );
    let (a_leading, b_leading) = (a.leading.unwrap(), b.leading.unwrap());
    for (a, b) in a_leading.values.iter().zip(&b_leading.values) {
        close("value", *a, *b, 1e-4);
    }
    close("overlap", a_leading.overlap(&b_leading), 1.0, 1e-4);
    for (a, b) in a.sigmas.iter().zip(&b.sigmas) {
        close("sigma", f64::from(*a), f64::from(*b), 1e-5);
    }
    let (a, b) = (a.norms.unwrap(), b.norms.unwrap());
    close(
        "columns",
        f64::from(a.columns.median),
        f64::from(b.columns.median),
        1e-5,
    );
}

#[test]
fn huge_and_tiny_numbers_neither_overflow_nor_vanish() {
    let values = random(90, 64, 13);
    let of = |exponent: i32| {
        let factor = (exponent as f32).exp2();
        let values: Vec<f32> = values.iter().map(|value| value * factor).collect();
        (
            stats(&tensor(DType::F32, 90, 64, &values)),
            f64::from(factor),
        )
    };
    let plain = of(0).0;
    for exponent in [100, 60, -30] {
        let (other, factor) = of(exponent);
        for (a, b) in other.sigmas.iter().zip(&plain.sigmas) {
            close("sigma", f64::from(*a), f64::from(*b) * factor, 1e-6);
        }
        let (a, b) = (other.leading.unwrap(), plain.leading.as_ref().unwrap());
        for (a, b) in a.values.iter().zip(&b.values) {
            close("value", *a, *b * factor, 1e-5);
        }
    }
}

#[test]
fn shift_and_overlap() {
    let base = bf16(300, 250);
    let moved: Vec<f32> = base.to_f32().iter().map(|value| value * 1.5).collect();
    let shift = cpu()
        .shift(&tensor(DType::F32, 300, 250, &moved), &base)
        .unwrap();
    close("shift", shift.distance_sq, 0.25 * shift.base_sq, 1e-6);
    let square: f64 = base.to_f32().iter().map(|x| f64::from(*x).powi(2)).sum();
    close("base", shift.base_sq, square, 1e-6);
    for threads in [1, 5] {
        let again = Cpu::new(Some(threads)).unwrap();
        let again = again
            .shift(&tensor(DType::F32, 300, 250, &moved), &base)
            .unwrap();
        assert_eq!(again, shift);
    }

    let of = |values: &[f32]| stats(&tensor(DType::F32, 60, 40, values)).leading.unwrap();
    let unit = |columns: &[usize]| {
        let mut values = vec![0.0; 2400];
        for (row, column) in columns.iter().enumerate() {
            values[row * 40 + column] = (row + 1) as f32;
        }
        of(&values)
    };
    let two: Leading = unit(&[3, 4]);
    assert!((two.overlap(&two) - 1.0).abs() < 1e-5);
    assert!(two.overlap(&unit(&[7, 8])) < 1e-5);
    assert!((two.overlap(&unit(&[9, 4])) - 0.5).abs() < 1e-5);
    // A lost direction counts as one that is orthogonal to all.
    assert!((two.overlap(&unit(&[3])) - 0.5).abs() < 1e-5);
    assert!(two.overlap(&of(&[f32::NAN; 2400])).is_nan());
    assert_eq!(of(&[0.0; 2400]).overlap(&of(&[0.0; 2400])), 1.0);
}
