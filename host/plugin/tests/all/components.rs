//! The first-party components in the real sandbox on the real device: each loads, and the reference's vectors hold.
//!
//! They need the components beside their sources (`cargo xtask components`). Where those are not built the tests say so and
//! pass; with `PACKHOST_COMPONENTS=require`, as CI sets it, they fail.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use packhost_plugin::{
    Draft, EditPlugin, Error, Failure, InjectionPlugin, Limits, ModelInfo, Plugin, PluginKind,
    Registry, Role, Row, Status, Step, Target, TensorInfo, Value as Measured,
};
use packhost_tensor::{DType, Tensor, cpu::Cpu};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::device::{engine, engine_with};

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn vectors(name: &str) -> PathBuf {
    root().join("tests/vectors/edits").join(name)
}

/// The first-party plugins, or `None` (said aloud, past the test harness) where they are not built.
pub fn registry() -> Option<Registry> {
    let dir = root().join("plugins");
    match Registry::scan(&dir) {
        Ok(registry) => Some(registry),
        Err(error) => {
            assert!(
                std::env::var("PACKHOST_COMPONENTS").as_deref() != Ok("require"),
                "{error}"
            );
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED, components are not built: {error}"
            );
            None
        }
    }
}

pub fn load(registry: &Registry, id: &str) -> Plugin {
    engine()
        .load(registry.get(id).unwrap())
        .unwrap_or_else(|error| panic!("{error}"))
}

fn edit(registry: &Registry, id: &str) -> EditPlugin {
    load(registry, id).edit().unwrap().clone()
}

fn injection(registry: &Registry, error_type: &str) -> InjectionPlugin {
    let entry = registry.serving(PluginKind::Injection, error_type).unwrap();
    load(registry, entry.id()).injection().unwrap().clone()
}

fn cpu() -> Cpu {
    Cpu::new(Some(2)).unwrap()
}

/// All tensors of a safetensors file.
fn tensors(name: &str) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(vectors(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let convert = |view: safetensors::tensor::TensorView<'_>| {
        let dtype = DType::from_name(&view.dtype().to_string()).unwrap();
        Tensor::new(dtype, view.shape(), view.data().to_vec().into()).unwrap()
    };
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, convert(view)))
        .collect()
}

fn parse(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(vectors(name)).unwrap()).unwrap()
}

/// Facts about a tensor, from its name as far as these models go.
fn info(name: &str, tensor: &Tensor) -> TensorInfo {
    let roles = [
        ("embed_tokens", Role::Embedding),
        ("lm_head", Role::LmHead),
        ("norm", Role::Norm),
        ("q_proj", Role::AttnQ),
        ("k_proj", Role::AttnK),
        ("v_proj", Role::AttnV),
        ("o_proj", Role::AttnOut),
        ("gate_proj", Role::FfnGate),
        ("up_proj", Role::FfnUp),
        ("down_proj", Role::FfnDown),
    ];
    TensorInfo {
        name: name.into(),
        shape: tensor.shape().iter().map(|&axis| axis as u64).collect(),
        dtype: tensor.dtype(),
        role: roles
            .iter()
            .find(|(part, _)| name.contains(part))
            .map_or(Role::Other, |(_, role)| *role),
        layer: name
            .strip_prefix("model.layers.")
            .and_then(|rest| rest.split('.').next()?.parse().ok()),
        expert: None,
        tied_to: None,
    }
}

/// Applies an edit to one tensor with the plugin's own parameters.
fn apply(plugin: &EditPlugin, task: &Value, tensor: &Tensor) -> Tensor {
    let target = Target {
        tensor: "w".into(),
        params: task.to_string(),
    };
    match plugin.apply(&target, tensor, &info("w", tensor), &cpu()) {
        Ok(called) => called.value.tensor,
        Err(error) => panic!("{error}"),
    }
}

/// Equal bit for bit, any NaN being equal to any other, or within a tolerance: units in the last place, or a distance.
const EXACT: (i64, f32) = (0, 0.0);

/// Compares two tensors.
fn assert_same(found: &Tensor, expected: &Tensor, (ulps, distance): (i64, f32), about: &str) {
    assert_eq!(
        (found.dtype(), found.shape()),
        (expected.dtype(), expected.shape()),
        "{about}"
    );
    // The place of a number in the order of all numbers of the dtype.
    let place = |value: f32| {
        let shift = if found.dtype() == DType::BF16 { 16 } else { 0 };
        let bits = i64::from(value.to_bits() >> shift);
        let sign = 1_i64 << (31 - shift);
        if bits & sign == 0 {
            bits
        } else {
            sign - 1 - bits
        }
    };
    for (index, (found, expected)) in found
        .to_f32()
        .into_iter()
        .zip(expected.to_f32())
        .enumerate()
    {
        let same = found.to_bits() == expected.to_bits()
            || (found.is_nan() && expected.is_nan())
            || (ulps > 0 && (place(found) - place(expected)).abs() <= ulps)
            || (distance > 0.0 && (found - expected).abs() <= distance);
        assert!(
            same,
            "{about}: element {index} is {found:e}, expected {expected:e}"
        );
    }
}

#[test]
fn every_component_loads_and_is_what_its_manifest_says() {
    let Some(registry) = registry() else { return };
    assert!(
        registry.entries().len() >= 11,
        "{}",
        registry.entries().len()
    );
    let engine = engine();
    for entry in registry.entries() {
        let plugin = engine.load(entry).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(plugin.describe().id, entry.id());
        assert_eq!(
            plugin.describe().title,
            entry.manifest().title,
            "{}",
            entry.id()
        );
        println!("{}: {} bytes", entry.id(), entry.size());
    }
}

#[test]
fn quantisation_is_the_references() {
    let Some(registry) = registry() else { return };
    let plugin = edit(&registry, "quant-rtn");
    for dtype in ["f32", "bf16"] {
        let tensors = tensors(&format!("quant_rtn_{dtype}.safetensors"));
        for case in parse("quant_rtn.json")["cases"].as_array().unwrap() {
            let name = |key: &str| case[key].as_str().unwrap();
            // Fused experts are quantised row by row here; the reference flattens all but the first axis.
            let (rows, columns) = tensors[name("input")].rows_columns();
            let input = tensors[name("input")].with_shape([rows, columns]).unwrap();
            let expected = tensors[name("output")].with_shape([rows, columns]).unwrap();
            let task = json!({ "bits": case["bits"], "group_size": case["group_size"] });
            assert_same(
                &apply(&plugin, &task, &input),
                &expected,
                EXACT,
                &format!("{dtype} {}", name("output")),
            );
        }
    }
}

#[test]
fn fp8_is_the_references() {
    let Some(registry) = registry() else { return };
    let plugin = edit(&registry, "fp8");
    let tensors = tensors("fp8.safetensors");
    let patterns: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let all = Tensor::new(DType::BF16, [65536], patterns.into()).unwrap();
    for format in ["e4m3", "e5m2"] {
        let task = json!({ "format": format });
        let expected = &tensors[&format!("bf16_all.{format}.out")];
        assert_same(
            &apply(&plugin, &task, &all),
            expected,
            EXACT,
            &format!("all of bf16, {format}"),
        );
        for input in ["f32_edges", "weights_f32", "weights_bf16"] {
            let found = apply(&plugin, &task, &tensors[&format!("in.{input}")]);
            assert_same(
                &found,
                &tensors[&format!("{input}.{format}.out")],
                EXACT,
                &format!("{input}, {format}"),
            );
        }
    }
}

#[test]
fn pruning_is_the_references() {
    let Some(registry) = registry() else { return };
    let plugin = edit(&registry, "magnitude-prune");
    for case in parse("prune.json")["cases"].as_array().unwrap() {
        let name = |key: &str| case[key].as_str().unwrap();
        let tensors = tensors(&format!("prune_{}.safetensors", name("dtype")));
        let found = apply(
            &plugin,
            &json!({ "sparsity": case["sparsity"] }),
            &tensors[name("input")],
        );
        assert_same(
            &found,
            &tensors[name("output")],
            EXACT,
            &format!("{} {}", name("dtype"), name("output")),
        );
    }
}

#[test]
fn low_rank_is_acceptable() {
    let Some(registry) = registry() else { return };
    let plugin = edit(&registry, "lowrank-svd");
    for case in parse("lowrank.json")["cases"].as_array().unwrap() {
        let dtype = case["dtype"].as_str().unwrap();
        let tensors = tensors(&format!("lowrank_{dtype}.safetensors"));
        let input = &tensors[case["input"].as_str().unwrap()];
        let (rows, columns) = input.rows_columns();
        let matrix = input.with_shape([rows, columns]).unwrap();
        let found = apply(
            &plugin,
            &json!({ "rank": case["rank"], "seed": 0 }),
            &matrix,
        );
        let squares = matrix.to_f32().into_iter().zip(found.to_f32());
        let residual = squares
            .map(|(a, b)| (f64::from(a) - f64::from(b)).powi(2))
            .sum::<f64>()
            .sqrt();
        let number = |key: &str| case[key].as_f64().unwrap();
        let slack = if dtype == "f32" { 1e-5 } else { 1.0 / 256.0 } * number("input_norm");
        assert!(
            residual <= 1.02 * number("optimal_residual") + slack,
            "{case}: {residual}"
        );
    }
}

/// The model that faults start from, and what is done to it.
struct Tiny {
    order: Vec<String>,
    start: BTreeMap<String, Tensor>,
    changed: BTreeMap<String, Option<Tensor>>,
    config: String,
}

impl Tiny {
    fn open(dtype: &str, about: &Value) -> Self {
        Self {
            order: names(&about["order"]),
            start: tensors(&format!("tiny_llama_{dtype}.safetensors")),
            changed: BTreeMap::new(),
            config: about["config"].to_string(),
        }
    }

    fn now(&self, name: &str) -> Option<Tensor> {
        match self.changed.get(name) {
            Some(changed) => changed.clone(),
            None => self.start.get(name).cloned(),
        }
    }
}

fn names(list: &Value) -> Vec<String> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

impl Draft for Tiny {
    fn model(&self) -> Result<ModelInfo, Failure> {
        let tensors = self
            .order
            .iter()
            .filter_map(|name| Some(info(name, &self.now(name)?)));
        Ok(ModelInfo {
            architecture: "llama".into(),
            layers: 6,
            hidden_size: 32,
            vocab_size: 64,
            experts: 0,
            tensors: tensors.collect(),
        })
    }

    fn get(&self, name: &str) -> Result<(TensorInfo, Tensor), Failure> {
        let tensor = self
            .now(name)
            .ok_or_else(|| Failure::Failed(format!("no tensor `{name}`")))?;
        Ok((info(name, &tensor), tensor))
    }

    fn put(&mut self, name: &str, tensor: Tensor) -> Result<(), Failure> {
        self.changed.insert(name.into(), Some(tensor));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), Failure> {
        self.changed.insert(name.into(), None);
        Ok(())
    }

    fn config(&self) -> String {
        self.config.clone()
    }

    fn set_config(&mut self, config: &str) -> Result<(), Failure> {
        self.config = config.into();
        Ok(())
    }
}

#[test]
fn injections_are_the_references() {
    let Some(registry) = registry() else { return };
    let about = parse("faults.json");
    let device = cpu();
    for dtype in ["f32", "bf16"] {
        let expected = tensors(&format!("faults_{dtype}.safetensors"));
        for (name, case) in about["cases"].as_object().unwrap() {
            let plugin = injection(&registry, case["error_type"].as_str().unwrap());
            let params =
                json!({ "error_type": case["error_type"], "env": case["env"] }).to_string();
            let mut draft = Tiny::open(dtype, &about);
            let injected = match plugin.inject(&params, &mut draft, &device) {
                Ok(called) => called.value,
                // A case that damages nothing in the reference must fail here.
                Err(error)
                    if names(&case["changed"]).is_empty() && names(&case["removed"]).is_empty() =>
                {
                    assert!(
                        error.to_string().contains("nothing would be injected"),
                        "{error}"
                    );
                    continue;
                }
                Err(error) => panic!("{dtype} {name}: {error}"),
            };
            let report: Value = serde_json::from_str(&injected).unwrap();
            assert_eq!(
                report["error_type"], case["metadata"]["error_type"],
                "{dtype} {name}"
            );
            let (mut put, mut removed) = (names(&case["changed"]), names(&case["removed"]));
            put.sort();
            removed.sort();
            let of = |present: bool| {
                let changes = draft
                    .changed
                    .iter()
                    .filter(move |(_, change)| change.is_some() == present);
                changes.map(|(name, _)| name.clone()).collect::<Vec<_>>()
            };
            assert_eq!((of(true), of(false)), (put, removed), "{dtype} {name}");
            // Normal numbers may be off by two places, which for noise of a thousandth is 2^-32, and norms in f32 depend on
            // the order of their sum; all else is exact.
            let tolerance = match (dtype, name.as_str()) {
                ("f32", "rank_collapse") => (2, 0.0),
                ("f32", name) if name.contains("rmt") => (2, 2.0_f32.powi(-32)),
                (_, name) if name.contains("rmt") => (1, 0.0),
                _ => EXACT,
            };
            for (tensor, change) in &draft.changed {
                let Some(change) = change else { continue };
                let about = format!("{dtype} {name}/{tensor}");
                assert_same(
                    change,
                    &expected[&format!("{name}/{tensor}")],
                    tolerance,
                    &about,
                );
            }
        }
    }
}

#[test]
fn guards_judge_the_same_twice() {
    let Some(registry) = registry() else { return };
    let invariants = load(&registry, "invariants").guard().unwrap().clone();
    let row = |scope: &str, quantity: &str, value| Row {
        scope: scope.into(),
        quantity: quantity.into(),
        value,
    };
    let text = |text: &str| Measured::Text(text.into());
    let baseline = [
        row("w", "tensor.non_finite", Measured::Number(0.0)),
        row("w", "tensor.shape", Measured::Vector(vec![2.0, 4.0])),
        row("w", "tensor.dtype", text("BF16")),
        row("w", "vocabulary", Measured::Number(2.0)),
        row("model", "parameter.count", Measured::Number(8.0)),
        row("model", "tying", text("absent")),
        row("model", "structure.digest", text("w")),
        row("model", "config.vocab_size", Measured::Number(2.0)),
        row("model", "norm.names", text("")),
    ];
    let mut broken = baseline.clone();
    broken[0].value = Measured::Number(3.0);
    let first = invariants.judge("{}", &baseline, &broken).unwrap();
    let again = invariants.judge("{}", &baseline, &broken).unwrap();
    assert_eq!(first.value, again.value);
    assert_eq!(first.stats.fuel, again.stats.fuel);
    let status = |step: &Step| match step {
        Step::Verdict(verdict) => verdict.status,
        Step::Measure(requests) => panic!("{requests:?}"),
    };
    assert_eq!(status(&first.value), Status::Fail);
    let same = invariants.judge("{}", &baseline, &baseline).unwrap();
    assert_eq!(status(&same.value), Status::Pass, "{:?}", same.value);
}

/// A table for `primary-metric`: two arms of `count` windows with losses that differ.
fn windows(count: usize, shift: f64) -> Vec<Row> {
    let row = |scope: &str, quantity: &str, value| Row {
        scope: scope.into(),
        quantity: quantity.into(),
        value: Measured::Vector(value),
    };
    let arm = |scope: &str, first: usize| {
        let each = |value: &dyn Fn(f64) -> f64| (0..count).map(|at| value(at as f64)).collect();
        [
            row(scope, "window.ids", each(&|at| at + first as f64)),
            row(scope, "window.loss", each(&|at| 2.0 + shift * at.sin())),
            row(scope, "window.tokens", each(&|_| 128.0)),
        ]
    };
    [arm("preview", 0), arm("final", count)].concat()
}

#[test]
fn a_bootstrap_without_end_is_interrupted() {
    let Some(registry) = registry() else { return };
    let limits = Limits {
        own_time: Duration::from_millis(300),
        ..Limits::default()
    };
    let load = |limits| {
        let plugin = engine_with(limits).load(registry.get("primary-metric").unwrap());
        plugin.unwrap().guard().unwrap().clone()
    };
    let policy = |replicates: u32| {
        json!({"bootstrap": {"method": "bca", "replicates": replicates, "alpha": 0.05, "seed": 1}})
            .to_string()
    };
    let (baseline, subject) = (windows(200, 0.1), windows(200, 0.3));
    let judge = load(limits);
    let Err(Error::Call(error)) = judge.judge(&policy(1_000_000), &baseline, &subject) else {
        panic!("hundreds of millions of draws were quicker than the limit")
    };
    let text = error.to_string();
    assert!(text.contains("limit `own_time` exceeded"), "{text}");
    assert!(error.stats.wall < Duration::from_millis(1300), "{text}");
    // An honest one goes on in the same sandbox.
    assert!(judge.judge(&policy(10), &baseline, &subject).is_ok());
}

#[test]
fn a_kernel_without_end_is_interrupted() {
    let Some(registry) = registry() else { return };
    let limits = Limits {
        deadline: Duration::from_millis(50),
        ..Limits::default()
    };
    let plugin = engine_with(limits).load(registry.get("quant-rtn").unwrap());
    let plugin = plugin.unwrap();
    // Half a gigabyte: on two threads its kernels take several times as long.
    let tensor = Tensor::zeros(DType::BF16, [1 << 16, 1 << 12]).unwrap();
    let target = Target {
        tensor: "w".into(),
        params: json!({"bits": 8, "group_size": 24}).to_string(),
    };
    let called = plugin
        .edit()
        .unwrap()
        .apply(&target, &tensor, &info("w", &tensor), &cpu());
    let Err(Error::Call(error)) = called else {
        panic!("the kernel was quicker than the deadline")
    };
    let text = error.to_string();
    assert!(text.contains("limit `deadline` exceeded"), "{text}");
    assert!(error.stats.wall < Duration::from_millis(1050), "{text}");
}
