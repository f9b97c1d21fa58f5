//! Statistics of a module's outputs: rows of f32 numbers, one per token, taken while they stand in the processor's caches.
//!
//! No matrix is copied or standardised in memory. Both spectral estimators multiply by `A' = A - 1 c^T` and by its transpose
//! in **one** sweep over the rows (`w = A' v`, then `w_r A'_r` is added up while row `r` is in the first-level cache), so an
//! iteration reads the matrix once. The shift `c` is subtracted before anything is multiplied: a large common mean costs no
//! precision.
//!
//! Work is cut into pieces of `CHUNK` rows and joined in order, in f64: results depend on neither threads nor batches.

mod outliers;
#[cfg(test)]
mod tests;

pub use outliers::outliers;

use super::{
    matmul::{Spread, View},
    network::lanes::{LANES, Lanes, padded, total, vectorized},
    weight_stats::svd::of_bidiagonal,
};

/// Rows of a piece of work.
const CHUNK: usize = 256;
/// Rows that a sweep handles together, so that `v` and the sums are loaded once for all of them.
const ROWS: usize = 4;
/// Rows whose sums are kept in f32.
const GROUP: usize = 16;
/// Products each way of the leading singular values, and how many of these are told.
pub const LEADING: usize = 8;
/// Products each way of the edge risk.
const RISK_ITERATIONS: usize = 3;
/// What norms and variances are floored by.
const FLOOR: f64 = 1e-12;

/// Sums over the rows of one or several matrices of equal width, per feature.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sums {
    /// How many rows were added.
    pub rows: u64,
    /// Sum of each feature.
    pub sum: Vec<f64>,
    /// Sum of each feature's squares.
    pub square: Vec<f64>,
}

impl Sums {
    /// Sums over the rows of `matrix`.
    pub fn of(matrix: View<'_>, width: usize) -> Self {
        let mut sums = Self {
            rows: matrix.rows as u64,
            sum: vec![0.0; width],
            square: vec![0.0; width],
        };
        if matrix.rows > 0 && width > 0 {
            check(matrix, width);
            // About the first row: a mean far from zero would cost the sums their digits.
            let finite = |value: &f32| if value.is_finite() { *value } else { 0.0 };
            let shift: Vec<f32> = matrix.data[..width].iter().map(finite).collect();
            let (sum, square) = (&mut sums.sum, &mut sums.square);
            columns(matrix.data, matrix.stride, matrix.rows, &shift, sum, square);
            let count = matrix.rows as f64;
            for ((sum, square), shift) in sum.iter_mut().zip(square).zip(&shift) {
                let shift = f64::from(*shift);
                *square += shift * (2.0 * *sum + count * shift);
                *sum += count * shift;
            }
        }
        sums
    }

    /// Adds what other rows gave.
    pub fn add(&mut self, other: &Self) {
        if self.sum.is_empty() {
            *self = other.clone();
            return;
        }
        self.rows += other.rows;
        for (mine, theirs) in self.sum.iter_mut().zip(&other.sum) {
            *mine += theirs;
        }
        for (mine, theirs) in self.square.iter_mut().zip(&other.square) {
            *mine += theirs;
        }
    }

    /// Mean of each feature; NaN without rows.
    pub fn means(&self) -> Vec<f64> {
        let count = self.rows as f64;
        self.sum.iter().map(|sum| sum / count).collect()
    }

    /// Variance of each feature about its mean, divided by the rows; NaN without rows.
    pub fn variances(&self) -> Vec<f64> {
        let count = self.rows as f64;
        let each = self.sum.iter().zip(&self.square);
        each.map(|(sum, square)| {
            let mean = sum / count;
            let variance = square / count - mean * mean;
            // Rounding may leave a hair below zero; NaN stays.
            if variance < 0.0 { 0.0 } else { variance }
        })
        .collect()
    }
}

/// What one window's output of one module gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edge {
    /// Mean of all squares.
    pub mean_square: f64,
    /// Estimate of the largest singular value of the globally standardised matrix over its [`noise_edge`]. NaN when there is
    /// no row or a number is not finite.
    pub risk: f64,
}

/// Where the singular values of a `rows` by `columns` matrix of independent numbers of variance one end, as it grows:
/// `sqrt(rows) + sqrt(columns)` (Marchenko and Pastur, 1967); 0 for an empty one.
pub fn noise_edge(rows: usize, columns: usize) -> f64 {
    if rows == 0 || columns == 0 {
        return 0.0;
    }
    (rows as f64).sqrt() + (columns as f64).sqrt()
}

/// Mean square of `matrix` (`width` columns) and, when `risk` is set, the edge risk: three power iterations from the vector
/// of ones on `(A - mean) / deviation`.
pub fn edge(matrix: View<'_>, width: usize, risk: bool) -> Edge {
    let none = Edge {
        mean_square: f64::NAN,
        risk: f64::NAN,
    };
    if matrix.rows == 0 || width == 0 {
        return none;
    }
    check(matrix, width);
    let (sum, square) = matrix
        .data
        .chunks(matrix.stride)
        .take(matrix.rows)
        .map(|row| row_sums(&row[..width]))
        .fold((0.0f64, 0.0f64), |(sum, square), [s, q]| {
            (sum + f64::from(s), square + f64::from(q))
        });
    let count = (matrix.rows * width) as f64;
    let mean_square = square / count;
    if !(risk && sum.is_finite() && mean_square.is_finite()) {
        return Edge {
            mean_square,
            ..none
        };
    }
    let mean = f64::from((sum / count) as f32);
    let deviation = (mean_square - mean * mean).max(FLOOR).sqrt();
    let shift = vec![mean as f32; width];
    let mut v = vec![(1.0 / (width as f64).sqrt()) as f32; width];
    let mut u = vec![0.0; matrix.rows];
    let mut sums = vec![0.0; width];
    let mut sigma = 0.0;
    for iteration in 1..=RISK_ITERATIONS {
        let last = iteration == RISK_ITERATIONS;
        sums.fill(0.0);
        let out: &mut [f32] = if last { &mut [] } else { &mut sums };
        sweep(matrix.data, matrix.stride, &shift, &v, 0.0, &mut u, out);
        sigma = (norm(&u) / deviation).max(FLOOR);
        if last {
            break;
        }
        let scale = 1.0 / (deviation * deviation * sigma);
        let length = (norm(&sums) * scale).max(FLOOR);
        for (v, sum) in v.iter_mut().zip(&sums) {
            *v = (f64::from(*sum) * scale / length) as f32;
        }
    }
    Edge {
        mean_square,
        risk: if sigma.is_finite() {
            sigma / noise_edge(matrix.rows, width)
        } else {
            f64::NAN
        },
    }
}

/// Spectrum of outputs about their features' means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spectrum {
    /// The leading singular values over the square root of the rows, descending: standard deviations along the principal
    /// directions. Estimates from below: those that stand out are exact to many digits, those in a flat stretch of the
    /// spectrum are rough. Zero beyond the rank; NaN when there is no row or a number is not finite.
    pub leading: [f64; LEADING],
    /// Trace of the covariance over its largest eigenvalue (Koltchinskii and Lounici, 2017): how many directions as strong
    /// as the first one the outputs fill. NaN when all rows are equal.
    pub effective_rank: f64,
}

/// Spectrum of the rows of all `parts` together (`width` columns each), whose sums are `sums`: Golub-Kahan bidiagonalisation
/// with [`LEADING`] products each way from a fixed pseudo-random start. The right vectors are orthogonalised in full, twice;
/// the left ones then stay orthogonal to working precision (Simon and Zha, 2000) and need not be kept.
pub fn spectrum(parts: &[View<'_>], width: usize, sums: &Sums, spread: Spread) -> Spectrum {
    let none = Spectrum {
        leading: [f64::NAN; LEADING],
        effective_rank: f64::NAN,
    };
    let finite = |values: &[f64]| values.iter().all(|value| value.is_finite());
    if sums.rows == 0 || width == 0 || !finite(&sums.sum) || !finite(&sums.square) {
        return none;
    }
    let pieces: Vec<View<'_>> = parts.iter().flat_map(|part| chunks(*part, width)).collect();
    let shift: Vec<f32> = sums.means().iter().map(|mean| *mean as f32).collect();
    let steps = LEADING.min(width).min(sums.rows as usize);
    let mut lefts: Vec<Vec<f32>> = pieces.iter().map(|piece| vec![0.0; piece.rows]).collect();
    let mut rights: Vec<Vec<f64>> = vec![start(width)];
    let (mut diagonal, mut above) = (Vec::new(), Vec::new());
    let mut factor = 0.0;
    let mut largest = 0.0f64;
    for step in 0..steps {
        let right = &rights[step];
        let v: Vec<f32> = right.iter().map(|value| *value as f32).collect();
        let done = spread.map(pieces.len(), |index| {
            let mut u = lefts[index].clone();
            let mut out = vec![0.0; width];
            let piece = pieces[index];
            sweep(
                piece.data,
                piece.stride,
                &shift,
                &v,
                factor as f32,
                &mut u,
                &mut out,
            );
            (u, out)
        });
        let mut squares = 0.0;
        let mut next = vec![0.0f64; width];
        lefts.clear();
        for (u, out) in done {
            squares += norm(&u).powi(2);
            for (next, out) in next.iter_mut().zip(&out) {
                *next += f64::from(*out);
            }
            lefts.push(u);
        }
        let alpha = squares.sqrt();
        largest = largest.max(alpha);
        // What is left is rounding: the matrix has no more directions.
        if alpha <= 1e-6 * largest {
            break;
        }
        diagonal.push(alpha);
        if step + 1 == steps {
            break;
        }
        for (next, right) in next.iter_mut().zip(right) {
            *next = *next / alpha - alpha * right;
        }
        for _ in 0..2 {
            for right in &rights {
                let part: f64 = right.iter().zip(&next).map(|(a, b)| a * b).sum();
                for (next, right) in next.iter_mut().zip(right) {
                    *next -= part * right;
                }
            }
        }
        let beta = next.iter().map(|value| value * value).sum::<f64>().sqrt();
        if beta <= 1e-6 * largest {
            break;
        }
        next.iter_mut().for_each(|value| *value /= beta);
        above.push(beta);
        rights.push(next);
        factor = beta / alpha;
    }
    let mut leading = [0.0; LEADING];
    let root = (sums.rows as f64).sqrt();
    let values = of_bidiagonal(&diagonal, &above).values;
    for (leading, value) in leading.iter_mut().zip(values) {
        *leading = value / root;
    }
    let trace: f64 = sums.variances().iter().sum();
    Spectrum {
        leading,
        effective_rank: match leading[0] > 0.0 {
            true => trace / (leading[0] * leading[0]),
            false => f64::NAN,
        },
    }
}

/// A unit vector of pseudo-random numbers (the finaliser of SplitMix64 over the index), the same for every matrix of a width.
fn start(width: usize) -> Vec<f64> {
    let number = |index: usize| {
        let mut z = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    let mut values: Vec<f64> = (0..width).map(number).collect();
    let length = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    values.iter_mut().for_each(|value| *value /= length);
    values
}

/// The pieces of [`CHUNK`] rows.
fn chunks<'a>(matrix: View<'a>, width: usize) -> impl Iterator<Item = View<'a>> {
    if matrix.rows > 0 {
        check(matrix, width);
    }
    (0..matrix.rows).step_by(CHUNK).map(move |first| View {
        data: &matrix.data[first * matrix.stride..],
        rows: CHUNK.min(matrix.rows - first),
        stride: matrix.stride,
    })
}

fn check(matrix: View<'_>, width: usize) {
    assert!(
        width <= matrix.stride && (matrix.rows - 1) * matrix.stride + width <= matrix.data.len(),
        "rows beyond the data"
    );
}

/// Euclidean norm: squares in f32 lanes per 4096 numbers, these in f64.
fn norm(values: &[f32]) -> f64 {
    let squares = values.chunks(4096).map(|part| f64::from(row_sums(part)[1]));
    squares.sum::<f64>().sqrt()
}

vectorized! {
    /// `[sum, sum of squares]`.
    fn row_sums(row: &[f32]) -> [f32; 2] {
        let (mut sums, mut squares): (Lanes, Lanes) = ([0.0; LANES], [0.0; LANES]);
        let (blocks, rest) = row.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                sums[lane] += block[lane];
                squares[lane] = block[lane].mul_add(block[lane], squares[lane]);
            }
        }
        let rest = padded(rest, 0.0);
        for lane in 0..LANES {
            sums[lane] += rest[lane];
            squares[lane] = rest[lane].mul_add(rest[lane], squares[lane]);
        }
        [total(sums), total(squares)]
    }

    /// Adds each column's numbers less `shift`, and their squares, to `sums` and `squares`: in f32 over [`GROUP`] rows, which
    /// lie in the first-level cache, and in f64 from group to group.
    fn columns(data: &[f32], stride: usize, rows: usize, shift: &[f32], sums: &mut [f64], squares: &mut [f64]) {
        let width = shift.len();
        let whole = width / LANES * LANES;
        let (sums, squares) = (&mut sums[..width], &mut squares[..width]);
        for first in (0..rows).step_by(GROUP) {
            let last = rows.min(first + GROUP);
            let mut at = 0;
            while at < whole {
                let (mut sum, mut square): (Lanes, Lanes) = ([0.0; LANES], [0.0; LANES]);
                let shift = &shift[at..at + LANES];
                for row in first..last {
                    let values = &data[row * stride + at..row * stride + at + LANES];
                    for lane in 0..LANES {
                        let value = values[lane] - shift[lane];
                        sum[lane] += value;
                        square[lane] = value.mul_add(value, square[lane]);
                    }
                }
                let (sums, squares) = (&mut sums[at..at + LANES], &mut squares[at..at + LANES]);
                for lane in 0..LANES {
                    sums[lane] += f64::from(sum[lane]);
                    squares[lane] += f64::from(square[lane]);
                }
                at += LANES;
            }
            for row in first..last {
                for column in whole..width {
                    let value = f64::from(data[row * stride + column] - shift[column]);
                    sums[column] += value;
                    squares[column] = value.mul_add(value, squares[column]);
                }
            }
        }
    }

    /// For each row `a` (as many as `u` has, `stride` apart): `u = (a - shift) v - factor u`, and then, unless `out` is
    /// empty, `out += u (a - shift)`.
    fn sweep(data: &[f32], stride: usize, shift: &[f32], v: &[f32], factor: f32, u: &mut [f32], out: &mut [f32]) {
        let width = v.len();
        let (shifts, shift_rest) = shift[..width].as_chunks::<LANES>();
        let (vs, v_rest) = v.as_chunks::<LANES>();
        let mut first = 0;
        while first < u.len() {
            let count = ROWS.min(u.len() - first);
            // Beyond the end the last row is taken again, with weight zero.
            let row = |index: usize| {
                let at = (first + index.min(count - 1)) * stride;
                data[at..at + width].as_chunks::<LANES>()
            };
            let ((a, a_rest), (b, b_rest), (c, c_rest), (d, d_rest)) = (row(0), row(1), row(2), row(3));
            let mut dots: [Lanes; ROWS] = [[0.0; LANES]; ROWS];
            let [dot_a, dot_b, dot_c, dot_d] = &mut dots;
            // Rows are too short, and those of keys and values too far apart, for the processor to see what comes next.
            let ahead = data.as_ptr().wrapping_add((first + ROWS) * stride);
            let each = a.iter().zip(b).zip(c).zip(d).zip(shifts).zip(vs).enumerate();
            for (block, (((((a, b), c), d), shift), v)) in each {
                for row in 0..ROWS {
                    prefetch(ahead.wrapping_add(row * stride + block * LANES));
                }
                fold(a, shift, v, dot_a);
                fold(b, shift, v, dot_b);
                fold(c, shift, v, dot_c);
                fold(d, shift, v, dot_d);
            }
            let rests = [a_rest, b_rest, c_rest, d_rest];
            let mut weights = [0.0f32; ROWS];
            let each = weights.iter_mut().zip(&mut u[first..first + count]).zip(&dots).zip(rests);
            for (((weight, left), dot), rest) in each {
                let mut dot = total(*dot);
                for ((value, shift), v) in rest.iter().zip(shift_rest).zip(v_rest) {
                    dot = (value - shift).mul_add(*v, dot);
                }
                *left = (-factor).mul_add(*left, dot);
                *weight = *left;
            }
            first += count;
            if out.is_empty() {
                continue;
            }
            let [weight_a, weight_b, weight_c, weight_d] = weights.map(|weight| [weight; LANES]);
            let (outs, out_rest) = out[..width].as_chunks_mut::<LANES>();
            let each = a.iter().zip(b).zip(c).zip(d).zip(shifts).zip(outs);
            for (((((a, b), c), d), shift), out) in each {
                let mut sums = *out;
                fold(a, shift, &weight_a, &mut sums);
                fold(b, shift, &weight_b, &mut sums);
                fold(c, shift, &weight_c, &mut sums);
                fold(d, shift, &weight_d, &mut sums);
                *out = sums;
            }
            for (rest, weight) in rests.into_iter().zip(weights) {
                for ((out, value), shift) in out_rest.iter_mut().zip(rest).zip(shift_rest) {
                    *out = weight.mul_add(value - shift, *out);
                }
            }
        }
    }
}

/// Asks for what will be read soon; the address need not be valid.
#[inline(always)]
fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// `sums += (values - shift) factors`.
#[inline(always)]
fn fold(values: &Lanes, shift: &Lanes, factors: &Lanes, sums: &mut Lanes) {
    for lane in 0..LANES {
        sums[lane] = (values[lane] - shift[lane]).mul_add(factors[lane], sums[lane]);
    }
}
