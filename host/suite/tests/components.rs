//! The first-party components as they are shipped: through the sandbox and the CPU's kernels, against the reference vectors.
//!
//! The components' own tests run the same vectors natively through the SDK's bench; here nothing is replaced. They must have
//! been built: `cargo xtask components`.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

use packhost_plugin::{
    CacheDir, Draft, EditPlugin, Engine, EngineOptions, Failure, InjectionPlugin, ModelInfo,
    PluginKind, Registry, Role, Target, TensorInfo,
};
use packhost_sdk::bench::{self, Checkpoint, EXACT, Tolerance};
use packhost_tensor::{DType, Tensor, cpu::Cpu};
use serde_json::{Value, json};

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/edits");
const PLUGINS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins");

/// What runs components.
struct Host {
    engine: Engine,
    registry: Registry,
    device: Cpu,
}

impl Host {
    fn new() -> Self {
        let options = EngineOptions {
            cache: CacheDir::Off,
            ..EngineOptions::default()
        };
        let registry = Registry::scan(Path::new(PLUGINS))
            .unwrap_or_else(|error| panic!("run `cargo xtask components`: {error}"));
        Self {
            engine: Engine::new(options).unwrap(),
            registry,
            device: Cpu::new(Some(2)).unwrap(),
        }
    }

    fn edit(&self, edit_type: &str) -> EditPlugin {
        let entry = self.registry.serving(PluginKind::Edit, edit_type).unwrap();
        self.engine.load(entry).unwrap().edit().unwrap().clone()
    }

    fn injection(&self, error_type: &str) -> InjectionPlugin {
        let entry = self
            .registry
            .serving(PluginKind::Injection, error_type)
            .unwrap();
        self.engine
            .load(entry)
            .unwrap()
            .injection()
            .unwrap()
            .clone()
    }

    /// One call of `apply`.
    fn apply(
        &self,
        plugin: &EditPlugin,
        task: &Value,
        tensor: &Tensor,
    ) -> (Tensor, BTreeMap<String, f64>) {
        let target = Target {
            tensor: "t".into(),
            params: task.to_string(),
        };
        let edited = plugin
            .apply(&target, tensor, &info("t", tensor), &self.device)
            .unwrap()
            .value;
        (
            edited.tensor,
            edited
                .facts
                .into_iter()
                .map(|fact| (fact.name, fact.value))
                .collect(),
        )
    }
}

/// Facts about a tensor as far as the components need them.
fn info(name: &str, tensor: &Tensor) -> TensorInfo {
    let role = match name {
        _ if name.ends_with("embed_tokens.weight") => Role::Embedding,
        "lm_head.weight" => Role::LmHead,
        _ if name.contains("norm") => Role::Norm,
        _ => Role::Other,
    };
    TensorInfo {
        name: name.into(),
        shape: tensor.shape().iter().map(|&axis| axis as u64).collect(),
        dtype: tensor.dtype(),
        role,
        layer: packhost_sdk::scope::layer_of(name),
        expert: None,
        tied_to: None,
    }
}

/// A tensor of the vectors in the host's type.
fn host_tensor(tensor: &packhost_sdk::Tensor) -> Tensor {
    let dtype = match tensor.dtype() {
        packhost_sdk::DType::F32 => DType::F32,
        packhost_sdk::DType::BF16 => DType::BF16,
        other => panic!("{other:?} is not used here"),
    };
    let shape: Vec<usize> = tensor.shape().iter().map(|&axis| axis as usize).collect();
    Tensor::from_f32(dtype, shape, &bench::values(tensor)).unwrap()
}

/// Compares a result with a vector.
fn assert_same(actual: &Tensor, expected: &packhost_sdk::Tensor, tolerance: Tolerance, what: &str) {
    let shape: Vec<u64> = actual.shape().iter().map(|&axis| axis as u64).collect();
    let actual = bench::tensor("", expected.dtype(), &shape, &actual.to_f32());
    assert_eq!(
        bench::difference(&actual, expected, tolerance),
        None,
        "{what}"
    );
}

fn vectors(file: &str) -> Checkpoint {
    Checkpoint::open(format!("{VECTORS}/{file}.safetensors")).unwrap()
}

fn cases(file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(format!("{VECTORS}/{file}.json")).unwrap())
        .unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn quant_rtn() {
    let host = Host::new();
    let plugin = host.edit("quant_rtn");
    let about = cases("quant_rtn");
    for dtype in ["f32", "bf16"] {
        let vectors = vectors(&format!("quant_rtn_{dtype}"));
        for case in about["cases"].as_array().unwrap() {
            // The reference flattens a tensor with three axes, our Decision does not: compare as matrices.
            let flat = |name: &Value| {
                let tensor = vectors.tensor(text(name)).unwrap();
                let (rows, columns) = tensor.info().rows_columns();
                tensor.reshape(&[rows, columns]).unwrap()
            };
            let task = json!({ "bits": case["bits"], "group_size": case["group_size"] });
            let (edited, _) = host.apply(&plugin, &task, &host_tensor(&flat(&case["input"])));
            assert_same(
                &edited,
                &flat(&case["output"]),
                EXACT,
                &format!("{dtype} {case}"),
            );
        }
    }
}

#[test]
fn fp8() {
    let host = Host::new();
    let plugin = host.edit("fp8_quant");
    let vectors = vectors("fp8");
    let patterns: Vec<f32> = (0..=u16::MAX)
        .map(|bits| f32::from_bits(u32::from(bits) << 16))
        .collect();
    let all = Tensor::from_f32(DType::BF16, [65536], &patterns).unwrap();
    for format in ["e4m3", "e5m2"] {
        let run = |input: &Tensor, output: &str| {
            let (edited, _) = host.apply(&plugin, &json!({ "format": format }), input);
            assert_same(&edited, vectors.tensor(output).unwrap(), EXACT, output);
        };
        run(&all, &format!("bf16_all.{format}.out"));
        run(
            &host_tensor(vectors.tensor("in.f32_edges").unwrap()),
            &format!("f32_edges.{format}.out"),
        );
        for dtype in ["f32", "bf16"] {
            let weights = host_tensor(vectors.tensor(&format!("in.weights_{dtype}")).unwrap());
            run(&weights, &format!("weights_{dtype}.{format}.out"));
        }
    }
    for dtype in ["f32", "bf16"] {
        let weights = host_tensor(vectors.tensor(&format!("in.weights_{dtype}")).unwrap());
        let (edited, facts) = host.apply(&plugin, &json!({ "format": "other" }), &weights);
        assert_same(
            &edited,
            vectors
                .tensor(&format!("weights_{dtype}.fallback_f16.out"))
                .unwrap(),
            EXACT,
            dtype,
        );
        assert!(facts["relative-error"] < 1e-3, "{facts:?}");
    }
}

#[test]
fn magnitude_prune() {
    let host = Host::new();
    let plugin = host.edit("magnitude_prune");
    for case in cases("prune")["cases"].as_array().unwrap() {
        let vectors = vectors(&format!("prune_{}", text(&case["dtype"])));
        let input = host_tensor(vectors.tensor(text(&case["input"])).unwrap());
        let (edited, facts) = host.apply(&plugin, &json!({ "sparsity": case["sparsity"] }), &input);
        assert_same(
            &edited,
            vectors.tensor(text(&case["output"])).unwrap(),
            EXACT,
            &case.to_string(),
        );
        assert_eq!(
            facts["zeros"],
            case["zeros_out"].as_f64().unwrap(),
            "{case}"
        );
    }
}

#[test]
fn lowrank_svd() {
    let host = Host::new();
    let plugin = host.edit("lowrank_svd");
    for case in cases("lowrank")["cases"].as_array().unwrap() {
        let dtype = text(&case["dtype"]);
        let vectors = vectors(&format!("lowrank_{dtype}"));
        let input = vectors.tensor(text(&case["input"])).unwrap();
        let (rows, columns) = input.info().rows_columns();
        let input = host_tensor(&input.reshape(&[rows, columns]).unwrap());
        let (edited, _) = host.apply(&plugin, &json!({ "rank": case["rank"], "seed": 3 }), &input);
        let pairs = input.to_f32().into_iter().zip(edited.to_f32());
        let residual = pairs
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

/// A checkpoint under damage.
struct TestDraft {
    tensors: Vec<(String, Tensor)>,
    changed: BTreeMap<String, Option<Tensor>>,
    config: String,
}

impl TestDraft {
    fn place(&self, name: &str) -> Result<usize, Failure> {
        let place = self.tensors.iter().position(|known| known.0 == name);
        place.ok_or_else(|| Failure::Failed(format!("no tensor `{name}`")))
    }
}

impl Draft for TestDraft {
    fn model(&self) -> Result<ModelInfo, Failure> {
        let tensors: Vec<TensorInfo> = self
            .tensors
            .iter()
            .map(|(name, tensor)| info(name, tensor))
            .collect();
        Ok(ModelInfo {
            architecture: "llama".into(),
            layers: 6,
            hidden_size: 32,
            vocab_size: 64,
            experts: 0,
            tensors,
        })
    }

    fn get(&self, name: &str) -> Result<(TensorInfo, Tensor), Failure> {
        let tensor = &self.tensors[self.place(name)?].1;
        Ok((info(name, tensor), tensor.clone()))
    }

    fn put(&mut self, name: &str, tensor: Tensor) -> Result<(), Failure> {
        self.changed.insert(name.into(), Some(tensor.clone()));
        match self.place(name) {
            Ok(place) => self.tensors[place].1 = tensor,
            Err(_) => self.tensors.push((name.into(), tensor)),
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), Failure> {
        let place = self.place(name)?;
        self.tensors.remove(place);
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
fn every_fault_injection() {
    let host = Host::new();
    let about = cases("faults");
    let mut plugins: BTreeMap<&str, InjectionPlugin> = BTreeMap::new();
    let mut injected = 0;
    for dtype in ["f32", "bf16"] {
        let start = vectors(&format!("tiny_llama_{dtype}"));
        let expected = vectors(&format!("faults_{dtype}"));
        for (name, case) in about["cases"].as_object().unwrap() {
            let error_type = text(&case["error_type"]);
            let plugin = plugins
                .entry(error_type)
                .or_insert_with(|| host.injection(error_type));
            let tensors = about["order"].as_array().unwrap().iter().map(|name| {
                (
                    text(name).to_owned(),
                    host_tensor(start.tensor(text(name)).unwrap()),
                )
            });
            let config = about["config"].to_string();
            let mut draft = TestDraft {
                tensors: tensors.collect(),
                changed: BTreeMap::new(),
                config,
            };
            let params =
                json!({ "error_type": case["error_type"], "env": case["env"] }).to_string();
            let called = plugin.inject(&params, &mut draft, &host.device);
            if case["metadata"]["injected"] == json!(false) {
                // Decision: what would change nothing fails.
                let message = called.unwrap_err().to_string();
                assert!(message.contains("nothing would be injected"), "{message}");
                assert!(draft.changed.is_empty());
                continue;
            }
            let record: Value = serde_json::from_str(&called.unwrap().value).unwrap();

            // Sums and normals are exact to the last places only; everything else is exact.
            let tolerance = match (name.as_str(), dtype) {
                ("rank_collapse", "f32") => Tolerance {
                    ulps: 2,
                    distance: 0.0,
                },
                (name, "f32") if name.contains("rmt") => Tolerance {
                    ulps: 2,
                    distance: 2.0_f32.powi(-32),
                },
                (name, "bf16") if name.contains("rmt") => Tolerance {
                    ulps: 1,
                    distance: 0.0,
                },
                _ => EXACT,
            };
            let names = case["changed"]
                .as_array()
                .unwrap()
                .iter()
                .chain(case["removed"].as_array().unwrap());
            let mut names: Vec<&str> = names.map(text).collect();
            names.sort_unstable();
            assert_eq!(
                draft.changed.keys().collect::<Vec<_>>(),
                names,
                "{dtype} {name}"
            );
            for (tensor, changed) in &draft.changed {
                match changed {
                    Some(changed) => {
                        let key = format!("{name}/{tensor}");
                        assert_same(
                            changed,
                            expected.tensor(&key).unwrap(),
                            tolerance,
                            &format!("{dtype} {key}"),
                        );
                    }
                    None => assert!(
                        case["removed"].as_array().unwrap().contains(&json!(tensor)),
                        "{dtype} {name}"
                    ),
                }
            }
            let mut config = about["config"].clone();
            for (key, value) in case["config_changes"].as_object().unwrap() {
                config[key] = value.clone();
            }
            assert_eq!(
                serde_json::from_str::<Value>(&draft.config).unwrap(),
                config,
                "{dtype} {name}"
            );
            for (key, value) in case["metadata"]
                .as_object()
                .unwrap()
                .iter()
                .filter(|entry| entry.0 != "rows")
            {
                assert_eq!(record[key], *value, "{dtype} {name}: {key}");
            }
            injected += 1;
        }
    }
    assert_eq!(
        injected,
        2 * (about["cases"].as_object().unwrap().len() - 1)
    );
}
