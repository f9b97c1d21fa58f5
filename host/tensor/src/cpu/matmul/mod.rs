//! Matrix products with stored weights: `Y[m, n] = X[m, k] W[n, k]^T`, sums in f32.
//!
//! Weights stay in their stored type. Where the processor has matrix tiles, weights in bf16 are multiplied with them (module
//! `tiles`); what follows is the portable way. A tile of the result (at most [`TILE_ROWS`] x [`PANEL`]) widens its rows of `W` into
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
pub(in crate::cpu) mod tiles;
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
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    tiles: Vec<f32>,
    small: Vec<f32>,
    /// Packed factors for matrix tiles: rows of each input, and the rest.
    rows: Vec<tiles::Split>,
    packed: tiles::Scratch,
}

/// Whether products with bf16 weights may use the processor's matrix tiles, from now on and in the whole process: they do
/// unless told otherwise. With them, last places differ from those of processors without. Not to be changed while
/// something is computed whose bits matter.
pub fn use_matrix_tiles(wanted: bool) {
    tiles::allow(wanted);
}

/// Whether products with bf16 weights use matrix tiles.
pub fn uses_matrix_tiles() -> bool {
    tiles::available()
}

/// `Y (+)= X W^T`: `x` has `w.columns()` columns, `y` takes `w.rows()` columns of `x.rows` rows.
///
/// # Panics
/// When a view is too short for its rows.
pub fn linear(x: View<'_>, w: &Weight, y: &ViewMut<'_>, store: Store, spread: Spread) {
    linear_at(x, w, (y, 0), store, spread);
}

/// [`linear`] of one input with several weights, each to its own view from its own column on.
///
/// # Panics
/// As [`linear`], and when the weights have unlike numbers of columns.
pub fn linears<const N: usize>(
    x: View<'_>,
    outputs: [(&Weight, &ViewMut<'_>, usize); N],
    store: Store,
    spread: Spread,
) {
    let depth = outputs.first().map_or(0, |(w, ..)| w.columns());
    assert!(
        outputs.iter().all(|(w, ..)| w.columns() == depth),
        "weights of unlike inputs"
    );
    let packs = depth > 0 && outputs.iter().all(|(w, ..)| tiles::serve(w));
    if !packs || spread == Spread::Pool {
        for (w, y, column) in outputs {
            linear_at(x, w, (y, column), store, spread);
        }
        return;
    }
    // What all of them need is packed once.
    for first in (0..x.rows).step_by(TILE_ROWS) {
        SCRATCH.with_borrow_mut(|scratch| {
            let rows = first..x.rows.min(first + TILE_ROWS);
            for (index, (w, y, column)) in outputs.into_iter().enumerate() {
                if index == 0 {
                    scratch.pack(0, x, rows.clone(), w);
                }
                for panel in panels_of(0..w.rows()) {
                    let target = Target {
                        data: y,
                        first_row: first,
                        first_column: column + panel.start,
                    };
                    scratch.packed_tile(0, w, panel, &target, store);
                }
            }
        });
    }
}

/// [`linear`], to columns from `first` on.
fn linear_at(
    x: View<'_>,
    w: &Weight,
    (y, first): (&ViewMut<'_>, usize),
    store: Store,
    spread: Spread,
) {
    let packs = tiles::serve(w) && w.columns() > 0;
    tiles(x.rows, w.rows(), packs, spread, |rows, columns| {
        SCRATCH.with_borrow_mut(|scratch| {
            if packs {
                scratch.pack(0, x, rows.clone(), w);
            }
            for panel in panels_of(columns) {
                let target = Target {
                    data: y,
                    first_row: rows.start,
                    first_column: first + panel.start,
                };
                match packs {
                    true => scratch.packed_tile(0, w, panel, &target, store),
                    false => tile(x, w, rows.clone(), panel, &target, store, scratch),
                }
            }
        });
    });
}

impl Scratch {
    /// Packs `rows` of `x` for products with `w`, at `place`.
    fn pack(&mut self, place: usize, x: View<'_>, rows: Range<usize>, w: &Weight) {
        if self.rows.len() <= place {
            self.rows.resize_with(place + 1, Default::default);
        }
        tiles::pack(x, rows, w.columns(), &mut self.rows[place]);
    }

    /// Columns `panel` of the product of the packed rows at `place` with `w`.
    fn packed_tile(
        &mut self,
        place: usize,
        w: &Weight,
        panel: Range<usize>,
        target: &Target<'_, '_>,
        store: Store,
    ) {
        let rows = &self.rows[place];
        let columns = target.first_column..target.first_column + panel.len();
        let output = tiles::Output {
            to: target.data.block(target.first_row, rows.len(), columns),
            stride: target.data.stride,
        };
        // SAFETY: `block` has checked that the rows are there, and no other tile has them; rows were packed, so there are
        // matrix tiles.
        unsafe { tiles::product(rows, w, panel, &output, store, &mut self.packed) };
    }
}

/// `columns` in panels.
fn panels_of(columns: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = columns.end;
    columns
        .step_by(PANEL)
        .map(move |first| first..end.min(first + PANEL))
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
    // What a thread keeps leaves the cell meanwhile, in case `consume` multiplies on its own.
    let mut scratch = SCRATCH.take();
    let mut results = std::mem::take(&mut scratch.tiles);
    results.resize(N * TILE_ROWS * PANEL, 0.0);
    // Where the packed rows of each input are, for matrix tiles; inputs may share them.
    let mut places = [None; N];
    for (index, (x, w)) in inputs.iter().enumerate() {
        if !tiles::serve(w) || rows.is_empty() || w.columns() == 0 {
            continue;
        }
        let same = |(other, of): &(View<'_>, &Weight)| {
            std::ptr::eq(other.data, x.data)
                && other.stride == x.stride
                && of.columns() == w.columns()
        };
        let known = inputs[..index].iter().position(same);
        places[index] = known.and_then(|known| places[known]).or_else(|| {
            scratch.pack(index, *x, rows.clone(), w);
            Some(index)
        });
    }
    for panel in panels_of(columns) {
        let area = rows.len() * panel.len();
        for (((x, w), place), out) in inputs
            .iter()
            .zip(&places)
            .zip(results.chunks_exact_mut(area))
        {
            let view = ViewMut::new(out, panel.len());
            let target = Target {
                data: &view,
                first_row: 0,
                first_column: 0,
            };
            let panel = panel.clone();
            match place {
                Some(place) => scratch.packed_tile(*place, w, panel, &target, Store::Replace),
                None => {
                    let rows = rows.clone();
                    tile(*x, w, rows, panel, &target, Store::Replace, &mut scratch);
                }
            }
        }
        let mut parts = results.chunks_exact_mut(area);
        let products = std::array::from_fn(|_| parts.next().unwrap_or_default());
        consume(panel, products);
    }
    scratch.tiles = results;
    SCRATCH.set(scratch);
}

/// Calls `work` for the tiles of a `rows x columns` result, one or several panels wide; columns vary slowest, so that a
/// thread that runs alone passes over the weights once per [`TILE_ROWS`] rows. `packs` says that the rows are packed for each
/// call, which pays for many panels only: then there are no more calls than the threads need.
pub(crate) fn tiles(
    rows: usize,
    columns: usize,
    packs: bool,
    spread: Spread,
    work: impl Fn(Range<usize>, Range<usize>) + Sync + Send,
) {
    /// Calls per thread, so that none waits long for the others.
    const SHARE: usize = 4;
    let (down, panels) = (rows.div_ceil(TILE_ROWS), columns.div_ceil(PANEL));
    let across = match (packs, spread) {
        (false, _) => panels,
        (true, Spread::Here) => 1,
        (true, Spread::Pool) => (SHARE * rayon::current_num_threads())
            .div_ceil(down.max(1))
            .clamp(1, panels.max(1)),
    };
    let width = panels.div_ceil(across.max(1)) * PANEL;
    let across = columns.div_ceil(width.max(1));
    spread.each(down * across, |index| {
        let (row, column) = (index % down, index / down);
        work(
            row * TILE_ROWS..rows.min((row + 1) * TILE_ROWS),
            column * width..columns.min((column + 1) * width),
        );
    });
}

/// Whether rows are packed for products with `w`.
pub(crate) fn packs(w: &Weight) -> bool {
    tiles::serve(w)
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
