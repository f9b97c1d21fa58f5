//! Memory of scoring: neither all logits nor a whole matrix of attention scores ever exist. Alone in its file, because it
//! watches the whole process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{fs, path::Path};

use common::memory::{MIB, peak, reset_peak};
use packhost_model::{
    Checkpoint,
    network::{Network, ScoreRequest, Tap, TapRequest},
};
use packhost_tensor::cpu::Cpu;
use serde_json::json;

const HIDDEN: usize = 64;
const HEADS: usize = 4;
const VOCABULARY: usize = 16_384;

/// A model of one layer with a large vocabulary.
fn checkpoint(dir: &Path) -> Network {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": 1,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "intermediate_size": 128, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 8192, "tie_word_embeddings": true
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let layer = "model.layers.0";
    let mut tensors = vec![
        common::bf16("model.embed_tokens.weight", &[VOCABULARY, HIDDEN]),
        common::bf16("model.norm.weight", &[HIDDEN]),
    ];
    for name in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push(common::bf16(&format!("{layer}.{name}.weight"), &[HIDDEN]));
    }
    for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
        let name = format!("{layer}.self_attn.{name}.weight");
        tensors.push(common::bf16(&name, &[HIDDEN, HIDDEN]));
    }
    for (name, shape) in [
        ("gate_proj", [128, HIDDEN]),
        ("up_proj", [128, HIDDEN]),
        ("down_proj", [HIDDEN, 128]),
    ] {
        tensors.push(common::bf16(&format!("{layer}.mlp.{name}.weight"), &shape));
    }
    fs::write(dir.join("model.safetensors"), common::safetensors(&tensors)).unwrap();
    Network::new(&*Checkpoint::open(dir).unwrap()).unwrap()
}

/// By how many bytes the peak grows when `count` windows of `len` tokens are scored.
fn growth(network: &Network, cpu: &Cpu, count: usize, len: usize) -> usize {
    growth_with(network, cpu, count, len, None)
}

fn growth_with(
    network: &Network,
    cpu: &Cpu,
    count: usize,
    len: usize,
    taps: Option<&TapRequest>,
) -> usize {
    let token = |window: usize, at: usize| ((window * 7919 + at * 104_729) % VOCABULARY) as u32;
    let ids: Vec<Vec<u32>> = (0..count)
        .map(|window| (0..len).map(|at| token(window, at)).collect())
        .collect();
    let windows: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let request = ScoreRequest {
        windows: &windows,
        taps,
        ..Default::default()
    };
    reset_peak();
    let before = peak();
    let scores = cpu.install(|| network.score(&request)).unwrap();
    let grown = peak() - before;
    let losses: usize = scores.losses.iter().map(Vec::len).sum();
    assert_eq!(losses, count * (len - 1));
    grown
}

#[test]
fn scoring_holds_neither_all_logits_nor_all_attention_scores() {
    let dir = tempfile::tempdir().unwrap();
    let network = checkpoint(dir.path());
    let cpu = Cpu::new(Some(2)).unwrap();
    // What stays for good (the threads' scratch, the mapped weights) is taken before anything is measured.
    let first = growth(&network, &cpu, 8, 256);

    let few = growth(&network, &cpu, 8, 256);
    let many = growth(&network, &cpu, 64, 256);
    let logits = 64 * 255 * VOCABULARY * 4;
    println!(
        "first pass {} KiB; 8 windows {} KiB, 64 windows {} KiB; their logits would take {} MiB",
        first / 1024,
        few / 1024,
        many / 1024,
        logits / MIB
    );
    // Not even the logits of a single block of 512 rows (32 MiB), and hardly more for eight times the windows.
    assert!(first < 24 * MIB, "the first pass grew by {first} bytes");
    assert!(many < 8 * MIB, "64 windows grew by {many} bytes");
    assert!(
        many < few + 6 * MIB,
        "8 windows {few} bytes, 64 windows {many} bytes"
    );

    // Statistics of every module of every window hold a block's outputs, not all of them.
    let tap = Tap {
        risk: (0..8).collect(),
        moments: true,
        ..Tap::default()
    };
    let modules = network.modules().into_iter();
    let taps = TapRequest {
        modules: modules.map(|name| (name.to_owned(), tap.clone())).collect(),
        ..TapRequest::default()
    };
    let observed = growth_with(&network, &cpu, 64, 256, Some(&taps));
    let outputs = 64 * 256 * (6 * HIDDEN + 2 * 128) * 4;
    println!(
        "64 windows observed {} KiB; the outputs of all modules have {} MiB",
        observed / 1024,
        outputs / MIB
    );
    assert!(
        observed < many + 8 * MIB && 8 * MIB < outputs / 4,
        "64 windows {many} bytes, observed {observed}; all outputs {outputs}"
    );

    let len = 4096;
    let long = growth(&network, &cpu, 1, len);
    let scores = len * len * 4;
    println!(
        "one window of {len} tokens {} KiB; the scores of one of its {HEADS} heads would take {} MiB",
        long / 1024,
        scores / MIB
    );
    assert!(
        long < scores / 4,
        "a window of {len} tokens grew by {long} bytes, one head's scores have {scores}"
    );
}
