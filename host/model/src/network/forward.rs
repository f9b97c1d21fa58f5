//! One block of whole windows through the layers.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use packhost_tensor::cpu::{
    matmul::{Spread, Store, TILE_ROWS, View, ViewMut, Weight, linear},
    network::{
        attention::attend,
        elementwise::{add, add_scaled, gated, rms_norm, rms_norm_in_place},
        rotary::Rotary,
        router::route,
    },
};

use super::resolve::{Feed, Gated, Inner, Layer, Linear, Vector};
use crate::error::{Error, Result};

/// Rows of the feed-forward layer's wide activations that exist at a time.
const WIDE_ROWS: usize = 4 * TILE_ROWS;

/// A block's activations. Kept from block to block, because fresh memory costs more than what is computed in it.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// The residual stream: `rows * hidden`.
    pub hidden: Vec<f32>,
    /// Normed input of the next projection, `rows * hidden`.
    normed: Vec<f32>,
    /// Queries, keys and values of every row.
    qkv: Vec<f32>,
    /// What attention gave, before its output projection.
    context: Vec<f32>,
    /// The feed-forward layer's wide activations.
    wide: Vec<f32>,
    /// Input and output of one expert.
    expert: (Vec<f32>, Vec<f32>),
    /// Normed final hidden states of the rows that predict a token.
    pub last: Vec<f32>,
    /// The baseline's counterpart of `last`.
    pub baseline: Vec<f32>,
}

/// A block and how to run it.
pub(super) struct Pass<'a> {
    pub network: &'a Inner,
    pub rotary: &'a Rotary,
    /// The windows, as ranges of the block's rows.
    pub windows: &'a [Range<usize>],
    pub spread: Spread,
    pub cancel: Option<&'a AtomicBool>,
}

/// `buffer` with `len` numbers; what they are is left open.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Error when the caller wants to stop.
pub(super) fn check(cancel: Option<&AtomicBool>) -> Result<()> {
    match cancel {
        Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::Cancelled),
        _ => Ok(()),
    }
}

impl Pass<'_> {
    fn rows(&self) -> usize {
        self.windows.last().map_or(0, |window| window.end)
    }

    fn width(&self) -> usize {
        self.network.embedding.columns()
    }

    /// Fills the residual stream with the embeddings of `tokens`, which must be in the vocabulary.
    pub fn embed<'t>(&self, tokens: impl Iterator<Item = &'t u32>, buffers: &mut Buffers) {
        let hidden = sized(&mut buffers.hidden, self.rows() * self.width());
        for (row, &token) in hidden.chunks_exact_mut(self.width()).zip(tokens) {
            self.network.embedding.row(token as usize, row);
        }
    }

    /// Fills the residual stream with hidden states kept per window.
    pub fn resume(&self, states: &[Vec<f32>], buffers: &mut Buffers) {
        buffers.hidden.clear();
        states
            .iter()
            .for_each(|state| buffers.hidden.extend_from_slice(state));
    }

    /// Runs layer `index` on the residual stream.
    ///
    /// # Errors
    /// When cancelled.
    pub fn layer(&self, index: usize, buffers: &mut Buffers) -> Result<()> {
        let layer = &self.network.layers[index];
        check(self.cancel)?;
        if self.rows() == 0 {
            return Ok(());
        }
        self.attention(layer, buffers);
        check(self.cancel)?;
        self.norm(&layer.feed_norm, &buffers.hidden, &mut buffers.normed);
        match &layer.feed {
            Feed::Dense(dense) => self.dense(dense, buffers),
            Feed::Experts {
                router,
                experts,
                active,
            } => {
                self.experts(router, experts, *active, buffers);
            }
        }
        Ok(())
    }

    /// The final norm of every row that predicts a token, close together in `last`.
    pub fn finish(&self, buffers: &mut Buffers) {
        let width = self.width();
        let predicting: Vec<usize> = self
            .windows
            .iter()
            .flat_map(|window| window.start..window.end.max(1) - 1)
            .collect();
        let last = sized(&mut buffers.last, predicting.len() * width);
        let hidden = &buffers.hidden;
        let (norm, epsilon) = (&self.network.norm.values, self.network.epsilon);
        self.spread.rows(last, width, |row, out| {
            let from = predicting[row] * width;
            rms_norm(&hidden[from..from + width], norm, epsilon, out);
        });
    }

    fn norm(&self, norm: &Vector, hidden: &[f32], normed: &mut Vec<f32>) {
        let width = self.width();
        let normed = sized(normed, self.rows() * width);
        self.spread.rows(normed, width, |row, out| {
            let from = row * width;
            rms_norm(
                &hidden[from..from + width],
                &norm.values,
                self.network.epsilon,
                out,
            );
        });
    }

    /// `hidden += o(attention(norm(hidden)))`.
    fn attention(&self, layer: &Layer, buffers: &mut Buffers) {
        let (rows, width, heads) = (self.rows(), self.width(), &layer.heads);
        self.norm(&layer.attention_norm, &buffers.hidden, &mut buffers.normed);
        let normed = View::dense(&buffers.normed[..rows * width], rows);
        let stride = heads.row();
        let qkv = sized(&mut buffers.qkv, rows * stride);
        let (queries, keys) = (heads.queries * heads.dim, heads.keys * heads.dim);
        for (start, projection) in [
            (0, &layer.query),
            (queries, &layer.key),
            (queries + keys, &layer.value),
        ] {
            let out = ViewMut::new(&mut qkv[start..], stride);
            linear(
                normed,
                &projection.weight,
                &out,
                Store::Replace,
                self.spread,
            );
        }
        let scale = (1.0 / (heads.dim as f64).sqrt()) as f32;
        let positions: Vec<usize> = self
            .windows
            .iter()
            .flat_map(|window| 0..window.len())
            .collect();
        self.spread.rows(qkv, stride, |row, qkv| {
            let (q, rest) = qkv.split_at_mut(queries);
            let (k, v) = rest.split_at_mut(keys);
            for (part, projection) in [(&mut *q, &layer.query), (k, &layer.key), (v, &layer.value)]
            {
                if let Some(bias) = projection.bias() {
                    add(part, bias);
                }
            }
            let (k, _) = rest.split_at_mut(keys);
            if let Some((query, key)) = &layer.query_key_norms {
                for (part, norm) in [(&mut *q, query), (&mut *k, key)] {
                    for head in part.chunks_exact_mut(heads.dim) {
                        rms_norm_in_place(head, &norm.values, self.network.epsilon);
                    }
                }
            }
            // The scale of the scores goes into the queries.
            self.rotary.turn(q, positions[row], scale);
            self.rotary.turn(k, positions[row], 1.0);
        });
        let context = sized(&mut buffers.context, rows * queries);
        attend(heads, &buffers.qkv, self.windows, context, self.spread);
        let context = View::dense(context, rows);
        self.project_onto(&layer.output, context, &mut buffers.hidden);
    }

    /// `hidden += projection(x)`.
    fn project_onto(&self, projection: &Linear, x: View<'_>, hidden: &mut [f32]) {
        let width = self.width();
        linear(
            x,
            &projection.weight,
            &ViewMut::new(hidden, width),
            Store::Add,
            self.spread,
        );
        if let Some(bias) = projection.bias() {
            hidden
                .chunks_exact_mut(width)
                .take(x.rows)
                .for_each(|row| add(row, bias));
        }
    }

    /// `hidden += down(silu(gate(normed)) * up(normed))`.
    fn dense(&self, feed: &Gated, buffers: &mut Buffers) {
        let (rows, width) = (self.rows(), self.width());
        let chunks = buffers.normed[..rows * width].chunks(WIDE_ROWS * width);
        for (x, hidden) in chunks.zip(buffers.hidden.chunks_mut(WIDE_ROWS * width)) {
            let count = x.len() / width;
            let wide = sized(&mut buffers.wide, count * feed.gate.weight.rows());
            gated(
                View::dense(x, count),
                feed.gate.affine(),
                feed.up.affine(),
                wide,
                self.spread,
            );
            self.project_onto(&feed.down, View::dense(wide, count), hidden);
        }
    }

    /// `hidden += sum over the chosen experts of weight * expert(normed)`, in the order of the experts.
    fn experts(&self, router: &Weight, experts: &[Gated], active: usize, buffers: &mut Buffers) {
        let (rows, width) = (self.rows(), self.width());
        let normed = &buffers.normed[..rows * width];
        let mut logits = vec![0.0; rows * experts.len()];
        let view = ViewMut::new(&mut logits, experts.len());
        linear(
            View::dense(normed, rows),
            router,
            &view,
            Store::Replace,
            self.spread,
        );
        let mut served: Vec<Vec<(usize, f32)>> = vec![Vec::new(); experts.len()];
        for (row, logits) in logits.chunks_exact(experts.len()).enumerate() {
            for (expert, weight) in route(logits, active) {
                served[expert].push((row, weight));
            }
        }
        for (feed, served) in experts.iter().zip(&served) {
            for served in served.chunks(WIDE_ROWS) {
                let count = served.len();
                let (input, output) = &mut buffers.expert;
                let input = sized(input, count * width);
                for (out, (row, _)) in input.chunks_exact_mut(width).zip(served) {
                    out.copy_from_slice(&normed[row * width..(row + 1) * width]);
                }
                let wide = sized(&mut buffers.wide, count * feed.gate.weight.rows());
                gated(
                    View::dense(input, count),
                    feed.gate.affine(),
                    feed.up.affine(),
                    wide,
                    self.spread,
                );
                let output = sized(output, count * width);
                output.fill(0.0);
                self.project_onto(&feed.down, View::dense(wide, count), output);
                for (output, (row, weight)) in output.chunks_exact(width).zip(served) {
                    add_scaled(
                        &mut buffers.hidden[row * width..(row + 1) * width],
                        *weight,
                        output,
                    );
                }
            }
        }
    }
}
