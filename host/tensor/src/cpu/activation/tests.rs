#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use serde_json::Value;

fn noise(seed: usize, count: usize) -> Vec<f32> {
    (0..count)
        .map(|index| {
            let mixed = ((index + seed * 1_000_003) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// Rows with a mean, three strong directions and noise.
fn outputs(rows: usize, width: usize, seed: usize) -> Vec<f32> {
    let (left, right) = (noise(seed, rows * 3), noise(seed + 1, width * 3));
    let (rest, mean) = (noise(seed + 2, rows * width), noise(seed + 3, width));
    (0..rows * width)
        .map(|at| {
            let (row, column) = (at / width, at % width);
            let strong: f32 = (0..3)
                .map(|k| (6.0 - 2.0 * k as f32) * left[row * 3 + k] * right[column * 3 + k])
                .sum();
            strong + rest[at] + 4.0 * mean[column]
        })
        .collect()
}

#[test]
fn the_edge_risk_equals_the_reference_vectors() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/vectors/guards/rmt.json"
    );
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (mut compared, mut edges) = (0, 0);
    for vector in file["vectors"].as_array().unwrap() {
        let expected = &vector["expected"];
        let number = |value: &Value| value.as_f64().unwrap();
        if vector["fn"] == "mp_edges" {
            let size = |name: &str| vector[name].as_u64().unwrap() as usize;
            let upper = number(&expected["plain"][1]);
            assert!((noise_edge(size("m"), size("n")) - upper).abs() <= 1e-12 * upper);
            edges += 1;
        }
        if vector["fn"] != "activation" {
            continue;
        }
        let rows: Vec<Vec<f32>> = serde_json::from_value(vector["matrix"].clone()).unwrap();
        let width = rows[0].len();
        let values: Vec<f32> = rows.iter().flatten().copied().collect();
        let found = edge(View::dense(&values, rows.len()), width, true).risk;
        for (threshold, counted) in [
            (1.0, "svd_outliers_m1.0_d0.0"),
            (1.65, "svd_outliers_m1.5_d0.1"),
            (1.365, "svd_outliers_m1.3_d0.05"),
        ] {
            let count = number(&expected[counted]["count"]);
            let found = outliers(View::dense(&values, rows.len()), width, threshold);
            assert_eq!(found, count, "{counted}");
            // The largest value lies where the reference says: just below it is counted, just above it is not.
            let largest = number(&expected[counted]["max_ratio"]);
            let at = |threshold: f64| outliers(View::dense(&values, rows.len()), width, threshold);
            assert_eq!(at(largest * 1.0001), 0.0);
            assert!(largest == 0.0 || at(largest * 0.9999) >= 1.0);
        }
        let expected = number(&expected["iters3"]["risk"]);
        let id = vector["id"].as_str().unwrap();
        if ["act_constant", "act_one_row"].contains(&id) {
            // Rounding decides; only the order of magnitude is meaningful.
            assert!(found < 1e-3, "{id}: {found}");
            continue;
        }
        let tolerance = number(&vector["tolerance_rel"]);
        assert!(
            (found - expected).abs() <= tolerance * expected,
            "{id}: {found} {expected}"
        );
        compared += 1;
    }
    assert!(
        compared >= 4 && edges >= 6,
        "{compared} and {edges} vectors"
    );
}

/// The three iterations by their definition, in f64 on the matrix itself.
fn plain_risk(values: &[f32], rows: usize, width: usize) -> f64 {
    let values: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let square = values.iter().map(|v| v * v).sum::<f64>() / count;
    let deviation = (square - mean * mean).sqrt();
    let a: Vec<f64> = values.iter().map(|v| (v - mean) / deviation).collect();
    let length = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut v = vec![1.0 / (width as f64).sqrt(); width];
    let mut sigma = 0.0;
    for _ in 0..3 {
        let u: Vec<f64> = a
            .chunks(width)
            .map(|row| row.iter().zip(&v).map(|(a, b)| a * b).sum())
            .collect();
        sigma = length(&u);
        v = (0..width)
            .map(|j| (0..rows).map(|i| a[i * width + j] * u[i]).sum::<f64>())
            .collect();
        let norm = length(&v);
        v.iter_mut().for_each(|x| *x /= norm);
    }
    sigma / ((rows as f64).sqrt() + (width as f64).sqrt())
}

#[test]
fn edges_of_any_shape_and_stride_equal_their_definition() {
    for (rows, width) in [
        (1, 5),
        (2, 1),
        (7, 3),
        (64, 16),
        (67, 50),
        (130, 33),
        (300, 704),
    ] {
        let values = outputs(rows, width, rows);
        let dense = edge(View::dense(&values, rows), width, true);
        let expected = plain_risk(&values, rows, width);
        if rows > 1 {
            assert!(
                (dense.risk - expected).abs() <= 2e-5 * expected,
                "{rows}x{width}: {} {expected}",
                dense.risk
            );
        }
        let square =
            values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((dense.mean_square - square).abs() <= 1e-6 * square);
        // The same rows further apart, with other numbers between them.
        let stride = width + 9;
        let mut apart = vec![f32::NAN; rows * stride];
        for (row, out) in values.chunks(width).zip(apart.chunks_mut(stride)) {
            out[..width].copy_from_slice(row);
        }
        let view = View {
            data: &apart,
            rows,
            stride,
        };
        assert_eq!(edge(view, width, true), dense);
        assert_eq!(
            Sums::of(view, width),
            Sums::of(View::dense(&values, rows), width)
        );
    }
}

#[test]
fn numbers_that_are_not_finite_are_rejected() {
    let mut values = outputs(20, 8, 1);
    values[37] = f32::INFINITY;
    let found = edge(View::dense(&values, 20), 8, true);
    assert!(found.risk.is_nan());
    assert_eq!(found.mean_square, f64::INFINITY);
    let sums = Sums::of(View::dense(&values, 20), 8);
    let spectrum = spectrum(&[View::dense(&values, 20)], 8, &sums, Spread::Here);
    assert!(spectrum.leading.iter().all(|value| value.is_nan()));
    assert!(edge(View::dense(&[], 0), 8, true).risk.is_nan());
}

#[test]
fn moments_equal_their_definition_even_far_from_zero() {
    let (rows, width) = (211, 45);
    let mut values = outputs(rows, width, 9);
    values.iter_mut().for_each(|value| *value += 3000.0);
    let sums = Sums::of(View::dense(&values, rows), width);
    let mut joined = Sums::of(View::dense(&values[..100 * width], 100), width);
    joined.add(&Sums::of(
        View::dense(&values[100 * width..], rows - 100),
        width,
    ));
    for found in [&sums, &joined] {
        let (means, variances) = (found.means(), found.variances());
        for column in 0..width {
            let of = |row: usize| f64::from(values[row * width + column]);
            let mean = (0..rows).map(of).sum::<f64>() / rows as f64;
            let variance = (0..rows).map(|row| (of(row) - mean).powi(2)).sum::<f64>() / rows as f64;
            assert!((means[column] - mean).abs() <= 1e-9 * mean.abs());
            assert!((variances[column] - variance).abs() <= 1e-6 * variance);
        }
    }
}

/// Singular values of the centred matrix from the eigenvalues of its Gram matrix, in f64.
fn exact(values: &[f32], rows: usize, width: usize) -> Vec<f64> {
    let mut a: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
    for column in 0..width {
        let mean = (0..rows).map(|row| a[row * width + column]).sum::<f64>() / rows as f64;
        (0..rows).for_each(|row| a[row * width + column] -= mean);
    }
    let matrix = faer::MatRef::from_row_major_slice(&a, rows, width);
    let mut found: Vec<f64> = matrix.singular_values().unwrap();
    found.sort_by(|a, b| b.total_cmp(a));
    found
}

#[test]
fn the_spectrum_comes_close_to_the_exact_one() {
    for (rows, width) in [(600, 40), (511, 256), (90, 300), (40, 3)] {
        let values = outputs(rows, width, 3 * rows);
        let cut = rows / 3;
        let parts = [
            View::dense(&values[..cut * width], cut),
            View::dense(&values[cut * width..], rows - cut),
        ];
        let mut sums = Sums::default();
        parts
            .iter()
            .for_each(|part| sums.add(&Sums::of(*part, width)));
        let found = spectrum(&parts, width, &sums, Spread::Here);
        assert_eq!(found, spectrum(&parts, width, &sums, Spread::Pool));
        let exact = exact(&values, rows, width);
        let root = (rows as f64).sqrt();
        for (index, value) in exact.iter().enumerate().take(3) {
            let expected = value / root;
            let error = (found.leading[index] - expected).abs() / expected;
            assert!(
                error <= 1e-4,
                "{rows}x{width} {index}: {} {expected}",
                found.leading[index]
            );
        }
        for (index, value) in found.leading.iter().enumerate().skip(3) {
            let expected = exact.get(index).map_or(0.0, |value| value / root);
            // Estimates from below, rough where the spectrum is flat; beyond the rank nothing.
            assert!(*value <= expected * (1.0 + 1e-5), "{rows}x{width} {index}");
            assert_eq!(*value > 0.0, expected > 0.0, "{rows}x{width} {index}");
        }
        let trace: f64 = exact.iter().map(|value| value * value).sum();
        let rank = trace / exact[0].powi(2);
        assert!((found.effective_rank - rank).abs() <= 1e-3 * rank);
    }
}

#[test]
fn a_matrix_of_low_rank_has_no_more_values_and_equal_rows_none() {
    let (rows, width) = (100, 30);
    let (left, right) = (noise(1, rows), noise(2, width));
    let values: Vec<f32> = (0..rows * width)
        .map(|at| left[at / width] * right[at % width] + 5.0)
        .collect();
    let view = View::dense(&values, rows);
    let found = spectrum(&[view], width, &Sums::of(view, width), Spread::Here);
    assert!(found.leading[0] > 0.1);
    assert!(
        found.leading[1..]
            .iter()
            .all(|value| *value <= 1e-5 * found.leading[0])
    );
    assert!((found.effective_rank - 1.0).abs() <= 1e-3);
    let same = vec![2.5f32; rows * width];
    let view = View::dense(&same, rows);
    let found = spectrum(&[view], width, &Sums::of(view, width), Spread::Here);
    assert_eq!(found.leading, [0.0; LEADING]);
    assert!(found.effective_rank.is_nan());
}
