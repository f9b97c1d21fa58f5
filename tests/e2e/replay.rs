//! `pack verify --replay`: a run's pack follows from its own tables, and a pack in which one digit was changed does not, even
//! where the forger signs with a key of his own and makes every digest and signature fit again.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use insta::assert_snapshot;
use packhost_pack::checksums::{self, Form, Line};
use packhost_pack::verify::{VerifyOptions, verify};
use packhost_pack::{ExitClass, canonical, digest, keys, layout, signature};
use packhost_plugin::{CacheDir, Engine, EngineOptions, Limits};
use packhost_suite::replay::{Difference, Form as RunForm, Replay, replay_pack};
use serde_json::{Value, json};

use crate::run::source;
use crate::support::{Bench, change_json, copy, files, json as read_json, repository};

/// A finished run with every kind of file in its pack: several seeds, perturbations, probes, a subject that cannot be run.
pub fn sealed() -> &'static Bench {
    static RUN: OnceLock<Bench> = OnceLock::new();
    RUN.get_or_init(|| {
        let bench = Bench::shared("replayed");
        source(&bench);
        for key in ["signer.key.pem", "forger.key.pem"] {
            let made = bench.line(&format!("pack keygen {key}")).output().unwrap();
            assert!(made.status.success());
        }
        let output = bench
            .line(
                "run --suite demo --suites-file [REPO]/scenarios/suites.json --plugins [REPO]/plugins \
                 --scenario-ids quant_4bit_clean,prune_50pct_stress,shape_mismatch,rmt_norm_noise_strong,ve_mlp_scale_skew_up \
                 --calibration-runs 3 --clean-runs 2 --signing-key signer.key.pem --out run",
            )
            .output()
            .unwrap();
        assert!(
            bench.path("run/evidence_pack").is_dir(),
            "{}",
            bench.render(&output)
        );
        bench
    })
}

/// A pack of its own for one forgery.
pub struct Forgery {
    pub bench: Bench,
}

impl Forgery {
    pub fn new() -> Self {
        let bench = Bench::new();
        copy(&sealed().path("run/evidence_pack"), &bench.path("pack"));
        Self { bench }
    }

    pub fn pack(&self) -> std::path::PathBuf {
        self.bench.path("pack")
    }

    /// Changes a JSON file, in the form in which files of a pack are written.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let path = self.pack().join(name);
        let ends = fs::read(&path).unwrap().ends_with(b"\n");
        change_json(&path, change);
        let mut text = canonical::to_pretty(&read_json(&path));
        if ends {
            text.push('\n');
        }
        fs::write(path, text).unwrap();
    }

    /// Makes every digest fit what lies in the pack, and signs with the forger's own key.
    pub fn reseal(&self) {
        let pack = self.pack();
        let sha = |name: &str| digest::hex(&fs::read(pack.join(name)).unwrap());
        for name in files(&pack).keys().filter(|name| layout::is_report(name)) {
            let beside = name.replace(layout::REPORT, layout::RUNTIME_MANIFEST);
            let path = pack.join(&beside);
            let mut manifest = read_json(&path);
            manifest["report"]["sha256"] = json!(sha(name));
            fs::write(path, canonical::pretty_file(&manifest)).unwrap();
        }
        let list = fs::read(pack.join(layout::CHECKSUMS)).unwrap();
        let lines: Vec<Line> = checksums::parse(&list)
            .lines
            .into_iter()
            .filter(|line| pack.join(&line.name).is_file())
            .map(|line| Line {
                digest: sha(&line.name),
                name: line.name,
            })
            .collect();
        let list = checksums::write(&lines, Form::V2);
        let mut manifest = read_json(&pack.join(layout::MANIFEST));
        manifest["checksums_sha256_digest"] = json!(digest::hex(&list));
        fn fit(value: &mut Value, sha: &dyn Fn(&str) -> String) {
            if let (Some(path), true) = (value["path"].as_str(), value["digest"].is_string()) {
                value["digest"] = json!(format!("sha256:{}", sha(path)));
            }
        }
        fit(&mut manifest["subject"], &sha);
        fit(&mut manifest["environment"], &sha);
        fit(&mut manifest["invocation"]["config_source"], &sha);
        for material in manifest["materials"].as_array_mut().unwrap() {
            fit(material, &sha);
        }
        let key = keys::load_signing(&sealed().path("forger.key.pem")).unwrap();
        manifest["signing_key_fingerprint"] = json!(keys::fingerprint(&key.verifying_key()));
        let bytes = canonical::line_file(&manifest);
        let bundle = canonical::line_file(&signature::sign(&bytes, &key).unwrap());
        for (name, bytes) in [
            (layout::CHECKSUMS, &list),
            (layout::MANIFEST, &bytes),
            (layout::SIGNATURE, &bundle),
        ] {
            fs::write(pack.join(name), bytes).unwrap();
            fs::write(pack.join("metadata").join(name), bytes).unwrap();
        }
    }

    /// What a replay finds in the resealed pack; none where verifying refuses it already.
    pub fn differences(&self) -> Option<Vec<Difference>> {
        self.reseal();
        replayed(&self.pack())
    }
}

fn replayed(pack: &Path) -> Option<Vec<Difference>> {
    replay(pack).map(|replay| replay.differences)
}

fn replay(pack: &Path) -> Option<Replay> {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| {
        Engine::new(EngineOptions {
            limits: Limits::default(),
            cache: CacheDir::At(repository().join("target/test-plugin-cache")),
        })
        .unwrap()
    });
    let options = VerifyOptions {
        strict: true,
        ..VerifyOptions::default()
    };
    let verification = verify(pack, &options);
    if verification.exit != ExitClass::Ok {
        println!("verify: {:?}", verification.failures);
        return None;
    }
    Some(replay_pack(&verification.files.unwrap(), engine))
}

#[test]
fn a_pack_replays() {
    let bench = sealed();
    assert_snapshot!(bench.says("pack verify run/evidence_pack --strict --replay"), @r"
    exit: 0
    ----- stdout -----
    verified: every byte is as signed by sha256:[digest]; whether that is the right signer was not asked (--expected-fingerprint)
    replayed: 8 reports and 64 verdicts of guards follow from the pack's tables, and 77 files have the derived bytes; 12 are taken as they stand
    ");
    // Nothing but its rows: the answer is the same in a folder without plugins, without a cache, and on one thread.
    let output = bench
        .line("pack verify run/evidence_pack --strict --replay --json")
        .env("PACKHOST_PLUGIN_CACHE", "")
        .env("RAYON_NUM_THREADS", "1")
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let replay = &answer["packhost"]["replay"];
    assert_eq!(replay["status"], "agrees", "{replay:#}");
    assert_eq!(replay["differences"], json!([]));
}

#[test]
fn an_untouched_pack_survives_the_forgers_tools() {
    assert_eq!(Forgery::new().differences(), Some(Vec::new()));
}

pub const MODEL: &str = "packhost__demo";

/// A change that only a replay can see, and where that must point.
struct Lie {
    file: String,
    change: fn(&mut Value),
    check_id: &'static str,
    pointer: &'static str,
}

#[test]
fn one_changed_value_is_found_and_named() {
    let report = |rest: &str| format!("reports/{MODEL}/{rest}/evaluation.report.json");
    let own = |rest: &str| format!("metadata/packhost/{rest}");
    fn more(value: &mut Value) {
        *value = match value.as_f64() {
            Some(number) if value.is_f64() => json!(number * 1.001),
            Some(number) => json!(number as i64 + 1),
            None => json!(!value.as_bool().unwrap()),
        };
    }
    let lies = [
        Lie {
            file: report("quant_4bit_clean/run_1"),
            change: |report| more(&mut report["packhost"]["divergence"]["final"]["kl"]["mean"]),
            check_id: "replay.report",
            pointer: "/packhost/divergence/final/kl/mean",
        },
        Lie {
            file: report("quant_4bit_clean/run_2"),
            change: |report| more(&mut report["packhost"]["guards"][1]["fuel"]),
            check_id: "replay.guard",
            pointer: "/packhost/guards/1/fuel",
        },
        Lie {
            file: report("prune_50pct_stress/run_1"),
            change: |report| more(&mut report["spectral"]["caps_applied"]),
            check_id: "replay.guard",
            pointer: "/spectral/caps_applied",
        },
        Lie {
            file: report("prune_50pct_stress/run_1"),
            change: |report| more(&mut report["validation"]["rmt_stable"]),
            check_id: "replay.flag",
            pointer: "/validation/rmt_stable",
        },
        Lie {
            file: report("errors/shape_mismatch/run_1"),
            change: |report| more(&mut report["invariants"]["summary"]["fatal_violations"]),
            check_id: "replay.guard",
            pointer: "/invariants/summary/fatal_violations",
        },
        Lie {
            file: report("quant_4bit_clean/run_1"),
            change: |report| more(&mut report["structure"]["params_changed"]),
            check_id: "replay.report",
            pointer: "/structure/params_changed",
        },
        Lie {
            file: own(&format!("baseline_reports/{MODEL}/seed_42.json")),
            change: |report| more(&mut report["primary_metric"]["final"]),
            check_id: "replay.metric",
            pointer: "/primary_metric/final",
        },
        Lie {
            file: format!("reports/{MODEL}/errors/rmt_norm_noise_strong/run_1/rmt_probe.json"),
            change: |probe| probe["subject_model"] = json!("another"),
            check_id: "replay.probe",
            pointer: "/subject_model",
        },
        Lie {
            file: "results/verdicts/final_verdict.json".into(),
            change: |verdict| more(&mut verdict["records"][0]["passed"]),
            check_id: "replay.verdict",
            pointer: "/records/0/passed",
        },
        Lie {
            file: "results/verdicts/final_verdict.json".into(),
            change: |verdict| more(&mut verdict["counts"]["stress_fail"]),
            check_id: "replay.verdict",
            pointer: "/counts/stress_fail",
        },
        Lie {
            file: "results/analysis/guard_signal_summary.json".into(),
            change: |summary| more(&mut summary["signals"]["spectral"]["flagged"]),
            check_id: "replay.summary",
            pointer: "/signals/spectral/flagged",
        },
        Lie {
            file: "results/verification_summary.json".into(),
            change: |summary| more(&mut summary["clean_reports"]),
            check_id: "replay.sealed",
            pointer: "/clean_reports",
        },
        Lie {
            file: format!("reports/{MODEL}/prune_50pct_stress/run_1/runtime.manifest.json"),
            change: |manifest| manifest["runtime"]["image_ref"] = json!("packhost:9.9.9"),
            check_id: "replay.sealed",
            pointer: "/runtime/image_ref",
        },
        Lie {
            file: own(&format!("presets/calibrated_preset_{MODEL}.json")),
            change: |preset| more(&mut preset["_calibration_meta"]["drift_mean"]),
            check_id: "replay.preset",
            pointer: "/_calibration_meta/drift_mean",
        },
        Lie {
            file: own(&format!("{MODEL}/subjects/prune_50pct_stress.changes.json")),
            change: |changes| changes["planned"][1]["name"] = json!("model.norm.weight"),
            check_id: "replay.plan",
            pointer: "/planned/1/name",
        },
        Lie {
            file: own(&format!("{MODEL}/subjects/prune_50pct_stress.changes.json")),
            change: |changes| changes["changed"][0]["shape"] = json!([1, 2]),
            check_id: "replay.plan",
            pointer: "/changed/0/shape/0",
        },
        Lie {
            file: own(&format!(
                "{MODEL}/subjects/rmt_norm_noise_strong.changes.json"
            )),
            change: |changes| changes["changed"][0]["layer"] = json!(70),
            check_id: "replay.changes",
            pointer: "/changed/0/layer",
        },
        Lie {
            file: format!("reports/{MODEL}/quant_4bit_clean/run_1/edit_metadata.json"),
            change: |metadata| more(&mut metadata["coverage"]["edited_params"]),
            check_id: "replay.edit",
            pointer: "/coverage/edited_params",
        },
        Lie {
            file: own(&format!("models/{MODEL}.json")),
            change: |facts| more(&mut facts["network"]["tensors"][0]["shape"][0]),
            check_id: "replay.model",
            pointer: "/network/tensors/0/shape/0",
        },
        Lie {
            file: own("run.json"),
            change: |record| record["guards"][0]["version"] = json!("9.9.9"),
            check_id: "replay.component",
            pointer: "/guards/0/version",
        },
    ];
    for lie in lies {
        let forgery = Forgery::new();
        forgery.change(&lie.file, lie.change);
        let found = forgery
            .differences()
            .unwrap_or_else(|| panic!("{} {}: verifying saw it", lie.file, lie.pointer));
        let named = found.iter().any(|difference| {
            (difference.check_id, &difference.file, &*difference.pointer)
                == (lie.check_id, &lie.file, lie.pointer)
        });
        assert!(named, "{} {}: {found:#?}", lie.file, lie.pointer);
    }
}

/// Changes the last digit of a table that makes no other table of it, and answers the new digest.
pub fn falsify(path: &Path) -> (String, String) {
    let text = fs::read_to_string(path).unwrap();
    // A digit in the middle of a loss: whatever stands there, 3 and 7 are no last zero.
    let from = text.find("window.loss").unwrap();
    let at = from + text[from..].find('.').unwrap();
    let at = text[at + 7..].find(|c: char| c.is_ascii_digit()).unwrap() + at + 7;
    let new = if text[at..].starts_with('3') {
        "7"
    } else {
        "3"
    };
    let mut forged = text.clone();
    forged.replace_range(at..=at, new);
    fs::write(path, &forged).unwrap();
    (digest::hex(text.as_bytes()), digest::hex(forged.as_bytes()))
}

#[test]
fn a_changed_table_is_found_and_named() {
    let table = format!("metadata/packhost/tables/{MODEL}/prune_50pct_stress/run_1.json");
    let forgery = Forgery::new();
    falsify(&forgery.pack().join(&table));
    let found = forgery.differences().unwrap();
    let named =
        |difference: &Difference| difference.check_id == "replay.table" && difference.file == table;
    assert!(found.iter().any(named), "{found:#?}");

    // Where the report names the forged table as well, what follows from it does not fit.
    let forgery = Forgery::new();
    let (old, new) = falsify(&forgery.pack().join(&table));
    let report = format!("reports/{MODEL}/prune_50pct_stress/run_1/evaluation.report.json");
    let path = forgery.pack().join(&report);
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace(&old, &new).replace(&old[..16], &new[..16]);
    fs::write(&path, text).unwrap();
    let found = forgery.differences().unwrap();
    let metric = |difference: &Difference| {
        difference.check_id == "replay.metric" && difference.file == report
    };
    assert!(found.iter().any(metric), "{found:#?}");
    assert!(!found.iter().any(named), "{found:#?}");
}

/// A forger who changes one side of a binding everywhere that it is written is found by the other.
#[test]
fn facts_windows_and_changes_are_bound_to_the_tables() {
    let find = |forgery: &Forgery, check_id: &str, file: &str, pointer: &str| {
        let found = forgery.differences().unwrap();
        let named = found.iter().any(|difference| {
            (difference.check_id, &*difference.file, &*difference.pointer)
                == (check_id, file, pointer)
        });
        assert!(named, "{check_id} {file}: {found:#?}");
    };
    let digit = |text: &str| {
        let first = if text.starts_with('0') { '1' } else { '0' };
        format!("{first}{}", &text[1..])
    };

    // The digest of the weights, in the preset's both spellings.
    let forgery = Forgery::new();
    let preset = format!("metadata/packhost/presets/calibrated_preset_{MODEL}.json");
    let old = read_json(&forgery.pack().join(&preset))["model"]["sha256"].clone();
    let old = old.as_str().unwrap().to_owned();
    for name in [preset.clone(), preset.replace(".json", ".yaml")] {
        let path = forgery.pack().join(name);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(&old));
        fs::write(&path, text.replace(&old, &digit(&old))).unwrap();
    }
    find(&forgery, "replay.preset", &preset, "/model/sha256");

    // And in the model's facts as well: it does not follow from the tensors' digests, and the tables name other facts.
    let facts = format!("metadata/packhost/models/{MODEL}.json");
    forgery.change(&facts, |facts| {
        facts["weights"]["sha256"] = json!(digit(&old))
    });
    find(&forgery, "replay.model", &facts, "/weights/sha256");
    find(&forgery, "replay.bound", &facts, "");

    // A token, in the reports of the baseline and of every subject on these windows.
    let forgery = Forgery::new();
    let names = files(&forgery.pack()).into_keys();
    let mut forged = 0;
    for name in names.filter(|name| layout::is_report(name) || name.contains("baseline_reports/")) {
        forgery.change(&name, |report| {
            let token = &mut report["evaluation_windows"]["final"]["input_ids"][0][0];
            *token = json!(token.as_u64().unwrap() + 1);
            forged += 1;
        });
    }
    assert_eq!(forged, 8);
    let report = format!("metadata/packhost/baseline_reports/{MODEL}/seed_42.json");
    find(&forgery, "replay.bound", &report, "");

    // A changed tensor's digest.
    let forgery = Forgery::new();
    let changes = format!("metadata/packhost/{MODEL}/subjects/quant_4bit_clean.changes.json");
    forgery.change(&changes, |changes| {
        let sha256 = &mut changes["changed"][0]["sha256"];
        *sha256 = json!(digit(sha256.as_str().unwrap()));
    });
    find(&forgery, "replay.bound", &changes, "");

    // A tensor that was changed and is not listed: the plan still names it, so nothing but its digest says that it changed.
    // One that is listed and was not in the plan:
    let forgery = Forgery::new();
    forgery.change(&changes, |changes| {
        changes["changed"][0]["name"] = json!("a.first.tensor");
    });
    let found = forgery.differences().unwrap();
    let named = |difference: &Difference| {
        difference.check_id == "replay.plan" && difference.derived.contains("a.first.tensor")
    };
    assert!(found.iter().any(named), "{found:#?}");
}

#[test]
fn a_forged_report_carries_no_forged_verdict() {
    // The forger takes the spectral guard's caps out of the report and out of the verdict.
    let forgery = Forgery::new();
    let report = format!("reports/{MODEL}/prune_50pct_stress/run_1/evaluation.report.json");
    forgery.change(&report, |report| {
        assert_ne!(report["spectral"]["caps_applied"], 0);
        report["spectral"]["caps_applied"] = json!(0);
    });
    forgery.change("results/verdicts/final_verdict.json", |verdict| {
        let records = verdict["records"].as_array_mut().unwrap();
        let record = records
            .iter_mut()
            .find(|record| record["name"] == "prune_50pct_stress");
        record.unwrap()["spectral_caps_applied"] = json!(0);
    });
    let found = forgery.differences().unwrap();
    let of = |file: &str| found.iter().any(|difference| difference.file == file);
    assert!(
        of(&report) && of("results/verdicts/final_verdict.json"),
        "{found:#?}"
    );
}

#[test]
fn what_is_missing_or_too_much_is_named() {
    let find = |forgery: &Forgery, check_id: &str, part: &str| {
        let found = forgery.differences().unwrap();
        let named = found
            .iter()
            .any(|difference| difference.check_id == check_id && difference.file.contains(part));
        assert!(named, "{check_id} {part}: {found:#?}");
    };
    let forgery = Forgery::new();
    fs::remove_file(forgery.pack().join("metadata/packhost/run.json")).unwrap();
    find(&forgery, "replay.missing", "run.json");

    let forgery = Forgery::new();
    let run = format!("reports/{MODEL}/quant_4bit_clean/run_2");
    fs::remove_dir_all(forgery.pack().join(&run)).unwrap();
    find(&forgery, "replay.missing", "run_2");

    let forgery = Forgery::new();
    let table = format!("metadata/packhost/tables/{MODEL}/baseline/seed_42.json");
    fs::remove_file(forgery.pack().join(&table)).unwrap();
    find(&forgery, "replay.table", "seed_42");

    // Another component under the name of the one that judged.
    let forgery = Forgery::new();
    let components = forgery.pack().join("metadata/packhost/components");
    let mut all: Vec<_> = fs::read_dir(&components)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    all.sort();
    fs::write(&all[0], fs::read(&all[1]).unwrap()).unwrap();
    find(&forgery, "replay.component", "/components/");

    let forgery = Forgery::new();
    let lock = forgery.pack().join("metadata/packhost/plugins.lock");
    let text = fs::read_to_string(&lock).unwrap();
    let at = text.find("id = \"spectral\"").unwrap();
    let at = at + text[at..].find("sha256 = \"").unwrap() + 10;
    let mut forged = text.clone();
    let new = if text[at..].starts_with('0') {
        "1"
    } else {
        "0"
    };
    forged.replace_range(at..=at, new);
    fs::write(&lock, forged).unwrap();
    find(&forgery, "replay.lock", "plugins.lock");
}

#[test]
fn settings_that_would_keep_a_replay_busy_are_refused() {
    let hostile: [fn(&mut Value); 4] = [
        |record| record["counts"]["clean_runs"] = json!(4_000_000_000_u32),
        |record| record["counts"]["seed"] = json!(u64::MAX),
        |record| record["counts"]["calibration_runs"] = json!(-1),
        |record| record["tier"] = json!("none"),
    ];
    for change in hostile {
        let forgery = Forgery::new();
        forgery.change("metadata/packhost/run.json", change);
        let found = forgery.differences().unwrap();
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].file.ends_with("run.json"));
    }
    // A preset that is none, in a pack that says that it was given from outside.
    for preset in [json!([1]), json!({"_calibration_meta": 3, "guards": []})] {
        let forgery = Forgery::new();
        forgery.change("metadata/packhost/run.json", |record| {
            record["preset"] = json!("given");
        });
        let name = format!("metadata/packhost/presets/calibrated_preset_{MODEL}.json");
        forgery.change(&name, |stated| *stated = preset);
        let found = forgery.differences().unwrap();
        let named = |difference: &Difference| difference.check_id == "replay.preset";
        assert!(found.iter().any(named), "{found:#?}");
    }
}

#[test]
fn a_page_that_shows_something_else_is_named() {
    let forgery = Forgery::new();
    let page = forgery.pack().join(layout::PAGE);
    let drawn = fs::read_to_string(&page).unwrap();
    assert!(drawn.contains("Content-Security-Policy") && drawn.contains(">PASS<"));
    fs::write(&page, drawn.replacen(">PASS<", ">FAIL<", 1)).unwrap();
    let found = forgery.differences().unwrap();
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        (found[0].check_id, found[0].file.as_str()),
        ("replay.page", layout::PAGE)
    );

    let forgery = Forgery::new();
    fs::remove_file(forgery.pack().join(layout::PAGE)).unwrap();
    forgery.change(layout::MANIFEST, |manifest| {
        let artifacts = manifest["artifacts"].as_array_mut().unwrap();
        artifacts.retain(|artifact| artifact != layout::PAGE);
    });
    let found = forgery.differences().unwrap();
    let named = |difference: &Difference| {
        difference.check_id == "replay.missing" && difference.file == layout::PAGE
    };
    assert!(found.iter().any(named), "{found:#?}");
}

/// A pack of this form, made to look like one of the form before, by a signer who makes everything fit.
fn downgraded() -> Forgery {
    let forgery = Forgery::new();
    let settings = |record: &Value| {
        let mut record = record.clone();
        record.as_object_mut().unwrap().remove("began");
        digest::hex(packhost_measure::canonical::to_line(&record).as_bytes())
    };
    let run = "metadata/packhost/run.json";
    let old = settings(&read_json(&forgery.pack().join(run)));
    forgery.change(run, |record| {
        record["schema"] = json!(RunForm::One.schema())
    });
    let new = settings(&read_json(&forgery.pack().join(run)));
    let names = files(&forgery.pack()).into_keys();
    let mut named = 0;
    for name in names.filter(|name| layout::is_report(name) || name.contains("baseline_reports/")) {
        let path = forgery.pack().join(name);
        let text = fs::read_to_string(&path).unwrap();
        named += text.matches(&old).count();
        fs::write(&path, text.replace(&old, &new)).unwrap();
    }
    assert!(named >= 8);
    let readme = forgery.pack().join("README.md");
    let text = fs::read_to_string(&readme).unwrap();
    let lines = text.lines().filter(|line| !line.contains(layout::PAGE));
    fs::write(
        &readme,
        lines.map(|line| format!("{line}\n")).collect::<String>(),
    )
    .unwrap();
    forgery
}

#[test]
fn an_older_form_is_replayed_as_far_as_it_goes_and_never_unsaid() {
    let forgery = downgraded();
    fs::remove_file(forgery.pack().join(layout::PAGE)).unwrap();
    forgery.change(layout::MANIFEST, |manifest| {
        let artifacts = manifest["artifacts"].as_array_mut().unwrap();
        artifacts.retain(|artifact| artifact != layout::PAGE);
    });
    forgery.reseal();
    let mut replay = replay(&forgery.pack()).unwrap();
    assert_eq!(
        (replay.form, &replay.differences),
        (Some(RunForm::One), &Vec::new())
    );
    assert_eq!(replay.json()["form"], 1);
    assert_eq!(replay.json()["lacks"].as_array().map(Vec::len), Some(1));
    replay.require_form(1);
    assert!(replay.agrees());
    replay.require_form(2);
    assert_eq!(replay.differences[0].check_id, "replay.form");
    let said = forgery.bench.says("pack verify pack --strict --replay");
    assert!(
        said.starts_with("exit: 0")
            && said.contains("the pack is of form 1, this program writes 2"),
        "{said}"
    );
    for (line, code) in [
        ("--replay --require-form 2", 19),
        ("--replay --require-form 3", 2),
        ("--require-form 1", 2),
    ] {
        let said = forgery
            .bench
            .says(&format!("pack verify pack --strict {line}"));
        assert!(
            said.starts_with(&format!("exit: {code}\n")),
            "{line}: {said}"
        );
    }

    // A page in a pack of a form that has none could show anything.
    let forgery = downgraded();
    let found = forgery.differences().unwrap();
    let named = |difference: &Difference| {
        difference.check_id == "replay.unexpected" && difference.file == layout::PAGE
    };
    assert!(found.iter().any(named), "{found:#?}");

    // Who does not make everything fit is found by what the reports say of the settings.
    let forgery = Forgery::new();
    forgery.change("metadata/packhost/run.json", |record| {
        record["schema"] = json!(RunForm::One.schema())
    });
    let found = forgery.differences().unwrap();
    let named = |difference: &Difference| {
        difference.check_id == "replay.bound" && difference.file.ends_with("run.json")
    };
    assert!(found.iter().any(named), "{found:#?}");
}

#[test]
fn two_packs_are_compared() {
    let forgery = Forgery::new();
    let before = sealed().path("run/evidence_pack");
    let line = format!("pack diff {} pack", before.display());
    assert_snapshot!(forgery.bench.says(&line), @r"
    exit: 0
    ----- stdout -----
    the packs hold the same files
    ");
    let report = format!("reports/{MODEL}/quant_4bit_clean/run_1/evaluation.report.json");
    forgery.change(&report, |report| {
        report["primary_metric"]["ratio_vs_baseline"] = json!(1.5);
    });
    forgery.change("results/verdicts/final_verdict.json", |verdict| {
        verdict["verdict"] = json!("MAYBE");
        let records = verdict["records"].as_array_mut().unwrap();
        records[0]["passed"] = json!("perhaps");
    });
    forgery.reseal();
    let output = forgery.bench.says(&line);
    for part in [
        "verdict     final verdict verdict: ",
        " -> MAYBE",
        "passed: true -> perhaps",
        "ratio: 1.",
        " -> 1.5",
        "file        results/verdicts/final_verdict.json: ",
    ] {
        assert!(output.contains(part), "{part}: {output}");
    }
    let output = forgery
        .bench
        .line(&format!("{line} --json"))
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["format_version"], "packhost-pack-diff-v1");
    assert!(
        answer["changes"].as_array().unwrap().len() >= 5,
        "{answer:#}"
    );
    // What is not as it was signed is not compared.
    fs::write(forgery.pack().join("README.md"), "other").unwrap();
    assert!(forgery.bench.says(&line).contains("exit: 6"));
}
