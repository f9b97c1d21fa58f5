//! Statistics of a weight: what is asked for, and what comes back. Devices compute all of one tensor's statistics in one
//! call, so that they can share the reads.

/// Singular values that [`Leading`] holds.
pub const LEADING: usize = 8;

/// Where a power iteration starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Start {
    /// All ones, normalised.
    Ones,
    /// The first unit vector.
    First,
    /// A fixed pseudo-random vector: uniform in [-1, 1), a function of the column's index alone, normalised.
    Hashed,
}

/// An estimate of the largest singular value of `W` by a fixed number of power iterations in f32, without a test of
/// convergence:
///
/// `u = W v; s = |u|; u /= max(s, 1e-12); v = W' u; v /= max(|v|, 1e-12)`
///
/// The estimate is the `s` of the last iteration, at least 1e-12. It is 0 for a matrix without elements or with one that is
/// NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Power {
    /// The first `v`.
    pub start: Start,
    /// How often, at least 1.
    pub iterations: u32,
}

/// Which statistics of a weight are wanted. The counts of zeros and of non-finite elements always come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WeightWish {
    /// Estimates of the largest singular value.
    pub powers: Vec<Power>,
    /// The norms of rows, of columns and of the whole.
    pub norms: bool,
    /// The leading singular values with their right vectors.
    pub leading: bool,
}

impl WeightWish {
    /// Whether only the counts are wanted.
    #[must_use]
    pub fn only_counts(&self) -> bool {
        self.powers.is_empty() && !self.norms && !self.leading
    }
}

/// Smallest, median and largest of several numbers. The median of an even count is the mean of the two in the middle; if
/// any number is NaN, all three are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The smallest.
    pub min: f32,
    /// The median.
    pub median: f32,
    /// The largest.
    pub max: f32,
}

/// Norms of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norms {
    /// Sum of the squares of all elements.
    pub frobenius_sq: f64,
    /// Euclidean norms of the rows, each at least 1e-12.
    pub rows: Spread,
    /// Euclidean norms of the columns, each at least 1e-12.
    pub columns: Spread,
}

/// The largest singular values of a matrix, by Golub-Kahan bidiagonalisation with full reorthogonalisation: [`LEADING`]
/// products each way from a fixed pseudo-random start.
#[derive(Debug, Clone, PartialEq)]
pub struct Leading {
    /// Descending; zeros where the matrix has fewer. All NaN where an element is not finite.
    pub values: [f64; LEADING],
    /// Some singular value of the matrix lies within this distance of the first (the residual's norm).
    pub bound: f64,
    /// Unit right vectors of the values above `1e-5` of the first, in their order; each has one number per column.
    pub right: Vec<Vec<f32>>,
}

impl Leading {
    /// Mean squared cosine between the spaces that the right vectors of two matrices of equal width span: 1 for the same
    /// space, 0 for orthogonal ones. A direction that only one of the two has counts as a cosine of 0; NaN where either
    /// matrix has elements that are not finite.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> f64 {
        if self.values[0].is_nan() || other.values[0].is_nan() {
            return f64::NAN;
        }
        let directions = self.right.len().max(other.right.len());
        if directions == 0 {
            return 1.0;
        }
        let mut sum = 0.0;
        for a in &self.right {
            for b in &other.right {
                let cosine: f64 = a
                    .iter()
                    .zip(b)
                    .map(|(&a, &b)| f64::from(a) * f64::from(b))
                    .sum();
                sum += cosine * cosine;
            }
        }
        (sum / directions as f64).min(1.0)
    }
}

/// Statistics of a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightStats {
    /// Elements equal to zero, either sign.
    pub zeros: u64,
    /// Elements that are NaN or infinite.
    pub non_finite: u64,
    /// Norms, where wanted.
    pub norms: Option<Norms>,
    /// One estimate per [`WeightWish::powers`], in its order.
    pub sigmas: Vec<f32>,
    /// The leading singular values, where wanted.
    pub leading: Option<Leading>,
}

/// How far one tensor is from another of the same shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shift {
    /// Sum of the squares of the differences.
    pub distance_sq: f64,
    /// Sum of the squares of the elements of the one that the distance is measured from.
    pub base_sq: f64,
}
