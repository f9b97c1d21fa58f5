//! Singular values of a small square matrix, by one-sided Jacobi rotations (Hestenes 1958): columns are turned against each
//! other until all are orthogonal. Slow for large matrices, and as accurate as numbers can be for small ones.

/// Rounds over all pairs of columns; eight columns take about six.
const ROUNDS: usize = 40;

/// `A = P S Q'`, largest values first.
pub(in crate::cpu) struct Svd {
    /// Descending.
    pub(in crate::cpu) values: Vec<f64>,
    /// `P S`, columns one after another.
    scaled_left: Vec<Vec<f64>>,
    /// `Q`, columns one after another.
    right: Vec<Vec<f64>>,
}

impl Svd {
    /// Element of `P`; 0 in a column whose value is 0.
    pub(super) fn left(&self, row: usize, column: usize) -> f64 {
        let value = self.values[column];
        if value > 0.0 {
            self.scaled_left[column][row] / value
        } else {
            0.0
        }
    }

    /// Element of `Q`.
    pub(super) fn right(&self, row: usize, column: usize) -> f64 {
        self.right[column][row]
    }
}

/// Of the square upper bidiagonal matrix with this diagonal and the first of these numbers above it.
pub(in crate::cpu) fn of_bidiagonal(diagonal: &[f64], above: &[f64]) -> Svd {
    let size = diagonal.len();
    let mut elements = vec![0.0; size * size];
    for (index, value) in diagonal.iter().enumerate() {
        elements[index * size + index] = *value;
    }
    for (index, value) in above.iter().enumerate().take(size.saturating_sub(1)) {
        elements[index * size + index + 1] = *value;
    }
    svd(elements, size)
}

/// Of the `size` by `size` matrix in `elements`, row-major.
fn svd(elements: Vec<f64>, size: usize) -> Svd {
    let mut a: Vec<Vec<f64>> = (0..size)
        .map(|column| (0..size).map(|row| elements[row * size + column]).collect())
        .collect();
    let mut q: Vec<Vec<f64>> = (0..size)
        .map(|column| {
            (0..size)
                .map(|row| f64::from(u8::from(row == column)))
                .collect()
        })
        .collect();
    for _ in 0..ROUNDS {
        let mut turned = false;
        for i in 0..size {
            for j in i + 1..size {
                let (ii, jj, ij) = (
                    inner(&a[i], &a[i]),
                    inner(&a[j], &a[j]),
                    inner(&a[i], &a[j]),
                );
                if ij.abs() <= f64::EPSILON * (ii * jj).sqrt() {
                    continue;
                }
                turned = true;
                let zeta = (jj - ii) / (2.0 * ij);
                let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
                turn(&mut a, i, j, cosine, cosine * tangent);
                turn(&mut q, i, j, cosine, cosine * tangent);
            }
        }
        if !turned {
            break;
        }
    }
    let lengths: Vec<f64> = a
        .iter()
        .map(|column| inner(column, column).sqrt())
        .collect();
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|&i, &j| lengths[j].total_cmp(&lengths[i]));
    Svd {
        values: order.iter().map(|&i| lengths[i]).collect(),
        scaled_left: order.iter().map(|&i| a[i].clone()).collect(),
        right: order.iter().map(|&i| q[i].clone()).collect(),
    }
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Turns columns `i` and `j`.
fn turn(columns: &mut [Vec<f64>], i: usize, j: usize, cosine: f64, sine: f64) {
    for row in 0..columns[i].len() {
        let (x, y) = (columns[i][row], columns[j][row]);
        columns[i][row] = cosine * x - sine * y;
        columns[j][row] = sine * x + cosine * y;
    }
}
