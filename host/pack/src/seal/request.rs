//! What a request must fulfil before anything is written.

use std::collections::BTreeSet;

use super::SealRequest;
use crate::error::{Error, ExitClass, Failure, Result};
use crate::layout;
use crate::report_rules::{self, Assurance, Profile};

pub(super) fn check(request: &SealRequest<'_>) -> Result<()> {
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
    layout::PAGE,
    "readme.md",
    "checksums.sha256",
    "manifest.json",
    "manifest.signature.json",
    "metadata/manifest.json",
    "metadata/manifest.signature.json",
    "metadata/checksums.sha256",
    "metadata/source_repo.json",
    "metadata/environment.json",
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
