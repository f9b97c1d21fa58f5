//! `rmt`: edge risks, the epsilon rule, the probe, the older rule over weights, calibration.

use super::*;

/// Rows of one window in the gate's and the probe's set.
fn risks<'a>(modules: impl IntoIterator<Item = (&'a str, f64)> + Clone) -> Vec<Row> {
    let of_set = |set: &str| {
        let tokens = row(
            "model",
            &format!("activation.tokens.{set}"),
            Measured::Vector(vec![5.0]),
        );
        let quantity = format!("activation.edge_risk.{set}");
        let risks = modules.clone().into_iter();
        let risks =
            risks.map(|(module, risk)| row(module, &quantity, Measured::Vector(vec![risk])));
        std::iter::once(tokens).chain(risks).collect::<Vec<_>>()
    };
    ["even8", "even64"].into_iter().flat_map(of_set).collect()
}

fn entries(value: &Json) -> Vec<(&str, f64)> {
    let entries = value.as_object().unwrap().iter();
    entries
        .map(|(key, value)| (key.as_str(), value.as_f64().unwrap()))
        .collect()
}

#[test]
fn rmt_guard_rule_and_probe() {
    let Some(rmt) = guard("rmt") else {
        return;
    };
    let file = vectors("rmt");
    for vector in of(&file, "rmt_guard") {
        let expected = &vector["expected"];
        let policy = json!({"reference": "baseline", "epsilon_by_family": {"attn": 0.01, "ffn": 0.01, "embed": 0.01, "other": 0.01}});
        let baseline = risks(entries(&expected["base_by_module"]));
        let subject = risks(entries(&expected["cur_by_module"]));
        let (_, details) = judge(&rmt, &policy, &baseline, &subject);
        assert_eq!(
            details["decision"], expected["decision"],
            "{}",
            vector["id"]
        );
        for (key, families) in [
            ("edge_risk_by_family_base", "base"),
            ("edge_risk_by_family", "cur"),
        ] {
            for (family, risk) in expected[families].as_object().unwrap() {
                near(family, &details[key][family], risk, 1e-12);
            }
        }
    }
    for vector in of(&file, "epsilon_rule") {
        let with = |key: &str| {
            let families = entries(&vector[key]).into_iter();
            let mut modules: Vec<(&str, f64)> =
                families.filter(|(family, _)| *family != "other").collect();
            modules.push(("lm_head", 1.0));
            risks(modules)
        };
        let policy = json!({"reference": "baseline", "epsilon_by_family": vector["epsilon"]});
        let (_, details) = judge(&rmt, &policy, &with("base"), &with("current"));
        let (found, expected) = (
            &details["epsilon_violations"],
            &vector["expected"]["violations"],
        );
        assert_eq!(
            details["stable"], vector["expected"]["stable"],
            "{}",
            vector["id"]
        );
        let (found, expected) = (found.as_array().unwrap(), expected.as_array().unwrap());
        assert_eq!(found.len(), expected.len(), "{}", vector["id"]);
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found["family"], expected["family"]);
            for key in ["edge_base", "edge_cur", "delta", "allowed", "epsilon"] {
                near(key, &found[key], &expected[key], 1e-12);
            }
        }
    }
    for vector in of(&vectors("verdict"), "rmt_probe") {
        let policy = json!({"probe": true, "epsilon_by_family": vector["epsilon"]});
        let baseline = risks(entries(&vector["base_by_module"]));
        let subject = risks(entries(&vector["cur_by_module"]));
        let (_, details) = judge(&rmt, &policy, &baseline, &subject);
        let (probe, expected) = (&details["probe"], &vector["expected"]);
        assert_eq!(probe["stable"], expected["stable"], "{}", vector["id"]);
        assert_eq!(
            probe["stable_guard"], expected["stable_guard"],
            "{}",
            vector["id"]
        );
        for (family, risk) in expected["edge_base"].as_object().unwrap() {
            near(
                family,
                &probe["edge_risk_by_family_base"][family],
                risk,
                1e-12,
            );
            near(
                family,
                &probe["edge_risk_by_family"][family],
                &expected["edge_cur"][family],
                1e-12,
            );
        }
        let found = probe["epsilon_violations"].as_array().unwrap();
        let expected = expected["epsilon_violations"].as_array().unwrap();
        assert_eq!(found.len(), expected.len(), "{}", vector["id"]);
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found["module"], expected["module"]);
            near("delta", &found["delta"], &expected["delta"], 1e-12);
        }
    }
}

#[test]
fn rmt_weights_by_the_older_rule() {
    let Some(rmt) = guard("rmt") else {
        return;
    };
    for vector in of(&vectors("rmt"), "weight_rule") {
        let with = |key: &str| {
            let mut rows = risks([("lm_head", 1.0)]);
            rows.extend(sigmas([("lm_head", vector[key].as_f64().unwrap())]));
            rows
        };
        let policy = json!({"deadband": vector["deadband"], "margin": vector["margin"]});
        let (_, details) = judge(&rmt, &policy, &with("sigma_base"), &with("sigma"));
        let (found, expected) = (&details["weight_outliers"], &vector["expected"]);
        let is_outlier = expected["outlier"].as_bool().unwrap();
        assert_eq!(
            found["count"],
            json!(usize::from(is_outlier)),
            "{}",
            vector["id"]
        );
        if is_outlier {
            near(
                "ratio",
                &found["outliers"][0]["ratio"],
                &expected["ratio"],
                1e-12,
            );
        }
    }
}

#[test]
fn rmt_calibration() {
    let Some(rmt) = guard("rmt") else {
        return;
    };
    for vector in of(&vectors("preset"), "calibrate_rmt") {
        let quantile = if vector["tier"] == "conservative" {
            0.95
        } else {
            0.90
        };
        let existing = &vector["existing_epsilon"];
        let policy =
            json!({"epsilon_by_family": {"ffn": existing}, "derivation": {"quantile": quantile}});
        let growths = numbers(&vector["growth_by_run"]["ffn"]).into_iter();
        let runs: Vec<Vec<Row>> = growths
            .map(|growth| {
                let record = json!({
                    "edge_risk_by_family_base": {"ffn": 1.0},
                    "edge_risk_by_family": {"ffn": 1.0 + growth},
                });
                recorded("rmt", &record)
            })
            .collect();
        let fitted = calibrate(&rmt, &policy, &runs);
        assert_eq!(
            fitted["epsilon_by_family"], vector["expected"],
            "{}",
            vector["id"]
        );
    }
}
