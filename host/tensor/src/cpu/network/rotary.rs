//! Rotary position embedding (Su et al., 2021), in the layout of Llama checkpoints: element `i` of a head turns together
//! with element `i + d/2`.

use super::lanes::vectorized;

/// Cosines and sines of the positions `0..len`, for heads of `dim` elements.
#[derive(Debug, Clone)]
pub struct Rotary {
    half: usize,
    /// Per position `half` cosines, then `half` sines.
    table: Vec<f32>,
}

impl Rotary {
    /// Angle of pair `i` at position `p`: `p * theta^(-2i/dim)`. As in the reference models the frequency is rounded to
    /// f32 and multiplied in f32; cosine and sine of that angle are exact to the last place. `round` is applied to every
    /// frequency: [`Rotary::exact`] unless another program's rounding is to be reproduced.
    pub fn new(dim: usize, theta: f64, len: usize, round: impl Fn(f32) -> f32) -> Self {
        let half = dim / 2;
        let frequency = |pair| libm::pow(theta, -((2 * pair) as f64) / dim as f64) as f32;
        let frequencies: Vec<f32> = (0..half).map(|pair| round(frequency(pair))).collect();
        let mut table = Vec::with_capacity(len * 2 * half);
        for position in 0..len {
            let angle = |frequency: &f32| f64::from(position as f32 * frequency);
            table.extend(frequencies.iter().map(|f| libm::cos(angle(f)) as f32));
            table.extend(frequencies.iter().map(|f| libm::sin(angle(f)) as f32));
        }
        Self { half, table }
    }

    /// Leaves a frequency as it is.
    pub fn exact(frequency: f32) -> f32 {
        frequency
    }

    /// Turns every head in `heads` (each `dim` elements) to `position`, and multiplies by `factor`.
    ///
    /// # Panics
    /// When the position is beyond the table.
    pub fn turn(&self, heads: &mut [f32], position: usize, factor: f32) {
        let entry = &self.table[position * 2 * self.half..(position + 1) * 2 * self.half];
        turn(heads, entry, factor);
    }
}

vectorized! {
    fn turn(heads: &mut [f32], entry: &[f32], factor: f32) {
        let half = entry.len() / 2;
        if half == 0 {
            return;
        }
        let (cosines, sines) = entry.split_at(half);
        for head in heads.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for (((low, high), &cos), &sin) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                let (a, b) = (*low, *high);
                *low = (a * cos - b * sin) * factor;
                *high = (b * cos + a * sin) * factor;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_keeps_lengths_and_the_product_depends_on_the_distance() {
        let rotary = Rotary::new(8, 10_000.0, 64, Rotary::exact);
        let head: Vec<f32> = (0..8).map(|i| i as f32 - 3.5).collect();
        let at = |position: usize| {
            let mut turned = head.clone();
            rotary.turn(&mut turned, position, 1.0);
            turned
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert_eq!(at(0), head);
        assert!((dot(&at(17), &at(17)) - dot(&head, &head)).abs() < 1e-4);
        assert!((dot(&at(20), &at(7)) - dot(&at(40), &at(27))).abs() < 1e-4);
        assert!((dot(&at(20), &at(7)) - dot(&at(20), &at(8))).abs() > 1e-3);
    }
}
