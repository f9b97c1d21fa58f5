//! What observing a pass costs: the metric's pass over 64 windows of 512 tokens of the real model `wt2-mistral`, plain and
//! with statistics of every module, as guards ask for them. The goal is at most 1.15.
//!
//! `PACKHOST_SHARED=... cargo bench -p packhost-model --bench taps`. Per thread count the processor time of a plain pass
//! (which holds on a busy machine) and the ratios of processor and wall time, best of several runs taken by turns. Counted in
//! multiplications per element of a module's output, with k inputs per feature: the product takes k; an edge risk 5 (three
//! products, two transposed ones in the same sweeps) for 8 of 64 windows; a spectrum 16 in 8 sweeps, likewise; moments 1 for
//! all windows. With k = 256 that is 1 to 2 %; what is above is that sweeps run at the speed of the cache, products do not.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeMap, path::Path, time::Instant};

use packhost_model::{
    Checkpoint,
    network::{Network, Padding, ScoreRequest, Tap, TapRequest},
};
use packhost_tensor::cpu::Cpu;
use serde_json::Value;

const REPEATS: usize = 7;

/// Processor seconds of all threads so far.
fn processor_seconds() -> f64 {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return f64::NAN;
    };
    let nanoseconds = |thread: std::io::Result<std::fs::DirEntry>| -> Option<f64> {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    threads.filter_map(nanoseconds).sum::<f64>() / 1e9
}

fn main() {
    let root = env!("CARGO_MANIFEST_DIR");
    let shared = std::env::var("PACKHOST_SHARED").unwrap_or(format!("{root}/../../../shared"));
    let folder = Path::new(&shared).join("models/wt2-mistral");
    if !folder.exists() {
        println!("{} is absent; set PACKHOST_SHARED", folder.display());
        return;
    }
    let file = format!("{root}/../../tests/vectors/evaluate/windows.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let ids: Vec<Vec<u32>> = ["preview", "final"]
        .into_iter()
        .flat_map(|arm| serde_json::from_value::<Vec<Vec<u32>>>(file[arm].clone()).unwrap())
        .collect();
    let windows: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let network = Network::new(&*Checkpoint::open(&folder).unwrap()).unwrap();
    let even: [usize; 8] = [0, 9, 18, 27, 36, 45, 54, 63];
    let request = |tap: &dyn Fn(&str) -> Tap| TapRequest {
        modules: network
            .modules()
            .into_iter()
            .map(|name| (name.to_owned(), tap(name)))
            .collect(),
        spectrum_windows: even.into(),
        padding: Some(Padding {
            token: 2,
            rows: 512,
        }),
    };
    let squares = |name: &str| match name.ends_with("down_proj") {
        true => (0..20).collect(),
        false => Default::default(),
    };
    let parity = request(&|name| Tap {
        risk: even.into(),
        mean_square: squares(name),
        ..Tap::default()
    });
    let moments = request(&|_| Tap {
        moments: true,
        ..Tap::default()
    });
    let spectra = request(&|_| Tap {
        spectrum: true,
        ..Tap::default()
    });
    let all = request(&|name| Tap {
        risk: even.into(),
        mean_square: squares(name),
        moments: true,
        spectrum: true,
        // Whole spectra are no part of an ordinary run.
        outliers: BTreeMap::new(),
    });
    println!("ratios of processor and wall time to those of a plain pass");
    println!(
        "threads  plain s |  edge, squares  |     moments     |     spectra     |   all of them"
    );
    // Threads that end take their processor time with them, so both pools stay until the end.
    let pools = [1, 2].map(|threads| Cpu::new(Some(threads)).unwrap());
    for cpu in &pools {
        let threads = cpu.threads();
        let mut best = [[f64::INFINITY; 2]; 5];
        for _ in 0..REPEATS {
            let requests = [&parity, &moments, &spectra, &all].map(Some);
            for (best, taps) in best.iter_mut().zip([None].into_iter().chain(requests)) {
                let request = ScoreRequest {
                    windows: &windows,
                    taps,
                    ..ScoreRequest::default()
                };
                let start = (processor_seconds(), Instant::now());
                drop(cpu.install(|| network.score(&request)).unwrap());
                best[0] = best[0].min(processor_seconds() - start.0);
                best[1] = best[1].min(start.1.elapsed().as_secs_f64());
            }
        }
        let [plain, observed @ ..] = best;
        let ratio = |[processor, wall]: [f64; 2]| {
            format!("{:>8.3}{:>8.3} ", processor / plain[0], wall / plain[1])
        };
        let ratios = observed.map(ratio).join("|");
        println!("{threads:>7} {:>8.3} |{ratios}", plain[0]);
    }
}
