//! Sealing the evidence of a run: layout v2, staged beside its place and renamed when complete.
//!
//! The caller gives what the run left (reports with their sidecars, measurement tables, components, lock files) as named entries, the verdict, and the facts
//! about the run. Sealing copies and hashes the entries in parallel, adds runtime manifests, verifies each report as a verifier will, writes the summaries,
//! the checksum list, the manifest, the signature and the mirrors, and puts the directory in its place. The result depends on nothing but the request.
//!
//! The packed scenario table decides what a verifier expects of each report. The reference verifier knows only `must_fail` (the report must fail nested
//! verification) and everything else (it must pass), while a stress or injection scenario may demand detection without saying which. So for these, where
//! every report of a scenario fails nested verification, the packed table says `must_fail` and keeps the word of the run as `declared_strictness`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::canonical;
use crate::checksums::{self, Form, Line};
use crate::digest;
use crate::edit_metadata::{self, Table};
use crate::error::{Error, ExitClass, Failure, Result, Warning};
use crate::json as reader;
use crate::keys::{self, SigningKey};
use crate::layout;
use crate::manifest;
use crate::nested::{self, Examined, Source as ReportSource};
use crate::paths::Root;
use crate::provenance::Runtime;
use crate::report_rules::{self, Assurance, Profile, Rules};
use crate::signature;
use crate::staging::{Staging, Target};
use crate::summaries;
use crate::verdict::{self, FinalVerdict};

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
    check_request(request)?;
    let staging = Staging::begin(request.out, Target::AbsentOrEmpty)?;
    let mut pack = Assembly {
        staging,
        digests: BTreeMap::new(),
    };
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
    let outcome = Expectations::of(&examined, table.as_ref(), request);
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
    let readme = request
        .readme
        .map_or_else(|| default_readme(request), str::to_owned);
    pack.add("README.md", readme.as_bytes())?;

    let files = pack.digests.len();
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
    let target = pack.staging.commit(Target::AbsentOrEmpty)?;
    Ok(Sealed {
        pack: target,
        signer_fingerprint: signer,
        evidence_level: level,
        files,
        verification: outcome.summary,
        warnings,
    })
}

fn check_request(request: &SealRequest<'_>) -> Result<()> {
    let mut failures = Vec::new();
    let mut demand = |holds: bool, check_id: &'static str, message: &str| {
        if !holds {
            failures.push(Failure {
                check_id,
                stage: 1,
                message: message.to_owned(),
            });
        }
    };
    if request.release_review {
        const ID: &str = "usage.release_review";
        demand(
            request.verdict.pass,
            ID,
            "a release review needs the verdict PASS",
        );
        demand(
            request.key.is_some(),
            ID,
            "a release review needs a signing key",
        );
        demand(
            request.runtime.is_some(),
            ID,
            "a release review needs runtime manifests",
        );
        demand(
            request.profile != Profile::Dev,
            ID,
            "a release review needs the profile ci or release",
        );
        demand(
            request.assurance == Assurance::Strict,
            ID,
            "a release review needs strict assurance",
        );
    }
    demand(
        report_rules::is_timestamp(request.generated_at),
        "usage.generated_at",
        "the time of sealing must be an RFC 3339 time stamp",
    );
    if !failures.is_empty() {
        return Err(Error::Refused {
            exit: ExitClass::Usage,
            failures,
        });
    }
    if request.require_pass && !request.verdict.pass {
        return Err(Error::refused(
            ExitClass::Verdict,
            1,
            "verdict.not_pass",
            "the verdict is FAIL and PASS is required; nothing was sealed",
        ));
    }
    let mut taken: BTreeSet<String> = RESERVED.iter().map(|name| (*name).to_owned()).collect();
    let mut reports = 0;
    for entry in &request.entries {
        if let Some(reason) = name_fault(&entry.name) {
            failures.push(Failure {
                check_id: "input.name",
                stage: 4,
                message: format!("`{}` {reason}", entry.name),
            });
        } else if !taken.insert(entry.name.to_lowercase()) {
            failures.push(Failure {
                check_id: "input.name",
                stage: 4,
                message: format!("`{}` is written by the packer itself or given twice (names that differ in case only count as one)", entry.name),
            });
        }
        reports += usize::from(layout::is_report(&entry.name));
    }
    if reports == 0 {
        failures.push(Failure {
            check_id: "input.reports",
            stage: 4,
            message: "a pack needs at least one report".to_owned(),
        });
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Error::Refused {
            exit: ExitClass::Format,
            failures,
        })
    }
}

/// Names that sealing writes itself, besides `verify.json` and missing runtime manifests beside reports.
const RESERVED: [&str; 19] = [
    "readme.md",
    "checksums.sha256",
    "manifest.json",
    "manifest.signature.json",
    "metadata/manifest.json",
    "metadata/manifest.signature.json",
    "metadata/checksums.sha256",
    "metadata/source_repo.json",
    "metadata/environment.json",
    "metadata/model_revisions.json",
    "metadata/scenarios.json",
    "results/verification_summary.json",
    "results/analysis/edit_artifact_summary.json",
    "results/verdicts/final_verdict.json",
    "results/verdicts/final_verdict.txt",
    "results/analysis/category_summary.json",
    "results/analysis/guard_signal_summary.json",
    "results/analysis/guard_intervention_summary.json",
    "results/analysis/scenario_signal_summary.json",
];

/// Why a name cannot be a file of a pack.
fn name_fault(name: &str) -> Option<&'static str> {
    let bad_part =
        |part: &str| part.is_empty() || part == "." || part == ".." || part.starts_with("._");
    if name.split('/').any(bad_part) {
        return Some("has an empty part, `.`, `..`, or a part that begins with `._`");
    }
    if name.contains('\\') || name.chars().any(char::is_control) {
        return Some("holds a backslash or a control character");
    }
    if name.ends_with(char::is_whitespace) {
        return Some("ends in white space, which a checksum list cannot express");
    }
    if layout::is_transport(name) {
        Some("is a name that verifiers ignore")
    } else {
        None
    }
}

/// Files that follow from the request alone.
fn added_entries(request: &SealRequest<'_>) -> Vec<Entry> {
    let revisions: Map<String, Value> = request
        .run
        .models
        .iter()
        .map(|model| (model.id.clone(), json!({"revision": model.revision})))
        .collect();
    let ids: Vec<&str> = request
        .run
        .models
        .iter()
        .map(|model| model.id.as_str())
        .collect();
    let mut entries = vec![
        Entry::bytes(
            "metadata/source_repo.json",
            canonical::pretty_file(request.source_repo),
        ),
        Entry::bytes(
            "metadata/environment.json",
            canonical::pretty_file(request.environment),
        ),
        Entry::bytes(
            "metadata/model_revisions.json",
            canonical::pretty_file(&json!({"model_list": ids, "models": revisions})),
        ),
    ];
    entries.extend(
        verdict::files(request.verdict)
            .into_iter()
            .map(|(name, bytes)| Entry::bytes(name, bytes)),
    );
    entries
}

/// The table for the pack: what a verifier is to expect of each report, by what the reports show.
fn packed_scenarios(scenarios: &Value, examined: &[Examined]) -> Value {
    let mut packed = scenarios.clone();
    for scenario in packed
        .get_mut("scenarios")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let Some(id) = scenario
            .get("id")
            .and_then(Value::as_str)
            .map(str::to_owned)
        else {
            continue;
        };
        let (category, strictness) = (
            scenario.get("category").cloned(),
            scenario.get("strictness").cloned(),
        );
        let damaging = ["stress", "error_injection"]
            .map(|name| Some(json!(name)))
            .contains(&category);
        let mut reports = examined
            .iter()
            .filter(|report| layout::scenario_of(&report.name) == Some(&id))
            .peekable();
        if damaging
            && strictness != Some(json!("must_fail"))
            && reports.peek().is_some()
            && reports.all(|report| !report.faults.is_empty())
        {
            scenario["strictness"] = json!("must_fail");
            scenario["declared_strictness"] = strictness.unwrap_or(Value::Null);
        }
    }
    packed
}

/// Whether the reports verify as their scenarios demand.
struct Expectations {
    summary: Value,
    warnings: Vec<Warning>,
}

impl Expectations {
    fn of(examined: &[Examined], table: Option<&Value>, request: &SealRequest<'_>) -> Self {
        let strictness = table.map(layout::strictness_table).unwrap_or_default();
        let (mut clean, mut errors, mut expected_failures, mut failed) = (0, 0, 0, 0);
        let mut warnings = Vec::new();
        for report in examined {
            let must_fail = layout::expects_failure(&report.name, &strictness);
            let injected = report.name.split('/').any(|part| part == "errors");
            match (must_fail, injected) {
                (false, _) => clean += 1,
                (true, true) => errors += 1,
                (true, false) => expected_failures += 1,
            }
            let fails = !report.faults.is_empty();
            if fails != must_fail {
                failed += 1;
                let (check_id, message) = if must_fail {
                    (
                        "reports.expected_failure_passed",
                        "belongs to a scenario that must fail, but verifies".to_owned(),
                    )
                } else {
                    let first = report
                        .faults
                        .first()
                        .map_or(String::new(), |fault| format!(": {}", fault.message));
                    ("reports.verify_failed", format!("does not verify{first}"))
                };
                warnings.push(Warning {
                    check_id,
                    message: format!("`{}` {message}", report.name),
                });
            }
        }
        if clean == 0 {
            warnings.push(Warning {
                check_id: "reports.none",
                message: "no report of the pack is expected to pass, so verifiers refuse it"
                    .to_owned(),
            });
        }
        let summary = json!({
            "clean_reports": clean,
            "error_injection_reports": errors,
            "expected_failure_reports": expected_failures,
            "failed_reports": failed,
            "policy_profile": request.profile.name(),
            "report_assurance": request.assurance.name(),
        });
        Self { summary, warnings }
    }
}

/// A pack under construction and the digests of what is in it.
struct Assembly {
    staging: Staging,
    digests: BTreeMap<String, String>,
}

impl Assembly {
    fn add(&mut self, name: &str, bytes: &[u8]) -> Result<String> {
        let digest = self.staging.write(name, bytes)?;
        self.digests.insert(name.to_owned(), digest.clone());
        Ok(digest)
    }

    /// Copies entries, several at a time.
    fn add_all(&mut self, entries: &[Entry]) -> Result<()> {
        let staging = &self.staging;
        let digests: Vec<Result<String>> = entries
            .par_iter()
            .map(|entry| match &entry.source {
                Source::Bytes(bytes) => staging.write(&entry.name, bytes),
                Source::File(path) => staging.copy(&entry.name, path),
            })
            .collect();
        for (entry, digest) in entries.iter().zip(digests) {
            self.digests.insert(entry.name.clone(), digest?);
        }
        Ok(())
    }

    fn reports(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .digests
            .keys()
            .filter(|name| layout::is_report(name))
            .cloned()
            .collect();
        layout::sort_by_parts(&mut names);
        names
    }

    fn beside(report: &str, name: &str) -> String {
        format!(
            "{}{name}",
            report.strip_suffix(layout::REPORT).unwrap_or_default()
        )
    }

    fn add_runtime_manifests(&mut self, request: &SealRequest<'_>) -> Result<()> {
        let Some(runtime) = request.runtime else {
            return Ok(());
        };
        for report in self.reports() {
            let name = Self::beside(&report, layout::RUNTIME_MANIFEST);
            if !self.digests.contains_key(&name) {
                let manifest = runtime.manifest_for(&self.digests[&report]);
                self.add(&name, &canonical::pretty_file(&manifest))?;
            }
        }
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.staging.path().join(name);
        reader::read_bytes(&path, reader::REPORT_LIMIT).map_err(|fault| {
            Error::refused(
                ExitClass::Format,
                4,
                "input.report",
                format!("`{name}` {fault}"),
            )
        })
    }

    /// Checks every report with its runtime manifest, as a verifier will.
    fn examine(&self, rules: Rules) -> Result<Vec<Examined>> {
        self.reports()
            .par_iter()
            .map(|name| {
                let beside = Self::beside(name, layout::RUNTIME_MANIFEST);
                let runtime = if self.digests.contains_key(&beside) {
                    Some(self.read(&beside)?)
                } else {
                    None
                };
                let source = ReportSource {
                    id: name.clone(),
                    name: name.clone(),
                    report: self.read(name)?,
                    runtime,
                };
                Ok(nested::examine(source, rules))
            })
            .collect()
    }

    /// Writes `verify.json` beside each report.
    fn add_verification_results(&mut self, examined: &[Examined], profile: Profile) -> Result<()> {
        for report in examined {
            let name = Self::beside(&report.name, "verify.json");
            let payload = nested::conclude(std::slice::from_ref(report), profile).payload;
            if !self.digests.contains_key(&name) {
                self.add(&name, &canonical::pretty_file(&payload))?;
            }
        }
        Ok(())
    }

    /// The edit metadata in the pack, by scenario; of several reports the first.
    fn edit_metadata(&self) -> Result<BTreeMap<String, Value>> {
        let mut metadata = BTreeMap::new();
        for report in self.reports() {
            let name = Self::beside(&report, layout::EDIT_METADATA);
            let Some(id) =
                layout::scenario_of(&report).filter(|_| self.digests.contains_key(&name))
            else {
                continue;
            };
            if !metadata.contains_key(id) {
                let value = reader::parse(&self.read(&name)?)
                    .and_then(reader::Document::strict)
                    .map_err(|fault| {
                        Error::refused(
                            ExitClass::Format,
                            4,
                            "input.edit_metadata",
                            format!("`{name}` {fault}"),
                        )
                    })?;
                metadata.insert(id.to_owned(), value);
            }
        }
        Ok(metadata)
    }

    fn check_edit_metadata(&self, table: &Value) -> Result<()> {
        let Some(root) = Root::open(self.staging.path()) else {
            return Ok(());
        };
        let faults = edit_metadata::faults(&root, &Table::of(table), &self.reports());
        if faults.is_empty() {
            return Ok(());
        }
        let failures = faults
            .into_iter()
            .map(|message| Failure {
                check_id: "input.edit_metadata",
                stage: 4,
                message,
            })
            .collect();
        Err(Error::Refused {
            exit: ExitClass::Format,
            failures,
        })
    }

    /// Writes the list of everything that is in the pack by now. Answers its bytes.
    fn write_checksums(&self) -> Result<Vec<u8>> {
        let lines: Vec<Line> = self
            .digests
            .iter()
            .map(|(name, digest)| Line {
                digest: digest.clone(),
                name: name.clone(),
            })
            .collect();
        let list = checksums::write(&lines, Form::V2);
        self.staging.write(layout::CHECKSUMS, &list)?;
        Ok(list)
    }

    /// Writes manifest, signature and mirrors. Answers the evidence level and the signer.
    fn write_manifest(
        &self,
        request: &SealRequest<'_>,
        list: &[u8],
        verification: &Value,
        artifacts: Option<&Value>,
    ) -> Result<(&'static str, Option<String>)> {
        let mut value = self.manifest(request, list, verification, artifacts);
        let level = manifest::evidence_level(&value);
        value["evidence_level"] = json!(level);
        let signer = request
            .key
            .map(|key| keys::fingerprint(&key.verifying_key()));
        if let Some(signer) = &signer {
            value["signing_key_fingerprint"] = json!(signer);
        }
        let faults = manifest::schema_faults(&value);
        if !faults.is_empty() {
            let failures = faults
                .into_iter()
                .map(|message| Failure {
                    check_id: "format.schema",
                    stage: 4,
                    message,
                })
                .collect();
            return Err(Error::Refused {
                exit: ExitClass::Format,
                failures,
            });
        }
        let bytes = canonical::line_file(&value);
        let mut control = vec![(layout::MANIFEST, bytes.clone())];
        if let Some(key) = request.key {
            control.push((
                layout::SIGNATURE,
                canonical::line_file(&signature::sign(&bytes, key)?),
            ));
        }
        for (name, bytes) in &control {
            self.staging.write(name, bytes)?;
        }
        control.push((layout::CHECKSUMS, list.to_vec()));
        for (mirror, original) in layout::MIRRORS {
            if let Some((_, bytes)) = control.iter().find(|(name, _)| *name == original) {
                self.staging.write(mirror, bytes)?;
            }
        }
        Ok((level, signer))
    }

    fn manifest(
        &self,
        request: &SealRequest<'_>,
        list: &[u8],
        verification: &Value,
        artifacts: Option<&Value>,
    ) -> Value {
        let backed = |name: &str| manifest::backed(name, &self.digests[name]);
        let run = request.run;
        let mut subject = backed(layout::V2_VERDICT);
        subject.insert("name".to_owned(), json!("final_verdict"));
        let mut config_source = request.source_repo.as_object().cloned().unwrap_or_default();
        config_source.append(&mut backed("metadata/source_repo.json"));
        let mut environment = request.environment.as_object().cloned().unwrap_or_default();
        environment.append(&mut backed("metadata/environment.json"));
        let materials: Vec<Value> = MATERIALS
            .iter()
            .filter(|(_, path)| self.digests.contains_key(*path))
            .map(|(name, path)| {
                let mut material = backed(path);
                material.insert("name".to_owned(), json!(name));
                Value::Object(material)
            })
            .collect();
        let control_names = [layout::CHECKSUMS, layout::MANIFEST, layout::SIGNATURE];
        let artifact_names: Vec<&String> = self
            .digests
            .keys()
            .filter(|name| !control_names.contains(&name.rsplit('/').next().unwrap_or_default()))
            .collect();
        let network = if run.online { "online" } else { "offline" };
        let mut value = json!({
            "format": manifest::FORMAT,
            "checksums_sha256": layout::CHECKSUMS,
            "checksums_sha256_digest": digest::hex(list),
            "subject": subject,
            "invocation": {
                "config_source": config_source,
                "parameters": {
                    "suite": run.suite,
                    "network_mode": network,
                    "determinism": run.determinism,
                    "repeats": run.repeats,
                    "scenario_ids": run.scenario_ids,
                    "dataset_provider": {"kind": run.dataset_kind},
                },
            },
            "environment": environment,
            "materials": materials,
            "verification": verification,
            "generated_at": request.generated_at,
            "suite": run.suite,
            "network_mode": network,
            "determinism": run.determinism,
            "repeats": run.repeats,
            "determinism_repeats": run.determinism_repeats,
            "run_dir": run.run_dir,
            "builder": {"id": "packhost/evidence-pack@v1", "name": "packhost", "version": env!("CARGO_PKG_VERSION")},
            "model_list": run.models.iter().map(|model| &model.id).collect::<Vec<_>>(),
            "models": run.models.iter().map(|model| json!({"model_id": model.id, "revision": model.revision})).collect::<Vec<_>>(),
            "artifacts": artifact_names,
        });
        if let Some(artifacts) = artifacts {
            for (field, key) in [
                ("evidence_lanes", "evidence_lanes"),
                ("deployable_subjects", "deployable_subjects"),
                ("artifact_class_counts", "counts"),
            ] {
                value[field] = artifacts[key].clone();
            }
        }
        value
    }
}

/// Files that the manifest names as materials, where they are in the pack.
const MATERIALS: [(&str, &str); 5] = [
    ("model_revisions", "metadata/model_revisions.json"),
    ("scenarios", layout::SCENARIOS),
    ("tuned_edit_params", "metadata/tuned_edit_params.json"),
    (
        "edit_artifact_summary",
        "results/analysis/edit_artifact_summary.json",
    ),
    ("plugins_lock", "metadata/packhost/plugins.lock"),
];

fn default_readme(request: &SealRequest<'_>) -> String {
    format!(
        "# Evidence pack: suite {suite}\n\n\
         Verdict: {verdict}. Sealed at {time}.\n\n\
         Verify it with `packhost pack verify PACK --strict --expected-fingerprint FINGERPRINT`, where the fingerprint comes from the signer by another way than this \
         pack; without one, verifying shows that nothing was changed, but not who made it.\n\n\
         By hand: `sha256sum -c checksums.sha256` checks the files, the field `checksums_sha256_digest` of `manifest.json` is the SHA-256 of that list, and \
         `manifest.signature.json` holds an Ed25519 signature over the bytes of `manifest.json`.\n\n\
         - `results/verdicts/` the verdict, `results/analysis/` its summaries\n\
         - `reports/<model>/<scenario>/run_<n>/` one folder per evaluation; `reports/<model>/errors/` the injected faults\n\
         - `metadata/` scenarios, source, environment; `metadata/packhost/` what the verdict can be derived from again\n",
        suite = request.run.suite,
        verdict = request.verdict.word(),
        time = request.generated_at,
    )
}
