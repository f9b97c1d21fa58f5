//! A matrix as the sweeps read it: as stored where that is bf16 in whole chunks; of everything else a small one is kept as
//! f32 in panel order, and a large one decoded a group of rows at a time, in every sweep.

use super::lanes::{CHUNK, GROUP, arrange};
use crate::{DType, Tensor, cast, cpu::widen};

/// Most elements that are kept as f32, padding included: 1 MiB, half of a large core's second cache.
const KEPT: usize = 1 << 18;

/// A matrix of floats with at least one element.
pub(super) struct Matrix<'a> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Chunks in a row, the last one filled up with zeros.
    pub(super) chunks: usize,
    data: Data<'a>,
}

enum Data<'a> {
    /// bf16 rows in whole chunks.
    Stored(&'a [[[u8; 2]; CHUNK]]),
    /// All rows, and rows of zeros up to a whole group.
    Kept(Vec<[f32; CHUNK]>),
    /// Decoded when read.
    Encoded { dtype: DType, bytes: &'a [u8] },
}

/// `GROUP` rows.
pub(super) enum Panel<'a> {
    Stored(&'a [[[u8; 2]; CHUNK]]),
    Wide(&'a [[f32; CHUNK]]),
}

/// Memory for a group of rows.
#[derive(Default)]
pub(super) struct Scratch {
    stored: Vec<[[u8; 2]; CHUNK]>,
    wide: Vec<[f32; CHUNK]>,
    row: Vec<f32>,
}

impl<'a> Matrix<'a> {
    /// The matrix in `tensor`, a float tensor of two axes with at least one element.
    pub(super) fn new(tensor: &'a Tensor) -> Self {
        let (rows, columns) = tensor.rows_columns();
        let chunks = columns.div_ceil(CHUNK);
        let (dtype, bytes) = (tensor.dtype(), &tensor.bytes()[..]);
        let whole = dtype == DType::BF16 && columns.is_multiple_of(CHUNK);
        let padded = rows.next_multiple_of(GROUP) * chunks;
        let data = if whole {
            Data::Stored(bytes.as_chunks().0.as_chunks().0)
        } else if padded * CHUNK <= KEPT {
            let mut kept = vec![[0.0; CHUNK]; padded];
            let mut row = vec![0.0; columns];
            let size = columns * dtype.size();
            for (out, bytes) in kept.chunks_mut(chunks).zip(bytes.chunks(size)) {
                decode(dtype, bytes, &mut row);
                arrange(&row, out);
            }
            Data::Kept(kept)
        } else {
            Data::Encoded { dtype, bytes }
        };
        Self {
            rows,
            columns,
            chunks,
            data,
        }
    }

    /// Rows `first..first + GROUP`; rows beyond the last are zero.
    pub(super) fn group<'b>(&'b self, first: usize, scratch: &'b mut Scratch) -> Panel<'b> {
        let chunks = self.chunks;
        let count = GROUP.min(self.rows - first);
        match &self.data {
            Data::Kept(kept) => Panel::Wide(&kept[first * chunks..(first + GROUP) * chunks]),
            Data::Stored(stored) if count == GROUP => {
                Panel::Stored(&stored[first * chunks..(first + GROUP) * chunks])
            }
            Data::Stored(stored) => {
                scratch.stored.clear();
                scratch.stored.extend_from_slice(&stored[first * chunks..]);
                scratch.stored.resize(GROUP * chunks, [[0; 2]; CHUNK]);
                Panel::Stored(&scratch.stored)
            }
            Data::Encoded { dtype, bytes } => {
                let size = self.columns * dtype.size();
                scratch.row.resize(self.columns, 0.0);
                scratch.wide.clear();
                scratch.wide.resize(GROUP * chunks, [0.0; CHUNK]);
                let rows = bytes[first * size..(first + count) * size].chunks(size);
                for (out, bytes) in scratch.wide.chunks_mut(chunks).zip(rows) {
                    decode(*dtype, bytes, &mut scratch.row);
                    arrange(&scratch.row, out);
                }
                Panel::Wide(&scratch.wide)
            }
        }
    }
}

/// Elements as f32 in their own order.
pub(super) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    if widen::serves(dtype) {
        widen::widen(dtype, bytes, out);
    } else {
        cast::decode(dtype, bytes, out);
    }
}
