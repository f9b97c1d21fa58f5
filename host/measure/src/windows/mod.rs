//! Windows: which token sequences a model is scored on.
//!
//! One text is one window: tokenised with special tokens and cut to the window length. Nothing slides, so windows never
//! overlap and the recorded stride equals the window length. A baseline and its subjects are scored on the same windows,
//! matched by id; the *final* arm decides, the *preview* arm only tells how much the texts themselves vary.

mod pairing;
mod reduction;
mod stratified;

pub use pairing::{Pairing, overlap_fraction};
pub use reduction::{Reduction, reduce_duplicates};
pub use stratified::{difficulty, stratify};

use crate::tiers::Profile;
use crate::{Error, Result};
use packhost_stats::rng::{Mt19937, numpy_permutation};
use rayon::prelude::*;
use std::collections::HashSet;

/// Turns a text into token ids, special tokens included.
pub trait Encoder: Sync {
    /// The ids, or why there are none.
    fn encode(&self, text: &str) -> std::result::Result<Vec<u32>, String>;

    /// The id that the reference fills short windows with: the padding token's, else 0.
    fn padding(&self) -> u32 {
        0
    }
}

impl Encoder for packhost_model::Tokenizer {
    fn encode(&self, text: &str) -> std::result::Result<Vec<u32>, String> {
        packhost_model::Tokenizer::encode(self, text).map_err(|error| error.to_string())
    }

    fn padding(&self) -> u32 {
        self.special_id("pad_token").unwrap_or(0)
    }
}

impl<F: Fn(&str) -> Vec<u32> + Sync> Encoder for F {
    fn encode(&self, text: &str) -> std::result::Result<Vec<u32>, String> {
        Ok(self(text))
    }
}

/// How texts become windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Selection {
    /// The first texts of the file, preview first: what the reference does with `local_jsonl`. The seed has no part.
    #[default]
    FileOrder,
    /// A seeded draw whose two arms hold equally difficult texts (byte 4-gram model): the reference's choice for
    /// WikiText-2.
    Stratified,
    /// A seeded shuffle: the reference's choice for hosted text.
    Shuffled,
}

impl Selection {
    /// The name in reports and configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FileOrder => "file_order",
            Self::Stratified => "stratified",
            Self::Shuffled => "shuffled",
        }
    }

    /// The selection of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::FileOrder, Self::Stratified, Self::Shuffled]
            .into_iter()
            .find(|selection| selection.name() == name)
    }
}

/// Which windows to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowPlan {
    /// Most tokens of a window.
    pub seq_len: usize,
    /// Windows of the preview arm.
    pub preview: usize,
    /// Windows of the final arm.
    pub final_: usize,
    /// Seed of the draw.
    pub seed: u64,
    /// Which repetition this is; added to the seed, so that repeated runs see other windows.
    pub run: u64,
    /// How windows are drawn.
    pub selection: Selection,
    /// Sets the floor when repeated texts force fewer windows.
    pub profile: Profile,
}

impl WindowPlan {
    /// The seed of this run's draw.
    #[must_use]
    pub fn effective_seed(&self) -> u64 {
        self.seed.wrapping_add(self.run)
    }

    fn check(&self) -> Result<()> {
        if self.seq_len < 2 {
            return Err(Error::WindowPlan(format!(
                "a window of {} tokens has no loss; seq_len must be at least 2",
                self.seq_len
            )));
        }
        if self.preview == 0 || self.final_ == 0 {
            return Err(Error::WindowPlan(format!(
                "both arms need windows, but preview is {} and final is {}",
                self.preview, self.final_
            )));
        }
        Ok(())
    }
}

/// One window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Identity for pairing: position in the draw, preview first.
    pub id: u32,
    /// Position of its text in the data set.
    pub text: usize,
    /// At least two ids, special tokens included, no padding.
    pub tokens: Vec<u32>,
}

/// The windows of one evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Decides nothing.
    pub preview: Vec<Window>,
    /// Decides.
    pub final_: Vec<Window>,
    /// What was asked for.
    pub plan: WindowPlan,
    /// Texts that were looked at and are too short for a window.
    pub short: usize,
    /// Texts that were looked at and repeat another's tokens.
    pub duplicates: usize,
    /// Steps in which repeated texts forced fewer windows.
    pub reductions: Vec<Reduction>,
    /// The id that windows are filled up with, to `plan.seq_len`, where outputs of modules are measured as the reference
    /// does. It enters no loss.
    pub pad: u32,
}

impl Windows {
    /// All token sequences, preview first.
    #[must_use]
    pub fn sequences(&self) -> Vec<&[u32]> {
        self.all().map(|window| window.tokens.as_slice()).collect()
    }

    /// All windows, preview first.
    pub fn all(&self) -> impl Iterator<Item = &Window> {
        self.preview.iter().chain(&self.final_)
    }

    /// Real tokens of an arm.
    #[must_use]
    pub fn tokens(arm: &[Window]) -> usize {
        arm.iter().map(|window| window.tokens.len()).sum()
    }
}

/// Draw windows from texts.
///
/// Fails when the plan makes no sense, a text cannot be tokenised, no text has two tokens, or there are fewer usable
/// texts than windows (repeated texts count once).
pub fn select(texts: &[String], encoder: &dyn Encoder, plan: &WindowPlan) -> Result<Windows> {
    plan.check()?;
    match plan.selection {
        Selection::FileOrder => file_order(texts, encoder, plan),
        Selection::Shuffled => {
            let mut order: Vec<usize> = (0..texts.len()).collect();
            // The reference hands Python's generator the seed's low 32 bits.
            Mt19937::from_key(&[plan.effective_seed() as u32]).python_shuffle(&mut order);
            let wanted = plan.preview + plan.final_;
            let mut draw = Draw::new(texts, encoder, plan);
            draw.walk(&order, wanted.max(64), |kept| kept.len() >= wanted)?;
            draw.finish(|kept| {
                let mut kept = kept.into_iter().take(wanted);
                (kept.by_ref().take(plan.preview).collect(), kept.collect())
            })
        }
        Selection::Stratified => {
            let wanted = plan.preview + plan.final_;
            let reserve = (wanted / 10).max(16);
            let chunk = texts.len().min(wanted + 2 * reserve).clamp(64, 256);
            let order = numpy_permutation(plan.effective_seed() as u32, texts.len());
            let mut draw = Draw::new(texts, encoder, plan);
            draw.walk(&order, chunk, |kept| kept.len() >= wanted + reserve)?;
            draw.finish(|kept| {
                let candidates: Vec<&str> =
                    kept.iter().map(|(text, _)| texts[*text].as_str()).collect();
                let difficulties = difficulty(&candidates);
                let items: Vec<(f64, usize)> = difficulties
                    .into_iter()
                    .zip(kept.iter().map(|(text, _)| *text))
                    .collect();
                let (preview, final_) = stratify(&items, plan.preview, plan.final_);
                let mut tokens: std::collections::HashMap<usize, Vec<u32>> =
                    kept.into_iter().collect();
                let mut arm = |texts: Vec<usize>| {
                    texts
                        .into_iter()
                        .map(|text| (text, tokens.remove(&text).unwrap_or_default()))
                        .collect()
                };
                (arm(preview), arm(final_))
            })
        }
    }
}

/// The first texts of the file. Repeated texts shrink both arms by the reference's rule instead of being skipped.
fn file_order(texts: &[String], encoder: &dyn Encoder, plan: &WindowPlan) -> Result<Windows> {
    let wanted = plan.preview + plan.final_;
    let order: Vec<usize> = (0..texts.len()).collect();
    let mut draw = Draw::new(texts, encoder, plan);
    draw.distinct = false;
    draw.walk(&order, wanted.max(64), |kept| kept.len() >= wanted)?;
    let kept = std::mem::take(&mut draw.kept);
    let repeats = |drawn: &[(usize, Vec<u32>)]| {
        let distinct: HashSet<&[u32]> = drawn.iter().map(|(_, t)| t.as_slice()).collect();
        drawn.len() - distinct.len()
    };
    if kept.len() < wanted {
        draw.duplicates = repeats(&kept);
        draw.kept = kept;
        draw.kept.truncate(draw.kept.len() - draw.duplicates);
        return draw.finish(|_| (Vec::new(), Vec::new()));
    }
    let arms = |preview: usize, final_: usize| &kept[..preview + final_];
    let (mut preview, mut final_) = (plan.preview, plan.final_);
    let mut reductions = Vec::new();
    draw.duplicates = repeats(arms(preview, final_));
    if draw.duplicates > 0 {
        let per_arm = preview.min(final_);
        reductions = reduce_duplicates(per_arm, plan.profile, |per_arm| {
            repeats(arms(per_arm, per_arm))
        })?;
        let left = reductions.last().map_or(per_arm, |step| step.per_arm);
        (preview, final_) = (left, left);
    }
    draw.kept = arms(preview, final_).to_vec();
    draw.wanted = (preview, final_);
    let mut windows = draw.finish(|kept| {
        let mut kept = kept.into_iter();
        (kept.by_ref().take(preview).collect(), kept.collect())
    })?;
    windows.reductions = reductions;
    Ok(windows)
}

type Kept = Vec<(usize, Vec<u32>)>;

/// The texts that became windows so far, and why others did not.
struct Draw<'a> {
    texts: &'a [String],
    encoder: &'a dyn Encoder,
    plan: &'a WindowPlan,
    /// Whether texts that repeat another's tokens are skipped.
    distinct: bool,
    /// Windows of the two arms that [`Draw::finish`] insists on.
    wanted: (usize, usize),
    seen: HashSet<Vec<u32>>,
    kept: Kept,
    short: usize,
    duplicates: usize,
}

impl<'a> Draw<'a> {
    fn new(texts: &'a [String], encoder: &'a dyn Encoder, plan: &'a WindowPlan) -> Self {
        Self {
            texts,
            encoder,
            plan,
            distinct: true,
            wanted: (plan.preview, plan.final_),
            seen: HashSet::new(),
            kept: Vec::new(),
            short: 0,
            duplicates: 0,
        }
    }

    /// Tokenise texts in the given order, a chunk at a time, until enough are kept.
    fn walk(
        &mut self,
        order: &[usize],
        chunk: usize,
        enough: impl Fn(&Kept) -> bool,
    ) -> Result<()> {
        for chunk in order.chunks(chunk) {
            if enough(&self.kept) {
                break;
            }
            let encoded: Vec<Result<Vec<u32>>> = chunk
                .par_iter()
                .map(|&index| {
                    let mut tokens = self
                        .encoder
                        .encode(&self.texts[index])
                        .map_err(|reason| Error::Tokenise { index, reason })?;
                    tokens.truncate(self.plan.seq_len);
                    Ok(tokens)
                })
                .collect();
            for (&index, tokens) in chunk.iter().zip(encoded) {
                let tokens = tokens?;
                if tokens.len() < 2 {
                    self.short += 1;
                } else if self.distinct && !self.seen.insert(tokens.clone()) {
                    self.duplicates += 1;
                } else {
                    self.kept.push((index, tokens));
                }
            }
        }
        Ok(())
    }

    /// Split what was kept into arms, or say why it is not enough.
    fn finish(self, split: impl FnOnce(Kept) -> (Kept, Kept)) -> Result<Windows> {
        if self.kept.is_empty() {
            return Err(Error::TooFewTokens {
                texts: self.texts.len(),
                seq_len: self.plan.seq_len,
            });
        }
        let (preview, final_) = self.wanted;
        if self.kept.len() < preview + final_ {
            return Err(Error::TooFewWindows {
                preview,
                final_,
                texts: self.texts.len(),
                usable: self.kept.len(),
                short: self.short,
                duplicates: self.duplicates,
            });
        }
        let (preview, final_) = split(self.kept);
        let mut next = 0;
        let mut arm = |kept: Kept| -> Vec<Window> {
            kept.into_iter()
                .map(|(text, tokens)| {
                    let id = next;
                    next += 1;
                    Window { id, text, tokens }
                })
                .collect()
        };
        Ok(Windows {
            preview: arm(preview),
            final_: arm(final_),
            plan: *self.plan,
            short: self.short,
            duplicates: self.duplicates,
            reductions: Vec::new(),
            pad: self.encoder.padding(),
        })
    }
}

/// Which of `available` windows a guard samples for activation statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sample {
    /// `round-half-even(i·(N-1)/(count-1))`.
    EvenlySpaced,
    /// The last ones.
    Last,
    /// The first ones.
    First,
}

/// Positions of a sample of `count` among `available` windows, ascending; all of them when there are no more.
#[must_use]
pub fn sample(available: usize, count: usize, policy: Sample) -> Vec<usize> {
    let count = count.min(available);
    match policy {
        Sample::First => (0..count).collect(),
        Sample::Last => (available - count..available).collect(),
        Sample::EvenlySpaced if count <= 1 => (0..count).collect(),
        Sample::EvenlySpaced => (0..count)
            .map(|i| {
                let position = (i * (available - 1)) as f64 / (count - 1) as f64;
                position.round_ties_even() as usize
            })
            .collect(),
    }
}
