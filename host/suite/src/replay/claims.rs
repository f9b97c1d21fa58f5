//! What a pack claims about the run as a whole: the verdict with its summaries, what sealing added, and the manifest.

use packhost_pack::layout;
use packhost_pack::report_rules::Assurance;
use packhost_pack::seal::{self, Again, Draw as _, Model};
use packhost_pack::verdict::{self, FinalVerdict, JudgeOptions, RecordInput};
use serde_json::{Value, json};

use super::difference::Findings;
use super::evidence::Evidence;
use super::models::Derived;
use crate::page::PackPage;
use crate::run::packing::{pack_profile, scenario_filter};

/// Derives these claims and compares.
pub fn derive(evidence: &Evidence<'_>, models: &[Derived], findings: &mut Findings) {
    match judge(evidence, models) {
        Ok(verdict) => {
            let record = &evidence.record;
            let readme = seal::default_readme(
                &record.suite,
                verdict.word(),
                &record.began,
                evidence.form.has_page(),
            );
            findings.file(
                evidence.files,
                &|_| "replay.sealed",
                "README.md",
                readme.as_bytes(),
            );
            for (name, bytes) in verdict::files(&verdict) {
                let check_id = match name.starts_with("results/verdicts/") {
                    true => "replay.verdict",
                    false => "replay.summary",
                };
                findings.file(evidence.files, &|_| check_id, &name, &bytes);
            }
        }
        Err(error) => findings.fail("replay.verdict", layout::V2_VERDICT, error.to_string()),
    }
    sealed(evidence, findings);
    page(evidence, findings);
}

/// The page shows what the other files state, whether or not that follows: a page that shows something else is one more lie.
fn page(evidence: &Evidence<'_>, findings: &mut Findings) {
    let files = evidence.files;
    if evidence.form.has_page() {
        let drawn = PackPage.draw(files);
        findings.file(files, &|_| "replay.page", layout::PAGE, drawn.as_bytes());
    } else if files.has(layout::PAGE) {
        let why = format!(
            "is in a pack of form {}, which has no page: nothing says what it should show",
            evidence.form.number()
        );
        findings.fail("replay.unexpected", layout::PAGE, why);
    }
}

fn judge(evidence: &Evidence<'_>, models: &[Derived]) -> packhost_pack::Result<FinalVerdict> {
    let scenarios = verdict::scenarios(&evidence.scenarios)?;
    let folders: Vec<String> = models.iter().map(|model| model.folder.clone()).collect();
    let inputs: Vec<RecordInput<'_>> = models
        .iter()
        .flat_map(|model| {
            model.subjects.iter().map(|subject| RecordInput {
                model: &model.folder,
                scenario: &subject.scenario,
                run: subject.run,
                path: &subject.path,
                report: &subject.report,
                baseline: model.baselines.get(&subject.seed),
                rmt_probe: subject.probes.get("rmt"),
                ve_probe: subject.probes.get("variance"),
            })
        })
        .collect();
    let options = JudgeOptions {
        timestamp: &evidence.record.began,
        manifest_path: "state/scenarios.json",
    };
    verdict::judge_run(&scenarios, &folders, &inputs, options)
}

fn sealed(evidence: &Evidence<'_>, findings: &mut Findings) {
    let record = &evidence.record;
    let models: Vec<Model> = record
        .models
        .iter()
        .map(|model| Model {
            id: model.id.clone(),
            revision: model.revision.clone().unwrap_or_default(),
        })
        .collect();
    let with = Again {
        scenarios: &evidence.scenarios,
        models: &models,
        profile: pack_profile(evidence.profile),
        assurance: Assurance::named(&record.assurance).unwrap_or_default(),
    };
    let made = match seal::again(evidence.files, &with) {
        Ok(made) => made,
        Err(why) => return findings.fail("replay.sealed", layout::MANIFEST, why),
    };
    for (name, bytes) in &made {
        findings.file(evidence.files, &|_| "replay.sealed", name, bytes);
    }
    let parsed = serde_json::from_slice::<Value>(evidence.files.manifest());
    let manifest = match parsed {
        Ok(manifest) => manifest,
        Err(error) => {
            return findings.fail("replay.manifest", layout::MANIFEST, error.to_string());
        }
    };
    let parse = |name: &str| {
        let bytes = made.get(name).map(Vec::as_slice).unwrap_or_default();
        serde_json::from_slice::<Value>(bytes).unwrap_or_default()
    };
    for (name, pointer) in [
        ("metadata/source_repo.json", "/invocation/config_source"),
        ("metadata/environment.json", "/environment"),
    ] {
        let Some(document) = evidence.json(name, findings) else {
            continue;
        };
        let before = findings.differences.len();
        for (key, value) in document.as_object().into_iter().flatten() {
            let place = format!("{pointer}/{key}");
            findings.value(
                "replay.manifest",
                layout::MANIFEST,
                &place,
                value,
                &manifest,
            );
        }
        if findings.differences.len() > before {
            let why = format!("does not say what `{}` repeats of it", layout::MANIFEST);
            findings.fail("replay.manifest", name, why);
        }
    }
    let artifacts = parse("results/analysis/edit_artifact_summary.json");
    let listed = |model: &Model| json!({"model_id": model.id, "revision": model.revision});
    let ids: Vec<&String> = models.iter().map(|model| &model.id).collect();
    let claims = [
        ("/suite", json!(record.suite)),
        ("/invocation/parameters/suite", json!(record.suite)),
        (
            "/invocation/parameters/dataset_provider/kind",
            json!(record.dataset.kind),
        ),
        (
            "/invocation/parameters/scenario_ids",
            json!(scenario_filter(&evidence.manifest)),
        ),
        ("/generated_at", json!(record.began)),
        ("/builder/version", json!(record.host_version)),
        ("/model_list", json!(ids)),
        (
            "/models",
            json!(models.iter().map(listed).collect::<Vec<_>>()),
        ),
        (
            "/artifacts",
            json!(evidence.files.names().collect::<Vec<_>>()),
        ),
        ("/verification", parse("results/verification_summary.json")),
        ("/evidence_lanes", artifacts["evidence_lanes"].clone()),
        (
            "/deployable_subjects",
            artifacts["deployable_subjects"].clone(),
        ),
        ("/artifact_class_counts", artifacts["counts"].clone()),
    ];
    for (pointer, derived) in &claims {
        findings.value(
            "replay.manifest",
            layout::MANIFEST,
            pointer,
            derived,
            &manifest,
        );
    }
}
