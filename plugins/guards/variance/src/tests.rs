//! The judge against the reference's vectors, on tables that hold what the host would measure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use packhost_sdk::json;
use packhost_sdk::stats::bootstrap::Interval;
use packhost_sdk::{Row, Value, bench};
use targets::place;

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

fn numbers(value: &Json) -> Vec<f64> {
    let items = value.as_array().unwrap().iter();
    items.map(|item| item.as_f64().unwrap()).collect()
}

fn row(scope: &str, quantity: &str, values: &[f64]) -> Row {
    Row {
        scope: scope.to_owned(),
        quantity: quantity.to_owned(),
        value: Value::Vector(values.to_vec()),
    }
}

/// Rows of blocks with these mean squares in each of 20 windows, and of as many equal windows in both arms.
fn rows(blocks: &[f64], losses: &[f64]) -> Vec<Row> {
    let squares = blocks.iter().enumerate().map(|(block, square)| {
        let module = format!("model.layers.{block}.mlp.down_proj");
        row(&module, "activation.mean_square.first20", &[*square; 20])
    });
    let arms = ["preview", "final"].into_iter().flat_map(|arm| {
        let tokens = vec![10.0; losses.len()];
        [
            row(arm, "window.loss", losses),
            row(arm, "window.tokens", &tokens),
        ]
    });
    squares.chain(arms).collect()
}

fn table(blocks: &[f64]) -> Table {
    Table::new(rows(blocks, &[3.0; 16]))
}

fn step(policy: &Json, baseline: &Table, subject: &Table) -> Step {
    bench::judge::<Variance>(&policy.to_string(), baseline, subject).unwrap()
}

fn judge(policy: &Json, baseline: &Table, subject: &Table) -> Verdict {
    match step(policy, baseline, subject) {
        Step::Verdict(verdict) => verdict,
        Step::Measure(more) => panic!("asked for {more:?}"),
    }
}

/// Plays the rounds: every trial changes each loss by `delta(window)`.
fn play(
    policy: &Json,
    baseline: &Table,
    subject: &Table,
    delta: &dyn Fn(usize) -> f64,
) -> (Verdict, usize) {
    let mut rows = subject.rows().to_vec();
    for asked in 0..3 {
        match step(policy, baseline, &Table::new(rows.clone())) {
            Step::Verdict(verdict) => return (verdict, asked),
            Step::Measure(more) => {
                for request in more {
                    let count: usize = request.scope.trim_start_matches("first:").parse().unwrap();
                    let without = Windows::read(subject, count, "subject").unwrap().losses;
                    let losses: Vec<f64> = without
                        .iter()
                        .enumerate()
                        .map(|(at, loss)| loss + delta(at))
                        .collect();
                    rows.push(row(&request.row_scope(), &request.quantity, &losses));
                }
            }
        }
    }
    panic!("more than two rounds");
}

fn near(what: &str, got: f64, expected: f64, relative: f64) {
    assert!(
        (got - expected).abs() <= relative * expected.abs(),
        "{what}: {got} for {expected}"
    );
}

#[test]
fn raw_scales() {
    let file = vectors("variance");
    for vector in of(&file, "raw_scale") {
        let squares = numbers(&vector["mean_squares"]);
        let clamp = numbers(&vector["clamp"]);
        let scale = proposal::raw_scale(
            &squares,
            vector["tol"].as_f64().unwrap(),
            Some((clamp[0], clamp[1])),
        );
        let expected = &vector["expected"];
        let id = vector["id"].as_str().unwrap();
        assert_eq!(scale.is_some(), !expected["scale"].is_null(), "{id}");
        if let Some(scale) = scale {
            near(id, scale, expected["scale"].as_f64().unwrap(), 1e-6);
        }
        let unbounded = proposal::raw_scale(&squares, 0.0, None).unwrap();
        near(
            id,
            unbounded,
            expected["unclamped_tol0"].as_f64().unwrap(),
            1e-6,
        );
    }
    assert_eq!(proposal::typical(&[]), None);
}

#[test]
fn proposals() {
    let file = vectors("variance");
    for vector in of(&file, "proposal") {
        let mut policy = vector["policy"].clone();
        policy["clamp"] = vector["clamp"].clone();
        let subject = table(&numbers(&vector["layer_mean_squares"]));
        let details = judge(&policy, &subject, &subject).details;
        let id = vector["id"].as_str().unwrap();
        let same = |found: &Json, expected: &Json, name: &dyn Fn(&str) -> String| {
            let (found, expected) = (found.as_object().unwrap(), expected.as_object().unwrap());
            assert_eq!(found.len(), expected.len(), "{id}: {found:?}");
            for (short, scale) in expected {
                let found = found[&name(short)].as_f64().unwrap();
                near(id, found, scale.as_f64().unwrap(), 1e-6);
            }
        };
        let long =
            |short: &str| format!("transformer.h.{}.c_proj", short.trim_start_matches("block"));
        same(
            &details["raw_scales"],
            &vector["expected"]["raw"],
            &str::to_owned,
        );
        let tried = &details["metrics"]["proposed_scales_pre_edit"];
        same(tried, &vector["expected"]["proposed"], &long);
        // Against itself nothing is tried, as in the reference's compare mode.
        let metrics = &details["metrics"];
        assert_eq!(metrics["proposed_scales"], json!(0));
        assert_eq!(metrics["ratio_ci"], json!([1.0, 1.0]));
        assert_eq!(metrics["monitor_only"], json!(true));
        assert_eq!(details["predictive_gate"]["reason"], json!("no_scales"));
        assert_eq!(
            details["calibration"]["status"],
            json!("no_scaling_required")
        );
        assert_eq!(details["decision"], json!("monitor"));
    }
}

#[test]
fn predictive_gate() {
    let file = vectors("variance");
    for vector in of(&file, "predictive_gate") {
        let ends = numbers(&vector["ci"]);
        let interval = Interval {
            low: ends[0],
            high: ends[1],
        };
        let answer = gate::predictive(
            vector["mean_delta"].as_f64(),
            Some(interval),
            vector["min_effect"].as_f64().unwrap(),
            vector["one_sided"].as_bool().unwrap(),
        );
        let expected = &vector["expected"];
        assert_eq!(json!(answer.passed), expected["passed"], "{}", vector["id"]);
        assert_eq!(json!(answer.reason), expected["reason"], "{}", vector["id"]);
    }
    assert_eq!(
        gate::predictive(Some(-1.0), None, 0.0, true).reason,
        "ci_unavailable"
    );
}

#[test]
fn enable_gate() {
    let file = vectors("variance");
    for vector in of(&file, "ab_gate") {
        let mut policy = vector["policy"].clone();
        let floor = policy
            .as_object_mut()
            .unwrap()
            .remove("absolute_floor")
            .unwrap();
        policy["absolute_floor_ppl"] = floor;
        let policy: Policy = json::from_value(policy).unwrap();
        let number = |key: &str| vector[key].as_f64().unwrap();
        let ratio = vector["ratio_ci"].as_array().map(|_| {
            let ends = numbers(&vector["ratio_ci"]);
            Interval {
                low: ends[0],
                high: ends[1],
            }
        });
        let predictive = if vector["predictive"]["passed"] == json!(true) {
            gate::Answer::open("ci_gain_met")
        } else {
            gate::Answer::closed("ci_contains_zero")
        };
        let perplexities = (number("ppl_no"), number("ppl_with"));
        let answer = gate::enable(&policy, Some(perplexities), ratio, predictive);
        let expected = &vector["expected"];
        assert_eq!(json!(answer.passed), expected["enable"], "{}", vector["id"]);
        assert_eq!(json!(answer.reason), expected["reason"], "{}", vector["id"]);
        let gain = (perplexities.0 - perplexities.1) / perplexities.0;
        assert!((gain - expected["ab_gain"].as_f64().unwrap()).abs() < 1e-12);
    }
}

#[test]
fn probe_signals() {
    let file = vectors("verdict");
    for vector in of(&file, "ve_probe") {
        let probe = &vector["probe"];
        let perplexities = probe["ppl_no_ve"]
            .as_f64()
            .zip(probe["ppl_with_ve"].as_f64());
        let reasons = gate::probe_reasons(
            probe["proposed_scales"].as_u64().unwrap() as usize,
            perplexities,
            probe["ab_gain"].as_f64(),
        );
        assert_eq!(
            json!(reasons),
            vector["expected"]["signal_reasons"],
            "{}",
            vector["id"]
        );
        assert_eq!(
            json!(reasons.is_empty()),
            vector["expected"]["signal"],
            "{}",
            vector["id"]
        );
    }
}

#[test]
fn a_trial_that_helps_enables() {
    let (baseline, subject) = (table(&[1.0, 1.0, 1.0]), table(&[1.0, 0.25, 1.0]));
    let policy = json!({"reference": "baseline", "calibration": {"windows": 8, "min_coverage": 6}, "max_scale_step": 0.03});
    let Step::Measure(asked) = step(&policy, &baseline, &subject) else {
        panic!("nothing was asked for");
    };
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].quantity, "window.loss");
    assert_eq!(
        asked[0].row_scope(),
        r#"first:8 {"scale":{"model.layers.1.mlp.down_proj":1.03}}"#
    );
    let (verdict, rounds) = play(&policy, &baseline, &subject, &|at| {
        -0.05 - 0.001 * at as f64
    });
    assert_eq!(rounds, 1);
    let metrics = &verdict.details["metrics"];
    assert_eq!(metrics["ve_enabled"], json!(true));
    assert_eq!(metrics["gate_reason"], json!("criteria_met"));
    assert_eq!(
        metrics["proposed_scales_post_edit"],
        json!({"transformer.h.1.mlp.c_proj": 1.03})
    );
    assert_eq!(verdict.details["calibration"]["status"], json!("complete"));
    assert_eq!(verdict.details["decision"], json!("allow"));
    assert_eq!(verdict.status, Status::Warn);
    assert_eq!(verdict.findings[0].code, "scaling_helps");
    // Means over windows of e^3·e^δ against e^3.
    let factor = (0..8)
        .map(|at| (-0.05 - 0.001 * f64::from(at)).exp())
        .sum::<f64>()
        / 8.0;
    near(
        "gain",
        metrics["ab_gain"].as_f64().unwrap(),
        1.0 - factor,
        1e-12,
    );
    let (worse, _) = play(&policy, &baseline, &subject, &|_| 0.01);
    assert_eq!(
        worse.details["metrics"]["gate_reason"],
        json!("below_min_rel_gain")
    );
    assert_eq!(
        worse.details["predictive_gate"]["reason"],
        json!("regression_detected")
    );
    assert_eq!(worse.status, Status::Pass);
}

#[test]
fn the_probe_tries_everything() {
    let subject = table(&[0.5, 0.5, 2.0]);
    let policy = json!({"probe": true, "max_adjusted_modules": 1, "calibration": {"windows": 8, "min_coverage": 6, "seed": 7}, "max_scale_step": 0.03});
    let (verdict, rounds) = play(&policy, &subject, &subject, &|at| {
        if at < 12 { -0.1 } else { panic!("12 windows") }
    });
    assert_eq!(rounds, 1);
    let probe = &verdict.details["probe"];
    assert_eq!(probe["proposed_scales"], json!(3));
    assert_eq!(probe["signal"], json!(true));
    assert_eq!(probe["calibration"]["requested"], json!(12));
    assert_eq!(probe["calibration"]["seed"], json!(7));
    assert_eq!(
        probe["top_scales_pre_edit"][0],
        json!({"module": "transformer.h.2.mlp.c_proj", "scale": 0.85})
    );
    assert_eq!(
        verdict.details["metrics"]["proposed_scales"],
        json!(0),
        "the guard itself tries nothing"
    );
    assert_eq!(verdict.findings[0].code, "ve_signal");
    let (nothing, _) = play(&policy, &subject, &subject, &|_| 0.0);
    assert_eq!(
        nothing.details["probe"]["signal_reasons"],
        json!(["abs_gain_below_threshold", "rel_gain_below_threshold"])
    );
}

#[test]
fn movement_and_the_change_against_the_baseline() {
    let (baseline, subject) = (table(&[1.0, 1.0, 1.0]), table(&[1.0, 0.81, 1.0]));
    let details = judge(&json!({}), &baseline, &subject).details;
    assert_eq!(
        details["movement"]["new_modules"],
        json!(["transformer.h.1.mlp.c_proj"])
    );
    assert_eq!(details["movement"]["relative_signal"], json!(true));
    let relative = &details["ours"]["relative"];
    let scale = relative["scales"]["transformer.h.1.mlp.c_proj"]
        .as_f64()
        .unwrap();
    near("relative", scale, 1.0 / 0.9, 1e-12);
    assert_eq!(
        relative["beyond_deadband"],
        json!(["transformer.h.1.mlp.c_proj"])
    );
    let same = judge(&json!({}), &subject, &subject).details;
    assert_eq!(same["movement"]["relative_signal"], json!(false));
}

#[test]
fn calibration() {
    let file = vectors("preset");
    for vector in of(&file, "calibrate_variance") {
        let records = vector["records"].as_array().unwrap().iter();
        let runs: Vec<Table> = records
            .map(|record| {
                Table::new(vec![Row {
                    scope: "model".to_owned(),
                    quantity: "record.variance".to_owned(),
                    value: Value::Text(record["variance"].to_string()),
                }])
            })
            .collect();
        let fitted = Variance::calibrate(&Policy::default(), &runs).unwrap();
        let fitted = json::to_value(fitted).unwrap();
        for (key, expected) in vector["expected"].as_object().unwrap() {
            assert_eq!(fitted[key], *expected, "{} {key}", vector["id"]);
        }
    }
    let policy: Policy = json::from_str(r#"{"derivation": {"runs": 2}, "min_gain": 0.0}"#).unwrap();
    let fitted = Variance::calibrate(&policy, &[table(&[1.0]), table(&[1.0])]).unwrap();
    assert_eq!(fitted.min_gain, fitted.min_rel_gain);
    assert!(fitted.derivation.is_none());
}

#[test]
fn places() {
    let short = |module: &str| place(module).map(targets::Place::short);
    assert_eq!(
        short("model.layers.12.mlp.down_proj").as_deref(),
        Some("block12.mlp")
    );
    assert_eq!(
        short("transformer.h.0.attn.c_proj").as_deref(),
        Some("block0.attn")
    );
    assert_eq!(
        short("transformer.h.0.mlp.c_proj").as_deref(),
        Some("block0.mlp")
    );
    assert_eq!(
        short("model.layers.1.block_sparse_moe.experts.3.w2").as_deref(),
        Some("block1.mlp")
    );
    assert_eq!(
        short("model.layers.0.self_attn.o_proj"),
        None,
        "the reference looks for `attn` only"
    );
    assert_eq!(short("model.layers.0.mlp.up_proj"), None);
    assert_eq!(short("lm_head"), None);
}

#[test]
fn experts_of_a_block_are_scaled_together() {
    let mut rows = rows(&[], &[3.0; 16]);
    for (expert, square) in [(0, 0.2), (1, 0.3)] {
        let module = format!("model.layers.0.block_sparse_moe.experts.{expert}.w2");
        rows.push(row(
            &module,
            "activation.mean_square.first20",
            &[square; 20],
        ));
    }
    let subject = Table::new(rows);
    let policy = json!({"reference": "baseline", "calibration": {"windows": 8, "min_coverage": 6}});
    let Step::Measure(asked) = step(&policy, &subject, &subject) else {
        panic!("nothing was asked for");
    };
    assert_eq!(
        asked[0].params,
        r#"{"scale":{"model.layers.0.block_sparse_moe.experts.0.w2":1.02,"model.layers.0.block_sparse_moe.experts.1.w2":1.02}}"#
    );
}

#[test]
fn too_few_windows_decide_nothing() {
    let mut losses = [f64::NAN; 16];
    losses[0] = 3.0;
    let subject = Table::new(rows(&[0.5], &losses));
    let policy = json!({"reference": "baseline", "calibration": {"windows": 8, "min_coverage": 6}});
    let verdict = judge(&policy, &subject, &subject);
    assert_eq!(verdict.status, Status::Warn);
    assert_eq!(verdict.findings[0].code, "insufficient_coverage");
    assert_eq!(
        verdict.details["predictive_gate"]["reason"],
        json!("insufficient_coverage")
    );
    assert_eq!(verdict.details["metrics"]["ppl_no_ve"], Json::Null);
}

#[test]
fn a_model_without_targets_is_unsupported() {
    let subject = table(&[0.5]);
    let verdict = judge(&json!({"scope": "attn"}), &subject, &subject);
    assert_eq!(verdict.findings[0].code, "no_variance_targets");
    assert_eq!(verdict.details["supported"], json!(false));
}

#[test]
fn bad_policies_and_tables_are_refused() {
    let good = table(&[0.5]);
    let refused = |policy: &str, subject: &Table| {
        bench::judge::<Variance>(policy, &good, subject)
            .unwrap_err()
            .to_string()
    };
    assert!(refused(r#"{"max_scale": 1}"#, &good).contains("unknown field `max_scale`"));
    assert!(refused(r#"{"calibration": {"window": 1}}"#, &good).contains("unknown field `window`"));
    assert!(refused(r#"{"reference": "x"}"#, &good).contains("unknown variant `x`"));
    assert!(refused(r#"{"clamp": [2, 1]}"#, &good).contains("`clamp` is [2, 1]"));
    assert!(refused(r#"{"alpha": 1}"#, &good).contains("`alpha` is 1, it must be between 0 and 1"));
    assert!(refused(r#"{"max_calib": 5}"#, &good).contains("`max_calib` is 5"));
    assert!(
        refused(r#"{"calibration": {"windows": 0}}"#, &good).contains("`calibration.windows` is 0")
    );
    assert!(
        refused("{}", &Table::default())
            .contains("subject: the table has no `activation.mean_square.first20` of any module")
    );
    let without = |quantity: &str| {
        Table::new(
            good.rows()
                .iter()
                .filter(|row| row.quantity != quantity)
                .cloned()
                .collect(),
        )
    };
    assert!(
        refused("{}", &without("window.tokens"))
            .contains("`window.tokens` at `preview` must be a vector, found no such row")
    );
    let module = "model.layers.1.mlp.down_proj";
    let with = |value: f64| {
        let mut rows = good.rows().to_vec();
        rows.push(row(module, "activation.mean_square.first20", &[value; 20]));
        Table::new(rows)
    };
    assert!(refused("{}", &with(-1.0)).contains("holds -1, which is no mean of squares"));
    assert!(refused("{}", &with(f64::INFINITY)).contains("holds inf"));
    let verdict = judge(&json!({}), &good, &with(f64::NAN));
    assert_eq!(
        (verdict.status, verdict.findings[0].code.as_str()),
        (Status::Warn, "not_measured")
    );
    let policy = r#"{"reference": "baseline", "calibration": {"windows": 8, "min_coverage": 6}}"#;
    let mut rows = good.rows().to_vec();
    rows.push(row(
        r#"first:8 {"scale":{"model.layers.0.mlp.down_proj":1.02}}"#,
        "window.loss",
        &[3.0; 7],
    ));
    assert!(refused(policy, &Table::new(rows)).contains("has 7 windows instead of 8"));
    let asked: Policy = json::from_str(r#"{"derivation": {"runs": 5}}"#).unwrap();
    let few = Variance::calibrate(&asked, &[good])
        .unwrap_err()
        .to_string();
    assert!(few.contains("5 calibration runs were asked for and 1 are there"));
}
