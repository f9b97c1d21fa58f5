//! Factors in the order in which tiles take them.

use std::ops::Range;

use super::super::{View, Weight};

/// Rows of a tile.
pub(super) const TILE: usize = 16;
/// Elements of depth in a tile.
pub(super) const STEP: usize = 32;
/// bf16 numbers whose sum an f32 number is.
const PARTS: usize = 3;
/// Tiles that are taken together, one under the other or side by side.
const SIDE: usize = 2;

/// A tile: 16 rows of 64 bytes, as 32 bf16 numbers or as 16 pairs of them.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Tile([u32; TILE * STEP / 2]);

const EMPTY: Tile = Tile([0; TILE * STEP / 2]);

/// `buffer` with `len` tiles; what they hold is left open.
fn sized(buffer: &mut Vec<Tile>, len: usize) -> &mut [Tile] {
    if buffer.len() < len {
        buffer.resize(len, EMPTY);
    }
    &mut buffer[..len]
}

/// One factor of f32 numbers, split. By pair of tiles (one under the other, or side by side), then by step of depth, then by
/// part: the two tiles.
#[derive(Default)]
pub(in crate::cpu) struct Split {
    tiles: Vec<Tile>,
    rows: usize,
    steps: usize,
}

impl Split {
    /// How many rows (or columns, of a right factor).
    pub fn len(&self) -> usize {
        self.rows
    }

    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// Makes room for `rows` rows (or columns) of `depth` numbers, and gives the tiles of each pair.
    fn sized(
        &mut self,
        rows: usize,
        depth: usize,
    ) -> std::iter::Enumerate<std::slice::ChunksExactMut<'_, Tile>> {
        self.rows = rows;
        self.steps = depth.div_ceil(STEP);
        let of_pair = (self.steps * PARTS * SIDE).max(1);
        let pairs = rows.div_ceil(SIDE * TILE);
        let tiles = sized(&mut self.tiles, pairs * of_pair);
        tiles.chunks_exact_mut(of_pair).enumerate()
    }

    /// A left factor: `rows` of `x`, `depth` numbers each.
    pub fn rows(&mut self, x: View<'_>, rows: Range<usize>, depth: usize) {
        check(x, &rows, depth);
        for (pair, tiles) in self.sized(rows.len(), depth) {
            for line in 0..SIDE * TILE {
                let row = rows.start + pair * SIDE * TILE + line;
                let numbers = match row < rows.end {
                    true => &x.data[row * x.stride..row * x.stride + depth],
                    false => &[],
                };
                native::split(numbers, &mut tiles[line / TILE..], line % TILE);
            }
        }
    }

    /// A right factor: `rows` of `x` are its columns, `depth` numbers each.
    pub fn rows_as_columns(&mut self, x: View<'_>, rows: Range<usize>, depth: usize) {
        check(x, &rows, depth);
        for (pair, tiles) in self.sized(rows.len(), depth) {
            for side in 0..SIDE {
                let first = rows.start + (pair * SIDE + side) * TILE;
                let lines: [&[f32]; TILE] =
                    std::array::from_fn(|line| match first + line < rows.end {
                        true => &x.data[(first + line) * x.stride..][..depth],
                        false => &[],
                    });
                native::split_transposed(&lines, &mut tiles[side..]);
            }
        }
    }

    /// A right factor as it stands: `rows` of `x` go down its depth, `columns` numbers each.
    pub fn plain(&mut self, x: View<'_>, rows: Range<usize>, columns: usize) {
        check(x, &rows, columns);
        for (pair, tiles) in self.sized(columns, rows.len()) {
            native::interleave(x, &rows, columns, pair, tiles, false);
        }
    }

    /// A left factor whose columns are `rows` of `x`: as [`Split::plain`], transposed.
    pub fn columns_as_rows(&mut self, x: View<'_>, rows: Range<usize>, columns: usize) {
        check(x, &rows, columns);
        for (pair, tiles) in self.sized(columns, rows.len()) {
            native::interleave(x, &rows, columns, pair, tiles, true);
        }
    }

    /// The tiles of a pair for some steps.
    pub(super) fn pair(&self, index: usize, steps: Range<usize>) -> *const Tile {
        let first = (index * self.steps + steps.start) * PARTS * SIDE;
        self.tiles[first..first + steps.len() * PARTS * SIDE].as_ptr()
    }
}

fn check(x: View<'_>, rows: &Range<usize>, width: usize) {
    assert!(
        rows.is_empty() || (width <= x.stride && (rows.end - 1) * x.stride + width <= x.data.len()),
        "rows beyond the data"
    );
}

/// Rows of a matrix of bf16 numbers as columns: in a tile's row stand two neighbours of each of 16 columns. By pair of tiles
/// side by side, then by step of depth: the two tiles.
#[derive(Default)]
pub(in crate::cpu) struct Columns {
    tiles: Vec<Tile>,
    steps: usize,
}

impl Columns {
    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// Takes rows `panel` of `w`, which must hold bf16 numbers.
    pub fn fill(&mut self, w: &Weight, panel: Range<usize>) {
        let depth = w.columns();
        self.steps = depth.div_ceil(STEP);
        let of_pair = self.steps * SIDE;
        let pairs = panel.len().div_ceil(SIDE * TILE);
        let bytes = &w.tensor().bytes()[panel.start * depth * 2..panel.end * depth * 2];
        let rows: Vec<&[u8]> = bytes.chunks_exact(depth * 2).collect();
        let tiles = sized(&mut self.tiles, pairs * of_pair);
        for (tiles, rows) in tiles
            .chunks_exact_mut(of_pair)
            .zip(rows.chunks(SIDE * TILE))
        {
            for side in 0..SIDE {
                let rows = rows.get(side * TILE..).unwrap_or(&[]);
                let rows = &rows[..rows.len().min(TILE)];
                for (step, tile) in tiles.iter_mut().skip(side).step_by(SIDE).enumerate() {
                    native::transpose(rows, step * STEP * 2, tile);
                }
            }
        }
    }

    /// The tiles of a pair for some steps.
    pub(super) fn pair(&self, index: usize, steps: Range<usize>) -> *const Tile {
        let first = (index * self.steps + steps.start) * SIDE;
        self.tiles[first..first + steps.len() * SIDE].as_ptr()
    }
}

#[cfg(target_arch = "x86_64")]
mod native {
    use super::{PARTS, SIDE, STEP, TILE, Tile, View};
    use std::{arch::x86_64::*, ops::Range};

    /// Puts `numbers`, split into parts, into row `line` of every `SIDE`th of `tiles`: step by step, part by part. Beyond
    /// the numbers stand zeros.
    pub fn split(numbers: &[f32], tiles: &mut [Tile], line: usize) {
        // SAFETY: rows are packed only where there are tiles, and tiles are found only where there is AVX-512.
        unsafe { split_avx512(numbers, tiles, line) }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn split_avx512(numbers: &[f32], tiles: &mut [Tile], line: usize) {
        let odd = odd_words();
        for (step, tiles) in tiles.chunks_mut(PARTS * SIDE).enumerate() {
            let (a, b) = (
                load(numbers, step * STEP),
                load(numbers, step * STEP + TILE),
            );
            let (a, b) = (parts(a), parts(b));
            for (part, (a, b)) in a.into_iter().zip(b).enumerate() {
                let both = _mm512_permutex2var_epi16(a, odd, b);
                let row = &mut tiles[part * SIDE].0[line * TILE..(line + 1) * TILE];
                // SAFETY: a row is 64 bytes, aligned as the tile is.
                unsafe { _mm512_store_si512(row.as_mut_ptr().cast(), both) };
            }
        }
    }

    /// The three numbers whose sum a number is, each in the upper half of its lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn parts(x: __m512) -> [__m512i; PARTS] {
        let bits = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let cut = |x: __m512| _mm512_and_si512(_mm512_castps_si512(x), bits);
        let rest = |finite, x, part| _mm512_maskz_sub_ps(finite, x, _mm512_castsi512_ps(part));
        let finite =
            _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(x), _mm512_set1_ps(f32::INFINITY));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let first = cut(x);
        // A NaN stays one when its lower half is cut off.
        let first = _mm512_mask_or_epi32(first, nan, first, _mm512_set1_epi32(0x0040_0000));
        let left = rest(finite, x, first);
        let second = cut(left);
        let third = rest(finite, left, second);
        [first, second, _mm512_castps_si512(third)]
    }

    /// Makes `tile` of 64 bytes of each of `rows` (16 at most) from byte `from` on: pairs of numbers of one row stand one
    /// under the other. Beyond the rows and their ends stand zeros.
    pub fn transpose(rows: &[&[u8]], from: usize, tile: &mut Tile) {
        // SAFETY: as in `split`.
        unsafe { transpose_avx512(rows, from, tile) }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn transpose_avx512(rows: &[&[u8]], from: usize, tile: &mut Tile) {
        let mut r = [_mm512_setzero_si512(); TILE];
        for (r, row) in r.iter_mut().zip(rows) {
            let row = &row[from..];
            let words = (row.len() / 2).min(STEP);
            let mask = ((1u64 << words) - 1) as u32;
            // SAFETY: what is beyond the row is masked.
            *r = unsafe { _mm512_maskz_loadu_epi16(mask, row.as_ptr().cast()) };
        }
        store_transposed(r, tile);
    }

    /// Makes the rows `r` the columns of `tile`, in units of 32 bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn store_transposed(mut r: [__m512i; TILE], tile: &mut Tile) {
        let mut t = [_mm512_setzero_si512(); TILE];
        // Within groups of four rows: pairs, then pairs of pairs.
        for g in (0..TILE).step_by(4) {
            let a = _mm512_unpacklo_epi32(r[g], r[g + 1]);
            let b = _mm512_unpackhi_epi32(r[g], r[g + 1]);
            let c = _mm512_unpacklo_epi32(r[g + 2], r[g + 3]);
            let d = _mm512_unpackhi_epi32(r[g + 2], r[g + 3]);
            t[g] = _mm512_unpacklo_epi64(a, c);
            t[g + 1] = _mm512_unpackhi_epi64(a, c);
            t[g + 2] = _mm512_unpacklo_epi64(b, d);
            t[g + 3] = _mm512_unpackhi_epi64(b, d);
        }
        // Between the groups: quarters of vectors.
        for i in 0..4 {
            r[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[i + 4]);
            r[i + 4] = _mm512_shuffle_i32x4::<0xdd>(t[i], t[i + 4]);
            r[i + 8] = _mm512_shuffle_i32x4::<0x88>(t[i + 8], t[i + 12]);
            r[i + 12] = _mm512_shuffle_i32x4::<0xdd>(t[i + 8], t[i + 12]);
        }
        for i in 0..8 {
            let (low, high) = (
                _mm512_shuffle_i32x4::<0x88>(r[i], r[i + 8]),
                _mm512_shuffle_i32x4::<0xdd>(r[i], r[i + 8]),
            );
            // SAFETY: rows of the tile, 64 bytes each, aligned as the tile is.
            unsafe {
                _mm512_store_si512(tile.0[i * TILE..].as_mut_ptr().cast(), low);
                _mm512_store_si512(tile.0[(i + 8) * TILE..].as_mut_ptr().cast(), high);
            }
        }
    }

    /// Which words of two vectors are the upper halves of their lanes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn odd_words() -> __m512i {
        const ODD: [u16; STEP] = {
            let mut words = [0; STEP];
            let mut index = 0;
            while index < STEP {
                words[index] = 2 * index as u16 + 1;
                index += 1;
            }
            words
        };
        // SAFETY: 64 bytes.
        unsafe { _mm512_loadu_si512(ODD.as_ptr().cast()) }
    }

    /// Numbers from `begin` on, 16 at most; zeros beyond the end.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn load(numbers: &[f32], begin: usize) -> __m512 {
        let numbers = numbers.get(begin..).unwrap_or(&[]);
        let mask = ((1u32 << numbers.len().min(TILE)) - 1) as __mmask16;
        // SAFETY: what is beyond the numbers is masked.
        unsafe { _mm512_maskz_loadu_ps(mask, numbers.as_ptr()) }
    }

    /// Makes `lines`, split, the columns of every `SIDE`th of `tiles`: step by step, part by part.
    pub fn split_transposed(lines: &[&[f32]; TILE], tiles: &mut [Tile]) {
        // SAFETY: as in `split`.
        unsafe { split_transposed_avx512(lines, tiles) }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn split_transposed_avx512(lines: &[&[f32]; TILE], tiles: &mut [Tile]) {
        let odd = odd_words();
        for (step, tiles) in tiles.chunks_mut(PARTS * SIDE).enumerate() {
            let mut r = [[_mm512_setzero_si512(); TILE]; PARTS];
            for (index, line) in lines.iter().enumerate() {
                let (a, b) = (load(line, step * STEP), load(line, step * STEP + TILE));
                let both = parts(a).into_iter().zip(parts(b));
                for (r, (a, b)) in r.iter_mut().zip(both) {
                    r[index] = _mm512_permutex2var_epi16(a, odd, b);
                }
            }
            for (r, tile) in r.into_iter().zip(tiles.iter_mut().step_by(SIDE)) {
                store_transposed(r, tile);
            }
        }
    }

    /// Fills the tiles of pair `pair` with `rows` of `x`, split, `columns` numbers each: in a row of a tile stand, for 16
    /// columns, the numbers of two rows; or, `transposed`, in its columns.
    pub fn interleave(
        x: View<'_>,
        rows: &Range<usize>,
        columns: usize,
        pair: usize,
        tiles: &mut [Tile],
        transposed: bool,
    ) {
        // SAFETY: as in `split`.
        unsafe { interleave_avx512(x, rows, columns, pair, tiles, transposed) }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn interleave_avx512(
        x: View<'_>,
        rows: &Range<usize>,
        columns: usize,
        pair: usize,
        tiles: &mut [Tile],
        transposed: bool,
    ) {
        for (step, tiles) in tiles.chunks_mut(PARTS * SIDE).enumerate() {
            for side in 0..SIDE {
                let begin = (pair * SIDE + side) * TILE;
                let mut r = [[_mm512_setzero_si512(); TILE]; PARTS];
                for index in 0..TILE {
                    let row = |offset: usize| {
                        let row = rows.start + step * STEP + 2 * index + offset;
                        match row < rows.end {
                            true => &x.data[row * x.stride..row * x.stride + columns],
                            false => &[],
                        }
                    };
                    let (a, b) = (parts(load(row(0), begin)), parts(load(row(1), begin)));
                    for (r, (a, b)) in r.iter_mut().zip(a.into_iter().zip(b)) {
                        r[index] = _mm512_or_si512(_mm512_srli_epi32::<16>(a), b);
                    }
                }
                for (r, tile) in r.into_iter().zip(tiles.iter_mut().skip(side).step_by(SIDE)) {
                    if transposed {
                        store_transposed(r, tile);
                        continue;
                    }
                    for (line, r) in tile.0.as_chunks_mut::<TILE>().0.iter_mut().zip(r) {
                        // SAFETY: a row is 64 bytes, aligned as the tile is.
                        unsafe { _mm512_store_si512(line.as_mut_ptr().cast(), r) };
                    }
                }
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod native {
    //! Never called: there are no tiles.
    use super::{TILE, Tile, View};
    use std::ops::Range;

    pub fn split(_: &[f32], _: &mut [Tile], _: usize) {}

    pub fn split_transposed(_: &[&[f32]; TILE], _: &mut [Tile]) {}

    pub fn interleave(_: View<'_>, _: &Range<usize>, _: usize, _: usize, _: &mut [Tile], _: bool) {}

    pub fn transpose(_: &[&[u8]], _: usize, _: &mut Tile) {}
}
