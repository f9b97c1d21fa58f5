//! Judging again from stored tables: the same answer from the same tables, and no answer from others.
//!
//! Needs the components beside their sources (`cargo xtask components`). Where those are not built the test says so and
//! passes; with `PACKHOST_COMPONENTS=require`, as CI sets it, it fails.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use packhost_measure::report::guard_entry;
use packhost_measure::table::{Table, Value as Measured};
use packhost_measure::{Request, is_asked};
use packhost_model::Checkpoint;
use packhost_model::writer::{WriteOptions, write_checkpoint};
use packhost_plugin::{CacheDir, EngineOptions};
use packhost_suite::compare::{CompareRequest, compare};
use packhost_suite::guards::Guards;
use packhost_suite::perturb::perturb;
use packhost_suite::replay::{Stored, replay};
use packhost_suite::suites::{Dataset, EvaluationSize};
use packhost_suite::toolbox::Toolbox;
use serde_json::{Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn toolbox() -> Option<Toolbox> {
    let options = EngineOptions {
        limits: packhost_plugin::Limits::default(),
        cache: CacheDir::At(repository().join("target/test-plugin-cache")),
    };
    match Toolbox::open(&repository().join("plugins"), false, options, Some(2)) {
        Ok(toolbox) => Some(toolbox),
        Err(error) => {
            assert!(
                std::env::var("PACKHOST_COMPONENTS").as_deref() != Ok("require"),
                "{error}"
            );
            let skipped = format!("SKIPPED, components are not built: {error}\n");
            std::io::stderr().write_all(skipped.as_bytes()).unwrap();
            None
        }
    }
}

/// The demo model with rounding noise against the demo model, by every guard, both probes included.
fn evaluated(toolbox: &Toolbox, dir: &Path) -> (Value, [String; 3]) {
    let model = repository().join("scenarios/demo/model");
    let base = Checkpoint::open(&model).unwrap();
    let subject = dir.join("subject");
    write_checkpoint(
        &perturb(&base, 7).unwrap(),
        &subject,
        &WriteOptions::default(),
    )
    .unwrap();
    let text = repository().join("scenarios/demo/eval.jsonl");
    let dataset = Dataset::of_file(text, "text".into());
    let request = CompareRequest {
        size: EvaluationSize {
            seq_len: 64,
            preview: 12,
            final_: 12,
        },
        replicates: 200,
        probes: ["rmt".to_owned(), "variance".to_owned()].into(),
        ..CompareRequest::new(model, subject, dataset, dir.join("out"))
    };
    let compared = compare(
        &request,
        toolbox,
        "2026-01-01T00:00:00Z",
        &AtomicBool::new(false),
    )
    .unwrap();
    let table =
        |name: &str| std::fs::read_to_string(dir.join(format!("out/{name}.table.json"))).unwrap();
    let tables = ["baseline", "baseline_rounds", "subject"].map(table);
    (compared.report, tables)
}

/// Rows of further rounds are there from the beginning, so fewer calls are made and other fuel is burnt.
fn without_fuel(mut entry: Value) -> Value {
    let fuel = entry.as_object_mut().unwrap().remove("fuel");
    assert!(fuel.unwrap().as_u64().unwrap() > 0);
    entry
}

fn again(
    guards: &Guards,
    report: &Value,
    [baseline, rounds, subject]: &[String; 3],
) -> Result<Value, String> {
    let stored = Stored {
        baseline,
        rounds,
        subject,
    };
    let judged = replay(guards, report, &stored).map_err(|error| error.to_string())?;
    Ok(judged.iter().map(guard_entry).map(without_fuel).collect())
}

#[test]
fn stored_tables_give_the_same_answer_and_other_tables_none() {
    let Some(toolbox) = toolbox() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (report, tables) = evaluated(&toolbox, dir.path());
    let guards = Guards::load(&toolbox, &[]).unwrap();
    let listed = &report["packhost"]["guards"];
    let ids: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|guard| guard["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, packhost_suite::guards::ORDER);
    // The variance probe took a further round, whose rows are stored.
    assert!(Table::parse(&tables[1]).unwrap().len() > 1);
    let replayed = again(&guards, &report, &tables).unwrap();
    let stated = listed.as_array().unwrap().iter().cloned();
    let stated: Value = stated.map(without_fuel).collect();
    assert_eq!(replayed.to_string(), stated.to_string());

    // A changed digit is another table.
    let mut changed = tables.clone();
    let digit = changed[2].rfind(|c| ('2'..='8').contains(&c)).unwrap();
    changed[2].replace_range(digit..=digit, "9");
    let refused = again(&guards, &report, &changed).unwrap_err();
    assert!(refused.contains("the report names"), "{refused}");

    // Where the report is made to name the changed table, the guard that asked for the row says something else.
    for guard in listed.as_array().unwrap() {
        let id = guard["id"].as_str().unwrap();
        let asked: Vec<Request> = guard["asked"]
            .as_array()
            .unwrap()
            .iter()
            .map(|request| Request {
                guard: id.into(),
                quantity: request["quantity"].as_str().unwrap().into(),
                scope: request["scope"].as_str().unwrap().into(),
                params: request["params"].as_str().unwrap().into(),
            })
            .collect();
        let (table, touched) = falsified(&tables[2], &asked);
        assert!(touched > 0, "{id} saw no number");
        let mut tables = tables.clone();
        tables[2] = table.to_json();
        let mut report = report.clone();
        report["packhost"]["guards"] = json!([guard]);
        report["packhost"]["tables"]["subject"]["sha256"] = json!(table.digest());
        match again(&guards, &report, &tables) {
            Err(_) => {}
            Ok(other) => assert_ne!(
                other[0]["details"].to_string() + &other[0]["findings"].to_string(),
                guard["details"].to_string() + &guard["findings"].to_string(),
                "{id}"
            ),
        }
    }
}

/// The table with every number that was asked for changed, and how many rows those are.
fn falsified(text: &str, asked: &[Request]) -> (Table, usize) {
    let mut table = Table::parse(text).unwrap();
    let rows: Vec<_> = table.rows().collect();
    let mut touched = 0;
    for row in rows {
        let seen = |request: &Request| is_asked(request, &row.scope, &row.quantity);
        if !asked.iter().any(seen) {
            continue;
        }
        let value = match row.value {
            Measured::Number(value) => Measured::Number(value * 2.0 + 1.0),
            Measured::Vector(values) => {
                Measured::Vector(values.iter().map(|value| value * 2.0 + 1.0).collect())
            }
            Measured::Text(_) => continue,
        };
        touched += 1;
        table.put(&row.scope, &row.quantity, value);
    }
    (table, touched)
}
