//! Kernels that treat each row on its own: root-mean-square norm, biases, the gate of the feed-forward block.

use std::ops::Range;

use super::lanes::{LANES, exp, padded, total, vectorized};
use crate::cpu::matmul::{Spread, View, ViewMut, Weight, packs, panels, tiles};

/// `1 / sqrt(mean(x^2) + epsilon)`; the sum of squares is kept in f32, per lane.
#[inline(always)]
fn inverse_root_mean_square(x: &[f32], epsilon: f32) -> f32 {
    let mut squares = [0.0; LANES];
    let mut blocks = x.chunks_exact(LANES);
    for block in &mut blocks {
        for lane in 0..LANES {
            squares[lane] = block[lane].mul_add(block[lane], squares[lane]);
        }
    }
    let rest = padded(blocks.remainder(), 0.0);
    for lane in 0..LANES {
        squares[lane] = rest[lane].mul_add(rest[lane], squares[lane]);
    }
    1.0 / (total(squares) / x.len() as f32 + epsilon).sqrt()
}

vectorized! {
    /// `out = x / sqrt(mean(x^2) + epsilon) * weight`, all of one length (Zhang and Sennrich, 2019).
    pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        let scale = inverse_root_mean_square(x, epsilon);
        for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
            *out = weight * (x * scale);
        }
    }

    /// [`rms_norm`] in place.
    pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], epsilon: f32) {
        let scale = inverse_root_mean_square(x, epsilon);
        for (x, &weight) in x.iter_mut().zip(weight) {
            *x = weight * (*x * scale);
        }
    }

    /// `x += bias`.
    pub fn add(x: &mut [f32], bias: &[f32]) {
        for (x, &bias) in x.iter_mut().zip(bias) {
            *x += bias;
        }
    }

    /// `x += factor * y`.
    pub fn add_scaled(x: &mut [f32], factor: f32, y: &[f32]) {
        for (x, &y) in x.iter_mut().zip(y) {
            *x = factor.mul_add(y, *x);
        }
    }

    /// `x *= factor`.
    pub fn scale(x: &mut [f32], factor: f32) {
        for x in x.iter_mut() {
            *x *= factor;
        }
    }

    /// `out = gate / (1 + e^-gate) * up`: the SiLU gate of Llama-style feed-forward blocks (Shazeer, 2020).
    pub fn silu_gate(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

/// A weight with an optional bias, one number per output feature.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// `[out, in]`.
    pub weight: &'a Weight,
    /// Added to every row of the product.
    pub bias: Option<&'a [f32]>,
}

/// `out = silu(x G^T) * (x U^T)` for the gate and up projections `G` and `U` of one shape; `out` is dense. The products
/// themselves are never stored beyond a tile.
///
/// # Panics
/// When the views or the weights do not fit each other.
pub fn gated(x: View<'_>, gate: Affine<'_>, up: Affine<'_>, out: &mut [f32], spread: Spread) {
    let width = gate.weight.rows();
    assert!(
        up.weight.rows() == width && out.len() >= x.rows * width,
        "gate and up projection do not fit"
    );
    let out = ViewMut::new(out, width);
    let shift = |values: &mut [f32], bias: Option<&[f32]>, panel: &Range<usize>| {
        if let Some(bias) = bias {
            add(values, &bias[panel.clone()]);
        }
    };
    let packs = packs(gate.weight) && packs(up.weight);
    tiles(x.rows, width, packs, spread, |rows, panel| {
        let inputs = [(x, gate.weight), (x, up.weight)];
        panels(inputs, rows.clone(), panel, |panel, [gates, ups]| {
            let gates = gates.chunks_exact_mut(panel.len());
            let ups = ups.chunks_exact_mut(panel.len());
            for (row, (gates, ups)) in rows.clone().zip(gates.zip(ups)) {
                shift(gates, gate.bias, &panel);
                shift(ups, up.bias, &panel);
                // SAFETY: this tile is the only one with these rows and columns.
                silu_gate(gates, ups, unsafe { out.row_part(row, panel.clone()) });
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize) -> Vec<f32> {
        (0..len)
            .map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 3.0)
            .collect()
    }

    #[test]
    fn norm_equals_its_definition() {
        for len in [1, 15, 16, 17, 64, 100] {
            let (x, weight) = (numbers(len), numbers(len + 3)[3..].to_vec());
            let mut out = vec![0.0; len];
            rms_norm(&x, &weight, 1e-5, &mut out);
            let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / len as f64;
            for i in 0..len {
                let expected = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                assert!((f64::from(out[i]) - expected).abs() < 1e-6, "{len} {i}");
            }
            let mut again = x;
            rms_norm_in_place(&mut again, &weight, 1e-5);
            assert_eq!(again, out);
        }
    }

    #[test]
    fn gate_equals_its_definition_and_carries_nan() {
        let (gate, up) = (numbers(37), numbers(40)[3..].to_vec());
        let mut out = vec![0.0; 37];
        silu_gate(&gate, &up, &mut out);
        for i in 0..37 {
            let g = f64::from(gate[i]);
            let expected = g / (1.0 + (-g).exp()) * f64::from(up[i]);
            assert!((f64::from(out[i]) - expected).abs() < 1e-6 * (1.0 + expected.abs()));
        }
        silu_gate(
            &[f32::NAN, f32::NEG_INFINITY, -1000.0],
            &[1.0; 3],
            &mut out[..3],
        );
        assert!(out[0].is_nan());
        assert_eq!(out[2], 0.0);
    }
}
