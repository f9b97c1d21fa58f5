//! The Mersenne twister MT19937, seeded as its authors wrote it, and the two shuffles built on it that select windows.

const SIZE: usize = 624;
const SHIFT: usize = 397;

/// The Mersenne twister with a period of 2^19937 - 1.
#[derive(Clone)]
pub struct Mt19937 {
    words: [u32; SIZE],
    next: usize,
}

impl std::fmt::Debug for Mt19937 {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Mt19937")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Mt19937 {
    /// Seeded by one 32-bit word (`init_genrand`): NumPy's legacy interface and PyTorch on the CPU.
    #[must_use]
    pub fn from_word(seed: u32) -> Self {
        let mut words = [0u32; SIZE];
        words[0] = seed;
        for i in 1..SIZE {
            let before = words[i - 1];
            words[i] = (before ^ before >> 30)
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Self { words, next: SIZE }
    }

    /// Seeded by a key array (`init_by_array`). An empty key is taken as the key `[0]`.
    #[must_use]
    pub fn from_key(key: &[u32]) -> Self {
        let key = if key.is_empty() { &[0][..] } else { key };
        let mut generator = Self::from_word(19_650_218);
        let words = &mut generator.words;
        let (mut i, mut j) = (1, 0);
        for _ in 0..SIZE.max(key.len()) {
            let before = words[i - 1];
            words[i] = (words[i] ^ (before ^ before >> 30).wrapping_mul(1_664_525))
                .wrapping_add(key[j])
                .wrapping_add(j as u32);
            i += 1;
            j += 1;
            if i >= SIZE {
                words[0] = words[SIZE - 1];
                i = 1;
            }
            if j >= key.len() {
                j = 0;
            }
        }
        for _ in 0..SIZE - 1 {
            let before = words[i - 1];
            words[i] = (words[i] ^ (before ^ before >> 30).wrapping_mul(1_566_083_941))
                .wrapping_sub(i as u32);
            i += 1;
            if i >= SIZE {
                words[0] = words[SIZE - 1];
                i = 1;
            }
        }
        words[0] = 0x8000_0000;
        generator
    }

    /// Seeded as Python's `random.seed(seed)`: the seed's 32-bit words, little end first, as the key.
    #[must_use]
    pub fn from_python_seed(seed: u64) -> Self {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        if high == 0 {
            Self::from_key(&[low])
        } else {
            Self::from_key(&[low, high])
        }
    }

    /// The next 32-bit word.
    pub fn next_u32(&mut self) -> u32 {
        if self.next >= SIZE {
            self.twist();
        }
        let mut word = self.words[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= word << 7 & 0x9d2c_5680;
        word ^= word << 15 & 0xefc6_0000;
        word ^ word >> 18
    }

    fn twist(&mut self) {
        for i in 0..SIZE {
            let joined = self.words[i] & 0x8000_0000 | self.words[(i + 1) % SIZE] & 0x7fff_ffff;
            let matrix = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.words[i] = self.words[(i + SHIFT) % SIZE] ^ joined >> 1 ^ matrix;
        }
        self.next = 0;
    }

    /// A uniform integer below `bound` as Python's `random` draws it: as many top bits as the bound has, again until
    /// the draw is below. Bounds of 0 and 1 give 0 (a bound of 1 still draws, as Python does).
    pub fn python_below(&mut self, bound: u32) -> u32 {
        if bound == 0 {
            return 0;
        }
        let shift = bound.leading_zeros();
        loop {
            let drawn = self.next_u32() >> shift;
            if drawn < bound {
                return drawn;
            }
        }
    }

    /// Shuffle in place as Python's `random.shuffle`. Lists of 2^32 elements or more are not supported by the stream.
    pub fn python_shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let chosen = self.python_below(last as u32 + 1) as usize;
            items.swap(last, chosen);
        }
    }

    /// A permutation of `0..count` as NumPy's `RandomState.permutation` draws it: masked draws, again until in range.
    pub fn numpy_permutation(&mut self, count: usize) -> Vec<usize> {
        let mut items: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            let mask = u32::MAX >> (last as u32).leading_zeros();
            let chosen = loop {
                let drawn = self.next_u32() & mask;
                if drawn as usize <= last {
                    break drawn as usize;
                }
            };
            items.swap(last, chosen);
        }
        items
    }
}

/// `numpy.random.RandomState(seed).permutation(count)`.
#[must_use]
pub fn numpy_permutation(seed: u32, count: usize) -> Vec<usize> {
    Mt19937::from_word(seed).numpy_permutation(count)
}

/// `random.Random(seed).shuffle(items)`.
pub fn python_shuffle<T>(seed: u64, items: &mut [T]) {
    Mt19937::from_python_seed(seed).python_shuffle(items);
}
