//! The machine, compiled once per instruction set and chosen when the program runs.

use super::{
    lanes::{LANES, Lanes, Portable},
    machine::{self, Step, Tile},
};
use crate::cast;

/// Instruction sets that kernels are compiled for. Results are the same bits on each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// What every processor of the target has.
    Portable,
    /// x86-64 with AVX2 and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Level {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// The levels that this processor has, lowest first.
    pub fn available() -> Vec<Level> {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
                levels.push(Level::Avx2);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                levels.push(Level::Avx512);
            }
        }
        levels
    }
}

/// Entry points of one level.
#[derive(Debug, Clone, Copy)]
pub(super) struct Engine {
    run: unsafe fn(&[Step], &Tile<'_>),
    finish_magnitudes: unsafe fn(&[[f32; LANES]], &mut [f32]),
    group_magnitudes: unsafe fn(*const u16, usize, &mut [f32]),
}

impl Engine {
    /// The engine of `level`, or the portable one if this processor does not have it.
    pub(super) fn new(level: Level) -> Self {
        match level {
            level if !Level::available().contains(&level) => Self::new(Level::Portable),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Engine {
                run: avx512::run,
                finish_magnitudes: avx512::finish_magnitudes,
                group_magnitudes: avx512::group_magnitudes,
            },
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Engine {
                run: avx2::run,
                finish_magnitudes: avx2::finish_magnitudes,
                group_magnitudes: avx2::group_magnitudes,
            },
            _ => Engine {
                run: portable::run,
                finish_magnitudes: portable::finish_magnitudes,
                group_magnitudes: portable::group_magnitudes,
            },
        }
    }

    /// Runs steps over a tile.
    ///
    /// # Safety
    /// That of [`machine::run`], but for the instruction set, which [`Engine::new`] has checked.
    pub(super) unsafe fn run(&self, steps: &[Step], tile: &Tile<'_>) {
        // SAFETY: the caller's contract.
        unsafe { (self.run)(steps, tile) }
    }

    /// The largest magnitude of each group from its sixteen lanes.
    pub(super) fn finish_magnitudes(&self, lanes: &[[f32; LANES]], results: &mut [f32]) {
        // SAFETY: the instruction set has been checked.
        unsafe { (self.finish_magnitudes)(lanes, results) }
    }

    /// The largest magnitude of each of `results.len()` groups of `32 * count` bf16.
    ///
    /// # Safety
    /// `elements` is valid for all of them.
    pub(super) unsafe fn group_magnitudes(
        &self,
        elements: *const u16,
        count: usize,
        results: &mut [f32],
    ) {
        // SAFETY: the caller's contract; the instruction set has been checked.
        unsafe { (self.group_magnitudes)(elements, count, results) }
    }
}

#[inline(always)]
unsafe fn finish_magnitudes<L: Lanes>(lanes: &[[f32; LANES]], results: &mut [f32]) {
    for (result, lanes) in results.iter_mut().zip(lanes) {
        // SAFETY: sixteen lanes are there; the caller has the instruction set.
        let bits = unsafe { L::across_max_bits(L::load(lanes.as_ptr())) };
        *result = cast::canonical(f32::from_bits(bits));
    }
}

#[inline(always)]
unsafe fn group_magnitudes<L: Lanes>(elements: *const u16, count: usize, results: &mut [f32]) {
    for (group, result) in results.iter_mut().enumerate() {
        // SAFETY: the caller's contract.
        let bits = unsafe { L::max_magnitude_16(elements.add(group * 32 * count), count) };
        *result = cast::canonical(f32::from_bits(u32::from(bits) << 16));
    }
}

/// Instantiates the entry points for one level, in functions that may use its instructions.
macro_rules! level {
    ($name:ident, $lanes:ty, $vectors:literal $(, $features:literal)?) => {
        mod $name {
            use super::*;

            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn run(steps: &[Step], tile: &Tile<'_>) {
                // SAFETY: the caller's contract.
                unsafe { machine::run::<$lanes, $vectors>(steps, tile) }
            }

            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn finish_magnitudes(lanes: &[[f32; LANES]], results: &mut [f32]) {
                // SAFETY: the caller's contract.
                unsafe { super::finish_magnitudes::<$lanes>(lanes, results) }
            }

            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn group_magnitudes(elements: *const u16, count: usize, results: &mut [f32]) {
                // SAFETY: the caller's contract.
                unsafe { super::group_magnitudes::<$lanes>(elements, count, results) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};

// As many vectors at a time as leave half of the registers for intermediate results.
level!(portable, Portable, 2);
#[cfg(target_arch = "x86_64")]
level!(avx2, Avx2, 4, "avx2,f16c");
#[cfg(target_arch = "x86_64")]
level!(avx512, Avx512, 8, "avx512f,avx512bw,avx512dq,avx512vl");
