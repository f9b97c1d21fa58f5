//! Strengths are met, everything else stays, and what makes no sense is refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use packhost_sdk::DType;
use packhost_sdk::bench::{self, Checkpoint};
use packhost_sdk::json::{Value, json};

use super::*;

const OUTPUT: &str = "model.layers.0.self_attn.o_proj.weight";
const UP: &str = "model.layers.1.mlp.up_proj.weight";

fn model() -> Checkpoint {
    let matrix = |name: &str, rows: u64, columns: u64| {
        let values: Vec<f32> = (0..rows * columns)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0)
            .collect();
        bench::tensor(name, DType::F32, &[rows, columns], &values)
    };
    let tensors = vec![matrix(OUTPUT, 16, 32), matrix(UP, 64, 64)];
    Checkpoint::of(tensors).with_config(json!({"num_attention_heads": 4}))
}

fn inject(error_type: &str, env: Value) -> Result<bench::InjectionRun> {
    let params = json!({"error_type": error_type, "env": env}).to_string();
    bench::inject::<Graded>(&params, &model())
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values
        .map(|v| f64::from(v) * f64::from(v))
        .sum::<f64>()
        .sqrt()
}

#[test]
fn noise_has_the_norm_that_was_asked_for() {
    for strength in [0.3, 0.01] {
        let env = json!({"INVARLOCK_GRADED_STRENGTH": strength, "INVARLOCK_GRADED_TARGET_PARAMS": "up_proj"});
        let run = inject("relative_noise", env).unwrap();
        assert_eq!(run.changed.keys().collect::<Vec<_>>(), [UP]);
        let before = bench::values(model().tensor(UP).unwrap());
        let after = bench::values(run.changed[UP].as_ref().unwrap());
        let noise = norm(after.iter().zip(&before).map(|(a, b)| a - b));
        let ratio = noise / norm(before.into_iter());
        assert!(
            (ratio / strength - 1.0).abs() < 0.05,
            "{ratio} for {strength}"
        );
    }
}

#[test]
fn another_seed_is_other_noise() {
    let noisy = |seed: u64| {
        let env =
            json!({"INVARLOCK_GRADED_SEED": seed, "INVARLOCK_GRADED_TARGET_PARAMS": "up_proj"});
        let run = inject("relative_noise", env).unwrap();
        bench::values(run.changed[UP].as_ref().unwrap())
    };
    assert_eq!(noisy(1), noisy(1));
    assert_ne!(noisy(1), noisy(2));
}

#[test]
fn one_head_fades_and_the_others_stay() {
    // Seed 6 of 4 heads is head 2: columns 16 to 23 of 32.
    for (strength, kept) in [(1.0, 0.0), (0.25, 0.75)] {
        let env = json!({"INVARLOCK_GRADED_STRENGTH": strength, "INVARLOCK_GRADED_SEED": 6});
        let run = inject("head_fade", env).unwrap();
        assert_eq!(run.record["head"], 2);
        let before = bench::values(model().tensor(OUTPUT).unwrap());
        let after = bench::values(run.changed[OUTPUT].as_ref().unwrap());
        for (index, (after, before)) in after.iter().zip(&before).enumerate() {
            let of_head = (16..24).contains(&(index % 32));
            assert_eq!(*after, if of_head { before * kept } else { *before });
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let says = |error_type: &str, env: Value| inject(error_type, env).unwrap_err().to_string();
    let strength = |value: f64| json!({"INVARLOCK_GRADED_STRENGTH": value});
    assert!(says("relative_noise", strength(0.0)).contains("nothing would be injected"));
    assert!(says("relative_noise", strength(-1.0)).contains("INVARLOCK_GRADED_STRENGTH"));
    assert!(says("head_fade", strength(1.5)).contains("INVARLOCK_GRADED_STRENGTH"));
    let no_layer = json!({"INVARLOCK_GRADED_TARGET_LAYERS": "7"});
    assert!(says("head_fade", no_layer).contains("nothing would be injected"));
    assert!(says("head_melt", json!({})).contains("head_melt"));
    let odd = model().with_config(json!({"n_head": 5}));
    let params = json!({"error_type": "head_fade"}).to_string();
    let odd = bench::inject::<Graded>(&params, &odd)
        .unwrap_err()
        .to_string();
    assert!(odd.contains("cannot be shared by 5 heads"), "{odd}");
}
