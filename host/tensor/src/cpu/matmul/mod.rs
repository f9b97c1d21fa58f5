//! Matrix products with stored weights: `Y[m, n] = X[m, k] W[n, k]^T`, sums in f32.
//!
//! Weights stay in their stored type. A tile of the result (at most [`TILE_ROWS`] x [`PANEL`]) widens its rows of `W` into
//! a scratch buffer of its thread, a block at a time (see `Blocking`), and hands both factors to the crate `faer`,
//! sequentially.
//!
//! **The bits of `Y[i, j]` depend on row `i` of `X` and row `j` of `W` alone**: not on how many other rows there are, where
//! they stand or how many threads run. This holds because the slices of `k` are a function of `k`, and because within one
//! product of a slice `faer` adds up each element in the order of `k`, whatever the tile's size. Its special cases for
//! vectors and for tiny products would differ, so products below `SMALL` are filled up with zeros. The property tests
//! check the result, not the argument.

use std::{cell::RefCell, ops::Range};

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul as product};

mod small;
mod spread;
mod tensors;
mod view;
mod weight;

pub(crate) use small::{Strided, small_product};
pub use spread::Spread;
pub use tensors::matmul_tensors;
pub use view::{View, ViewMut};
pub use weight::Weight;

/// Rows of the result that one tile covers.
pub const TILE_ROWS: usize = 512;
/// Columns of the result that one tile covers: two panels of the AVX-512 kernel, measured best of 96 to 768.
pub const PANEL: usize = 192;
/// Smallest rows, columns and depth that are handed to the product: one more than its special cases cover together.
const SMALL: (usize, usize, usize) = (16, 16, 32);

/// What becomes of the numbers that stand in the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// They are overwritten.
    Replace,
    /// The product is added to them.
    Add,
}

thread_local! {
    /// Widened weights, and a tile of the result where it cannot be written in place.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { weights: Vec::new(), tiles: Vec::new(), small: Vec::new() }) };
}

struct Scratch {
    weights: Vec<f32>,
    tiles: Vec<f32>,
    small: Vec<f32>,
}

/// `Y (+)= X W^T`: `x` has `w.columns()` columns, `y` takes `w.rows()` columns of `x.rows` rows.
///
/// # Panics
/// When a view is too short for its rows.
pub fn linear(x: View<'_>, w: &Weight, y: &ViewMut<'_>, store: Store, spread: Spread) {
    tiles(x.rows, w.rows(), spread, |rows, panel| {
        SCRATCH.with_borrow_mut(|scratch| {
            let target = Target {
                data: y,
                first_row: rows.start,
                first_column: panel.start,
            };
            tile(x, w, rows, panel, &target, store, scratch);
        });
    });
}

/// Gives `consume` rows `rows` (at most [`TILE_ROWS`]) and columns `columns` of the product `X W^T` for each input, panel by
/// panel on the calling thread: called with the panel's columns and, for each input, its numbers (dense, row-major).
/// Nothing larger than a tile is kept.
///
/// # Panics
/// When there are more rows than a tile has, or a view is too short for them.
pub fn panels<const N: usize>(
    inputs: [(View<'_>, &Weight); N],
    rows: Range<usize>,
    columns: Range<usize>,
    mut consume: impl FnMut(Range<usize>, [&mut [f32]; N]),
) {
    assert!(rows.len() <= TILE_ROWS, "more rows than a tile has");
    // The tiles leave the cell meanwhile, in case `consume` multiplies on its own.
    let mut tiles = SCRATCH.with_borrow_mut(|scratch| std::mem::take(&mut scratch.tiles));
    tiles.resize(N * TILE_ROWS * PANEL, 0.0);
    for first in columns.clone().step_by(PANEL) {
        let panel = first..columns.end.min(first + PANEL);
        let area = rows.len() * panel.len();
        SCRATCH.with_borrow_mut(|scratch| {
            for ((x, w), out) in inputs.iter().zip(tiles.chunks_exact_mut(area)) {
                let view = ViewMut::new(out, panel.len());
                let target = Target {
                    data: &view,
                    first_row: 0,
                    first_column: 0,
                };
                let (rows, panel) = (rows.clone(), panel.clone());
                tile(*x, w, rows, panel, &target, Store::Replace, scratch);
            }
        });
        let mut parts = tiles.chunks_exact_mut(area);
        let products = std::array::from_fn(|_| parts.next().unwrap_or_default());
        consume(panel, products);
    }
    SCRATCH.with_borrow_mut(|scratch| scratch.tiles = tiles);
}

/// Calls `work` for the tiles of a `rows x columns` result; columns vary slowest, so that a thread that runs alone
/// passes over the weights once per [`TILE_ROWS`] rows.
pub(crate) fn tiles(
    rows: usize,
    columns: usize,
    spread: Spread,
    work: impl Fn(Range<usize>, Range<usize>) + Sync + Send,
) {
    let (down, across) = (rows.div_ceil(TILE_ROWS), columns.div_ceil(PANEL));
    spread.each(down * across, |index| {
        let (row, column) = (index % down, index / down);
        work(
            row * TILE_ROWS..rows.min((row + 1) * TILE_ROWS),
            column * PANEL..columns.min((column + 1) * PANEL),
        );
    });
}

/// Where a tile goes.
struct Target<'a, 'b> {
    data: &'a ViewMut<'b>,
    first_row: usize,
    first_column: usize,
}

/// How much of the weights is widened and multiplied at a time: so many columns of the result, and slices of `k`. A function
/// of `k` alone, because the slices decide the order of the sums.
struct Blocking {
    columns: usize,
    depth: usize,
    /// How many slices.
    slices: usize,
}

impl Blocking {
    /// Up to here one panel of the product's kernel is kept in the first-level cache; beyond, where the result would be read
    /// and written too often, panels fill the second level.
    const SHALLOW: usize = 768;
    /// Columns and depth of a block for the first level: 96 columns are one panel of the AVX-512 kernel, 4 * 96 * 112 bytes
    /// leave room for the rows that are multiplied. Measured 3 to 10 % faster than blocks for the second level.
    const FIRST_LEVEL: (usize, usize) = (96, 112);
    /// The same for the second level.
    const SECOND_LEVEL: (usize, usize) = (PANEL, 512);
    /// Slices begin at multiples of a vector's length.
    const STEP: usize = 16;

    fn of(depth: usize) -> Self {
        let (columns, deepest) = match depth <= Self::SHALLOW {
            true => Self::FIRST_LEVEL,
            false => Self::SECOND_LEVEL,
        };
        Self {
            columns,
            depth,
            slices: depth.div_ceil(deepest).max(1),
        }
    }

    /// The slices of `k`, nearly equal, so that none is tiny.
    fn slices(&self) -> impl Iterator<Item = Range<usize>> {
        let (depth, count) = (self.depth, self.slices);
        let start = move |index: usize| match index == count {
            true => depth,
            false => index * depth / count / Self::STEP * Self::STEP,
        };
        (0..count).map(move |index| start(index)..start(index + 1))
    }
}

/// One tile of `X W^T`: its columns `panel`, block by block.
fn tile(
    x: View<'_>,
    w: &Weight,
    rows: Range<usize>,
    panel: Range<usize>,
    target: &Target<'_, '_>,
    store: Store,
    scratch: &mut Scratch,
) {
    assert!(
        w.columns() <= x.stride && (rows.end - 1) * x.stride + w.columns() <= x.data.len(),
        "rows beyond the data"
    );
    let blocking = Blocking::of(w.columns());
    for first in panel.clone().step_by(blocking.columns) {
        let columns = first..panel.end.min(first + blocking.columns);
        let target = Target {
            first_column: target.first_column + first - panel.start,
            ..*target
        };
        let mut store = store;
        for slice in blocking.slices() {
            block(
                x,
                w,
                rows.clone(),
                columns.clone(),
                slice,
                &target,
                store,
                scratch,
            );
            store = Store::Add;
        }
    }
}

/// What rows `rows` of `X` and `columns` of the result have from the slice `slice` of `k`.
#[expect(
    clippy::too_many_arguments,
    reason = "private; two matrices, three ranges and where the block goes"
)]
fn block(
    x: View<'_>,
    w: &Weight,
    rows: Range<usize>,
    columns: Range<usize>,
    slice: Range<usize>,
    target: &Target<'_, '_>,
    store: Store,
    scratch: &mut Scratch,
) {
    let (m, n, depth) = (rows.len(), columns.len(), slice.len());
    let (pm, pn, pk) = (m.max(SMALL.0), n.max(SMALL.1), depth.max(SMALL.2));
    let Scratch { weights, small, .. } = scratch;
    if weights.len() < pn * pk {
        weights.resize(pn * pk, 0.0);
    }
    for (row, out) in columns.zip(weights.chunks_exact_mut(pk)) {
        w.part(row, slice.clone(), &mut out[..depth]);
        out[depth..].fill(0.0);
    }
    let from = &x.data[rows.start * x.stride + slice.start..];
    let to_columns = target.first_column..target.first_column + n;
    if (pm, pn, pk) == (m, n, depth) {
        let to = target.data.block(target.first_row, m, to_columns);
        // SAFETY: `to` addresses m rows of n numbers, which no other tile has; `from` has m rows of `depth` numbers by the
        // assertion in `tile`, and `weights` n rows.
        unsafe {
            call(
                (from.as_ptr(), x.stride),
                (weights.as_ptr(), pk),
                (to, target.data.stride),
                (m, n, depth),
                store,
            )
        };
        return;
    }
    weights[n * pk..pn * pk].fill(0.0);
    small.clear();
    small.resize(pm * pk + pm * pn, 0.0);
    let (input, output) = small.split_at_mut(pm * pk);
    for (row, out) in input.chunks_exact_mut(pk).take(m).enumerate() {
        out[..depth].copy_from_slice(&from[row * x.stride..row * x.stride + depth]);
    }
    let part = |row: usize| {
        // SAFETY: no other tile has these rows and columns.
        unsafe {
            target
                .data
                .row_part(target.first_row + row, to_columns.clone())
        }
    };
    if store == Store::Add {
        for (row, out) in output.chunks_exact_mut(pn).take(m).enumerate() {
            out[..n].copy_from_slice(part(row));
        }
    }
    // SAFETY: all three are dense buffers of these very sizes.
    unsafe {
        call(
            (input.as_ptr(), pk),
            (weights.as_ptr(), pk),
            (output.as_mut_ptr(), pn),
            (pm, pn, pk),
            store,
        )
    };
    for (row, out) in output.chunks_exact(pn).take(m).enumerate() {
        part(row).copy_from_slice(&out[..n]);
    }
}

/// `to[m, n] (+)= from[m, k] weights[n, k]^T`, row-major with the given row distances.
///
/// # Safety
/// Each pointer must address as many rows, so far apart, and columns as the sizes `(m, n, k)` say, `to` exclusively.
unsafe fn call(
    (from, from_stride): (*const f32, usize),
    (weights, weights_stride): (*const f32, usize),
    (to, to_stride): (*mut f32, usize),
    (m, n, k): (usize, usize, usize),
    store: Store,
) {
    // SAFETY: the caller's promise.
    let (to, from, weights) = unsafe {
        (
            MatMut::from_raw_parts_mut(to, m, n, to_stride as isize, 1),
            MatRef::from_raw_parts(from, m, k, from_stride as isize, 1),
            MatRef::from_raw_parts(weights, k, n, 1, weights_stride as isize),
        )
    };
    let accum = match store {
        Store::Replace => Accum::Replace,
        Store::Add => Accum::Add,
    };
    product(to, accum, from, weights, 1.0, Par::Seq);
}

#[cfg(test)]
mod tests;
