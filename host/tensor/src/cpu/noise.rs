//! Seeded noise: a pure function of (seed, element index), the same on every device.
//!
//! The bits come from Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011): the
//! key is the seed, the counter is `[block low, block high, stream, 0]` with block = index / 4, and element `4 * block + i`
//! takes word `i`. Normal numbers pair words 0, 1 and 2, 3 by the method of Box and Muller. All arithmetic is f32 additions,
//! multiplications and square roots in a fixed order, so that another device can repeat it bit for bit.

use rayon::prelude::*;

use crate::{Error, Result, Tensor, TensorMut, cast, cpu::Cpu, program::scalar};

/// Which numbers to add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noise {
    /// Standard normal.
    Normal,
    /// Uniform in [-1, 1).
    Uniform,
}

impl Noise {
    /// Keeps the streams of one seed apart.
    fn stream(self) -> u32 {
        match self {
            Noise::Normal => 0,
            Noise::Uniform => 1,
        }
    }

    /// Elements `4 * block ..` of the stream of `seed`.
    pub fn block(self, seed: u64, block: u64) -> [f32; 4] {
        let counter = [block as u32, (block >> 32) as u32, self.stream(), 0];
        let words = philox(counter, [seed as u32, (seed >> 32) as u32]);
        match self {
            // 24 bits each: every value is exact.
            Noise::Uniform => words.map(|word| (word >> 8) as f32 * (1.0 / 8_388_608.0) - 1.0),
            Noise::Normal => {
                let [a, b] = box_muller(words[0], words[1]);
                let [c, d] = box_muller(words[2], words[3]);
                [a, b, c, d]
            }
        }
    }
}

/// Ten rounds of Philox4x32.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let left = u64::from(counter[0]) * 0xd251_1f53;
        let right = u64::from(counter[2]) * 0xcd9e_8d57;
        counter = [
            (right >> 32) as u32 ^ counter[1] ^ key[0],
            right as u32,
            (left >> 32) as u32 ^ counter[3] ^ key[1],
            left as u32,
        ];
        key = [
            key[0].wrapping_add(0x9e37_79b9),
            key[1].wrapping_add(0xbb67_ae85),
        ];
    }
    counter
}

/// Two independent standard normal numbers from two words.
fn box_muller(first: u32, second: u32) -> [f32; 2] {
    /// 2 ln 2.
    const TWO_LN_TWO: f32 = 1.386_294_4;
    // In (0, 1], so that the logarithm is finite.
    let distance = ((first >> 8) + 1) as f32 * (1.0 / 16_777_216.0);
    let radius = (-TWO_LN_TWO * scalar::log2(distance)).sqrt();
    let [sine, cosine] = sine_cosine(second);
    [radius * cosine, radius * sine]
}

/// Sine and cosine of `2 pi * turn / 2^32`, within 1e-7.
fn sine_cosine(turn: u32) -> [f32; 2] {
    /// Coefficients of `sin(pi/2 f) / f` in powers of `f * f`, for |f| <= 1/2.
    const SINE: [f32; 5] = [
        f32::from_bits(0x3fc9_0fdb),
        f32::from_bits(0xbf25_5de7),
        f32::from_bits(0x3da3_35dd),
        f32::from_bits(0xbb99_654f),
        f32::from_bits(0x3925_e42e),
    ];
    /// Coefficients of `cos(pi/2 f)` in powers of `f * f`, for |f| <= 1/2.
    const COSINE: [f32; 5] = [
        f32::from_bits(0x3f80_0000),
        f32::from_bits(0xbf9d_e9e6),
        f32::from_bits(0x3e81_e0ee),
        f32::from_bits(0xbcaa_e2bd),
        f32::from_bits(0x3a6c_e174),
    ];
    // The nearest quarter turn and what is left of it, in 2^-24 turns so that the conversion is exact.
    let steps = (turn >> 8) as i32;
    let quarter = (steps + (1 << 21)) >> 22;
    let f = (steps - (quarter << 22)) as f32 * (1.0 / 4_194_304.0);
    let square = f * f;
    let evaluate = |c: &[f32; 5]| c.iter().rev().fold(0.0, |sum, &c| sum * square + c);
    let (sine, cosine) = (f * evaluate(&SINE), evaluate(&COSINE));
    match quarter & 3 {
        0 => [sine, cosine],
        1 => [cosine, -sine],
        2 => [-sine, -cosine],
        _ => [-cosine, sine],
    }
}

/// `tensor + scale * noise(seed, element index)`: one multiplication and one addition in f32, then rounded to the dtype.
///
/// # Errors
/// When the dtype is not a float.
pub fn add(device: &Cpu, tensor: &Tensor, noise: Noise, seed: u64, scale: f32) -> Result<Tensor> {
    /// Elements per piece of work; a multiple of 4.
    const PIECE: usize = 4096;
    let dtype = tensor.dtype();
    if !dtype.is_float() {
        return Err(Error::DType {
            op: "add-noise",
            dtype,
        });
    }
    let mut result = TensorMut::for_overwriting(dtype, tensor.shape())?;
    let piece_bytes = PIECE * dtype.size();
    device.install(|| {
        let source = tensor.bytes().par_chunks(piece_bytes);
        result
            .bytes_mut()
            .par_chunks_mut(piece_bytes)
            .zip(source)
            .enumerate()
            .try_for_each(|(piece, (target, source))| {
                let mut values = [0.0; PIECE];
                let values = &mut values[..target.len() / dtype.size()];
                cast::decode(dtype, source, values);
                let first = (piece * PIECE / 4) as u64;
                for (block, four) in (first..).zip(values.chunks_mut(4)) {
                    for (value, noise) in four.iter_mut().zip(noise.block(seed, block)) {
                        *value += scale * noise;
                    }
                }
                cast::encode(dtype, cast::saturates(dtype), values, target)
            })
    })?;
    Ok(result.freeze())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::DType;

    #[test]
    fn philox_gives_the_published_words() {
        // From the known-answer tests of the authors' library, Random123.
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn sine_and_cosine_are_close() {
        for turn in (0..u32::MAX).step_by(65_521) {
            let angle = f64::from(turn >> 8) / 16_777_216.0 * std::f64::consts::TAU;
            let [sine, cosine] = sine_cosine(turn);
            assert!((f64::from(sine) - angle.sin()).abs() < 2e-7);
            assert!((f64::from(cosine) - angle.cos()).abs() < 2e-7);
        }
    }

    #[test]
    fn moments_are_those_of_the_distribution() {
        let device = Cpu::new(Some(2)).unwrap();
        let zeros = Tensor::zeros(DType::F32, [1 << 20]).unwrap();
        let moment = |values: &[f32], power| {
            values
                .iter()
                .map(|&x| f64::from(x).powi(power))
                .sum::<f64>()
                / values.len() as f64
        };
        let normal = add(&device, &zeros, Noise::Normal, 7, 1.0)
            .unwrap()
            .to_f32();
        for (power, expected) in [(1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)] {
            assert!(
                (moment(&normal, power) - expected).abs() < 0.03,
                "moment {power}"
            );
        }
        let uniform = add(&device, &zeros, Noise::Uniform, 7, 1.0)
            .unwrap()
            .to_f32();
        assert!(uniform.iter().all(|x| (-1.0..1.0).contains(x)));
        for (power, expected) in [(1, 0.0), (2, 1.0 / 3.0), (4, 0.2)] {
            assert!(
                (moment(&uniform, power) - expected).abs() < 0.01,
                "moment {power}"
            );
        }
    }

    #[test]
    fn same_for_any_thread_count_and_offset() {
        let tensor = Tensor::from_f32(DType::BF16, [9001], &vec![0.5; 9001]).unwrap();
        let all: Vec<_> = [1, 2, 5]
            .map(|threads| {
                add(
                    &Cpu::new(Some(threads)).unwrap(),
                    &tensor,
                    Noise::Normal,
                    3,
                    0.1,
                )
                .unwrap()
            })
            .to_vec();
        assert!(all.iter().all(|t| t.bytes() == all[0].bytes()));
        let expected = cast::through(
            DType::BF16,
            false,
            0.5 + 0.1 * Noise::Normal.block(3, 2250)[0],
        );
        assert_eq!(all[0].to_f32()[9000], expected);
        let other = add(&Cpu::new(None).unwrap(), &tensor, Noise::Normal, 4, 0.1).unwrap();
        assert_ne!(other.bytes(), all[0].bytes());
    }
}
