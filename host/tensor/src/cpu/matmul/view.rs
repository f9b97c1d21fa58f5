//! Rows to read and rows to write, a fixed distance apart.

use std::ops::Range;

/// Rows to read: row `i` starts at `i * stride`.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The numbers, from the first row's first on.
    pub data: &'a [f32],
    /// How many rows.
    pub rows: usize,
    /// Distance between rows.
    pub stride: usize,
}

impl<'a> View<'a> {
    /// `rows` rows that lie close together.
    pub fn dense(data: &'a [f32], rows: usize) -> Self {
        Self {
            data,
            rows,
            stride: data.len().checked_div(rows).unwrap_or(0),
        }
    }
}

/// Rows to write: row `i` starts at `i * stride`.
#[derive(Debug)]
pub struct ViewMut<'a> {
    data: *mut f32,
    len: usize,
    pub(super) stride: usize,
    _owner: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: a `ViewMut` is a `&mut [f32]` whose disjoint parts are handed to different threads, by `row_part` only.
unsafe impl Send for ViewMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// Rows of `data` that start `stride` apart.
    pub fn new(data: &'a mut [f32], stride: usize) -> Self {
        Self {
            data: data.as_mut_ptr(),
            len: data.len(),
            stride,
            _owner: std::marker::PhantomData,
        }
    }

    /// Address of the block of `rows` rows from `first` on and of `columns`.
    ///
    /// # Panics
    /// When the block goes beyond the data or the rows overlap.
    pub(super) fn block(&self, first: usize, rows: usize, columns: Range<usize>) -> *mut f32 {
        let end = (first + rows - 1) * self.stride + columns.end;
        assert!(
            rows > 0 && columns.start < columns.end && end <= self.len,
            "block beyond the data"
        );
        assert!(
            columns.end <= self.stride || first + rows == 1,
            "rows of a block overlap"
        );
        self.data.wrapping_add(first * self.stride + columns.start)
    }

    /// Numbers `columns` of row `row`.
    ///
    /// # Safety
    /// No two threads may hold overlapping parts at the same time.
    ///
    /// # Panics
    /// When the part goes beyond the data.
    #[expect(
        clippy::mut_from_ref,
        reason = "the caller promises that parts do not overlap"
    )]
    pub(crate) unsafe fn row_part(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        let start = row * self.stride + columns.start;
        assert!(
            columns.start <= columns.end && start + columns.len() <= self.len,
            "part of a row beyond the data"
        );
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), columns.len()) }
    }
}
