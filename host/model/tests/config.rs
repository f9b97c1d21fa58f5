//! Every spelling of `config.json`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;

use packhost_model::{Architecture, Checkpoint, Config};
use packhost_tensor::DType;
use serde_json::{Value, json};

fn parse(json: &Value) -> Config {
    Config::parse(json, Path::new("config.json")).unwrap()
}

/// A complete configuration with `changes` on top; null removes a key.
fn with(architecture: Architecture, changes: Value) -> Value {
    let mut json = common::config(2);
    json["architectures"] = json!([architecture.class_name()]);
    json["model_type"] = json!(architecture.model_type());
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    json
}

fn without(mut json: Value, keys: &[&str]) -> Value {
    for key in keys {
        json.as_object_mut().unwrap().remove(*key);
    }
    json
}

fn problems(json: &Value) -> String {
    parse(json)
        .served()
        .expect_err("this configuration should not be served")
        .to_string()
}

#[test]
fn the_reference_models_are_served() {
    for (folder, architecture, theta, head_dim, kv_heads, window, tied) in [
        ("llama-yi", Architecture::Llama, 5e6, 16, 1, None, false),
        ("mistral", Architecture::Mistral, 1e4, 16, 2, None, false),
        (
            "mistral-window",
            Architecture::Mistral,
            1e4,
            16,
            2,
            Some(32),
            false,
        ),
        ("qwen2-tied", Architecture::Qwen2, 1e6, 16, 2, None, true),
        ("qwen3", Architecture::Qwen3, 1e6, 32, 2, None, false),
        ("mixtral", Architecture::Mixtral, 1e6, 16, 2, None, false),
    ] {
        let checkpoint = Checkpoint::open(&common::vectors("architectures").join(folder)).unwrap();
        let config = checkpoint.config();
        assert_eq!(config.served().unwrap(), architecture, "{folder}");
        assert_eq!(config.rope_theta, theta, "{folder}");
        assert_eq!(
            (config.head_dim, config.num_key_value_heads),
            (head_dim, kv_heads),
            "{folder}"
        );
        assert_eq!(
            (config.window(0), config.window(1)),
            (window, window),
            "{folder}"
        );
        assert_eq!(config.tie_word_embeddings, tied, "{folder}");
        assert_eq!(
            config.qkv_bias,
            architecture == Architecture::Qwen2,
            "{folder}"
        );
        assert_eq!(
            config.query_key_norm,
            architecture == Architecture::Qwen3,
            "{folder}"
        );
        assert_eq!(config.dtype, Some(DType::BF16), "{folder}");
        let experts = if architecture == Architecture::Mixtral {
            (4, 2)
        } else {
            (0, 0)
        };
        assert_eq!(
            (config.num_local_experts, config.num_experts_per_tok),
            experts,
            "{folder}"
        );
    }
}

#[test]
fn rotary_base_has_an_old_and_a_new_place() {
    let old = parse(&with(
        Architecture::Llama,
        json!({"rope_theta": 5e5, "rope_scaling": null}),
    ));
    let new = parse(&without(
        with(
            Architecture::Llama,
            json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
        ),
        &["rope_theta"],
    ));
    assert_eq!((old.rope_theta, new.rope_theta), (5e5, 5e5));
    assert!(old.served().is_ok() && new.served().is_ok());
    let default =
        |architecture| parse(&without(with(architecture, json!({})), &["rope_theta"])).rope_theta;
    assert_eq!(default(Architecture::Mistral), 1e4);
    assert_eq!(default(Architecture::Mixtral), 1e6);
}

#[test]
fn scaled_rotary_embeddings_are_refused_by_name() {
    for scaling in [
        json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
        json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
        json!({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}),
    ] {
        let (field, inner) = scaling.as_object().unwrap().iter().next().unwrap();
        let kind = inner.get("rope_type").or(inner.get("type")).unwrap();
        let message = problems(&with(Architecture::Llama, scaling.clone()));
        assert!(
            message.contains(&format!("`{field}."))
                && message.contains(&format!("{kind} is not served")),
            "{message}"
        );
    }
    let message = problems(&with(
        Architecture::Llama,
        json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
    ));
    assert!(message.contains("differs by kind of layer"), "{message}");
    let message = problems(&with(
        Architecture::Llama,
        json!({"partial_rotary_factor": 0.5}),
    ));
    assert!(
        message.contains("`partial_rotary_factor` 0.5 is not served"),
        "{message}"
    );
}

#[test]
fn head_width_is_given_or_derived() {
    let head_dim = |architecture, json: Value| parse(&with(architecture, json)).head_dim;
    assert_eq!(head_dim(Architecture::Llama, json!({})), 4);
    assert_eq!(head_dim(Architecture::Llama, json!({"head_dim": null})), 4);
    assert_eq!(head_dim(Architecture::Llama, json!({"head_dim": 6})), 6);
    assert_eq!(
        head_dim(Architecture::Qwen3, json!({})),
        128,
        "Qwen 3 has a default of its own"
    );
    assert_eq!(head_dim(Architecture::Qwen3, json!({"head_dim": null})), 4);
    let message = problems(&with(Architecture::Llama, json!({"hidden_size": 9})));
    assert!(
        message.contains("`hidden_size` 9 is no multiple of `num_attention_heads` 2"),
        "{message}"
    );
}

#[test]
fn absent_key_value_heads_depend_on_the_architecture() {
    let absent = |architecture| {
        let json = with(
            architecture,
            json!({"num_attention_heads": 32, "hidden_size": 64}),
        );
        parse(&without(json, &["num_key_value_heads"])).num_key_value_heads
    };
    assert_eq!(absent(Architecture::Llama), 32);
    assert_eq!(absent(Architecture::Mistral), 8);
    assert_eq!(absent(Architecture::Qwen2), 32);
    assert_eq!(
        parse(&with(
            Architecture::Mistral,
            json!({"num_key_value_heads": null})
        ))
        .num_key_value_heads,
        2
    );
    let message = problems(&with(
        Architecture::Llama,
        json!({"num_attention_heads": 4, "num_key_value_heads": 3}),
    ));
    assert!(
        message.contains("`num_attention_heads` 4 is no multiple of `num_key_value_heads` 3"),
        "{message}"
    );
}

#[test]
fn windows_follow_each_architecture() {
    let window = |architecture, json: Value| {
        let config = parse(&with(architecture, json));
        [config.window(0), config.window(1)]
    };
    assert_eq!(
        window(Architecture::Mistral, json!({"sliding_window": 7})),
        [Some(7); 2]
    );
    assert_eq!(
        window(Architecture::Mistral, json!({"sliding_window": null})),
        [None; 2]
    );
    assert_eq!(window(Architecture::Mistral, json!({})), [Some(4096); 2]);
    assert_eq!(
        window(Architecture::Llama, json!({"sliding_window": 7})),
        [None; 2]
    );
    assert_eq!(
        window(Architecture::Qwen2, json!({"sliding_window": 7})),
        [None; 2]
    );
    let used = |more: Value| {
        let mut json = json!({"sliding_window": 7, "use_sliding_window": true});
        json.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        window(Architecture::Qwen2, json)
    };
    assert_eq!(used(json!({"max_window_layers": 1})), [None, Some(7)]);
    assert_eq!(
        used(json!({"layer_types": ["sliding_attention", "full_attention"]})),
        [Some(7), None]
    );
    let message = problems(&with(
        Architecture::Qwen3,
        json!({"layer_types": ["full_attention"]}),
    ));
    assert!(
        message.contains("`layer_types` lists 1 layers of 2"),
        "{message}"
    );
    let message = problems(&with(
        Architecture::Qwen3,
        json!({"layer_types": ["full_attention", "linear_attention"]}),
    ));
    assert!(
        message.contains("`layer_types` has linear_attention"),
        "{message}"
    );
}

#[test]
fn biases_ties_and_dtypes() {
    let llama = parse(&with(
        Architecture::Llama,
        json!({"attention_bias": true, "mlp_bias": true}),
    ));
    assert_eq!(
        (llama.qkv_bias, llama.output_bias, llama.mlp_bias),
        (true, true, true)
    );
    let qwen = parse(&with(Architecture::Qwen2, json!({})));
    assert_eq!((qwen.qkv_bias, qwen.output_bias), (true, false));
    let absent = |json| parse(&without(json, &["tie_word_embeddings"])).tie_word_embeddings;
    assert!(!absent(with(Architecture::Llama, json!({}))));
    assert!(absent(
        json!({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"})
    ));
    let dtype = |json| parse(&without(json, &["torch_dtype"])).dtype;
    assert_eq!(
        parse(&with(
            Architecture::Llama,
            json!({"torch_dtype": "float16"})
        ))
        .dtype,
        Some(DType::F16)
    );
    assert_eq!(
        dtype(with(Architecture::Llama, json!({"dtype": "float32"}))),
        Some(DType::F32)
    );
    assert_eq!(
        dtype(with(Architecture::Llama, json!({"dtype": "auto"}))),
        None
    );
}

#[test]
fn other_architectures_open_but_do_not_run() {
    let config = parse(&json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64,
    }));
    assert_eq!(
        (
            config.hidden_size,
            config.num_hidden_layers,
            config.architecture
        ),
        (32, 3, None)
    );
    let message = config.served().unwrap_err().to_string();
    let expected = "run a network of type GPT2LMHeadModel: the architectures served are LlamaForCausalLM, \
                    MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, MixtralForCausalLM";
    assert!(message.starts_with(expected), "{message}");
    let message = problems(&json!({
        "architectures": ["OddModel"], "intermediate_size": [4, 8], "sliding_window": 0, "rope_theta": "none",
    }));
    assert!(
        message.contains("`intermediate_size` is [4,8], it should be a whole number"),
        "{message}"
    );
    assert!(message.contains("`rope_theta` is \"none\""), "{message}");
    assert!(
        problems(&with(Architecture::Llama, json!({"model_type": "gemma"})))
            .contains("`model_type` is gemma")
    );
    assert!(
        problems(&with(Architecture::Llama, json!({"hidden_act": "gelu"})))
            .contains("`hidden_act` gelu")
    );
    assert!(
        problems(&with(
            Architecture::Llama,
            json!({"quantization_config": {"bits": 4}})
        ))
        .contains("packed weights")
    );
    assert!(
        problems(&without(common::config(1), &["vocab_size"])).contains("`vocab_size` is missing")
    );
    assert!(
        problems(&with(
            Architecture::Mixtral,
            json!({"num_local_experts": 2, "num_experts_per_tok": 3})
        ))
        .contains("`num_experts_per_tok` 3 is not between 1 and `num_local_experts` 2")
    );
    let by_type = parse(&without(
        with(Architecture::Qwen3, json!({})),
        &["architectures"],
    ));
    assert_eq!(
        by_type.architecture,
        Some(Architecture::Qwen3),
        "model_type decides where no class is named"
    );
}

#[test]
fn values_of_the_wrong_kind_are_refused_by_field() {
    for (changes, expected) in [
        (
            json!({"hidden_size": "8"}),
            "`hidden_size` is \"8\", it should be a whole number, zero or more",
        ),
        (
            json!({"hidden_size": -8}),
            "`hidden_size` is -8, it should be a whole number, zero or more",
        ),
        (
            json!({"hidden_size": 8.5}),
            "`hidden_size` is 8.5, it should be a whole number, zero or more",
        ),
        (
            json!({"num_hidden_layers": 1_000_000_000}),
            "`num_hidden_layers` is 1000000000, at most 65536 are served",
        ),
        (
            json!({"tie_word_embeddings": 1}),
            "`tie_word_embeddings` is 1, it should be true or false",
        ),
        (
            json!({"rope_theta": 0}),
            "`rope_theta` is 0, it should be finite and positive",
        ),
        (
            json!({"rope_parameters": [1]}),
            "`rope_parameters` is [1], it should be an object or null",
        ),
        (
            json!({"rms_norm_eps": -1.0}),
            "`rms_norm_eps` is -1, it should be finite and not negative",
        ),
        (
            json!({"architectures": "LlamaForCausalLM"}),
            "`architectures` is \"LlamaForCausalLM\", it should be a list of text",
        ),
    ] {
        let error = Config::parse(
            &with(Architecture::Llama, changes),
            Path::new("m/config.json"),
        )
        .unwrap_err();
        assert_eq!(error.to_string(), format!("read m/config.json: {expected}"));
    }
    let zero = Config::parse(
        &with(Architecture::Mistral, json!({"sliding_window": 0})),
        Path::new("c"),
    )
    .unwrap_err();
    assert_eq!(
        zero.to_string(),
        "read c: `sliding_window` is 0, it should be null or at least 1"
    );
}
