//! Token losses of windows.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
};

use packhost_tensor::cpu::{
    matmul::{Spread, View},
    network::{
        loss::{Output, TokenLoss, losses},
        rotary::Rotary,
    },
};

use super::{
    forward::{Buffers, Pass, check},
    kept::{HiddenCache, KeepPolicy, Reference},
    resolve::Network,
};
use crate::error::{Error, Result};

/// Tokens that a block has at least, unless the windows end: enough rows for the matrix product to reach its speed.
const BLOCK_ROWS: usize = 512;
/// Blocks run side by side only while their activations stay below this.
const SIDE_BY_SIDE_BYTES: usize = 2 << 30;

/// What to score. `Default` is nothing at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScoreRequest<'a> {
    /// Token ids; each window is a text of its own. A window of `n` tokens gives `n - 1` losses, an empty one none.
    pub windows: &'a [&'a [u32]],
    /// The baseline to compare with, of the same windows.
    pub reference: Option<&'a Reference>,
    /// The baseline's hidden states on the same windows. The pass starts at the last kept place up to which this network
    /// shares every tensor with that baseline, and from the front where there is none; the result is the same.
    pub start: Option<&'a HiddenCache>,
    /// What to keep for subjects of this network.
    pub keep: Option<KeepPolicy>,
    /// Ends the pass with [`Error::Cancelled`] soon after it becomes true.
    pub cancel: Option<&'a AtomicBool>,
}

/// What [`Network::score`] gives. Outer vectors go by window, inner ones by predicted token (the first one predicts the
/// window's second token).
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// `-ln p(token)`, in nats.
    pub losses: Vec<Vec<f32>>,
    /// KL divergence of this network's prediction from the baseline's, in nats, with the baseline's probabilities in front.
    pub divergence: Option<Vec<Vec<f32>>>,
    /// Whether both models predict the same token as the likeliest.
    pub same_top: Option<Vec<Vec<bool>>>,
    /// The reference that was asked for.
    pub reference: Option<Reference>,
    /// The hidden states that were asked for, when at least one place fits the budget.
    pub hidden: Option<HiddenCache>,
}

/// What one block gives; vectors go by window.
struct Scored {
    tokens: Vec<TokenLoss>,
    /// Per kept cut.
    states: Vec<Vec<Vec<f32>>>,
    normed: Vec<Vec<f32>>,
}

impl Network {
    /// Runs the windows on the current rayon pool (see [`Cpu::install`](packhost_tensor::cpu::Cpu::install)).
    ///
    /// # Errors
    /// When a token id is outside the vocabulary, when reference or hidden states are of other windows, when the baseline
    /// predicts another vocabulary, or when cancelled.
    pub fn score(&self, request: &ScoreRequest<'_>) -> Result<Scores> {
        self.validate(request)?;
        let windows = request.windows;
        let tokens: usize = windows.iter().map(|window| window.len()).sum();
        let keep = request.keep.unwrap_or_default();
        let cuts = keep.cuts(self.layers(), tokens, self.hidden());
        let entry = request.start.and_then(|cache| cache.entry(self));
        let job = Job {
            network: self,
            request,
            rotary: self.rotary(windows),
            // A pass that starts behind a place to be kept would not see it.
            entry: entry.filter(|(at, _)| cuts.first().is_none_or(|first| at <= first)),
            cuts,
            keep_normed: keep.reference,
            buffers: Mutex::new(Vec::new()),
        };
        let blocks = blocks(windows);
        let (outer, inner) = self.spread(&blocks, windows);
        let scored = outer.map(blocks.len(), |index| {
            job.block(blocks[index].clone(), inner)
        });
        let scored = scored.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(self.gather(request, &job.cuts, scored))
    }

    fn validate(&self, request: &ScoreRequest<'_>) -> Result<()> {
        let refused = |problem| Err(Error::Score { problem });
        let vocabulary = self.vocabulary();
        for (index, window) in request.windows.iter().enumerate() {
            if let Some(at) = window
                .iter()
                .position(|&token| token as usize >= vocabulary)
            {
                return refused(format!(
                    "token {at} of window {index} is {}, the vocabulary has {vocabulary} entries",
                    window[at]
                ));
            }
        }
        let same = |windows: &[Vec<u32>]| {
            windows
                .iter()
                .map(Vec::as_slice)
                .eq(request.windows.iter().copied())
        };
        if let Some(reference) = request.reference {
            if !same(&reference.windows) {
                return refused("the reference was made from other windows".into());
            }
            if reference.vocabulary() != vocabulary {
                return refused(format!(
                    "the baseline predicts {} token ids, this network {vocabulary}: their predictions cannot be compared",
                    reference.vocabulary()
                ));
            }
        }
        if request.start.is_some_and(|cache| !same(&cache.windows)) {
            return refused("the hidden states to start from were made from other windows".into());
        }
        Ok(())
    }

    fn rotary(&self, windows: &[&[u32]]) -> Rotary {
        let longest = windows.iter().map(|window| window.len()).max().unwrap_or(0);
        let dim = self
            .inner()
            .layers
            .first()
            .map_or(0, |layer| layer.heads.dim);
        let round = match self.rounded_frequencies() {
            true => |frequency| half::bf16::from_f32(frequency).to_f32(),
            false => Rotary::exact,
        };
        Rotary::new(dim, self.inner().theta, longest, round)
    }

    /// Where to use the threads: over blocks when there are enough of them, else within each block. Which it is changes
    /// nothing in the result.
    fn spread(&self, blocks: &[Range<usize>], windows: &[&[u32]]) -> (Spread, Spread) {
        let threads = rayon::current_num_threads();
        let rows = |block: &Range<usize>| {
            windows[block.clone()]
                .iter()
                .map(|window| window.len())
                .sum::<usize>()
        };
        let widest = self.inner().layers.iter().map(|layer| {
            let feed = match &layer.feed {
                super::resolve::Feed::Dense(dense) => dense.gate.weight.rows(),
                super::resolve::Feed::Experts {
                    experts, active, ..
                } => {
                    experts
                        .first()
                        .map_or(0, |expert| expert.gate.weight.rows())
                        * active
                }
            };
            4 * self.hidden() + 2 * layer.heads.row() + feed
        });
        let largest = blocks.iter().map(rows).max().unwrap_or(0) * widest.max().unwrap_or(0) * 4;
        if blocks.len() >= 2 * threads && largest.saturating_mul(threads) <= SIDE_BY_SIDE_BYTES {
            (Spread::Pool, Spread::Here)
        } else {
            (Spread::Here, Spread::Pool)
        }
    }

    fn gather(&self, request: &ScoreRequest<'_>, cuts: &[usize], scored: Vec<Scored>) -> Scores {
        let keep = request.keep.unwrap_or_default();
        let windows: Arc<[Vec<u32>]> = match request.keep {
            Some(_) => request
                .windows
                .iter()
                .map(|window| window.to_vec())
                .collect(),
            None => Arc::new([]),
        };
        let mut tokens = Vec::new();
        let mut normed = Vec::new();
        let mut states: Vec<Vec<Vec<f32>>> = vec![Vec::new(); cuts.len()];
        for block in scored {
            tokens.extend(block.tokens);
            normed.extend(block.normed);
            for (all, block) in states.iter_mut().zip(block.states) {
                all.extend(block);
            }
        }
        let mut rest = tokens.as_slice();
        let by_window: Vec<&[TokenLoss]> = request
            .windows
            .iter()
            .map(|window| {
                let (mine, others) = rest.split_at(window.len().saturating_sub(1));
                rest = others;
                mine
            })
            .collect();
        let compared = request.reference.is_some();
        Scores {
            losses: each(&by_window, |token| token.loss),
            divergence: compared.then(|| each(&by_window, |token| token.divergence)),
            same_top: compared.then(|| each(&by_window, |token| token.same_top)),
            reference: keep.reference.then(|| Reference {
                windows: windows.clone(),
                normed: normed.into(),
                head: self.inner().head.clone(),
            }),
            hidden: (!cuts.is_empty()).then(|| HiddenCache {
                network: self.clone(),
                windows,
                states: cuts
                    .iter()
                    .copied()
                    .zip(states.into_iter().map(Into::into))
                    .collect(),
            }),
        }
    }
}

/// One number of every token.
fn each<T>(windows: &[&[TokenLoss]], field: impl Fn(&TokenLoss) -> T) -> Vec<Vec<T>> {
    windows
        .iter()
        .map(|window| window.iter().map(&field).collect())
        .collect()
}

/// Cuts the windows into blocks of at least [`BLOCK_ROWS`] tokens.
fn blocks(windows: &[&[u32]]) -> Vec<Range<usize>> {
    let mut blocks = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (index, window) in windows.iter().enumerate() {
        rows += window.len();
        if rows >= BLOCK_ROWS || index + 1 == windows.len() {
            blocks.push(start..index + 1);
            (start, rows) = (index + 1, 0);
        }
    }
    blocks
}

/// What all blocks share.
struct Job<'a> {
    network: &'a Network,
    request: &'a ScoreRequest<'a>,
    rotary: Rotary,
    cuts: Vec<usize>,
    keep_normed: bool,
    /// The cut to start from, and the hidden states there by window.
    entry: Option<(usize, &'a [Vec<f32>])>,
    /// Activations that are not in use.
    buffers: Mutex<Vec<Buffers>>,
}

impl Job<'_> {
    fn block(&self, block: Range<usize>, spread: Spread) -> Result<Scored> {
        check(self.request.cancel)?;
        let idle = || self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffers = idle().pop().unwrap_or_default();
        let scored = self.run(block, spread, &mut buffers);
        idle().push(buffers);
        scored
    }

    fn run(&self, block: Range<usize>, spread: Spread, buffers: &mut Buffers) -> Result<Scored> {
        let windows = &self.request.windows[block.clone()];
        let mut end = 0;
        let ranges: Vec<Range<usize>> = windows
            .iter()
            .map(|window| {
                end += window.len();
                end - window.len()..end
            })
            .collect();
        let pass = Pass {
            network: self.network.inner(),
            rotary: &self.rotary,
            windows: &ranges,
            spread,
            cancel: self.request.cancel,
        };
        let width = self.network.hidden();
        let rows_of = |rows: &[f32], range: &Range<usize>| {
            rows[range.start * width..range.end * width].to_vec()
        };
        let mut states = Vec::with_capacity(self.cuts.len());
        let mut keep = |cut: usize, hidden: &[f32]| {
            if self.cuts.contains(&cut) {
                states.push(ranges.iter().map(|range| rows_of(hidden, range)).collect());
            }
        };
        let first = match self.entry {
            Some((cut, states)) => {
                pass.resume(&states[block.clone()], buffers);
                cut
            }
            None => {
                pass.embed(windows.iter().copied().flatten(), buffers);
                0
            }
        };
        keep(first, &buffers.hidden);
        for layer in first..self.network.layers() {
            pass.layer(layer, buffers)?;
            keep(layer + 1, &buffers.hidden);
        }
        pass.finish(buffers);

        check(self.request.cancel)?;
        let targets: Vec<u32> = windows
            .iter()
            .flat_map(|window| window.iter().skip(1).copied())
            .collect();
        let baseline = self.request.reference.map(|reference| {
            buffers.baseline.clear();
            reference.normed[block.clone()]
                .iter()
                .for_each(|rows| buffers.baseline.extend_from_slice(rows));
            Output {
                hidden: View::dense(&buffers.baseline, targets.len()),
                head: &reference.head,
            }
        });
        let last = &buffers.last[..targets.len() * width];
        let subject = Output {
            hidden: View::dense(last, targets.len()),
            head: &self.network.inner().head,
        };
        let tokens = losses(subject, baseline, &targets, spread);
        let mut normed = Vec::new();
        if self.keep_normed {
            let mut rest = last;
            for window in windows {
                let (mine, others) = rest.split_at(window.len().saturating_sub(1) * width);
                normed.push(mine.to_vec());
                rest = others;
            }
        }
        Ok(Scored {
            tokens,
            states,
            normed,
        })
    }
}
