//! Starts and norms of vectors in panel order.

use super::columns::Columns;
use super::lanes::{dot, panel_index};
use crate::{Start, cpu::noise::Noise};

/// Seed of the fixed pseudo-random vectors.
const SEED: u64 = 0x7061_636b_686f_7374;

/// The Euclidean norm.
pub(super) fn norm(values: &[f32]) -> f64 {
    let squares = dot(values, values);
    if (1e-30..f64::INFINITY).contains(&squares) {
        return squares.sqrt();
    }
    // Squares that leave the range of f32, or NaN.
    let squares: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
    squares.sqrt()
}

/// The largest power of two that is at most `size`, inverted; 1 where that is no normal number.
pub(super) fn inverse_power_of_two(size: f64) -> f32 {
    if !size.is_finite() || size == 0.0 {
        return 1.0;
    }
    libm::scalbn(1.0, -libm::ilogb(size).clamp(-120, 120)) as f32
}

/// A unit vector of `columns` numbers, in panel order, zero in the padding.
pub(super) fn start(start: Start, columns: usize) -> Columns {
    let mut values = Columns::zeros(columns);
    match start {
        Start::Ones => {
            let value = 1.0 / (columns as f32).sqrt();
            (0..columns).for_each(|column| values[panel_index(column)] = value);
        }
        Start::First => values[0] = 1.0,
        Start::Hashed => return hashed(columns, 0),
    }
    values
}

/// The `which`-th fixed pseudo-random unit vector: uniform numbers, a function of the column alone.
pub(super) fn hashed(columns: usize, which: u64) -> Columns {
    let mut values = Columns::zeros(columns);
    for block in 0..columns.div_ceil(4) {
        let random = Noise::Uniform.block(SEED + which, block as u64);
        for (inside, value) in random.into_iter().enumerate() {
            let column = 4 * block + inside;
            if column < columns {
                values[panel_index(column)] = value;
            }
        }
    }
    let length = norm(&values);
    super::lanes::scale(&mut values, (1.0 / length) as f32);
    values
}
