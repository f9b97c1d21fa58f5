//! Products on processors with matrix tiles (Intel AMX): weights in bf16, the other factor in f32, sums in f32.
//!
//! Tiles multiply bf16 numbers only, exactly, and add the products in f32. So a number of the other factor is split into
//! three bf16 numbers whose sum it is (`pack`): its upper 8 bits of mantissa, the next 8, and the last 8. Nothing is rounded
//! away before the sums, as in a product of f32 numbers; three tile products still take a fraction of the time of the one
//! in f32. Infinite and NaN elements stand in the first part alone. Parts and products below the smallest normal number
//! count as zero.
//!
//! An element of the result is the sum, in the order of `k`, of what steps of 32 elements give, part by part; rows and
//! columns that fill up a tile are zeros of the other elements. So its bits depend on its row and its column alone, as
//! with the portable product, but they are other bits than that product's, in the last places.

use std::{
    ops::Range,
    sync::atomic::{AtomicU8, Ordering},
};

use super::{Store, View, Weight};
use crate::DType;

mod kernel;
mod pack;

pub(in crate::cpu) use pack::{Columns, Split};

/// Rows and columns of the result that one call of the kernel makes: two tiles each way.
pub(in crate::cpu) const PAIR: usize = 32;
/// Steps of depth after which the sums are stored, so that what is multiplied stays in the second-level cache.
const STEPS: usize = 32;

/// Whether tiles are used: not asked yet, no, yes.
static STATE: AtomicU8 = AtomicU8::new(0);
const UNKNOWN: u8 = 0;
const NO: u8 = 1;
const YES: u8 = 2;

/// Whether `w` is multiplied with tiles here.
pub(super) fn serve(w: &Weight) -> bool {
    w.tensor().dtype() == DType::BF16 && available()
}

/// Whether this processor and system have tiles, and nobody wants to do without them.
pub(super) fn available() -> bool {
    let state = STATE.load(Ordering::Relaxed);
    if state != UNKNOWN {
        return state == YES;
    }
    let found = kernel::found();
    let state = if found { YES } else { NO };
    // Where someone has just refused them, that stands.
    let _ = STATE.compare_exchange(UNKNOWN, state, Ordering::Relaxed, Ordering::Relaxed);
    STATE.load(Ordering::Relaxed) == YES
}

/// From now on tiles are used where there are any (`true`), or not at all.
pub(super) fn allow(wanted: bool) {
    STATE.store(if wanted { UNKNOWN } else { NO }, Ordering::Relaxed);
    available();
}

/// What a thread needs to multiply.
#[derive(Default)]
pub(super) struct Scratch {
    columns: Columns,
    /// A block of the result that is not whole, row-major.
    edge: Vec<f32>,
}

/// Where a block of the result goes: rows of numbers, `stride` apart.
pub(super) struct Output {
    pub to: *mut f32,
    pub stride: usize,
}

/// Columns `panel` of the product of the packed `rows` with `w`, transposed, to `output`.
///
/// # Safety
/// `output` must address as many rows as were packed, of `panel.len()` numbers, exclusively; tiles must be [`available`].
pub(super) unsafe fn product(
    rows: &Split,
    w: &Weight,
    panel: Range<usize>,
    output: &Output,
    store: Store,
    scratch: &mut Scratch,
) {
    let count = panel.len();
    let Scratch { columns, edge } = scratch;
    let first_pair = panel.start / PAIR;
    let kept = w.packed().filter(|_| panel.start.is_multiple_of(PAIR));
    let (columns, first_pair) = match kept {
        Some(kept) => (kept, first_pair),
        None => {
            columns.fill(w, panel);
            (&*columns, 0)
        }
    };
    let steps = rows.steps();
    debug_assert_eq!(steps, columns.steps());
    let _tiles = kernel::Tiles::configure();
    for first in (0..steps).step_by(STEPS) {
        let part = first..steps.min(first + STEPS);
        let add = store == Store::Add || first > 0;
        for row in (0..rows.len()).step_by(PAIR) {
            for column in (0..count).step_by(PAIR) {
                let a = rows.pair(row / PAIR, part.clone());
                let b = columns.pair(first_pair + column / PAIR, part.clone());
                let (height, width) = (PAIR.min(rows.len() - row), PAIR.min(count - column));
                // SAFETY: within the block that the caller promises.
                let to = unsafe { output.to.add(row * output.stride + column) };
                if (height, width) == (PAIR, PAIR) {
                    // SAFETY: `to` addresses 32 rows of 32 numbers, and both factors have as many steps.
                    unsafe { kernel::multiply(a, b, part.len(), to, output.stride, add) };
                    continue;
                }
                edge.clear();
                edge.resize(PAIR * PAIR, 0.0);
                for (index, kept) in edge.chunks_exact_mut(PAIR).take(height).enumerate() {
                    // SAFETY: these are numbers of the block.
                    let given = unsafe {
                        std::slice::from_raw_parts_mut(to.add(index * output.stride), width)
                    };
                    if add {
                        kept[..width].copy_from_slice(given);
                    }
                }
                // SAFETY: `edge` is 32 rows of 32 numbers.
                unsafe { kernel::multiply(a, b, part.len(), edge.as_mut_ptr(), PAIR, add) };
                for (index, kept) in edge.chunks_exact(PAIR).take(height).enumerate() {
                    // SAFETY: as above.
                    let given = unsafe {
                        std::slice::from_raw_parts_mut(to.add(index * output.stride), width)
                    };
                    given.copy_from_slice(&kept[..width]);
                }
            }
        }
    }
}

/// Packs `rows` of `x`, `depth` numbers each.
pub(super) fn pack(x: View<'_>, rows: Range<usize>, depth: usize, to: &mut Split) {
    to.rows(x, rows, depth);
}

/// The block of `a b` that pair `pairs.0` of rows of `a` and pair `pairs.1` of columns of `b` make over steps `steps.0` of `a`
/// and as many of `b` from `steps.1` on: 32 rows of 32 numbers in `to`, `stride` apart. With `Store::Add`, onto what is
/// there.
///
/// # Panics
/// When `to` is too short.
pub(in crate::cpu) fn split_product(
    _tiles: &Configured,
    (a, b): (&Split, &Split),
    pairs: (usize, usize),
    steps: (Range<usize>, usize),
    (to, stride): (&mut [f32], usize),
    store: Store,
) {
    let count = steps.0.len();
    assert!(
        count > 0 && stride >= PAIR && to.len() >= (PAIR - 1) * stride + PAIR,
        "block beyond the data"
    );
    let a = a.pair(pairs.0, steps.0);
    let b = b.pair(pairs.1, steps.1..steps.1 + count);
    // SAFETY: tiles are configured; the factors have these steps, `to` is long enough.
    unsafe {
        kernel::multiply_split(a, b, count, to.as_mut_ptr(), stride, store == Store::Add);
    }
}

/// Tiles set up on this thread, until dropped.
pub(in crate::cpu) struct Configured {
    _tiles: kernel::Tiles,
}

impl Configured {
    /// Sets them up; nothing where there are none. At most one at a time on a thread.
    pub fn new() -> Option<Self> {
        available().then(|| Self {
            _tiles: kernel::Tiles::configure(),
        })
    }
}

/// Elements of depth in a step.
pub(in crate::cpu) const DEPTH: usize = pack::STEP;

#[cfg(test)]
mod tests;
