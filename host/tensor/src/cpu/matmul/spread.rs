//! Where work runs: on the calling thread, or over the pool in pieces whose borders depend on the sizes alone.

use rayon::prelude::*;

/// Where work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// On the calling thread: the caller has other work for the other threads.
    Here,
    /// Over the current rayon pool.
    Pool,
}

impl Spread {
    /// Calls `work` for every index below `count`.
    pub fn each(self, count: usize, work: impl Fn(usize) + Sync + Send) {
        match self {
            Spread::Here => (0..count).for_each(work),
            Spread::Pool => (0..count).into_par_iter().with_max_len(1).for_each(work),
        }
    }

    /// Calls `work` with every row of `data`, each of `width` numbers, and its index.
    pub fn rows(
        self,
        data: &mut [f32],
        width: usize,
        work: impl Fn(usize, &mut [f32]) + Sync + Send,
    ) {
        /// Rows that a thread takes at a time.
        const CHUNK: usize = 32;
        let width = width.max(1);
        let chunk = |(index, rows): (usize, &mut [f32])| {
            for (row, out) in rows.chunks_exact_mut(width).enumerate() {
                work(index * CHUNK + row, out);
            }
        };
        match self {
            Spread::Here => data.chunks_mut(CHUNK * width).enumerate().for_each(chunk),
            Spread::Pool => data
                .par_chunks_mut(CHUNK * width)
                .enumerate()
                .for_each(chunk),
        }
    }

    /// The results of `work` for every index below `count`, in order.
    pub fn map<R: Send>(self, count: usize, work: impl Fn(usize) -> R + Sync + Send) -> Vec<R> {
        match self {
            Spread::Here => (0..count).map(work).collect(),
            Spread::Pool => (0..count)
                .into_par_iter()
                .with_max_len(1)
                .map(work)
                .collect(),
        }
    }
}
