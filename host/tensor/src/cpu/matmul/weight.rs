//! Matrices of weights in their stored type.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use super::tiles::Columns;
use crate::{Error, Result, Tensor, cpu::widen};

/// Bytes of a weight up to which its packed form is kept, for all who share the weight: large ones would take twice the
/// memory, and packing costs less of their product.
const KEPT: usize = 4 << 20;

/// A matrix of weights `[rows, columns]` as stored: bf16, f16 or f32.
#[derive(Clone)]
pub struct Weight {
    tensor: Tensor,
    /// As columns for matrix tiles.
    packed: Arc<OnceLock<Columns>>,
    rows: usize,
    columns: usize,
}

impl Weight {
    /// Takes a tensor of two axes.
    ///
    /// # Errors
    /// When it has another number of axes, or a dtype that is neither bf16, f16 nor f32.
    pub fn new(tensor: &Tensor) -> Result<Self> {
        if !widen::serves(tensor.dtype()) {
            return Err(Error::DType {
                op: "weight",
                dtype: tensor.dtype(),
            });
        }
        let &[rows, columns] = tensor.shape() else {
            return Err(Error::Argument {
                op: "weight",
                message: format!(
                    "a matrix has two axes, this tensor has shape {:?}",
                    tensor.shape()
                ),
            });
        };
        Ok(Self {
            tensor: tensor.clone(),
            packed: Arc::default(),
            rows,
            columns,
        })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The tensor as it was given.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Row `row`, widened to `out` (as long as a row).
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        self.part(row, 0..self.columns, out);
    }

    /// As columns for matrix tiles, where that is kept; for weights in bf16.
    pub(super) fn packed(&self) -> Option<&Columns> {
        let keep = self.tensor.bytes().len() <= KEPT;
        keep.then(|| {
            self.packed.get_or_init(|| {
                let mut columns = Columns::default();
                columns.fill(self, 0..self.rows);
                columns
            })
        })
    }

    /// `columns` of row `row`, widened.
    pub(super) fn part(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let size = self.tensor.dtype().size();
        let start = row * self.columns;
        let bytes =
            &self.tensor.bytes()[(start + columns.start) * size..(start + columns.end) * size];
        widen::widen(self.tensor.dtype(), bytes, out);
    }
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weight")
            .field("tensor", &self.tensor)
            .finish_non_exhaustive()
    }
}
