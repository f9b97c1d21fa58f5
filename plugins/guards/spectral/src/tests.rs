//! The judge against the reference's vectors, on tables that hold what the host would measure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use super::*;
use crate::outcome::{Family, Kind, Violation, z_score};
use packhost_sdk::json::{self, Value as Json, json};
use packhost_sdk::stats::testing;
use packhost_sdk::{DType, Row, TensorInfo, Value, bench};

#[path = "../../../tests-support/toy.rs"]
mod toy;

fn vectors(name: &str) -> Json {
    let path = format!(
        "{}/../../../tests/vectors/guards/{name}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    json::from_str(&std::fs::read_to_string(&path).expect(&path)).unwrap()
}

/// The vectors of one function, of which there is at least one.
fn of<'a>(file: &'a Json, function: &str) -> Vec<&'a Json> {
    let all = file["vectors"].as_array().unwrap().iter();
    let found: Vec<&Json> = all.filter(|vector| vector["fn"] == function).collect();
    assert!(!found.is_empty(), "no vectors of {function}");
    found
}

fn row(module: &str, quantity: &str, value: Value) -> Row {
    Row {
        scope: format!("{module}.weight"),
        quantity: quantity.to_owned(),
        value,
    }
}

fn table(weights: &BTreeMap<String, toy::Matrix>) -> Table {
    let rows = weights.iter().flat_map(|(module, matrix)| {
        let figures = toy::figures(matrix);
        [
            row(module, "weight.sigma.ones.4", Value::Number(figures.sigma)),
            row(
                module,
                "weight.frobenius_sq",
                Value::Number(figures.frobenius_sq),
            ),
            row(module, "weight.row_norms", Value::Vector(figures.rows)),
            row(
                module,
                "weight.column_norms",
                Value::Vector(figures.columns),
            ),
        ]
    });
    Table::new(rows.collect())
}

/// A table of singular values alone; the policy must not look for collapse.
fn sigmas<'a>(values: impl IntoIterator<Item = (&'a str, f64)>) -> Table {
    let rows = values
        .into_iter()
        .map(|(module, sigma)| row(module, "weight.sigma.ones.4", Value::Number(sigma)));
    Table::new(rows.collect())
}

/// A policy of the vectors, where limits of families are plain numbers.
fn policy(vector: &Json, reference: &str) -> String {
    let mut policy = vector.clone();
    for (_, cap) in policy["family_caps"].as_object_mut().into_iter().flatten() {
        if cap.is_number() {
            *cap = json!({"kappa": cap});
        }
    }
    policy["reference"] = json!(reference);
    policy.to_string()
}

fn judge(policy: &str, baseline: &Table, subject: &Table) -> Verdict {
    match bench::judge::<Spectral>(policy, baseline, subject).unwrap() {
        Step::Verdict(verdict) => verdict,
        Step::Measure(more) => panic!("asked for {more:?}"),
    }
}

fn near(what: &str, got: &Json, expected: &Json, tolerance: f64) {
    let (got, expected) = (got.as_f64().expect(what), expected.as_f64().expect(what));
    assert!(
        (got - expected).abs() <= tolerance,
        "{what}: {got} for {expected}"
    );
}

#[test]
fn whole_guard() {
    let file = vectors("spectral");
    let weights = toy::weights(&file);
    let baseline = table(&weights);
    for vector in of(&file, "spectral_guard") {
        let id = vector["id"].as_str().unwrap();
        let subject = table(&toy::edited(&weights, vector["edit"].as_str().unwrap()));
        let verdict = judge(&policy(&vector["policy"], "baseline"), &baseline, &subject);
        let (details, expected) = (&verdict.details, &vector["expected"]);
        for key in ["passed", "decision"] {
            assert_eq!(details[key], expected[key], "{id} {key}");
        }
        let metrics = &details["metrics"];
        assert_eq!(metrics["caps_applied"], expected["caps_applied"], "{id}");
        assert_eq!(metrics["caps_exceeded"], expected["caps_exceeded"], "{id}");
        assert_eq!(
            metrics["candidate_budgeted_violations"], expected["candidates"],
            "{id}"
        );
        assert_eq!(metrics["fatal_violations"], expected["fatal"], "{id}");
        assert_eq!(
            metrics["modules_checked"], expected["modules_checked"],
            "{id}"
        );
        let selection = &metrics["multiple_testing_selection"];
        assert_eq!(
            selection["families_selected"], expected["families_selected"],
            "{id}"
        );
        near(
            id,
            &details["target_sigma"],
            &expected["target_sigma"],
            1e-5,
        );
        for (module, z) in expected["z"].as_object().unwrap() {
            near(id, &details["final_z_scores"][module], z, 2e-4);
        }
        let found = details["violations"].as_array().unwrap();
        let wanted = expected["violations"].as_array().unwrap();
        let wanted: Vec<&Json> = wanted
            .iter()
            .filter(|v| v["selected"] != json!(false))
            .collect();
        assert_eq!(found.len(), wanted.len(), "{id}: {found:?}");
        for wanted in wanted {
            let same = |found: &&Json| {
                ["type", "module", "severity"]
                    .iter()
                    .all(|key| found[key] == wanted[key])
            };
            let found = found
                .iter()
                .find(same)
                .unwrap_or_else(|| panic!("{id}: no {wanted}"));
            if wanted["z"].is_number() {
                near(id, &found["z_score"], &wanted["z"], 2e-4);
            }
            if wanted["ratio"].is_number() {
                let ratio = wanted["ratio"].as_f64().unwrap();
                near(
                    id,
                    &found["ratio"],
                    &wanted["ratio"],
                    1e-4 * ratio.max(1e-3),
                );
            }
        }
        let status = match expected["decision"].as_str().unwrap() {
            "block" => Status::Fail,
            "monitor" => Status::Warn,
            _ => Status::Pass,
        };
        assert_eq!(verdict.status, status, "{id}");
    }
}

#[test]
fn scores() {
    let file = vectors("spectral");
    let vector = of(&file, "z_scores")[0];
    let read = |key: &str| {
        let values = vector[key].as_object().unwrap().iter();
        sigmas(values.map(|(module, sigma)| (module.as_str(), sigma.as_f64().unwrap())))
    };
    let (baseline, current) = (read("baseline_sigma"), read("current_sigma"));
    let policy = r#"{"deadband": 0.1, "reference": "baseline", "degeneracy": {"enabled": false}}"#;
    for (subject, expected) in [(&baseline, "z_baseline"), (&current, "z_current")] {
        let details = judge(policy, &baseline, subject).details;
        for (module, z) in vector["expected"][expected].as_object().unwrap() {
            near(module, &details["final_z_scores"][module], z, 1e-9);
            assert_eq!(
                details["module_family_map"][module],
                vector["family"][module]
            );
        }
        for (family, stats) in vector["expected"]["family_stats"].as_object().unwrap() {
            for (key, value) in stats.as_object().unwrap() {
                near(key, &details["family_stats"][family][key], value, 1e-12);
            }
        }
    }
    for vector in of(&file, "z_single_no_spread") {
        let number = |key: &str| vector[key].as_f64().unwrap();
        let flat = Family {
            count: 1,
            mean: number("reference"),
            std: 0.0,
            min: number("reference"),
            max: number("reference"),
        };
        let z = z_score(
            number("sigma"),
            Some(&flat),
            number("reference"),
            number("deadband"),
        );
        assert!((z - number("expected")).abs() < 1e-12, "{vector}");
    }
}

#[test]
fn p_values_and_families() {
    let file = vectors("spectral");
    for vector in of(&file, "p_value") {
        let p = testing::two_sided(vector["z"].as_f64().unwrap());
        let expected = vector["expected"].as_f64().unwrap();
        assert!((p - expected).abs() <= 1e-9 * expected, "{vector}");
    }
    for vector in of(&file, "multiple_testing") {
        let families = vector["p"].as_object().unwrap();
        let p: Vec<f64> = families.values().map(|p| p.as_f64().unwrap()).collect();
        let alpha = vector["alpha"].as_f64().unwrap();
        let m = vector["m"].as_u64().unwrap() as usize;
        for method in [policy::Method::Bh, policy::Method::Bonferroni] {
            let limit = testing::threshold(method.correction(), &p, alpha, m);
            let selected = families
                .iter()
                .filter(|(_, p)| limit.is_some_and(|limit| p.as_f64().unwrap() <= limit));
            let selected: Vec<&String> = selected.map(|(family, _)| family).collect();
            let expected = &vector["expected"][json!(method).as_str().unwrap()];
            assert_eq!(json!(selected), *expected, "{} {method:?}", vector["id"]);
        }
    }
}

fn model(modules: &[String]) -> ModelInfo {
    let tensor = |module: &String| TensorInfo {
        name: format!("{module}.weight"),
        shape: vec![4, 4],
        dtype: DType::BF16,
        role: packhost_sdk::Role::Other,
        layer: None,
        expert: None,
        tied_to: None,
    };
    ModelInfo {
        tensors: modules.iter().map(tensor).collect(),
        ..ModelInfo::default()
    }
}

#[test]
fn scopes_choose_what_is_measured() {
    let file = vectors("spectral");
    let expected = of(&file, "scope")[0]["expected"].as_object().unwrap();
    let list = |scope: &str| -> Vec<String> {
        let names = expected[scope].as_array().unwrap().iter();
        let mut names: Vec<String> = names
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let mut all: Vec<String> = expected.keys().flat_map(|scope| list(scope)).collect();
    all.extend(
        [
            "lm_head",
            "model.embed_tokens",
            "model.layers.0.input_layernorm",
        ]
        .map(str::to_owned),
    );
    all.sort();
    all.dedup();
    for scope in expected.keys() {
        let policy = json!({"scope": scope, "degeneracy": {"enabled": false}}).to_string();
        let requests = Spectral::plan(&json::from_str(&policy).unwrap(), &model(&all)).unwrap();
        let chosen: Vec<String> = requests
            .iter()
            .map(|request| request.scope.trim_end_matches(".weight").to_owned())
            .collect();
        assert_eq!(chosen, list(scope), "{scope}");
    }
    let requests = Spectral::plan(&Policy::default(), &model(&all)).unwrap();
    let asked: Vec<(&str, &str)> = requests
        .iter()
        .map(|request| (request.quantity.as_str(), request.scope.as_str()))
        .collect();
    assert_eq!(
        asked,
        [
            ("weight.sigma.ones.4", "*"),
            ("weight.frobenius_sq", "*"),
            ("weight.row_norms", "*"),
            ("weight.column_norms", "*"),
        ]
    );
}

/// 20 modules per family with little spread, and outliers.
fn stock(outliers: &[(&str, f64)]) -> Table {
    let mut values: BTreeMap<String, f64> = BTreeMap::new();
    for layer in 0..40 {
        let sigma = 2.0 + 0.01 * f64::from(layer % 5);
        values.insert(format!("model.layers.{layer}.self_attn.q_proj"), sigma);
        values.insert(format!("model.layers.{layer}.self_attn.k_proj"), sigma);
        values.insert(format!("model.layers.{layer}.mlp.up_proj"), sigma);
    }
    for (module, sigma) in outliers {
        values.insert((*module).to_owned(), *sigma);
    }
    sigmas(
        values
            .iter()
            .map(|(module, sigma)| (module.as_str(), *sigma)),
    )
}

const PLAIN: &str = r#"{"degeneracy": {"enabled": false}}"#;

#[test]
fn movement_is_what_the_baseline_does_not_show() {
    let (q, k) = (
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
    );
    let up = "model.layers.31.mlp.up_proj";
    let baseline = stock(&[(q, 9.0), (k, 9.0)]);
    let moved = |subject: &Table| judge(PLAIN, &baseline, subject).details["movement"].clone();
    let new = moved(&stock(&[(q, 9.0), (k, 9.0), (up, 9.0)]));
    assert_eq!(
        new,
        json!({
            "baseline_caps_applied": 2,
            "subject_caps_applied": 3,
            "new_caps_applied": 1,
            "delta_caps_applied": 1,
            "relative_signal": true,
            "new_cap_modules": [{"module": up, "family": "ffn"}],
        })
    );
    let same = moved(&baseline);
    assert_eq!(
        (&same["relative_signal"], &same["new_caps_applied"]),
        (&json!(false), &json!(0))
    );
    let fewer = moved(&stock(&[(q, 9.0)]));
    assert_eq!(
        (&fewer["relative_signal"], &fewer["delta_caps_applied"]),
        (&json!(false), &json!(0))
    );
}

#[test]
fn movement_vectors() {
    let file = vectors("verdict");
    for vector in of(&file, "spectral_movement") {
        let violations = |side: &str| -> Vec<Violation> {
            let violation = |violation: &Json| Violation {
                kind: match violation["type"].as_str().unwrap() {
                    "family_z_cap" => Kind::FamilyZCap,
                    _ => Kind::StableRankDrop,
                },
                module: violation["module"].as_str().unwrap().to_owned(),
                family: if violation["family"] == "attn" {
                    "attn"
                } else {
                    "ffn"
                },
                fatal: false,
                value: 0.0,
                limit: 0.0,
                figures: json!({}),
            };
            let listed = vector[side]["violations"].as_array().unwrap();
            listed.iter().map(violation).collect()
        };
        let (before, now) = (violations("baseline"), violations("subject"));
        let caps = |side: &str| vector[side]["caps_applied"].as_u64().unwrap() as usize;
        let moved = movement::between(
            &Counted {
                caps: caps("baseline"),
                violations: &before,
            },
            &Counted {
                caps: caps("subject"),
                violations: &now,
            },
        );
        for (key, expected) in vector["expected"].as_object().unwrap() {
            assert_eq!(moved[key], *expected, "{} {key}", vector["id"]);
        }
    }
}

/// A run that is the record of an earlier verdict.
fn recorded(record: &Json) -> Table {
    Table::new(vec![Row {
        scope: "model".to_owned(),
        quantity: "record.spectral".to_owned(),
        value: Value::Text(record.to_string()),
    }])
}

#[test]
fn calibration() {
    let file = vectors("preset");
    for vector in of(&file, "calibrate_spectral") {
        let records = vector["records"].as_array().unwrap().iter();
        let runs: Vec<Table> = records
            .map(|record| recorded(&record["spectral"]))
            .collect();
        let fitted = Spectral::calibrate(&Policy::default(), &runs).unwrap();
        for (family, cap) in vector["expected"]["family_caps"].as_object().unwrap() {
            let kappa = fitted.family_caps[family].kappa;
            assert_eq!(json!(kappa), cap["kappa"], "{} {family}", vector["id"]);
        }
        let stated = &vector["expected"]["summary"];
        for (key, found) in [
            ("sigma_quantile", json!(fitted.sigma_quantile)),
            ("deadband", json!(fitted.deadband)),
            ("max_caps", json!(fitted.max_caps)),
        ] {
            if !stated[key].is_null() {
                assert_eq!(found, stated[key], "{key}");
            }
        }
    }
    for vector in of(&file, "allocate_budget") {
        let counts = vector["counts"].as_object().unwrap().iter();
        let counts =
            counts.map(|(family, count)| (family.as_str(), count.as_u64().unwrap() as usize));
        let budget = vector["budget"].as_u64().unwrap() as usize;
        let shares = calibrate::allocate(&counts.collect(), budget);
        assert_eq!(json!(shares), vector["expected"], "{}", vector["id"]);
    }
    for vector in of(&file, "edit_type_max_caps") {
        let policy = json!({
            "max_caps": vector["base_max_caps"],
            "degeneracy": {"enabled": false},
            "derivation": {"edit_type": vector["edit_type"]},
        });
        let policy: Policy = json::from_value(policy).unwrap();
        let fitted = Spectral::calibrate(&policy, &[stock(&[])]).unwrap();
        assert_eq!(
            json!(fitted.max_caps),
            vector["expected"],
            "{}",
            vector["id"]
        );
    }
}

#[test]
fn calibration_on_measurements() {
    let policy: Policy = json::from_str(
        r#"{"degeneracy": {"enabled": false}, "family_caps": {"attn": {"kappa": 3.018}, "ffn": {"kappa": 3.849}},
            "derivation": {"runs": 2}}"#,
    )
    .unwrap();
    let run = stock(&[("model.layers.0.self_attn.q_proj", 9.0)]);
    let fitted = Spectral::calibrate(&policy, &[run.clone(), run]).unwrap();
    // The outlier lies within attention's share of the budget, so the tier's limit stays, with the margin.
    assert_eq!(fitted.family_caps["attn"].kappa, Some(3.068));
    assert_eq!(fitted.family_caps["ffn"].kappa, Some(3.899));
    assert!(fitted.derivation.is_none());
    let explicit = Policy {
        derivation: json::from_str(r#"{"edit_type": "quant_rtn", "edit_max_caps": 7}"#).unwrap(),
        ..policy
    };
    assert_eq!(
        Spectral::calibrate(&explicit, &[stock(&[])])
            .unwrap()
            .max_caps,
        7
    );
}

fn refusal(result: Result<impl std::fmt::Debug>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn bad_policies_are_refused() {
    let table = stock(&[]);
    let refused = |policy: &str| refusal(bench::judge::<Spectral>(policy, &table, &table));
    assert!(refused(r#"{"max_cap": 5}"#).contains("unknown field `max_cap`"));
    assert!(refused(r#"{"degeneracy": {"enable": true}}"#).contains("unknown field `enable`"));
    assert!(
        refused(r#"{"reference": "mother"}"#)
            .contains("unknown variant `mother`, expected `subject` or `baseline`")
    );
    assert!(
        refused(r#"{"sigma_quantile": 1.5}"#)
            .contains("`sigma_quantile` is 1.5, it must be between 0 and 1")
    );
    assert!(refused(r#"{"multiple_testing": {"alpha": 0}}"#).contains("multiple_testing.alpha"));
    assert!(refused(r#"{"estimator": {"iters": 0}}"#).contains("`estimator.iters` is 0"));
    assert!(
        refused(r#"{"family_caps": {"ffn": {"kappa": -1}}}"#).contains("family_caps.ffn.kappa")
    );
}

#[test]
fn bad_tables_are_refused() {
    let good = table(&toy::weights(&vectors("spectral")));
    let refused = |subject: &Table| refusal(bench::judge::<Spectral>("{}", &good, subject));
    assert!(refused(&Table::default()).contains("no `weight.sigma.ones.4` of any module in scope"));
    let without = |quantity: &str| {
        let rows = good.rows().iter().filter(|row| row.quantity != quantity);
        Table::new(rows.cloned().collect())
    };
    assert!(
        refused(&without("weight.row_norms")).starts_with(
            "failed: subject: the table has no `weight.row_norms` of `lm_head.weight`"
        )
    );
    let with = |quantity: &str, value: Value| {
        let mut rows = good.rows().to_vec();
        let row = rows
            .iter_mut()
            .find(|row| row.quantity == quantity)
            .unwrap();
        row.value = value;
        Table::new(rows)
    };
    assert!(
        refused(&with("weight.sigma.ones.4", Value::Number(f64::NAN)))
            .contains("is NaN, which no matrix has")
    );
    assert!(refused(&with("weight.frobenius_sq", Value::Number(f64::INFINITY))).contains("is inf"));
    assert!(
        refused(&with("weight.row_norms", Value::Vector(vec![1.0])))
            .contains("[smallest, median, largest]")
    );
    assert!(
        refused(&with("weight.sigma.ones.4", Value::Text("2".into())))
            .contains("must be a number, found a text")
    );
    let asked: Policy = json::from_str(r#"{"derivation": {"runs": 5}}"#).unwrap();
    assert!(
        refusal(Spectral::calibrate(&asked, std::slice::from_ref(&good)))
            .contains("5 calibration runs were asked for and 1 are there")
    );
    let record = recorded(&json!({"final_z_scores": {"a": 1.0}}));
    assert!(
        refusal(Spectral::calibrate(&Policy::default(), &[record])).contains("no family for `a`")
    );
}

#[test]
fn a_lost_module_fails_and_a_new_one_is_measured_by_the_quantile() {
    let few = stock(&[]);
    let more = stock(&[("lm_head", 2.0)]);
    let lost = judge(PLAIN, &more, &few);
    assert_eq!(lost.status, Status::Fail);
    assert_eq!(lost.findings[0].code, "module_missing");
    let gained = judge(PLAIN, &few, &more);
    assert_eq!(gained.status, Status::Pass);
    let against = r#"{"degeneracy": {"enabled": false}, "reference": "baseline"}"#;
    let z = judge(against, &few, &more).details["final_z_scores"]["lm_head"].clone();
    // The family is empty, the 95 % quantile of all is 2.04, and 2 lies within the deadband of it.
    assert_eq!(z, json!(0.0));
}

#[test]
fn ratios_to_the_baseline_stand_beside_the_references_words() {
    let subject = stock(&[("model.layers.7.mlp.up_proj", 4.04)]);
    let details = judge(PLAIN, &stock(&[]), &subject).details;
    let ratio = &details["ours"]["sigma_ratio"];
    assert_eq!(
        ratio["largest"]["module"],
        json!("model.layers.7.mlp.up_proj")
    );
    near(
        "largest",
        &ratio["largest"]["ratio"],
        &json!(4.04 / 2.02),
        1e-12,
    );
    assert_eq!(ratio["median"], json!(1.0));
    assert_eq!(details["summary"]["max_sigma_ratio"], json!(4.04 / 2.04));
}
