//! The inner loop of the bootstrap: means of samples drawn with repetition.
//!
//! Nearly all of a guard's time goes here, inside a sandbox where every jump back of a loop is checked and values that must
//! live across it go to memory. So it takes few, plain steps: random words for up to 128 draws at once, then one pass that
//! turns them into positions and adds the samples there, eight at a time, as NumPy's sum takes them. Draws, order of
//! additions and so every bit are those of drawing a whole resample and summing it with
//! [`summary::sum`](crate::summary::sum).

use crate::rng::Pcg64;

/// Most values that NumPy's sum adds without cutting them in halves.
const LEAF: usize = 128;

/// Draws resamples of a fixed list of samples and gives their means.
pub(crate) struct Resampler<'a> {
    samples: &'a [f64],
    draw: Draw,
}

/// How positions are drawn, with room for the random numbers of a leaf.
enum Draw {
    Even(Even, Vec<u32>),
    Weighted(Weighted, Vec<u64>),
}

impl<'a> Resampler<'a> {
    /// For two samples or more; with `weights`, which are positive somewhere, positions are drawn in proportion to them.
    pub(crate) fn new(samples: &'a [f64], weights: Option<&[f64]>) -> Self {
        Self {
            samples,
            draw: match weights {
                None => Draw::Even(Even::new(samples.len() as u32), vec![0; LEAF]),
                Some(weights) => Draw::Weighted(Weighted::new(weights), vec![0; LEAF]),
            },
        }
    }

    /// The mean of the next resample, as long as the samples.
    pub(crate) fn mean(&mut self, generator: &mut Pcg64) -> f64 {
        let count = self.samples.len();
        self.sum(generator, count) / count as f64
    }

    /// The sum of `count` samples drawn, in the order of [`summary::sum`](crate::summary::sum).
    fn sum(&mut self, generator: &mut Pcg64, count: usize) -> f64 {
        if count > LEAF {
            let half = count / 2 - count / 2 % 8;
            let first = self.sum(generator, half);
            return first + self.sum(generator, count - half);
        }
        match &mut self.draw {
            Draw::Even(even, draws) => even.sum(generator, self.samples, &mut draws[..count]),
            Draw::Weighted(weighted, words) => {
                let words = &mut words[..count];
                generator.fill_u64(words);
                leaf(words, |word| self.samples[weighted.position(word)])
            }
        }
    }
}

/// The sum of the values that `draws` stand for, at most [`LEAF`] of them.
#[inline]
fn leaf<T: Copy>(draws: &[T], mut value: impl FnMut(T) -> f64) -> f64 {
    let (eights, rest) = draws.as_chunks::<8>();
    let mut whole = 0.0;
    if !eights.is_empty() {
        let mut running = [0.0; 8];
        for eight in eights {
            for (sum, &draw) in running.iter_mut().zip(eight) {
                *sum += value(draw);
            }
        }
        let [a, b, c, d, e, f, g, h] = running;
        whole = ((a + b) + (c + d)) + ((e + f) + (g + h));
    }
    rest.iter().fold(whole, |sum, &draw| sum + value(draw))
}

/// Every position equally often.
struct Even {
    bound: u32,
    /// Products whose low half is below this are drawn again (Lemire's method).
    threshold: u32,
}

impl Even {
    /// For a `bound` of two or more.
    fn new(bound: u32) -> Self {
        Self {
            bound,
            threshold: bound.wrapping_neg() % bound,
        }
    }

    /// The sum of samples at as many positions as `draws` has room for.
    fn sum(&self, generator: &mut Pcg64, samples: &[f64], draws: &mut [u32]) -> f64 {
        let before = generator.clone();
        generator.fill_u32(draws);
        let mut least = u32::MAX;
        let sum = leaf(draws, |draw| {
            let product = u64::from(draw) * u64::from(self.bound);
            least = least.min(product as u32);
            samples[(product >> 32) as usize]
        });
        if least < self.threshold {
            *generator = before;
            return self.sum_carefully(generator, samples, draws);
        }
        sum
    }

    /// The same where one of the draws must be made again, which moves all that follow: about once in 2^32 / bound draws.
    #[cold]
    #[inline(never)]
    fn sum_carefully(&self, generator: &mut Pcg64, samples: &[f64], draws: &mut [u32]) -> f64 {
        draws.fill_with(|| generator.below(self.bound));
        leaf(draws, |position| samples[position as usize])
    }
}

/// Positions in proportion to weights.
///
/// A draw is the first 53 bits of a random word as a fraction, and means the first position whose running share exceeds it.
/// Both are compared as multiples of 2^-53, which is exact.
struct Weighted {
    /// Running shares of the weights in units of 2^-53, rounded up.
    edges: Vec<u64>,
    /// By the leading bits of a word: the first position that it can mean.
    guide: Vec<u32>,
    /// How far a word is shifted for its entry in `guide`.
    shift: u32,
}

/// Entries of the guide for each position: so many that a draw rarely has more than one position to choose from.
const ENTRIES: usize = 16;

impl Weighted {
    fn new(weights: &[f64]) -> Self {
        let cumulative = cumulative(weights);
        let edges: Vec<u64> = cumulative
            .iter()
            .map(|share| libm::ceil(share * (1u64 << 53) as f64) as u64)
            .collect();
        // A power of two, so that the draws of an entry begin with the same bits. At most 2^53, for there are fewer samples.
        let entries = (ENTRIES * edges.len()).next_power_of_two();
        let shift = 64 - entries.trailing_zeros();
        let mut position = 0;
        let guide = (0..entries as u64).map(|entry| {
            let least = entry << shift >> 11;
            while edges.get(position).is_some_and(|&edge| edge <= least) {
                position += 1;
            }
            position.min(edges.len() - 1) as u32
        });
        let guide = guide.collect();
        Self {
            edges,
            guide,
            shift,
        }
    }

    /// The position that a word means, as [`Pcg64::choose`] draws it.
    #[inline]
    fn position(&self, word: u64) -> usize {
        let (draw, position) = (word >> 11, self.guide[(word >> self.shift) as usize]);
        if self.edges[position as usize] <= draw {
            return self.beyond(position as usize, draw);
        }
        position as usize
    }

    /// The first position from `position` on whose edge lies above `draw`, or the last.
    #[cold]
    #[inline(never)]
    fn beyond(&self, position: usize, draw: u64) -> usize {
        let further = self.edges[position..].partition_point(|&edge| edge <= draw);
        (position + further).min(self.edges.len() - 1)
    }
}

fn cumulative(weights: &[f64]) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let mut edges: Vec<f64> = weights
        .iter()
        .map(|w| {
            sum += w / total;
            sum
        })
        .collect();
    for edge in &mut edges {
        *edge /= sum;
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary;

    /// What the module's documentation promises, drawn and summed step by step.
    fn plain(generator: &mut Pcg64, samples: &[f64], weights: Option<&[f64]>) -> f64 {
        let edges = weights.map(cumulative);
        let drawn: Vec<f64> = samples
            .iter()
            .map(|_| match &edges {
                None => samples[generator.below(samples.len() as u32) as usize],
                Some(edges) => samples[generator.choose(edges)],
            })
            .collect();
        summary::mean(&drawn)
    }

    #[test]
    fn means_are_those_of_whole_resamples_to_the_bit() {
        let mut source = Pcg64::new(11);
        for count in (2..40).chain([63, 64, 65, 127, 128, 129, 200, 257, 400, 1000, 1031]) {
            let samples: Vec<f64> = (0..count).map(|_| source.uniform() - 0.5).collect();
            let mut weights: Vec<f64> = (0..count).map(|_| source.uniform()).collect();
            // A weight of zero is never drawn, and a large one moves all edges together.
            (weights[0], weights[count - 1]) = (0.0, 40.0);
            for weights in [None, Some(&weights[..])] {
                let mut resampler = Resampler::new(&samples, weights);
                let (mut ours, mut theirs) = (Pcg64::new(5), Pcg64::new(5));
                for _ in 0..50 {
                    let (got, expected) = (
                        resampler.mean(&mut ours),
                        plain(&mut theirs, &samples, weights),
                    );
                    assert_eq!(got.to_bits(), expected.to_bits(), "{count} samples");
                }
                assert_eq!(ours.state(), theirs.state());
                assert_eq!(ours.next_u32(), theirs.next_u32(), "a pending half");
            }
        }
    }

    #[test]
    fn draws_that_are_made_again_keep_their_order() {
        // Of a million positions, one draw in 4400 is made again.
        let samples: Vec<f64> = (0..1_000_000).map(|at| f64::from(at).sqrt()).collect();
        let even = Even::new(1_000_000);
        let (mut ours, mut theirs) = (Pcg64::new(3), Pcg64::new(3));
        let mut again = 0;
        for round in 0..2000 {
            let mut draws = [0; LEAF];
            let draws = &mut draws[..LEAF - round % 9];
            let mut straight = ours.clone();
            straight.fill_u32(&mut draws.to_vec());
            let drawn: Vec<f64> = draws
                .iter()
                .map(|_| samples[theirs.below(even.bound) as usize])
                .collect();
            let got = even.sum(&mut ours, &samples, draws);
            assert_eq!(got.to_bits(), summary::sum(&drawn).to_bits());
            assert_eq!(ours.state(), theirs.state());
            again += usize::from(ours.state() != straight.state());
        }
        assert!(again > 5, "{again}");
    }
}
