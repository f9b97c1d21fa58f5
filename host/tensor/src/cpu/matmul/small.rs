//! The small products of attention, on the calling thread.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul as product};

use super::Store;

/// A matrix to read whose element `(i, j)` is at `i * steps.0 + j * steps.1`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    pub steps: (usize, usize),
}

impl Strided<'_> {
    /// Numbers from the first to the last element.
    fn span(rows: usize, columns: usize, steps: (usize, usize)) -> usize {
        rows.saturating_sub(1) * steps.0 + columns.saturating_sub(1) * steps.1 + 1
    }
}

/// `to (+)= a b` on the calling thread, for the small products of attention; element `(i, j)` of the result is at
/// `i + j * step`. The bits depend on the sizes.
///
/// # Panics
/// When the sizes do not fit each other or the data.
pub(crate) fn small_product(
    a: Strided<'_>,
    b: Strided<'_>,
    to: &mut [f32],
    step: usize,
    store: Store,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        k > 0 && b.rows == k && m <= step,
        "factors of a product that do not fit"
    );
    assert!(
        Strided::span(m, k, a.steps) <= a.data.len()
            && Strided::span(k, n, b.steps) <= b.data.len()
            && Strided::span(m, n, (1, step)) <= to.len(),
        "factor beyond its data"
    );
    // SAFETY: the assertions above.
    let (to, a, b) = unsafe {
        (
            MatMut::from_raw_parts_mut(to.as_mut_ptr(), m, n, 1, step as isize),
            MatRef::from_raw_parts(
                a.data.as_ptr(),
                m,
                k,
                a.steps.0 as isize,
                a.steps.1 as isize,
            ),
            MatRef::from_raw_parts(
                b.data.as_ptr(),
                k,
                n,
                b.steps.0 as isize,
                b.steps.1 as isize,
            ),
        )
    };
    let accum = match store {
        Store::Replace => Accum::Replace,
        Store::Add => Accum::Add,
    };
    product(to, accum, a, b, 1.0, Par::Seq);
}
