//! Window selection against the reference's vectors, and its errors.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use packhost_measure::Error;
use packhost_measure::tiers::Profile;
use packhost_measure::windows::{
    Pairing, Sample, Selection, WindowPlan, Windows, difficulty, reduce_duplicates, sample, select,
    stratify,
};
use serde_json::{Value, json};

fn vectors() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/vectors/guards/windows.json"
    );
    serde_json::from_str(&std::fs::read_to_string(path).expect(path)).unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().unwrap().iter();
    items.map(|v| v.as_str().unwrap().to_owned()).collect()
}

/// The vectors' tokenizer: byte value plus 3.
fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| u32::from(byte) + 3).collect()
}

fn count(vector: &Value, key: &str) -> usize {
    vector[key].as_u64().expect(key) as usize
}

fn plan(vector: &Value, selection: Selection) -> WindowPlan {
    WindowPlan {
        seq_len: count(vector, "seq_len"),
        preview: count(vector, "preview_n"),
        final_: count(vector, "final_n"),
        seed: vector["seed"].as_u64().unwrap(),
        run: 0,
        selection,
        profile: Profile::Dev,
    }
}

fn drawn(windows: &Windows) -> Value {
    let texts = |arm: &[packhost_measure::windows::Window]| -> Vec<usize> {
        arm.iter().map(|window| window.text).collect()
    };
    json!([texts(&windows.preview), texts(&windows.final_)])
}

#[test]
fn vectors_hold() {
    let file = vectors();
    let list = file["vectors"].as_array().unwrap();
    assert_eq!(list.len(), 17);
    for vector in list {
        let id = vector["id"].as_str().unwrap();
        let expected = &vector["expected"];
        match vector["fn"].as_str().unwrap() {
            "windows_stratified" => {
                let texts = texts(&file["texts"]);
                let plan = plan(vector, Selection::Stratified);
                let windows = select(&texts, &bytes, &plan).unwrap();
                let want = json!([expected["preview_indices"], expected["final_indices"]]);
                assert_eq!(drawn(&windows), want, "{id}");
                for (arm, key) in [
                    (&windows.preview, "preview_tokens"),
                    (&windows.final_, "final_tokens"),
                ] {
                    let lengths: Vec<usize> = arm.iter().map(|w| w.tokens.len()).collect();
                    assert_eq!(json!(lengths), expected[key], "{id}");
                }
            }
            "windows_shuffle" => {
                let texts = texts(&vector["texts"]);
                let plan = plan(vector, Selection::Shuffled);
                let windows = select(&texts, &bytes, &plan).unwrap();
                let want = json!([expected["preview_indices"], expected["final_indices"]]);
                assert_eq!(drawn(&windows), want, "{id}");
            }
            "difficulty" => {
                let texts = texts(&vector["texts"]);
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                for (got, want) in difficulty(&texts).iter().zip(expected.as_array().unwrap()) {
                    assert!((got - want.as_f64().unwrap()).abs() < 1e-12, "{id}");
                }
            }
            "stratify" => {
                let values = vector["difficulties"].as_array().unwrap().iter();
                let items: Vec<(f64, usize)> = values
                    .enumerate()
                    .map(|(i, d)| (d.as_f64().unwrap(), i))
                    .collect();
                let (preview, final_) =
                    stratify(&items, count(vector, "preview_n"), count(vector, "final_n"));
                let want = json!([expected["preview"], expected["final"]]);
                assert_eq!(json!([preview, final_]), want, "{id}");
            }
            "dedupe_reduction" => {
                let profile = Profile::from_name(vector["profile"].as_str().unwrap()).unwrap();
                let requested = count(vector, "requested_per_arm");
                let repeats = |per_arm: usize| usize::from(per_arm > 20);
                match reduce_duplicates(requested, profile, repeats) {
                    Ok(steps) => {
                        let left = steps.last().map_or(requested, |step| step.per_arm);
                        let steps: Vec<Value> = steps
                            .iter()
                            .map(|s| json!({"deficit": s.deficit, "proposed_per_arm": s.per_arm}))
                            .collect();
                        let got =
                            json!({"actual_preview": left, "actual_final": left, "steps": steps});
                        assert_eq!(&got, expected, "{id}");
                    }
                    Err(error) => {
                        assert!(matches!(error, Error::BelowWindowFloor { .. }), "{error}");
                        assert_eq!(expected["error"], "below_window_floor", "{id}");
                    }
                }
            }
            "calibration_pick" => {
                let policy = match vector["policy"].as_str().unwrap() {
                    "evenly_spaced" => Sample::EvenlySpaced,
                    "last" => Sample::Last,
                    _ => Sample::First,
                };
                let got = sample(count(vector, "n"), count(vector, "count"), policy);
                assert_eq!(&json!(got), expected, "{id}");
            }
            other => panic!("unknown function {other}"),
        }
    }
}

#[test]
fn pairing_vectors_hold() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/vectors/guards/primary_metric.json"
    );
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut seen = 0;
    for vector in file["vectors"].as_array().unwrap() {
        if vector["fn"] != "pairing" {
            continue;
        }
        seen += 1;
        let list =
            |key: &str| -> Vec<Vec<u32>> { serde_json::from_value(vector[key].clone()).unwrap() };
        let mut windows = list("preview_tokens");
        windows.extend(list("final_tokens"));
        let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let got = Pairing::new(
            count(vector, "seq_len"),
            count(vector, "stride"),
            &windows,
            4,
            4,
        );
        let got = json!({
            "overlap_fraction": got.overlap_fraction,
            "duplicate_fraction": got.duplicate_fraction,
            "match_fraction": got.match_fraction,
            "reason": got.reason,
        });
        assert_eq!(got, vector["expected"], "{}", vector["id"]);
    }
    assert_eq!(seen, 3);
}

fn base() -> WindowPlan {
    WindowPlan {
        seq_len: 16,
        preview: 4,
        final_: 4,
        seed: 42,
        run: 0,
        selection: Selection::FileOrder,
        profile: Profile::Dev,
    }
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("text number {i}")).collect()
}

#[test]
fn file_order_takes_the_first_texts() {
    let mut texts = numbered(9);
    texts[2] = "x".into(); // One token: no loss, so it is passed over.
    let windows = select(&texts, &bytes, &base()).unwrap();
    assert_eq!(drawn(&windows), json!([[0, 1, 3, 4], [5, 6, 7, 8]]));
    assert_eq!(
        windows.all().map(|w| w.id).collect::<Vec<_>>(),
        (0..8).collect::<Vec<_>>()
    );
    assert!(windows.all().all(|w| w.tokens.len() <= 16));
    assert_eq!((windows.short, windows.duplicates), (1, 0));
}

#[test]
fn repeated_texts_shrink_file_order() {
    // Text 59 repeats text 0: 30 per arm do not work, 25 do.
    let mut texts = numbered(60);
    texts[59] = texts[0].clone();
    let plan = WindowPlan {
        preview: 30,
        final_: 30,
        ..base()
    };
    let windows = select(&texts, &bytes, &plan).unwrap();
    assert_eq!((windows.preview.len(), windows.final_.len()), (25, 25));
    assert_eq!((windows.reductions.len(), windows.duplicates), (1, 1));
    let error = select(&vec!["the same".to_owned(); 60], &bytes, &plan)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("below the floor of 15 of profile dev"),
        "{error}"
    );
}

#[test]
fn runs_differ_and_repeat() {
    let texts = numbered(200);
    for selection in [Selection::Stratified, Selection::Shuffled] {
        let draw = |seed, run| {
            let plan = WindowPlan {
                seed,
                run,
                selection,
                ..base()
            };
            drawn(&select(&texts, &bytes, &plan).unwrap())
        };
        assert_eq!(draw(42, 0), draw(42, 0));
        assert_ne!(draw(42, 0), draw(42, 1));
        assert_eq!(draw(42, 1), draw(43, 0));
    }
}

#[test]
fn errors_name_counts() {
    for selection in [
        Selection::FileOrder,
        Selection::Stratified,
        Selection::Shuffled,
    ] {
        let plan = WindowPlan {
            selection,
            ..base()
        };
        let mut texts = numbered(6);
        texts.push("x".into());
        let error = select(&texts, &bytes, &plan).unwrap_err().to_string();
        assert!(
            error.contains("4 preview and 4 final were asked for, but of 7 texts only 6 can be used (1 are shorter than two tokens, 0 repeat another)"),
            "{error}"
        );
        let error = select(&["x".to_owned()], &bytes, &plan)
            .unwrap_err()
            .to_string();
        assert!(error.contains("none of 1 texts has two tokens"), "{error}");
    }
    let texts = vec!["the same".to_owned(); 20];
    let plan = WindowPlan {
        selection: Selection::Shuffled,
        ..base()
    };
    let error = select(&texts, &bytes, &plan).unwrap_err().to_string();
    assert!(
        error.contains("only 1 can be used (0 are shorter than two tokens, 19 repeat another)"),
        "{error}"
    );
    // Reading in file order tolerates repeats, but they do not make windows when there are too few.
    let plan = WindowPlan {
        selection: Selection::FileOrder,
        preview: 30,
        final_: 30,
        ..base()
    };
    let error = select(&texts, &bytes, &plan).unwrap_err().to_string();
    assert!(
        error.contains("only 1 can be used (0 are shorter than two tokens, 19 repeat another)"),
        "{error}"
    );
    let plan = WindowPlan {
        seq_len: 1,
        ..base()
    };
    assert!(matches!(
        select(&texts, &bytes, &plan),
        Err(Error::WindowPlan(_))
    ));
    let plan = WindowPlan {
        preview: 0,
        ..base()
    };
    assert!(matches!(
        select(&texts, &bytes, &plan),
        Err(Error::WindowPlan(_))
    ));
}
