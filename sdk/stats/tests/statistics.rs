//! Intervals and perplexities against the reference's vectors.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use packhost_stats::bootstrap::{self, Error, Interval, Method, Options};
use packhost_stats::summary::perplexity;
use serde_json::Value;

fn vectors(path: &str) -> Value {
    let path = format!("{}/../../tests/vectors/{path}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).unwrap()
}

/// Numbers of a list; non-finite ones are written as text.
fn numbers(value: &Value) -> Vec<f64> {
    let items = value.as_array().unwrap().iter();
    items
        .map(|v| {
            v.as_f64()
                .unwrap_or_else(|| v.as_str().unwrap().parse().unwrap())
        })
        .collect()
}

fn close(id: &str, got: f64, expected: &Value, tolerance: f64) {
    let expected = expected.as_f64().unwrap();
    assert!(
        (got - expected).abs() <= tolerance,
        "{id}: {got} for {expected}"
    );
}

#[test]
fn intervals() {
    let file = vectors("guards/bootstrap.json");
    let list = file["vectors"].as_array().unwrap();
    assert_eq!(list.len(), 16);
    for vector in list {
        let id = vector["id"].as_str().unwrap();
        let weights = vector["weights"]
            .as_array()
            .map(|_| numbers(&vector["weights"]));
        let weights = weights.as_deref();
        let options = Options {
            method: match vector["method"].as_str() {
                Some("percentile") => Method::Percentile,
                _ => Method::Bca,
            },
            replicates: vector["replicates"].as_u64().unwrap_or(0) as usize,
            alpha: vector["alpha"].as_f64().unwrap(),
            seed: vector["seed"].as_u64().unwrap_or(0),
        };
        let (got, tolerance): (Interval, f64) = match vector["fn"].as_str().unwrap() {
            "paired_delta" => {
                let (subject, baseline) = (numbers(&vector["final"]), numbers(&vector["baseline"]));
                let got = bootstrap::paired_delta(&subject, &baseline, weights, &options);
                (got.unwrap(), 1e-9)
            }
            "logloss" | "mean_percentile" => {
                let got = bootstrap::mean(&numbers(&vector["samples"]), weights, &options);
                (got.unwrap(), 1e-9)
            }
            "bca_from_indices" => {
                let lists = vector["indices"].as_array().unwrap().iter();
                let indices: Vec<Vec<usize>> = lists
                    .map(|l| numbers(l).iter().map(|v| *v as usize).collect())
                    .collect();
                let samples = numbers(&vector["delta"]);
                let got = bootstrap::bca_from_indices(&samples, weights, &indices, options.alpha);
                (got.unwrap(), 1e-12)
            }
            other => panic!("unknown function {other}"),
        };
        let expected = &vector["expected"];
        close(id, got.low, &expected["lo"], tolerance);
        close(id, got.high, &expected["hi"], tolerance);
        if expected.get("ratio_lo").is_some() {
            close(id, got.exp().low, &expected["ratio_lo"], tolerance);
            close(id, got.exp().high, &expected["ratio_hi"], tolerance);
        }
    }
}

#[test]
fn perplexities() {
    let file = vectors("guards/primary_metric.json");
    let mut seen = 0;
    for vector in file["vectors"].as_array().unwrap() {
        if vector["fn"] != "perplexity" {
            continue;
        }
        seen += 1;
        let got = perplexity(
            &numbers(&vector["logloss"]),
            &numbers(&vector["token_counts"]),
        );
        match vector["expected"].as_f64() {
            Some(expected) => assert!((got - expected).abs() <= 1e-12 * expected),
            None => assert!(got.is_nan(), "{}", vector["id"]),
        }
    }
    assert_eq!(seen, 4);
    assert_eq!(perplexity(&[800.0], &[1.0]), f64::INFINITY);
}

#[test]
fn refusals() {
    let bca = |samples: &[f64], weights: Option<&[f64]>, replicates, alpha| {
        bootstrap::bca(samples, weights, replicates, alpha, 0)
    };
    assert_eq!(bca(&[], None, 10, 0.05), Err(Error::Empty));
    assert_eq!(
        bca(&[1.0, f64::NAN], None, 10, 0.05),
        Err(Error::NotFinite(1))
    );
    assert_eq!(
        bca(&[1.0, 2.0], Some(&[1.0]), 10, 0.05),
        Err(Error::Lengths(2, 1))
    );
    assert_eq!(
        bca(&[1.0, 2.0], Some(&[1.0, -1.0]), 10, 0.05),
        Err(Error::NegativeWeight(1))
    );
    assert_eq!(
        bca(&[1.0, 2.0], Some(&[0.0, 0.0]), 10, 0.05),
        Err(Error::NoWeight)
    );
    assert_eq!(bca(&[1.0, 2.0], None, 0, 0.05), Err(Error::NoReplicates));
    assert_eq!(bca(&[1.0, 2.0], None, 10, 1.0), Err(Error::Alpha(1.0)));
    let options = Options {
        method: Method::Bca,
        replicates: 10,
        alpha: 0.05,
        seed: 0,
    };
    let uneven = bootstrap::paired_delta(&[1.0], &[1.0, 2.0], None, &options);
    assert_eq!(uneven, Err(Error::Lengths(1, 2)));
}

#[test]
fn drift_bands() {
    let file = vectors("guards/preset.json");
    let mut seen = 0;
    for vector in file["vectors"].as_array().unwrap() {
        if vector["fn"] != "calibrate_drift" {
            continue;
        }
        seen += 1;
        let got = packhost_stats::drift::summarize(&numbers(&vector["final_over_preview"]));
        let (got, expected) = (got.unwrap(), &vector["expected"]);
        let id = vector["id"].as_str().unwrap();
        close(id, got.mean, &expected["mean"], 0.0);
        close(id, got.std, &expected["std"], 0.0);
        close(id, got.min, &expected["min"], 0.0);
        close(id, got.max, &expected["max"], 0.0);
        close(id, got.band.0, &expected["suggested_band"][0], 0.0);
        close(id, got.band.1, &expected["suggested_band"][1], 0.0);
        assert_eq!(
            got.compatible,
            expected["band_compatible"].as_bool().unwrap()
        );
    }
    assert_eq!(seen, 3);
}
