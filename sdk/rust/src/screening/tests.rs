#![allow(clippy::unwrap_used)]
use super::*;
use crate::{Row, Status, Table, Value};
use packhost_stats::normal;
use packhost_stats::rng::Pcg64;
use std::collections::BTreeMap;

const STATISTICS: [Statistic; 2] = [
    Statistic {
        name: "a",
        side: Side::Both,
        resolution: 1e-9,
    },
    Statistic {
        name: "b",
        side: Side::Upper,
        resolution: 1e-9,
    },
];

fn gauss(rng: &mut Pcg64) -> f64 {
    normal::quantile(rng.uniform().max(1e-300))
}

/// One simulated run: two dependent statistics at `places` places, each place with a level and a spread of its own, and a
/// part that all places share, as modules downstream of each other have.
fn run(rng: &mut Pcg64, truth: &[(f64, f64)]) -> Observed {
    let shared = gauss(rng);
    let place = |(index, (level, spread)): (usize, &(f64, f64))| {
        let a = 0.6 * shared + 0.8 * gauss(rng);
        let b = 0.5 * a + 0.75_f64.sqrt() * gauss(rng);
        let values = vec![Some(level + spread * a), Some(2.0 * level + spread * b)];
        (format!("place.{index:03}"), values)
    };
    truth.iter().enumerate().map(place).collect()
}

fn truth(rng: &mut Pcg64, places: usize) -> Vec<(f64, f64)> {
    (0..places)
        .map(|_| (gauss(rng), 0.01 * 10.0_f64.powf(rng.uniform())))
        .collect()
}

#[test]
fn suites_of_dependent_places_keep_the_false_discovery_rate() {
    let (mut alarms, mut found, mut left_out, mut left_out_runs) = (0, 0.0, 0, 0);
    let suites = 300;
    for seed in 0..suites {
        let mut rng = Pcg64::new(seed);
        let truth = truth(&mut rng, 60);
        let runs: Vec<Observed> = (0..5).map(|_| run(&mut rng, &truth)).collect();
        let nulls = Nulls::fit("m", &STATISTICS, &runs, 0.05).unwrap();
        left_out += nulls.false_alarms.runs_with_findings;
        left_out_runs += nulls.false_alarms.runs;
        let mut fresh = run(&mut rng, &truth);
        let judge = |fresh: &Observed| nulls.significance(&STATISTICS, fresh, 60, 0.05);
        let judged = judge(&fresh);
        alarms += usize::from(fresh.keys().any(|place| judged.changed(place)));
        for (index, (_, spread)) in truth.iter().enumerate().take(3) {
            let place = fresh.get_mut(&format!("place.{index:03}")).unwrap();
            place[0] = Some(place[0].unwrap() + 30.0 * spread);
        }
        let judged = judge(&fresh);
        let hits = (0..3).filter(|index| judged.changed(&format!("place.{index:03}")));
        found += hits.count() as f64 / 3.0;
    }
    let rate = alarms as f64 / suites as f64;
    assert!(rate <= 0.08, "{rate}");
    assert!(found / suites as f64 > 0.9, "{found}");
    // What each suite states about itself agrees with what fresh runs show, within what four runs can tell.
    let stated = left_out as f64 / left_out_runs as f64;
    assert!(stated <= 0.10, "{stated}");
}

#[test]
fn nulls_travel_in_policies() {
    let mut rng = Pcg64::new(1);
    let truth = truth(&mut rng, 4);
    let runs: Vec<Observed> = (0..4).map(|_| run(&mut rng, &truth)).collect();
    let nulls = Nulls::fit("m", &STATISTICS, &runs, 0.1).unwrap();
    let text = serde_json::to_string(&nulls).unwrap();
    let read: Nulls = serde_json::from_str(&text).unwrap();
    assert_eq!(read, nulls);
    let details = nulls.false_alarms.details();
    assert_eq!(details["nominal_false_discovery_rate"], 0.1);
    assert_eq!(details["leave_one_out"]["runs"], 4);
    assert_eq!(details["leave_one_out"]["places"], 16);

    let table = |structure: &str| {
        Table::new(vec![Row {
            scope: "model".into(),
            quantity: "structure.digest".into(),
            value: Value::Text(structure.into()),
        }])
    };
    assert!(nulls.check("g", &STATISTICS, &table("m")).is_ok());
    let error = nulls.check("g", &STATISTICS, &table("n")).unwrap_err();
    assert!(
        error
            .message()
            .contains("calibrated on a model of structure m"),
        "{error}"
    );
    assert!(nulls.check("g", &STATISTICS[..1], &table("m")).is_err());
    assert!(nulls.check("g", &STATISTICS, &Table::default()).is_err());
    let mut broken = nulls.clone();
    broken
        .places
        .insert("x".into(), vec![Some([0.0, 0.0]), None]);
    assert!(broken.check("g", &STATISTICS, &table("m")).is_err());
}

#[test]
fn a_default_policy_says_nothing() {
    assert_eq!(serde_json::to_string(&Policy::default()).unwrap(), "{}");
    assert_eq!(
        serde_json::from_str::<Policy>("{}").unwrap(),
        Policy::default()
    );
}

#[test]
fn places_that_the_null_does_not_know_are_named_and_nan_is_not_normal() {
    let mut rng = Pcg64::new(2);
    let truth = truth(&mut rng, 10);
    let runs: Vec<Observed> = (0..5).map(|_| run(&mut rng, &truth)).collect();
    let nulls = Nulls::fit("m", &STATISTICS, &runs, 0.05).unwrap();
    let mut fresh = run(&mut rng, &truth);
    fresh.insert("new".into(), vec![Some(1.0), None]);
    fresh.insert("place.000".into(), vec![Some(f64::NAN), None]);
    let judged = nulls.significance(&STATISTICS, &fresh, 11, 0.05);
    assert_eq!(judged.unknown, ["new"]);
    assert!(judged.changed("place.000") && !judged.changed("new"));
    // More tests that found nothing make the limit stricter.
    let many = nulls.significance(&STATISTICS, &fresh, 1000, 0.05);
    assert!(many.threshold.unwrap() < judged.threshold.unwrap());
    assert!(Nulls::fit("m", &STATISTICS, &runs[..1], 0.05).is_err());
    assert!(Nulls::fit("m", &STATISTICS, &[Observed::new(), Observed::new()], 0.05).is_err());
}

#[test]
fn limits() {
    let limit = Limit::new(Some(0.1), Some(0.5));
    let judge = |effect| {
        limit
            .judge(effect)
            .map(|judged| (judged.status, judged.bound))
    };
    assert_eq!(judge(0.1), None);
    assert_eq!(judge(0.2), Some((Status::Warn, 0.1)));
    assert_eq!(judge(0.6), Some((Status::Fail, 0.5)));
    assert_eq!(judge(f64::NAN), Some((Status::Fail, 0.5)));
    assert_eq!(Limit::default().judge(f64::INFINITY), None);

    let defaults = [("size", limit), ("turn", Limit::default())];
    let merge = |name: &str, warn, fail| {
        let policy = BTreeMap::from([(name.to_owned(), Limit::new(warn, fail))]);
        Limit::merge(&defaults, &policy).map_err(|failure| failure.to_string())
    };
    let merged = merge("turn", None, Some(1.0)).unwrap();
    assert_eq!(merged["size"], limit);
    assert_eq!(merged["turn"].fail, Some(1.0));
    for (name, warn, fail, reason) in [
        (
            "sise",
            None,
            None,
            "no effect of this guard; there are size, turn",
        ),
        ("size", Some(-1.0), None, "a number from 0 on"),
        ("size", None, Some(f64::NAN), "a number from 0 on"),
        ("size", Some(2.0), Some(1.0), "the warning must come first"),
    ] {
        let error = merge(name, warn, fail).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn outcomes_list_the_gravest_first_and_stay_short() {
    let mut outcome = Outcome::default();
    for index in 0..50 {
        outcome.note(Status::Warn, &format!("m{index}"), "marked", String::new());
    }
    outcome.note(Status::Fail, "last", "damaged", String::new());
    let (status, findings) = outcome.finish();
    assert_eq!(status, Status::Fail);
    assert_eq!(findings.len(), 41);
    assert_eq!(findings[0].scope, "last");
    assert_eq!(
        (findings[40].code.as_str(), findings[40].value),
        ("more", Some(11.0))
    );
    assert_eq!(Outcome::default().finish(), (Status::Pass, Vec::new()));
}

#[test]
fn runs_are_sorted_and_paired() {
    let run = |kind: Option<&str>, structure: &str, first: f64| {
        let row = |scope: &str, quantity: &str, value| Row {
            scope: scope.into(),
            quantity: quantity.into(),
            value,
        };
        let mut rows = vec![
            row("model", "structure.digest", Value::Text(structure.into())),
            row("preview", "window.ids", Value::Vector(vec![first])),
            row("final", "window.ids", Value::Vector(vec![first + 1.0])),
        ];
        rows.extend(kind.map(|kind| row("model", "calibration.kind", Value::Text(kind.into()))));
        Table::new(rows)
    };
    let noise = |first| run(Some("perturbation"), "m", first);
    let mut runs = vec![run(None, "m", 0.0), run(Some("repeat"), "m", 2.0)];
    let sorted = Runs::sort("g", &runs, None).unwrap();
    assert_eq!((sorted.repeats.len(), sorted.perturbations.len()), (2, 0));
    let refusal = |runs: &[Table], asked| Runs::sort("g", runs, asked).unwrap_err().to_string();
    assert!(refusal(&runs, Some(5)).contains("5 perturbation runs are needed to calibrate and 0"));
    runs.extend([noise(2.0), noise(0.0)]);
    assert!(refusal(&runs, None).contains("3 perturbation runs are needed to calibrate and 2"));
    runs.push(noise(2.0));
    let sorted = Runs::sort("g", &runs, Some(3)).unwrap();
    assert_eq!(sorted.structure, "m");
    assert!(sorted.perturbations.iter().all(|(a, b)| same_windows(a, b)));
    assert_eq!(sorted.perturbations[0].0, &runs[1]);
    let with = |extra: Table| [runs.clone(), vec![extra]].concat();
    assert!(refusal(&with(noise(9.0)), None).contains("no repeat on the same windows"));
    assert!(refusal(&with(run(None, "n", 0.0)), None).contains("different models"));
    assert!(refusal(&with(run(Some("odd"), "m", 0.0)), None).contains("unknown kind"));
    assert!(refusal(&[Table::default()], None).contains("structure.digest"));
}
