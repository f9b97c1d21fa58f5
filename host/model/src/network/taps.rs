//! Observing a pass: statistics of what modules give, taken while a block's activations stand in memory.
//!
//! A *module* is a projection or the embedding; its name is its weight's name without `.weight`, and its output has the bias
//! added. What is observed is a window's *rows*: one per token and, where a window carries padding, one per padding token,
//! up to a common length. Padding rows run through the network as queries at their positions which see the window's tokens
//! and are seen by none; they enter no loss. An expert's rows are those that were routed to it.
//!
//! Only statistics outlive a block. Sums over windows are added up in one order (the windows of the spectrum first, then the
//! others, ascending), whichever block or thread they come from.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{Mutex, PoisonError},
};

use packhost_tensor::cpu::{
    activation::{Spectrum, Sums, edge, outliers, spectrum},
    matmul::{Spread, View},
};

/// What to observe of one module. Windows are numbers of [`ScoreRequest::windows`](super::ScoreRequest::windows).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tap {
    /// Windows whose edge risk is wanted; all their rows count.
    pub risk: BTreeSet<usize>,
    /// Windows whose mean square is wanted; all their rows count.
    pub mean_square: BTreeSet<usize>,
    /// Windows whose outlying singular values are counted, by the threshold in thousandths of the noise edge; all their rows
    /// count. This takes a whole spectrum each.
    pub outliers: BTreeMap<u32, BTreeSet<usize>>,
    /// Whether mean and variance per feature are wanted, over all windows, without padding and without each window's first
    /// token.
    pub moments: bool,
    /// Whether the spectrum over [`TapRequest::spectrum_windows`] is wanted, without padding and first tokens.
    pub spectrum: bool,
}

/// Rows that windows are filled up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padding {
    /// The token that they are filled up with.
    pub token: u32,
    /// Rows of a full window; a longer one stays as it is.
    pub rows: usize,
}

/// What to observe of a pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TapRequest {
    /// By module name.
    pub modules: BTreeMap<String, Tap>,
    /// The windows that spectra are taken of, all together: they run as one block.
    pub spectrum_windows: BTreeSet<usize>,
    /// How windows are filled up whose edge risk or mean square is wanted.
    pub padding: Option<Padding>,
}

/// Mean and variance of each feature of a module's output.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Rows that were counted.
    pub rows: u64,
    /// By feature; NaN without rows.
    pub mean: Vec<f64>,
    /// By feature, divided by the rows; NaN without rows.
    pub variance: Vec<f64>,
}

/// What was found of one module.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    /// Edge risk by window; NaN where no row reached the module or a number was not finite.
    pub risk: BTreeMap<usize, f64>,
    /// Mean square by window; NaN where no row reached the module.
    pub mean_square: BTreeMap<usize, f64>,
    /// Outlying singular values by threshold and window; NaN as the risk.
    pub outliers: BTreeMap<(u32, usize), f64>,
    /// Mean and variance per feature.
    pub moments: Option<Moments>,
    /// Spectrum about the features' means.
    pub spectrum: Option<Spectrum>,
}

/// What was found of a pass.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// By module, those that ran. Modules before the layer that the pass started from did not: what they give is the
    /// baseline's, to the bit.
    pub modules: BTreeMap<String, Findings>,
}

impl Tap {
    /// Whether a figure of all rows of `window` is wanted.
    fn whole(&self, window: &usize) -> bool {
        self.risk.contains(window)
            || self.mean_square.contains(window)
            || self.thresholds(window).next().is_some()
    }

    /// Thresholds for which outliers of `window` are counted.
    fn thresholds(&self, window: &usize) -> impl Iterator<Item = u32> {
        let wanted = self
            .outliers
            .iter()
            .filter(|(_, windows)| windows.contains(window));
        wanted.map(|(threshold, _)| *threshold)
    }

    /// The largest window number that a figure of all rows is wanted of.
    fn last_window(&self) -> Option<usize> {
        let sets = [&self.risk, &self.mean_square]
            .into_iter()
            .chain(self.outliers.values());
        sets.filter_map(BTreeSet::last).copied().max()
    }
}

impl TapRequest {
    /// Rows that a window of `tokens` tokens runs with.
    pub(super) fn rows(&self, window: usize, tokens: usize) -> usize {
        match self.padding {
            Some(padding) if self.modules.values().any(|tap| tap.whole(&window)) => {
                tokens.max(padding.rows)
            }
            _ => tokens,
        }
    }

    /// The largest window number that is named anywhere.
    pub(super) fn last_window(&self) -> Option<usize> {
        let named = self.modules.values().filter_map(Tap::last_window);
        named.chain(self.spectrum_windows.last().copied()).max()
    }
}

/// One window's part of a module's output.
pub(super) struct Segment {
    /// All its rows.
    pub rows: Range<usize>,
    /// Those of tokens other than the window's first.
    pub counted: Range<usize>,
}

/// Watches one block.
pub(super) struct Observer<'a> {
    request: &'a TapRequest,
    /// The block's windows by number.
    windows: &'a [usize],
    seen: Mutex<Seen>,
}

/// What a block showed, by module.
pub(super) type Seen = BTreeMap<String, Glimpse>;

/// What a block showed of one module.
#[derive(Default)]
pub(super) struct Glimpse {
    risk: Vec<(usize, f64)>,
    mean_square: Vec<(usize, f64)>,
    outliers: Vec<((u32, usize), f64)>,
    sums: Vec<Sums>,
    spectrum: Option<Spectrum>,
}

impl<'a> Observer<'a> {
    pub fn new(request: &'a TapRequest, windows: &'a [usize]) -> Self {
        Self {
            request,
            windows,
            seen: Mutex::default(),
        }
    }

    /// Whether `module` is to be seen in this block.
    pub fn wants(&self, module: &str) -> bool {
        let spectrum = &self.request.spectrum_windows;
        let wanted = |tap: &Tap, window: &usize| {
            tap.moments || tap.whole(window) || (tap.spectrum && spectrum.contains(window))
        };
        self.request
            .modules
            .get(module)
            .is_some_and(|tap| self.windows.iter().any(|window| wanted(tap, window)))
    }

    /// Looks at `output` (`width` numbers per row), whose rows belong to the block's windows as `segments` says.
    pub fn see(
        &self,
        module: &str,
        output: View<'_>,
        width: usize,
        segments: &[Segment],
        spread: Spread,
    ) {
        let tap = self.request.modules.get(module);
        let Some(tap) = tap.filter(|_| self.wants(module)) else {
            return;
        };
        let part = |range: &Range<usize>| View {
            data: output
                .data
                .get(range.start * output.stride..)
                .unwrap_or(&[]),
            rows: range.len(),
            stride: output.stride,
        };
        let in_spectrum =
            |window: &usize| tap.spectrum && self.request.spectrum_windows.contains(window);
        let parts = spread.map(segments.len(), |index| {
            let (segment, window) = (&segments[index], &self.windows[index]);
            let risk = tap.risk.contains(window);
            let whole = (risk || tap.mean_square.contains(window))
                .then(|| edge(part(&segment.rows), width, risk));
            let outlying: Vec<((u32, usize), f64)> = tap
                .thresholds(window)
                .map(|threshold| {
                    let limit = f64::from(threshold) / 1000.0;
                    let count = outliers(part(&segment.rows), width, limit);
                    ((threshold, *window), count)
                })
                .collect();
            let sums = (tap.moments || in_spectrum(window))
                .then(|| Sums::of(part(&segment.counted), width));
            (whole, outlying, sums)
        });
        let mut glimpse = Glimpse::default();
        let mut views = Vec::new();
        let mut sums = Sums::default();
        for ((window, segment), (whole, outlying, own)) in
            self.windows.iter().zip(segments).zip(parts)
        {
            glimpse.outliers.extend(outlying);
            if let Some(edge) = whole {
                if tap.risk.contains(window) {
                    glimpse.risk.push((*window, edge.risk));
                }
                if tap.mean_square.contains(window) {
                    glimpse.mean_square.push((*window, edge.mean_square));
                }
            }
            let Some(own) = own else { continue };
            if in_spectrum(window) {
                sums.add(&own);
                views.push(part(&segment.counted));
            }
            if tap.moments {
                glimpse.sums.push(own);
            }
        }
        if !views.is_empty() {
            glimpse.spectrum = Some(spectrum(&views, width, &sums, spread));
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(module.to_owned(), glimpse);
    }

    pub fn finish(self) -> Seen {
        self.seen
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Joins what blocks showed, in the order of the blocks, whichever comes first.
#[derive(Default)]
pub(super) struct Collector {
    next: usize,
    waiting: BTreeMap<usize, Seen>,
    found: BTreeMap<String, (Findings, Sums)>,
}

impl Collector {
    /// Takes what block `index` showed.
    pub fn take(&mut self, index: usize, seen: Seen) {
        self.waiting.insert(index, seen);
        while let Some(seen) = self.waiting.remove(&self.next) {
            self.next += 1;
            for (module, glimpse) in seen {
                let (findings, sums) = self.found.entry(module).or_default();
                findings.risk.extend(glimpse.risk);
                findings.mean_square.extend(glimpse.mean_square);
                findings.outliers.extend(glimpse.outliers);
                findings.spectrum = findings.spectrum.or(glimpse.spectrum);
                glimpse.sums.iter().for_each(|own| sums.add(own));
            }
        }
    }

    /// What all blocks showed together.
    pub fn finish(self, request: &TapRequest) -> Observed {
        let modules = self
            .found
            .into_iter()
            .map(|(module, (mut findings, sums))| {
                if request.modules.get(&module).is_some_and(|tap| tap.moments) {
                    findings.moments = Some(Moments {
                        rows: sums.rows,
                        mean: sums.means(),
                        variance: sums.variances(),
                    });
                }
                (module, findings)
            });
        Observed {
            modules: modules.collect(),
        }
    }
}
