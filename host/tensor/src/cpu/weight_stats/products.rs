//! The inner loops of a sweep: a group of rows times one or two vectors, with its transpose times these products; and the
//! squares and zeros of a group.

use super::lanes::{CHUNK, GROUP};
#[cfg(target_arch = "x86_64")]
use super::simd::x86;
use super::simd::{Plain, Simd};
use crate::cpu::network::lanes::LANES;

/// Elements of a group of rows.
pub(super) trait Element: Sized {
    /// Even and odd columns of a chunk.
    ///
    /// # Safety
    /// That of [`Simd`], and `chunk` must be valid.
    unsafe fn chunk<S: Simd>(chunk: *const [Self; CHUNK]) -> [S::V; 2];
}

/// bf16 as stored.
impl Element for [u8; 2] {
    #[inline(always)]
    unsafe fn chunk<S: Simd>(chunk: *const [Self; CHUNK]) -> [S::V; 2] {
        // SAFETY: a chunk has 64 bytes; the caller answers for the rest.
        unsafe { S::halves(chunk.cast()) }
    }
}

/// f32 in panel order.
impl Element for f32 {
    #[inline(always)]
    unsafe fn chunk<S: Simd>(chunk: *const [Self; CHUNK]) -> [S::V; 2] {
        let chunk = chunk.cast::<f32>();
        // SAFETY: a chunk has two times sixteen numbers; the caller answers for the rest.
        unsafe { [S::load(chunk), S::load(chunk.add(LANES))] }
    }
}

/// The loop.
///
/// # Safety
/// That of `S`; `rows` must have `GROUP * chunks` items, each `v` and `y` at least `chunks`.
#[inline(always)]
#[expect(
    clippy::needless_range_loop,
    reason = "`row` also chooses the weights, through a pointer: the loops are over a tile"
)]
unsafe fn both_ways<S: Simd, E: Element, const T: usize>(
    rows: &[[E; CHUNK]],
    chunks: usize,
    v: [&[[f32; CHUNK]]; T],
    scale: [f32; T],
    y: &mut [&mut [[f32; CHUNK]]; T],
) -> [[f32; GROUP]; T] {
    let rows = rows.as_ptr();
    // SAFETY: `at` and `row` stay below `chunks` and `GROUP`, which the caller has checked; the rest is the caller's word.
    unsafe {
        let mut sums = [[[S::zero(); 2]; GROUP]; T];
        for at in 0..chunks {
            for row in 0..GROUP {
                let w = E::chunk::<S>(rows.add(row * chunks + at));
                for t in 0..T {
                    let v = v[t].as_ptr().add(at).cast::<f32>();
                    sums[t][row][0] = S::mul_add(w[0], S::load(v), sums[t][row][0]);
                    sums[t][row][1] = S::mul_add(w[1], S::load(v.add(LANES)), sums[t][row][1]);
                }
            }
        }
        let mut u = [[0.0; GROUP]; T];
        let mut back = [[S::zero(); GROUP]; T];
        for t in 0..T {
            for row in 0..GROUP {
                u[t][row] = S::total(S::add(sums[t][row][0], sums[t][row][1]));
                back[t][row] = S::splat(u[t][row] * scale[t]);
            }
        }
        for at in 0..chunks {
            let mut sums = [[S::zero(); 2]; T];
            for t in 0..T {
                let y = y[t].as_ptr().add(at).cast::<f32>();
                sums[t] = [S::load(y), S::load(y.add(LANES))];
            }
            for row in 0..GROUP {
                let w = E::chunk::<S>(rows.add(row * chunks + at));
                for t in 0..T {
                    sums[t][0] = S::mul_add(w[0], back[t][row], sums[t][0]);
                    sums[t][1] = S::mul_add(w[1], back[t][row], sums[t][1]);
                }
            }
            for t in 0..T {
                let y = y[t].as_mut_ptr().add(at).cast::<f32>();
                S::store(y, sums[t][0]);
                S::store(y.add(LANES), sums[t][1]);
            }
        }
        u
    }
}

/// The loop of [`census`].
///
/// # Safety
/// That of `S`; `rows` must have `GROUP * chunks` items, `columns` at least `chunks`.
#[inline(always)]
unsafe fn squares<S: Simd, E: Element>(
    rows: &[[E; CHUNK]],
    chunks: usize,
    columns: &mut [[f32; CHUNK]],
) -> [(f32, u32); GROUP] {
    let rows = rows.as_ptr();
    // SAFETY: as in `both_ways`.
    unsafe {
        let mut sums = [[S::zero(); 2]; GROUP];
        let mut zeros = [0; GROUP];
        for at in 0..chunks {
            let column = columns.as_mut_ptr().add(at).cast::<f32>();
            let mut down = [S::load(column), S::load(column.add(LANES))];
            for row in 0..GROUP {
                let w = E::chunk::<S>(rows.add(row * chunks + at));
                zeros[row] += S::zeros(w);
                for half in 0..2 {
                    sums[row][half] = S::mul_add(w[half], w[half], sums[row][half]);
                    down[half] = S::mul_add(w[half], w[half], down[half]);
                }
            }
            S::store(column, down[0]);
            S::store(column.add(LANES), down[1]);
        }
        std::array::from_fn(|row| (S::total(S::add(sums[row][0], sums[row][1])), zeros[row]))
    }
}

/// Sum of squares and zeros of each of `GROUP` rows; the squares of each column are added to `columns`.
pub(super) fn census<E: Element>(
    rows: &[[E; CHUNK]],
    chunks: usize,
    columns: &mut [[f32; CHUNK]],
) -> [(f32, u32); GROUP] {
    assert_eq!(rows.len(), GROUP * chunks);
    assert_eq!(columns.len(), chunks);
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512dq,avx2,fma,popcnt")]
        unsafe fn widest<E: Element>(
            rows: &[[E; CHUNK]],
            chunks: usize,
            columns: &mut [[f32; CHUNK]],
        ) -> [(f32, u32); GROUP] {
            // SAFETY: sizes are the caller's word, and this function has the features.
            unsafe { squares::<x86::Avx512, E>(rows, chunks, columns) }
        }
        #[target_feature(enable = "avx2,fma,popcnt")]
        unsafe fn wide<E: Element>(
            rows: &[[E; CHUNK]],
            chunks: usize,
            columns: &mut [[f32; CHUNK]],
        ) -> [(f32, u32); GROUP] {
            // SAFETY: as above.
            unsafe { squares::<x86::Avx2, E>(rows, chunks, columns) }
        }
        match level() {
            // SAFETY: the processor has the features, and the sizes were checked above.
            Level::Avx512 => return unsafe { widest(rows, chunks, columns) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { wide(rows, chunks, columns) },
            Level::Plain => {}
        }
    }
    // SAFETY: arrays need no features, and the sizes were checked above.
    unsafe { squares::<Plain, E>(rows, chunks, columns) }
}

/// What the processor has.
#[cfg(target_arch = "x86_64")]
enum Level {
    Avx512,
    Avx2,
    Plain,
}

#[cfg(target_arch = "x86_64")]
fn level() -> Level {
    use std::arch::is_x86_feature_detected as has;
    if has!("avx2") && has!("fma") && has!("popcnt") {
        if has!("avx512f") && has!("avx512dq") {
            return Level::Avx512;
        }
        return Level::Avx2;
    }
    Level::Plain
}

/// Products of `GROUP` rows, of `chunks` chunks each, with the vectors `v`; to each `y` is added the rows' transpose times
/// `scale` times the products.
pub(super) fn multiply<E: Element, const T: usize>(
    rows: &[[E; CHUNK]],
    chunks: usize,
    v: [&[[f32; CHUNK]]; T],
    scale: [f32; T],
    y: &mut [&mut [[f32; CHUNK]]; T],
) -> [[f32; GROUP]; T] {
    assert_eq!(rows.len(), GROUP * chunks);
    assert!(v.iter().all(|v| v.len() == chunks) && y.iter().all(|y| y.len() == chunks));
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
        unsafe fn widest<E: Element, const T: usize>(
            rows: &[[E; CHUNK]],
            chunks: usize,
            v: [&[[f32; CHUNK]]; T],
            scale: [f32; T],
            y: &mut [&mut [[f32; CHUNK]]; T],
        ) -> [[f32; GROUP]; T] {
            // SAFETY: sizes are the caller's word, and this function has the features.
            unsafe { both_ways::<x86::Avx512, E, T>(rows, chunks, v, scale, y) }
        }
        #[target_feature(enable = "avx2,fma")]
        unsafe fn wide<E: Element, const T: usize>(
            rows: &[[E; CHUNK]],
            chunks: usize,
            v: [&[[f32; CHUNK]]; T],
            scale: [f32; T],
            y: &mut [&mut [[f32; CHUNK]]; T],
        ) -> [[f32; GROUP]; T] {
            // SAFETY: as above.
            unsafe { both_ways::<x86::Avx2, E, T>(rows, chunks, v, scale, y) }
        }
        match level() {
            // SAFETY: the processor has the features, and the sizes were checked above.
            Level::Avx512 => return unsafe { widest(rows, chunks, v, scale, y) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { wide(rows, chunks, v, scale, y) },
            Level::Plain => {}
        }
    }
    // SAFETY: arrays need no features, and the sizes were checked above.
    unsafe { both_ways::<Plain, E, T>(rows, chunks, v, scale, y) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loop on every level that this processor has.
    fn on_every_level<E: Element, const T: usize>(
        rows: &[[E; CHUNK]],
        v: [&[[f32; CHUNK]]; T],
    ) -> Vec<(Vec<u32>, Vec<u32>)> {
        let chunks = rows.len() / GROUP;
        let run = |level: usize| {
            let mut sums = vec![vec![[0.25f32; CHUNK]; chunks]; T];
            let mut parts = sums.iter_mut();
            let mut y: [&mut [[f32; CHUNK]]; T] =
                std::array::from_fn(|_| parts.next().map_or(&mut [][..], |y| &mut y[..]));
            let scale = [0.5; T];
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2<E: Element, const T: usize>(
                rows: &[[E; CHUNK]],
                chunks: usize,
                v: [&[[f32; CHUNK]]; T],
                scale: [f32; T],
                y: &mut [&mut [[f32; CHUNK]]; T],
            ) -> [[f32; GROUP]; T] {
                // SAFETY: the test's own sizes fit, and this function has the features.
                unsafe { both_ways::<x86::Avx2, E, T>(rows, chunks, v, scale, y) }
            }
            let u = match level {
                0 => multiply(rows, chunks, v, scale, &mut y),
                #[cfg(target_arch = "x86_64")]
                1 if std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma") =>
                {
                    // SAFETY: the processor has the features, and the sizes fit.
                    unsafe { avx2(rows, chunks, v, scale, &mut y) }
                }
                // SAFETY: the sizes fit.
                _ => unsafe { both_ways::<Plain, E, T>(rows, chunks, v, scale, &mut y) },
            };
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
            let sums: Vec<f32> = sums.concat().concat();
            (bits(u.as_flattened()), bits(&sums))
        };
        (0..3).map(run).collect()
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let value = |index: usize| ((index * 7919 + 13) % 1009) as f32 / 300.0 - 1.5;
        let chunk = |at: usize| std::array::from_fn(|lane| value(at * CHUNK + lane));
        let wide: Vec<[f32; CHUNK]> = (0..GROUP * 5).map(chunk).collect();
        let narrow: Vec<[[u8; 2]; CHUNK]> = wide
            .iter()
            .map(|chunk| chunk.map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()))
            .collect();
        let vectors: Vec<[f32; CHUNK]> = (100..110).map(chunk).collect();
        let (a, b) = vectors.split_at(5);
        for results in [
            on_every_level(&wide, [a]),
            on_every_level(&narrow, [a]),
            on_every_level(&wide, [a, b]),
            on_every_level(&narrow, [a, b]),
        ] {
            assert!(results.iter().all(|result| *result == results[0]));
        }
    }

    #[test]
    fn the_census_is_the_same_on_every_level() {
        let value = |index: usize| ((index * 31) % 17) as f32 - 8.0;
        let chunk = |at: usize| std::array::from_fn(|lane| value(at * CHUNK + lane));
        let rows: Vec<[f32; CHUNK]> = (0..GROUP * 3).map(chunk).collect();
        let mut fast = vec![[1.0; CHUNK]; 3];
        let mut slow = fast.clone();
        let found = census(&rows, 3, &mut fast);
        // SAFETY: the sizes fit.
        let expected = unsafe { squares::<Plain, f32>(&rows, 3, &mut slow) };
        assert_eq!((found, fast), (expected, slow));
        for (row, (sum, zeros)) in rows.chunks(3).zip(found) {
            let row = row.as_flattened();
            assert_eq!(sum, row.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(zeros as usize, row.iter().filter(|x| **x == 0.0).count());
        }
    }
}
