//! A verifier's signed receipt: which pack was checked for what, by which program, when, and how it ended.
//!
//! A receipt is a DSSE envelope ([`crate::dsse`]) around one line of canonical JSON. It holds the public key that signed it, so
//! that a fingerprint is all that its reader needs. A verification that fails gets a receipt too: it says FAIL and why.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::canonical;
use crate::digest;
use crate::dsse;
use crate::error::{Error, ExitClass, Result};
use crate::json::{self as reader, get};
use crate::keys::{self, SigningKey};
use crate::layout;
use crate::trust;
use crate::verify::Verification;

/// The receipt's format id.
pub const FORMAT: &str = "packhost-receipt-v1";
/// The media type of a receipt in its envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.packhost.receipt+json";

/// Names of the stages of a verification, the first is stage 1.
const STAGES: [&str; 8] = [
    "options",
    "presence",
    "output",
    "manifest",
    "signature",
    "integrity",
    "reports",
    "verdict",
];

/// What a receipt says beside the verification itself.
#[derive(Clone, Debug)]
pub struct Occasion<'a> {
    /// The verifying program.
    pub program: &'a str,
    /// Its version.
    pub version: &'a str,
    /// SHA-256 of the program's file, if it could be read.
    pub program_sha256: Option<String>,
    /// RFC 3339 time.
    pub issued_at: &'a str,
    /// Exit code of the whole: 0 is PASS, any other FAIL.
    pub exit: u8,
    /// What a replay showed, if one was asked for and reached.
    pub replay: Option<Value>,
    /// What measuring again showed, its seed and bound included, if it was asked for and reached.
    pub recompute: Option<Value>,
}

/// The bytes of the receipt.
///
/// # Errors
/// If the public key has no text form.
pub fn issue(
    verification: &Verification,
    occasion: &Occasion<'_>,
    key: &SigningKey,
) -> Result<Vec<u8>> {
    let statement = statement(verification, occasion, key)?;
    let payload = canonical::line_file(&statement);
    Ok(canonical::line_file(&dsse::seal(
        PAYLOAD_TYPE,
        &payload,
        key,
    )))
}

fn statement(
    verification: &Verification,
    occasion: &Occasion<'_>,
    key: &SigningKey,
) -> Result<Value> {
    let options = &verification.options;
    let manifest = match &verification.files {
        Some(files) => Some(digest::hex(files.manifest())),
        // A pack that was refused earlier is named by what is there.
        None => digest::hex_of_file(&verification.pack.join(layout::MANIFEST))
            .ok()
            .map(|(digest, _)| digest),
    };
    let file = |path: &Path| digest::hex_of_file(path).ok().map(|(digest, _)| digest);
    let answer = verification.json();
    let public = key.verifying_key();
    Ok(json!({
        "format": FORMAT,
        "outcome": if occasion.exit == 0 { "PASS" } else { "FAIL" },
        "exit": occasion.exit,
        "status": verification.status().name(),
        "authenticity": verification.authenticity.name(),
        "pack": {
            "manifest_sha256": manifest,
            "signer_fingerprint": verification.signer_fingerprint,
            "signers": verification.signers,
            "evidence_level": verification.evidence_level,
        },
        "asked": {
            "strict": options.strict,
            "reports": !options.skip_verify,
            "profile": options.profile,
            "report_assurance": options.report_assurance,
            "require_pass": options.require_pass,
            "expected_fingerprint": options.expected_fingerprint,
            "trust_store_sha256": options.trust_store.as_deref().and_then(file),
            "trust_policy_sha256": options.trust_policy.as_deref().and_then(file),
            "further_signatures": options.signatures.len(),
        },
        "stages": stages(verification),
        "failures": answer["packhost"]["failures"],
        "warnings": answer["packhost"]["warnings"],
        "replay": occasion.replay,
        "recompute": occasion.recompute,
        "verifier": {
            "name": occasion.program,
            "version": occasion.version,
            "sha256": occasion.program_sha256,
        },
        "issued_at": occasion.issued_at,
        "signer": {
            "public_key": keys::public_pem(&public)?,
            "fingerprint": keys::fingerprint(&public),
        },
    }))
}

/// The result of each stage. They run in order and the first that fails is the last.
fn stages(verification: &Verification) -> Value {
    let failed = verification
        .failures
        .first()
        .map(|failure| usize::from(failure.stage));
    let options = &verification.options;
    let result = |stage: usize| match failed {
        Some(failed) if stage == failed => "failed",
        Some(failed) if stage > failed => "not_reached",
        _ if stage == 5 && verification.signer_fingerprint.is_none() => "unsigned",
        _ if stage == 7 && options.skip_verify => "not_asked",
        _ if stage == 8 && !options.require_pass => "not_asked",
        _ => "passed",
    };
    STAGES
        .iter()
        .enumerate()
        .map(|(index, name)| json!({"stage": index + 1, "name": name, "result": result(index + 1)}))
        .collect()
}

/// A receipt whose signature is good.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// What it says; see SECURITY.md.
    pub statement: Value,
    /// Fingerprint of the key that signed it.
    pub signer: String,
}

impl Receipt {
    /// Whether it says that the pack was accepted.
    pub fn passed(&self) -> bool {
        get::text(&self.statement, &["outcome"]) == Some("PASS")
    }

    /// SHA-256 of the manifest of the pack that it is about.
    pub fn manifest_sha256(&self) -> Option<&str> {
        get::text(&self.statement, &["pack", "manifest_sha256"])
    }
}

/// Checks a receipt: its form, its signature, and its signer if one is expected.
///
/// # Errors
/// Refused with [`ExitClass::Format`], [`ExitClass::Signature`], or [`ExitClass::Usage`] for a malformed fingerprint.
pub fn check(bytes: &[u8], expected: Option<&str>) -> Result<Receipt> {
    let accepted = trust::accepted(expected, None);
    if let Some((check_id, message)) = accepted.faults.into_iter().next() {
        return Err(Error::refused(ExitClass::Usage, 1, check_id, message));
    }
    let malformed = |reason: String| {
        let message = format!("the receipt {reason}");
        Error::refused(ExitClass::Format, 4, "receipt.form", message)
    };
    let forged =
        |check_id, message: String| Error::refused(ExitClass::Signature, 5, check_id, message);
    let envelope = dsse::open(bytes).map_err(malformed)?;
    if envelope.payload_type != PAYLOAD_TYPE {
        let found = &envelope.payload_type;
        return Err(malformed(format!("holds `{found}`, not `{PAYLOAD_TYPE}`")));
    }
    let statement = reader::parse(&envelope.payload)
        .and_then(reader::Document::strict)
        .map_err(|fault| malformed(fault.to_string()))?;
    if get::text(&statement, &["format"]) != Some(FORMAT) {
        return Err(malformed(format!("is not of the format {FORMAT}")));
    }
    let key = get::text(&statement, &["signer", "public_key"])
        .ok_or_else(|| malformed("holds no public key".to_owned()))
        .and_then(|pem| {
            keys::parse_public(pem)
                .map_err(|error| malformed(format!("holds no Ed25519 public key: {error}")))
        })?;
    let signer = keys::fingerprint(&key);
    if get::text(&statement, &["signer", "fingerprint"]) != Some(&signer) {
        let message = format!("the receipt names another fingerprint than its key's, {signer}");
        return Err(forged("receipt.self_fingerprint", message));
    }
    if !envelope.signed_by(&key) {
        let message = "the signature does not belong to the receipt: it was changed after signing";
        return Err(forged("receipt.signature", message.to_owned()));
    }
    if !accepted.fingerprints.is_empty() && !accepted.fingerprints.contains(&signer) {
        let message = format!("the receipt is signed by {signer}, who is not the one expected");
        return Err(forged("receipt.untrusted_signer", message));
    }
    Ok(Receipt { statement, signer })
}

/// Writes a file that must not exist, whole or not at all: staged beside its place, then linked there.
///
/// # Errors
/// If it exists or cannot be written.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".receipt.tmp.");
    // What any new file of this process gets, where temporary files are private.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let staged = builder.tempfile_in(folder).and_then(|mut file| {
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        Ok(file)
    });
    let failed = |source| Error::io("write", path, source);
    let staged = staged.map_err(failed)?;
    staged
        .persist_noclobber(path)
        .map_err(|error| failed(error.error))?;
    #[cfg(unix)]
    fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)?;
    Ok(())
}
