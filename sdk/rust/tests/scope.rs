//! Selection by scope against the reference's table. Where this project decided otherwise, the decided result is asserted and
//! the reason given.
#![allow(clippy::unwrap_used, reason = "tests")]

use packhost_sdk::bench::{self, Checkpoint};
use packhost_sdk::json::{Value, from_str};
use packhost_sdk::scope::{Scope, layer_of};
use packhost_sdk::{DType, ModelInfo};

/// A model of zeros with the names and shapes of one architecture in `scopes.json`.
fn model(architecture: &Value) -> ModelInfo {
    let tensor = |entry: &Value| {
        let shape: Vec<u64> = entry["shape"]
            .as_array()
            .unwrap()
            .iter()
            .map(|axis| axis.as_u64().unwrap())
            .collect();
        let zeros = vec![0.0; shape.iter().product::<u64>() as usize];
        bench::tensor(entry["name"].as_str().unwrap(), DType::BF16, &shape, &zeros)
    };
    Checkpoint::of(
        architecture
            .as_array()
            .unwrap()
            .iter()
            .map(tensor)
            .collect(),
    )
    .model()
}

/// The decided result of a case, if it is not the reference's, with the reason.
fn decision(architecture: &str, scope: &str) -> Option<(&'static [&'static str], &'static str)> {
    const FUSED: [&str; 2] = [
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.down_proj",
    ];
    const STORED: [&str; 3] = [
        "model.layers.0.block_sparse_moe.experts.0.w1.weight",
        "model.layers.0.block_sparse_moe.experts.0.w2.weight",
        "model.layers.0.block_sparse_moe.experts.0.w3.weight",
    ];
    const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";
    let router = "the router gate is left alone unless asked for";
    let experts = "stored experts are feed-forward matrices; the router gate is left alone";
    match (architecture, scope) {
        ("mixtral, fused parameter names", "ffn" | "ffn@layers=1") => Some((&FUSED, router)),
        ("mixtral, fused parameter names", "all" | "all@layer=x") => {
            Some((&[QUERY, FUSED[0], FUSED[1]], router))
        }
        ("mixtral, names as stored on disk", "ffn" | "ffn@layers=1") => Some((&STORED, experts)),
        ("mixtral, names as stored on disk", "all" | "all@layer=x") => {
            Some((&[QUERY, STORED[0], STORED[1], STORED[2]], experts))
        }
        ("gpt2", "ffn@layers=1") => Some((
            &[
                "transformer.h.0.mlp.c_fc.weight",
                "transformer.h.0.mlp.c_proj.weight",
            ],
            "the suffix knows h and blocks beside layers",
        )),
        ("gpt2", "attn@layer=0,layers=5") => Some((
            &[
                "transformer.h.0.attn.c_attn.weight",
                "transformer.h.0.attn.c_proj.weight",
            ],
            "the suffix knows h and blocks beside layers",
        )),
        _ => None,
    }
}

#[test]
fn reference_table_and_decisions() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/vectors/edits/scopes.json"
    );
    let table: Value = from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (mut as_reference, mut decided, mut refused) = (0, 0, 0);
    for case in table["cases"].as_array().unwrap() {
        let (architecture, scope) = (
            case["architecture"].as_str().unwrap(),
            case["scope"].as_str().unwrap(),
        );
        let model = model(&table["architectures"][architecture]);
        let selected = scope
            .parse::<Scope>()
            .and_then(|scope| scope.select(&model));
        // The suffix works for every type, so the reference's answer for low-rank approximation counts for all.
        let reference: Vec<&str> = case["selected_by_lowrank_svd"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap())
            .collect();
        if let Some((expected, reason)) = decision(architecture, scope) {
            assert_eq!(
                selected.unwrap(),
                expected,
                "{architecture}, {scope}: {reason}"
            );
            assert_ne!(
                reference, expected,
                "{architecture}, {scope}: not a Decision any more"
            );
            decided += 1;
        } else if reference.is_empty() {
            // Decision: a scope that is not known, and one that selects nothing, are errors.
            let message = selected.unwrap_err().to_string();
            let known = scope != "bogus";
            assert!(
                message.contains(if known {
                    "selects no tensor"
                } else {
                    "no scope `bogus`"
                }),
                "{message}"
            );
            refused += 1;
        } else {
            assert_eq!(selected.unwrap(), reference, "{architecture}, {scope}");
            as_reference += 1;
        }
    }
    assert_eq!((as_reference, decided, refused), (31, 10, 15));
}

#[test]
fn the_router_can_be_asked_for() {
    let weight = |name: &str| bench::tensor(name, DType::BF16, &[2, 2], &[0.0; 4]);
    let model = Checkpoint::of(vec![
        weight("model.layers.0.self_attn.q_proj.weight"),
        weight("model.layers.0.block_sparse_moe.gate.weight"),
        weight("model.layers.0.block_sparse_moe.experts.3.w2.weight"),
    ])
    .model();
    let select = |scope: &str| scope.parse::<Scope>().unwrap().select(&model).unwrap();
    assert_eq!(
        select("ffn@layer=0,router"),
        [
            "model.layers.0.block_sparse_moe.gate.weight",
            "model.layers.0.block_sparse_moe.experts.3.w2.weight"
        ]
    );
    assert_eq!(select("all@router").len(), 3);
    assert_eq!(
        select("attn@router"),
        ["model.layers.0.self_attn.q_proj.weight"]
    );
}

#[test]
fn scopes_as_text() {
    let scope: Scope = " ffn@layer=15,layers=x,unknown ".parse().unwrap();
    assert_eq!(scope.to_string(), "ffn@layer=15,layers=x,unknown");
    assert_eq!(
        (
            scope.base(),
            scope.layer(),
            scope.layer_limit(),
            scope.includes_router()
        ),
        ("ffn", Some(15), None, false)
    );
    let message = "".parse::<Scope>().unwrap_err().to_string();
    assert!(message.contains("use ffn, attn or all"), "{message}");
}

#[test]
fn block_indices() {
    assert_eq!(layer_of("model.layers.31.mlp.up_proj.weight"), Some(31));
    assert_eq!(layer_of("transformer.h.2.attn.c_attn.weight"), Some(2));
    assert_eq!(layer_of("transformer.blocks.7.ffn.up_proj.weight"), Some(7));
    assert_eq!(layer_of("model.embed_tokens.weight"), None);
    assert_eq!(layer_of("model.layers.31"), None, "a dot must follow");
}
