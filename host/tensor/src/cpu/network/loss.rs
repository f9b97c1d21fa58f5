//! Token losses fused with the output projection, and the comparison of two models on the same tokens.
//!
//! Logits exist one tile at a time. Each token keeps a running softmax (largest logit, sum of exponentials, best token)
//! over a group of `GROUP` vocabulary entries; groups are joined in order, so the result is the same for any spread.

use std::ops::Range;

use super::lanes::{LANES, Lanes, exp, larger, largest, padded, total, vectorized};
use crate::cpu::matmul::{PANEL, Spread, TILE_ROWS, View, Weight, panels};

/// Vocabulary entries whose softmax is kept together.
const GROUP: usize = 16 * PANEL;

/// What one token's prediction gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLoss {
    /// `-ln p(target)`, in nats.
    pub loss: f32,
    /// KL divergence of the subject's distribution from the baseline's, in nats: `sum p ln(p / q)` with the baseline's `p`.
    /// Zero when nothing was compared.
    pub divergence: f32,
    /// Whether both models hold the same token the likeliest (the lower index on ties); false when either has a NaN.
    pub same_top: bool,
    /// Total variation between the two distributions, `sum |p - q| / 2`. Zero when it was not asked for.
    pub variation: f32,
}

/// A model's normed final hidden states, one row per predicted token, and its output projection.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a> {
    /// Hidden states; `head.columns()` numbers per row.
    pub hidden: View<'a>,
    /// The output projection, `[vocabulary, hidden]`.
    pub head: &'a Weight,
}

/// Logits of both models that are kept at a time and thread to tell the total variation, which needs the final sums of
/// exponentials before it can look at a single difference.
const KEPT: usize = 1 << 22;

/// Losses of `targets` (one per row of the subject's hidden states) and, with a baseline, the divergence from it; with
/// `variation` also the total variation. No other number's bits depend on `variation`.
///
/// # Panics
/// When the targets are not as many as the rows, lie outside the vocabulary, or the two models differ in rows or vocabulary.
pub fn losses(
    subject: Output<'_>,
    baseline: Option<Output<'_>>,
    targets: &[u32],
    variation: bool,
    spread: Spread,
) -> Vec<TokenLoss> {
    let (rows, vocabulary) = (subject.hidden.rows, subject.head.rows());
    assert!(
        targets.len() == rows && targets.iter().all(|&id| (id as usize) < vocabulary),
        "targets do not fit"
    );
    if let Some(baseline) = baseline {
        assert!(
            baseline.hidden.rows == rows && baseline.head.rows() == vocabulary,
            "two models that cannot be compared"
        );
    }
    if let Some(baseline) = baseline.filter(|_| variation && vocabulary > 0) {
        let tile = (KEPT / vocabulary).clamp(16, TILE_ROWS / 2);
        let tiles = spread.map(rows.div_ceil(tile), |index| {
            let rows = index * tile..rows.min((index + 1) * tile);
            with_variation(subject, baseline, &targets[rows.clone()], rows)
        });
        return tiles.concat();
    }
    let (down, across) = (rows.div_ceil(TILE_ROWS), vocabulary.div_ceil(GROUP));
    let parts = spread.map(down * across, |index| {
        let (row, group) = (index / across * TILE_ROWS, index % across * GROUP);
        let rows = row..rows.min(row + TILE_ROWS);
        fold_group(
            subject,
            baseline,
            &targets[rows.clone()],
            rows,
            group..vocabulary.min(group + GROUP),
            |_, _, _, _| {},
        )
    });
    let mut out = Vec::with_capacity(rows);
    for tile in parts.chunks_exact(across.max(1)) {
        let mut tile = tile.iter();
        let Some(first) = tile.next() else { continue };
        let mut joined = first.clone();
        for part in tile {
            for (joined, part) in joined.iter_mut().zip(part) {
                joined.join(part);
            }
        }
        out.extend(joined.iter().map(|token| token.finish(baseline.is_some())));
    }
    out
}

/// The tokens `rows` with their total variation: the logits of both models stay until the sums are known.
fn with_variation(
    subject: Output<'_>,
    baseline: Output<'_>,
    targets: &[u32],
    rows: Range<usize>,
) -> Vec<TokenLoss> {
    let vocabulary = subject.head.rows();
    let mut logits = vec![0.0f32; rows.len() * vocabulary];
    let mut base = vec![0.0f32; rows.len() * vocabulary];
    let mut joined: Vec<Token> = Vec::new();
    for group in (0..vocabulary).step_by(GROUP) {
        let part = fold_group(
            subject,
            Some(baseline),
            targets,
            rows.clone(),
            group..vocabulary.min(group + GROUP),
            |row, panel, of_subject, of_baseline| {
                let at = row * vocabulary + panel.start..row * vocabulary + panel.end;
                logits[at.clone()].copy_from_slice(of_subject);
                base[at].copy_from_slice(of_baseline);
            },
        );
        if joined.is_empty() {
            joined = part;
            continue;
        }
        for (joined, part) in joined.iter_mut().zip(&part) {
            joined.join(part);
        }
    }
    let rows = logits
        .chunks_exact(vocabulary)
        .zip(base.chunks_exact(vocabulary));
    joined
        .iter()
        .zip(rows)
        .map(|(token, (logits, base))| {
            let scale = |state: &Softmax| (1.0 / state.sum) as f32;
            let (p, q) = (&token.baseline, &token.subject);
            let close = token.spread <= 0.5;
            let shift = token.log_ratio() as f32;
            let parts = logits.chunks(GROUP).zip(base.chunks(GROUP));
            let total: f64 = parts
                .map(|(logits, base)| {
                    f64::from(match close {
                        true => apart_close(logits, base, p.max, scale(p), shift),
                        false => apart(logits, base, p.max, scale(p), q.max, scale(q)),
                    })
                })
                .sum();
            TokenLoss {
                variation: (total / 2.0) as f32,
                ..token.finish(true)
            }
        })
        .collect()
}

/// The running state of the tokens `rows` after the vocabulary entries `group`. With a baseline `keep` is shown the logits of
/// both: the row (counted from the first), the panel's columns, the subject's and the baseline's numbers.
fn fold_group(
    subject: Output<'_>,
    baseline: Option<Output<'_>>,
    targets: &[u32],
    rows: Range<usize>,
    group: Range<usize>,
    mut keep: impl FnMut(usize, &Range<usize>, &[f32], &[f32]),
) -> Vec<Token> {
    let mut tokens = vec![Token::default(); rows.len()];
    let pick = |token: &mut Token, target: u32, panel: &Range<usize>, logits: &[f32]| {
        if let Some(logit) = (target as usize)
            .checked_sub(panel.start)
            .and_then(|offset| logits.get(offset))
        {
            token.target = *logit;
        }
    };
    match baseline {
        None => panels(
            [(subject.hidden, subject.head)],
            rows,
            group,
            |panel, [logits]| {
                for ((token, &target), logits) in tokens
                    .iter_mut()
                    .zip(targets)
                    .zip(logits.chunks_exact(panel.len()))
                {
                    fold(&mut token.subject, logits, panel.start as u32);
                    pick(token, target, &panel, logits);
                }
            },
        ),
        Some(baseline) => {
            let inputs = [
                (subject.hidden, subject.head),
                (baseline.hidden, baseline.head),
            ];
            panels(inputs, rows, group, |panel, [logits, base]| {
                let logits = logits
                    .chunks_exact(panel.len())
                    .zip(base.chunks_exact(panel.len()));
                let tokens = tokens.iter_mut().zip(targets).zip(logits).enumerate();
                for (row, ((token, &target), (logits, base))) in tokens {
                    keep(row, &panel, logits, base);
                    fold(&mut token.subject, logits, panel.start as u32);
                    fold_difference(token, logits, base, panel.start as u32);
                    pick(token, target, &panel, logits);
                }
            });
        }
    }
    tokens
}

/// Softmax over the logits seen so far.
#[derive(Debug, Clone, Copy)]
struct Softmax {
    max: f32,
    /// `sum e^(logit - max)`.
    sum: f64,
    /// Index of the first logit that equals `max`.
    top: u32,
}

impl Softmax {
    const EMPTY: Self = Self {
        max: f32::NEG_INFINITY,
        sum: 0.0,
        top: 0,
    };

    /// Natural logarithm of the sum of exponentials.
    fn log_sum(&self) -> f64 {
        f64::from(self.max) + libm::log(self.sum)
    }

    /// Moves to a new largest logit; returns by what sums of exponentials were multiplied.
    #[inline(always)]
    fn rescale(&mut self, max: f32) -> f64 {
        if self.max == max || self.max == f32::NEG_INFINITY {
            // Nothing but zeros has been added up so far in the second case, or NaN, which stays.
            self.max = max;
            return 1.0;
        }
        let factor = libm::exp(f64::from(self.max) - f64::from(max));
        self.max = max;
        self.sum *= factor;
        factor
    }
}

/// What is known of one token.
#[derive(Debug, Clone, Copy)]
struct Token {
    subject: Softmax,
    baseline: Softmax,
    /// The target's logit in the subject.
    target: f32,
    /// With `d = subject - baseline` per logit and `w = e^(baseline - max)`: `sum w d`.
    weighted: f64,
    /// `sum w (e^d - 1 - d)`, meant for `|d| <= 1`.
    curved: f64,
    /// Largest `|d|`.
    spread: f32,
}

impl Default for Token {
    fn default() -> Self {
        let empty = Softmax::EMPTY;
        Self {
            subject: empty,
            baseline: empty,
            target: f32::NAN,
            weighted: 0.0,
            curved: 0.0,
            spread: 0.0,
        }
    }
}

impl Token {
    /// Adds what another group of the vocabulary, with larger indices, gave.
    fn join(&mut self, other: &Token) {
        let join = |a: &mut Softmax, b: &Softmax| {
            let mut b = *b;
            let max = larger(a.max, b.max);
            if b.max > a.max {
                a.top = b.top;
            }
            let factors = (a.rescale(max), b.rescale(max));
            a.sum += b.sum;
            factors
        };
        join(&mut self.subject, &other.subject);
        let (mine, theirs) = join(&mut self.baseline, &other.baseline);
        self.weighted = self.weighted * mine + other.weighted * theirs;
        self.curved = self.curved * mine + other.curved * theirs;
        self.spread = larger(self.spread, other.spread);
        if self.target.is_nan() {
            self.target = other.target;
        }
    }

    fn finish(&self, compared: bool) -> TokenLoss {
        let loss = (self.subject.log_sum() - f64::from(self.target)) as f32;
        if !compared {
            return TokenLoss {
                loss,
                divergence: 0.0,
                same_top: false,
                variation: 0.0,
            };
        }
        let valid = !self.subject.sum.is_nan() && !self.baseline.sum.is_nan();
        TokenLoss {
            loss,
            divergence: self.divergence() as f32,
            same_top: valid && self.subject.top == self.baseline.top,
            variation: 0.0,
        }
    }

    /// `ln sum p e^d`, the logarithm of the ratio of the two sums of exponentials, from terms of its own size while every
    /// `|d| <= 1`.
    fn log_ratio(&self) -> f64 {
        libm::log1p((self.curved + self.weighted) / self.baseline.sum)
    }

    /// `KL = ln sum p e^d - sum p d`. Where every `|d| <= 1` the two terms, nearly equal, are not subtracted from each other:
    /// with `g = sum p (e^d - 1 - d)` and `s = sum p (e^d - 1) = g + sum p d` it is `g + ln(1 + s) - s`, whose terms are of
    /// second order.
    fn divergence(&self) -> f64 {
        let mean = self.weighted / self.baseline.sum;
        let divergence = if self.spread <= 1.0 {
            let curved = self.curved / self.baseline.sum;
            let s = curved + mean;
            curved + (libm::log1p(s) - s)
        } else {
            self.subject.log_sum() - self.baseline.log_sum() - mean
        };
        // Rounding may leave a hair below zero; NaN stays.
        if divergence < 0.0 { 0.0 } else { divergence }
    }
}

/// Index of the first number that equals `value`.
#[inline(always)]
fn position(values: &[f32], value: f32) -> u32 {
    values.iter().position(|&v| v == value).unwrap_or(0) as u32
}

/// `e^d - 1 - d` for `|d| <= 1`: the Taylor series up to the ninth power, within 6e-7 of the value.
#[inline(always)]
fn curve(d: f32) -> f32 {
    let d = d.clamp(-1.0, 1.0);
    let mut p = 1.0f32 / 362_880.0;
    p = p.mul_add(d, 1.0 / 40_320.0);
    p = p.mul_add(d, 1.0 / 5040.0);
    p = p.mul_add(d, 1.0 / 720.0);
    p = p.mul_add(d, 1.0 / 120.0);
    p = p.mul_add(d, 1.0 / 24.0);
    p = p.mul_add(d, 1.0 / 6.0);
    p = p.mul_add(d, 0.5);
    p * d * d
}

vectorized! {
    /// `sum |p - q|` with `p = e^(baseline - p_max) p_scale` and `q` of the subject likewise.
    fn apart(subject: &[f32], baseline: &[f32], p_max: f32, p_scale: f32, q_max: f32, q_scale: f32) -> f32 {
        let mut sums: Lanes = [0.0; LANES];
        let (blocks, rest) = subject.as_chunks::<LANES>();
        let (base_blocks, base_rest) = baseline.as_chunks::<LANES>();
        for (subject, baseline) in blocks.iter().zip(base_blocks) {
            for lane in 0..LANES {
                let q = exp(subject[lane] - q_max) * q_scale;
                sums[lane] += exp(baseline[lane] - p_max).mul_add(p_scale, -q).abs();
            }
        }
        let rest = padded(rest, f32::NEG_INFINITY);
        let base_rest = padded(base_rest, f32::NEG_INFINITY);
        for lane in 0..LANES {
            let q = exp(rest[lane] - q_max) * q_scale;
            sums[lane] += exp(base_rest[lane] - p_max).mul_add(p_scale, -q).abs();
        }
        total(sums)
    }

    /// [`apart`] where both models nearly agree, so that `p` and `q` are not subtracted from each other: with
    /// `x = subject - baseline - shift` it is `sum p |e^x - 1|`, and every `|x| <= 1`.
    fn apart_close(subject: &[f32], baseline: &[f32], p_max: f32, p_scale: f32, shift: f32) -> f32 {
        let mut sums: Lanes = [0.0; LANES];
        let mut add = |subject: &[f32], baseline: &[f32]| {
            for lane in 0..LANES {
                let x = subject[lane] - baseline[lane] - shift;
                let weight = exp(baseline[lane] - p_max) * p_scale;
                sums[lane] = weight.mul_add((x + curve(x)).abs(), sums[lane]);
            }
        };
        let (blocks, rest) = subject.as_chunks::<LANES>();
        let (base_blocks, base_rest) = baseline.as_chunks::<LANES>();
        for (subject, baseline) in blocks.iter().zip(base_blocks) {
            add(subject, baseline);
        }
        // Beyond the end the weight is e^-200 = 0 and the difference finite.
        let beyond = p_max - 200.0;
        add(&padded(rest, beyond), &padded(base_rest, beyond));
        total(sums)
    }

    /// Adds `logits`, the vocabulary entries from `first` on, to a softmax.
    fn fold(state: &mut Softmax, logits: &[f32], first: u32) {
        let max = largest(logits);
        if max > state.max {
            state.top = first + position(logits, max);
        }
        let max = larger(state.max, max);
        state.rescale(max);
        // All logits were negative infinity so far (or NaN, which must not be lost): they add nothing.
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut sums: Lanes = [0.0; LANES];
        let mut blocks = logits.chunks_exact(LANES);
        for block in &mut blocks {
            for lane in 0..LANES {
                sums[lane] += exp(block[lane] - shift);
            }
        }
        if !blocks.remainder().is_empty() {
            let rest = padded(blocks.remainder(), f32::NEG_INFINITY);
            for lane in 0..LANES {
                sums[lane] += exp(rest[lane] - shift);
            }
        }
        state.sum += f64::from(total(sums));
    }

    /// Adds the baseline's logits to its softmax, and both models' to the sums of the divergence.
    fn fold_difference(token: &mut Token, subject: &[f32], baseline: &[f32], first: u32) {
        let state = &mut token.baseline;
        let max = largest(baseline);
        if max > state.max {
            state.top = first + position(baseline, max);
        }
        let max = larger(state.max, max);
        let factor = state.rescale(max);
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut sums: Lanes = [0.0; LANES];
        let mut weighted: Lanes = [0.0; LANES];
        let mut curved: Lanes = [0.0; LANES];
        let mut spread: Lanes = [token.spread; LANES];
        let mut add = |subject: &[f32], baseline: &[f32]| {
            for lane in 0..LANES {
                let weight = exp(baseline[lane] - shift);
                let d = subject[lane] - baseline[lane];
                sums[lane] += weight;
                weighted[lane] = weight.mul_add(d, weighted[lane]);
                curved[lane] = weight.mul_add(curve(d), curved[lane]);
                spread[lane] = larger(spread[lane], d.abs());
            }
        };
        let mut blocks = subject.chunks_exact(LANES);
        let mut base_blocks = baseline.chunks_exact(LANES);
        for (subject, baseline) in (&mut blocks).zip(&mut base_blocks) {
            add(subject, baseline);
        }
        if !blocks.remainder().is_empty() {
            // Beyond the end the weight is e^-200 = 0 and the difference 0.
            let beyond = shift - 200.0;
            add(&padded(blocks.remainder(), beyond), &padded(base_blocks.remainder(), beyond));
        }
        state.sum += f64::from(total(sums));
        token.weighted = token.weighted * factor + f64::from(total(weighted));
        token.curved = token.curved * factor + f64::from(total(curved));
        token.spread = spread.into_iter().fold(token.spread, larger);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{DType, Tensor};
    use bytes::Bytes;

    fn weight(rows: usize, columns: usize, values: impl Fn(usize) -> f32) -> Weight {
        let bytes: Vec<u8> = (0..rows * columns)
            .flat_map(|i| values(i).to_le_bytes())
            .collect();
        Weight::new(&Tensor::new(DType::F32, [rows, columns], Bytes::from(bytes)).unwrap()).unwrap()
    }

    fn noise(i: usize) -> f32 {
        let mixed = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 40) as f32 / 8_388_608.0 - 1.0
    }

    /// Loss, divergence and same-top by definition, in f64 on the f32 logits.
    fn plain(
        hidden: &[f32],
        width: usize,
        head: &Weight,
        base: &[f32],
        base_head: &Weight,
        targets: &[u32],
    ) -> Vec<(f64, f64, bool, f64)> {
        let log_softmax = |x: &[f32], head: &Weight| {
            let mut row = vec![0.0; width];
            let logits: Vec<f64> = (0..head.rows())
                .map(|entry| {
                    head.row(entry, &mut row);
                    row.iter()
                        .zip(x)
                        .map(|(&a, &b)| f64::from(a) * f64::from(b))
                        .sum()
                })
                .collect();
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total = max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln();
            logits.into_iter().map(|l| l - total).collect::<Vec<f64>>()
        };
        let top = |p: &[f64]| {
            p.iter()
                .enumerate()
                .fold(0, |best, (i, v)| if *v > p[best] { i } else { best })
        };
        targets
            .iter()
            .enumerate()
            .map(|(row, &target)| {
                let q = log_softmax(&hidden[row * width..(row + 1) * width], head);
                let p = log_softmax(&base[row * width..(row + 1) * width], base_head);
                let divergence = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
                let apart = p
                    .iter()
                    .zip(&q)
                    .map(|(p, q)| (p.exp() - q.exp()).abs())
                    .sum::<f64>();
                (
                    -q[target as usize],
                    divergence,
                    top(&q) == top(&p),
                    apart / 2.0,
                )
            })
            .collect()
    }

    #[test]
    fn losses_and_divergence_equal_their_definitions() {
        let (rows, width, vocabulary) = (300, 48, 3333);
        let hidden: Vec<f32> = (0..rows * width).map(noise).collect();
        let targets: Vec<u32> = (0..rows).map(|i| (i * 977 % vocabulary) as u32).collect();
        let head = weight(vocabulary, width, |i| noise(i + 17) * 2.0);
        for size in [0.0f32, 1e-4, 1e-2, 0.1, 3.0] {
            let base_head = weight(vocabulary, width, |i| {
                noise(i + 17) * 2.0 + size * noise(i + 5)
            });
            let subject = Output {
                hidden: View::dense(&hidden, rows),
                head: &head,
            };
            let baseline = Output {
                hidden: View::dense(&hidden, rows),
                head: &base_head,
            };
            let found = losses(subject, Some(baseline), &targets, true, Spread::Here);
            assert_eq!(
                found,
                losses(subject, Some(baseline), &targets, true, Spread::Pool)
            );
            let without = losses(subject, Some(baseline), &targets, false, Spread::Here);
            for (found, without) in found.iter().zip(&without) {
                assert_eq!(
                    TokenLoss {
                        variation: 0.0,
                        ..*found
                    },
                    *without
                );
            }
            let alone = losses(subject, None, &targets, false, Spread::Here);
            let (mut same, mut apart) = (0, (0.0, 0.0));
            for ((found, alone), (loss, divergence, top, variation)) in found
                .iter()
                .zip(&alone)
                .zip(plain(&hidden, width, &head, &hidden, &base_head, &targets))
            {
                assert_eq!(found.loss.to_bits(), alone.loss.to_bits());
                assert!(
                    (f64::from(found.loss) - loss).abs() < 1e-5,
                    "{} {loss}",
                    found.loss
                );
                let error = (f64::from(found.divergence) - divergence).abs();
                assert!(
                    error <= 2e-3 * divergence.abs() + 1e-9,
                    "size {size}: {} {divergence}",
                    found.divergence
                );
                let error = (f64::from(found.variation) - variation).abs();
                // Where one token holds most of the probability, what is left is as small as the rounding of its logits.
                assert!(
                    error <= 2e-3 * variation + 4e-6,
                    "size {size}: {} {variation}",
                    found.variation
                );
                apart.0 += f64::from(found.variation);
                apart.1 += variation;
                same += usize::from(found.same_top == top);
            }
            assert!(
                (apart.0 - apart.1).abs() <= 2e-3 * apart.1 + 1e-4,
                "size {size}: {apart:?}"
            );
            assert!(same >= rows - 1, "{same} of {rows}");
        }
    }

    #[test]
    fn bad_numbers_flow_through() {
        let hidden = [1.0f32, 0.0, 0.0, 1.0];
        let head = weight(4, 2, |i| {
            [0.0, f32::NAN, 1.0, 0.0, 2.0, 0.0, f32::INFINITY, 0.0][i]
        });
        let found = losses(
            Output {
                hidden: View::dense(&hidden, 2),
                head: &head,
            },
            None,
            &[0, 2],
            false,
            Spread::Here,
        );
        assert!(found.iter().all(|token| !token.loss.is_finite()));
        let low = weight(4, 2, |i| if i == 6 { f32::NEG_INFINITY } else { 0.5 });
        let row = [1.0f32, 1.0];
        let output = Output {
            hidden: View::dense(&row, 1),
            head: &low,
        };
        let found = losses(output, None, &[0], false, Spread::Here);
        assert!(
            (found[0].loss - 3f32.ln()).abs() < 1e-6,
            "{}",
            found[0].loss
        );
        assert_eq!(
            losses(output, None, &[3], false, Spread::Here)[0].loss,
            f32::INFINITY
        );
    }
}
