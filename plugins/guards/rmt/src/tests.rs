//! The judge against the reference's vectors, on tables that hold what the host would measure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use packhost_sdk::json;
use packhost_sdk::{Row, Value, bench};

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

fn row(scope: &str, quantity: &str, values: &[f64]) -> Row {
    Row {
        scope: scope.to_owned(),
        quantity: quantity.to_owned(),
        value: Value::Vector(values.to_vec()),
    }
}

/// A table of one window, in every set of windows.
fn table<'a>(modules: impl IntoIterator<Item = (&'a str, f64)> + Clone) -> Table {
    let of_set = |set: &str| {
        let tokens = row("model", &format!("activation.tokens.{set}"), &[5.0]);
        let quantity = format!("activation.edge_risk.{set}");
        let risks = modules.clone().into_iter();
        let risks = risks.map(|(module, risk)| row(module, &quantity, &[risk]));
        std::iter::once(tokens).chain(risks).collect::<Vec<_>>()
    };
    Table::new(["even8", "even64"].into_iter().flat_map(of_set).collect())
}

fn modules(value: &Json) -> Vec<(&str, f64)> {
    let modules = value.as_object().unwrap().iter();
    modules
        .map(|(module, risk)| (module.as_str(), risk.as_f64().unwrap()))
        .collect()
}

fn judge(policy: &Json, baseline: &Table, subject: &Table) -> Verdict {
    match bench::judge::<Rmt>(&policy.to_string(), baseline, subject).unwrap() {
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
    let file = vectors("rmt");
    for vector in of(&file, "rmt_guard") {
        let expected = &vector["expected"];
        let policy = json!({"reference": "baseline", "epsilon_default": 0.01,
            "epsilon_by_family": {"attn": 0.01, "ffn": 0.01, "embed": 0.01, "other": 0.01}});
        let base = table(modules(&expected["base_by_module"]));
        let subject = table(modules(&expected["cur_by_module"]));
        let details = judge(&policy, &base, &subject).details;
        for key in ["passed", "decision"] {
            assert_eq!(details[key], expected[key], "{}", vector["id"]);
        }
        for (key, families) in [
            ("edge_risk_by_family_base", "base"),
            ("edge_risk_by_family", "cur"),
        ] {
            for (family, risk) in expected[families].as_object().unwrap() {
                near(family, &details[key][family], risk, 1e-12);
            }
        }
        let found = details["epsilon_violations"].as_array().unwrap();
        let wanted = expected["violations"].as_array().unwrap();
        assert_eq!(found.len(), wanted.len(), "{}", vector["id"]);
        for (found, wanted) in found.iter().zip(wanted) {
            assert_eq!(found["family"], wanted["family"]);
            near("delta", &found["delta"], &wanted["delta"], 1e-9);
        }
    }
}

#[test]
fn accepted_growth() {
    let file = vectors("rmt");
    for vector in of(&file, "epsilon_rule") {
        // Families as modules of one each, beside one that never moves so that no table is empty; no module's name says
        // `other`, so that family's value of nothing is left out.
        let with = |key: &str| {
            let families = modules(&vector[key]).into_iter();
            let mut modules: Vec<(&str, f64)> =
                families.filter(|(family, _)| *family != "other").collect();
            modules.push(("lm_head", 1.0));
            table(modules)
        };
        let policy = json!({"reference": "baseline", "epsilon_by_family": vector["epsilon"]});
        let verdict = judge(&policy, &with("base"), &with("current"));
        let expected = &vector["expected"];
        assert_eq!(
            verdict.details["stable"], expected["stable"],
            "{}",
            vector["id"]
        );
        let found = verdict.details["epsilon_violations"].as_array().unwrap();
        let wanted = expected["violations"].as_array().unwrap();
        assert_eq!(found.len(), wanted.len(), "{}", vector["id"]);
        for (found, wanted) in found.iter().zip(wanted) {
            assert_eq!(found["family"], wanted["family"]);
            for key in ["edge_base", "edge_cur", "delta", "allowed", "epsilon"] {
                near(key, &found[key], &wanted[key], 1e-12);
            }
        }
    }
}

#[test]
fn weights_by_the_older_rule() {
    let sigma = |sigma: &Json| {
        let mut rows = table([("a.mlp", 1.0)]).rows().to_vec();
        rows.push(Row {
            scope: "a.mlp.weight".to_owned(),
            quantity: SIGMA.to_owned(),
            value: Value::Number(sigma.as_f64().unwrap()),
        });
        Table::new(rows)
    };
    let file = vectors("rmt");
    for vector in of(&file, "weight_rule") {
        let policy = json!({"deadband": vector["deadband"], "margin": vector["margin"]});
        let verdict = judge(
            &policy,
            &sigma(&vector["sigma_base"]),
            &sigma(&vector["sigma"]),
        );
        let (found, expected) = (&verdict.details["weight_outliers"], &vector["expected"]);
        assert_eq!(found["weights"], json!(1));
        assert_eq!(
            found["count"] == json!(1),
            expected["outlier"] == json!(true)
        );
        if expected["outlier"] == json!(true) {
            assert_eq!(found["outliers"][0]["module"], json!("a.mlp"));
            near(
                "ratio",
                &found["outliers"][0]["ratio"],
                &expected["ratio"],
                1e-12,
            );
        }
        assert_eq!(verdict.status, Status::Pass, "it decides nothing");
    }
}

#[test]
fn probe() {
    let file = vectors("verdict");
    for vector in of(&file, "rmt_probe") {
        let policy = json!({"probe": true, "epsilon_by_family": vector["epsilon"]});
        let base = table(modules(&vector["base_by_module"]));
        let subject = table(modules(&vector["cur_by_module"]));
        for module in modules(&vector["base_by_module"]) {
            assert_eq!(json!(risks::family(module.0)), vector["family"][module.0]);
        }
        let verdict = judge(&policy, &base, &subject);
        // The gate holds the subject against itself.
        assert_eq!(verdict.status, Status::Pass);
        let (probe, expected) = (&verdict.details["probe"], &vector["expected"]);
        let id = vector["id"].as_str().unwrap();
        for key in ["stable", "stable_guard"] {
            assert_eq!(probe[key], expected[key], "{id} {key}");
        }
        for (key, families) in [
            ("edge_risk_by_family_base", "edge_base"),
            ("edge_risk_by_family", "edge_cur"),
        ] {
            for (family, risk) in expected[families].as_object().unwrap() {
                near(id, &probe[key][family], risk, 1e-12);
            }
        }
        let found = probe["epsilon_violations"].as_array().unwrap();
        let wanted = expected["epsilon_violations"].as_array().unwrap();
        assert_eq!(found.len(), wanted.len(), "{id}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert_eq!(
                (&found["family"], &found["module"]),
                (&wanted["family"], &wanted["module"])
            );
            near(id, &found["delta"], &wanted["delta"], 1e-12);
            near(id, &found["allowed"], &wanted["allowed"], 1e-12);
        }
        // The movement block makes the same comparison on the gate's windows.
        assert_eq!(
            verdict.details["movement"]["against_baseline"]["stable"], expected["stable"],
            "{id}"
        );
    }
}

#[test]
fn calibration() {
    let file = vectors("preset");
    for vector in of(&file, "calibrate_rmt") {
        let quantile = if vector["tier"] == "conservative" {
            0.95
        } else {
            0.90
        };
        let existing = &vector["existing_epsilon"];
        let policy = json!({"epsilon_default": existing, "epsilon_by_family": {"ffn": existing}, "derivation": {"quantile": quantile}});
        let policy: Policy = json::from_value(policy).unwrap();
        let growths = vector["growth_by_run"]["ffn"].as_array().unwrap().iter();
        let runs: Vec<Table> = growths
            .map(|growth| {
                let record = json!({
                    "edge_risk_by_family_base": {"ffn": 1.0},
                    "edge_risk_by_family": {"ffn": 1.0 + growth.as_f64().unwrap()},
                    "epsilon_by_family": {"ffn": existing},
                });
                Table::new(vec![Row {
                    scope: "model".to_owned(),
                    quantity: "record.rmt".to_owned(),
                    value: Value::Text(record.to_string()),
                }])
            })
            .collect();
        let fitted = Rmt::calibrate(&policy, &runs).unwrap();
        assert_eq!(
            json!(fitted.epsilon_by_family),
            vector["expected"],
            "{}",
            vector["id"]
        );
    }
    // What is measured grows by nothing against itself.
    let run = table([("model.layers.0.mlp.up_proj", 3.0)]);
    let policy: Policy = json::from_str(r#"{"derivation": {"runs": 2}}"#).unwrap();
    let fitted = Rmt::calibrate(&policy, &[run.clone(), run]).unwrap();
    assert_eq!(fitted, Policy::default());
}

#[test]
fn families_by_name() {
    for (module, expected) in [
        ("model.embed_tokens", "embed"),
        ("transformer.wpe", "embed"),
        ("model.layers.0.self_attn.q_proj", "attn"),
        ("model.layers.0.block_sparse_moe.gate", "ffn"),
        ("model.layers.0.block_sparse_moe.experts.3.w2", "ffn"),
        ("transformer.h.0.mlp.c_fc", "ffn"),
        ("lm_head", "other"),
    ] {
        assert_eq!(risks::family(module), expected, "{module}");
    }
}

#[test]
fn windows_are_weighted_and_rejected_ones_left_out() {
    let rows = vec![
        row("model", "activation.tokens.even8", &[1.0, 3.0, 100.0]),
        row("a.mlp", "activation.edge_risk.even8", &[2.0, 4.0, f64::NAN]),
        row("b.mlp", "activation.edge_risk.even8", &[f64::NAN; 3]),
    ];
    let subject = Table::new(rows);
    let verdict = judge(&json!({}), &subject, &subject);
    let details = &verdict.details;
    assert_eq!(details["edge_risk_by_module"], json!({"a.mlp": 3.5}));
    assert_eq!(details["modules_rejected"], json!(["b.mlp"]));
    assert_eq!(details["token_weight_total"], json!(104.0));
    assert_eq!(verdict.status, Status::Pass);
    // Not one output was finite: that is no pass.
    let nothing = Table::new(vec![
        row("model", "activation.tokens.even8", &[1.0]),
        row("a.mlp", "activation.edge_risk.even8", &[f64::NAN]),
    ]);
    let verdict = judge(&json!({}), &subject, &nothing);
    assert_eq!(verdict.status, Status::Fail);
    assert_eq!(
        verdict.findings[0].message,
        "no output of any of 1 modules was finite"
    );
}

#[test]
fn a_module_without_a_value_warns() {
    let both = [("a.mlp", 1.0), ("b.mlp", 1.0)];
    let verdict = judge(&json!({}), &table(both), &table([both[0]]));
    assert_eq!(verdict.status, Status::Warn);
    assert_eq!(verdict.findings[0].code, "module_not_measured");
    assert_eq!(verdict.findings[0].scope, "b.mlp");
    assert_eq!(
        verdict.details["passed"],
        json!(true),
        "the reference counts it as 0"
    );
}

#[test]
fn what_is_asked_for() {
    let plan = |policy: &str| -> Vec<(String, String)> {
        let requests = Rmt::plan(&json::from_str(policy).unwrap(), &ModelInfo::default()).unwrap();
        requests
            .into_iter()
            .map(|request| (request.quantity, request.scope))
            .collect()
    };
    let usual = plan("{}");
    assert_eq!(usual[0], ("activation.tokens.even8".into(), "model".into()));
    assert_eq!(
        usual[1],
        ("activation.edge_risk.even8".into(), "role:embedding".into())
    );
    assert_eq!(usual.len(), 1 + 2 * ROLES.len());
    assert_eq!(
        usual[1 + ROLES.len()],
        ("weight.sigma.ones.4".into(), "role:embedding".into())
    );
    assert!(
        plan(r#"{"probe": true}"#).contains(&("activation.tokens.even64".into(), "model".into()))
    );
    let last = r#"{"activation_sampling": {"windows": {"count": 4, "indices_policy": "last"}}}"#;
    assert_eq!(plan(last)[0].0, "activation.tokens.last4");
}

#[test]
fn bad_policies_and_tables_are_refused() {
    let good = table([("a.mlp", 1.0)]);
    let refused = |policy: &str, subject: &Table| {
        bench::judge::<Rmt>(policy, &good, subject)
            .unwrap_err()
            .to_string()
    };
    assert!(refused(r#"{"epsilon": 1}"#, &good).contains("unknown field `epsilon`"));
    assert!(refused(r#"{"reference": "x"}"#, &good).contains("unknown variant `x`"));
    assert!(
        refused(r#"{"estimator": {"iters": 5}}"#, &good)
            .contains("edge risks are measured in no other way")
    );
    assert!(
        refused(r#"{"epsilon_by_family": {"ffn": -0.1}}"#, &good)
            .contains("`epsilon_by_family.ffn` is -0.1")
    );
    assert!(refused(r#"{"probe_windows": 0}"#, &good).contains("`probe_windows` is 0"));
    assert!(
        refused("{}", &Table::default()).contains("no `activation.edge_risk.even8` of any module")
    );
    let wrong = |risks: &[f64]| {
        Table::new(vec![
            row("model", "activation.tokens.even8", &[1.0]),
            row("a.mlp", "activation.edge_risk.even8", risks),
        ])
    };
    assert!(
        refused("{}", &wrong(&[1.0, 2.0]))
            .contains("has 2 windows and `activation.tokens.even8` has 1")
    );
    assert!(refused("{}", &wrong(&[f64::INFINITY])).contains("holds inf, which is no edge risk"));
    assert!(refused("{}", &wrong(&[-1.0])).contains("holds -1"));
    let only8 = Table::new(
        good.rows()
            .iter()
            .filter(|row| row.quantity.ends_with("even8"))
            .cloned()
            .collect(),
    );
    assert!(
        refused(r#"{"probe": true}"#, &only8)
            .contains("`activation.edge_risk.even64` of any module, which the probe compares")
    );
    // A policy that demands activations has a verdict for their absence.
    let verdict = judge(
        &json!({"activation_required": true}),
        &good,
        &Table::default(),
    );
    assert_eq!(verdict.status, Status::Fail);
    assert_eq!(verdict.details["reason"], json!("activation_required"));
    let asked: Policy = json::from_str(r#"{"derivation": {"runs": 5}}"#).unwrap();
    let few = Rmt::calibrate(&asked, &[good]).unwrap_err().to_string();
    assert!(few.contains("5 calibration runs were asked for and 1 are there"));
}

#[test]
fn outlying_singular_values_are_counted_when_asked_for() {
    let policy: Policy = json::from_value(json!({"count_outliers": true})).unwrap();
    let quantity = "activation.outliers.even8.1650";
    assert_eq!(policy.outlier_count(), quantity);
    let asks = |policy: &Policy| {
        let plan = Rmt::plan(policy, &ModelInfo::default()).unwrap();
        plan.iter().any(|request| request.quantity == quantity)
    };
    assert!(asks(&policy) && !asks(&Policy::default()));
    let counts = |counts: [f64; 2]| {
        let mut rows = table([("a.mlp", 1.0)]).rows().to_vec();
        for (scope, counts) in [("a.mlp", counts.to_vec()), ("b.mlp", vec![0.0, 0.0])] {
            rows.push(Row {
                scope: scope.to_owned(),
                quantity: quantity.to_owned(),
                value: Value::Vector(counts),
            });
        }
        Table::new(rows)
    };
    let verdict = judge(
        &json!({"count_outliers": true}),
        &counts([1.0, 2.0]),
        &counts([f64::NAN, 4.0]),
    );
    assert_eq!(
        verdict.details["activation_outliers"],
        json!({"threshold": policy.outlying(), "modules": 2, "outliers": {"a.mlp": {"base": 2.0, "current": 4.0}}})
    );
    assert_eq!(verdict.status, Status::Pass);
}
