//! The whole `packhost evaluate` on the real model `wt2-mistral` against the reference system's own command on the same
//! checkpoints, windows and guards, in one run; and a further subject with the baseline in memory.
//!
//! `PACKHOST_SHARED=... [PACKHOST_REFERENCE=...] cargo bench -p packhost --bench evaluate`. `PACKHOST_SHARED` holds
//! `models/wt2-mistral` and `data/wikitext2-windows.jsonl`; `PACKHOST_REFERENCE` is the program `invarlock` (0.12.1) of an
//! environment that has PyTorch; without it only this program is measured. The two take turns, and of each the least counts:
//! wall time, processor time of all its threads, and its largest resident memory. The goals: 8, 6 and 4 times less, and 1.5
//! seconds for a further subject. The subject is `quant_rtn:8:128:ffn`, made by `packhost edit`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(not(target_os = "linux"), allow(unused))]

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::AtomicBool,
    time::Instant,
};

use packhost_plugin::EngineOptions;
use packhost_suite::{
    compare::{CompareRequest, Comparison},
    suites::Dataset,
    toolbox::Toolbox,
};

const ROUNDS: usize = 3;
const SUBJECTS: usize = 5;

/// What a command took.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    processor: f64,
    /// Bytes.
    memory: f64,
}

impl Cost {
    const WORST: Self = Self {
        wall: f64::INFINITY,
        processor: f64::INFINITY,
        memory: f64::INFINITY,
    };

    fn least(self, other: Self) -> Self {
        Self {
            wall: self.wall.min(other.wall),
            processor: self.processor.min(other.processor),
            memory: self.memory.min(other.memory),
        }
    }

    fn print(&self, what: &str) {
        println!(
            "{what:<28}{:>9.3} s wall{:>9.3} s processor{:>9.1} MiB",
            self.wall,
            self.processor,
            self.memory / 1_048_576.0
        );
    }
}

#[cfg(target_os = "linux")]
fn run(command: &mut Command) -> Cost {
    /// `struct rusage` of Linux: two times of two words, then words of which the first is the memory in KiB.
    type Usage = [i64; 18];
    unsafe extern "C" {
        fn wait4(pid: i32, status: *mut i32, options: i32, usage: *mut Usage) -> i32;
    }
    let start = Instant::now();
    #[expect(
        clippy::zombie_processes,
        reason = "waited for below, by the call that tells what it took"
    )]
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut status, mut usage) = (0, [0; 18]);
    // SAFETY: both pointers are valid for what the call writes.
    let found = unsafe { wait4(child.id() as i32, &mut status, 0, &mut usage) };
    let wall = start.elapsed().as_secs_f64();
    assert!(found > 0 && status == 0, "{command:?}: status {status}");
    let seconds = |at: usize| usage[at] as f64 + usage[at + 1] as f64 / 1e6;
    Cost {
        wall,
        processor: seconds(0) + seconds(2),
        memory: usage[4] as f64 * 1024.0,
    }
}

/// Elsewhere nobody tells what a process took but time.
#[cfg(not(target_os = "linux"))]
fn run(command: &mut Command) -> Cost {
    let start = Instant::now();
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success(), "{command:?}");
    Cost {
        wall: start.elapsed().as_secs_f64(),
        processor: f64::NAN,
        memory: f64::NAN,
    }
}

struct Places {
    model: PathBuf,
    data: PathBuf,
    plugins: PathBuf,
    work: tempfile::TempDir,
}

impl Places {
    fn packhost(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_packhost"));
        command
            .args(arguments)
            .arg("--plugins")
            .arg(&self.plugins)
            .env_clear()
            .env("XDG_CACHE_HOME", self.work.path());
        command
    }

    fn subject(&self) -> PathBuf {
        self.work.path().join("subject")
    }

    fn evaluate(&self) -> Command {
        let mut command = self.packhost(&["evaluate", "--preview", "32", "--final", "32"]);
        command
            .args(["--seq-len", "512", "--seed", "42"])
            .arg("--baseline")
            .arg(&self.model)
            .arg("--subject")
            .arg(self.subject())
            .arg("--dataset")
            .arg(&self.data)
            .arg("--out")
            .arg(self.work.path().join("out"));
        command
    }

    fn reference(&self, program: &Path) -> Command {
        let preset = self.work.path().join("preset.yaml");
        let text = format!(
            "dataset: {{provider: local_jsonl, file: {}, text_field: text, split: validation, seq_len: 512, stride: 512, \
             preview_n: 32, final_n: 32, seed: 42}}\n\
             eval: {{metric: {{kind: ppl_causal}}, loss: {{type: causal}}}}\n\
             auto: {{enabled: true, tier: balanced, probes: 0}}\n\
             guards: {{order: [invariants, spectral, rmt, variance, invariants]}}\n\
             output: {{save_model: false, save_report: true}}\n",
            self.data.display()
        );
        std::fs::write(&preset, text).unwrap();
        for folder in ["runs", "report"] {
            let _ = std::fs::remove_dir_all(self.work.path().join(folder));
        }
        let mut command = Command::new(program);
        command
            .current_dir(self.work.path())
            .env("INVARLOCK_ALLOW_NETWORK", "0")
            .env("HF_HUB_OFFLINE", "1")
            .args(["evaluate", "--execution-mode", "host", "--assurance", "off"])
            .args(["--profile", "dev", "--device", "cpu"])
            .args(["--out", "runs", "--report-out", "report"])
            .arg("--baseline")
            .arg(&self.model)
            .arg("--subject")
            .arg(self.subject())
            .arg("--preset")
            .arg(&preset);
        command
    }

    /// Seconds that each of several subjects takes, edited differently, with the baseline resident: the first one, and the
    /// least.
    fn further(&self) -> (f64, f64) {
        let options = EngineOptions::default();
        let toolbox = Toolbox::open(&self.plugins, false, options, None).unwrap();
        let dataset = Dataset::of_file(self.data.clone(), "text".into());
        let out = self.work.path().join("out");
        let request = CompareRequest::new(self.model.clone(), self.subject(), dataset, out);
        let cancel = AtomicBool::new(false);
        let time = "2026-01-01T00:00:00Z";
        let comparison = Comparison::open(&request, &toolbox, time, &cancel, 0).unwrap();
        let seconds = || {
            let start = Instant::now();
            comparison.with(&request.subject, &request.out).unwrap();
            start.elapsed().as_secs_f64()
        };
        let times: Vec<f64> = (0..SUBJECTS).map(|_| seconds()).collect();
        (times[0], times.into_iter().fold(f64::INFINITY, f64::min))
    }
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared = std::env::var_os("PACKHOST_SHARED").map(PathBuf::from);
    let Some(shared) = shared.filter(|shared| shared.join("models/wt2-mistral").is_dir()) else {
        return println!("set PACKHOST_SHARED to the folder of models/wt2-mistral");
    };
    let places = Places {
        model: shared.join("models/wt2-mistral"),
        data: shared.join("data/wikitext2-windows.jsonl"),
        plugins: root.join("plugins"),
        work: tempfile::tempdir().unwrap(),
    };
    let model = places.model.to_string_lossy().into_owned();
    let mut edit = places.packhost(&["edit", &model, "--spec", "quant_rtn:8:128:ffn"]);
    run(edit.arg("--out").arg(places.subject()));
    let reference = std::env::var_os("PACKHOST_REFERENCE").map(PathBuf::from);
    // The first run compiles the components.
    let first = run(&mut places.evaluate());
    first.print("packhost, empty cache");
    let (mut ours, mut theirs) = (Cost::WORST, Cost::WORST);
    for _ in 0..ROUNDS {
        ours = ours.least(run(&mut places.evaluate()));
        if let Some(program) = &reference {
            theirs = theirs.least(run(&mut places.reference(program)));
        }
        ours = ours.least(run(&mut places.evaluate()));
    }
    ours.print("packhost evaluate");
    if reference.is_some() {
        theirs.print("reference");
        println!(
            "reference / packhost: wall {:.2} (goal 8), processor {:.2} (goal 6), memory {:.2} (goal 4)",
            theirs.wall / ours.wall,
            theirs.processor / ours.processor,
            theirs.memory / ours.memory
        );
    }
    let (once, least) = places.further();
    println!("a further subject: {once:.3} s, at best {least:.3} s (goal 1.5)");
}
