//! Speed of the edits as kernel programs, as shares of the machine's copy bandwidth measured in the same run.
//!
//! `PACKHOST_BENCH_MIB` sets the size of all tensors together (1024 MiB of bf16); each has 64 MiB, about what a matrix of a
//! 7B model has. Results go into memory that earlier results have left, as they do when a checkpoint is edited tensor by
//! tensor; so does the copy. Of each tensor the best of several rounds counts, in which all contenders take turns, so that a
//! busy machine slows them alike.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{cell::RefCell, hint::black_box, time::Instant};

use packhost_tensor::{
    DType, Device, Tensor, TensorMut,
    cpu::Cpu,
    program::{Op, Program},
};
use rayon::prelude::*;

const ROUNDS: usize = 5;
const COLUMNS: usize = 4096;
const GROUP: usize = 128;

fn main() {
    let mib: usize = std::env::var("PACKHOST_BENCH_MIB")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1024);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let device = Cpu::new(None).unwrap();
    let zeros = Tensor::zeros(DType::BF16, [8192, COLUMNS]).unwrap();
    let tensors: Vec<Tensor> = (0..mib.div_ceil(64).max(1))
        .map(|seed| device.add_normal(&zeros, seed as u64, 0.02).unwrap())
        .collect();
    drop(zeros);
    println!(
        "{} tensors of 64 MiB of bf16, {cores} cores, kernels for {}",
        tensors.len(),
        device.level().name()
    );
    let mut counts = vec![1];
    counts.extend((cores > 1).then_some(cores));
    for threads in counts {
        bench(&Cpu::new(Some(threads)).unwrap(), &tensors);
    }
}

type Contender<'a> = (&'static str, Box<dyn Fn(&Tensor) + 'a>);

fn bench(device: &Cpu, tensors: &[Tensor]) {
    let target = RefCell::new(TensorMut::zeros(DType::BF16, tensors[0].shape()).unwrap());
    let k = tensors[0].len() as u64 / 2;
    let median = device.kth_magnitude(&tensors[0], k).unwrap();
    let rtn = support::quant_rtn(DType::BF16, 8, Some(GROUP as u32));
    let prune = support::prune();
    let into = |work: fn(&Tensor, &mut [u8]), tensor: &Tensor| {
        let mut target = target.borrow_mut();
        let bytes = target.bytes_mut();
        device.install(|| work(tensor, bytes));
    };
    let compute = |program: Program| -> Box<dyn Fn(&Tensor)> {
        Box::new(move |tensor| {
            drop(black_box(
                device.compute(&program, &[tensor], &[median]).unwrap(),
            ))
        })
    };
    let contenders: Vec<Contender<'_>> = vec![
        ("copy", Box::new(|tensor| into(copy, tensor))),
        // Stores past the caches, which the plain copy may not.
        (
            "copy as a program",
            compute(Program::check(&[Op::Input(0)]).unwrap()),
        ),
        (
            "quant-rtn 8 bits, group 128, by hand",
            Box::new(|tensor| into(rtn_by_hand, tensor)),
        ),
        ("quant-rtn 8 bits, group 128", compute(rtn.clone())),
        (
            "quant-rtn 4 bits, group 32",
            compute(support::quant_rtn(DType::BF16, 4, Some(32))),
        ),
        (
            "quant-rtn 8 bits, rows",
            compute(support::quant_rtn(DType::BF16, 8, None)),
        ),
        (
            "fp8 e4m3",
            compute(support::fp8(DType::BF16, DType::F8E4M3)),
        ),
        (
            "fp8 e5m2",
            compute(support::fp8(DType::BF16, DType::F8E5M2)),
        ),
        ("prune, given the threshold", compute(prune.clone())),
        (
            "kth-magnitude",
            Box::new(|tensor| {
                black_box(device.kth_magnitude(tensor, k).unwrap());
            }),
        ),
        (
            "prune, threshold and all",
            Box::new(|tensor| {
                let threshold = device.kth_magnitude(tensor, k).unwrap();
                drop(black_box(
                    device.compute(&prune, &[tensor], &[threshold]).unwrap(),
                ));
            }),
        ),
    ];
    let mut best = vec![vec![f64::INFINITY; tensors.len()]; contenders.len()];
    for _ in 0..ROUNDS {
        for (best, (_, run)) in best.iter_mut().zip(&contenders) {
            for (tensor, best) in tensors.iter().zip(best) {
                let start = Instant::now();
                run(tensor);
                *best = best.min(start.elapsed().as_secs_f64());
            }
        }
    }
    let best: Vec<f64> = best.iter().map(|times| times.iter().sum()).collect();
    let gigabytes = tensors
        .iter()
        .map(|tensor| tensor.bytes().len())
        .sum::<usize>() as f64
        / 1e9;
    println!("\n{} thread(s)", device.threads());
    for ((name, _), seconds) in contenders.iter().zip(&best) {
        println!(
            "  {name:<38} {:6.2} GB/s of tensor  {:5.2} of copy",
            gigabytes / seconds,
            best[0] / seconds
        );
    }
    println!(
        "  quant-rtn as a program: {:.2} of the speed of the loop by hand",
        best[2] / best[3]
    );

    // The same work, or the comparison would mean nothing.
    let program = device.compute(&rtn, &[&tensors[0]], &[]).unwrap();
    into(rtn_by_hand, &tensors[0]);
    let same = program.tensor.bytes()[..] == target.borrow_mut().bytes_mut()[..];
    assert!(same, "the loop by hand and the program differ");
}

/// What the edits are measured against: each thread copies its share.
fn copy(tensor: &Tensor, target: &mut [u8]) {
    let share = target.len().div_ceil(4 * rayon::current_num_threads());
    target
        .par_chunks_mut(share)
        .zip(tensor.bytes().par_chunks(share))
        .for_each(|(to, from)| to.copy_from_slice(from));
}

/// Quantisation as one would write it for this one purpose, vectorised by the compiler for the best level at hand.
fn rtn_by_hand(tensor: &Tensor, target: &mut [u8]) {
    let share = 1 << 19;
    target
        .par_chunks_mut(share)
        .zip(tensor.bytes().par_chunks(share))
        .for_each(|(to, from)| {
            let (to, from) = (to.as_chunks_mut::<2>().0, from.as_chunks::<2>().0);
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                    // SAFETY: just checked.
                    return unsafe { rtn_avx512(from, to) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: just checked.
                    return unsafe { rtn_avx2(from, to) };
                }
            }
            rtn_loop(from, to);
        });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn rtn_avx512(from: &[[u8; 2]], to: &mut [[u8; 2]]) {
    rtn_loop(from, to);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn rtn_avx2(from: &[[u8; 2]], to: &mut [[u8; 2]]) {
    rtn_loop(from, to);
}

#[inline(always)]
fn rtn_loop(from: &[[u8; 2]], to: &mut [[u8; 2]]) {
    let widen = |half: u16| f32::from_bits(u32::from(half) << 16);
    let narrow = |x: f32| {
        let bits = x.to_bits();
        bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16
    };
    for (from, to) in from.chunks(GROUP).zip(to.chunks_mut(GROUP)) {
        let largest = from
            .iter()
            .fold(0, |m: u16, &half| m.max(u16::from_le_bytes(half) & 0x7fff));
        let scale = widen(narrow(widen(largest) / 127.0) as u16).max(f32::from_bits(0x2edc_0000));
        for (to, &from) in to.iter_mut().zip(from) {
            let quotient = f32::from_bits(narrow(widen(u16::from_le_bytes(from)) / scale) << 16);
            let level = quotient.round_ties_even().clamp(-128.0, 127.0);
            *to = (narrow(level * scale) as u16).to_le_bytes();
        }
    }
}
