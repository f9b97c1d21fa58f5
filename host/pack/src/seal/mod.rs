//! Sealing the evidence of a run: layout v2, staged beside its place and renamed when complete.
//!
//! The caller gives what the run left (reports with their sidecars, measurement tables, components, lock files) as named entries, the verdict, and the facts
//! about the run. Sealing copies and hashes the entries in parallel, adds runtime manifests, verifies each report as a verifier will, writes the summaries,
//! the checksum list, the manifest, the signature and the mirrors, and puts the directory in its place. The result depends on nothing but the request.
//!
//! The packed scenario table decides what a verifier expects of each report. The reference verifier knows only `must_fail` (the report must fail nested
//! verification) and everything else (it must pass), while a stress or injection scenario may demand detection without saying which. So for these, where
//! every report of a scenario fails nested verification, the packed table says `must_fail` and keeps the word of the run as `declared_strictness`.

mod again;
mod assembly;
mod expectations;
mod request;

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::canonical;
use crate::error::{Error, ExitClass, Failure, Result, Warning};
use crate::files::Payload;
use crate::keys::SigningKey;
use crate::layout;
use crate::provenance::Runtime;
use crate::report_rules::{Assurance, Profile, Rules};
use crate::staging::{Staging, Target};
use crate::summaries;
use crate::verdict::{self, FinalVerdict};

pub use again::{Again, again, declared_scenarios};

use assembly::Assembly;
use expectations::{Expectations, packed_scenarios};

/// Where an entry's bytes come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file, copied unchanged.
    File(PathBuf),
}

/// A file of the pack.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path below the pack's root, with `/`.
    pub name: String,
    /// Its bytes.
    pub source: Source,
}

impl Entry {
    /// An entry with these bytes.
    pub fn bytes(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            source: Source::Bytes(bytes.into()),
        }
    }

    /// An entry copied from a file.
    pub fn file(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            source: Source::File(path.into()),
        }
    }
}

/// Draws a page for people from what a pack holds. The text must follow from those bytes alone, so that whoever has the pack can draw it again.
pub trait Draw: Debug + Sync {
    /// The page as HTML.
    fn draw(&self, pack: &dyn Payload) -> String;
}

/// A model of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Its id, such as `demo/tiny-lm`.
    pub id: String,
    /// Its revision; empty if unknown.
    pub revision: String,
}

/// The facts about a run that the manifest tells.
#[derive(Clone, Debug, Default)]
pub struct RunInfo {
    /// Name of the suite.
    pub suite: String,
    /// Whether the network was used.
    pub online: bool,
    /// Determinism mode, such as `strict` or `throughput`.
    pub determinism: String,
    /// How often the determinism check was repeated.
    pub repeats: u64,
    /// What those repetitions showed: an object, an array or null.
    pub determinism_repeats: Value,
    /// The run directory, in a form that tells nothing private.
    pub run_dir: String,
    /// Scenario ids that the run was restricted to; empty for none.
    pub scenario_ids: Vec<String>,
    /// Kind of the dataset provider, such as `local_jsonl`.
    pub dataset_kind: String,
    /// Models in the order of the run.
    pub models: Vec<Model>,
}

/// What to seal.
#[derive(Clone, Debug)]
pub struct SealRequest<'a> {
    /// The pack's directory: absent or empty.
    pub out: &'a Path,
    /// The signing key. Without one the pack is unsigned, and no verifier accepts it.
    pub key: Option<&'a SigningKey>,
    /// Payload: at least one `reports/<model>/<scenario>/run_<n>/evaluation.report.json`, its sidecars, and whatever else belongs into the pack.
    pub entries: Vec<Entry>,
    /// The verdict; its files are added.
    pub verdict: &'a FinalVerdict,
    /// The scenario table of the run, from which the packed one is made.
    pub scenarios: Option<&'a Value>,
    /// The facts about the run.
    pub run: &'a RunInfo,
    /// `metadata/source_repo.json`; see [`crate::provenance::source_repo`].
    pub source_repo: &'a Value,
    /// `metadata/environment.json`; see [`crate::provenance::environment`].
    pub environment: &'a Value,
    /// The runtime that made the reports: gives a runtime manifest to each report that has none among the entries.
    pub runtime: Option<&'a Runtime>,
    /// When the pack is made, RFC 3339.
    pub generated_at: &'a str,
    /// Profile at which the reports are verified.
    pub profile: Profile,
    /// Assurance mode at which the reports are verified.
    pub assurance: Assurance,
    /// Text of the README; a default explains how to verify the pack.
    pub readme: Option<&'a str>,
    /// Draws `report.html` from everything else that is in the pack; without it there is none.
    pub page: Option<&'a dyn Draw>,
    /// Refuse to seal unless the verdict is PASS.
    pub require_pass: bool,
    /// Refuse to seal what could not be released: see [`seal`].
    pub release_review: bool,
}

/// A sealed pack.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Its directory.
    pub pack: PathBuf,
    /// Fingerprint of the key that signed.
    pub signer_fingerprint: Option<String>,
    /// The level that the manifest claims.
    pub evidence_level: &'static str,
    /// Number of files covered by the checksum list.
    pub files: usize,
    /// The verification summary, as the pack holds it.
    pub verification: Value,
    /// Reports that do not verify as their scenarios demand (a verifier will refuse the pack with exit code 7), and other doubts.
    pub warnings: Vec<Warning>,
}

/// Seals a pack.
///
/// # Errors
/// Refused with [`ExitClass::Usage`] if the target is not absent or empty, or for a release review if the verdict is not PASS, no key or no runtime is given,
/// the profile is `dev`, the assurance not `strict`, or a report does not verify as it must; with [`ExitClass::Verdict`] if PASS is required and the
/// verdict is another; with [`ExitClass::Format`] if an entry's name is unusable or given twice, or the edit metadata contradicts the scenarios.
/// Whatever happens, the target is either complete or untouched.
pub fn seal(request: &SealRequest<'_>) -> Result<Sealed> {
    request::check(request)?;
    let staging = Staging::begin(request.out, Target::AbsentOrEmpty)?;
    let mut pack = Assembly::new(staging);
    pack.add_all(&request.entries)?;
    pack.add_all(&added_entries(request))?;
    pack.add_runtime_manifests(request)?;

    let examined = pack.examine(Rules {
        profile: request.profile,
        assurance: request.assurance,
        skip_provenance: false,
    })?;
    let table = request
        .scenarios
        .map(|scenarios| packed_scenarios(scenarios, &examined));
    let outcome = Expectations::of(
        &examined,
        table.as_ref(),
        request.profile,
        request.assurance,
    );
    let mut warnings = outcome.warnings;
    if request.release_review && !warnings.is_empty() {
        let failures = warnings
            .into_iter()
            .map(|Warning { check_id, message }| Failure {
                check_id,
                stage: 7,
                message,
            })
            .collect();
        return Err(Error::Refused {
            exit: ExitClass::Reports,
            failures,
        });
    }
    pack.add(
        "results/verification_summary.json",
        &canonical::pretty_file(&outcome.summary),
    )?;
    pack.add_verification_results(&examined, request.profile)?;
    let artifacts = match &table {
        None => None,
        Some(table) => {
            pack.add(layout::SCENARIOS, &canonical::pretty_file(table))?;
            pack.check_edit_metadata(table)?;
            let artifacts = summaries::edit_artifacts(table, &pack.edit_metadata()?);
            pack.add(
                "results/analysis/edit_artifact_summary.json",
                &canonical::pretty_file(&artifacts),
            )?;
            Some(artifacts)
        }
    };
    let readme = request.readme.map_or_else(
        || {
            let verdict = request.verdict.word();
            let page = request.page.is_some();
            default_readme(&request.run.suite, verdict, request.generated_at, page)
        },
        str::to_owned,
    );
    pack.add("README.md", readme.as_bytes())?;
    if let Some(page) = request.page {
        let drawn = page.draw(&pack);
        pack.add(layout::PAGE, drawn.as_bytes())?;
    }

    let files = pack.len();
    let list = pack.write_checksums()?;
    let (level, signer) =
        pack.write_manifest(request, &list, &outcome.summary, artifacts.as_ref())?;
    if signer.is_none() {
        warnings.push(Warning {
            check_id: "seal.unsigned",
            message: "the pack is not signed, so no verifier accepts it; give a signing key"
                .to_owned(),
        });
    }
    let target = pack.commit()?;
    Ok(Sealed {
        pack: target,
        signer_fingerprint: signer,
        evidence_level: level,
        files,
        verification: outcome.summary,
        warnings,
    })
}

/// File of the models and their revisions; the caller may give a fuller one among the entries.
const REVISIONS: &str = "metadata/model_revisions.json";

/// Files that follow from the request alone.
fn added_entries(request: &SealRequest<'_>) -> Vec<Entry> {
    let mut entries = vec![
        Entry::bytes(
            "metadata/source_repo.json",
            canonical::pretty_file(request.source_repo),
        ),
        Entry::bytes(
            "metadata/environment.json",
            canonical::pretty_file(request.environment),
        ),
    ];
    if !request.entries.iter().any(|entry| entry.name == REVISIONS) {
        entries.push(Entry::bytes(
            REVISIONS,
            canonical::pretty_file(&revisions(&request.run.models)),
        ));
    }
    let verdict = verdict::files(request.verdict);
    entries.extend(
        verdict
            .into_iter()
            .map(|(name, bytes)| Entry::bytes(name, bytes)),
    );
    entries
}

fn revisions(models: &[Model]) -> Value {
    let ids: Vec<&str> = models.iter().map(|model| model.id.as_str()).collect();
    let by_id: Map<String, Value> = models
        .iter()
        .map(|model| (model.id.clone(), json!({"revision": model.revision})))
        .collect();
    json!({"model_list": ids, "models": by_id})
}

/// The README of a pack whose caller gives none. `page` says whether the pack holds `report.html`.
pub fn default_readme(suite: &str, verdict: &str, time: &str, page: bool) -> String {
    let page = match page {
        true => "- `report.html` shows all of it to people; it is drawn from the other files\n",
        false => "",
    };
    format!(
        "# Evidence pack: suite {suite}\n\n\
         Verdict: {verdict}. Sealed at {time}.\n\n\
         Verify it with `packhost pack verify PACK --strict --expected-fingerprint FINGERPRINT`, where the fingerprint comes from the signer by another way than this \
         pack; without one, verifying shows that nothing was changed, but not who made it.\n\n\
         By hand: `sha256sum -c checksums.sha256` checks the files, the field `checksums_sha256_digest` of `manifest.json` is the SHA-256 of that list, and \
         `manifest.signature.json` holds an Ed25519 signature over the bytes of `manifest.json`.\n\n\
         {page}\
         - `results/verdicts/` the verdict, `results/analysis/` its summaries\n\
         - `reports/<model>/<scenario>/run_<n>/` one folder per evaluation; `reports/<model>/errors/` the injected faults\n\
         - `metadata/` scenarios, source, environment; `metadata/packhost/` what the verdict can be derived from again\n",
    )
}
