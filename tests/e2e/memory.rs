//! Memory of the whole program: `packhost edit` streams, so its peak does not grow with the checkpoint.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::support::{Bench, change_json};

const MB: usize = 1_000_000;
/// Rows and columns of each bf16 matrix.
const SIDE: usize = 4096;
const TENSOR: usize = 2 * SIDE * SIDE;
const SHARDS: usize = 4;
/// One layer's feed-forward block per shard.
const NAMES: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// A checkpoint of 4 shards with 3 matrices of 33.6 MB each, about 400 MB, written in small pieces.
fn large(bench: &Bench) {
    let model = bench.tiny("model");
    fs::remove_file(model.join("model.safetensors")).unwrap();
    change_json(&model.join("config.json"), |config| {
        config["num_hidden_layers"] = SHARDS.into();
        config["hidden_size"] = SIDE.into();
        config["intermediate_size"] = SIDE.into();
    });
    let mut map = serde_json::Map::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for shard in 0..SHARDS {
        let file = format!("model-{:05}-of-{SHARDS:05}.safetensors", shard + 1);
        let mut header = serde_json::Map::new();
        for (index, name) in NAMES.iter().enumerate() {
            let name = format!("model.layers.{shard}.mlp.{name}.weight");
            header.insert(
                name.clone(),
                json!({"dtype": "BF16", "shape": [SIDE, SIDE], "data_offsets": [index * TENSOR, (index + 1) * TENSOR]}),
            );
            map.insert(name, file.clone().into());
        }
        let mut out = BufWriter::new(File::create(model.join(&file)).unwrap());
        let header = serde_json::to_vec(&header).unwrap();
        out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        out.write_all(&header).unwrap();
        for _ in 0..NAMES.len() * TENSOR / 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Four bf16 numbers of either sign between 2^-7 and 2^-6.
            let weights = (state & 0x807f_807f_807f_807f) | 0x3c00_3c00_3c00_3c00;
            out.write_all(&weights.to_le_bytes()).unwrap();
        }
        out.flush().unwrap();
    }
    let index =
        json!({"metadata": {"total_size": SHARDS * NAMES.len() * TENSOR}, "weight_map": map});
    fs::write(
        model.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
}

/// Waits for the end and returns the peak of resident memory in bytes. The system keeps the peak (`VmHWM`), so that looking
/// every millisecond misses at most what happens in the last one.
fn peak(child: &mut Child) -> usize {
    let status = format!("/proc/{}/status", child.id());
    let (mut peak, mut looks) = (0, 0);
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(Path::new(&status)).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(kib) =
            line.and_then(|rest| rest.trim().split(' ').next()?.parse::<usize>().ok())
        {
            peak = peak.max(kib * 1024);
            looks += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(looks > 20, "it ended before it could be watched");
    peak
}

#[test]
fn an_edit_of_a_large_checkpoint_needs_little_memory() {
    let bench = Bench::new();
    large(&bench);
    let limit = 2 * TENSOR + 200 * MB;
    for spec in ["quant_rtn:8:128:ffn", "magnitude_prune:0.5:ffn"] {
        // With an empty cache: the component is compiled as well.
        let mut child = bench
            .line(&format!(
                "edit model --spec {spec} --plugins [REPO]/plugins --out out --replace"
            ))
            .env("PACKHOST_PLUGIN_CACHE", bench.path("cache"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let peak = peak(&mut child);
        assert!(child.wait().unwrap().success());
        println!(
            "edit {spec}: peak resident {} MB, limit {} MB, checkpoint {} MB",
            peak / MB,
            limit / MB,
            SHARDS * NAMES.len() * TENSOR / MB
        );
        assert!(peak > TENSOR, "the measurement sees the tensors at all");
        assert!(peak < limit, "{spec}: {peak} bytes, allowed are {limit}");
    }
}
