//! A pack under construction: its files, the list of them, the manifest and the signature.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;
use serde_json::{Value, json};

use super::{Entry, SealRequest, Source};
use crate::canonical;
use crate::checksums::{self, Form, Line};
use crate::digest;
use crate::edit_metadata::{self, Table};
use crate::error::{Error, ExitClass, Failure, Result};
use crate::files::Payload;
use crate::json as reader;
use crate::keys;
use crate::layout;
use crate::manifest;
use crate::nested::{self, Examined, Source as ReportSource};
use crate::paths::Root;
use crate::report_rules::{Profile, Rules};
use crate::signature;
use crate::staging::{Staging, Target};

/// A pack under construction and the digests of what is in it.
pub(super) struct Assembly {
    staging: Staging,
    digests: BTreeMap<String, String>,
}

impl Assembly {
    /// Nothing yet.
    pub(super) fn new(staging: Staging) -> Self {
        Self {
            staging,
            digests: BTreeMap::new(),
        }
    }

    /// Number of payload files.
    pub(super) fn len(&self) -> usize {
        self.digests.len()
    }

    /// Puts the finished pack in its place.
    pub(super) fn commit(self) -> Result<PathBuf> {
        self.staging.commit(Target::AbsentOrEmpty)
    }

    pub(super) fn add(&mut self, name: &str, bytes: &[u8]) -> Result<String> {
        let digest = self.staging.write(name, bytes)?;
        self.digests.insert(name.to_owned(), digest.clone());
        Ok(digest)
    }

    /// Copies entries, several at a time.
    pub(super) fn add_all(&mut self, entries: &[Entry]) -> Result<()> {
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

    pub(super) fn beside(report: &str, name: &str) -> String {
        format!(
            "{}{name}",
            report.strip_suffix(layout::REPORT).unwrap_or_default()
        )
    }

    pub(super) fn add_runtime_manifests(&mut self, request: &SealRequest<'_>) -> Result<()> {
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
    pub(super) fn examine(&self, rules: Rules) -> Result<Vec<Examined>> {
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
    pub(super) fn add_verification_results(
        &mut self,
        examined: &[Examined],
        profile: Profile,
    ) -> Result<()> {
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
    pub(super) fn edit_metadata(&self) -> Result<BTreeMap<String, Value>> {
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

    pub(super) fn check_edit_metadata(&self, table: &Value) -> Result<()> {
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
    pub(super) fn write_checksums(&self) -> Result<Vec<u8>> {
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
    pub(super) fn write_manifest(
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

impl Payload for Assembly {
    fn names(&self) -> Vec<&str> {
        self.digests.keys().map(String::as_str).collect()
    }

    fn read(&self, name: &str) -> std::result::Result<Vec<u8>, String> {
        if !self.digests.contains_key(name) {
            return Err(format!("the pack has no file `{name}`"));
        }
        Self::read(self, name).map_err(|error| error.to_string())
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
