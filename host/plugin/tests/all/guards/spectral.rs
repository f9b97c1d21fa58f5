//! `spectral`: scores, families, multiple testing, calibration, movement.

use super::*;

fn weights(modules: &BTreeMap<String, toy::Matrix>) -> Vec<Row> {
    let rows = modules.iter().flat_map(|(module, matrix)| {
        let (tensor, figures) = (format!("{module}.weight"), toy::figures(matrix));
        [
            row(
                &tensor,
                "weight.sigma.ones.4",
                Measured::Number(figures.sigma),
            ),
            row(
                &tensor,
                "weight.frobenius_sq",
                Measured::Number(figures.frobenius_sq),
            ),
            row(&tensor, "weight.row_norms", Measured::Vector(figures.rows)),
            row(
                &tensor,
                "weight.column_norms",
                Measured::Vector(figures.columns),
            ),
        ]
    });
    rows.collect()
}

#[test]
fn spectral_whole_guard() {
    let Some(spectral) = guard("spectral") else {
        return;
    };
    let file = vectors("spectral");
    let modules = toy::weights(&file);
    let baseline = weights(&modules);
    for vector in of(&file, "spectral_guard") {
        let id = vector["id"].as_str().unwrap();
        let mut policy = vector["policy"].clone();
        for (_, cap) in policy["family_caps"].as_object_mut().unwrap() {
            *cap = json!({"kappa": cap});
        }
        policy["reference"] = json!("baseline");
        let subject = weights(&toy::edited(&modules, vector["edit"].as_str().unwrap()));
        let (verdict, details) = judge(&spectral, &policy, &baseline, &subject);
        let (expected, metrics) = (&vector["expected"], &details["metrics"]);
        let selection = &metrics["multiple_testing_selection"];
        for (found, key) in [
            (&details["passed"], "passed"),
            (&details["decision"], "decision"),
            (&metrics["caps_applied"], "caps_applied"),
            (&metrics["caps_exceeded"], "caps_exceeded"),
            (&metrics["candidate_budgeted_violations"], "candidates"),
            (&metrics["fatal_violations"], "fatal"),
            (&metrics["modules_checked"], "modules_checked"),
            (&selection["families_selected"], "families_selected"),
        ] {
            assert_eq!(*found, expected[key], "{id} {key}");
        }
        for (module, z) in expected["z"].as_object().unwrap() {
            near(id, &details["final_z_scores"][module], z, 2e-4);
        }
        let failed = expected["passed"] == json!(false);
        assert_eq!(verdict.status == Status::Fail, failed, "{id}");
        let wanted = expected["violations"].as_array().unwrap().iter();
        let wanted = wanted.filter(|violation| violation["selected"] != json!(false));
        let kinds = |violations: &mut dyn Iterator<Item = &Json>| {
            let mut kinds: Vec<String> = violations
                .map(|violation| format!("{} {}", violation["type"], violation["module"]))
                .collect();
            kinds.sort();
            kinds
        };
        let mut found = details["violations"].as_array().unwrap().iter();
        assert_eq!(kinds(&mut found), kinds(&mut wanted.into_iter()), "{id}");
    }
}

#[test]
fn spectral_scores_p_values_and_families() {
    let Some(spectral) = guard("spectral") else {
        return;
    };
    let file = vectors("spectral");
    let vector = of(&file, "z_scores")[0];
    let read = |key: &str| {
        let modules = vector[key].as_object().unwrap().iter();
        sigmas(modules.map(|(module, sigma)| (module.as_str(), sigma.as_f64().unwrap())))
    };
    let (baseline, current) = (read("baseline_sigma"), read("current_sigma"));
    let policy = json!({"deadband": vector["deadband"], "reference": "baseline", "degeneracy": {"enabled": false}});
    for (subject, key) in [(&baseline, "z_baseline"), (&current, "z_current")] {
        let (_, details) = judge(&spectral, &policy, &baseline, subject);
        for (module, z) in vector["expected"][key].as_object().unwrap() {
            near(module, &details["final_z_scores"][module], z, 1e-9);
        }
    }
    // A family without spread: one module whose value changes.
    for vector in of(&file, "z_single_no_spread") {
        let number = |key: &str| vector[key].as_f64().unwrap();
        let policy = json!({"deadband": vector["deadband"], "reference": "baseline", "degeneracy": {"enabled": false}});
        let baseline = sigmas([("lm_head", number("reference"))]);
        let (_, details) = judge(
            &spectral,
            &policy,
            &baseline,
            &sigmas([("lm_head", number("sigma"))]),
        );
        near(
            "z",
            &details["final_z_scores"]["lm_head"],
            &vector["expected"],
            1e-12,
        );
    }
    // With a deadband of 1 a family's only module has its relative change as its score.
    for vector in of(&file, "p_value") {
        let z = vector["z"].as_f64().unwrap();
        if z <= 1.0 {
            continue; // no singular value is that far below another, and a change within the deadband is no candidate
        }
        let policy = json!({"deadband": 1.0, "reference": "baseline", "degeneracy": {"enabled": false}, "family_caps": {"other": {"kappa": 0.0}}});
        let (baseline, subject) = (sigmas([("lm_head", 1.0)]), sigmas([("lm_head", 1.0 + z)]));
        let (_, details) = judge(&spectral, &policy, &baseline, &subject);
        let p = &details["metrics"]["multiple_testing_selection"]["family_pvalues"]["other"];
        near(
            "p",
            p,
            &vector["expected"],
            1e-9 * vector["expected"].as_f64().unwrap(),
        );
    }
    selects_families(&spectral, &file);
}

/// Families are tested by p-values, and a table states them through scores: in a family of one module, which has no spread,
/// the score is the relative change over the deadband.
fn selects_families(spectral: &GuardPlugin, file: &Json) {
    let modules = [
        ("ffn", "mlp"),
        ("attn", "attn"),
        ("embed", "embed"),
        ("other", "lm_head"),
        ("router", "router"),
    ];
    for vector in of(file, "multiple_testing") {
        let families: Vec<(&String, f64)> = vector["p"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(family, p)| (family, p.as_f64().unwrap()))
            .collect();
        // Families a to e of one vector stand for any.
        let module = |index: usize, family: &str| {
            let known = modules.iter().find(|(name, _)| *name == family);
            *known.unwrap_or(&modules[index])
        };
        for method in ["bh", "bonferroni"] {
            let policy = json!({
                "deadband": 0.01, "reference": "baseline", "degeneracy": {"enabled": false},
                "family_caps": {"other": {"kappa": 0.0}},
                "multiple_testing": {"method": method, "alpha": vector["alpha"], "m": vector["m"]},
            });
            let at = |(index, (family, p)): (usize, &(&String, f64))| {
                // A hair below the p-value, so that one at the limit stays on its side.
                let z = -packhost_stats::normal::quantile(p / 2.0 * (1.0 - 1e-9));
                (module(index, family).1, 1.0 + 0.01 * z)
            };
            let subject = sigmas(families.iter().enumerate().map(at));
            let base = families.iter().enumerate();
            let base = sigmas(base.map(|(index, (family, _))| (module(index, family).1, 1.0)));
            let (_, details) = judge(spectral, &policy, &base, &subject);
            let found = &details["metrics"]["multiple_testing_selection"]["families_selected"];
            let mut found: Vec<&str> = found
                .as_array()
                .unwrap()
                .iter()
                .map(|family| family.as_str().unwrap())
                .collect();
            found.sort_unstable();
            let selected = vector["expected"][method].as_array().unwrap();
            let mut expected: Vec<&str> = families
                .iter()
                .enumerate()
                .filter(|(_, (family, _))| selected.contains(&json!(family)))
                .map(|(index, (family, _))| module(index, family).0)
                .collect();
            expected.sort_unstable();
            assert_eq!(found, expected, "{} {method}", vector["id"]);
        }
    }
}

#[test]
fn spectral_calibration() {
    let Some(spectral) = guard("spectral") else {
        return;
    };
    let file = vectors("preset");
    for vector in of(&file, "calibrate_spectral") {
        let records = vector["records"].as_array().unwrap().iter();
        let runs: Vec<Vec<Row>> = records
            .map(|record| recorded("spectral", &record["spectral"]))
            .collect();
        let fitted = calibrate(&spectral, &json!({}), &runs);
        assert_eq!(
            fitted["family_caps"], vector["expected"]["family_caps"],
            "{}",
            vector["id"]
        );
    }
    // A budget's shares show in which score becomes the limit: scores 1 to n in each family, none of them equal.
    for vector in of(&file, "allocate_budget") {
        let (mut scores, mut families) = (serde_json::Map::new(), serde_json::Map::new());
        for (family, count) in vector["counts"].as_object().unwrap() {
            for place in 0..count.as_u64().unwrap() {
                let module = format!("{family}.{place}");
                scores.insert(module.clone(), json!(place + 1));
                families.insert(module, json!(family));
            }
        }
        let record = json!({"final_z_scores": scores, "module_family_map": families});
        let policy = json!({"derivation": {"budget": vector["budget"], "margin": 0.0}});
        let fitted = calibrate(&spectral, &policy, &[recorded("spectral", &record)]);
        for (family, share) in vector["expected"].as_object().unwrap() {
            let count = vector["counts"][family].as_u64().unwrap();
            let place = share.as_u64().unwrap().saturating_sub(1).min(count - 1);
            near(
                family,
                &fitted["family_caps"][family]["kappa"],
                &json!(count - place),
                0.0,
            );
        }
    }
    for vector in of(&file, "edit_type_max_caps") {
        let policy = json!({"max_caps": vector["base_max_caps"], "derivation": {"edit_type": vector["edit_type"]}});
        let fitted = calibrate(&spectral, &policy, &[recorded("spectral", &json!({}))]);
        assert_eq!(fitted["max_caps"], vector["expected"], "{}", vector["id"]);
    }
}

#[test]
fn spectral_movement() {
    let Some(spectral) = guard("spectral") else {
        return;
    };
    // The published modules over their families' limits; a stable rank cannot fall against the subject itself.
    for vector in of(&vectors("verdict"), "spectral_movement") {
        if vector["id"] == "movement_degeneracy_counts_only_in_delta" {
            continue;
        }
        let table = |side: &str| {
            let mut modules: BTreeMap<String, f64> = BTreeMap::new();
            for layer in 0..40 {
                for module in ["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"] {
                    let name = format!("model.layers.{layer}.{module}");
                    modules.insert(name, 2.0 + 0.01 * f64::from(layer % 5));
                }
            }
            for violation in vector[side]["violations"].as_array().unwrap() {
                modules.insert(violation["module"].as_str().unwrap().to_owned(), 9.0);
            }
            sigmas(
                modules
                    .iter()
                    .map(|(module, sigma)| (module.as_str(), *sigma)),
            )
        };
        let policy = json!({"degeneracy": {"enabled": false}});
        let (_, details) = judge(&spectral, &policy, &table("baseline"), &table("subject"));
        for (key, expected) in vector["expected"].as_object().unwrap() {
            assert_eq!(
                details["movement"][key], *expected,
                "{} {key}",
                vector["id"]
            );
        }
    }
}
