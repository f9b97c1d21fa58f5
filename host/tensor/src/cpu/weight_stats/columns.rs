//! Vectors with one number per column.

use std::ops::{Deref, DerefMut};

use super::lanes::CHUNK;

/// One chunk. Its alignment keeps every vector register within a cache line, which is worth a fifth of a sweep's time.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Chunk([f32; CHUNK]);

/// One number per column, in panel order and in whole chunks; as a slice, numbers.
#[derive(Clone, Default)]
pub(super) struct Columns(Vec<Chunk>);

impl Columns {
    /// Zeros, for at least `columns` columns.
    pub(super) fn zeros(columns: usize) -> Self {
        Self(vec![Chunk([0.0; CHUNK]); columns.div_ceil(CHUNK)])
    }
}

impl Deref for Columns {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: a chunk is its numbers and nothing else: 128 bytes, a multiple of its alignment.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * CHUNK) }
    }
}

impl DerefMut for Columns {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * CHUNK) }
    }
}
