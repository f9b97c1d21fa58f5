//! What is kept of a baseline's pass for its subjects: hidden states between layers, and what its logits are made of.

use std::{collections::BTreeMap, sync::Arc};

use packhost_tensor::cpu::matmul::Weight;

use super::resolve::Network;

/// What to keep of a pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeepPolicy {
    /// Whether to keep a [`Reference`]: one hidden state per predicted token.
    pub reference: bool,
    /// How many bytes of hidden states between layers to keep at most. Each place between two layers takes
    /// `tokens * hidden * 4` bytes; as many places as fit are kept, evenly spaced.
    pub hidden_bytes: u64,
}

impl KeepPolicy {
    /// The cuts to keep: `n` is the place before layer `n`, and the number of layers the place before the final norm.
    pub(super) fn cuts(&self, layers: usize, tokens: usize, hidden: usize) -> Vec<usize> {
        let each = (tokens as u64).saturating_mul(hidden as u64 * 4).max(1);
        let fit = usize::try_from(self.hidden_bytes / each)
            .unwrap_or(usize::MAX)
            .min(layers);
        (1..=fit)
            .map(|index| (index * layers).div_ceil(fit))
            .collect()
    }
}

/// A baseline's predictions over some windows, as the hidden states and the output projection that they follow from: both
/// models' logits are made again, tile by tile, when a subject is compared. Takes four bytes per predicted token and hidden
/// element.
#[derive(Debug, Clone)]
pub struct Reference {
    pub(super) windows: Arc<[Vec<u32>]>,
    /// Per window the normed final hidden states of all tokens but the last.
    pub(super) normed: Arc<[Vec<f32>]>,
    pub(super) head: Weight,
}

impl Reference {
    /// Number of token ids that the baseline predicts.
    pub fn vocabulary(&self) -> usize {
        self.head.rows()
    }
}

/// A baseline's hidden states at some places between its layers.
#[derive(Debug, Clone)]
pub struct HiddenCache {
    pub(super) network: Network,
    pub(super) windows: Arc<[Vec<u32>]>,
    /// By cut, then by window: the hidden states of all its tokens, and of its padding where it carried any.
    pub(super) states: BTreeMap<usize, Arc<[Vec<f32>]>>,
    /// The token that windows were padded with.
    pub(super) padding: Option<u32>,
}

impl HiddenCache {
    /// The places that are kept: `n` is before layer `n`, the number of layers is before the final norm.
    pub fn cuts(&self) -> Vec<usize> {
        self.states.keys().copied().collect()
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        let floats = self
            .states
            .values()
            .flat_map(|states| states.iter().map(Vec::len))
            .sum::<usize>();
        floats as u64 * 4
    }

    /// The last kept place that `subject` reaches with the hidden states of the baseline, and those states by window. There
    /// is none where a window is to run with more rows than it was kept with, or with other padding.
    pub(super) fn entry(
        &self,
        subject: &Network,
        rows: &[usize],
        padding: Option<u32>,
    ) -> Option<(usize, &[Vec<f32>])> {
        let width = subject.hidden();
        let (_, any) = self.states.first_key_value()?;
        let reaches = any
            .iter()
            .zip(rows)
            .all(|(state, rows)| state.len() >= rows * width);
        let padded = rows
            .iter()
            .zip(self.windows.iter())
            .any(|(rows, window)| *rows > window.len());
        if !reaches || (padded && padding != self.padding) {
            return None;
        }
        let shared = subject.shared_layers(&self.network);
        let (&cut, states) = self.states.range(..=shared).next_back()?;
        Some((cut, states))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_fit_the_budget_and_are_spread_out() {
        let cuts = |bytes| {
            KeepPolicy {
                reference: false,
                hidden_bytes: bytes,
            }
            .cuts(8, 10, 16)
        };
        let each = 10 * 16 * 4;
        assert_eq!(cuts(each - 1), Vec::<usize>::new());
        assert_eq!(cuts(each), [8]);
        assert_eq!(cuts(2 * each), [4, 8]);
        assert_eq!(cuts(3 * each), [3, 6, 8]);
        assert_eq!(cuts(100 * each), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(
            KeepPolicy {
                reference: false,
                hidden_bytes: 1 << 40
            }
            .cuts(0, 10, 16),
            Vec::<usize>::new()
        );
    }
}
