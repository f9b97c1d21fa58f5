//! Low-rank approximation.
//!
//! Two methods, both of which give the best approximation of rank `r` up to a small excess:
//!
//! - **exact**, where the smaller side is short or `r` is a large part of it: eigenvectors of the Gram matrix of the smaller
//!   side, in f64. Squaring costs nothing that matters here: singular values below 1e-8 of the largest are lost, and with
//!   them 1e-8 of the norm.
//! - **iterated**, for all others: randomised subspace iteration (Halko, Martinsson and Tropp, 2011) in f32 with a Gaussian
//!   start made from the seed, `oversampling` as wide again as the rank and `ROUNDS` rounds, then the exact method on
//!   the matrix seen from that subspace. On spectra as flat as weight matrices have, the residual exceeds the best one by
//!   less than one part in a thousand; a random matrix is the worst case, with under one in a hundred.
//!
//! Products are cut into tiles of fixed size, so the result is the same for any number of threads.

use faer::{Accum, Mat, MatMut, MatRef, Par, Side, linalg::matmul::matmul, traits::ComplexField};
use rayon::prelude::*;

use super::noise::Noise;
use crate::{Error, Result, Tensor, cpu::Cpu};

/// The exact method is used up to this length of the smaller side: there it costs little more than the other.
const EXACT_SIDE: usize = 256;
/// Rounds of the iteration; each multiplies by the matrix and by its transpose.
const ROUNDS: usize = 6;
/// Rows of a product that one task computes.
const TILE: usize = 128;

/// Best approximation of `tensor`, taken as `[first axis, all others]`, of rank `min(rank, rows, columns)`, rounded to the
/// tensor's dtype. When that rank is full, and for a matrix of zeros, the tensor itself comes back, to the bit.
///
/// # Errors
/// When the dtype is not a float, the rank is 0, or an element is not finite.
pub fn truncate_rank(cpu: &Cpu, tensor: &Tensor, rank: u32, seed: u64) -> Result<Tensor> {
    const OP: &str = "truncate-rank";
    let refused = |message| Err(Error::Argument { op: OP, message });
    if !tensor.dtype().is_float() {
        return Err(Error::DType {
            op: OP,
            dtype: tensor.dtype(),
        });
    }
    if rank == 0 {
        return refused("the rank must be at least 1".into());
    }
    let mut values = tensor.to_f32();
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        let value = values[at];
        return refused(format!(
            "element {at} is {value}; only a finite matrix has a low-rank approximation"
        ));
    }
    let (rows, columns) = tensor.rows_columns();
    let rank = usize::try_from(rank).unwrap_or(usize::MAX);
    let largest = values
        .iter()
        .fold(0.0f32, |max, value| max.max(value.abs()));
    if rank >= rows.min(columns) || largest == 0.0 {
        return Ok(tensor.clone());
    }
    // A power of two brings the largest element near 1, exactly, so that no product overflows.
    let exponent = libm::ilogb(f64::from(largest));
    let scale = |values: &mut [f32], exponent| {
        let factor = libm::scalbn(1.0f64, exponent);
        for value in values {
            *value = (f64::from(*value) * factor) as f32;
        }
    };
    scale(&mut values, -exponent);
    let matrix = Matrix {
        data: values,
        rows,
        columns,
    };
    let width = rank + oversampling(rank);
    let mut result = cpu.install(|| {
        if rows.min(columns) <= EXACT_SIDE || 2 * width >= rows.min(columns) {
            exact(&matrix, rank)
        } else {
            iterated(&matrix, rank, width, seed)
        }
    })?;
    scale(&mut result.data, exponent);
    Tensor::from_f32(tensor.dtype(), tensor.shape(), &result.data)
}

/// How many directions beyond the rank are iterated.
fn oversampling(rank: usize) -> usize {
    rank.max(16)
}

/// A dense, row-major matrix.
#[derive(Debug, Clone)]
struct Matrix<T> {
    data: Vec<T>,
    rows: usize,
    columns: usize,
}

impl<T: ComplexField + Copy + Send + Sync> Matrix<T> {
    fn view(&self) -> MatRef<'_, T> {
        MatRef::from_row_major_slice(&self.data, self.rows, self.columns)
    }

    /// `a b`, tile by tile of rows over the pool.
    fn product(a: MatRef<'_, T>, b: MatRef<'_, T>) -> Self {
        let (rows, columns) = (a.nrows(), b.ncols());
        let mut data = vec![T::zero_impl(); rows * columns];
        data.par_chunks_mut(TILE * columns)
            .enumerate()
            .for_each(|(tile, out)| {
                let count = out.len() / columns;
                let out = MatMut::from_row_major_slice_mut(out, count, columns);
                let part = a.subrows(tile * TILE, count);
                matmul(out, Accum::Replace, part, b, T::one_impl(), Par::Seq);
            });
        Self {
            data,
            rows,
            columns,
        }
    }
}

impl Matrix<f32> {
    fn to_f64(&self) -> Matrix<f64> {
        Matrix {
            data: self.data.iter().map(|&value| f64::from(value)).collect(),
            rows: self.rows,
            columns: self.columns,
        }
    }
}

/// By the eigenvectors of the Gram matrix of the smaller side.
fn exact(matrix: &Matrix<f32>, rank: usize) -> Result<Matrix<f32>> {
    let wide = matrix.to_f64();
    let result = if matrix.columns <= matrix.rows {
        let top = top_eigenvectors(Matrix::product(wide.view().transpose(), wide.view()), rank)?;
        let coordinates = Matrix::product(wide.view(), top.as_ref());
        Matrix::product(coordinates.view(), top.transpose())
    } else {
        let top = top_eigenvectors(Matrix::product(wide.view(), wide.view().transpose()), rank)?;
        let coordinates = Matrix::product(top.transpose(), wide.view());
        Matrix::product(top.as_ref(), coordinates.view())
    };
    Ok(Matrix {
        data: result.data.iter().map(|&value| value as f32).collect(),
        rows: matrix.rows,
        columns: matrix.columns,
    })
}

/// The eigenvectors of the `rank` largest eigenvalues, as columns.
fn top_eigenvectors(gram: Matrix<f64>, rank: usize) -> Result<Mat<f64>> {
    let decomposition = gram.view().self_adjoint_eigen(Side::Lower);
    let decomposition = decomposition.map_err(|_| Error::Argument {
        op: "truncate-rank",
        message: "the eigenvalue iteration did not converge".into(),
    })?;
    // Eigenvalues come in ascending order.
    let all = decomposition.U();
    Ok(all.subcols(all.ncols() - rank, rank).to_owned())
}

/// By subspace iteration from a start of `width` Gaussian columns.
fn iterated(matrix: &Matrix<f32>, rank: usize, width: usize, seed: u64) -> Result<Matrix<f32>> {
    let a = matrix.view();
    let start = Matrix {
        data: (0..(matrix.columns * width).div_ceil(4) as u64)
            .flat_map(|block| Noise::Normal.block(seed, block))
            .take(matrix.columns * width)
            .collect(),
        rows: matrix.columns,
        columns: width,
    };
    let mut basis = orthonormal(&Matrix::product(a, start.view()));
    for _ in 0..ROUNDS {
        let across = orthonormal(&Matrix::product(a.transpose(), basis.as_ref()));
        basis = orthonormal(&Matrix::product(a, across.as_ref()));
    }
    // The matrix as the subspace sees it, and its own best directions there.
    let seen = Matrix::product(basis.transpose(), a);
    let wide = seen.to_f64();
    let top = top_eigenvectors(Matrix::product(wide.view(), wide.view().transpose()), rank)?;
    let top = Mat::from_fn(width, rank, |row, column| top[(row, column)] as f32);
    let coordinates = Matrix::product(top.transpose(), seen.view());
    let directions = Matrix::product(basis.as_ref(), top.as_ref());
    Ok(Matrix::product(directions.view(), coordinates.view()))
}

/// An orthonormal basis of the columns (Householder).
fn orthonormal(matrix: &Matrix<f32>) -> Mat<f32> {
    matrix.view().qr().compute_thin_Q()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::DType;
    use safetensors::SafeTensors;
    use serde_json::Value;

    const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/edits/");

    fn norm(values: impl Iterator<Item = f64>) -> f64 {
        values.map(|value| value * value).sum::<f64>().sqrt()
    }

    fn residual(a: &[f32], b: &[f32]) -> f64 {
        norm(a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)))
    }

    fn random(rows: usize, columns: usize, seed: u64) -> Matrix<f32> {
        let blocks = (rows * columns).div_ceil(4) as u64;
        let values = (0..blocks).flat_map(|block| Noise::Normal.block(seed, block));
        Matrix {
            data: values.take(rows * columns).collect(),
            rows,
            columns,
        }
    }

    #[test]
    fn reference_cases_hold_within_two_percent_of_the_optimum() {
        let cpu = Cpu::new(Some(2)).unwrap();
        let json = std::fs::read(format!("{VECTORS}lowrank.json")).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        let cases = json["cases"].as_array().unwrap();
        assert!(cases.len() >= 60);
        for case in cases {
            let name = case["dtype"].as_str().unwrap();
            let (dtype, slack) = match name {
                "f32" => (DType::F32, 1e-5),
                _ => (DType::BF16, 1.0 / 256.0),
            };
            let file = std::fs::read(format!("{VECTORS}lowrank_{name}.safetensors")).unwrap();
            let file = SafeTensors::deserialize(&file).unwrap();
            let input = file.tensor(case["input"].as_str().unwrap()).unwrap();
            let bytes = bytes::Bytes::copy_from_slice(input.data());
            let tensor = Tensor::new(dtype, input.shape(), bytes).unwrap();
            let rank = case["rank"].as_u64().unwrap() as u32;
            let result = truncate_rank(&cpu, &tensor, rank, 7).unwrap();
            assert_eq!(result.shape(), tensor.shape());
            assert_eq!(result.dtype(), dtype);
            let optimal = case["optimal_residual"].as_f64().unwrap();
            let size = case["input_norm"].as_f64().unwrap();
            let found = residual(&tensor.to_f32(), &result.to_f32());
            assert!(found <= 1.02 * optimal + slack * size, "{case}: {found}");
            if dtype == DType::F32 && optimal > 1e-3 * size {
                // Nothing of that rank is closer than the optimum.
                assert!(found >= optimal * (1.0 - 1e-5), "{case}: {found}");
            }
        }
    }

    #[test]
    fn iteration_comes_within_two_percent_even_on_noise() {
        let noise = random(700, 420, 3);
        let mut steep = random(500, 600, 4);
        for (index, value) in steep.data.iter_mut().enumerate() {
            *value /= (1 + index / 600) as f32;
        }
        for (matrix, rank) in [(&noise, 8), (&noise, 32), (&steep, 16)] {
            let best = residual(&matrix.data, &exact(matrix, rank).unwrap().data);
            let width = rank + oversampling(rank);
            let found = iterated(matrix, rank, width, 11).unwrap();
            let found = residual(&matrix.data, &found.data);
            assert!(found <= 1.005 * best, "rank {rank}: {found} {best}");
            assert!(found >= best * (1.0 - 1e-5));
        }
    }

    #[test]
    fn a_matrix_of_low_rank_comes_back() {
        let (left, right) = (random(400, 5, 1), random(5, 380, 2));
        let matrix = Matrix::product(left.view(), right.view());
        let found = iterated(&matrix, 8, 24, 5).unwrap();
        let size = norm(matrix.data.iter().map(|&value| f64::from(value)));
        assert!(residual(&matrix.data, &found.data) <= 1e-5 * size);
    }

    #[test]
    fn threads_and_scale_do_not_matter_and_the_seed_does() {
        let matrix = random(700, 420, 3);
        let make = |factor: f32| {
            let values: Vec<f32> = matrix.data.iter().map(|value| value * factor).collect();
            Tensor::from_f32(DType::F32, [700, 20, 21], &values).unwrap()
        };
        let run = |threads, factor, seed| {
            let cpu = Cpu::new(Some(threads)).unwrap();
            truncate_rank(&cpu, &make(factor), 12, seed).unwrap()
        };
        let once = run(1, 1.0, 9);
        assert_eq!(once.bytes(), run(3, 1.0, 9).bytes());
        assert_ne!(once.bytes(), run(3, 1.0, 10).bytes());
        let huge = run(2, 1.0e30f32.log2().floor().exp2(), 9).to_f32();
        let back = 1.0e30f32.log2().floor().exp2();
        assert!(huge.iter().zip(once.to_f32()).all(|(a, b)| a / back == b));
    }

    #[test]
    fn edges_are_defined() {
        let cpu = Cpu::new(Some(1)).unwrap();
        let tensor =
            Tensor::from_f32(DType::BF16, [2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 7.0]).unwrap();
        assert_eq!(
            truncate_rank(&cpu, &tensor, 2, 0).unwrap().bytes(),
            tensor.bytes()
        );
        assert_eq!(
            truncate_rank(&cpu, &tensor, u32::MAX, 0).unwrap().bytes(),
            tensor.bytes()
        );
        let zeros = Tensor::zeros(DType::F32, [5, 4]).unwrap();
        assert_eq!(
            truncate_rank(&cpu, &zeros, 1, 0).unwrap().bytes(),
            zeros.bytes()
        );
        assert!(truncate_rank(&cpu, &tensor, 0, 0).is_err());
        let bad = Tensor::from_f32(DType::F32, [2, 2], &[1.0, f32::NAN, 3.0, 4.0]).unwrap();
        let error = truncate_rank(&cpu, &bad, 1, 0).unwrap_err().to_string();
        assert_eq!(
            error,
            "truncate-rank: element 1 is NaN; only a finite matrix has a low-rank approximation"
        );
    }
}
