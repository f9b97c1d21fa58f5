//! The judge against the reference's vectors, rebuilt as tensor tables.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use packhost_sdk::json;

/// A toy model as the vectors describe it: vocabulary 12, width 4, two layers of a norm and two 4x4 projections, a head
/// tied to the embedding.
#[derive(Clone)]
struct Toy {
    tensors: BTreeMap<String, Vec<f64>>,
    non_finite: BTreeMap<String, f64>,
    dtype: String,
    tying: &'static str,
}

impl Toy {
    fn new(norm: &str) -> Self {
        let mut tensors = BTreeMap::new();
        tensors.insert("model.embed_tokens.weight".to_owned(), vec![12.0, 4.0]);
        for layer in 0..2 {
            let prefix = format!("model.layers.{layer}");
            tensors.insert(format!("{prefix}.input_layernorm.weight"), vec![4.0]);
            if norm == "LayerNorm" {
                tensors.insert(format!("{prefix}.input_layernorm.bias"), vec![4.0]);
            }
            tensors.insert(format!("{prefix}.self_attn.q_proj.weight"), vec![4.0, 4.0]);
            tensors.insert(format!("{prefix}.mlp.down_proj.weight"), vec![4.0, 4.0]);
        }
        Self {
            tensors,
            non_finite: BTreeMap::new(),
            dtype: "F32".to_owned(),
            tying: "tied",
        }
    }

    fn table(&self) -> Table {
        let mut rows = Vec::new();
        let mut add = |scope: &str, quantity: &str, value: Value| {
            rows.push(Row {
                scope: scope.to_owned(),
                quantity: quantity.to_owned(),
                value,
            });
        };
        let mut parameters = 0.0;
        let mut norms = Vec::new();
        for (name, shape) in &self.tensors {
            parameters += shape.iter().product::<f64>();
            add(name, "tensor.shape", Value::Vector(shape.clone()));
            add(name, "tensor.dtype", Value::Text(self.dtype.clone()));
            let bad = self.non_finite.get(name).copied().unwrap_or(0.0);
            add(name, "tensor.non_finite", Value::Number(bad));
            if name.ends_with("norm.weight") {
                norms.push(name.as_str());
            }
            if name.contains("embed_tokens") {
                add(name, "vocabulary", Value::Number(shape[0]));
            }
        }
        let names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        add("model", "parameter.count", Value::Number(parameters));
        add("model", "tying", Value::Text(self.tying.to_owned()));
        add("model", "structure.digest", Value::Text(names.join(" ")));
        add("model", "config.vocab_size", Value::Number(12.0));
        add("model", "norm.names", Value::Text(norms.join("\n")));
        Table::new(rows)
    }

    fn parameters(&self) -> f64 {
        self.tensors
            .values()
            .map(|shape| shape.iter().product::<f64>())
            .sum()
    }
}

fn mutate(toy: &mut Toy, mutation: &str) {
    let down = "model.layers.0.mlp.down_proj.weight";
    let mut remove = |part: &str| toy.tensors.retain(|name, _| !name.contains(part));
    match mutation {
        "unchanged" | "weights_x1e6" | "weights_zeroed" => {}
        "nan" | "nan_on_fail_rollback" => {
            toy.non_finite.insert(down.to_owned(), 1.0);
        }
        "neg_inf_in_norm" => {
            let name = "model.layers.0.input_layernorm.weight";
            toy.non_finite.insert(name.to_owned(), 1.0);
        }
        "untied" | "untied_strict" | "untied_on_fail_block" => {
            toy.tensors
                .insert("lm_head.weight".to_owned(), vec![12.0, 4.0]);
            toy.tying = "untied";
        }
        "nan_and_untied" => {
            mutate(toy, "nan");
            mutate(toy, "untied");
        }
        "layernorm_replaced" => remove("model.layers.1.input_layernorm"),
        "layer_dropped" => remove("model.layers.1."),
        "vocab_grown" => {
            let name = "model.embed_tokens.weight";
            toy.tensors.insert(name.to_owned(), vec![14.0, 4.0]);
        }
        "bias_added" => {
            let name = "model.layers.0.self_attn.q_proj.bias";
            toy.tensors.insert(name.to_owned(), vec![4.0]);
        }
        "same_count_other_shape" => {
            toy.tensors.insert(down.to_owned(), vec![2.0, 8.0]);
        }
        "module_renamed" => {
            let shape = toy.tensors.remove(down).unwrap();
            toy.tensors.insert(down.replace("down_proj", "down"), shape);
        }
        other => panic!("unknown mutation {other}"),
    }
}

/// Mutations that this guard judges more severely than the reference, because it looks at tensors by name: a norm or a
/// layer that is gone, a tensor of another shape, and a renamed one are missing or reshaped tensors.
const STRICTER: [&str; 4] = [
    "layernorm_replaced",
    "layer_dropped",
    "same_count_other_shape",
    "module_renamed",
];

#[test]
fn vectors_hold() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../tests/vectors/guards/invariants.json"
    );
    let file: Json = json::from_str(&std::fs::read_to_string(path).expect(path)).unwrap();
    let list = file["vectors"].as_array().unwrap();
    assert_eq!(list.len(), 20);
    for vector in list {
        let id = vector["id"].as_str().unwrap();
        let mutation = vector["mutation"].as_str().unwrap();
        let policy: Policy = json::from_value(vector["options"].clone()).unwrap();
        let before = Toy::new(vector["norm"].as_str().unwrap());
        let mut after = before.clone();
        mutate(&mut after, mutation);
        let expected = &vector["expected"];
        let verdict = judge(&policy, &before, &after);
        let status = match verdict.status {
            Status::Pass => "pass",
            Status::Warn => "warn",
            Status::Fail => "fail",
        };
        if STRICTER.contains(&mutation) {
            assert_eq!(status, "fail", "{id}");
            assert_eq!(verdict.details["decision"], "block", "{id}");
            assert_ne!(expected["report_status"], "fail", "{id}");
            continue;
        }
        assert_eq!(status, expected["report_status"], "{id}");
        assert_eq!(verdict.details["passed"], expected["passed"], "{id}");
        assert_eq!(verdict.details["decision"], expected["decision"], "{id}");
        let counts = json!([before.parameters() as u64, after.parameters() as u64]);
        // The reference's renamed and unchanged modules keep their count; a tied head is counted once on both sides.
        assert_eq!(counts, expected["param_count"], "{id}");
        let listed = verdict.details["violations"].as_array().unwrap();
        let has = |kind: &str, check: &Json| {
            listed
                .iter()
                .any(|v| v["type"] == kind && (check.is_null() || v["check"] == *check))
        };
        for violation in expected["violations"].as_array().unwrap() {
            // The reference lists tying twice, once per module style.
            let check = match &violation["check"] {
                Json::String(check) if check == "weight_tying_arches" => json!("weight_tying"),
                other => other.clone(),
            };
            assert!(
                has(violation["type"].as_str().unwrap(), &check),
                "{id}: {violation}"
            );
        }
        for location in expected["violations"].as_array().unwrap() {
            for name in location["locations"].as_array().into_iter().flatten() {
                let name = name.as_str().unwrap().trim_start_matches("parameter::");
                assert!(listed.iter().any(|v| v["location"] == name), "{id}: {name}");
            }
        }
    }
}

fn judge(policy: &Policy, before: &Toy, after: &Toy) -> Verdict {
    match Invariants::judge(policy, &before.table(), &after.table()).unwrap() {
        Step::Verdict(verdict) => verdict,
        Step::Measure(more) => panic!("asked for {more:?}"),
    }
}

#[test]
fn findings_say_what_changed() {
    let before = Toy::new("RMSNorm");
    let mut after = before.clone();
    mutate(&mut after, "same_count_other_shape");
    mutate(&mut after, "neg_inf_in_norm");
    after.dtype = "BOOL".to_owned();
    let verdict = judge(&Policy::default(), &before, &after);
    let messages: Vec<&str> = verdict
        .findings
        .iter()
        .map(|f| f.message.as_str())
        .collect();
    assert!(
        messages.contains(
            &"tensor model.layers.0.mlp.down_proj.weight changed shape from [4, 4] to [2, 8]"
        ),
        "{messages:?}"
    );
    assert!(
        messages.iter().any(|m| m.contains("stored as BOOL")),
        "{messages:?}"
    );
    let bad = verdict
        .findings
        .iter()
        .find(|f| f.code == "non_finite")
        .unwrap();
    assert_eq!((bad.value, bad.limit), (Some(1.0), Some(0.0)));
}

#[test]
fn an_embedding_may_be_renamed_but_not_resized() {
    let before = Toy::new("RMSNorm");
    let mut after = before.clone();
    let shape = after.tensors.remove("model.embed_tokens.weight").unwrap();
    after
        .tensors
        .insert("other.embed_tokens.weight".to_owned(), shape);
    let codes = |verdict: Verdict| -> BTreeSet<String> {
        verdict.findings.into_iter().map(|f| f.code).collect()
    };
    let found = codes(judge(&Policy::default(), &before, &after));
    assert!(
        found.contains("tensor_missing") && !found.contains("vocabulary"),
        "{found:?}"
    );
    let mut after = before.clone();
    mutate(&mut after, "vocab_grown");
    let found = codes(judge(&Policy::default(), &before, &after));
    assert!(
        found.contains("vocabulary") && found.contains("tensor_shape"),
        "{found:?}"
    );
}

#[test]
fn policies_and_tables_are_checked() {
    let error = json::from_str::<Policy>(r#"{"strict": true}"#)
        .unwrap_err()
        .to_string();
    assert!(error.contains("unknown field `strict`"), "{error}");
    let toy = Toy::new("RMSNorm").table();
    let error = Invariants::judge(&Policy::default(), &toy, &Table::default()).unwrap_err();
    assert!(error.message().contains("norm.names"), "{error}");
    let plan = Invariants::plan(&Policy::default(), &ModelInfo::default()).unwrap();
    assert_eq!(plan.len(), 9);
}
