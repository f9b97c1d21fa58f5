//! Resolved policies against the reference's vectors, and what overrides may say.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use packhost_measure::tiers::{MetricOptions, Policies, PolicyInputs, Profile, Tier};
use serde_json::{Value, json};

fn resolve(inputs: PolicyInputs<'_>) -> Policies {
    Policies::resolve(&inputs).unwrap()
}

/// Every key of `expected` is in `got` with an equal value.
fn contains(path: &str, got: &Value, expected: &Value) {
    match expected {
        Value::Object(map) => {
            for (key, value) in map {
                contains(&format!("{path}.{key}"), &got[key], value);
            }
        }
        Value::Number(number) => {
            assert_eq!(got.as_f64(), number.as_f64(), "{path}");
        }
        Value::Array(items) => {
            assert_eq!(got.as_array().map(Vec::len), Some(items.len()), "{path}");
            for (position, item) in items.iter().enumerate() {
                contains(&format!("{path}[{position}]"), &got[position], item);
            }
        }
        other => assert_eq!(got, other, "{path}"),
    }
}

#[test]
fn vectors_hold() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/vectors/guards/tiers.json"
    );
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).expect(path)).unwrap();
    let list = file["vectors"].as_array().unwrap();
    assert_eq!(list.len(), 6);
    for vector in list {
        let id = vector["id"].as_str().unwrap();
        let policies = resolve(PolicyInputs {
            tier: Tier::from_name(vector["tier"].as_str().unwrap()).unwrap(),
            profile: Profile::from_name(vector["profile"].as_str().unwrap_or("dev")).unwrap(),
            edit: vector["edit"].as_str(),
            overrides: vector.get("override"),
        });
        let (got, expected) = match vector["fn"].as_str().unwrap() {
            "resolve" => (
                Value::Object(policies.sections().clone()),
                &vector["expected"],
            ),
            "resolve_rmt" => (policies.section("rmt").clone(), &vector["expected"]),
            "resolve_spectral" => (policies.section("spectral").clone(), &vector["expected"]),
            "resolve_variance" => (policies.section("variance").clone(), &vector["expected"]),
            other => panic!("unknown function {other}"),
        };
        contains(id, &got, expected);
        if vector["fn"] == "resolve" {
            // Nothing more than the reference has, in any of its sections.
            for (section, keys) in expected.as_object().unwrap() {
                let extra: Vec<&String> = got[section]
                    .as_object()
                    .unwrap()
                    .keys()
                    .filter(|key| !keys.as_object().unwrap().contains_key(*key))
                    .collect();
                assert!(extra.is_empty(), "{id} {section}: {extra:?}");
            }
        }
    }
}

#[test]
fn unknown_overrides_are_refused() {
    for (overrides, reason) in [
        (json!({"spectrall": {}}), "unknown section `spectrall`"),
        (
            json!({"spectral": {"max_cap": 1}}),
            "unknown key `spectral.max_cap`",
        ),
        (
            json!({"metrics": {"pm_ratio": {"limit": 1}}}),
            "unknown key `metrics.pm_ratio.limit`",
        ),
        (
            json!({"metrics": {"pm_ratio": 1}}),
            "`metrics.pm_ratio` must be an object",
        ),
        (
            json!({"primary_metric": {"band": {}}}),
            "unknown key `primary_metric.band`",
        ),
        (json!({"rmt": 3}), "`rmt` must be an object"),
        (json!([]), "must be an object"),
    ] {
        let inputs = PolicyInputs {
            overrides: Some(&overrides),
            ..PolicyInputs::default()
        };
        let error = Policies::resolve(&inputs).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert!(
        Tier::from_name("strict")
            .unwrap_err()
            .to_string()
            .contains("no tier `strict`")
    );
    assert!(
        Profile::from_name("fast")
            .unwrap_err()
            .to_string()
            .contains("no profile `fast`")
    );
}

#[test]
fn policy_of_the_primary_metric() {
    let options = MetricOptions {
        seed: 42,
        replicates: 1000,
        alpha: 0.05,
    };
    let overrides = json!({
        "primary_metric": {"drift_band": {"min": 0.8, "max": 1.2}},
        "metrics": {"pm_ratio": {"min_tokens": 100}},
        "spectral": {"family_caps": {"router": {"kappa": 2.0}}},
    });
    let inputs = PolicyInputs {
        profile: Profile::CiCpu,
        overrides: Some(&overrides),
        ..PolicyInputs::default()
    };
    let policies = resolve(inputs);
    let policy = policies.for_guard("primary-metric", &options);
    assert_eq!(policy["pm_ratio"]["min_tokens"], 100);
    assert_eq!(policy["pm_ratio"]["ratio_limit_base"], 1.1);
    assert_eq!(policy["drift_band"], json!({"min": 0.8, "max": 1.2}));
    assert_eq!(
        policy["acceptance_range"],
        json!({"min": 0.95, "max": 1.15})
    );
    assert_eq!(policy["coverage"]["final"], 180);
    assert_eq!(policy["bootstrap"]["seed"], 42);
    assert_eq!(
        policies.overridden(),
        [
            "metrics.pm_ratio.min_tokens",
            "primary_metric.drift_band.max",
            "primary_metric.drift_band.min",
            "spectral.family_caps.router.kappa"
        ]
    );
    assert_eq!(
        policies.for_guard("invariants", &options),
        json!({"strict_mode": false, "on_fail": "monitor"})
    );
    assert_eq!(policies.for_guard("acme.other", &options), json!({}));
    assert_eq!(policies.digest().len(), 16);
    assert_ne!(policies.digest(), resolve(PolicyInputs::default()).digest());
}

#[test]
fn coverage_is_demanded_in_ci_and_release() {
    let floor = Tier::Conservative.coverage();
    assert!(
        floor
            .enforce(Tier::Conservative, Profile::Dev, 0, 0, 0)
            .is_ok()
    );
    assert!(
        floor
            .enforce(Tier::Conservative, Profile::Ci, 220, 220, 1500)
            .is_ok()
    );
    let error = floor.enforce(Tier::Conservative, Profile::Release, 220, 219, 1500);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("final windows 219, required 220"), "{error}");
}

#[test]
fn sections_of_our_own_guards_are_handed_on() {
    let overrides = json!({"weight_shift": {"limits": {"sparsity": {"fail": 0.5}}}});
    let inputs = PolicyInputs {
        overrides: Some(&overrides),
        ..PolicyInputs::default()
    };
    let policies = Policies::resolve(&inputs).unwrap();
    let options = MetricOptions {
        seed: 42,
        replicates: 100,
        alpha: 0.05,
    };
    let policy = |id| policies.for_guard(id, &options);
    assert_eq!(policy("weight-shift"), overrides["weight_shift"]);
    assert_eq!(policy("activation-shift"), json!({}));
    let path = "weight_shift.limits.sparsity.fail".to_owned();
    assert!(policies.overridden().contains(&path));
}
