//! Causal attention with grouped keys and values and an optional sliding window, in blocks (Dao et al., 2022): at most
//! [`QUERIES`] x [`KEYS`] scores exist at a time, for one head.
//!
//! Scores lie key by key, the queries of a block side by side, so that a vector holds one key's scores for 16 queries:
//! maxima and sums need no exchange between lanes, and both products run over whole vectors of queries. With matrix tiles
//! both factors of a product are split into parts (see `matmul::tiles`).

use std::{cell::RefCell, ops::Range};

use super::lanes::{LANES, Lanes, exp, larger, vectorized};
use crate::cpu::matmul::{
    Spread, Store, Strided, View, ViewMut, small_product,
    tiles::{Configured, DEPTH, PAIR, Split, split_product},
};

/// Queries per block: one panel of the AVX-512 product.
pub const QUERIES: usize = 96;
/// Keys per block.
pub const KEYS: usize = 256;

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
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a thread needs for one block of queries.
#[derive(Default)]
struct Scratch {
    /// `KEYS` rows of scores, then weights, of `QUERIES` queries.
    scores: Vec<f32>,
    /// Weighted sums of the values: a row of `QUERIES` per element.
    sums: Vec<f32>,
    packed: Packed,
}

/// Factors for matrix tiles.
#[derive(Default)]
struct Packed {
    /// Of one key and value head and all tokens.
    keys: Split,
    values: Split,
    /// Of one block of queries.
    queries: Split,
    weights: Split,
}

/// The rows of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// All of them.
    pub rows: Range<usize>,
    /// How many of them, from the first on, are tokens. The others are padding: they see the tokens before them as any row
    /// does, but are never seen, and one that sees no token at all (behind a sliding window) gets zeros.
    pub tokens: usize,
}

impl Window {
    /// Rows without padding.
    pub fn whole(rows: Range<usize>) -> Self {
        let tokens = rows.len();
        Self { rows, tokens }
    }
}

/// Attention within each of `windows` (rows of `qkv`). Queries must be scaled and queries and keys turned to their positions
/// already. `out` takes `queries * dim` numbers per row.
///
/// # Panics
/// When a window lies outside the rows, or has more tokens than rows.
pub fn attend(heads: &Heads, qkv: &[f32], windows: &[Window], out: &mut [f32], spread: Spread) {
    let width = heads.queries * heads.dim;
    let out = ViewMut::new(out, width);
    spread.each(windows.len() * heads.keys, |index| {
        let (window, key) = (&windows[index / heads.keys], index % heads.keys);
        let (range, tokens) = (&window.rows, window.tokens);
        assert!(tokens <= range.len(), "more tokens than rows");
        let rows = &qkv[range.start * heads.row()..range.end * heads.row()];
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.scores.resize(KEYS * QUERIES, 0.0);
            scratch
                .sums
                .resize(heads.dim.next_multiple_of(PAIR) * QUERIES, 0.0);
            // Where there are matrix tiles, keys and values are packed for all heads and queries that look at them.
            let tiles = Configured::new();
            if tiles.is_some() {
                let part = |head: usize| View {
                    data: rows.get(head * heads.dim..).unwrap_or(&[]),
                    rows: tokens,
                    stride: heads.row(),
                };
                let packed = &mut scratch.packed;
                packed
                    .keys
                    .rows(part(heads.queries + key), 0..tokens, heads.dim);
                let values = part(heads.queries + heads.keys + key);
                packed.values.columns_as_rows(values, 0..tokens, heads.dim);
            }
            let tiles = tiles.as_ref();
            let group = heads.queries / heads.keys;
            for query in key * group..(key + 1) * group {
                one_head(heads, rows, tokens, (query, key), tiles, scratch, |row| {
                    // SAFETY: this task is the only one for this window and this head.
                    unsafe {
                        out.row_part(
                            range.start + row,
                            query * heads.dim..(query + 1) * heads.dim,
                        )
                    }
                });
            }
        });
    });
}

/// One head over one window, whose first `tokens` rows are tokens. Padding has blocks of its own: what stands in a block
/// with a row decides on the row's last bits.
fn one_head<'a>(
    heads: &Heads,
    rows: &[f32],
    tokens: usize,
    (query, key): (usize, usize),
    tiles: Option<&Configured>,
    Scratch {
        scores,
        sums,
        packed,
    }: &mut Scratch,
    mut out: impl FnMut(usize) -> &'a mut [f32],
) {
    let (dim, stride) = (heads.dim, heads.row());
    let len = rows.len() / stride;
    let reach = heads.window.unwrap_or(len).max(1);
    // `count` heads' rows from row `first` on: row by row, or element by element.
    let part = |head: usize, first: usize| &rows[first * stride + head * dim..];
    let by_row = |head, first, count| Strided {
        data: part(head, first),
        rows: count,
        columns: dim,
        steps: (stride, 1),
    };
    let by_element = |head, first, count| Strided {
        data: part(head, first),
        rows: dim,
        columns: count,
        steps: (1, stride),
    };
    let blocks = |range: Range<usize>| {
        let end = range.end;
        range
            .step_by(QUERIES)
            .map(move |first| (first, QUERIES.min(end - first)))
    };
    for (first, count) in blocks(0..tokens).chain(blocks(tokens..len)) {
        let mut state = State::default();
        let mut from = (first + 1).saturating_sub(reach);
        if tiles.is_some() {
            // Keys are packed in steps. Those before the first that is seen get no weight.
            from = from / DEPTH * DEPTH;
            let queries = View {
                data: part(query, first),
                rows: count,
                stride,
            };
            packed.queries.rows_as_columns(queries, 0..count, dim);
        }
        let end = tokens.min(first + count);
        let mut store = Store::Replace;
        while from < end {
            let width = KEYS.min(end - from);
            match tiles {
                Some(tiles) => packed.score(tiles, from..from + width, dim, scores),
                None => {
                    let queries = by_row(query, first, count);
                    let keys = by_element(heads.queries + key, from, width);
                    small_product(queries, keys, scores, QUERIES, Store::Replace);
                }
            }
            weigh(
                &mut scores[..width * QUERIES],
                from,
                first,
                count,
                reach,
                &mut state,
            );
            if store == Store::Add {
                rescale(sums, &state.factors);
            }
            match tiles {
                Some(tiles) => {
                    let weights = View {
                        data: scores,
                        rows: width,
                        stride: QUERIES,
                    };
                    packed.weights.plain(weights, 0..width, count);
                    packed.sum_up(tiles, from..from + width, dim, sums, store);
                }
                None => {
                    let weights = Strided {
                        data: scores,
                        rows: count,
                        columns: width,
                        steps: (1, QUERIES),
                    };
                    let values = by_row(heads.queries + heads.keys + key, from, width);
                    small_product(weights, values, sums, QUERIES, store);
                }
            }
            store = Store::Add;
            from += width;
        }
        for row in 0..count {
            if (first + row + 1).saturating_sub(reach) >= tokens {
                out(first + row).fill(0.0);
                continue;
            }
            let factor = 1.0 / state.sums[row];
            for (out, sums) in out(first + row).iter_mut().zip(sums.chunks_exact(QUERIES)) {
                *out = sums[row] * factor;
            }
        }
    }
}

impl Packed {
    /// Scores of the packed queries with `keys`, whose first is at a step's begin.
    fn score(&self, tiles: &Configured, keys: Range<usize>, dim: usize, scores: &mut [f32]) {
        for row in (0..keys.len()).step_by(PAIR) {
            for column in (0..self.queries.len()).step_by(PAIR) {
                split_product(
                    tiles,
                    (&self.keys, &self.queries),
                    ((keys.start + row) / PAIR, column / PAIR),
                    (0..dim.div_ceil(DEPTH), 0),
                    (&mut scores[row * QUERIES + column..], QUERIES),
                    Store::Replace,
                );
            }
        }
    }

    /// Adds to `sums` the values of `keys`, weighted.
    fn sum_up(
        &self,
        tiles: &Configured,
        keys: Range<usize>,
        dim: usize,
        sums: &mut [f32],
        store: Store,
    ) {
        let steps = keys.start / DEPTH..keys.end.div_ceil(DEPTH);
        for row in (0..dim).step_by(PAIR) {
            for column in (0..self.weights.len()).step_by(PAIR) {
                split_product(
                    tiles,
                    (&self.values, &self.weights),
                    (row / PAIR, column / PAIR),
                    (steps.clone(), 0),
                    (&mut sums[row * QUERIES + column..], QUERIES),
                    store,
                );
            }
        }
    }
}

/// Running softmax of a block of queries.
struct State {
    /// Largest score so far.
    max: [f32; QUERIES],
    /// Sum of `e^(score - max)`.
    sums: [f32; QUERIES],
    /// By what the sums so far must be multiplied since the last block of keys.
    factors: [f32; QUERIES],
}

impl Default for State {
    fn default() -> Self {
        Self {
            max: [f32::NEG_INFINITY; QUERIES],
            sums: [0.0; QUERIES],
            factors: [1.0; QUERIES],
        }
    }
}

vectorized! {
    /// Turns `scores` of the keys from `from` on, for the `count` queries from `first` on, into weights relative to the
    /// largest score so far, zero where a query does not see a key: it sees itself and the `reach - 1` keys before.
    fn weigh(scores: &mut [f32], from: usize, first: usize, count: usize, reach: usize, state: &mut State) {
        let (scores, _) = scores.as_chunks_mut::<LANES>();
        const VECTORS: usize = QUERIES / LANES;
        const CHAINS: usize = 4;
        let keys = scores.len() / VECTORS;
        for vector in 0..count.div_ceil(LANES) {
            // These queries stand at `low..=high`. Keys `begin..end` (counted from `from`) are seen by some of them.
            let low = first + vector * LANES;
            let high = low + LANES - 1;
            let begin = (low + 1).saturating_sub(reach).saturating_sub(from).min(keys);
            let end = (high + 1).saturating_sub(from).min(keys).max(begin);
            let all_see = |key: usize| key <= low && key + reach > high;
            let sees = |key: usize, lane: usize| key <= low + lane && key + reach > low + lane;
            let at = vector * LANES;
            let mut max: Lanes = [0.0; LANES];
            max.copy_from_slice(&state.max[at..at + LANES]);
            let before = max;
            for key in (begin..end).filter(|&key| !all_see(from + key)) {
                for (lane, score) in scores[key * VECTORS + vector].iter_mut().enumerate() {
                    *score = if sees(from + key, lane) { *score } else { f32::NEG_INFINITY };
                }
            }
            // Several maxima side by side hide the latency of the comparison; the largest of them is the same.
            let mut running = [max; CHAINS];
            let mut key = begin;
            while key + CHAINS <= end {
                for (chain, running) in running.iter_mut().enumerate() {
                    let score = &scores[(key + chain) * VECTORS + vector];
                    for lane in 0..LANES {
                        running[lane] = larger(running[lane], score[lane]);
                    }
                }
                key += CHAINS;
            }
            for score in (key..end).map(|key| &scores[key * VECTORS + vector]).chain(&running) {
                for lane in 0..LANES {
                    max[lane] = larger(max[lane], score[lane]);
                }
            }
            // Where there was nothing to see so far, or only negative infinity, the difference is taken from zero; the
            // weights are then zero.
            let mut shift = max;
            let mut factors: Lanes = [1.0; LANES];
            for lane in 0..LANES {
                shift[lane] = if max[lane] == f32::NEG_INFINITY { 0.0 } else { max[lane] };
                factors[lane] = exp(before[lane] - shift[lane]);
            }
            let mut sums: Lanes = [0.0; LANES];
            for key in begin..end {
                let score = &mut scores[key * VECTORS + vector];
                for lane in 0..LANES {
                    score[lane] = exp(score[lane] - shift[lane]);
                    sums[lane] += score[lane];
                }
            }
            for key in (0..begin).chain(end..keys) {
                scores[key * VECTORS + vector] = [0.0; LANES];
            }
            for lane in 0..LANES {
                state.sums[at + lane] = state.sums[at + lane].mul_add(factors[lane], sums[lane]);
            }
            state.max[at..at + LANES].copy_from_slice(&max);
            state.factors[at..at + LANES].copy_from_slice(&factors);
        }
    }

    /// Multiplies each row of `sums` by `factors`.
    fn rescale(sums: &mut [f32], factors: &[f32; QUERIES]) {
        let (rows, _) = sums.as_chunks_mut::<QUERIES>();
        for row in rows {
            for query in 0..QUERIES {
                row[query] *= factors[query];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attention as its definition has it, in f64.
    fn plain(heads: &Heads, qkv: &[f32], window: &Window, out: &mut [f64]) {
        let (stride, dim) = (heads.row(), heads.dim);
        let at = |row: usize, head: usize| {
            qkv[row * stride + head * dim..row * stride + (head + 1) * dim]
                .iter()
                .map(|&v| f64::from(v))
        };
        for head in 0..heads.queries {
            let group = head / (heads.queries / heads.keys);
            for row in window.rows.clone() {
                let start = heads.window.map_or(window.rows.start, |w| {
                    window.rows.start.max((row + 1).saturating_sub(w))
                });
                let end = (row + 1).min(window.rows.start + window.tokens);
                let scores: Vec<f64> = (start..end)
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
                    out[row * heads.queries * dim + head * dim + element] = (start..end)
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
        for (heads, ends) in [
            (
                Heads {
                    queries: 4,
                    keys: 2,
                    dim: 8,
                    window: None,
                },
                vec![1, 3, 70, 220],
            ),
            (
                Heads {
                    queries: 2,
                    keys: 2,
                    dim: 16,
                    window: Some(32),
                },
                vec![129, 140],
            ),
            (
                Heads {
                    queries: 3,
                    keys: 1,
                    dim: 4,
                    window: Some(1),
                },
                vec![66],
            ),
            (
                Heads {
                    queries: 1,
                    keys: 1,
                    dim: 8,
                    window: None,
                },
                vec![700],
            ),
            (
                Heads {
                    queries: 1,
                    keys: 1,
                    dim: 8,
                    window: Some(600),
                },
                vec![1300],
            ),
        ] {
            let mut rows = 0;
            let window = |end: usize| Window::whole(std::mem::replace(&mut rows, end)..end);
            let windows: Vec<Window> = ends.into_iter().map(window).collect();
            let qkv: Vec<f32> = (0..rows * heads.row())
                .map(|i| ((i * 7919 % 10_007) as f32 / 5003.5 - 1.0) * 1.5)
                .collect();
            let mut expected = vec![0.0f64; rows * heads.queries * heads.dim];
            for window in &windows {
                plain(&heads, &qkv, window, &mut expected);
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

    #[test]
    fn padding_sees_tokens_only_and_changes_no_bit_of_theirs() {
        for reach in [None, Some(40), Some(1)] {
            let heads = Heads {
                queries: 4,
                keys: 2,
                dim: 8,
                window: reach,
            };
            let tokens = [70, 1, 129, 64];
            let numbers = |row: usize| {
                (0..heads.row()).map(move |at| {
                    let i = row * 1009 + at;
                    (i * 7919 % 10_007) as f32 / 5003.5 - 1.0
                })
            };
            let (mut padded, mut plain_rows) = (Vec::new(), Vec::new());
            let (mut windows, mut bare) = (Vec::new(), Vec::new());
            let (mut rows, mut bare_rows) = (0, 0);
            for (index, tokens) in tokens.into_iter().enumerate() {
                for row in 0..200 {
                    padded.extend(numbers(index * 300 + row));
                    if row < tokens {
                        plain_rows.extend(numbers(index * 300 + row));
                    }
                }
                windows.push(Window {
                    rows: rows..rows + 200,
                    tokens,
                });
                bare.push(Window::whole(bare_rows..bare_rows + tokens));
                (rows, bare_rows) = (rows + 200, bare_rows + tokens);
            }
            let width = heads.queries * heads.dim;
            let mut expected = vec![0.0; rows * width];
            for window in &windows {
                plain(&heads, &padded, window, &mut expected);
            }
            let mut out = vec![f32::NAN; rows * width];
            attend(&heads, &padded, &windows, &mut out, Spread::Here);
            for (index, (a, b)) in out.iter().zip(&expected).enumerate() {
                assert!(
                    (f64::from(*a) - b).abs() < 2e-5,
                    "{reach:?} {index}: {a} {b}"
                );
            }
            let mut alone = vec![f32::NAN; bare_rows * width];
            attend(&heads, &plain_rows, &bare, &mut alone, Spread::Here);
            for (window, bare) in windows.iter().zip(&bare) {
                let from = window.rows.start * width;
                let tokens = &out[from..from + window.tokens * width];
                assert_eq!(
                    tokens,
                    &alone[bare.rows.start * width..bare.rows.end * width]
                );
            }
        }
    }
}
