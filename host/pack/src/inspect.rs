//! What a pack says about itself: structure and integrity, without signature cryptography and without examining reports.
//!
//! `strict_ready` says that nothing in the files would stop a strict verification, not that it would succeed: a wrongly signed pack is ready too.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{ExitClass, Failure};
use crate::integrity::{self, Finding, Integrity};
use crate::json::{self as reader, get};
use crate::layout;
use crate::manifest;
use crate::paths::Root;

/// What inspecting a pack showed.
#[derive(Debug)]
pub struct Inspection {
    /// How it ended: the classes of verification, without signature and reports.
    pub exit: ExitClass,
    /// Everything that is wrong.
    pub issues: Vec<Failure>,
    pack: PathBuf,
    manifest: Option<Value>,
    signed: bool,
    found: Option<Integrity>,
}

/// Inspects the pack in a directory. Never panics, whatever lies there.
pub fn inspect(pack: &Path) -> Inspection {
    let mut inspection = Inspection {
        exit: ExitClass::Ok,
        issues: Vec::new(),
        pack: pack.to_path_buf(),
        manifest: None,
        signed: false,
        found: None,
    };
    inspection.run();
    inspection
}

impl Inspection {
    /// Whether nothing is wrong.
    pub fn ok(&self) -> bool {
        self.exit == ExitClass::Ok
    }

    /// Whether nothing in the files would stop a strict verification.
    pub fn strict_ready(&self) -> bool {
        self.ok()
            && self.signed
            && self
                .found
                .as_ref()
                .is_some_and(|found| found.findings(true).is_empty())
    }

    fn issue(&mut self, exit: ExitClass, stage: u8, (check_id, message): Finding) {
        if self.exit == ExitClass::Ok {
            self.exit = exit;
        }
        self.issues.push(Failure {
            check_id,
            stage,
            message,
        });
    }

    fn run(&mut self) {
        let Some(root) = Root::open(&self.pack) else {
            let message = format!("`{}` is not a directory", self.pack.display());
            return self.issue(ExitClass::Missing, 2, ("missing.pack", message));
        };
        let is_file =
            |name: &str| fs::metadata(root.join(name)).is_ok_and(|metadata| metadata.is_file());
        for (check_id, name) in [
            ("missing.manifest", layout::MANIFEST),
            ("missing.checksums", layout::CHECKSUMS),
        ] {
            if !is_file(name) {
                return self.issue(
                    ExitClass::Missing,
                    2,
                    (check_id, format!("the pack has no `{name}`")),
                );
            }
        }
        self.signed = is_file(layout::SIGNATURE);
        let value = match reader::read_strict(&root.join(layout::MANIFEST), reader::CONTROL_LIMIT) {
            Ok(value) => value,
            Err(fault) => {
                return self.issue(
                    ExitClass::Format,
                    4,
                    ("format.json", format!("`{}` {fault}", layout::MANIFEST)),
                );
            }
        };
        let (references, field_faults) = manifest::references(&value);
        for fault in manifest::schema_faults(&value) {
            self.issue(ExitClass::Format, 4, ("format.schema", fault));
        }
        for fault in field_faults {
            self.issue(ExitClass::Format, 4, ("format.field", fault));
        }
        if !self.ok() {
            return;
        }
        let list = match reader::read_bytes(&root.join(layout::CHECKSUMS), reader::CONTROL_LIMIT) {
            Ok(list) => list,
            Err(fault) => {
                return self.issue(
                    ExitClass::Integrity,
                    6,
                    (
                        "integrity.limits",
                        format!("`{}` {fault}", layout::CHECKSUMS),
                    ),
                );
            }
        };
        let found = integrity::examine(&root, &value, &references, &list);
        // Mirrors are reported, but do not make the inspection fail; edit metadata is a matter of verification.
        let mut findings: Vec<Finding> = Vec::new();
        for part in [
            &found.binding,
            &found.checksums,
            &found.references,
            &found.limits,
        ] {
            findings.extend(part.iter().cloned());
        }
        findings.extend(found.extras_finding());
        for finding in findings {
            self.issue(ExitClass::Integrity, 6, finding);
        }
        let mirrors = found.mirrors.iter().map(|(check_id, message)| Failure {
            check_id,
            stage: 6,
            message: message.clone(),
        });
        self.issues.extend(mirrors);
        self.manifest = Some(value);
        self.found = Some(found);
    }

    /// The answer of `pack inspect --json`.
    pub fn json(&self) -> Value {
        let manifest = self.manifest.as_ref().unwrap_or(&Value::Null);
        let text = |path: &[&str]| get::text(manifest, path);
        let (total, errors) = self.found.as_ref().map_or((0, 0), |found| {
            let failing = found
                .reports
                .iter()
                .filter(|name| layout::expects_failure(name, &found.table.strictness))
                .count();
            (found.reports.len(), failing)
        });
        let clean_part = |part: fn(&Integrity) -> bool| self.found.as_ref().is_some_and(part);
        json!({
            "format_version": "evidence-pack-inspect-v1",
            "pack": self.pack.display().to_string(),
            "ok": self.ok(),
            "manifest": {
                "valid": self.manifest.is_some(),
                "format": text(&["format"]),
                "evidence_level": text(&["evidence_level"]),
            },
            "signature": {"present": self.signed, "signer_fingerprint": text(&["signing_key_fingerprint"])},
            "reports": {"total": total, "clean": total - errors, "errors": errors},
            "artifacts": {
                "files": self.found.as_ref().map_or(0, |found| found.files),
                "hashed": self.found.as_ref().map_or(0, |found| found.hashed),
            },
            "integrity": {
                "checksums_bound": clean_part(|found| found.binding.is_empty()),
                "checksums_ok": clean_part(|found| found.checksums.is_empty()),
                "control_file_mirrors_ok": clean_part(|found| found.mirrors.is_empty()),
                "manifest_provenance_ok": clean_part(|found| found.references.is_empty()),
                "extra_files": self.found.as_ref().map_or_else(Vec::new, |found| found.extras.clone()),
            },
            "issues": self.issues.iter().map(|issue| &issue.message).collect::<Vec<_>>(),
            "strict_ready": self.strict_ready(),
            "evidence_level": text(&["evidence_level"]),
        })
    }
}
