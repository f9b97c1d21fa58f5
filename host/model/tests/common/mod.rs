//! Checkpoints for tests, written by hand: nothing here uses the crate's own writer.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "every test file uses a part of it"
)]

#[cfg(target_os = "linux")]
pub mod memory;

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

/// A folder of the project's test vectors.
pub fn vectors(path: &str) -> std::path::PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors")).join(path)
}

/// One tensor to be: name, dtype as spelt in the file, shape, bytes.
pub type Raw = (String, &'static str, Vec<usize>, Vec<u8>);

/// A bf16 tensor whose bytes depend on its name, so that a mix-up shows.
pub fn bf16(name: &str, shape: &[usize]) -> Raw {
    let seed = name.bytes().fold(7_u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    let elements: usize = shape.iter().product();
    // Exponents near 1, so that no value is NaN or infinite.
    let bytes = (0..elements as u32)
        .flat_map(|index| {
            (0x3e00 + (seed.wrapping_add(index.wrapping_mul(2_654_435_761)) >> 23) as u16)
                .to_le_bytes()
        })
        .collect();
    (name.into(), "BF16", shape.into(), bytes)
}

/// The bytes of a safetensors file.
pub fn safetensors(tensors: &[Raw]) -> Vec<u8> {
    let mut entries = vec![r#""__metadata__":{"format":"pt"}"#.to_owned()];
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        let shape: Vec<_> = shape.iter().map(usize::to_string).collect();
        let shape = shape.join(",");
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{start},{}]}}"#,
            data.len()
        ));
    }
    with_header(&format!("{{{}}}", entries.join(",")), &data)
}

/// A file with this header, padded, and this data.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut header = header.to_owned();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// Configuration of the small Llama of [`llama`].
pub fn config(layers: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    })
}

/// The tensors of a small Llama, in alphabetical order as the reference library stores them.
pub fn llama(layers: usize) -> Vec<Raw> {
    let mut tensors = vec![
        bf16("lm_head.weight", &[16, 8]),
        bf16("model.embed_tokens.weight", &[16, 8]),
        bf16("model.norm.weight", &[8]),
    ];
    for layer in 0..layers {
        let prefix = format!("model.layers.{layer}");
        for (module, shape) in [
            ("input_layernorm", &[8][..]),
            ("mlp.down_proj", &[8, 12]),
            ("mlp.gate_proj", &[12, 8]),
            ("mlp.up_proj", &[12, 8]),
            ("post_attention_layernorm", &[8]),
            ("self_attn.k_proj", &[4, 8]),
            ("self_attn.o_proj", &[8, 8]),
            ("self_attn.q_proj", &[8, 8]),
            ("self_attn.v_proj", &[4, 8]),
        ] {
            tensors.push(bf16(&format!("{prefix}.{module}.weight"), shape));
        }
    }
    tensors.sort();
    tensors
}

/// Writes a checkpoint in one file.
pub fn write_single(dir: &Path, config: &Value, tensors: &[Raw]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("model.safetensors"), safetensors(tensors)).unwrap();
}

/// Writes a checkpoint in shards: the tensors of `shards[i]` go to shard `i`.
pub fn write_sharded(dir: &Path, config: &Value, shards: &[Vec<Raw>]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut weight_map = BTreeMap::new();
    let mut total = 0;
    for (index, tensors) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        fs::write(dir.join(&name), safetensors(tensors)).unwrap();
        for (tensor, _, _, bytes) in tensors {
            weight_map.insert(tensor.clone(), name.clone());
            total += bytes.len();
        }
    }
    write_index(
        dir,
        &json!({"metadata": {"total_size": total, "total_parameters": total / 2}, "weight_map": weight_map}),
    );
}

/// Writes an index file.
pub fn write_index(dir: &Path, index: &Value) {
    fs::write(
        dir.join("model.safetensors.index.json"),
        format!("{index:#}\n"),
    )
    .unwrap();
}

/// The small Llama in three shards.
pub fn sharded_llama(dir: &Path, layers: usize) {
    let mut tensors = llama(layers);
    let third = tensors.split_off(tensors.len() * 2 / 3);
    let second = tensors.split_off(tensors.len() / 2);
    write_sharded(dir, &config(layers), &[tensors, second, third]);
}
