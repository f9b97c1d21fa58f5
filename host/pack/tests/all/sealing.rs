//! Sealing a run: the result verifies, is the same for the same inputs, and a kill at any moment leaves the whole pack or none.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use packhost_pack::provenance::{Gpus, Runtime, environment};
use packhost_pack::report_rules::{Assurance, Profile};
use packhost_pack::seal::{Entry, Model, RunInfo, SealRequest, Sealed, seal};
use packhost_pack::verdict::{self, FinalVerdict, JudgeOptions, RecordInput};
use packhost_pack::verify::{VerifyOptions, verify};
use packhost_pack::{Error, ExitClass, keys};
use serde_json::{Value, json};

use crate::fixtures;

const MODEL: &str = "demo__tiny-lm";
const REPORTS: [(&str, u32, &str); 4] = [
    ("prune_clean", 1, "prune_clean/run_1"),
    ("prune_50pct_stress", 1, "prune_50pct_stress/run_1"),
    ("quant_4bit_stress", 1, "quant_4bit_stress/run_1"),
    ("nan_injection", 0, "errors/nan_injection"),
];

/// The run behind the layout-v2 pack, with tables and a lock as a run leaves them.
fn entries() -> Vec<Entry> {
    let mut entries = vec![
        Entry::file(
            "metadata/tuned_edit_params.json",
            fixtures::root().join("packs/layout_v2/metadata/tuned_edit_params.json"),
        ),
        Entry::bytes("metadata/packhost/plugins.lock", "version = 1\n"),
        Entry::bytes("metadata/packhost/components/00.wasm", vec![0; 300_000]),
    ];
    for (_, _, rest) in REPORTS {
        let folder = fixtures::root()
            .join("packs/layout_v2/reports")
            .join(MODEL)
            .join(rest);
        entries.push(Entry::file(
            format!("reports/{MODEL}/{rest}/evaluation.report.json"),
            folder.join("evaluation.report.json"),
        ));
        if folder.join("edit_metadata.json").exists() {
            entries.push(Entry::file(
                format!("reports/{MODEL}/{rest}/edit_metadata.json"),
                folder.join("edit_metadata.json"),
            ));
        }
    }
    entries
}

fn scenarios() -> Value {
    fixtures::json("packs/layout_v2/metadata/scenarios.json")
}

fn judged(skip: &str) -> FinalVerdict {
    let reports: Vec<(&str, u32, &str, Value)> = REPORTS
        .into_iter()
        .filter(|(scenario, ..)| *scenario != skip)
        .map(|(scenario, run, rest)| {
            (
                scenario,
                run,
                rest,
                fixtures::json(&format!(
                    "packs/layout_v2/reports/{MODEL}/{rest}/evaluation.report.json"
                )),
            )
        })
        .collect();
    let inputs: Vec<RecordInput<'_>> = reports
        .iter()
        .map(|(scenario, run, path, report)| RecordInput {
            model: MODEL,
            scenario,
            run: *run,
            path,
            report,
            baseline: None,
            rmt_probe: None,
            ve_probe: None,
        })
        .collect();
    let options = JudgeOptions {
        timestamp: "2026-01-02T03:04:05Z",
        manifest_path: "state/scenarios.json",
    };
    verdict::judge_run(
        &verdict::scenarios(&scenarios()).unwrap(),
        &[MODEL.to_owned()],
        &inputs,
        options,
    )
    .unwrap()
}

fn runtime() -> Runtime {
    Runtime {
        image_ref: "packhost:test".into(),
        image_digest: packhost_pack::digest::prefixed(b"image"),
        generated_at: "2026-01-02T03:04:05Z".into(),
        third_party_plugins: false,
        context: None,
    }
}

pub fn seal_with(out: &Path, change: impl FnOnce(&mut SealRequest<'_>)) -> Result<Sealed, Error> {
    seal_table(out, &scenarios(), change)
}

fn seal_table(
    out: &Path,
    scenarios: &Value,
    change: impl FnOnce(&mut SealRequest<'_>),
) -> Result<Sealed, Error> {
    let (verdict, runtime) = (judged(""), runtime());
    let run = RunInfo {
        suite: "subset".into(),
        determinism: "strict".into(),
        run_dir: "runs/demo".into(),
        dataset_kind: "local_jsonl".into(),
        models: vec![Model {
            id: "demo/tiny-lm".into(),
            revision: "r1".into(),
        }],
        ..RunInfo::default()
    };
    let key = keys::load_signing(&fixtures::root().join("keys/signer.pem")).unwrap();
    let (source_repo, environment) = (
        fixtures::json("inputs/meta/source_repo.json"),
        environment("2026-01-02T03:04:05Z", &Gpus::default()),
    );
    let mut request = SealRequest {
        out,
        key: Some(&key),
        entries: entries(),
        verdict: &verdict,
        scenarios: Some(scenarios),
        run: &run,
        source_repo: &source_repo,
        environment: &environment,
        runtime: Some(&runtime),
        generated_at: "2026-01-02T03:04:05Z",
        profile: Profile::Release,
        assurance: Assurance::Strict,
        readme: None,
        page: None,
        require_pass: true,
        release_review: true,
    };
    change(&mut request);
    seal(&request)
}

#[test]
fn a_sealed_run_verifies_at_every_profile() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pack");
    let sealed = seal_with(&out, |_| {}).unwrap();
    assert_eq!((sealed.evidence_level, sealed.warnings), ("high", vec![]));
    for (profile, assurance) in [
        ("dev", "report"),
        ("ci", "report"),
        ("ci", "strict"),
        ("release", "report"),
        ("release", "strict"),
    ] {
        let options = VerifyOptions {
            strict: true,
            require_pass: true,
            profile: profile.into(),
            report_assurance: assurance.into(),
            expected_fingerprint: sealed.signer_fingerprint.clone(),
            ..VerifyOptions::default()
        };
        let result = verify(&out, &options);
        assert!(result.ok(), "{profile} {assurance}: {:?}", result.failures);
        assert_eq!(result.status().name(), "authentic");
    }
    // What the reference pack also holds is the same here.
    for name in [
        "results/analysis/edit_artifact_summary.json",
        "results/analysis/category_summary.json",
        "metadata/scenarios.json",
    ] {
        assert_eq!(
            fs::read(out.join(name)).unwrap(),
            fs::read(fixtures::root().join("packs/layout_v2").join(name)).unwrap(),
            "{name}"
        );
    }
    let summary: Value =
        serde_json::from_slice(&fs::read(out.join("results/verification_summary.json")).unwrap())
            .unwrap();
    for (key, count) in [
        ("clean_reports", 2),
        ("error_injection_reports", 1),
        ("expected_failure_reports", 1),
        ("failed_reports", 0),
    ] {
        assert_eq!(summary[key], json!(count), "{key}");
    }
    for mirror in [
        "manifest.json",
        "manifest.signature.json",
        "checksums.sha256",
    ] {
        assert_eq!(
            fs::read(out.join(mirror)).unwrap(),
            fs::read(out.join("metadata").join(mirror)).unwrap()
        );
    }
    let list = String::from_utf8(fs::read(out.join("checksums.sha256")).unwrap()).unwrap();
    let names: Vec<&str> = list.lines().map(|line| &line[66..]).collect();
    assert!(names.is_sorted() && names.iter().all(|name| name.starts_with("./")));
    assert!(names.contains(&"./reports/demo__tiny-lm/errors/nan_injection/verify.json"));
}

#[test]
fn a_fuller_file_of_revisions_is_taken_as_given() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pack");
    let name = "metadata/model_revisions.json";
    seal_with(&out, |request| {
        request.entries.push(Entry::bytes(name, "{\"more\": 1}"))
    })
    .unwrap();
    assert_eq!(fs::read(out.join(name)).unwrap(), b"{\"more\": 1}");
    assert!(verify(&out, &VerifyOptions::default()).ok());
}

#[test]
fn the_same_run_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut packs = Vec::new();
    for threads in [1, 4] {
        let out = folder.path().join(threads.to_string());
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            seal_with(&out, |request| {
                if threads == 4 {
                    request.entries.reverse();
                }
            })
        })
        .unwrap();
        packs.push(fixtures::files(&out));
    }
    assert!(packs[0] == packs[1]);
}

#[test]
fn the_packed_table_says_what_verifiers_can_check() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pack");
    let mut table = scenarios();
    table["scenarios"][3]["strictness"] = json!("must_detect");
    seal_table(&out, &table, |_| {}).unwrap();
    let packed: Value =
        serde_json::from_slice(&fs::read(out.join("metadata/scenarios.json")).unwrap()).unwrap();
    assert_eq!(packed["scenarios"][3]["strictness"], json!("must_fail"));
    assert_eq!(
        packed["scenarios"][3]["declared_strictness"],
        json!("must_detect")
    );
    // The informational scenario verifies, so nothing is changed about it.
    assert_eq!(packed["scenarios"][2], table["scenarios"][2]);
    let options = VerifyOptions {
        strict: true,
        profile: "release".into(),
        ..VerifyOptions::default()
    };
    assert!(verify(&out, &options).ok());
}

#[test]
fn refusals_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pack");
    let refused = |change: &dyn Fn(&mut SealRequest<'_>)| {
        let error = seal_with(&out, |request| change(request)).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{error}");
        error.exit()
    };
    let failing = judged("prune_clean");
    assert!(!failing.pass);
    let unsigned = |request: &mut SealRequest<'_>| request.key = None;
    assert_eq!(refused(&unsigned), ExitClass::Usage);
    assert_eq!(
        refused(&|request| request.generated_at = "today"),
        ExitClass::Usage
    );
    for name in [
        "",
        "/a",
        "a//b",
        "../a",
        "a/./b",
        "a\\b",
        "a ",
        "._a",
        "x/.DS_Store",
        "manifest.json",
        "Metadata/Manifest.json",
        "README.md",
    ] {
        assert_eq!(
            refused(&|request| request.entries.push(Entry::bytes(name, "x"))),
            ExitClass::Format,
            "{name}"
        );
    }
    assert_eq!(
        refused(&|request| request
            .entries
            .extend([Entry::bytes("a", ""), Entry::bytes("A", "")])),
        ExitClass::Format
    );
    assert_eq!(
        refused(&|request| request.entries.clear()),
        ExitClass::Format
    );
    assert_eq!(
        refused(&|request| request
            .entries
            .retain(|entry| !entry.name.ends_with("prune_clean/run_1/edit_metadata.json"))),
        ExitClass::Format
    );
    assert_eq!(
        refused(&|request| request.entries.push(Entry::file("x", "no-such-file"))),
        ExitClass::Usage
    );
    let error = {
        let (out, failing) = (out.clone(), judged("prune_clean"));
        let scenarios = scenarios();
        seal(&SealRequest {
            out: &out,
            key: None,
            entries: entries(),
            verdict: &failing,
            scenarios: Some(&scenarios),
            run: &RunInfo {
                suite: "s".into(),
                determinism: "d".into(),
                run_dir: "r".into(),
                ..RunInfo::default()
            },
            source_repo: &json!({}),
            environment: &json!({}),
            runtime: None,
            generated_at: "2026-01-02T03:04:05Z",
            profile: Profile::Dev,
            assurance: Assurance::Report,
            readme: None,
            page: None,
            require_pass: true,
            release_review: false,
        })
        .unwrap_err()
    };
    assert_eq!(error.exit(), ExitClass::Verdict);
    // A pack that is there already stays as it is.
    seal_with(&out, |_| {}).unwrap();
    let before = fixtures::files(&out);
    assert_eq!(
        seal_with(&out, |_| {}).unwrap_err().exit(),
        ExitClass::Usage
    );
    assert!(fixtures::files(&out) == before);
}

const CHILD: &str = "PACKHOST_TEST_SEAL_INTO";

/// Not a test of its own: what the child process of the next test does.
#[test]
fn child_that_seals() {
    if let Some(out) = std::env::var_os(CHILD) {
        seal_with(Path::new(&out), |_| {}).unwrap();
    }
}

#[test]
fn a_killed_seal_leaves_the_whole_pack_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let (mut whole, mut none, mut rubbish) = (0, 0, 0);
    let mut attempt = 0_u64;
    // Later and later kills, until some came too late.
    while (none < 10 || whole < 3) && attempt < 400 {
        attempt += 1;
        let parent = folder.path().join(attempt.to_string());
        fs::create_dir(&parent).unwrap();
        let out = parent.join("pack");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sealing::child_that_seals"])
            .env(CHILD, &out)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Wait until it has begun, then a little longer each time.
        while fs::read_dir(&parent).unwrap().next().is_none() && child.try_wait().unwrap().is_none()
        {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_micros(attempt * 1500));
        let _ = child.kill();
        child.wait().unwrap();
        rubbish += fs::read_dir(&parent)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name() != "pack")
            .count();
        if out.exists() {
            whole += 1;
            let options = VerifyOptions {
                strict: true,
                profile: "release".into(),
                ..VerifyOptions::default()
            };
            assert!(verify(&out, &options).ok(), "attempt {attempt}");
        } else {
            none += 1;
        }
    }
    println!("{whole} whole packs, {none} none, {rubbish} abandoned staging folders");
    assert!(
        none > 0 && whole > 0 && rubbish > 0,
        "the kills did not cover the work"
    );
}

/// The same at every single write: a tracer kills the process at the n-th call of each kind that changes a file system.
#[test]
fn a_seal_killed_at_any_write_leaves_the_whole_pack_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let tried = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "true"])
        .output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        let require = std::env::var("PACKHOST_HERMETIC").as_deref() == Ok("require");
        assert!(
            !require || tried.is_ok(),
            "this test needs the program strace (on Debian: the package strace)"
        );
        use std::io::Write;
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: this test needs the program strace and the right to use it: {tried:?}"
        );
        return;
    }
    let (mut whole, mut none) = (0, 0);
    for call in [
        "openat",
        "write",
        "copy_file_range",
        "fsync",
        "fdatasync",
        "mkdir",
        "rename",
        "renameat2",
    ] {
        // The first calls are the test program's own start; from some number on the seal is done before it is killed.
        for count in 1.. {
            let parent = folder.path().join(format!("{call}-{count}"));
            fs::create_dir(&parent).unwrap();
            let out = parent.join("pack");
            let status = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e"])
                .arg(format!("inject={call}:signal=KILL:when={count}"))
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", "sealing::child_that_seals", "--test-threads=1"])
                .env(CHILD, &out)
                .env("RAYON_NUM_THREADS", "1")
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap();
            if out.exists() {
                whole += 1;
                let options = VerifyOptions {
                    strict: true,
                    ..VerifyOptions::default()
                };
                assert!(verify(&out, &options).ok(), "{call} {count}");
            } else {
                none += 1;
            }
            fs::remove_dir_all(&parent).unwrap();
            if status.success() {
                break;
            }
        }
    }
    println!("{whole} whole packs, {none} none");
    assert!(
        none > 50 && whole > 5,
        "{none} {whole}: the kills did not cover the work"
    );
}
