//! Golub-Kahan bidiagonalisation with full reorthogonalisation, one sweep per step.
//!
//! After `k` steps `W V = U B` and `W' U = V B' + beta v e'` with orthonormal columns in `U` and `V` and `B` upper
//! bidiagonal: its singular values approximate the largest of `W`. A step needs `W' u`, where `u` is what is left of `W v`
//! beside the earlier columns of `U`. The sweep gives `W' W v` instead; the same combination of the earlier `W' u` is
//! subtracted from it, so that one read serves both.
//!
//! Where a step finds nothing new, what was found is invariant; it goes on with another pseudo-random vector, orthogonal to
//! all before.

use super::columns::Columns;
use super::lanes::{add_scaled, dot, panel_index, scale};
use super::svd;
use super::sweep::{Input, Product};
use super::vector::{hashed, inverse_power_of_two, norm};
use crate::{LEADING, Leading};

/// What is smaller than this part of the largest length seen is rounding.
const NOTHING: f64 = 1e-5;
/// Lengths below cannot be divided by.
const SMALLEST: f64 = 1e-30;

/// A bidiagonalisation under way.
pub(super) struct Bidiagonal {
    columns: usize,
    scale: f32,
    /// Columns of `V`, the last one to be multiplied next, unless all is done.
    v: Vec<Columns>,
    u: Vec<Vec<f32>>,
    /// `W' u` of each `u`.
    back: Vec<Columns>,
    alpha: Vec<f64>,
    beta: Vec<f64>,
    largest: f64,
    done: bool,
}

impl Bidiagonal {
    pub(super) fn new(columns: usize) -> Self {
        Self {
            columns,
            scale: 1.0,
            v: vec![hashed(columns, 0)],
            u: Vec::new(),
            back: Vec::new(),
            alpha: Vec::new(),
            beta: Vec::new(),
            largest: 0.0,
            done: false,
        }
    }

    /// What to multiply with next.
    pub(super) fn input(&self) -> Option<Input<'_>> {
        let v = self.v.last().filter(|_| !self.done)?;
        Some(Input {
            v,
            scale: self.scale,
        })
    }

    /// A scale for products of about the size of this one.
    pub(super) fn rescale(&mut self, product: &Product) {
        self.scale = inverse_power_of_two(norm(&product.u));
    }

    /// Takes the product with [`Self::input`].
    pub(super) fn advance(&mut self, product: Product) {
        // `back` keeps the sweep's scale until it is divided by `alpha`: the product of both sizes may leave the range.
        let Product { mut u, y: mut back } = product;
        let size = norm(&u);
        self.largest = self.largest.max(size);
        let mut before = size;
        for _ in 0..2 {
            for (earlier, its_back) in self.u.iter().zip(&self.back) {
                let part = dot(earlier, &u) as f32;
                add_scaled(&mut u, -part, earlier);
                add_scaled(&mut back, -part * self.scale, its_back);
            }
            let after = norm(&u);
            if after > 0.5 * before {
                break;
            }
            before = after;
        }
        let alpha = norm(&u);
        let mut next = None;
        if self.is_nothing(alpha) {
            // A column of zeros stands for the missing one.
            self.alpha.push(0.0);
            u.fill(0.0);
            back.fill(0.0);
        } else {
            self.alpha.push(alpha);
            scale(&mut u, (1.0 / alpha) as f32);
            scale(&mut back, (1.0 / (alpha * f64::from(self.scale))) as f32);
            next = self.beside_v(back.clone());
            self.scale = inverse_power_of_two(size);
        }
        self.u.push(u);
        self.back.push(back);
        self.beta.push(next.as_ref().map_or(0.0, |(beta, _)| *beta));
        if self.alpha.len() == LEADING {
            self.done = true;
            return;
        }
        let next = next.or_else(|| {
            let fresh = hashed(self.columns, self.v.len() as u64);
            let largest = std::mem::replace(&mut self.largest, 1.0);
            let fresh = self.beside_v(fresh);
            self.largest = largest;
            fresh.map(|(_, v)| (0.0, v))
        });
        match next {
            Some((_, v)) => self.v.push(v),
            None => self.done = true,
        }
    }

    fn is_nothing(&self, length: f64) -> bool {
        length <= NOTHING * self.largest || length < SMALLEST
    }

    /// What is left of `vector` beside all of `V`: its length and direction.
    fn beside_v(&mut self, mut vector: Columns) -> Option<(f64, Columns)> {
        let mut before = norm(&vector);
        self.largest = self.largest.max(before);
        for _ in 0..2 {
            for v in &self.v {
                let part = dot(v, &vector) as f32;
                add_scaled(&mut vector, -part, v);
            }
            let after = norm(&vector);
            if after > 0.5 * before {
                break;
            }
            before = after;
        }
        let length = norm(&vector);
        if self.is_nothing(length) {
            return None;
        }
        scale(&mut vector, (1.0 / length) as f32);
        Some((length, vector))
    }

    /// The leading singular values after all steps.
    pub(super) fn finish(self) -> Leading {
        let steps = self.alpha.len();
        let mut b = vec![0.0; steps * steps];
        for step in 0..steps {
            b[step * steps + step] = self.alpha[step];
            if step + 1 < steps {
                b[step * steps + step + 1] = self.beta[step];
            }
        }
        let svd = svd::svd(b, steps);
        let mut values = [0.0; LEADING];
        values[..steps].copy_from_slice(&svd.values);
        let last = self.beta[steps - 1];
        let bound = (last * svd.left(steps - 1, 0)).abs();
        let count = values
            .iter()
            .filter(|&&value| value > NOTHING * values[0])
            .count();
        let right = (0..count).map(|index| {
            let mut panel = Columns::zeros(self.columns);
            for (step, v) in self.v[..steps].iter().enumerate() {
                add_scaled(&mut panel, svd.right(step, index) as f32, v);
            }
            (0..self.columns)
                .map(|column| panel[panel_index(column)])
                .collect()
        });
        Leading {
            values,
            bound,
            right: right.collect(),
        }
    }
}
