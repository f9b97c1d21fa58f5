//! Small checkpoints in memory, made by a test or read from one safetensors file.

use std::path::Path;

use serde_json::{Value, json};

use super::host;
use crate::scope::layer_of;
use crate::{DType, Failure, ModelInfo, Result, Role, Tensor, TensorInfo, round_to};

/// A model in memory.
#[derive(Debug)]
pub struct Checkpoint {
    tensors: Vec<Tensor>,
    config: Value,
}

impl Checkpoint {
    /// A checkpoint of `tensors` in module order, with its `config.json`.
    pub fn new(tensors: Vec<Tensor>, config: Value) -> Self {
        Self { tensors, config }
    }

    /// A checkpoint without a configuration worth speaking of.
    pub fn of(tensors: Vec<Tensor>) -> Self {
        Self::new(tensors, json!({}))
    }

    /// The tensors of one safetensors file, in the order of their names. Floating-point and unsigned 8-bit tensors are read.
    ///
    /// # Errors
    /// When the file cannot be read or is malformed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let wrong = |message: String| Failure::failed(format!("{}: {message}", path.display()));
        let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        read(&bytes).map(Self::of).map_err(wrong)
    }

    /// The same tensors in the order of `names`, which is the module order that "first match" rules depend on.
    ///
    /// # Errors
    /// When a name is not there.
    pub fn in_order(mut self, names: &[impl AsRef<str>]) -> Result<Self> {
        let mut ordered = Vec::new();
        for name in names {
            let name = name.as_ref();
            let place = self
                .tensors
                .iter()
                .position(|tensor| tensor.info().name == name);
            let place = place
                .ok_or_else(|| Failure::failed(format!("the checkpoint has no tensor `{name}`")))?;
            ordered.push(self.tensors.swap_remove(place));
        }
        Ok(Self {
            tensors: ordered,
            config: self.config,
        })
    }

    /// The same tensors with another `config.json`.
    #[must_use]
    pub fn with_config(self, config: Value) -> Self {
        Self { config, ..self }
    }

    /// The tensors in module order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        let found = self
            .tensors
            .iter()
            .find(|tensor| tensor.info().name == name);
        found.ok_or_else(|| Failure::failed(format!("the checkpoint has no tensor `{name}`")))
    }

    /// What a host would say about this model.
    pub fn model(&self) -> ModelInfo {
        let tensors: Vec<TensorInfo> = self.tensors.iter().map(Tensor::info).collect();
        let number = |key: &str| {
            self.config
                .get(key)
                .and_then(Value::as_u64)
                .and_then(|value| u32::try_from(value).ok())
        };
        let vocabulary = tensors
            .iter()
            .find(|tensor| tensor.role == Role::Embedding)
            .map_or(0, |tensor| tensor.shape[0] as u32);
        ModelInfo {
            architecture: self
                .config
                .get("model_type")
                .and_then(Value::as_str)
                .unwrap_or("llama")
                .to_owned(),
            layers: tensors
                .iter()
                .filter_map(|tensor| tensor.layer)
                .max()
                .map_or(0, |last| last + 1),
            hidden_size: number("hidden_size").unwrap_or(0),
            vocab_size: number("vocab_size").unwrap_or(vocabulary),
            experts: tensors
                .iter()
                .filter_map(|tensor| tensor.expert)
                .max()
                .map_or(0, |last| last + 1),
            tensors,
        }
    }
}

/// Facts about a tensor, as far as its name tells them.
pub fn info(name: &str, dtype: DType, shape: &[u64]) -> TensorInfo {
    let segments: Vec<&str> = name.split('.').collect();
    let module = segments.iter().rev().nth(1).copied().unwrap_or_default();
    let role = match module {
        _ if segments.last() == Some(&"bias") => Role::Bias,
        "embed_tokens" | "wte" | "embed_in" | "word_embeddings" => Role::Embedding,
        "lm_head" | "embed_out" => Role::LmHead,
        "q_proj" => Role::AttnQ,
        "k_proj" => Role::AttnK,
        "v_proj" => Role::AttnV,
        "o_proj" => Role::AttnOut,
        "gate_proj" | "w1" => Role::FfnGate,
        "up_proj" | "w3" => Role::FfnUp,
        "down_proj" | "w2" => Role::FfnDown,
        "gate" | "router" => Role::Router,
        _ if module.contains("norm") || module.starts_with("ln_") => Role::Norm,
        _ => Role::Other,
    };
    let expert = segments
        .windows(2)
        .find(|pair| pair[0] == "experts")
        .and_then(|pair| pair[1].parse().ok());
    TensorInfo {
        name: name.to_owned(),
        shape: shape.to_vec(),
        dtype,
        role,
        layer: layer_of(name),
        expert,
        tied_to: None,
    }
}

/// The tensors of a safetensors file.
fn read(bytes: &[u8]) -> std::result::Result<Vec<Tensor>, String> {
    let length = bytes
        .first_chunk::<8>()
        .map(|length| u64::from_le_bytes(*length))
        .ok_or("shorter than its header")?;
    let start = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_add(8))
        .ok_or("header too long")?;
    let header = bytes.get(8..start).ok_or("shorter than its header")?;
    let header: serde_json::Map<String, Value> =
        serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let mut tensors = Vec::new();
    for (name, entry) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let numbers = |key: &str| -> Option<Vec<u64>> {
            entry
                .get(key)?
                .as_array()?
                .iter()
                .map(Value::as_u64)
                .collect()
        };
        let shape = numbers("shape").ok_or_else(|| format!("{name}: no shape"))?;
        let data = match numbers("data_offsets").as_deref() {
            Some(&[from, to]) => bytes.get(start + from as usize..start + to as usize),
            _ => None,
        };
        let data = data.ok_or_else(|| format!("{name}: no data"))?;
        let (dtype, values) = decode(
            entry
                .get("dtype")
                .and_then(Value::as_str)
                .unwrap_or_default(),
            data,
        )
        .ok_or_else(|| format!("{name}: dtype {} is not read here", entry["dtype"]))?;
        if shape.iter().product::<u64>() != values.len() as u64 {
            return Err(format!(
                "{name}: shape {shape:?} and {} elements disagree",
                values.len()
            ));
        }
        tensors.push(Tensor(host::Tensor::new(info(name, dtype, &shape), values)));
    }
    Ok(tensors)
}

/// Elements as f32.
fn decode(dtype: &str, data: &[u8]) -> Option<(DType, Vec<f32>)> {
    let pairs = || {
        data.as_chunks::<2>()
            .0
            .iter()
            .map(|pair| u16::from_le_bytes(*pair))
    };
    Some(match dtype {
        "F32" => (
            DType::F32,
            data.as_chunks::<4>()
                .0
                .iter()
                .map(|quad| f32::from_le_bytes(*quad))
                .collect(),
        ),
        "BF16" => (
            DType::BF16,
            pairs()
                .map(|bits| f32::from_bits(u32::from(bits) << 16))
                .collect(),
        ),
        "F16" => (DType::F16, pairs().map(half).collect()),
        "U8" => (
            DType::U8,
            data.iter().map(|&byte| f32::from(byte)).collect(),
        ),
        _ => return None,
    })
}

/// The f16 with these bits.
fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * 2.0_f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2.0_f32.powi(exponent - 25),
    };
    debug_assert!(magnitude.is_nan() || round_to(DType::F16, magnitude, false) == magnitude);
    if bits >> 15 == 1 {
        -magnitude
    } else {
        magnitude
    }
}
