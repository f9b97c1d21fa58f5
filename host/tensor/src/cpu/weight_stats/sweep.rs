//! One read of a matrix for everything that the statistics need of it at a time: products with up to two vectors, the
//! products of the transpose with these, and in the first sweep the census of squares and zeros.
//!
//! `y = W' (W v)` takes one read, because a group of rows is still in the nearest cache when its part of `W v` is known.
//! Rows are cut into strips whose size depends on the matrix alone; strips are swept in parallel, and what they sum over
//! rows is joined in their order, in f64.

use rayon::prelude::*;

use super::columns::Columns;
use super::lanes::{CHUNK, GROUP};
use super::matrix::{Matrix, Panel, Scratch};
use super::products;

/// Elements of a strip, where it has not too many rows: few strips keep their partial sums small.
const STRIP: usize = 1 << 20;
/// Most rows of a strip: within one, f32 sums run over them.
const STRIP_ROWS: usize = 1024;
/// Elements that make a task of its own.
const TASK: usize = 1 << 20;

/// A vector to multiply with.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// In panel order.
    pub(super) v: &'a [f32],
    /// A power of two by which `W v` is multiplied on its way back, so that the result neither overflows nor vanishes.
    pub(super) scale: f32,
}

/// What comes of one vector.
#[derive(Default, Clone)]
pub(super) struct Product {
    /// `W v`.
    pub(super) u: Vec<f32>,
    /// `scale W' W v`, in panel order.
    pub(super) y: Columns,
}

/// Counts and squares of a matrix.
pub(super) struct Census {
    /// Sums of squares of the rows.
    pub(super) rows: Vec<f32>,
    /// Sums of squares of the columns, in panel order.
    pub(super) columns: Columns,
    /// Elements equal to zero.
    pub(super) zeros: u64,
}

/// What comes of one strip.
struct Part {
    products: Vec<Product>,
    census: Option<Census>,
}

/// Multiplies with all `inputs` (in order) and, where wanted, takes the census.
pub(super) fn sweep(
    matrix: &Matrix<'_>,
    inputs: &[Input<'_>],
    census: bool,
) -> (Vec<Product>, Option<Census>) {
    let width = matrix.chunks * CHUNK;
    let height = (STRIP / width).clamp(GROUP, STRIP_ROWS) / GROUP * GROUP;
    let strips = matrix.rows.div_ceil(height);
    let together = (TASK / (height * width)).max(1);
    let part = |strip: usize| {
        let first = strip * height;
        strip_of(
            matrix,
            inputs,
            census,
            first..matrix.rows.min(first + height),
        )
    };
    let parts: Vec<Part> = if strips <= together {
        (0..strips).map(part).collect()
    } else {
        let strips = (0..strips).into_par_iter().with_min_len(together);
        strips.map(part).collect()
    };
    join(parts)
}

/// One strip's rows.
fn strip_of(
    matrix: &Matrix<'_>,
    inputs: &[Input<'_>],
    census: bool,
    rows: std::ops::Range<usize>,
) -> Part {
    let width = matrix.chunks * CHUNK;
    let mut scratch = Scratch::default();
    let empty = || Product {
        u: Vec::with_capacity(rows.len().next_multiple_of(GROUP)),
        y: Columns::zeros(width),
    };
    let mut products: Vec<Product> = inputs.iter().map(|_| empty()).collect();
    let mut census = census.then(|| Census {
        rows: Vec::with_capacity(rows.len()),
        columns: Columns::zeros(width),
        zeros: 0,
    });
    let padding = (width - matrix.columns) as u64;
    for first in rows.clone().step_by(GROUP) {
        let count = GROUP.min(rows.end - first);
        let panel = matrix.group(first, &mut scratch);
        if let Some(census) = &mut census {
            let columns = census.columns.as_chunks_mut().0;
            let found = match panel {
                Panel::Stored(data) => products::census(data, matrix.chunks, columns),
                Panel::Wide(data) => products::census(data, matrix.chunks, columns),
            };
            for (squares, zeros) in &found[..count] {
                census.rows.push(*squares);
                census.zeros += u64::from(*zeros) - padding;
            }
        }
        for (inputs, products) in inputs.chunks(2).zip(products.chunks_mut(2)) {
            multiply(&panel, matrix.chunks, inputs, products);
        }
    }
    for product in &mut products {
        product.u.truncate(rows.len());
    }
    Part { products, census }
}

/// One group of rows with one or two vectors.
fn multiply(panel: &Panel<'_>, chunks: usize, inputs: &[Input<'_>], products: &mut [Product]) {
    match (inputs, products) {
        ([a], [of_a]) => {
            let (v, scale) = ([a.v.as_chunks().0], [a.scale]);
            let mut y = [of_a.y.as_chunks_mut().0];
            let u = match panel {
                Panel::Stored(data) => products::multiply(data, chunks, v, scale, &mut y),
                Panel::Wide(data) => products::multiply(data, chunks, v, scale, &mut y),
            };
            of_a.u.extend_from_slice(&u[0]);
        }
        ([a, b], [of_a, of_b]) => {
            let (v, scale) = ([a.v.as_chunks().0, b.v.as_chunks().0], [a.scale, b.scale]);
            let mut y = [of_a.y.as_chunks_mut().0, of_b.y.as_chunks_mut().0];
            let u = match panel {
                Panel::Stored(data) => products::multiply(data, chunks, v, scale, &mut y),
                Panel::Wide(data) => products::multiply(data, chunks, v, scale, &mut y),
            };
            of_a.u.extend_from_slice(&u[0]);
            of_b.u.extend_from_slice(&u[1]);
        }
        // `inputs` and `products` are cut alike, into ones and twos.
        _ => {}
    }
}

/// Joins the strips in their order.
fn join(parts: Vec<Part>) -> (Vec<Product>, Option<Census>) {
    let mut parts = parts.into_iter();
    let Some(first) = parts.next() else {
        return (Vec::new(), None);
    };
    let (mut products, mut census) = (first.products, first.census);
    let rest: Vec<Part> = parts.collect();
    if rest.is_empty() {
        return (products, census);
    }
    for (index, product) in products.iter_mut().enumerate() {
        for part in &rest {
            product.u.extend_from_slice(&part.products[index].u);
        }
        add_up(
            &mut product.y,
            rest.iter().map(|part| &part.products[index].y[..]),
        );
    }
    if let Some(census) = &mut census {
        let others: Vec<&Census> = rest
            .iter()
            .filter_map(|part| part.census.as_ref())
            .collect();
        for other in &others {
            census.rows.extend_from_slice(&other.rows);
            census.zeros += other.zeros;
        }
        add_up(
            &mut census.columns,
            others.iter().map(|other| &other.columns[..]),
        );
    }
    (products, census)
}

/// Adds `others` to `sums`, in order and in f64.
fn add_up<'a>(sums: &mut [f32], others: impl Iterator<Item = &'a [f32]>) {
    let mut wide: Vec<f64> = sums.iter().map(|&value| f64::from(value)).collect();
    for other in others {
        for (sum, &value) in wide.iter_mut().zip(other) {
            *sum += f64::from(value);
        }
    }
    for (sum, wide) in sums.iter_mut().zip(wide) {
        *sum = wide as f32;
    }
}
