//! Panel order, and loops over vectors that the compiler turns into vector instructions.
//!
//! A row of a matrix is handled in chunks of [`CHUNK`] columns, columns `0, 2, 4, ..` of a chunk first and then `1, 3, 5, ..`: so two
//! stored bf16 numbers, which share a 32-bit word, become f32 with one shift and one mask. All vectors over columns are in
//! this *panel order*; the order is the same for every dtype, so that results do not depend on how a matrix is stored.

use crate::cpu::network::lanes::{LANES, total, vectorized};

/// Columns handled together.
pub(super) const CHUNK: usize = 2 * LANES;
/// Rows handled together.
pub(super) const GROUP: usize = 4;

/// Where `column` stands in panel order.
pub(super) fn panel_index(column: usize) -> usize {
    let inside = column % CHUNK;
    column - inside + inside / 2 + (inside % 2) * LANES
}

vectorized! {
    /// f32 to panel order; columns beyond the end are zero.
    pub(super) fn arrange(values: &[f32], out: &mut [[f32; CHUNK]]) {
        for (chunk, out) in values.chunks(CHUNK).zip(out) {
            let mut whole = [0.0; CHUNK];
            whole[..chunk.len()].copy_from_slice(chunk);
            for lane in 0..LANES {
                out[lane] = whole[2 * lane];
                out[LANES + lane] = whole[2 * lane + 1];
            }
        }
    }

    /// Inner product in f32; the sums of blocks of 4096 numbers are added in f64.
    pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
        let mut sum = 0.0f64;
        for (a, b) in a.chunks(4096).zip(b.chunks(4096)) {
            let mut lanes = [[0.0f32; LANES]; 4];
            let (a_blocks, a_rest) = a.as_chunks::<{ 4 * LANES }>();
            let (b_blocks, b_rest) = b.as_chunks::<{ 4 * LANES }>();
            for (a, b) in a_blocks.iter().zip(b_blocks) {
                for part in 0..4 {
                    for lane in 0..LANES {
                        lanes[part][lane] = a[part * LANES + lane].mul_add(b[part * LANES + lane], lanes[part][lane]);
                    }
                }
            }
            let mut joined = [0.0f32; LANES];
            for lane in 0..LANES {
                joined[lane] = (lanes[0][lane] + lanes[1][lane]) + (lanes[2][lane] + lanes[3][lane]);
            }
            let mut rest = 0.0f32;
            for (a, b) in a_rest.iter().zip(b_rest) {
                rest = a.mul_add(*b, rest);
            }
            sum += f64::from(total(joined) + rest);
        }
        sum
    }

    /// `to += factor * from`.
    pub(super) fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.mul_add(factor, *to);
        }
    }

    /// `values *= factor`.
    pub(super) fn scale(values: &mut [f32], factor: f32) {
        for value in values {
            *value *= factor;
        }
    }

    /// How many numbers are zero, and how many are NaN or infinite.
    pub(super) fn counts(values: &[f32]) -> (u32, u32) {
        let (mut zeros, mut bad) = (0, 0);
        for value in values {
            zeros += u32::from(*value == 0.0);
            bad += u32::from(value.to_bits() & 0x7f80_0000 == 0x7f80_0000);
        }
        (zeros, bad)
    }

    /// Sums of `(a - b)^2` and of `b^2`.
    pub(super) fn distance(a: &[f32], b: &[f32]) -> (f64, f64) {
        let mut lanes = [[0.0f32; LANES]; 2];
        let mut sums = [0.0f64; 2];
        for (a, b) in a.chunks(2048).zip(b.chunks(2048)) {
            lanes.as_flattened_mut().fill(0.0);
            let (a_blocks, a_rest) = a.as_chunks::<LANES>();
            let (b_blocks, b_rest) = b.as_chunks::<LANES>();
            for (a, b) in a_blocks.iter().zip(b_blocks) {
                for lane in 0..LANES {
                    let difference = a[lane] - b[lane];
                    lanes[0][lane] = difference.mul_add(difference, lanes[0][lane]);
                    lanes[1][lane] = b[lane].mul_add(b[lane], lanes[1][lane]);
                }
            }
            for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
                let difference = a - b;
                lanes[0][lane] = difference.mul_add(difference, lanes[0][lane]);
                lanes[1][lane] = b.mul_add(*b, lanes[1][lane]);
            }
            sums[0] += f64::from(total(lanes[0]));
            sums[1] += f64::from(total(lanes[1]));
        }
        (sums[0], sums[1])
    }
}
