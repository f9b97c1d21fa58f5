//! The forward pass against an independent library's float32 results, and what it promises about batches, threads, kept
//! states and bad weights.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use packhost_model::{
    Checkpoint, Error, Overlay,
    network::{KeepPolicy, Network, ScoreRequest, Scores},
};
use packhost_tensor::{
    DType, Tensor,
    cpu::{Cpu, matmul::uses_matrix_tiles},
};
use serde_json::Value;

const ARCHITECTURES: [&str; 6] = [
    "llama-yi",
    "mistral",
    "mistral-window",
    "mixtral",
    "qwen2-tied",
    "qwen3",
];

fn folder(name: &str) -> PathBuf {
    Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/vectors/architectures"
    ))
    .join(name)
}

fn open(name: &str) -> Arc<Checkpoint> {
    Checkpoint::open(&folder(name)).unwrap()
}

fn expected(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(name).join("expected.json")).unwrap()).unwrap()
}

fn windows(expected: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(expected["input_ids"].clone()).unwrap()
}

fn score(network: &Network, windows: &[Vec<u32>]) -> Scores {
    score_with(network, windows, ScoreRequest::default()).unwrap()
}

fn score_with(
    network: &Network,
    windows: &[Vec<u32>],
    request: ScoreRequest<'_>,
) -> Result<Scores, Error> {
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    network.score(&ScoreRequest {
        windows: &windows,
        ..request
    })
}

/// Windows of many lengths over the vocabulary of 512.
fn ragged() -> Vec<Vec<u32>> {
    [1usize, 2, 3, 17, 0, 64, 65, 128, 200, 31, 5, 300, 90, 77]
        .iter()
        .enumerate()
        .map(|(index, &len)| {
            (0..len)
                .map(|at| ((at * 131 + index * 977 + at * at) % 512) as u32)
                .collect()
        })
        .collect()
}

fn bits(losses: &[Vec<f32>]) -> Vec<Vec<u32>> {
    losses
        .iter()
        .map(|window| window.iter().map(|loss| loss.to_bits()).collect())
        .collect()
}

/// The vectors were made from models that had been cast as a whole to bf16 in memory, which rounds the frequencies of the
/// rotary embedding as well; the test reproduces that. (On a checkpoint that was loaded from disk the exact frequencies
/// are right: the reference losses of a real model agree with them to 2e-7.)
#[test]
fn every_architecture_gives_the_reference_losses() {
    for name in ARCHITECTURES {
        let expected = expected(name);
        let exact = Network::new(&*open(name)).unwrap();
        let scores = score(
            &exact.clone().with_rounded_frequencies(),
            &windows(&expected),
        );
        let tokens: Vec<Vec<f64>> = serde_json::from_value(expected["token_nll"].clone()).unwrap();
        let means: Vec<f64> = serde_json::from_value(expected["mean_nll"].clone()).unwrap();
        assert_eq!(scores.losses.len(), means.len());
        for ((found, tokens), mean) in scores.losses.iter().zip(&tokens).zip(&means) {
            assert_eq!(found.len(), tokens.len());
            for (found, token) in found.iter().zip(tokens) {
                let error = (f64::from(*found) - token).abs();
                assert!(error <= 2e-4, "{name}: {found} {token}");
            }
            let sum: f64 = found.iter().map(|&loss| f64::from(loss)).sum();
            let error = (sum / found.len() as f64 - mean).abs();
            assert!(error <= 2e-5, "{name}: {error} from {mean}");
        }
        // The first prediction involves no rotation: it must agree without any rounding.
        let plain = score(&exact, &windows(&expected));
        for (found, tokens) in plain.losses.iter().zip(&tokens) {
            assert!((f64::from(found[0]) - tokens[0]).abs() <= 2e-6, "{name}");
        }
    }
}

#[test]
fn batch_order_and_threads_change_no_bit() {
    for name in ARCHITECTURES {
        let network = Network::new(&*open(name)).unwrap();
        let windows = ragged();
        let whole = Cpu::new(Some(1))
            .unwrap()
            .install(|| score(&network, &windows));
        assert_eq!(whole.losses.iter().map(Vec::len).max(), Some(299));
        for threads in [2, 3, 5] {
            let cpu = Cpu::new(Some(threads)).unwrap();
            let again = cpu.install(|| score(&network, &windows));
            assert_eq!(
                bits(&again.losses),
                bits(&whole.losses),
                "{name}, {threads} threads"
            );
        }
        let reversed: Vec<Vec<u32>> = windows.iter().rev().cloned().collect();
        let mut back = score(&network, &reversed).losses;
        back.reverse();
        assert_eq!(bits(&back), bits(&whole.losses), "{name}, reversed");
        for (window, losses) in windows.iter().zip(&whole.losses) {
            let alone = score(&network, std::slice::from_ref(window));
            assert_eq!(
                bits(&alone.losses),
                bits(std::slice::from_ref(losses)),
                "{name}, alone"
            );
        }
        // Enough windows for blocks to run side by side.
        let many: Vec<Vec<u32>> = (0..8).flat_map(|_| windows.clone()).collect();
        let many = Cpu::new(Some(2))
            .unwrap()
            .install(|| score(&network, &many));
        for part in many.losses.chunks(windows.len()) {
            assert_eq!(bits(part), bits(&whole.losses), "{name}, many");
        }
    }
}

/// `checkpoint` with the tensor `name` multiplied by `factor`.
fn scaled(checkpoint: &Arc<Checkpoint>, name: &str, factor: f32) -> Overlay {
    let tensor = checkpoint.tensor(name).unwrap();
    let values: Vec<f32> = tensor.to_f32().iter().map(|value| value * factor).collect();
    let mut overlay = Overlay::new(checkpoint.clone());
    let changed = Tensor::from_f32(tensor.dtype(), tensor.shape(), &values).unwrap();
    overlay.put(name, changed).unwrap();
    overlay
}

#[test]
fn a_pass_from_kept_states_equals_a_full_pass() {
    let keep = KeepPolicy {
        reference: true,
        hidden_bytes: 1 << 30,
    };
    for (name, tied) in [
        ("llama-yi", false),
        ("mixtral", false),
        ("qwen2-tied", true),
    ] {
        let checkpoint = open(name);
        let windows = ragged();
        let baseline = Network::new(&*checkpoint).unwrap();
        let request = ScoreRequest {
            keep: Some(keep),
            ..Default::default()
        };
        let kept = score_with(&baseline, &windows, request).unwrap();
        let cache = kept.hidden.as_ref().unwrap();
        assert_eq!(cache.cuts(), [1, 2]);
        let reference = kept.reference.as_ref().unwrap();
        let head = if tied {
            "model.embed_tokens.weight"
        } else {
            "lm_head.weight"
        };
        for (changed, shared) in [
            ("model.layers.0.self_attn.q_proj.weight", 0),
            ("model.layers.1.self_attn.v_proj.weight", 1),
            ("model.layers.1.post_attention_layernorm.weight", 1),
            ("model.norm.weight", 2),
            (head, if tied { 0 } else { 2 }),
        ] {
            let overlay = scaled(&checkpoint, changed, 1.5);
            let subject = Network::new(&overlay).unwrap();
            assert_eq!(subject.shared_layers(&baseline), shared, "{name} {changed}");
            let full = ScoreRequest {
                reference: Some(reference),
                ..Default::default()
            };
            let resumed = ScoreRequest {
                start: Some(cache),
                ..full
            };
            let full = score_with(&subject, &windows, full).unwrap();
            let resumed = score_with(&subject, &windows, resumed).unwrap();
            assert_eq!(
                bits(&full.losses),
                bits(&resumed.losses),
                "{name} {changed}"
            );
            assert_ne!(bits(&full.losses), bits(&kept.losses), "{name} {changed}");
            assert_eq!(
                bits(full.divergence.as_ref().unwrap()),
                bits(resumed.divergence.as_ref().unwrap())
            );
            assert_eq!(full.same_top, resumed.same_top);
            assert!(
                full.divergence
                    .unwrap()
                    .iter()
                    .flatten()
                    .any(|&kl| kl > 1e-6)
            );
        }
        // The baseline against itself: nothing differs, and states that are kept are really used.
        let request = ScoreRequest {
            reference: Some(reference),
            start: Some(cache),
            keep: Some(keep),
            ..Default::default()
        };
        let again = score_with(&baseline, &windows, request).unwrap();
        assert_eq!(bits(&again.losses), bits(&kept.losses));
        assert!(
            again
                .divergence
                .unwrap()
                .iter()
                .flatten()
                .all(|&kl| kl == 0.0)
        );
        assert!(again.same_top.unwrap().iter().flatten().all(|&same| same));
        assert_eq!(again.hidden.unwrap().cuts(), [1, 2]);
    }
}

#[test]
fn other_stored_types_give_what_their_values_say() {
    let checkpoint = open("mistral");
    let windows = windows(&expected("mistral"));
    let baseline = score(&Network::new(&*checkpoint).unwrap(), &windows);
    let mut wide_losses = Vec::new();
    // Every bf16 number is an f32 number, so nothing may change; f64 likewise. Only matrix tiles, which take none but bf16
    // weights, add up in another order.
    for dtype in [DType::F32, DType::F64] {
        let mut overlay = Overlay::new(checkpoint.clone());
        for meta in checkpoint.tensors() {
            let values = checkpoint.tensor(&meta.name).unwrap().to_f32();
            let wide = Tensor::from_f32(dtype, meta.shape.clone(), &values).unwrap();
            overlay.put(&meta.name, wide).unwrap();
        }
        let wide = score(&Network::new(&overlay).unwrap(), &windows);
        let pairs = wide.losses.iter().flatten();
        for (wide, narrow) in pairs.zip(baseline.losses.iter().flatten()) {
            assert!((wide - narrow).abs() < 2e-5, "{dtype}: {wide} {narrow}");
        }
        if !uses_matrix_tiles() {
            assert_eq!(bits(&wide.losses), bits(&baseline.losses), "{dtype}");
        }
        wide_losses.push(bits(&wide.losses));
    }
    assert_eq!(wide_losses[0], wide_losses[1]);
}

#[test]
fn bad_weights_flow_through() {
    for name in ["qwen3", "mixtral"] {
        let checkpoint = open(name);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for changed in [
                "model.layers.0.self_attn.k_proj.weight",
                "model.layers.1.input_layernorm.weight",
                "lm_head.weight",
                "model.embed_tokens.weight",
            ] {
                let overlay = scaled(&checkpoint, changed, value);
                let windows = vec![vec![1, 2, 3, 4, 5]; 3];
                let losses = score(&Network::new(&overlay).unwrap(), &windows).losses;
                assert!(
                    losses.iter().flatten().all(|loss| !loss.is_finite()),
                    "{name} {changed} {value}: {losses:?}"
                );
            }
        }
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let checkpoint = open("qwen3");
    let mut overlay = Overlay::new(checkpoint.clone());
    overlay
        .remove("model.layers.1.self_attn.k_norm.weight")
        .unwrap();
    let error = Network::new(&overlay).unwrap_err().to_string();
    assert_eq!(
        error,
        "use the tensor `model.layers.1.self_attn.k_norm.weight`: it is missing; the configuration asks for shape [32]"
    );
    let mut overlay = Overlay::new(checkpoint.clone());
    let name = "model.layers.0.mlp.up_proj.weight";
    overlay
        .put(name, Tensor::zeros(DType::BF16, [191, 64]).unwrap())
        .unwrap();
    let error = Network::new(&overlay).unwrap_err().to_string();
    assert_eq!(
        error,
        "use the tensor `model.layers.0.mlp.up_proj.weight`: the configuration asks for shape [192, 64], found [191, 64]"
    );
    overlay
        .put(name, Tensor::zeros(DType::I8, [192, 64]).unwrap())
        .unwrap();
    let error = Network::new(&overlay).unwrap_err().to_string();
    assert!(error.contains("it holds I8 numbers"), "{error}");
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let network = Network::new(&*open("mistral")).unwrap();
    let error = score_with(
        &network,
        &[vec![1, 2], vec![3, 512]],
        ScoreRequest::default(),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "score windows: token 1 of window 1 is 512, the vocabulary has 512 entries"
    );
    let keep = KeepPolicy {
        reference: true,
        hidden_bytes: 1 << 20,
    };
    let request = ScoreRequest {
        keep: Some(keep),
        ..Default::default()
    };
    let kept = score_with(&network, &[vec![1, 2, 3]], request).unwrap();
    let request = ScoreRequest {
        reference: kept.reference.as_ref(),
        ..Default::default()
    };
    let error = score_with(&network, &[vec![1, 2, 4]], request).unwrap_err();
    assert!(error.to_string().contains("other windows"), "{error}");
    let request = ScoreRequest {
        start: kept.hidden.as_ref(),
        ..Default::default()
    };
    assert!(score_with(&network, &[vec![1, 2, 4]], request).is_err());
    let cancel = AtomicBool::new(true);
    let request = ScoreRequest {
        cancel: Some(&cancel),
        ..Default::default()
    };
    let error = score_with(&network, &[vec![1, 2, 4]], request).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    // Nothing to score is no error.
    assert!(score(&network, &[]).losses.is_empty());
    assert_eq!(
        score(&network, &[vec![], vec![7]]).losses,
        [vec![], Vec::<f32>::new()]
    );
}
