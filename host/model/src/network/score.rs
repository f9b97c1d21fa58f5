//! Token losses of windows.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use packhost_tensor::cpu::{
    matmul::{Spread, View},
    network::{
        attention::Window,
        loss::{Output, TokenLoss, losses},
        rotary::Rotary,
    },
};

use super::{
    forward::{Buffers, Pass, check},
    kept::{HiddenCache, KeepPolicy, Reference},
    resolve::Network,
    taps::{Collector, Observed, Observer, TapRequest},
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
    /// The baseline's hidden states on the same windows, or on these and further ones behind them. The pass starts at the last kept place up to which this network
    /// shares every tensor with that baseline, and from the front where there is none; the result is the same.
    pub start: Option<&'a HiddenCache>,
    /// What to keep for subjects of this network.
    pub keep: Option<KeepPolicy>,
    /// Modules' outputs to observe on the way. They change no loss.
    pub taps: Option<&'a TapRequest>,
    /// Whether to tell the total variation beside a reference.
    pub variation: bool,
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
    /// Total variation between the two predictions, `sum |p - q| / 2`.
    pub variation: Option<Vec<Vec<f32>>>,
    /// What was observed, where anything was to be.
    pub observed: Option<Observed>,
    /// The reference that was asked for.
    pub reference: Option<Reference>,
    /// The hidden states that were asked for, when at least one place fits the budget.
    pub hidden: Option<HiddenCache>,
}

/// What one block gives of one window.
#[derive(Default)]
struct Scored {
    tokens: Vec<TokenLoss>,
    /// Per kept cut.
    states: Vec<Vec<f32>>,
    normed: Vec<f32>,
}

impl Network {
    /// Runs the windows on the current rayon pool (see [`Cpu::install`](packhost_tensor::cpu::Cpu::install)).
    ///
    /// # Errors
    /// When a token id is outside the vocabulary, when reference or hidden states are of other windows, when the baseline
    /// predicts another vocabulary, when a module or window to be observed is none of these, or when cancelled.
    pub fn score(&self, request: &ScoreRequest<'_>) -> Result<Scores> {
        self.validate(request)?;
        let windows = request.windows;
        let rows: Vec<usize> = windows
            .iter()
            .enumerate()
            .map(|(index, window)| match request.taps {
                Some(taps) => taps.rows(index, window.len()),
                None => window.len(),
            })
            .collect();
        let keep = request.keep.unwrap_or_default();
        let cuts = keep.cuts(self.layers(), rows.iter().sum(), self.hidden());
        let padding = request.taps.and_then(|taps| taps.padding);
        let padding = padding.map(|padding| padding.token);
        let entry = request
            .start
            .and_then(|cache| cache.entry(self, &rows, padding));
        let (order, together) = order(windows.len(), request.taps);
        let sizes: Vec<usize> = order.iter().map(|&window| rows[window]).collect();
        let mut blocks = blocks(&sizes[together..]);
        for block in &mut blocks {
            *block = block.start + together..block.end + together;
        }
        let job = Job {
            network: self,
            request,
            rotary: self.rotary(rows.iter().copied().max().unwrap_or(0)),
            // A pass that starts behind a place to be kept would not see it.
            entry: entry.filter(|(at, _)| cuts.first().is_none_or(|first| at <= first)),
            cuts,
            keep_normed: keep.reference,
            padding: padding.unwrap_or(0),
            rows,
            collector: Mutex::default(),
            buffers: Mutex::new(Vec::new()),
        };
        let mut scored = Vec::with_capacity(windows.len());
        let mut first = 0;
        if together > 0 {
            scored.push(job.block(first, &order[..together], Spread::Pool));
            first += 1;
        }
        let (outer, inner) = self.spread(&blocks, &sizes);
        scored.extend(in_order(outer, blocks.len(), |index| {
            job.block(first + index, &order[blocks[index].clone()], inner)
        }));
        let mut by_window: Vec<Scored> = windows.iter().map(|_| Scored::default()).collect();
        let scored = scored.into_iter().collect::<Result<Vec<_>>>()?;
        for (window, scored) in order.into_iter().zip(scored.into_iter().flatten()) {
            by_window[window] = scored;
        }
        Ok(self.gather(job, by_window))
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
        let begins = |windows: &[Vec<u32>]| windows.get(..request.windows.len()).is_some_and(same);
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
        if request.start.is_some_and(|cache| !begins(&cache.windows)) {
            return refused("the hidden states to start from were made from other windows".into());
        }
        if let Some(taps) = request.taps {
            let known: BTreeSet<&str> = self.modules().into_iter().collect();
            if let Some(name) = taps
                .modules
                .keys()
                .find(|name| !known.contains(name.as_str()))
            {
                return refused(format!("this network has no module `{name}` to observe"));
            }
            let last = taps.last_window();
            if let Some(window) = last.filter(|&last| last >= request.windows.len()) {
                return refused(format!(
                    "window {window} is to be observed, but there are {}",
                    request.windows.len()
                ));
            }
            let token = taps.padding.map(|padding| padding.token);
            if let Some(token) = token.filter(|&token| token as usize >= vocabulary) {
                return refused(format!(
                    "the padding token is {token}, the vocabulary has {vocabulary} entries"
                ));
            }
        }
        Ok(())
    }

    fn rotary(&self, longest: usize) -> Rotary {
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
    fn spread(&self, blocks: &[Range<usize>], sizes: &[usize]) -> (Spread, Spread) {
        let threads = rayon::current_num_threads();
        let rows = |block: &Range<usize>| sizes[block.clone()].iter().sum::<usize>();
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

    fn gather(&self, job: Job<'_>, scored: Vec<Scored>) -> Scores {
        let request = job.request;
        let keep = request.keep.unwrap_or_default();
        let windows: Arc<[Vec<u32>]> = match request.keep {
            Some(_) => request
                .windows
                .iter()
                .map(|window| window.to_vec())
                .collect(),
            None => Arc::new([]),
        };
        let mut tokens = Vec::with_capacity(scored.len());
        let mut normed = Vec::new();
        let mut states: Vec<Vec<Vec<f32>>> = vec![Vec::new(); job.cuts.len()];
        for window in scored {
            tokens.push(window.tokens);
            normed.push(window.normed);
            for (all, state) in states.iter_mut().zip(window.states) {
                all.push(state);
            }
        }
        let collector = job.collector.into_inner();
        let collector = collector.unwrap_or_else(PoisonError::into_inner);
        let compared = request.reference.is_some();
        Scores {
            losses: each(&tokens, |token| token.loss),
            divergence: compared.then(|| each(&tokens, |token| token.divergence)),
            same_top: compared.then(|| each(&tokens, |token| token.same_top)),
            variation: (compared && request.variation)
                .then(|| each(&tokens, |token| token.variation)),
            observed: request.taps.map(|taps| collector.finish(taps)),
            reference: keep.reference.then(|| Reference {
                windows: windows.clone(),
                normed: normed.into(),
                head: self.inner().head.clone(),
            }),
            hidden: (!job.cuts.is_empty()).then(|| HiddenCache {
                network: self.clone(),
                windows,
                states: job
                    .cuts
                    .iter()
                    .copied()
                    .zip(states.into_iter().map(Into::into))
                    .collect(),
                padding: request
                    .taps
                    .and_then(|taps| taps.padding)
                    .map(|padding| padding.token),
            }),
        }
    }
}

/// One number of every token.
fn each<T>(windows: &[Vec<TokenLoss>], field: impl Fn(&TokenLoss) -> T) -> Vec<Vec<T>> {
    windows
        .iter()
        .map(|window| window.iter().map(&field).collect())
        .collect()
}

/// The windows in the order in which they run, and how many of the first of them must be one block: those that a spectrum is
/// taken of.
fn order(windows: usize, taps: Option<&TapRequest>) -> (Vec<usize>, usize) {
    let together = taps.map(|taps| &taps.spectrum_windows);
    let first = |window: &usize| together.is_some_and(|together| together.contains(window));
    let mut order: Vec<usize> = (0..windows).filter(first).collect();
    let count = order.len();
    order.extend((0..windows).filter(|window| !first(window)));
    (order, count)
}

/// Cuts windows of so many rows into blocks of at least [`BLOCK_ROWS`] rows.
fn blocks(sizes: &[usize]) -> Vec<Range<usize>> {
    let mut blocks = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (index, size) in sizes.iter().enumerate() {
        rows += size;
        if rows >= BLOCK_ROWS || index + 1 == sizes.len() {
            blocks.push(start..index + 1);
            (start, rows) = (index + 1, 0);
        }
    }
    blocks
}

/// The results of `work` for every index below `count`. Indices are handed out in ascending order, so that what waits for
/// its predecessors never waits for more of them than there are threads.
fn in_order<R: Send>(
    spread: Spread,
    count: usize,
    work: impl Fn(usize) -> R + Sync + Send,
) -> Vec<R> {
    if spread == Spread::Here {
        return (0..count).map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let workers = spread.map(rayon::current_num_threads(), |_| {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return done;
            }
            done.push((index, work(index)));
        }
    });
    let mut done: Vec<(usize, R)> = workers.into_iter().flatten().collect();
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// What all blocks share.
struct Job<'a> {
    network: &'a Network,
    request: &'a ScoreRequest<'a>,
    rotary: Rotary,
    cuts: Vec<usize>,
    keep_normed: bool,
    /// Rows of each window, padding included.
    rows: Vec<usize>,
    /// The token of padding.
    padding: u32,
    /// What observers saw.
    collector: Mutex<Collector>,
    /// The cut to start from, and the hidden states there by window.
    entry: Option<(usize, &'a [Vec<f32>])>,
    /// Activations that are not in use.
    buffers: Mutex<Vec<Buffers>>,
}

impl Job<'_> {
    /// Runs block `index`, the windows `members`; gives what it made of each of them.
    fn block(&self, index: usize, members: &[usize], spread: Spread) -> Result<Vec<Scored>> {
        check(self.request.cancel)?;
        let idle = || self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffers = idle().pop().unwrap_or_default();
        let observer = self.request.taps.map(|taps| Observer::new(taps, members));
        let scored = self.run(members, observer.as_ref(), spread, &mut buffers);
        idle().push(buffers);
        if let Some(observer) = observer {
            let collector = self.collector.lock();
            let mut collector = collector.unwrap_or_else(PoisonError::into_inner);
            collector.take(index, observer.finish());
        }
        scored
    }

    fn run(
        &self,
        members: &[usize],
        observer: Option<&Observer<'_>>,
        spread: Spread,
        buffers: &mut Buffers,
    ) -> Result<Vec<Scored>> {
        let tokens = |window: usize| self.request.windows[window];
        let mut end = 0;
        let windows: Vec<Window> = members
            .iter()
            .map(|&window| {
                end += self.rows[window];
                Window {
                    rows: end - self.rows[window]..end,
                    tokens: tokens(window).len(),
                }
            })
            .collect();
        let pass = Pass {
            network: self.network.inner(),
            rotary: &self.rotary,
            windows: &windows,
            spread,
            cancel: self.request.cancel,
            observer,
        };
        let width = self.network.hidden();
        let mut scored: Vec<Scored> = members.iter().map(|_| Scored::default()).collect();
        let mut keep = |cut: usize, hidden: &[f32]| {
            if self.cuts.contains(&cut) {
                for (scored, window) in scored.iter_mut().zip(&windows) {
                    let rows = window.rows.start * width..window.rows.end * width;
                    scored.states.push(hidden[rows].to_vec());
                }
            }
        };
        let first = match self.entry {
            Some((cut, states)) => {
                let states = members.iter().map(|&window| states[window].as_slice());
                pass.resume(states, buffers);
                cut
            }
            None => {
                let padded = members.iter().flat_map(|&window| {
                    let padding = std::iter::repeat(&self.padding);
                    tokens(window).iter().chain(padding).take(self.rows[window])
                });
                pass.embed(padded, buffers);
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
        let targets: Vec<u32> = members
            .iter()
            .flat_map(|&window| tokens(window).iter().skip(1).copied())
            .collect();
        let baseline = self.request.reference.map(|reference| {
            buffers.baseline.clear();
            for &window in members {
                buffers
                    .baseline
                    .extend_from_slice(&reference.normed[window]);
            }
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
        let losses = losses(subject, baseline, &targets, self.request.variation, spread);
        let mut at = 0;
        for (scored, &window) in scored.iter_mut().zip(members) {
            let range = at..at + tokens(window).len().saturating_sub(1);
            at = range.end;
            scored.tokens = losses[range.clone()].to_vec();
            if self.keep_normed {
                scored.normed = last[range.start * width..range.end * width].to_vec();
            }
        }
        Ok(scored)
    }
}
