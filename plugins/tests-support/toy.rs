//! The toy model of the guards' reference vectors: its weights, the edits of them, and their figures by plain arithmetic in
//! f64. Included by the guards' own tests and by the host's tests of the components; the including module has `Json`.

use std::collections::BTreeMap;

use super::Json;

/// Row-major.
pub type Matrix = Vec<Vec<f64>>;

/// Figures of a weight matrix, as the host measures them.
pub struct Figures {
    pub sigma: f64,
    pub frobenius_sq: f64,
    /// Smallest, median, largest.
    pub rows: Vec<f64>,
    pub columns: Vec<f64>,
}

/// The weights by module, rounded to f32.
pub fn weights(file: &Json) -> BTreeMap<String, Matrix> {
    let number = |value: &Json| f64::from(value.as_f64().unwrap() as f32);
    let row = |row: &Json| row.as_array().unwrap().iter().map(number).collect();
    let matrix = |matrix: &Json| matrix.as_array().unwrap().iter().map(row).collect();
    let modules = file["toy_weights"].as_object().unwrap();
    modules
        .iter()
        .map(|(module, weights)| (module.clone(), matrix(weights)))
        .collect()
}

/// The weights after one of the vectors' edits.
pub fn edited(weights: &BTreeMap<String, Matrix>, edit: &str) -> BTreeMap<String, Matrix> {
    let mut weights = weights.clone();
    let mut scale = |module: &str, factor: f64| {
        for value in weights.get_mut(module).unwrap().iter_mut().flatten() {
            *value *= factor;
        }
    };
    let up = "model.layers.3.mlp.up_proj";
    match edit {
        "none" => {}
        "scale" => scale(up, 3.0),
        "scale_small" => scale(up, 1.12),
        "shrink" => scale(up, 0.05),
        "head" => scale("lm_head", 1.15),
        "head_small" => scale("lm_head", 1.05),
        "many" => {
            for layer in 0..6 {
                scale(&format!("model.layers.{layer}.mlp.up_proj"), 4.0);
                scale(&format!("model.layers.{layer}.self_attn.q_proj"), 4.0);
            }
        }
        "row" => {
            let matrix = weights.get_mut("model.layers.1.mlp.down_proj").unwrap();
            matrix[0].iter_mut().for_each(|value| *value *= 1e-3);
        }
        "rank1" => {
            let matrix = weights.get_mut("model.layers.2.self_attn.o_proj").unwrap();
            *matrix = rank_one(matrix);
        }
        "nan" => {
            let matrix = weights.get_mut("model.layers.0.self_attn.q_proj").unwrap();
            matrix[0][0] = f64::NAN;
        }
        other => panic!("no such edit: {other}"),
    }
    weights
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn unit(mut values: Vec<f64>) -> (f64, Vec<f64>) {
    let length = norm(&values).max(1e-12);
    values.iter_mut().for_each(|value| *value /= length);
    (length, values)
}

fn times(matrix: &Matrix, vector: &[f64]) -> Vec<f64> {
    let dot = |row: &Vec<f64>| row.iter().zip(vector).map(|(a, b)| a * b).sum();
    matrix.iter().map(dot).collect()
}

fn transposed(matrix: &Matrix) -> Matrix {
    let columns = 0..matrix[0].len();
    columns
        .map(|column| matrix.iter().map(|row| row[column]).collect())
        .collect()
}

/// Power iteration from equal entries: the estimate, and both vectors.
fn power(matrix: &Matrix, products: usize) -> (f64, Vec<f64>, Vec<f64>) {
    let back = transposed(matrix);
    let (_, mut right) = unit(vec![1.0; matrix[0].len()]);
    let (mut sigma, mut left) = (0.0, Vec::new());
    for _ in 0..products {
        (sigma, left) = unit(times(matrix, &right));
        (_, right) = unit(times(&back, &left));
    }
    (sigma, left, right)
}

/// The best approximation of rank one.
fn rank_one(matrix: &Matrix) -> Matrix {
    let (sigma, left, right) = power(matrix, 5000);
    let row = |left: &f64| {
        right
            .iter()
            .map(|right| f64::from((sigma * left * right) as f32))
            .collect()
    };
    left.iter().map(row).collect()
}

/// What the host measures of a matrix, with the estimator of the tiers (four products).
pub fn figures(matrix: &Matrix) -> Figures {
    let finite = matrix.iter().flatten().all(|value| value.is_finite());
    let spread = |matrix: &Matrix| {
        let mut norms: Vec<f64> = matrix.iter().map(|row| norm(row).max(1e-12)).collect();
        norms.sort_by(f64::total_cmp);
        let middle = norms.len() / 2;
        let median = if norms.len() % 2 == 1 {
            norms[middle]
        } else {
            0.5 * (norms[middle - 1] + norms[middle])
        };
        vec![norms[0], median, norms[norms.len() - 1]]
    };
    Figures {
        sigma: if finite { power(matrix, 4).0 } else { 0.0 },
        frobenius_sq: if finite {
            matrix.iter().map(|row| norm(row).powi(2)).sum()
        } else {
            0.0
        },
        rows: spread(matrix),
        columns: spread(&transposed(matrix)),
    }
}
