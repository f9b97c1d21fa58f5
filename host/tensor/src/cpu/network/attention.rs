//! Causal attention with grouped keys and values and an optional sliding window, in blocks (Dao et al., 2022): at most
//! [`QUERIES`] x [`KEYS`] scores exist at a time, for one head.

use std::cell::RefCell;

use super::lanes::{LANES, exp, larger, largest, padded, total, vectorized};
use crate::cpu::matmul::{Spread, Store, View, ViewMut, small_product};

/// Queries per block.
pub const QUERIES: usize = 64;
/// Keys per block.
pub const KEYS: usize = 512;

/// What an attention layer looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; divides `queries`.
    pub keys: usize,
    /// Elements per head.
    pub dim: usize,
    /// A token sees itself and so many tokens less one before it; all of them when `None`.
    pub window: Option<usize>,
}

impl Heads {
    /// Length of a row that holds all queries, then all keys, then all values.
    pub fn row(&self) -> usize {
        (self.queries + 2 * self.keys) * self.dim
    }
}

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Attention within each of `windows` (ranges of rows of `qkv`). Queries must be scaled and queries and keys turned to
/// their positions already. `out` takes `queries * dim` numbers per row.
///
/// # Panics
/// When a window lies outside the rows.
pub fn attend(
    heads: &Heads,
    qkv: &[f32],
    windows: &[std::ops::Range<usize>],
    out: &mut [f32],
    spread: Spread,
) {
    let width = heads.queries * heads.dim;
    let out = ViewMut::new(out, width);
    spread.each(windows.len() * heads.keys, |index| {
        let (window, key) = (&windows[index / heads.keys], index % heads.keys);
        let rows = &qkv[window.start * heads.row()..window.end * heads.row()];
        SCORES.with_borrow_mut(|scores| {
            scores.resize(QUERIES * (KEYS + heads.dim), 0.0);
            let group = heads.queries / heads.keys;
            for query in key * group..(key + 1) * group {
                one_head(heads, rows, query, key, scores, |row| {
                    // SAFETY: this task is the only one for this window and this head.
                    unsafe {
                        out.row_part(
                            window.start + row,
                            query * heads.dim..(query + 1) * heads.dim,
                        )
                    }
                });
            }
        });
    });
}

/// One head over one window.
fn one_head<'a>(
    heads: &Heads,
    rows: &[f32],
    query: usize,
    key: usize,
    scratch: &mut [f32],
    mut out: impl FnMut(usize) -> &'a mut [f32],
) {
    let (dim, stride) = (heads.dim, heads.row());
    let len = rows.len() / stride;
    let reach = heads.window.unwrap_or(len).max(1);
    let (scores, sums) = scratch.split_at_mut(QUERIES * KEYS);
    let keys_at = (heads.queries + key) * dim;
    let values_at = (heads.queries + heads.keys + key) * dim;
    for first in (0..len).step_by(QUERIES) {
        let count = QUERIES.min(len - first);
        let mut state = [State {
            max: f32::NEG_INFINITY,
            sum: 0.0,
        }; QUERIES];
        let mut from = (first + 1).saturating_sub(reach);
        let mut store = Store::Replace;
        while from < first + count {
            let width = KEYS.min(first + count - from);
            let queries = View {
                data: &rows[first * stride + query * dim..],
                rows: count,
                stride,
            };
            let keys = View {
                data: &rows[from * stride + keys_at..],
                rows: width,
                stride,
            };
            small_product(
                queries,
                keys,
                true,
                dim,
                scores,
                width,
                width,
                Store::Replace,
            );
            for (row, scores) in scores.chunks_exact_mut(width).take(count).enumerate() {
                let position = first + row;
                let seen = (position + 1).saturating_sub(from).min(width);
                let skipped = (position + 1)
                    .saturating_sub(reach)
                    .saturating_sub(from)
                    .min(seen);
                let factor = weigh(scores, skipped, seen, &mut state[row]);
                if store == Store::Add && factor != 1.0 {
                    super::elementwise::scale(&mut sums[row * dim..(row + 1) * dim], factor);
                }
            }
            let values = View {
                data: &rows[from * stride + values_at..],
                rows: width,
                stride,
            };
            let weights = View {
                data: scores,
                rows: count,
                stride: width,
            };
            small_product(weights, values, false, width, sums, dim, dim, store);
            store = Store::Add;
            from += width;
        }
        for (row, state) in state[..count].iter().enumerate() {
            divide(
                &sums[row * dim..(row + 1) * dim],
                state.sum,
                out(first + row),
            );
        }
    }
}

/// Running softmax of one query: largest score so far, and the sum of `e^(score - max)`.
#[derive(Debug, Clone, Copy)]
struct State {
    max: f32,
    sum: f32,
}

vectorized! {
    /// Turns the scores `skipped..seen` into weights relative to the largest score so far and all others into zeros.
    /// Returns by what the sums so far must be multiplied.
    fn weigh(scores: &mut [f32], skipped: usize, seen: usize, state: &mut State) -> f32 {
        let (scores, unseen) = scores.split_at_mut(seen);
        unseen.fill(0.0);
        let (before, scores) = scores.split_at_mut(skipped);
        before.fill(0.0);
        if scores.is_empty() {
            return 1.0;
        }
        let max = larger(state.max, largest(scores));
        let mut sums = [0.0; LANES];
        let mut blocks = scores.chunks_exact_mut(LANES);
        for block in &mut blocks {
            for lane in 0..LANES {
                block[lane] = exp(block[lane] - max);
                sums[lane] += block[lane];
            }
        }
        let rest = blocks.into_remainder();
        let mut block = padded(rest, f32::NEG_INFINITY);
        for lane in 0..LANES {
            block[lane] = if lane < rest.len() { exp(block[lane] - max) } else { 0.0 };
            sums[lane] += block[lane];
        }
        rest.copy_from_slice(&block[..rest.len()]);
        let factor = if state.max == max { 1.0 } else { exp(state.max - max) };
        state.sum = state.sum.mul_add(factor, total(sums));
        state.max = max;
        factor
    }

    /// `out = sums / sum`.
    fn divide(sums: &[f32], sum: f32, out: &mut [f32]) {
        let factor = 1.0 / sum;
        for (out, &value) in out.iter_mut().zip(sums) {
            *out = value * factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attention as its definition has it, in f64.
    fn plain(heads: &Heads, qkv: &[f32], window: std::ops::Range<usize>, out: &mut [f64]) {
        let (stride, dim) = (heads.row(), heads.dim);
        let at = |row: usize, head: usize| {
            qkv[row * stride + head * dim..row * stride + (head + 1) * dim]
                .iter()
                .map(|&v| f64::from(v))
        };
        for head in 0..heads.queries {
            let group = head / (heads.queries / heads.keys);
            for row in window.clone() {
                let start = heads.window.map_or(window.start, |w| {
                    window.start.max((row + 1).saturating_sub(w))
                });
                let scores: Vec<f64> = (start..=row)
                    .map(|other| {
                        at(row, head)
                            .zip(at(other, heads.queries + group))
                            .map(|(a, b)| a * b)
                            .sum()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                for element in 0..dim {
                    out[row * heads.queries * dim + head * dim + element] = (start..=row)
                        .zip(&scores)
                        .map(|(other, score)| {
                            let value = qkv[other * stride
                                + (heads.queries + heads.keys + group) * dim
                                + element];
                            (score - max).exp() / total * f64::from(value)
                        })
                        .sum();
                }
            }
        }
    }

    #[test]
    fn blocks_give_what_the_definition_gives() {
        for (heads, windows) in [
            (
                Heads {
                    queries: 4,
                    keys: 2,
                    dim: 8,
                    window: None,
                },
                vec![0..1, 1..3, 3..70, 70..220],
            ),
            (
                Heads {
                    queries: 2,
                    keys: 2,
                    dim: 16,
                    window: Some(32),
                },
                vec![0..129, 129..140],
            ),
            (
                Heads {
                    queries: 3,
                    keys: 1,
                    dim: 4,
                    window: Some(1),
                },
                vec![0..66],
            ),
            (
                Heads {
                    queries: 1,
                    keys: 1,
                    dim: 8,
                    window: None,
                },
                vec![0..700],
            ),
            (
                Heads {
                    queries: 1,
                    keys: 1,
                    dim: 8,
                    window: Some(600),
                },
                vec![0..1300],
            ),
        ] {
            let rows = windows[windows.len() - 1].end;
            let qkv: Vec<f32> = (0..rows * heads.row())
                .map(|i| ((i * 7919 % 10_007) as f32 / 5003.5 - 1.0) * 1.5)
                .collect();
            let mut expected = vec![0.0f64; rows * heads.queries * heads.dim];
            for window in &windows {
                plain(&heads, &qkv, window.clone(), &mut expected);
            }
            let mut out = vec![f32::NAN; expected.len()];
            attend(&heads, &qkv, &windows, &mut out, Spread::Here);
            for (index, (a, b)) in out.iter().zip(&expected).enumerate() {
                assert!(
                    (f64::from(*a) - b).abs() < 2e-5,
                    "{heads:?} {index}: {a} {b}"
                );
            }
            let mut spread = vec![0.0; out.len()];
            attend(&heads, &qkv, &windows, &mut spread, Spread::Pool);
            assert_eq!(out, spread);
        }
    }
}
