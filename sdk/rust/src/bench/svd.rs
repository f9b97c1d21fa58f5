//! Low-rank approximation of small matrices by one-sided Jacobi rotations, in f64.

/// The best approximation of a row-major `rows x columns` matrix by one of rank at most `rank`.
///
/// Columns of the tall orientation are rotated pairwise until they are orthogonal; their norms are then the singular values
/// (Hestenes 1958).
pub fn truncate(values: &[f32], rows: usize, columns: usize, rank: usize) -> Vec<f32> {
    let tall = rows >= columns;
    let (long, short) = if tall {
        (rows, columns)
    } else {
        (columns, rows)
    };
    let at = |row: usize, column: usize| f64::from(values[row * columns + column]);
    let mut basis: Vec<Vec<f64>> = (0..short)
        .map(|column| {
            (0..long)
                .map(|row| {
                    if tall {
                        at(row, column)
                    } else {
                        at(column, row)
                    }
                })
                .collect()
        })
        .collect();
    let mut right: Vec<Vec<f64>> = (0..short)
        .map(|column| {
            (0..short)
                .map(|row| f64::from(u8::from(row == column)))
                .collect()
        })
        .collect();
    for _ in 0..60 {
        let mut turned = false;
        for first in 0..short {
            for second in first + 1..short {
                turned |= orthogonalise(&mut basis, &mut right, first, second);
            }
        }
        if !turned {
            break;
        }
    }
    let norm = |column: &[f64]| column.iter().map(|value| value * value).sum::<f64>();
    let mut order: Vec<usize> = (0..short).collect();
    order.sort_by(|&a, &b| norm(&basis[b]).total_cmp(&norm(&basis[a])));
    let kept = &order[..rank.min(short)];
    let mut result = vec![0.0_f32; rows * columns];
    for (index, element) in result.iter_mut().enumerate() {
        let (row, column) = (index / columns, index % columns);
        let (l, s) = if tall { (row, column) } else { (column, row) };
        *element = kept.iter().map(|&k| basis[k][l] * right[k][s]).sum::<f64>() as f32;
    }
    result
}

/// Rotates two columns so that they become orthogonal; false when they already are.
fn orthogonalise(
    basis: &mut [Vec<f64>],
    right: &mut [Vec<f64>],
    first: usize,
    second: usize,
) -> bool {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let (a, b) = (
        dot(&basis[first], &basis[first]),
        dot(&basis[second], &basis[second]),
    );
    let c = dot(&basis[first], &basis[second]);
    if c.abs() <= 1e-15 * (a * b).sqrt() || c == 0.0 {
        return false;
    }
    let zeta = (b - a) / (2.0 * c);
    let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
    let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
    let sine = cosine * tangent;
    for columns in [basis, right] {
        let (head, tail) = columns.split_at_mut(second);
        for (x, y) in head[first].iter_mut().zip(&mut tail[0]) {
            (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
        }
    }
    true
}
