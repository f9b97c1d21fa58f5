//! Verifying a pack, in seven stages that stop at the first that fails.
//!
//! 1 options, 2 presence, 3 where the output goes, 4 manifest, 5 signature, 6 integrity, 7 reports. Within a stage all faults are collected. The result is
//! a function of the pack's bytes and the trust inputs: nothing is read outside the pack but the trust inputs, no socket is opened, and nothing is written but
//! the file that the caller asks for.
//!
//! Without a pinned signer a good pack is *intact*, not *authentic*: anybody can sign their own. [`Status`] keeps the two apart.
//!
//! Stricter than the reference verifier, everywhere: repeated keys and NaN in JSON, backslashes and repetitions in the checksum list, links out of the pack.
//! Stricter in strict mode: any link or special file, names that differ in case only, a subject that is no JSON.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::canonical;
use crate::digest;
use crate::error::{ExitClass, Failure, Warning};
use crate::files::Files;
use crate::integrity::{self, Finding, Integrity};
use crate::json::{self as reader, get};
use crate::layout;
use crate::manifest;
use crate::nested::{self, Examined, Reason, Source};
use crate::paths::{Place, Root};
use crate::policy::{self, Policy};
use crate::report_rules::{Assurance, Profile, Rules};
use crate::signature;
use crate::trust;

/// What to demand of a pack.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Refuse unlisted files, links and special files, and an absent signature whatever else is said.
    pub strict: bool,
    /// Leave out stage 7.
    pub skip_verify: bool,
    /// `dev`, `ci` or `release`; any other word behaves like `dev`.
    pub profile: String,
    /// `report`, `strict` or `off`.
    pub report_assurance: String,
    /// Accept this signer.
    pub expected_fingerprint: Option<String>,
    /// Accept the signers in this file. No store is read by default.
    pub trust_store: Option<PathBuf>,
    /// Demand what this file says about signers and plugins, beside all else.
    pub trust_policy: Option<PathBuf>,
    /// Further signatures over the manifest, as files of their own: for policies that demand several.
    pub signatures: Vec<PathBuf>,
    /// Write the payload of the nested verification here.
    pub json_out: Option<PathBuf>,
    /// Let an unsigned pack pass stage 5 with a warning, and leave runtime manifests unchecked. What the environment variable
    /// `INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE` asks for.
    pub allow_unverified_provenance: bool,
    /// Also demand that the verdict in the pack is PASS. By default the verdict's content is not examined.
    pub require_pass: bool,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            strict: false,
            skip_verify: false,
            profile: "dev".to_owned(),
            report_assurance: "report".to_owned(),
            expected_fingerprint: None,
            trust_store: None,
            trust_policy: None,
            signatures: Vec::new(),
            json_out: None,
            allow_unverified_provenance: false,
            require_pass: false,
        }
    }
}

/// What is known about who signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authenticity {
    /// No signer was demanded, or the signature was not reached.
    #[default]
    Unpinned,
    /// The signer is one of those accepted.
    Pinned,
    /// The signer is known and not accepted, or the demand itself was faulty.
    Mismatch,
}

impl Authenticity {
    /// As the output names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unpinned => "unpinned",
            Self::Pinned => "pinned",
            Self::Mismatch => "mismatch",
        }
    }
}

/// The outcome in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// A stage failed.
    Refused,
    /// Nothing was changed since signing, but any signer would have done.
    IntegrityOnly,
    /// Nothing was changed since an accepted signer signed.
    Authentic,
}

impl Status {
    /// As the output names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::IntegrityOnly => "integrity_only",
            Self::Authentic => "authentic",
        }
    }
}

/// What verifying a pack showed.
#[derive(Clone, Debug)]
pub struct Verification {
    /// How it ended.
    pub exit: ExitClass,
    /// All faults of the stage that failed.
    pub failures: Vec<Failure>,
    /// What was found and tolerated.
    pub warnings: Vec<Warning>,
    /// What is known about the signer.
    pub authenticity: Authenticity,
    /// Fingerprint of the key whose signature is good.
    pub signer_fingerprint: Option<String>,
    /// Fingerprints of all keys whose signatures are good, detached ones included, sorted.
    pub signers: Vec<String>,
    /// The level that the manifest claims; it is not recomputed.
    pub evidence_level: Option<String>,
    /// The payload of the nested verification, if stage 7 was reached.
    pub nested: Option<Value>,
    /// The pack's files, once stage 6 has shown that they are those that were signed.
    pub files: Option<Files>,
    pub(crate) pack: PathBuf,
    pub(crate) options: VerifyOptions,
}

impl Verification {
    /// Whether the pack is accepted.
    pub fn ok(&self) -> bool {
        self.exit == ExitClass::Ok
    }

    /// The outcome in one word.
    pub fn status(&self) -> Status {
        match (self.ok(), self.authenticity) {
            (false, _) => Status::Refused,
            (true, Authenticity::Pinned) => Status::Authentic,
            (true, _) => Status::IntegrityOnly,
        }
    }

    /// The answer of `pack verify --json`: the fields of the format, and ours under `packhost`.
    ///
    /// `report_assurance` is the mode that was asked for. (The reference implementation shows `report` there whenever a stage from 2 to 6 fails.)
    pub fn json(&self) -> Value {
        let mut answer = Map::new();
        let mut set = |key: &str, value: Value| {
            answer.insert(key.to_owned(), value);
        };
        set("format_version", json!("evidence-pack-verify-v1"));
        set("pack", json!(self.pack.display().to_string()));
        set("ok", json!(self.ok()));
        set("strict", json!(self.options.strict));
        set("skip_verify", json!(self.options.skip_verify));
        set("report_assurance", json!(self.options.report_assurance));
        set(
            "warnings",
            self.warnings
                .iter()
                .map(|warning| warning.message.clone())
                .collect(),
        );
        set(
            "errors",
            self.failures
                .iter()
                .map(|failure| failure.message.clone())
                .collect(),
        );
        set("evidence_level", json!(self.evidence_level));
        set("authenticity", json!(self.authenticity.name()));
        if let Some(store) = &self.options.trust_store {
            set("trust_store", json!(store.display().to_string()));
        }
        if let Some(signer) = &self.signer_fingerprint {
            set("signer_fingerprint", json!(signer));
        }
        if let Some(nested) = &self.nested {
            set("verify", nested.clone());
        }
        let failures: Vec<Value> = self
            .failures
            .iter()
            .map(|failure| json!({"check_id": failure.check_id, "stage": failure.stage, "message": failure.message}))
            .collect();
        let warnings: Vec<Value> = self
            .warnings
            .iter()
            .map(|warning| json!({"check_id": warning.check_id, "message": warning.message}))
            .collect();
        let mut packhost = json!({"status": self.status().name(), "exit": self.exit.code(), "failures": failures, "warnings": warnings});
        if let Some(policy) = &self.options.trust_policy {
            packhost["trust_policy"] = json!(policy.display().to_string());
            packhost["signers"] = json!(self.signers);
        }
        set("packhost", packhost);
        Value::Object(answer)
    }
}

/// Verifies the pack in a directory. Never panics, whatever lies there.
pub fn verify(pack: &Path, options: &VerifyOptions) -> Verification {
    let mut run = Run {
        options,
        accepted: BTreeSet::new(),
        policy: None,
        result: Verification {
            exit: ExitClass::Ok,
            failures: Vec::new(),
            warnings: Vec::new(),
            authenticity: Authenticity::Unpinned,
            signer_fingerprint: None,
            signers: Vec::new(),
            evidence_level: None,
            nested: None,
            files: None,
            pack: pack.to_path_buf(),
            options: options.clone(),
        },
    };
    // A failed stage has recorded its faults; there is nothing else to say.
    let _ = run.stages(pack);
    run.result
}

/// A stage failed and has recorded its faults.
struct Stopped;

type Stage<T> = Result<T, Stopped>;

struct Run<'o> {
    options: &'o VerifyOptions,
    accepted: BTreeSet<String>,
    policy: Option<Policy>,
    result: Verification,
}

impl Run<'_> {
    fn stages(&mut self, pack: &Path) -> Stage<()> {
        let assurance = self.read_options()?;
        let root = self.find(pack)?;
        self.check_output(&root)?;
        let (bytes, manifest, references) = self.read_manifest(&root)?;
        let signed = self.check_signature(&root, &bytes, &manifest)?;
        let integrity = self.check_integrity(&root, &manifest, &references)?;
        let files = Files::new(root.clone(), integrity.digests.clone(), bytes);
        let plugins = self.policy.as_ref().map(|policy| policy.plugins(&files));
        self.result.files = Some(files);
        self.stop_if(ExitClass::Signature, 6, plugins.unwrap_or_default())?;
        if !self.options.skip_verify {
            let rules = Rules {
                profile: Profile::named(&self.options.profile),
                assurance,
                skip_provenance: self.options.allow_unverified_provenance,
            };
            self.check_reports(&root, &integrity, rules)?;
        }
        if self.options.require_pass {
            self.check_verdict(&root, &manifest, signed)?;
        }
        Ok(())
    }

    /// Records findings; stops if there are any.
    fn stop_if(
        &mut self,
        exit: ExitClass,
        stage: u8,
        findings: impl IntoIterator<Item = Finding>,
    ) -> Stage<()> {
        self.result
            .failures
            .extend(findings.into_iter().map(|(check_id, message)| Failure {
                check_id,
                stage,
                message,
            }));
        if self.result.failures.is_empty() {
            return Ok(());
        }
        self.result.exit = exit;
        if exit == ExitClass::Usage && !self.accepted.is_empty() {
            self.result.authenticity = Authenticity::Mismatch;
        }
        Err(Stopped)
    }

    /// Stage 1.
    fn read_options(&mut self) -> Stage<Assurance> {
        let trust::Accepted {
            fingerprints,
            mut faults,
        } = trust::accepted(
            self.options.expected_fingerprint.as_deref(),
            self.options.trust_store.as_deref(),
        );
        self.accepted = fingerprints;
        match self.options.trust_policy.as_deref().map(Policy::read) {
            Some(Ok(policy)) => self.policy = Some(policy),
            Some(Err(reasons)) => faults.extend(reasons),
            None => {}
        }
        let assurance = Assurance::named(&self.options.report_assurance);
        if assurance.is_none() {
            faults.push((
                "usage.report_assurance",
                format!(
                    "`{}` is no assurance mode; use report, strict or off",
                    self.options.report_assurance
                ),
            ));
        }
        self.stop_if(ExitClass::Usage, 1, faults)?;
        assurance.ok_or(Stopped)
    }

    /// Stage 2.
    fn find(&mut self, pack: &Path) -> Stage<Root> {
        let Some(root) = Root::open(pack) else {
            self.stop_if(
                ExitClass::Missing,
                2,
                [(
                    "missing.pack",
                    format!("`{}` is not a directory", pack.display()),
                )],
            )?;
            return Err(Stopped);
        };
        for (check_id, name) in [
            ("missing.manifest", layout::MANIFEST),
            ("missing.checksums", layout::CHECKSUMS),
        ] {
            if !is_file(&root, name) {
                let finding = (
                    check_id,
                    format!(
                        "`{}` has no `{name}`, so it is no evidence pack",
                        pack.display()
                    ),
                );
                self.stop_if(ExitClass::Missing, 2, [finding])?;
            }
        }
        Ok(root)
    }

    /// Stage 3.
    fn check_output(&mut self, root: &Root) -> Stage<()> {
        let inside = self
            .options
            .json_out
            .as_ref()
            .filter(|path| root.holds(path));
        let finding = inside.map(|path| {
            (
                "usage.json_out_inside",
                format!(
                    "the output `{}` would lie inside the pack; name another place",
                    path.display()
                ),
            )
        });
        self.stop_if(ExitClass::Usage, 3, finding)
    }

    /// Stage 4.
    fn read_manifest(&mut self, root: &Root) -> Stage<(Vec<u8>, Value, Vec<manifest::Reference>)> {
        let parsed = reader::read_bytes(&root.join(layout::MANIFEST), reader::CONTROL_LIMIT)
            .and_then(|bytes| reader::parse(&bytes).map(|document| (bytes, document)));
        let (bytes, document) = match parsed {
            Ok(parsed) => parsed,
            Err(fault) => {
                self.stop_if(
                    ExitClass::Format,
                    4,
                    [("format.json", format!("`{}` {fault}", layout::MANIFEST))],
                )?;
                return Err(Stopped);
            }
        };
        let named = |check_id: &'static str| {
            move |fault: String| (check_id, format!("`{}`: {fault}", layout::MANIFEST))
        };
        let mut findings: Vec<Finding> = manifest::schema_faults(&document.value)
            .into_iter()
            .map(named("format.schema"))
            .collect();
        findings.extend(document.repeated.iter().map(|key| {
            named("format.json")(format!(
                "it repeats the key `{key}`, so its meaning depends on the reader"
            ))
        }));
        let (references, faults) = manifest::references(&document.value);
        findings.extend(faults.into_iter().map(named("format.field")));
        self.stop_if(ExitClass::Format, 4, findings)?;
        self.result.evidence_level =
            get::text(&document.value, &["evidence_level"]).map(str::to_owned);
        Ok((bytes, document.value, references))
    }

    /// Stage 5. Whether the pack is signed.
    fn check_signature(&mut self, root: &Root, bytes: &[u8], manifest: &Value) -> Stage<bool> {
        if !is_file(root, layout::SIGNATURE) {
            let message = format!(
                "the pack has no `{}`, so nothing shows that it was not changed",
                layout::SIGNATURE
            );
            let tolerated = self.options.allow_unverified_provenance && self.policy.is_none();
            if !self.options.strict && tolerated {
                self.result.warnings.push(Warning {
                    check_id: "signature.missing",
                    message,
                });
                return Ok(false);
            }
            self.stop_if(ExitClass::Signature, 5, [("signature.missing", message)])?;
        }
        let bundle = match reader::read_bytes(&root.join(layout::SIGNATURE), reader::CONTROL_LIMIT)
        {
            Ok(bundle) => bundle,
            Err(fault) => {
                self.stop_if(
                    ExitClass::Signature,
                    5,
                    [(
                        "signature.bundle",
                        format!("`{}` {fault}", layout::SIGNATURE),
                    )],
                )?;
                return Err(Stopped);
            }
        };
        let checked = signature::check(&bundle, bytes, manifest, &self.accepted);
        if let Some(signer) = &checked.signer
            && !self.accepted.is_empty()
        {
            self.result.authenticity = if self.accepted.contains(signer) {
                Authenticity::Pinned
            } else {
                Authenticity::Mismatch
            };
        }
        let first = checked.signer.clone();
        self.result.signer_fingerprint = checked.signer;
        self.stop_if(ExitClass::Signature, 5, checked.faults)?;
        let (mut signers, faults) = policy::detached(&self.options.signatures, bytes);
        self.stop_if(ExitClass::Signature, 5, faults)?;
        signers.extend(first);
        self.result.signers = signers.iter().cloned().collect();
        if let Some(policy) = &self.policy {
            let faults = policy.signers(&signers, get::text(manifest, &["generated_at"]));
            self.result.authenticity = match faults.is_empty() {
                true => Authenticity::Pinned,
                false => Authenticity::Mismatch,
            };
            self.stop_if(ExitClass::Signature, 5, faults)?;
        }
        Ok(true)
    }

    /// Stage 6.
    fn check_integrity(
        &mut self,
        root: &Root,
        manifest: &Value,
        references: &[manifest::Reference],
    ) -> Stage<Integrity> {
        let list = match reader::read_bytes(&root.join(layout::CHECKSUMS), reader::CONTROL_LIMIT) {
            Ok(list) => list,
            Err(fault) => {
                self.stop_if(
                    ExitClass::Integrity,
                    6,
                    [(
                        "integrity.limits",
                        format!("`{}` {fault}", layout::CHECKSUMS),
                    )],
                )?;
                return Err(Stopped);
            }
        };
        let found = integrity::examine(root, manifest, references, &list);
        if !self.options.strict
            && let Some((check_id, message)) = found.extras_finding()
        {
            self.result.warnings.push(Warning { check_id, message });
        }
        self.stop_if(ExitClass::Integrity, 6, found.findings(self.options.strict))?;
        Ok(found)
    }

    /// Stage 7.
    fn check_reports(&mut self, root: &Root, integrity: &Integrity, rules: Rules) -> Stage<()> {
        let (failing, passing): (Vec<&String>, Vec<&String>) = integrity
            .reports
            .iter()
            .partition(|name| layout::expects_failure(name, &integrity.table.strictness));
        if passing.is_empty() {
            let message = if failing.is_empty() {
                "the pack holds no report".to_owned()
            } else {
                format!(
                    "all {} reports of the pack are expected to fail; at least one must be expected to pass",
                    failing.len()
                )
            };
            self.stop_if(ExitClass::Reports, 7, [("reports.none", message)])?;
        }
        let examined = self.examine_all(root, integrity, &passing, rules)?;
        let expected_failures = self.examine_all(root, integrity, &failing, rules)?;
        let batch = nested::conclude(&examined, rules.profile);
        let mut payload = batch.payload;
        let mut findings: Vec<Finding> = Vec::new();
        if !expected_failures.is_empty() {
            let mut payloads = Vec::new();
            for report in &expected_failures {
                let outcome = nested::conclude(std::slice::from_ref(report), rules.profile);
                if outcome.reason == Reason::Ok {
                    findings.push((
                        "reports.expected_failure_passed",
                        format!("`{}` belongs to a scenario that must fail, but nothing in it fails at profile {}", report.name, rules.profile.name()),
                    ));
                }
                payloads.push(outcome.payload);
            }
            let names: Vec<&str> = expected_failures
                .iter()
                .map(|report| report.name.as_str())
                .collect();
            payload["expected_failures"] = json!({"verify": payloads, "reports": names});
        }
        let unexpected_pass = !findings.is_empty();
        findings.extend(
            nested::messages(&examined)
                .into_iter()
                .map(|message| ("reports.verify_failed", message)),
        );
        self.result.nested = Some(payload);
        if !unexpected_pass {
            self.write_output()?;
        }
        self.stop_if(ExitClass::Reports, 7, findings)
    }

    /// Reads and checks reports, several at a time. Their bytes must be those that stage 6 saw.
    fn examine_all(
        &mut self,
        root: &Root,
        integrity: &Integrity,
        names: &[&String],
        rules: Rules,
    ) -> Stage<Vec<Examined>> {
        let examined: Vec<Result<Examined, Finding>> = names
            .par_iter()
            .map(|name| {
                let report = read(root, name, reader::REPORT_LIMIT)?.ok_or_else(|| {
                    (
                        "integrity.missing_file",
                        format!("`{name}` vanished while the pack was verified"),
                    )
                })?;
                if integrity
                    .digests
                    .get(*name)
                    .is_some_and(|expected| *expected != digest::hex(&report))
                {
                    return Err((
                        "integrity.digest",
                        format!("`{name}` was changed while the pack was verified"),
                    ));
                }
                let beside = format!(
                    "{}{}",
                    name.strip_suffix(layout::REPORT).unwrap_or_default(),
                    layout::RUNTIME_MANIFEST
                );
                let runtime = read(root, &beside, reader::CONTROL_LIMIT)?;
                let source = Source {
                    id: nested::id_in(root.given(), name),
                    name: (*name).clone(),
                    report,
                    runtime,
                };
                Ok(nested::examine(source, rules))
            })
            .collect();
        let mut good = Vec::new();
        let mut findings = Vec::new();
        for result in examined {
            match result {
                Ok(report) => good.push(report),
                Err(finding) => findings.push(finding),
            }
        }
        self.stop_if(ExitClass::Integrity, 6, findings)?;
        Ok(good)
    }

    fn write_output(&mut self) -> Stage<()> {
        let (Some(path), Some(payload)) = (&self.options.json_out, &self.result.nested) else {
            return Ok(());
        };
        let written = fs::write(path, canonical::line_file(payload));
        let finding = written.err().map(|error| {
            (
                "usage.json_out",
                format!("the output `{}` cannot be written: {error}", path.display()),
            )
        });
        self.stop_if(ExitClass::Usage, 7, finding)
    }

    /// The verdict, only on request.
    fn check_verdict(&mut self, root: &Root, manifest: &Value, signed: bool) -> Stage<()> {
        let verdict =
            get::text(manifest, &["subject", "path"]).and_then(|name| match root.resolve(name) {
                Place::File(path) => reader::read_strict(&path, reader::REPORT_LIMIT).ok(),
                _ => None,
            });
        let text = verdict
            .as_ref()
            .and_then(|verdict| get::text(verdict, &["verdict"]))
            .map(str::trim);
        let finding = match text {
            Some(text) if text.eq_ignore_ascii_case("PASS") && signed => None,
            Some(text) if text.eq_ignore_ascii_case("PASS") => Some((
                "verdict.unsigned",
                "the verdict is PASS, but nobody signed it".to_owned(),
            )),
            Some(text) => Some((
                "verdict.not_pass",
                format!("the verdict of the pack is `{text}`, and PASS is required"),
            )),
            None => Some((
                "verdict.not_pass",
                "the pack's subject holds no verdict, and PASS is required".to_owned(),
            )),
        };
        self.stop_if(ExitClass::Verdict, 8, finding)
    }
}

/// Whether a control file is a regular file, after following links.
fn is_file(root: &Root, name: &str) -> bool {
    fs::metadata(root.join(name)).is_ok_and(|metadata| metadata.is_file())
}

/// The bytes of a file of the pack; nothing if it is not there.
fn read(root: &Root, name: &str, limit: u64) -> Result<Option<Vec<u8>>, Finding> {
    match root.resolve(name) {
        Place::File(path) => reader::read_bytes(&path, limit)
            .map(Some)
            .map_err(|fault| ("integrity.limits", format!("`{name}` {fault}"))),
        _ => Ok(None),
    }
}
