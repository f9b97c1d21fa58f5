//! PCG64 (XSL-RR on a 128-bit congruential generator), seeded by NumPy's `SeedSequence`.

/// Multiplier of the 128-bit congruential generator.
const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

/// NumPy's default generator, `numpy.random.default_rng(seed)`.
#[derive(Debug, Clone)]
pub struct Pcg64 {
    state: u128,
    increment: u128,
    /// The high half of a 64-bit word whose low half has been handed out as a 32-bit draw.
    half: Option<u32>,
}

impl Pcg64 {
    /// The generator that NumPy builds from a non-negative integer seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let words = seed_sequence(seed);
        let initial = u128::from(words[0]) << 64 | u128::from(words[1]);
        let sequence = u128::from(words[2]) << 64 | u128::from(words[3]);
        let mut generator = Self {
            state: 0,
            increment: sequence << 1 | 1,
            half: None,
        };
        generator.step();
        generator.state = generator.state.wrapping_add(initial);
        generator.step();
        generator
    }

    #[inline]
    fn step(&mut self) {
        self.state = times_multiplier(self.state).wrapping_add(self.increment);
    }

    /// The next 64-bit word. A pending half of an earlier word stays pending.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.step();
        let high = (self.state >> 64) as u64;
        let low = self.state as u64;
        (high ^ low).rotate_right((high >> 58) as u32)
    }

    /// The next 32-bit draw: the low half of a word first, then its high half.
    pub fn next_u32(&mut self) -> u32 {
        if let Some(high) = self.half.take() {
            return high;
        }
        let word = self.next_u64();
        self.half = Some((word >> 32) as u32);
        word as u32
    }

    /// Fills `words` as so many calls of [`next_u64`](Self::next_u64) would.
    pub fn fill_u64(&mut self, words: &mut [u64]) {
        // Four words a turn: in a sandbox each turn is checked.
        let (fours, rest) = words.as_chunks_mut::<4>();
        for four in fours {
            *four = std::array::from_fn(|_| self.next_u64());
        }
        for word in rest {
            *word = self.next_u64();
        }
    }

    /// Fills `draws` as so many calls of [`next_u32`](Self::next_u32) would.
    pub fn fill_u32(&mut self, draws: &mut [u32]) {
        // A half that is pending comes first.
        let (pending, draws) =
            draws.split_at_mut(usize::from(self.half.is_some()).min(draws.len()));
        for draw in pending {
            *draw = self.next_u32();
        }
        let (eights, rest) = draws.as_chunks_mut::<8>();
        for eight in eights {
            let words: [u64; 4] = std::array::from_fn(|_| self.next_u64());
            for (pair, word) in eight.as_chunks_mut::<2>().0.iter_mut().zip(words) {
                *pair = [word as u32, (word >> 32) as u32];
            }
        }
        for draw in rest {
            *draw = self.next_u32();
        }
    }

    /// A uniform integer below `bound` (Lemire's method, as `Generator.integers(0, bound)`). A bound of 0 or 1 gives 0
    /// and draws nothing.
    pub fn below(&mut self, bound: u32) -> u32 {
        if bound <= 1 {
            return 0;
        }
        let mut product = u64::from(self.next_u32()) * u64::from(bound);
        if (product as u32) < bound {
            let threshold = bound.wrapping_neg() % bound;
            while (product as u32) < threshold {
                product = u64::from(self.next_u32()) * u64::from(bound);
            }
        }
        (product >> 32) as u32
    }

    /// A uniform number in `[0, 1)` with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    /// One index drawn with probabilities given by their running sum divided by the total, as `Generator.choice(p=…)`
    /// draws it: the first position whose cumulative probability exceeds a uniform number.
    pub fn choose(&mut self, cumulative: &[f64]) -> usize {
        let drawn = self.uniform();
        cumulative
            .partition_point(|&edge| edge <= drawn)
            .min(cumulative.len().saturating_sub(1))
    }

    /// Internal state and increment, for tests against published vectors.
    #[must_use]
    pub fn state(&self) -> (u128, u128) {
        (self.state, self.increment)
    }
}

/// `state · MULTIPLIER` modulo 2^128.
#[cfg(not(target_arch = "wasm32"))]
#[inline]
fn times_multiplier(state: u128) -> u128 {
    state.wrapping_mul(MULTIPLIER)
}

/// `state · MULTIPLIER` modulo 2^128, from products of 32 bits: WebAssembly has no wider one, and the compiler's way is a
/// call of a library function through memory.
#[cfg(any(target_arch = "wasm32", test))]
#[inline]
fn times_multiplier_in_parts(state: u128) -> u128 {
    const LOW: u64 = MULTIPLIER as u64;
    const HIGH: u64 = (MULTIPLIER >> 64) as u64;
    const HALF: u64 = u32::MAX as u64;
    let (low, high) = (state as u64, (state >> 64) as u64);
    let (a, b) = (low & HALF, low >> 32);
    let (c, d) = (LOW & HALF, LOW >> 32);
    let (ac, ad, bc, bd) = (a * c, a * d, b * c, b * d);
    // At most (2^32 - 1)^2 + 2 (2^32 - 1), which is below 2^64.
    let middle = ad + (ac >> 32) + (bc & HALF);
    let carried = bd + (bc >> 32) + (middle >> 32);
    let top = carried
        .wrapping_add(high.wrapping_mul(LOW))
        .wrapping_add(low.wrapping_mul(HIGH));
    u128::from(top) << 64 | u128::from(low.wrapping_mul(LOW))
}

#[cfg(target_arch = "wasm32")]
use times_multiplier_in_parts as times_multiplier;

/// Hash constants of NumPy's `SeedSequence`: one per absorbed or produced word.
struct HashStream {
    constant: u32,
    multiplier: u32,
}

impl HashStream {
    fn hash(&mut self, word: u32) -> u32 {
        let word = word ^ self.constant;
        self.constant = self.constant.wrapping_mul(self.multiplier);
        let word = word.wrapping_mul(self.constant);
        word ^ word >> 16
    }
}

/// The four 64-bit words that seed a generator. A seed of at most 64 bits fills at most two of the four pool words.
fn seed_sequence(seed: u64) -> [u64; 4] {
    let mut absorb = HashStream {
        constant: 0x43b0_d7e5,
        multiplier: 0x931e_8875,
    };
    let mix = |x: u32, y: u32| {
        let mixed = x
            .wrapping_mul(0xca01_f9dd)
            .wrapping_sub(y.wrapping_mul(0x4973_f715));
        mixed ^ mixed >> 16
    };
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(|word| absorb.hash(word));
    for source in 0..4 {
        for target in 0..4 {
            if source != target {
                pool[target] = mix(pool[target], absorb.hash(pool[source]));
            }
        }
    }
    let mut produce = HashStream {
        constant: 0x8b51_f9dd,
        multiplier: 0x58f3_8ded,
    };
    let mut words = [0u64; 4];
    for position in 0..8 {
        let word = u64::from(produce.hash(pool[position % 4]));
        words[position / 2] |= word << (32 * (position % 2));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_products_agree() {
        let mut generator = Pcg64::new(9);
        let edges = [0, 1, u128::MAX, u128::from(u64::MAX), u128::MAX << 64];
        let random = (0..1000).map(|_| {
            generator.step();
            generator.state
        });
        for state in edges.into_iter().chain(random) {
            assert_eq!(times_multiplier_in_parts(state), times_multiplier(state));
        }
    }

    #[test]
    fn filling_is_drawing() {
        let (mut filled, mut drawn) = (Pcg64::new(4), Pcg64::new(4));
        for count in 0..40 {
            let expected: Vec<u32> = (0..count).map(|_| drawn.next_u32()).collect();
            let mut got = vec![0; count];
            filled.fill_u32(&mut got);
            assert_eq!(got, expected);
            let mut words = vec![0; count];
            filled.fill_u64(&mut words);
            assert!(words.into_iter().all(|word| word == drawn.next_u64()));
            if count % 3 == 0 {
                assert_eq!(filled.next_u64(), drawn.next_u64(), "a half stays pending");
            }
        }
    }
}
