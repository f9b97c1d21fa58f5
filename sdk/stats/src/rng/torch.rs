//! PyTorch's CPU streams: permutations and single-precision normals.

use super::Mt19937;

/// `torch.randperm(count)` on the CPU after `manual_seed(seed)`. PyTorch seeds the twister with the low 32 bits.
#[must_use]
pub fn torch_permutation(seed: u64, count: usize) -> Vec<usize> {
    let mut generator = Mt19937::from_word(seed as u32);
    let mut items: Vec<usize> = (0..count).collect();
    for first in 0..count.saturating_sub(1) {
        let chosen = first + generator.next_u32() as usize % (count - first);
        items.swap(first, chosen);
    }
    items
}

/// `torch.randn(count)` in float32 on the CPU: successive calls of [`TorchNormal::draw`] are successive calls of
/// `randn` with one generator.
///
/// Small draws (below 16) go through doubles, larger ones through blocks of 16 in single precision. The original's
/// single-precision logarithm and cosine are a vector library's; here they are rounded from double precision, so
/// elements may differ from PyTorch in the last place or two.
#[derive(Debug, Clone)]
pub struct TorchNormal {
    generator: Mt19937,
    /// The sine half of a pair whose cosine half has been handed out (small draws only).
    pending: Option<f64>,
}

impl TorchNormal {
    /// The state after `manual_seed(seed)`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            generator: Mt19937::from_word(seed as u32),
            pending: None,
        }
    }

    /// The next `count` standard normals.
    pub fn draw(&mut self, count: usize) -> Vec<f32> {
        if count < 16 {
            return (0..count).map(|_| self.single() as f32).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform_f32()).collect();
        for block in values.chunks_exact_mut(16) {
            block_to_normals(block);
        }
        if !count.is_multiple_of(16) {
            let tail = &mut values[count - 16..];
            for value in &mut *tail {
                *value = self.uniform_f32();
            }
            block_to_normals(tail);
        }
        values
    }

    /// 24 random bits as a fraction in `[0, 1)`.
    fn uniform_f32(&mut self) -> f32 {
        (self.generator.next_u32() & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0)
    }

    /// 53 random bits as a fraction in `[0, 1)`, the high word drawn first.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.generator.next_u32());
        let low = u64::from(self.generator.next_u32());
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    fn single(&mut self) -> f64 {
        if let Some(sine) = self.pending.take() {
            return sine;
        }
        let first = self.uniform_f64();
        let second = self.uniform_f64();
        let radius = libm::sqrt(-2.0 * libm::log1p(-second));
        let angle = 2.0 * std::f64::consts::PI * first;
        self.pending = Some(radius * libm::sin(angle));
        radius * libm::cos(angle)
    }
}

/// Box-Muller on a block of 16 uniforms: the first eight give radii, the last eight angles; every elementary step is
/// rounded to single precision as in the original.
fn block_to_normals(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(8);
    for (u, v) in radii.iter_mut().zip(angles) {
        let logarithm = libm::log(f64::from(1.0 - *u)) as f32;
        let radius = (-2.0 * logarithm).sqrt();
        let angle = f64::from(2.0 * std::f32::consts::PI * *v);
        *u = radius * libm::cos(angle) as f32;
        *v = radius * libm::sin(angle) as f32;
    }
}
