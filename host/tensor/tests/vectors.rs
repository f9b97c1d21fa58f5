//! The reference's edits, written as kernel programs, give the reference's bits.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

use bytes::Bytes;
use packhost_tensor::{
    DType, Device, Tensor,
    cpu::{Cpu, Level},
};
use safetensors::SafeTensors;
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/edits");

struct Vectors(Vec<u8>);

impl Vectors {
    fn open(name: &str) -> Self {
        Self(std::fs::read(format!("{FOLDER}/{name}.safetensors")).unwrap())
    }

    fn tensor(&self, name: &str) -> Tensor {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        let dtype = DType::from_name(&view.dtype().to_string()).unwrap();
        Tensor::new(dtype, view.shape(), Bytes::copy_from_slice(view.data())).unwrap()
    }
}

fn cases(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{FOLDER}/{name}.json")).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    value["cases"].as_array().unwrap().clone()
}

/// Bit for bit, signs of zeros included; any NaN equals any NaN.
fn assert_same(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(
        (found.dtype(), found.shape()),
        (expected.dtype(), expected.shape()),
        "{what}"
    );
    for (i, (a, b)) in found
        .to_f32()
        .into_iter()
        .zip(expected.to_f32())
        .enumerate()
    {
        assert!(
            a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
            "{what}, element {i}: {a:e}, expected {b:e}"
        );
    }
}

fn devices() -> Vec<Cpu> {
    Level::available()
        .into_iter()
        .map(|level| Cpu::with_level(Some(2), level).unwrap())
        .collect()
}

#[test]
fn quant_rtn() {
    let mut count = 0;
    for (name, dtype) in [
        ("quant_rtn_f32", DType::F32),
        ("quant_rtn_bf16", DType::BF16),
    ] {
        let vectors = Vectors::open(name);
        for case in cases("quant_rtn") {
            let input = vectors.tensor(case["input"].as_str().unwrap());
            let output = case["output"].as_str().unwrap();
            let bits = case["bits"].as_u64().unwrap() as u32;
            let group = case["group_size"].as_i64().unwrap();
            let program =
                support::quant_rtn(dtype, bits, u32::try_from(group).ok().filter(|&g| g > 0));
            for device in devices() {
                let found = device.compute(&program, &[&input], &[]).unwrap().tensor;
                assert_same(&found, &vectors.tensor(output), &format!("{name} {output}"));
            }
            count += 1;
        }
    }
    assert_eq!(count, 256);
}

#[test]
fn fp8() {
    let vectors = Vectors::open("fp8");
    let patterns: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let all = Tensor::new(DType::BF16, [1 << 16], Bytes::from(patterns)).unwrap();
    for device in devices() {
        for (name, format) in [("e4m3", DType::F8E4M3), ("e5m2", DType::F8E5M2)] {
            for input in ["bf16_all", "f32_edges", "weights_f32", "weights_bf16"] {
                let tensor = if input == "bf16_all" {
                    all.clone()
                } else {
                    vectors.tensor(&format!("in.{input}"))
                };
                let program = support::fp8(tensor.dtype(), format);
                let found = device.compute(&program, &[&tensor], &[]).unwrap().tensor;
                let what = format!("{input}.{name}");
                assert_same(&found, &vectors.tensor(&format!("{what}.out")), &what);
                if !input.starts_with("weights") {
                    // The codes too: as stored bytes, but for the sign of NaN.
                    let codes = device
                        .convert(&tensor, format, format == DType::F8E4M3)
                        .unwrap();
                    let stored = vectors.tensor(&format!("{what}.code"));
                    let expected =
                        Tensor::new(format, stored.shape(), stored.bytes().clone()).unwrap();
                    assert_same(&codes, &expected, &what);
                }
            }
        }
        for input in ["weights_f32", "weights_bf16"] {
            let tensor = vectors.tensor(&format!("in.{input}"));
            let program = support::fp8(tensor.dtype(), DType::F16);
            let found = device.compute(&program, &[&tensor], &[]);
            assert_same(
                &found.unwrap().tensor,
                &vectors.tensor(&format!("{input}.fallback_f16.out")),
                input,
            );
        }
    }
}

#[test]
fn magnitude_prune() {
    let program = support::prune();
    let mut count = 0;
    for case in cases("prune") {
        let vectors = Vectors::open(&format!("prune_{}", case["dtype"].as_str().unwrap()));
        let input = vectors.tensor(case["input"].as_str().unwrap());
        let k = case["k"].as_u64().unwrap();
        assert_eq!(
            k,
            (input.len() as f64 * case["sparsity"].as_f64().unwrap()) as u64
        );
        let output = case["output"].as_str().unwrap();
        for device in devices() {
            // Nothing is below 0.
            let threshold = match k {
                0 => 0.0,
                k => device.kth_magnitude(&input, k).unwrap(),
            };
            let found = device.compute(&program, &[&input], &[threshold]).unwrap();
            assert_same(&found.tensor, &vectors.tensor(output), output);
            assert_eq!(found.measures, [case["zeros_out"].as_f64().unwrap()]);
        }
        count += 1;
    }
    assert_eq!(count, 126);
}
