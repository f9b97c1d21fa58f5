//! Matrix products with stored weights: `Y[m, n] = X[m, k] W[n, k]^T`, sums in f32.
//!
//! Weights stay in their stored type. A tile of the result (at most [`TILE_ROWS`] x [`PANEL`]) widens its rows of `W` into
//! a scratch buffer of its thread, [`SLICE`] columns at a time, and hands both factors to the crate `faer`, sequentially.
//!
//! **The bits of `Y[i, j]` depend on row `i` of `X` and row `j` of `W` alone**: not on how many other rows there are, where
//! they stand or how many threads run. This holds because the slices of `k` are a function of `k`, and because within one
//! product of a slice `faer` adds up each element in the order of `k`, whatever the tile's size. Its special cases for
//! vectors and for tiny products would differ, so products below `SMALL` are filled up with zeros. The property tests
//! below check the result, not the argument.

use std::{cell::RefCell, ops::Range};

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul as product};
use rayon::prelude::*;

use crate::{
    DType, Error, Result, Tensor,
    cpu::{Cpu, widen},
};

/// Rows of the result that one tile covers.
pub const TILE_ROWS: usize = 512;
/// Columns of the result that one tile covers: two panels of the AVX-512 kernel, measured best of 96 to 768.
pub const PANEL: usize = 192;
/// Columns of the factors that are multiplied at a time, so that a widened panel stays in the second-level cache.
pub const SLICE: usize = 512;
/// Smallest rows, columns and depth that are handed to the product: one more than its special cases cover together.
const SMALL: (usize, usize, usize) = (16, 16, 32);

/// Where work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// On the calling thread: the caller has other work for the other threads.
    Here,
    /// Over the current rayon pool.
    Pool,
}

impl Spread {
    /// Calls `work` for every index below `count`.
    pub fn each(self, count: usize, work: impl Fn(usize) + Sync + Send) {
        match self {
            Spread::Here => (0..count).for_each(work),
            Spread::Pool => (0..count).into_par_iter().with_max_len(1).for_each(work),
        }
    }

    /// Calls `work` with every row of `data`, each of `width` numbers, and its index.
    pub fn rows(
        self,
        data: &mut [f32],
        width: usize,
        work: impl Fn(usize, &mut [f32]) + Sync + Send,
    ) {
        /// Rows that a thread takes at a time.
        const CHUNK: usize = 32;
        let width = width.max(1);
        let chunk = |(index, rows): (usize, &mut [f32])| {
            for (row, out) in rows.chunks_exact_mut(width).enumerate() {
                work(index * CHUNK + row, out);
            }
        };
        match self {
            Spread::Here => data.chunks_mut(CHUNK * width).enumerate().for_each(chunk),
            Spread::Pool => data
                .par_chunks_mut(CHUNK * width)
                .enumerate()
                .for_each(chunk),
        }
    }

    /// The results of `work` for every index below `count`, in order.
    pub fn map<R: Send>(self, count: usize, work: impl Fn(usize) -> R + Sync + Send) -> Vec<R> {
        match self {
            Spread::Here => (0..count).map(work).collect(),
            Spread::Pool => (0..count)
                .into_par_iter()
                .with_max_len(1)
                .map(work)
                .collect(),
        }
    }
}

/// What becomes of the numbers that stand in the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// They are overwritten.
    Replace,
    /// The product is added to them.
    Add,
}

/// A matrix of weights `[rows, columns]` as stored: bf16, f16 or f32.
#[derive(Debug, Clone)]
pub struct Weight {
    tensor: Tensor,
    rows: usize,
    columns: usize,
}

impl Weight {
    /// Takes a tensor of two axes.
    ///
    /// # Errors
    /// When it has another number of axes, or a dtype that is neither bf16, f16 nor f32.
    pub fn new(tensor: &Tensor) -> Result<Self> {
        if !widen::serves(tensor.dtype()) {
            return Err(Error::DType {
                op: "weight",
                dtype: tensor.dtype(),
            });
        }
        let &[rows, columns] = tensor.shape() else {
            return Err(Error::Argument {
                op: "weight",
                message: format!(
                    "a matrix has two axes, this tensor has shape {:?}",
                    tensor.shape()
                ),
            });
        };
        Ok(Self {
            tensor: tensor.clone(),
            rows,
            columns,
        })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The tensor as it was given.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Row `row`, widened to `out` (as long as a row).
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        self.part(row, 0..self.columns, out);
    }

    /// `columns` of row `row`, widened.
    fn part(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let size = self.tensor.dtype().size();
        let start = row * self.columns;
        let bytes =
            &self.tensor.bytes()[(start + columns.start) * size..(start + columns.end) * size];
        widen::widen(self.tensor.dtype(), bytes, out);
    }
}

/// Rows to read: row `i` starts at `i * stride`.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The numbers, from the first row's first on.
    pub data: &'a [f32],
    /// How many rows.
    pub rows: usize,
    /// Distance between rows.
    pub stride: usize,
}

impl<'a> View<'a> {
    /// `rows` rows that lie close together.
    pub fn dense(data: &'a [f32], rows: usize) -> Self {
        Self {
            data,
            rows,
            stride: data.len().checked_div(rows).unwrap_or(0),
        }
    }
}

/// Rows to write: row `i` starts at `i * stride`.
#[derive(Debug)]
pub struct ViewMut<'a> {
    data: *mut f32,
    len: usize,
    stride: usize,
    _owner: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: a `ViewMut` is a `&mut [f32]` whose disjoint parts are handed to different threads, by `row_part` only.
unsafe impl Send for ViewMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// Rows of `data` that start `stride` apart.
    pub fn new(data: &'a mut [f32], stride: usize) -> Self {
        Self {
            data: data.as_mut_ptr(),
            len: data.len(),
            stride,
            _owner: std::marker::PhantomData,
        }
    }

    /// Address of the block of `rows` rows from `first` on and of `columns`.
    ///
    /// # Panics
    /// When the block goes beyond the data or the rows overlap.
    fn block(&self, first: usize, rows: usize, columns: Range<usize>) -> *mut f32 {
        let end = (first + rows - 1) * self.stride + columns.end;
        assert!(
            rows > 0 && columns.start < columns.end && end <= self.len,
            "block beyond the data"
        );
        assert!(
            columns.end <= self.stride || first + rows == 1,
            "rows of a block overlap"
        );
        self.data.wrapping_add(first * self.stride + columns.start)
    }

    /// Numbers `columns` of row `row`.
    ///
    /// # Safety
    /// No two threads may hold overlapping parts at the same time.
    ///
    /// # Panics
    /// When the part goes beyond the data.
    #[expect(
        clippy::mut_from_ref,
        reason = "the caller promises that parts do not overlap"
    )]
    pub(crate) unsafe fn row_part(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        let start = row * self.stride + columns.start;
        assert!(
            columns.start <= columns.end && start + columns.len() <= self.len,
            "part of a row beyond the data"
        );
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), columns.len()) }
    }
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
    tiles(x.rows, w.rows, spread, |rows, panel| {
        SCRATCH.with_borrow_mut(|scratch| {
            let target = Target {
                data: y,
                first_row: rows.start,
                first_column: panel.start,
            };
            tile(
                x,
                w,
                rows,
                panel,
                &target,
                store,
                &mut scratch.weights,
                &mut scratch.small,
            );
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
                tile(
                    *x,
                    w,
                    rows,
                    panel,
                    &target,
                    Store::Replace,
                    &mut scratch.weights,
                    &mut scratch.small,
                );
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

/// The slices of `depth` columns: [`SLICE`] each, the last one longer rather than tiny.
fn slices(depth: usize) -> impl Iterator<Item = Range<usize>> {
    let count = depth.saturating_sub(SMALL.2 + 1) / SLICE + 1;
    (0..count).map(move |index| {
        index * SLICE..if index + 1 == count {
            depth
        } else {
            (index + 1) * SLICE
        }
    })
}

/// One tile of `X W^T`.
#[expect(
    clippy::too_many_arguments,
    reason = "private; the two buffers are one thread's scratch, borrowed apart"
)]
fn tile(
    x: View<'_>,
    w: &Weight,
    rows: Range<usize>,
    panel: Range<usize>,
    target: &Target<'_, '_>,
    store: Store,
    weights: &mut Vec<f32>,
    small: &mut Vec<f32>,
) {
    let (m, n) = (rows.len(), panel.len());
    assert!(
        w.columns <= x.stride && (rows.end - 1) * x.stride + w.columns <= x.data.len(),
        "rows beyond the data"
    );
    let mut store = store;
    for slice in slices(w.columns) {
        let depth = slice.len();
        let (pm, pn, pk) = (m.max(SMALL.0), n.max(SMALL.1), depth.max(SMALL.2));
        if weights.len() < pn * pk {
            weights.resize(pn.max(PANEL) * pk.max(SLICE), 0.0);
        }
        for (row, out) in panel.clone().zip(weights.chunks_exact_mut(pk)) {
            w.part(row, slice.clone(), &mut out[..depth]);
            out[depth..].fill(0.0);
        }
        let from = &x.data[rows.start * x.stride + slice.start..];
        if (pm, pn, pk) == (m, n, depth) {
            let to = target.data.block(
                target.first_row,
                m,
                target.first_column..target.first_column + n,
            );
            // SAFETY: `to` addresses m rows of n numbers, which no other tile has; `from` has m rows of `depth` numbers by
            // the assertion above, and `weights` n rows.
            unsafe {
                call(
                    from.as_ptr(),
                    x.stride,
                    weights.as_ptr(),
                    pk,
                    to,
                    target.data.stride,
                    (m, n, depth),
                    store,
                )
            };
        } else {
            weights[n.min(pn) * pk..pn * pk].fill(0.0);
            small.clear();
            small.resize(pm * pk + pm * pn, 0.0);
            let (input, output) = small.split_at_mut(pm * pk);
            for (row, out) in input.chunks_exact_mut(pk).take(m).enumerate() {
                out[..depth].copy_from_slice(&from[row * x.stride..row * x.stride + depth]);
            }
            let part = |row: usize| {
                // SAFETY: no other tile has these rows and columns.
                unsafe {
                    target.data.row_part(
                        target.first_row + row,
                        target.first_column..target.first_column + n,
                    )
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
                    input.as_ptr(),
                    pk,
                    weights.as_ptr(),
                    pk,
                    output.as_mut_ptr(),
                    pn,
                    (pm, pn, pk),
                    store,
                )
            };
            for (row, out) in output.chunks_exact(pn).take(m).enumerate() {
                part(row).copy_from_slice(&out[..n]);
            }
        }
        store = Store::Add;
    }
}

/// `to[m, n] (+)= from[m, k] weights[n, k]^T`, row-major with the given row distances.
///
/// # Safety
/// Each pointer must address as many rows and columns as `sizes` says, `to` exclusively.
#[expect(
    clippy::too_many_arguments,
    reason = "three matrices with their strides, and nothing else"
)]
unsafe fn call(
    from: *const f32,
    from_stride: usize,
    weights: *const f32,
    weights_stride: usize,
    to: *mut f32,
    to_stride: usize,
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

/// A matrix to read whose element `(i, j)` is at `i * steps.0 + j * steps.1`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    pub steps: (usize, usize),
}

impl Strided<'_> {
    /// Numbers from the first to the last element.
    fn span(rows: usize, columns: usize, steps: (usize, usize)) -> usize {
        rows.saturating_sub(1) * steps.0 + columns.saturating_sub(1) * steps.1 + 1
    }
}

/// `to (+)= a b` on the calling thread, for the small products of attention; element `(i, j)` of the result is at
/// `i + j * step`. The bits depend on the sizes.
///
/// # Panics
/// When the sizes do not fit each other or the data.
pub(crate) fn small_product(
    a: Strided<'_>,
    b: Strided<'_>,
    to: &mut [f32],
    step: usize,
    store: Store,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        k > 0 && b.rows == k && m <= step,
        "factors of a product that do not fit"
    );
    assert!(
        Strided::span(m, k, a.steps) <= a.data.len()
            && Strided::span(k, n, b.steps) <= b.data.len()
            && Strided::span(m, n, (1, step)) <= to.len(),
        "factor beyond its data"
    );
    // SAFETY: the assertions above.
    let (to, a, b) = unsafe {
        (
            MatMut::from_raw_parts_mut(to.as_mut_ptr(), m, n, 1, step as isize),
            MatRef::from_raw_parts(
                a.data.as_ptr(),
                m,
                k,
                a.steps.0 as isize,
                a.steps.1 as isize,
            ),
            MatRef::from_raw_parts(
                b.data.as_ptr(),
                k,
                n,
                b.steps.0 as isize,
                b.steps.1 as isize,
            ),
        )
    };
    let accum = match store {
        Store::Replace => Accum::Replace,
        Store::Add => Accum::Add,
    };
    product(to, accum, a, b, 1.0, Par::Seq);
}

/// `[m, k] x [k, n] -> [m, n]`, sums in f32, stored in the dtype of `lhs`.
///
/// # Errors
/// When a factor is no matrix, the inner axes differ or a dtype is not a float.
pub fn matmul_tensors(cpu: &Cpu, lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
    let (&[m, k], &[inner, n]) = (lhs.shape(), rhs.shape()) else {
        return Err(Error::Shape {
            op: "matmul",
            lhs: lhs.shape().to_vec(),
            rhs: rhs.shape().to_vec(),
        });
    };
    if inner != k {
        return Err(Error::Shape {
            op: "matmul",
            lhs: lhs.shape().to_vec(),
            rhs: rhs.shape().to_vec(),
        });
    }
    for tensor in [lhs, rhs] {
        if !tensor.dtype().is_float() {
            return Err(Error::DType {
                op: "matmul",
                dtype: tensor.dtype(),
            });
        }
    }
    let a = lhs.to_f32();
    let b = rhs.to_f32();
    let mut transposed = vec![0.0f32; b.len()];
    for (column, out) in transposed.chunks_exact_mut(k.max(1)).enumerate() {
        for (row, out) in out.iter_mut().enumerate() {
            *out = b[row * n + column];
        }
    }
    let mut out = vec![0.0f32; m * n];
    if m > 0 && n > 0 && k > 0 {
        let weight = Weight::new(&Tensor::from_f32(DType::F32, [n, k], &transposed)?)?;
        let view = ViewMut::new(&mut out, n);
        cpu.install(|| {
            linear(
                View::dense(&a, m),
                &weight,
                &view,
                Store::Replace,
                Spread::Pool,
            )
        });
    }
    Tensor::from_f32(lhs.dtype(), [m, n], &out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn noise(seed: usize, count: usize) -> Vec<f32> {
        let mut state = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
        (0..count)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32) / 8_388_608.0 - 1.0
            })
            .collect()
    }

    fn weight(dtype: DType, rows: usize, columns: usize, values: &[f32]) -> Weight {
        let bytes: Vec<u8> = match dtype {
            DType::BF16 => values
                .iter()
                .flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())
                .collect(),
            DType::F16 => values
                .iter()
                .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
                .collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Weight::new(&Tensor::new(dtype, [rows, columns], Bytes::from(bytes)).unwrap()).unwrap()
    }

    fn apply(x: &[f32], rows: usize, w: &Weight, spread: Spread) -> Vec<f32> {
        let mut y = vec![f32::NAN; rows * w.rows()];
        let view = ViewMut::new(&mut y, w.rows());
        linear(
            View {
                data: x,
                rows,
                stride: w.columns(),
            },
            w,
            &view,
            Store::Replace,
            spread,
        );
        y
    }

    #[test]
    fn slices_cover_the_depth_and_none_is_tiny() {
        for depth in 1..3000 {
            let all: Vec<_> = slices(depth).collect();
            assert_eq!(all[0].start, 0);
            assert_eq!(all[all.len() - 1].end, depth);
            assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(all.len() == 1 || all.iter().all(|slice| slice.len() > SMALL.2));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// The requirement on which everything else stands: a row's result has the same bits alone, in any company, at
        /// any place and for any spread.
        #[test]
        fn a_rows_bits_do_not_depend_on_the_batch(
            seed in 0usize..1000, m in 1usize..600, n in prop_oneof![1usize..40, 90usize..100, 180usize..420],
            k in prop_oneof![1usize..70, 120usize..140, 500usize..560, 1000usize..1100],
            dtype in prop_oneof![Just(DType::BF16), Just(DType::F16), Just(DType::F32)],
        ) {
            let x = noise(seed, m * k);
            let w = weight(dtype, n, k, &noise(seed + 1, n * k));
            let whole = apply(&x, m, &w, Spread::Here);
            prop_assert_eq!(&whole, &apply(&x, m, &w, Spread::Pool));
            // Reversed order.
            let reversed: Vec<f32> = x.chunks_exact(k).rev().flatten().copied().collect();
            let back: Vec<f32> = apply(&reversed, m, &w, Spread::Here).chunks_exact(n).rev().flatten().copied().collect();
            prop_assert_eq!(&whole, &back);
            // Split in two, and the last row alone.
            let cut = seed % m;
            if cut > 0 {
                let mut parts = apply(&x[..cut * k], cut, &w, Spread::Here);
                parts.extend(apply(&x[cut * k..], m - cut, &w, Spread::Pool));
                prop_assert_eq!(&whole, &parts);
            }
            let last = apply(&x[(m - 1) * k..], 1, &w, Spread::Here);
            prop_assert_eq!(&whole[(m - 1) * n..], &last[..]);
            // And it is the product.
            let mut row = vec![0.0; k];
            for j in [0, n / 2, n - 1] {
                w.row(j, &mut row);
                let exact: f64 = row.iter().zip(&x[(m - 1) * k..]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                prop_assert!((f64::from(last[j]) - exact).abs() < 1e-5 * (k as f64).sqrt() + 1e-6);
            }
        }
    }

    #[test]
    fn adding_keeps_what_was_there() {
        let (m, n, k) = (5, 200, 700);
        let x = noise(1, m * k);
        let w = weight(DType::BF16, n, k, &noise(2, n * k));
        let plain = apply(&x, m, &w, Spread::Here);
        let mut y = vec![1000.0; m * n];
        linear(
            View::dense(&x, m),
            &w,
            &ViewMut::new(&mut y, n),
            Store::Add,
            Spread::Here,
        );
        for (sum, product) in y.iter().zip(&plain) {
            assert!((sum - 1000.0 - product).abs() < 1e-3);
        }
    }

    #[test]
    fn tensors_multiply_and_refuse() {
        let cpu = Cpu::new(Some(2)).unwrap();
        let f32s = |shape: [usize; 2], values: &[f32]| {
            Tensor::new(
                DType::F32,
                shape,
                Bytes::from(
                    values
                        .iter()
                        .flat_map(|v| v.to_le_bytes())
                        .collect::<Vec<u8>>(),
                ),
            )
            .unwrap()
        };
        let a = f32s([2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let b = f32s([3, 2], &[7.0, 8.0, 9.0, 10.0, 11.0, 12.0]);
        let product = matmul_tensors(&cpu, &a, &b).unwrap();
        assert_eq!(
            product.bytes(),
            f32s([2, 2], &[58.0, 64.0, 139.0, 154.0]).bytes()
        );
        assert!(matches!(
            matmul_tensors(&cpu, &a, &a),
            Err(Error::Shape { .. })
        ));
    }
}
