//! All statistics of one weight in as few reads as they allow.
//!
//! A power iteration and a bidiagonalisation need one read per step and share it; norms and counts share the first. So all
//! statistics of all guards take eight reads, of which all but the first come from a cache where the matrix fits into one.

mod bidiagonal;
mod columns;
mod lanes;
mod matrix;
mod power;
mod products;
mod simd;
mod svd;
mod sweep;
mod vector;

use rayon::prelude::*;

use self::{
    bidiagonal::Bidiagonal,
    matrix::{Matrix, decode},
    power::Iteration,
    sweep::{Census, Input, Product, sweep},
    vector::norm,
};
use crate::{
    Error, LEADING, Leading, Norms, Result, Shift, Spread, Tensor, WeightStats, WeightWish,
    cpu::Cpu,
};

/// Elements per piece of a pass over a tensor of any shape.
const PIECE: usize = 1 << 16;
/// Smallest norm of a row or column.
const FLOOR: f32 = 1e-12;

/// The statistics that `wish` names.
///
/// # Errors
/// When the dtype is not a float, when more than the counts are wanted of a tensor that has not two axes, or when a power
/// iteration has no iterations.
pub(super) fn weight_stats(cpu: &Cpu, tensor: &Tensor, wish: &WeightWish) -> Result<WeightStats> {
    const OP: &str = "weight-stats";
    if !tensor.dtype().is_float() {
        return Err(Error::DType {
            op: OP,
            dtype: tensor.dtype(),
        });
    }
    let refused = |message| Err(Error::Argument { op: OP, message });
    if wish.powers.iter().any(|power| power.iterations == 0) {
        return refused("a power iteration takes at least 1 iteration".into());
    }
    if wish.only_counts() {
        let (zeros, non_finite) = counts(cpu, tensor);
        return Ok(WeightStats {
            zeros,
            non_finite,
            norms: None,
            sigmas: Vec::new(),
            leading: None,
        });
    }
    if tensor.shape().len() != 2 {
        return refused(format!(
            "norms and singular values are those of a matrix, and shape {:?} has not two axes",
            tensor.shape()
        ));
    }
    if tensor.is_empty() {
        return Ok(of_nothing(wish));
    }
    cpu.install(|| Ok(of_matrix(cpu, tensor, wish)))
}

/// Sums of squared differences and of squares.
///
/// # Errors
/// When shapes differ or a dtype is not a float.
pub(super) fn shift(cpu: &Cpu, tensor: &Tensor, base: &Tensor) -> Result<Shift> {
    const OP: &str = "shift";
    for tensor in [tensor, base] {
        if !tensor.dtype().is_float() {
            return Err(Error::DType {
                op: OP,
                dtype: tensor.dtype(),
            });
        }
    }
    if tensor.shape() != base.shape() {
        return Err(Error::Shape {
            op: OP,
            lhs: tensor.shape().to_vec(),
            rhs: base.shape().to_vec(),
        });
    }
    let pieces: Vec<(f64, f64)> = cpu.install(|| {
        let pieces = |tensor: &Tensor| PIECE * tensor.dtype().size();
        let (a, b) = (tensor.bytes(), base.bytes());
        let a = a.par_chunks(pieces(tensor)).zip(b.par_chunks(pieces(base)));
        let scratch = || (vec![0.0; PIECE], vec![0.0; PIECE]);
        a.map_init(scratch, |(x, y), (a, b)| {
            let count = a.len() / tensor.dtype().size();
            decode(tensor.dtype(), a, &mut x[..count]);
            decode(base.dtype(), b, &mut y[..count]);
            lanes::distance(&x[..count], &y[..count])
        })
        .collect()
    });
    Ok(Shift {
        distance_sq: pieces.iter().map(|piece| piece.0).sum(),
        base_sq: pieces.iter().map(|piece| piece.1).sum(),
    })
}

/// Zeros, and elements that are not finite.
fn counts(cpu: &Cpu, tensor: &Tensor) -> (u64, u64) {
    let dtype = tensor.dtype();
    let pieces: Vec<(u32, u32)> = cpu.install(|| {
        let pieces = tensor.bytes().par_chunks(PIECE * dtype.size());
        pieces
            .map_init(
                || vec![0.0; PIECE],
                |values, bytes| {
                    let values = &mut values[..bytes.len() / dtype.size()];
                    decode(dtype, bytes, values);
                    lanes::counts(values)
                },
            )
            .collect()
    });
    pieces.iter().fold((0, 0), |(zeros, bad), piece| {
        (zeros + u64::from(piece.0), bad + u64::from(piece.1))
    })
}

/// Of a matrix without elements.
fn of_nothing(wish: &WeightWish) -> WeightStats {
    let none = Spread {
        min: f32::NAN,
        median: f32::NAN,
        max: f32::NAN,
    };
    WeightStats {
        zeros: 0,
        non_finite: 0,
        norms: wish.norms.then_some(Norms {
            frobenius_sq: 0.0,
            rows: none,
            columns: none,
        }),
        sigmas: vec![0.0; wish.powers.len()],
        leading: wish.leading.then(|| leading_of(0.0)),
    }
}

/// No vectors, all values alike.
fn leading_of(value: f64) -> Leading {
    Leading {
        values: [value; LEADING],
        bound: value,
        right: Vec::new(),
    }
}

/// Of a matrix with elements.
fn of_matrix(cpu: &Cpu, tensor: &Tensor, wish: &WeightWish) -> WeightStats {
    let matrix = Matrix::new(tensor);
    let powers = wish.powers.iter();
    let mut iterations: Vec<Iteration> = powers
        .map(|&power| Iteration::new(power, matrix.columns))
        .collect();
    let mut bidiagonal = wish.leading.then(|| Bidiagonal::new(matrix.columns));
    let (products, census) = first(&matrix, &mut iterations, &mut bidiagonal);
    let zeros = census.zeros;
    let non_finite = if census.rows.iter().all(|squares| squares.is_finite()) {
        0
    } else {
        counts(cpu, tensor).1
    };
    let mut stats = WeightStats {
        zeros,
        non_finite,
        norms: wish.norms.then(|| norms(&matrix, census)),
        sigmas: vec![0.0; wish.powers.len()],
        leading: wish.leading.then(|| leading_of(f64::NAN)),
    };
    if non_finite > 0 {
        return stats;
    }
    let mut products = products;
    while !products.is_empty() {
        advance(&mut iterations, &mut bidiagonal, products);
        let inputs = inputs(&iterations, &bidiagonal);
        products = if inputs.is_empty() {
            Vec::new()
        } else {
            sweep(&matrix, &inputs, false).0
        };
    }
    stats.sigmas = iterations.iter().map(|iteration| iteration.sigma).collect();
    stats.leading = bidiagonal.map(Bidiagonal::finish);
    stats
}

/// The first sweep, with the census. Products of unusual size are made again with a scale that keeps the way back in range.
fn first(
    matrix: &Matrix<'_>,
    iterations: &mut [Iteration],
    bidiagonal: &mut Option<Bidiagonal>,
) -> (Vec<Product>, Census) {
    let (products, census) = sweep(matrix, &inputs(iterations, bidiagonal), true);
    let census = census.unwrap_or(Census {
        rows: Vec::new(),
        columns: columns::Columns::default(),
        zeros: 0,
    });
    let usual = (-40.0f64).exp2()..40.0f64.exp2();
    let sizes = products.iter().map(|product| norm(&product.u));
    let fine = |size: f64| size == 0.0 || !size.is_finite() || usual.contains(&size);
    if sizes.into_iter().all(fine) {
        return (products, census);
    }
    for (iteration, product) in iterations.iter_mut().zip(&products) {
        iteration.rescale(product);
    }
    if let (Some(bidiagonal), Some(product)) = (bidiagonal.as_mut(), products.last()) {
        bidiagonal.rescale(product);
    }
    (
        sweep(matrix, &inputs(iterations, bidiagonal), false).0,
        census,
    )
}

/// What is to be multiplied next, power iterations first.
fn inputs<'a>(iterations: &'a [Iteration], bidiagonal: &'a Option<Bidiagonal>) -> Vec<Input<'a>> {
    let powers = iterations.iter().filter_map(Iteration::input);
    powers
        .chain(bidiagonal.as_ref().and_then(Bidiagonal::input))
        .collect()
}

/// Hands each product to whom it is for, in the order of [`inputs`].
fn advance(
    iterations: &mut [Iteration],
    bidiagonal: &mut Option<Bidiagonal>,
    products: Vec<Product>,
) {
    let mut products = products.into_iter();
    for iteration in iterations {
        if iteration.input().is_some()
            && let Some(product) = products.next()
        {
            iteration.advance(product);
        }
    }
    if let (Some(bidiagonal), Some(product)) = (bidiagonal.as_mut(), products.next()) {
        bidiagonal.advance(product);
    }
}

fn norms(matrix: &Matrix<'_>, census: Census) -> Norms {
    let frobenius_sq = census.rows.iter().map(|&squares| f64::from(squares)).sum();
    let columns = (0..matrix.columns).map(|column| census.columns[lanes::panel_index(column)]);
    Norms {
        frobenius_sq,
        columns: spread(columns.collect()),
        rows: spread(census.rows),
    }
}

/// The spread of the roots of `squares`, which has at least one number.
fn spread(squares: Vec<f32>) -> Spread {
    if squares.iter().any(|value| value.is_nan()) {
        return Spread {
            min: f32::NAN,
            median: f32::NAN,
            max: f32::NAN,
        };
    }
    let mut squares = squares;
    let root = |square: f32| square.sqrt().max(FLOOR);
    let middle = squares.len() / 2;
    let even = squares.len().is_multiple_of(2);
    let (below, &mut upper, above) = squares.select_nth_unstable_by(middle, f32::total_cmp);
    let largest_below = below.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let smallest = below.iter().copied().fold(upper, f32::min);
    let largest = above.iter().copied().fold(upper, f32::max);
    let median = if even {
        0.5 * (root(largest_below) + root(upper))
    } else {
        root(upper)
    };
    Spread {
        min: root(smallest),
        median,
        max: root(largest),
    }
}

#[cfg(test)]
mod tests;
