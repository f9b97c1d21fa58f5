//! Speed of the statistics of weights: all that all guards ask for, against one plain read of the weights and the time that
//! the arithmetic takes at the speed that this machine multiplies and adds registers.
//!
//! `PACKHOST_BENCH_MODEL` names a safetensors file to measure beside the synthetic matrices; `PACKHOST_BENCH_MIB` sets the
//! size of those (1024 MiB of bf16, matrices like those of a 7B model). Contenders take turns, the best of several rounds
//! counts. A floating-point operation is one addition or multiplication; the floor counts those of the 4 power iterations
//! (7 products), of the 8 bidiagonalisation steps (16 products) and of the norms, two per element each. It does not count
//! that every product must widen bf16 to f32, which takes the same units: two thirds of the peak can be reached where two
//! vectors share a sweep, half of it where there is one.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::{hint::black_box, time::Instant};

use packhost_tensor::{DType, Device, Power, Start, Tensor, WeightWish, cpu::Cpu};
use rayon::prelude::*;

const ROUNDS: usize = 7;
/// Operations per element: products, and the squares of rows and columns.
const OPERATIONS: f64 = 2.0 * (7.0 + 16.0 + 2.0);

fn main() {
    let mib: usize = std::env::var("PACKHOST_BENCH_MIB")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1024);
    let cpu = Cpu::new(None).unwrap();
    println!("{} threads", cpu.threads());
    if let Some(path) = std::env::var_os("PACKHOST_BENCH_MODEL") {
        let file = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&file).unwrap();
        let tensors = file.tensors().into_iter().filter_map(|(_, view)| {
            let dtype = DType::from_name(&view.dtype().to_string())?;
            let bytes = bytes::Bytes::copy_from_slice(view.data());
            Some(Tensor::new(dtype, view.shape(), bytes).unwrap())
        });
        let tensors: Vec<Tensor> = tensors.filter(|tensor| tensor.shape().len() == 2).collect();
        bench(&cpu, &path.to_string_lossy(), &tensors, 20);
    }
    let shapes = [[4096, 4096], [1024, 4096], [14336, 4096], [4096, 14336]];
    let mut tensors = Vec::new();
    let mut left = mib << 20;
    for (seed, shape) in shapes.into_iter().cycle().enumerate() {
        let Some(rest) = left.checked_sub(2 * shape[0] * shape[1]) else {
            break;
        };
        left = rest;
        let zeros = Tensor::zeros(DType::BF16, shape).unwrap();
        tensors.push(cpu.add_normal(&zeros, seed as u64, 0.02).unwrap());
    }
    bench(&cpu, "synthetic", &tensors, 1);
}

/// Times everything on `tensors`: with all cores, and then with one, a tensor at a time. Of the latter each tensor's best
/// round counts, so that other work on the machine disturbs it little.
fn bench(cpu: &Cpu, name: &str, tensors: &[Tensor], repeats: usize) {
    let bytes: usize = tensors.iter().map(|tensor| tensor.bytes().len()).sum();
    let mebibytes = bytes as f64 / 1_048_576.0;
    println!("{name}: {} matrices, {mebibytes:.1} MiB", tensors.len());
    let one = Cpu::new(Some(1)).unwrap();
    let all = |run: &Run| {
        let start = Instant::now();
        (0..repeats).for_each(|_| run(cpu, tensors));
        vec![start.elapsed().as_secs_f64() / repeats as f64]
    };
    let each = |run: &Run| {
        let time = |tensor| {
            let start = Instant::now();
            run(&one, std::slice::from_ref(tensor));
            start.elapsed().as_secs_f64()
        };
        tensors.iter().map(time).collect()
    };
    report(cpu.threads(), ROUNDS, &all);
    report(1, ROUNDS * repeats, &each);
}

type Run = dyn Fn(&Cpu, &[Tensor]);

/// Lets all contenders take turns and prints the sum of the best times of the parts that `time` returns.
fn report(threads: usize, rounds: usize, time: &dyn Fn(&Run) -> Vec<f64>) {
    let everything = WeightWish {
        powers: vec![Power {
            start: Start::Ones,
            iterations: 4,
        }],
        norms: true,
        leading: true,
    };
    let spectral = WeightWish {
        leading: false,
        ..everything.clone()
    };
    let counts = WeightWish::default();
    let stats = |wish: WeightWish| -> Box<Run> {
        Box::new(move |cpu, tensors| {
            let stats = |tensor| drop(black_box(cpu.weight_stats(tensor, &wish).unwrap()));
            cpu.install(|| tensors.par_iter().for_each(stats));
        })
    };
    let contenders: [(&str, Box<Run>); 5] = [
        ("plain read", Box::new(read)),
        ("arithmetic at peak", Box::new(arithmetic)),
        ("all statistics", stats(everything)),
        ("without singular values", stats(spectral)),
        ("counts only", stats(counts)),
    ];
    let mut best: [Vec<f64>; 5] = Default::default();
    for _ in 0..rounds {
        for (best, (_, run)) in best.iter_mut().zip(&contenders) {
            let times = time(run);
            best.resize(times.len(), f64::INFINITY);
            for (best, time) in best.iter_mut().zip(times) {
                *best = best.min(time);
            }
        }
    }
    let best = best.map(|parts| parts.iter().sum::<f64>());
    println!("  with {threads} thread(s)");
    for ((what, _), seconds) in contenders.iter().zip(best) {
        println!("    {what:24} {:9.3} ms", 1e3 * seconds);
    }
    println!(
        "    all / (1.5 read + arithmetic): {:.2}",
        best[2] / (1.5 * best[0] + best[1])
    );
    println!(
        "    all / (read + arithmetic):     {:.2}",
        best[2] / (best[0] + best[1])
    );
}

/// Reads every byte once.
fn read(cpu: &Cpu, tensors: &[Tensor]) {
    let sum = |bytes: &[u8]| {
        let mut lanes = [0u64; 32];
        for block in bytes.as_chunks::<256>().0 {
            for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
                *lane ^= u64::from_le_bytes(*word);
            }
        }
        lanes.into_iter().fold(0, |a, b| a ^ b)
    };
    cpu.install(|| {
        tensors.par_iter().for_each(|tensor| {
            black_box(
                tensor
                    .bytes()
                    .par_chunks(1 << 20)
                    .map(sum)
                    .reduce(|| 0, |a, b| a ^ b),
            );
        });
    });
}

/// The operations that the statistics of `tensors` take, in registers.
fn arithmetic(cpu: &Cpu, tensors: &[Tensor]) {
    let operations = OPERATIONS * tensors.iter().map(Tensor::len).sum::<usize>() as f64;
    /// Operations of one step of one chain.
    const STEP: f64 = 2.0 * 16.0;
    let tasks = 4 * cpu.threads();
    let steps = (operations / STEP / 12.0 / tasks as f64) as usize;
    cpu.install(|| {
        (0..tasks).into_par_iter().for_each(|_| {
            black_box(chains(black_box(steps)));
        });
    });
}

/// Twelve chains of fused multiplications and additions, enough to keep two units busy.
#[cfg(target_arch = "x86_64")]
fn chains(steps: usize) -> f32 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    fn widest(steps: usize) -> f32 {
        let (factor, term) = (_mm512_set1_ps(0.999_999), _mm512_set1_ps(1e-9));
        let mut lanes = [_mm512_set1_ps(1.0); 12];
        for _ in 0..steps {
            for chain in &mut lanes {
                *chain = _mm512_fmadd_ps(*chain, factor, term);
            }
        }
        lanes.into_iter().map(|chain| _mm512_cvtss_f32(chain)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    fn wide(steps: usize) -> f32 {
        let (factor, term) = (_mm256_set1_ps(0.999_999), _mm256_set1_ps(1e-9));
        let mut lanes = [_mm256_set1_ps(1.0); 12];
        for _ in 0..2 * steps {
            for chain in &mut lanes {
                *chain = _mm256_fmadd_ps(*chain, factor, term);
            }
        }
        lanes.into_iter().map(|chain| _mm256_cvtss_f32(chain)).sum()
    }

    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the feature.
        return unsafe { widest(steps) };
    }
    assert!(
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma"),
        "this bench knows the peak of processors with AVX2 and FMA"
    );
    // SAFETY: as above.
    unsafe { wide(steps) }
}

/// Twelve chains of sixteen lanes.
#[cfg(not(target_arch = "x86_64"))]
fn chains(steps: usize) -> f32 {
    let mut lanes = [[1.0f32; 16]; 12];
    for _ in 0..steps {
        lanes = lanes.map(|chain| chain.map(|lane| lane.mul_add(0.999_999, 1e-9)));
    }
    lanes.as_flattened().iter().sum()
}
