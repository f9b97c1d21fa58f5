//! The power iteration of [`Power`], one sweep per iteration.

use super::columns::Columns;
use super::lanes::scale;
use super::sweep::{Input, Product};
use super::vector::{inverse_power_of_two, norm, start};
use crate::Power;

/// Norms are not divided by less.
const FLOOR: f32 = 1e-12;

/// A power iteration under way.
pub(super) struct Iteration {
    v: Columns,
    scale: f32,
    left: u32,
    /// The estimate so far.
    pub(super) sigma: f32,
}

impl Iteration {
    pub(super) fn new(power: Power, columns: usize) -> Self {
        Self {
            v: start(power.start, columns),
            scale: 1.0,
            left: power.iterations,
            sigma: 0.0,
        }
    }

    /// What to multiply with next.
    pub(super) fn input(&self) -> Option<Input<'_>> {
        (self.left > 0).then_some(Input {
            v: &self.v,
            scale: self.scale,
        })
    }

    /// A scale for products of about the size of this one.
    pub(super) fn rescale(&mut self, product: &Product) {
        self.scale = inverse_power_of_two(norm(&product.u));
    }

    /// Takes the product with [`Self::input`]. `u` is not divided by its norm before it is multiplied back, but after: the
    /// two differ in rounding only.
    pub(super) fn advance(&mut self, product: Product) {
        self.left -= 1;
        let size = norm(&product.u);
        self.sigma = (size as f32).max(FLOOR);
        if self.left == 0 {
            return;
        }
        let mut v = product.y;
        let length = norm(&v) / f64::from(self.scale) / f64::from(self.sigma);
        let divisor = length.max(f64::from(FLOOR)) * f64::from(self.sigma);
        scale(&mut v, (1.0 / (f64::from(self.scale) * divisor)) as f32);
        self.v = v;
        self.scale = inverse_power_of_two(size);
    }
}
