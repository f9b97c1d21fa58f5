//! How many directions of a module's output stand out of noise: the older figure of random matrix theory, for diagnosis.
//!
//! It takes the whole spectrum, which costs far more than the edge risk's three products, so only who asks for it pays.

use faer::{Accum, Mat, MatRef, Par, Side, linalg::matmul::matmul};

use super::{check, noise_edge};
use crate::cpu::matmul::View;

/// Singular values of the standardised `matrix` (`width` columns; one mean and one sample deviation for all entries) that lie
/// above `threshold` times its [`noise_edge`]. NaN where there is no row, or a number is not finite.
pub fn outliers(matrix: View<'_>, width: usize, threshold: f64) -> f64 {
    if matrix.rows == 0 || width == 0 {
        return f64::NAN;
    }
    check(matrix, width);
    let value = |row: usize, column: usize| f64::from(matrix.data[row * matrix.stride + column]);
    let mut standard = Mat::from_fn(matrix.rows, width, value);
    let Some(()) = standardise(&mut standard) else {
        return f64::NAN;
    };
    let gram = smaller_gram(standard.as_ref());
    let limit = (threshold * noise_edge(matrix.rows, width)).powi(2);
    match gram.self_adjoint_eigenvalues(Side::Lower) {
        Ok(squares) => squares.iter().filter(|square| **square > limit).count() as f64,
        Err(_) => f64::NAN,
    }
}

/// Subtracts the mean of all entries and divides by their sample deviation; a matrix of equal entries becomes zero. None if
/// an entry is not finite.
fn standardise(matrix: &mut Mat<f64>) -> Option<()> {
    let count = (matrix.nrows() * matrix.ncols()) as f64;
    let sum_of = |matrix: &Mat<f64>, of: &dyn Fn(f64) -> f64| -> f64 {
        let columns = matrix.col_iter();
        columns
            .map(|column| column.iter().map(|value| of(*value)).sum::<f64>())
            .sum()
    };
    let mean = sum_of(matrix, &|value| value) / count;
    let square = sum_of(matrix, &|value| (value - mean).powi(2)) / (count - 1.0).max(1.0);
    if !square.is_finite() {
        return None;
    }
    let scale = if square > super::FLOOR {
        square.sqrt().recip()
    } else {
        0.0
    };
    for column in matrix.col_iter_mut() {
        column
            .iter_mut()
            .for_each(|value| *value = (*value - mean) * scale);
    }
    Some(())
}

/// `A^T A` or `A A^T`, whichever is smaller: the squares of the singular values are its eigenvalues.
fn smaller_gram(matrix: MatRef<'_, f64>) -> Mat<f64> {
    let tall = if matrix.nrows() < matrix.ncols() {
        matrix.transpose()
    } else {
        matrix
    };
    let mut gram = Mat::zeros(tall.ncols(), tall.ncols());
    matmul(
        &mut gram,
        Accum::Replace,
        tall.transpose(),
        tall,
        1.0,
        Par::Seq,
    );
    gram
}
