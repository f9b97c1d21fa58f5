//! Packing reports by hand: the package-native layout, as the reference `build` writes it, byte for byte.
//!
//! Unlike there, the pack is staged beside its place and renamed when complete, and materials that would overwrite a file of the format are refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::canonical;
use crate::checksums::{self, Form, Line};
use crate::digest;
use crate::error::{Error, ExitClass, Failure, Result, Warning};
use crate::json as reader;
use crate::keys::{self, SigningKey};
use crate::layout;
use crate::manifest;
use crate::nested::{self, Reason, Source};
use crate::report_rules::{Assurance, Profile, Rules};
use crate::signature;
use crate::staging::{Staging, Target};

/// What to pack.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// The pack's directory; it must not exist.
    pub out: PathBuf,
    /// The verdict: any JSON object.
    pub final_verdict: PathBuf,
    /// Reports, each with `runtime.manifest.json` beside it; known sidecars beside them are packed too.
    pub reports: Vec<PathBuf>,
    /// Becomes `metadata/source_repo.json`.
    pub source_repo: Option<PathBuf>,
    /// Becomes `metadata/environment.json`.
    pub environment: Option<PathBuf>,
    /// Materials as `NAME=PATH`.
    pub materials: Vec<String>,
    /// Text for `README.md`. If the file is not there, that is a warning, and the pack has none. Without this option there is a default text.
    pub readme: Option<PathBuf>,
    /// The signing key. Without one the pack is unsigned, which is a warning here and a failure for every verifier.
    pub signing_key: Option<PathBuf>,
    /// `dev`, `ci` or `release`; any other word behaves like `dev`.
    pub profile: String,
    /// `report`, `strict` or `off`.
    pub report_assurance: String,
    /// Refuse what could not be released.
    pub release_review: bool,
}

impl BuildRequest {
    /// A request with the defaults of the format: profile `dev`, assurance `report`.
    pub fn new(
        out: impl Into<PathBuf>,
        final_verdict: impl Into<PathBuf>,
        reports: Vec<PathBuf>,
    ) -> Self {
        Self {
            out: out.into(),
            final_verdict: final_verdict.into(),
            reports,
            source_repo: None,
            environment: None,
            materials: Vec::new(),
            readme: None,
            signing_key: None,
            profile: "dev".to_owned(),
            report_assurance: "report".to_owned(),
            release_review: false,
        }
    }

    /// The answer of `pack build --json` to a request that was refused.
    pub fn refusal_json(&self, error: &Error) -> Value {
        let errors: Vec<String> = match error {
            Error::Refused { failures, .. } => failures
                .iter()
                .map(|failure| failure.message.clone())
                .collect(),
            other => vec![other.to_string()],
        };
        json!({
            "format_version": "evidence-pack-build-v1",
            "pack": self.out.display().to_string(),
            "ok": false,
            "warnings": [],
            "errors": errors,
            "reports": {"total": self.reports.len()},
            "verify": null,
            "files": null,
        })
    }
}

/// A pack that was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// Its directory.
    pub pack: PathBuf,
    /// What was found and tolerated.
    pub warnings: Vec<Warning>,
    /// Fingerprint of the key that signed.
    pub signer_fingerprint: Option<String>,
    /// The level that the manifest claims.
    pub evidence_level: &'static str,
    /// Number of files covered by the checksum list.
    pub hashed: usize,
    verify: Value,
    request: BuildRequest,
}

impl Built {
    /// The answer of `pack build --json`.
    pub fn json(&self) -> Value {
        let signed = self.signer_fingerprint.is_some();
        json!({
            "format_version": "evidence-pack-build-v1",
            "pack": self.pack.display().to_string(),
            "ok": true,
            "warnings": self.warnings.iter().map(|warning| &warning.message).collect::<Vec<_>>(),
            "errors": [],
            "reports": {"total": self.request.reports.len()},
            "verify": self.verify,
            "files": {"hashed": self.hashed, "manifest": layout::MANIFEST, "checksums": layout::CHECKSUMS},
            "profile": self.request.profile,
            "report_assurance": self.request.report_assurance,
            "release_review": self.request.release_review,
            "evidence_level": self.evidence_level,
            "signature": {
                "present": signed,
                "file": signed.then_some(layout::SIGNATURE),
                "signer_fingerprint": self.signer_fingerprint,
            },
        })
    }
}

/// Builds a pack.
///
/// # Errors
/// In this order, each with all its faults: [`ExitClass::Usage`] for malformed options, an existing target, or a release review that cannot be; and
/// [`ExitClass::Missing`] for inputs that are not there or [`ExitClass::Format`] for ones that are not what they should be, by the first; [`ExitClass::Reports`] for reports that do not verify. An expected failure can therefore
/// not be packed this way.
pub fn build(request: &BuildRequest) -> Result<Built> {
    let materials = split_materials(&request.materials)?;
    let assurance = check_options(request)?;
    if request.release_review {
        review(request)?;
    }
    let inputs = Inputs::read(request, &materials)?;
    let rules = Rules {
        profile: Profile::named(&request.profile),
        assurance,
        skip_provenance: false,
    };
    let verify = verify_reports(&inputs, rules)?;
    write(request, inputs, verify)
}

fn split_materials(materials: &[String]) -> Result<Vec<(&str, &Path)>> {
    let mut split = Vec::new();
    let mut failures = Vec::new();
    for material in materials {
        match material
            .split_once('=')
            .filter(|(name, path)| !name.is_empty() && !path.is_empty())
        {
            Some((name, path)) => split.push((name, Path::new(path))),
            None => failures.push(Failure {
                check_id: "usage.material",
                stage: 1,
                message: format!("`{material}` is no material; write NAME=PATH"),
            }),
        }
    }
    if failures.is_empty() {
        Ok(split)
    } else {
        Err(Error::Refused {
            exit: ExitClass::Usage,
            failures,
        })
    }
}

fn check_options(request: &BuildRequest) -> Result<Assurance> {
    let usage = |check_id, message: String| Error::refused(ExitClass::Usage, 2, check_id, message);
    if request.reports.is_empty() {
        return Err(usage(
            "usage.reports",
            "a pack needs at least one report".to_owned(),
        ));
    }
    if request.out.symlink_metadata().is_ok() {
        return Err(usage(
            "usage.output_exists",
            format!(
                "`{}` exists; choose another name or remove it yourself",
                request.out.display()
            ),
        ));
    }
    Assurance::named(&request.report_assurance).ok_or_else(|| {
        usage(
            "usage.report_assurance",
            format!(
                "`{}` is no assurance mode; use report, strict or off",
                request.report_assurance
            ),
        )
    })
}

fn review(request: &BuildRequest) -> Result<()> {
    let mut failures = Vec::new();
    let mut demand = |holds: bool, message: String| {
        if !holds {
            failures.push(Failure {
                check_id: "usage.release_review",
                stage: 3,
                message,
            });
        }
    };
    demand(
        ["ci", "release"].contains(&request.profile.as_str()),
        "a release review needs the profile ci or release".to_owned(),
    );
    demand(
        request.report_assurance == "strict",
        "a release review needs strict assurance".to_owned(),
    );
    demand(
        request.signing_key.is_some(),
        "a release review needs a signing key".to_owned(),
    );
    let verdict = reader::read_strict(&request.final_verdict, reader::REPORT_LIMIT).ok();
    let word = verdict
        .as_ref()
        .and_then(|verdict| verdict.get("verdict")?.as_str())
        .map(str::trim);
    demand(
        word.is_some_and(|word| word.eq_ignore_ascii_case("PASS")),
        format!(
            "a release review needs the verdict PASS; `{}` says {}",
            request.final_verdict.display(),
            word.unwrap_or("nothing")
        ),
    );
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Error::Refused {
            exit: ExitClass::Usage,
            failures,
        })
    }
}

/// A file to pack.
struct Input {
    name: String,
    bytes: Vec<u8>,
}

/// All inputs, read and checked.
struct Inputs {
    key: Option<SigningKey>,
    /// In the order of the checksum list, without the README.
    files: Vec<Input>,
    /// Position of each report in `files`; its runtime manifest follows it.
    reports: Vec<usize>,
    /// How the caller named the reports.
    report_paths: Vec<PathBuf>,
    /// Name and path in the pack of each material.
    materials: Vec<(String, String)>,
}

impl Inputs {
    fn read(request: &BuildRequest, materials: &[(&str, &Path)]) -> Result<Self> {
        let mut gather = Gather::default();
        let key = request
            .signing_key
            .as_ref()
            .and_then(|path| match keys::load_signing(path) {
                Ok(key) => Some(key),
                Err(error) => {
                    gather.fault("input.signing_key", error.to_string());
                    None
                }
            });
        let mut targets = BTreeSet::new();
        let mut packed_materials = Vec::new();
        for (name, path) in materials {
            let suffix = path.extension().map_or_else(
                || ".json".to_owned(),
                |suffix| format!(".{}", suffix.to_string_lossy()),
            );
            let target = format!("metadata/{name}{suffix}");
            if !manifest::is_material_name(name) {
                gather.fault("input.material", format!("material `{name}`: the name must begin with a letter or digit and hold only letters, digits, `.`, `_` and `-`"));
            } else if TAKEN.contains(&target.to_lowercase().as_str()) {
                gather.fault("input.material", format!("material `{name}` would be written to `{target}`, which means something else in a pack; choose another name"));
            } else if !targets.insert(name.to_lowercase()) {
                gather.fault("input.material", format!("material `{name}` is given twice; names must be distinct, also where case does not count"));
            } else {
                packed_materials.push(((*name).to_owned(), target));
            }
        }
        gather.object(layout::NATIVE_VERDICT, &request.final_verdict);
        for (name, path) in [
            ("metadata/source_repo.json", &request.source_repo),
            ("metadata/environment.json", &request.environment),
        ] {
            if let Some(path) = path {
                gather.object(name, path);
            }
        }
        for ((_, target), (_, path)) in packed_materials.iter().zip(materials) {
            gather.object(target, path);
        }
        let mut reports = Vec::new();
        for (index, report) in request.reports.iter().enumerate() {
            let folder = format!("reports/report-{:03}", index + 1);
            reports.push(gather.files.len());
            gather.object(&format!("{folder}/{}", layout::REPORT), report);
            gather.object(
                &format!("{folder}/{}", layout::RUNTIME_MANIFEST),
                &report.with_file_name(layout::RUNTIME_MANIFEST),
            );
            for sidecar in layout::NATIVE_SIDECARS {
                let path = report.with_file_name(sidecar);
                if path.is_file() {
                    gather.object(&format!("{folder}/{sidecar}"), &path);
                }
            }
        }
        if !gather.failures.is_empty() {
            return Err(Error::Refused {
                exit: gather.exit.unwrap_or(ExitClass::Format),
                failures: gather.failures,
            });
        }
        Ok(Self {
            key,
            files: gather.files,
            reports,
            report_paths: request.reports.clone(),
            materials: packed_materials,
        })
    }
}

/// Targets of materials that mean something else in a pack. With them a pack would contradict itself.
const TAKEN: [&str; 6] = [
    "metadata/source_repo.json",
    "metadata/environment.json",
    "metadata/manifest.json",
    "metadata/manifest.signature.json",
    "metadata/checksums.sha256",
    "metadata/scenarios.json",
];

#[derive(Default)]
struct Gather {
    files: Vec<Input>,
    failures: Vec<Failure>,
    /// Class of the first fault.
    exit: Option<ExitClass>,
}

impl Gather {
    fn fault(&mut self, check_id: &'static str, message: String) {
        self.exit.get_or_insert(ExitClass::Format);
        self.failures.push(Failure {
            check_id,
            stage: 4,
            message,
        });
    }

    /// Takes a file that must be a JSON object; its bytes are packed unchanged.
    fn object(&mut self, name: &str, path: &Path) {
        let parsed = reader::read_bytes(path, reader::REPORT_LIMIT).and_then(|bytes| {
            reader::parse(&bytes)
                .and_then(reader::Document::strict)
                .map(|value| (bytes, value))
        });
        match parsed {
            Ok((bytes, value)) if value.is_object() => self.files.push(Input {
                name: name.to_owned(),
                bytes,
            }),
            Ok(_) => self.fault(
                "input.json",
                format!("`{}` is no JSON object", path.display()),
            ),
            Err(fault) => {
                if matches!(fault, reader::Fault::Absent) {
                    self.exit.get_or_insert(ExitClass::Missing);
                }
                self.fault("input.json", format!("`{}` {fault}", path.display()));
            }
        }
    }
}

fn verify_reports(inputs: &Inputs, rules: Rules) -> Result<Value> {
    let examined: Vec<_> = inputs
        .reports
        .par_iter()
        .zip(&inputs.report_paths)
        .map(|(position, path)| {
            let source = Source {
                id: path.display().to_string(),
                name: path.display().to_string(),
                report: inputs.files[*position].bytes.clone(),
                // The runtime manifest was taken right after its report.
                runtime: inputs
                    .files
                    .get(position + 1)
                    .map(|file| file.bytes.clone()),
            };
            nested::examine(source, rules)
        })
        .collect();
    let batch = nested::conclude(&examined, rules.profile);
    if batch.reason == Reason::Ok {
        return Ok(batch.payload);
    }
    let failures = nested::messages(&examined)
        .into_iter()
        .map(|message| Failure {
            check_id: "reports.verify_failed",
            stage: 5,
            message,
        })
        .collect();
    Err(Error::Refused {
        exit: ExitClass::Reports,
        failures,
    })
}

fn write(request: &BuildRequest, inputs: Inputs, verify: Value) -> Result<Built> {
    let mut warnings = Vec::new();
    let mut files = inputs.files;
    match &request.readme {
        None => files.push(Input {
            name: "README.md".to_owned(),
            bytes: DEFAULT_README.as_bytes().to_vec(),
        }),
        Some(path) => match reader::read_bytes(path, reader::REPORT_LIMIT) {
            Ok(bytes) => files.push(Input {
                name: "README.md".to_owned(),
                bytes,
            }),
            Err(fault) => warnings.push(Warning {
                check_id: "build.readme",
                message: format!("the README `{}` {fault}; the pack has none", path.display()),
            }),
        },
    }
    let lines: Vec<Line> = files
        .iter()
        .map(|file| Line {
            digest: digest::hex(&file.bytes),
            name: file.name.clone(),
        })
        .collect();
    let list = checksums::write(&lines, Form::Native);
    let reference = |name: &str| {
        lines
            .iter()
            .find(|line| line.name == name)
            .map(|line| manifest::backed(name, &line.digest))
    };
    let mut value = json!({
        "format": manifest::FORMAT,
        "checksums_sha256": layout::CHECKSUMS,
        "checksums_sha256_digest": digest::hex(&list),
        "verification": {
            "clean_reports": request.reports.len(),
            "error_injection_reports": 0,
            "failed_reports": 0,
            "policy_profile": request.profile,
            "report_assurance": request.report_assurance,
        },
    });
    let named = |name: &str, mut fields: Map<String, Value>| {
        fields.insert("name".to_owned(), json!(name));
        Value::Object(fields)
    };
    if let Some(fields) = reference(layout::NATIVE_VERDICT) {
        value["subject"] = named("final_verdict", fields);
    }
    if let Some(fields) = reference("metadata/source_repo.json") {
        value["invocation"] = json!({"config_source": fields});
    }
    if let Some(fields) = reference("metadata/environment.json") {
        value["environment"] = Value::Object(fields);
    }
    let materials: Vec<Value> = inputs
        .materials
        .iter()
        .filter_map(|(name, target)| Some(named(name, reference(target)?)))
        .collect();
    if !materials.is_empty() {
        value["materials"] = Value::Array(materials);
    }
    let level = manifest::evidence_level(&value);
    value["evidence_level"] = json!(level);
    let signer = inputs
        .key
        .as_ref()
        .map(|key| keys::fingerprint(&key.verifying_key()));
    match &signer {
        Some(signer) => value["signing_key_fingerprint"] = json!(signer),
        None => warnings.push(Warning {
            check_id: "build.unsigned",
            message: "the pack is not signed, so no verifier accepts it; give a signing key"
                .to_owned(),
        }),
    }
    let bytes = canonical::line_file(&value);

    let staging = Staging::begin(&request.out, Target::Absent)?;
    for file in &files {
        staging.write(&file.name, &file.bytes)?;
    }
    staging.write(layout::CHECKSUMS, &list)?;
    staging.write(layout::MANIFEST, &bytes)?;
    if let Some(key) = &inputs.key {
        staging.write(
            layout::SIGNATURE,
            &canonical::line_file(&signature::sign(&bytes, key)?),
        )?;
    }
    let pack = staging.commit(Target::Absent)?;
    Ok(Built {
        pack,
        warnings,
        signer_fingerprint: signer,
        evidence_level: level,
        hashed: files.len(),
        verify,
        request: request.clone(),
    })
}

const DEFAULT_README: &str = "# Evidence pack\n\n\
    Verify it with `packhost pack verify PACK --strict --expected-fingerprint FINGERPRINT`, where the fingerprint comes from the signer by another way than \
    this pack.\n";
