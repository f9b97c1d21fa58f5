//! One block of whole windows through the layers.

use std::sync::atomic::{AtomicBool, Ordering};

use packhost_tensor::cpu::{
    matmul::{Spread, Store, TILE_ROWS, View, ViewMut, linear, linears},
    network::{
        attention::{Window, attend},
        elementwise::{add, add_scaled, gated, rms_norm, rms_norm_in_place, scale, silu_gate},
        rotary::Rotary,
        router::route,
    },
};

use super::{
    resolve::{Feed, Gated, Inner, Layer, Linear, Vector},
    taps::{Observer, Segment},
};
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
    /// Outputs of single projections, where they are looked at or scaled.
    apart: Apart,
    /// Normed final hidden states of the rows that predict a token.
    pub last: Vec<f32>,
    /// The baseline's counterpart of `last`.
    pub baseline: Vec<f32>,
}

/// Outputs that are not fused with what follows.
#[derive(Debug, Default)]
struct Apart {
    gate: Vec<f32>,
    up: Vec<f32>,
    /// Of a projection back to the residual stream's width.
    back: Vec<f32>,
}

/// A block and how to run it.
pub(super) struct Pass<'a> {
    pub network: &'a Inner,
    pub rotary: &'a Rotary,
    /// The windows' rows in the block.
    pub windows: &'a [Window],
    pub spread: Spread,
    pub cancel: Option<&'a AtomicBool>,
    /// Who looks at the modules' outputs.
    pub observer: Option<&'a Observer<'a>>,
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
        self.windows.last().map_or(0, |window| window.rows.end)
    }

    /// Whether the output of `linear` must stand alone for a moment, because someone looks at it or it is scaled.
    fn apart(&self, linear: &Linear) -> bool {
        linear.factor != 1.0 || self.observed(&linear.name)
    }

    fn observed(&self, module: &str) -> bool {
        self.observer.is_some_and(|observer| observer.wants(module))
    }

    /// The windows' rows, for modules that every row passes through.
    fn segments(&self) -> Vec<Segment> {
        let segment = |window: &Window| Segment {
            rows: window.rows.clone(),
            counted: window.rows.start + 1.min(window.tokens)..window.rows.start + window.tokens,
        };
        self.windows.iter().map(segment).collect()
    }

    /// Makes what stands in columns from `first` on of `output` (rows of `stride` numbers), the product with the weights of
    /// `linear`, that module's output, and shows it.
    fn settle(
        &self,
        linear: &Linear,
        output: &mut [f32],
        (first, stride): (usize, usize),
        segments: &[Segment],
    ) {
        let width = linear.weight.rows();
        let rows = output.len() / stride.max(1);
        if linear.bias.is_some() || linear.factor != 1.0 {
            self.spread.rows(output, stride, |_, row| {
                let row = &mut row[first..first + width];
                if let Some(bias) = linear.bias() {
                    add(row, bias);
                }
                if linear.factor != 1.0 {
                    scale(row, linear.factor);
                }
            });
        }
        if let Some(observer) = self.observer {
            let view = View {
                data: output.get(first..).unwrap_or(&[]),
                rows,
                stride,
            };
            observer.see(&linear.name, view, width, segments, self.spread);
        }
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
        if let Some(observer) = self.observer {
            let view = View::dense(hidden, self.rows());
            let name = &self.network.embedding_name;
            observer.see(name, view, self.width(), &self.segments(), self.spread);
        }
    }

    /// Fills the residual stream with hidden states kept per window: of as many rows as it has, or more.
    pub fn resume<'s>(&self, states: impl Iterator<Item = &'s [f32]>, buffers: &mut Buffers) {
        buffers.hidden.clear();
        for (window, state) in self.windows.iter().zip(states) {
            let rows = &state[..window.rows.len() * self.width()];
            buffers.hidden.extend_from_slice(rows);
        }
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
            .flat_map(|window| {
                window.rows.start..window.rows.start + window.tokens.saturating_sub(1)
            })
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
        let projections = [
            (0, &layer.query),
            (queries, &layer.key),
            (queries + keys, &layer.value),
        ];
        let out = ViewMut::new(qkv, stride);
        let outputs = projections.map(|(start, projection)| (&projection.weight, &out, start));
        linears(normed, outputs, Store::Replace, self.spread);
        for (start, projection) in projections {
            if self.apart(projection) {
                self.settle(projection, qkv, (start, stride), &self.segments());
            }
        }
        let bias = projections.map(|(_, projection)| match self.apart(projection) {
            true => None,
            false => projection.bias(),
        });
        let scale = (1.0 / (heads.dim as f64).sqrt()) as f32;
        let positions: Vec<usize> = self
            .windows
            .iter()
            .flat_map(|window| 0..window.rows.len())
            .collect();
        self.spread.rows(qkv, stride, |row, qkv| {
            let (q, rest) = qkv.split_at_mut(queries);
            let (k, v) = rest.split_at_mut(keys);
            for (part, bias) in [&mut *q, k, v].into_iter().zip(bias) {
                if let Some(bias) = bias {
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
        let back = sized(&mut buffers.apart.back, rows * width);
        self.project(&layer.output, context, back, &self.segments());
        self.add_rows(&mut buffers.hidden, back);
    }

    /// `hidden += back`, row by row. A sum of its own, so that a projection that is looked at gives the same bits as one that
    /// is not.
    fn add_rows(&self, hidden: &mut [f32], back: &[f32]) {
        let width = self.width();
        self.spread
            .rows(&mut hidden[..back.len()], width, |row, hidden| {
                add(hidden, &back[row * width..(row + 1) * width]);
            });
    }

    /// `out = projection(x)`, as it is shown to an observer.
    fn project(&self, projection: &Linear, x: View<'_>, out: &mut [f32], segments: &[Segment]) {
        let stride = projection.weight.rows();
        let view = ViewMut::new(out, stride);
        linear(x, &projection.weight, &view, Store::Replace, self.spread);
        self.settle(projection, out, (0, stride), segments);
    }

    /// `out = down(silu(gate(x)) * up(x))`, each projection on its own.
    fn dense_apart(
        &self,
        feed: &Gated,
        x: View<'_>,
        (wide, gate, up): (&mut Vec<f32>, &mut Vec<f32>, &mut Vec<f32>),
        out: &mut [f32],
        segments: &[Segment],
    ) {
        let columns = feed.gate.weight.rows();
        let gate = sized(gate, x.rows * columns);
        let up = sized(up, x.rows * columns);
        let views = [&mut *gate, &mut *up].map(|out| ViewMut::new(out, columns));
        let outputs = [
            (&feed.gate.weight, &views[0], 0),
            (&feed.up.weight, &views[1], 0),
        ];
        linears(x, outputs, Store::Replace, self.spread);
        self.settle(&feed.gate, gate, (0, columns), segments);
        self.settle(&feed.up, up, (0, columns), segments);
        let wide = sized(wide, x.rows * columns);
        self.spread.rows(wide, columns, |row, out| {
            let at = row * columns..(row + 1) * columns;
            silu_gate(&gate[at.clone()], &up[at], out);
        });
        self.project(&feed.down, View::dense(wide, x.rows), out, segments);
    }

    /// Whether gate and up cannot be fused.
    fn gated_apart(&self, feed: &Gated) -> bool {
        self.apart(&feed.gate) || self.apart(&feed.up)
    }

    /// `hidden += down(silu(gate(normed)) * up(normed))`.
    fn dense(&self, feed: &Gated, buffers: &mut Buffers) {
        let (rows, width) = (self.rows(), self.width());
        let Apart { gate, up, back } = &mut buffers.apart;
        if self.gated_apart(feed) {
            let back = sized(back, rows * width);
            let x = View::dense(&buffers.normed[..rows * width], rows);
            let scratch = (&mut buffers.wide, gate, up);
            self.dense_apart(feed, x, scratch, back, &self.segments());
            self.add_rows(&mut buffers.hidden, back);
            return;
        }
        // All rows of a window must be there where they are looked at.
        let (most, segments) = match self.apart(&feed.down) {
            true => (rows, self.segments()),
            false => (WIDE_ROWS, Vec::new()),
        };
        let chunks = buffers.normed[..rows * width].chunks(most * width);
        for (x, hidden) in chunks.zip(buffers.hidden.chunks_mut(most * width)) {
            let count = x.len() / width;
            let wide = sized(&mut buffers.wide, count * feed.gate.weight.rows());
            gated(
                View::dense(x, count),
                feed.gate.affine(),
                feed.up.affine(),
                wide,
                self.spread,
            );
            let back = sized(back, count * width);
            self.project(&feed.down, View::dense(wide, count), back, &segments);
            self.add_rows(hidden, back);
        }
    }

    /// `hidden += sum over the chosen experts of weight * expert(normed)`, in the order of the experts.
    fn experts(&self, router: &Linear, experts: &[Gated], active: usize, buffers: &mut Buffers) {
        let (rows, width) = (self.rows(), self.width());
        let normed = &buffers.normed[..rows * width];
        let mut logits = vec![0.0; rows * experts.len()];
        let view = ViewMut::new(&mut logits, experts.len());
        linear(
            View::dense(normed, rows),
            &router.weight,
            &view,
            Store::Replace,
            self.spread,
        );
        self.settle(router, &mut logits, (0, experts.len()), &self.segments());
        let mut served: Vec<Vec<(usize, f32)>> = vec![Vec::new(); experts.len()];
        for (row, logits) in logits.chunks_exact(experts.len()).enumerate() {
            for (expert, weight) in route(logits, active) {
                served[expert].push((row, weight));
            }
        }
        for (feed, served) in experts.iter().zip(&served) {
            let gated_apart = self.gated_apart(feed);
            let apart = gated_apart || self.apart(&feed.down);
            // All rows of a window must be there where they are looked at.
            let most = if apart {
                served.len().max(1)
            } else {
                WIDE_ROWS
            };
            if apart && served.is_empty() {
                self.show_nothing(feed);
            }
            for served in served.chunks(most) {
                let count = served.len();
                let (input, output) = &mut buffers.expert;
                let input = sized(input, count * width);
                for (out, (row, _)) in input.chunks_exact_mut(width).zip(served) {
                    out.copy_from_slice(&normed[row * width..(row + 1) * width]);
                }
                let x = View::dense(input, count);
                let output = sized(output, count * width);
                let segments = match apart {
                    true => self.segments_of(served),
                    false => Vec::new(),
                };
                if gated_apart {
                    let Apart { gate, up, .. } = &mut buffers.apart;
                    let scratch = (&mut buffers.wide, gate, up);
                    self.dense_apart(feed, x, scratch, output, &segments);
                } else {
                    let wide = sized(&mut buffers.wide, count * feed.gate.weight.rows());
                    let (gate, up) = (feed.gate.affine(), feed.up.affine());
                    gated(x, gate, up, wide, self.spread);
                    let wide = View::dense(wide, count);
                    self.project(&feed.down, wide, output, &segments);
                }
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

    /// The windows' rows among those that an expert serves, which are in order.
    fn segments_of(&self, served: &[(usize, f32)]) -> Vec<Segment> {
        let before = |row: usize| served.partition_point(|(at, _)| *at < row);
        let segment = |Segment { rows, counted }: Segment| Segment {
            rows: before(rows.start)..before(rows.end),
            counted: before(counted.start)..before(counted.end),
        };
        self.segments().into_iter().map(segment).collect()
    }

    /// Shows an expert that serves no row of the block.
    fn show_nothing(&self, feed: &Gated) {
        if let Some(observer) = self.observer {
            for linear in [&feed.gate, &feed.up, &feed.down] {
                let (width, nothing) = (linear.weight.rows(), View::dense(&[], 0));
                let segments = self.segments_of(&[]);
                observer.see(&linear.name, nothing, width, &segments, self.spread);
            }
        }
    }
}
