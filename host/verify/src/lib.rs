//! `pack verify` as both programs have it: `packhost`, and the small `packhost-verify` for auditors.
//!
//! The dependencies are the pack format's own: an auditor who builds this builds no tensor, model or plugin code. What needs
//! those, the replay, `packhost` adds to it.

pub mod receipt;

use std::path::PathBuf;

use clap::Args;
use packhost_pack::ExitClass;
use packhost_pack::verify::{Authenticity, Verification, VerifyOptions, verify};
use packhost_plain::line;

/// The arguments of a verification.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Pack folder
    pub pack: PathBuf,
    /// Refuse unsigned packs, unlisted files, links and special files
    #[arg(long)]
    pub strict: bool,
    /// Skip the reports inside
    #[arg(long)]
    pub skip_verify: bool,
    /// Also demand that the verdict in the pack is PASS; without this its content is not looked at
    #[arg(long)]
    pub require_pass: bool,
    /// Fingerprint of the signer that is expected
    #[arg(long, value_name = "sha256:HEX")]
    pub expected_fingerprint: Option<String>,
    /// File with fingerprints of trusted signers
    #[arg(long, value_name = "FILE")]
    pub trust_store: Option<PathBuf>,
    /// Trust policy (TOML): keys, validity, revocation, how many must sign, which plugins
    #[arg(long, value_name = "FILE")]
    pub trust_policy: Option<PathBuf>,
    /// Further signature over the pack's manifest (see `pack sign`); may be given several times
    #[arg(long = "signature", value_name = "FILE")]
    pub signatures: Vec<PathBuf>,
    /// Profile that the reports must satisfy
    #[arg(long, value_name = "PROFILE", default_value = "dev")]
    pub profile: String,
    /// Assurance that the reports must have: report, strict or off
    #[arg(long, value_name = "MODE", default_value = "report")]
    pub report_assurance: String,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Write the result of the reports' verification to a file outside the pack
    #[arg(long, value_name = "FILE")]
    pub json_out: Option<PathBuf>,
    /// Write a signed receipt of this verification, PASS or FAIL, to a file outside the pack; it must not exist
    #[arg(long, value_name = "FILE", requires = "receipt_key")]
    pub receipt: Option<PathBuf>,
    /// Ed25519 private key that signs the receipt
    #[arg(long, value_name = "FILE", requires = "receipt")]
    pub receipt_key: Option<PathBuf>,
}

impl VerifyArgs {
    /// Verifies.
    #[must_use]
    pub fn verify(&self) -> Verification {
        let truthy = |value: String| {
            matches!(
                value.to_ascii_lowercase().as_str(),
                "1" | "true" | "yes" | "on"
            )
        };
        verify(
            &self.pack,
            &VerifyOptions {
                strict: self.strict,
                skip_verify: self.skip_verify,
                profile: self.profile.clone(),
                report_assurance: self.report_assurance.clone(),
                expected_fingerprint: self.expected_fingerprint.clone(),
                trust_store: self.trust_store.clone(),
                trust_policy: self.trust_policy.clone(),
                signatures: self.signatures.clone(),
                json_out: self.json_out.clone(),
                allow_unverified_provenance: std::env::var("INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE")
                    .is_ok_and(truthy),
                require_pass: self.require_pass,
            },
        )
    }
}

/// Says on standard error what was found.
pub fn say_findings(verification: &Verification) {
    for warning in &verification.warnings {
        eprintln!("warning: {}", line(&warning.message));
    }
    for failure in &verification.failures {
        eprintln!("error: {}", line(&failure.to_string()));
    }
}

/// What to say about a pack that is accepted.
#[must_use]
pub fn accepted(verification: &Verification) -> Option<String> {
    if !verification.ok() {
        return None;
    }
    let signer = verification
        .signer_fingerprint
        .as_deref()
        .unwrap_or("nobody");
    Some(match verification.authenticity {
        Authenticity::Pinned if verification.signers.len() > 1 => format!(
            "verified: every byte is as signed by {}, as the trust policy demands",
            verification.signers.join(", ")
        ),
        Authenticity::Pinned => {
            format!("verified: every byte is as signed by the expected signer {signer}")
        }
        _ => format!(
            "verified: every byte is as signed by {signer}; whether that is the right signer was not asked (--expected-fingerprint)"
        ),
    })
}

/// The exit code of a class: the format's own, but 10 for a verdict that is not PASS, as everywhere in packhost.
#[must_use]
pub fn code(class: ExitClass) -> u8 {
    match class {
        ExitClass::Verdict => 10,
        class => class.code(),
    }
}
