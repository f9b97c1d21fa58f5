//! The kernel machine: runs one routine over a tile, a block of vectors at a time.
//!
//! A routine is a chain of steps on one accumulator. The accumulator is a block of vectors that stay in registers from step
//! to step; the other operand of a step comes from memory in the first-level cache (another value of the block) or is one
//! number per vector. Choosing the next step costs a jump per block, which the processor predicts, because the same few
//! steps repeat; so any chain runs at nearly the speed of one written by hand, and no combination of steps is special.

use super::{
    lanes::{LANES, Lanes},
    ops,
};
use crate::{DType, cast};

/// Memory is laid out so that a routine may always work on this many vectors at a time.
pub(super) const BLOCK: usize = 8;

/// How far ahead of the elements that are loaded the next ones are asked for: about a tile, so that a tile's first phase
/// finds its elements in the cache.
const AHEAD: usize = 8192;

/// Index of a [`Place`].
pub(super) type PlaceId = u16;

/// Where an operand lies and how far it moves per vector. Filled in for each tile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Of the first vector of the tile.
    pub base: *mut u8,
    /// Bytes per vector: 0 for values of the current block and for numbers that hold for the whole tensor.
    pub advance: usize,
}

/// One step. `a` and `b` name places, or a reduction for the steps that reduce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub code: Code,
    pub a: PlaceId,
    pub b: PlaceId,
}

/// Accumulators of one reduction: sixteen per group, so that lanes meet only at the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lanewise {
    /// f32 for extremes, f64 for sums; sixteen per group, or one per column for reductions over columns.
    pub base: *mut u8,
    /// The group of each vector of the tile, counted from the first that `base` has.
    pub groups: *const u32,
}

/// What a routine works on.
pub(super) struct Tile<'a> {
    pub places: &'a [Place],
    pub reductions: &'a [Lanewise],
    /// How many lanes of each vector hold elements; null where all do.
    pub valid: *const u8,
    /// The column of the first element of each vector, where the program looks at columns.
    pub columns: *const u32,
    /// Vectors in the tile.
    pub vectors: usize,
    /// Whether the result goes past the caches: a large one, at an address aligned to 64 bytes. Who does so has to fence.
    pub stream: bool,
    /// Dtypes that take the slow road of [`cast`], by place.
    pub dtypes: &'a [DType],
}

/// Repeats a body for each vector of a block with a constant index. A loop would be unrolled too late: only with constants
/// from the start does the compiler see that the block can stay in registers.
macro_rules! each {
    ($k:expr, $j:ident, $body:block) => {
        each!(@ $k, $j, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $k:expr, $j:ident, $body:block, $($index:literal)*) => {
        $(
            if $k > $index {
                #[allow(non_upper_case_globals, reason = "stands for a loop variable")]
                const $j: usize = $index;
                $body
            }
        )*
    };
}

/// The same for every other vector.
macro_rules! pairs {
    ($k:expr, $j:ident, $body:block) => {
        each!(@ $k, $j, $body, 0 2 4 6)
    };
}

/// Stores a block, past the caches where the tile says so.
macro_rules! stored {
    ($stream:expr, $each:ident, $k:expr, $j:ident, $store:expr, $past:expr, ($($argument:expr),*)) => {
        if $stream {
            $each!($k, $j, { $past($($argument),*); });
        } else {
            $each!($k, $j, { $store($($argument),*); });
        }
    };
}

macro_rules! machine {
    (
        binary { $($with_block:ident $with_number:ident = $binary:ident;)* }
        number { $($only_number:ident = $limit:ident;)* }
        unary { $($unary:ident = $function:expr;)* }
    ) => {
        /// What a step does. The accumulator is the first operand and the result.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Code {
            $(
                /// With a block of values.
                $with_block,
                /// With one number per vector.
                $with_number,
            )*
            $(
                /// With one number per vector.
                $only_number,
            )*
            $($unary,)*
            /// Accumulator from a block of values.
            Get,
            /// Accumulator from one number per vector.
            Spread,
            /// Accumulator to a block of values.
            Put,
            /// Accumulator from one value per column.
            GetColumns,
            LoadBf16,
            LoadF32,
            LoadF16,
            /// Any other dtype, by [`cast::decode`].
            LoadOther,
            /// Upper halves of the accumulator.
            StoreBf16,
            /// Rounds to bf16 and stores.
            StoreBf16Rounded,
            StoreF32,
            StoreF16,
            StoreOther,
            /// Accumulator is the condition; both others are blocks (B) or numbers (N).
            SelectBB,
            SelectBN,
            SelectNB,
            SelectNN,
            ReduceMax,
            ReduceMin,
            ReduceAbsMax,
            ReduceSum,
            ReduceSquares,
            /// The sum of values that are 0 or 1.
            ReduceTruth,
            /// The same for spans over columns.
            ColumnMax,
            ColumnMin,
            ColumnAbsMax,
            ColumnSum,
            ColumnSquares,
        }

        /// Runs `steps` over `tile`, `K` vectors at a time.
        ///
        /// # Safety
        /// The contract of [`Lanes`]. `K` divides [`BLOCK`]. Every place named by a step is valid for the tile's vectors
        /// rounded up to a multiple of [`BLOCK`], and for its kind: blocks and columns f32, numbers f32, tensors their
        /// dtype. Reductions have accumulators for every group that `groups` names.
        #[inline(always)]
        pub(super) unsafe fn run<L: Lanes, const K: usize>(steps: &[Step], tile: &Tile<'_>) {
            // SAFETY: the caller's contract covers every access below: block `first..first + K` lies within the vectors
            // rounded up, and step operands are places of the right kind (proved by the planner, which makes both).
            unsafe {
                let mut acc: [L::V; K] = [L::splat(0.0); K];
                let mut first = 0;
                while first < tile.vectors {
                    for step in steps {
                        let place = |id: PlaceId| {
                            let place = tile.places.get_unchecked(usize::from(id));
                            place.base.add(first * place.advance)
                        };
                        macro_rules! block {
                            ($p:expr, $j:expr) => { L::load($p.cast::<f32>().add($j * LANES)) };
                        }
                        macro_rules! number {
                            ($p:expr, $j:expr) => { L::splat(*$p.cast::<f32>().add($j)) };
                        }
                        match step.code {
                            $(
                                Code::$with_block => {
                                    let p = place(step.a);
                                    each!(K, j, { acc[j] = $binary::<L>(acc[j], block!(p, j)); });
                                }
                                Code::$with_number => {
                                    let p = place(step.a);
                                    each!(K, j, { acc[j] = $binary::<L>(acc[j], number!(p, j)); });
                                }
                            )*
                            $(
                                Code::$only_number => {
                                    let p = place(step.a);
                                    each!(K, j, { acc[j] = $limit::<L>(acc[j], number!(p, j)); });
                                }
                            )*
                            $(
                                Code::$unary => {
                                    each!(K, j, { acc[j] = $function(acc[j]); });
                                }
                            )*
                            Code::Get => {
                                let p = place(step.a);
                                each!(K, j, { acc[j] = block!(p, j); });
                            }
                            Code::Spread => {
                                let p = place(step.a);
                                each!(K, j, { acc[j] = number!(p, j); });
                            }
                            Code::Put => {
                                let p = place(step.a).cast::<f32>();
                                each!(K, j, { L::store(p.add(j * LANES), acc[j]); });
                            }
                            Code::GetColumns => {
                                let p = tile.places.get_unchecked(usize::from(step.a)).base.cast::<f32>();
                                each!(K, j, { acc[j] = L::load(p.add(*tile.columns.add(first + j) as usize)); });
                            }
                            Code::LoadBf16 => {
                                let p = place(step.a).cast::<u16>();
                                pairs!(K, j, { L::prefetch(p.wrapping_add(j * LANES).cast::<u8>().wrapping_add(AHEAD)) });
                                each!(K, j, { acc[j] = L::load_bf16(p.add(j * LANES)); });
                            }
                            Code::LoadF32 => {
                                let p = place(step.a).cast::<f32>();
                                each!(K, j, {
                                    L::prefetch(p.wrapping_add(j * LANES).cast::<u8>().wrapping_add(AHEAD));
                                    acc[j] = ops::canonical::<L>(L::load(p.add(j * LANES)));
                                });
                            }
                            Code::LoadF16 => {
                                let p = place(step.a).cast::<u16>();
                                each!(K, j, { acc[j] = ops::canonical::<L>(L::load_f16(p.add(j * LANES))); });
                            }
                            Code::LoadOther => {
                                let dtype = *tile.dtypes.get_unchecked(usize::from(step.a));
                                let p = place(step.a);
                                each!(K, j, { acc[j] = load_other::<L>(dtype, p.add(j * LANES * dtype.size())); });
                            }
                            Code::StoreBf16 => {
                                let p = place(step.a).cast::<u16>();
                                stored!(tile.stream, pairs, K, j, L::store_bf16x2, L::stream_bf16x2, (p.add(j * LANES), acc[j], acc[j + 1]));
                            }
                            Code::StoreBf16Rounded => {
                                let p = place(step.a).cast::<u16>();
                                each!(K, j, { acc[j] = ops::nearest_upper_half::<L>(acc[j]); });
                                stored!(tile.stream, pairs, K, j, L::store_bf16x2, L::stream_bf16x2, (p.add(j * LANES), acc[j], acc[j + 1]));
                            }
                            Code::StoreF32 => {
                                let p = place(step.a).cast::<f32>();
                                each!(K, j, { acc[j] = ops::canonical::<L>(acc[j]); });
                                stored!(tile.stream, each, K, j, L::store, L::stream, (p.add(j * LANES), acc[j]));
                            }
                            Code::StoreF16 => {
                                let p = place(step.a).cast::<u16>();
                                stored!(tile.stream, each, K, j, L::store_f16, L::stream_f16, (p.add(j * LANES), acc[j]));
                            }
                            Code::StoreOther => {
                                let dtype = *tile.dtypes.get_unchecked(usize::from(step.a));
                                let p = place(step.a);
                                each!(K, j, { store_other::<L>(dtype, p.add(j * LANES * dtype.size()), acc[j]); });
                            }
                            Code::SelectBB => {
                                let (p, q) = (place(step.a), place(step.b));
                                each!(K, j, { acc[j] = ops::select::<L>(acc[j], block!(p, j), block!(q, j)); });
                            }
                            Code::SelectBN => {
                                let (p, q) = (place(step.a), place(step.b));
                                each!(K, j, { acc[j] = ops::select::<L>(acc[j], block!(p, j), number!(q, j)); });
                            }
                            Code::SelectNB => {
                                let (p, q) = (place(step.a), place(step.b));
                                each!(K, j, { acc[j] = ops::select::<L>(acc[j], number!(p, j), block!(q, j)); });
                            }
                            Code::SelectNN => {
                                let (p, q) = (place(step.a), place(step.b));
                                each!(K, j, { acc[j] = ops::select::<L>(acc[j], number!(p, j), number!(q, j)); });
                            }
                            Code::ReduceMax => reduce::<L, K>(tile, step.a, first, &acc, f32::NEG_INFINITY, |a, b| ops::max::<L>(a, b)),
                            Code::ReduceMin => reduce::<L, K>(tile, step.a, first, &acc, f32::INFINITY, |a, b| ops::min::<L>(a, b)),
                            Code::ReduceAbsMax => {
                                reduce::<L, K>(tile, step.a, first, &acc, 0.0, |a, b| L::max_bits(a, ops::abs::<L>(b)));
                            }
                            Code::ReduceSum => reduce_sum::<L, K>(tile, step.a, first, &acc, |sums, v| L::add_wide(sums, v)),
                            Code::ReduceSquares => reduce_sum::<L, K>(tile, step.a, first, &acc, |sums, v| L::add_squares(sums, v)),
                            Code::ReduceTruth => reduce_truth::<L, K>(tile, step.a, first, &acc),
                            Code::ColumnMax => column::<L, K>(tile, step.a, first, &acc, |a, b| ops::max::<L>(a, b)),
                            Code::ColumnMin => column::<L, K>(tile, step.a, first, &acc, |a, b| ops::min::<L>(a, b)),
                            Code::ColumnAbsMax => {
                                column::<L, K>(tile, step.a, first, &acc, |a, b| L::max_bits(a, ops::abs::<L>(b)));
                            }
                            Code::ColumnSum => column_sum::<L, K>(tile, step.a, first, &acc, |sums, v| L::add_wide(sums, v)),
                            Code::ColumnSquares => column_sum::<L, K>(tile, step.a, first, &acc, |sums, v| L::add_squares(sums, v)),
                        }
                    }
                    first += K;
                }
            }
        }
    };
}

use ops::{copy_sign, eq, ge, gt, le, lower, lt, max, min, ne, raise, rcopy_sign, rdiv, rsub};

/// Wrappers that give the plain instructions the shape of the others.
macro_rules! plain {
    ($($name:ident)*) => {
        $(
            #[inline(always)]
            unsafe fn $name<L: Lanes>(a: L::V, b: L::V) -> L::V {
                // SAFETY: the contract of `Lanes`, which the caller keeps.
                unsafe { L::$name(a, b) }
            }
        )*
    };
}
plain! { add sub mul div }

machine! {
    binary {
        AddB AddN = add;
        SubB SubN = sub;
        RsubB RsubN = rsub;
        MulB MulN = mul;
        DivB DivN = div;
        RdivB RdivN = rdiv;
        MinB MinN = min;
        MaxB MaxN = max;
        LtB LtN = lt;
        GtB GtN = gt;
        LeB LeN = le;
        GeB GeN = ge;
        EqB EqN = eq;
        NeB NeN = ne;
        CopySignB CopySignN = copy_sign;
        RcopySignB RcopySignN = rcopy_sign;
    }
    number {
        LowerN = lower;
        RaiseN = raise;
    }
    unary {
        Neg = ops::neg::<L>;
        Abs = ops::abs::<L>;
        Sqrt = L::sqrt;
        Exp2 = ops::exp2::<L>;
        Log2 = ops::log2::<L>;
        Nearest = L::nearest;
        HalfAway = ops::half_away::<L>;
        Floor = L::floor;
        Ceil = L::ceil;
        Trunc = L::trunc;
        IsFinite = ops::is_finite::<L>;
        ToBf16 = ops::to_bf16::<L>;
        ToBf16Saturating = ops::to_bf16_saturating::<L>;
        ToF16 = ops::to_f16::<L>;
        ToF16Saturating = ops::to_f16_saturating::<L>;
        ToE4m3 = ops::to_e4m3::<L>;
        ToE4m3Saturating = ops::to_e4m3_saturating::<L>;
        ToE5m2 = ops::to_e5m2::<L>;
        ToE5m2Saturating = ops::to_e5m2_saturating::<L>;
    }
}

/// Sixteen elements of a dtype that has no vector code.
///
/// # Safety
/// `p` is valid for sixteen elements.
#[inline(never)]
unsafe fn load_other<L: Lanes>(dtype: DType, p: *const u8) -> L::V {
    let mut values = [0.0f32; LANES];
    // SAFETY: the caller's contract.
    unsafe {
        cast::decode(
            dtype,
            std::slice::from_raw_parts(p, LANES * dtype.size()),
            &mut values,
        );
        values = values.map(cast::canonical);
        L::load(values.as_ptr())
    }
}

/// Stores sixteen numbers that the dtype can hold.
///
/// # Safety
/// `p` is valid for sixteen elements.
#[inline(never)]
unsafe fn store_other<L: Lanes>(dtype: DType, p: *mut u8, v: L::V) {
    let mut values = [0.0f32; LANES];
    // SAFETY: the caller's contract.
    unsafe {
        L::store(values.as_mut_ptr(), v);
        let bytes = std::slice::from_raw_parts_mut(p, LANES * dtype.size());
        let stored = cast::encode(dtype, false, &values, bytes);
        debug_assert!(stored.is_ok());
    }
}

/// Joins a block into the accumulators of its groups. Only for extremes, where the order does not matter.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn reduce<L: Lanes, const K: usize>(
    tile: &Tile<'_>,
    reduction: u16,
    first: usize,
    acc: &[L::V; K],
    neutral: f32,
    join: impl Fn(L::V, L::V) -> L::V,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let Lanewise { base, groups } = *tile.reductions.get_unchecked(usize::from(reduction));
        let at = |group: u32| base.cast::<f32>().add(group as usize * LANES);
        let groups = groups.add(first);
        if tile.valid.is_null() && *groups == *groups.add(K - 1) {
            let p = at(*groups);
            let mut sum = L::load(p);
            each!(K, j, {
                sum = join(sum, acc[j]);
            });
            L::store(p, sum);
            return;
        }
        each!(K, j, {
            if first + j < tile.vectors {
                let mut v = acc[j];
                if !tile.valid.is_null() {
                    let valid = L::first(usize::from(*tile.valid.add(first + j)));
                    v = L::choose(valid, v, L::splat(neutral));
                }
                let p = at(*groups.add(j));
                L::store(p, join(L::load(p), v));
            }
        });
    }
}

/// Adds a block to the accumulators of its groups, in f64, vector by vector, so that the order does not depend on `K`.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn reduce_sum<L: Lanes, const K: usize>(
    tile: &Tile<'_>,
    reduction: u16,
    first: usize,
    acc: &[L::V; K],
    add: impl Fn(L::W, L::V) -> L::W,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let Lanewise { base, groups } = *tile.reductions.get_unchecked(usize::from(reduction));
        let at = |group: u32| base.cast::<f64>().add(group as usize * LANES);
        let groups = groups.add(first);
        if tile.valid.is_null() && *groups == *groups.add(K - 1) {
            let p = at(*groups);
            let mut sums = L::load_wide(p);
            each!(K, j, {
                sums = add(sums, acc[j]);
            });
            L::store_wide(p, sums);
            return;
        }
        each!(K, j, {
            if first + j < tile.vectors {
                let p = at(*groups.add(j));
                let v = valid_or_zero::<L>(tile, first + j, acc[j]);
                L::store_wide(p, add(L::load_wide(p), v));
            }
        });
    }
}

/// As [`reduce_sum`] for zeros and ones: the few of a block add up exactly in f32, in any order.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn reduce_truth<L: Lanes, const K: usize>(
    tile: &Tile<'_>,
    reduction: u16,
    first: usize,
    acc: &[L::V; K],
) {
    // SAFETY: the caller's contract.
    unsafe {
        let Lanewise { base, groups } = *tile.reductions.get_unchecked(usize::from(reduction));
        let groups = groups.add(first);
        if tile.valid.is_null() && *groups == *groups.add(K - 1) {
            let p = base.cast::<f64>().add(*groups as usize * LANES);
            let mut count = L::splat(0.0);
            each!(K, j, {
                count = L::add(count, acc[j]);
            });
            L::store_wide(p, L::add_wide(L::load_wide(p), count));
            return;
        }
        reduce_sum::<L, K>(tile, reduction, first, acc, |sums, v| L::add_wide(sums, v));
    }
}

/// The vector with zeros in lanes that hold no element.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn valid_or_zero<L: Lanes>(tile: &Tile<'_>, vector: usize, v: L::V) -> L::V {
    // SAFETY: the caller's contract.
    unsafe {
        if tile.valid.is_null() {
            return v;
        }
        let valid = L::first(usize::from(*tile.valid.add(vector)));
        L::choose(valid, v, L::splat(0.0))
    }
}

/// Joins a block into one accumulator per column.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn column<L: Lanes, const K: usize>(
    tile: &Tile<'_>,
    reduction: u16,
    first: usize,
    acc: &[L::V; K],
    join: impl Fn(L::V, L::V) -> L::V,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let base = tile
            .reductions
            .get_unchecked(usize::from(reduction))
            .base
            .cast::<f32>();
        each!(K, j, {
            if first + j < tile.vectors {
                let p = base.add(*tile.columns.add(first + j) as usize);
                let old = L::load(p);
                let valid = if tile.valid.is_null() {
                    LANES
                } else {
                    usize::from(*tile.valid.add(first + j))
                };
                L::store(p, L::choose(L::first(valid), join(old, acc[j]), old));
            }
        });
    }
}

/// Adds a block to one f64 per column.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn column_sum<L: Lanes, const K: usize>(
    tile: &Tile<'_>,
    reduction: u16,
    first: usize,
    acc: &[L::V; K],
    add: impl Fn(L::W, L::V) -> L::W,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let base = tile
            .reductions
            .get_unchecked(usize::from(reduction))
            .base
            .cast::<f64>();
        each!(K, j, {
            if first + j < tile.vectors {
                let p = base.add(*tile.columns.add(first + j) as usize);
                let v = valid_or_zero::<L>(tile, first + j, acc[j]);
                L::store_wide(p, add(L::load_wide(p), v));
            }
        });
    }
}
