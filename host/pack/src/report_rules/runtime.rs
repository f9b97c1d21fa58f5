//! The runtime manifest beside a report: which runtime made it, and the digest that binds the two.
//!
//! Only the report's digest is cross-checked; image and configuration digests are claims of whoever ran the evaluation.

use serde_json::{Map, Value, json};

use super::{Faults, Kind, Rules};
use crate::digest;
use crate::json::get;

/// The runtime manifest as found beside a report.
#[derive(Clone, Debug, PartialEq)]
pub enum RuntimeManifest {
    /// Not there.
    Missing,
    /// There, but not readable as JSON, for this reason.
    Unreadable(String),
    /// There.
    Found(Value),
}

/// The state of a report's runtime provenance.
#[derive(Clone, Debug, PartialEq)]
pub struct Provenance {
    /// `container`, `host-bypass`, or nothing.
    pub declared_mode: Option<String>,
    /// Whether everything held.
    pub verified: bool,
    /// Whether the caller left it unchecked.
    pub skipped: bool,
    /// Whether this stops strict assurance.
    pub strict_blocking: bool,
    /// Issue codes (`manifest_missing`, `manifest_invalid`, `execution_mode_invalid`, `verifier_failed`) with messages.
    pub issues: Vec<(&'static str, String)>,
}

impl Provenance {
    /// As the verifier's output shows it.
    pub fn json(&self) -> Value {
        let status = match (self.skipped, self.verified) {
            (true, _) => "skipped",
            (false, true) => "verified",
            (false, false) => "failed",
        };
        let issues: Vec<Value> = self
            .issues
            .iter()
            .map(|(code, message)| json!({"code": code, "message": message, "details": {}}))
            .collect();
        json!({
            "declared_mode": self.declared_mode,
            "status": status,
            "verified": self.verified,
            "skipped": self.skipped,
            "strict_blocking": self.strict_blocking,
            "issues": issues,
        })
    }
}

pub(super) fn check(
    report: &Value,
    digest: &str,
    manifest: &RuntimeManifest,
    rules: Rules,
    strict: bool,
    faults: &mut Faults,
) -> Provenance {
    const RULE: &str = "report.runtime";
    let mut found: Vec<(&'static str, Kind, String)> = Vec::new();
    let mut declared =
        get::text(report, &["context", "runtime", "execution_mode"]).map(str::to_owned);
    if rules.skip_provenance {
        return Provenance {
            declared_mode: declared,
            verified: false,
            skipped: true,
            strict_blocking: strict,
            issues: Vec::new(),
        };
    }
    match manifest {
        RuntimeManifest::Missing => {
            found.push((
                "manifest_missing",
                Kind::Policy,
                "no runtime.manifest.json lies beside the report".to_owned(),
            ));
        }
        RuntimeManifest::Unreadable(reason) => {
            found.push((
                "manifest_invalid",
                Kind::Policy,
                format!("runtime.manifest.json {reason}"),
            ));
        }
        RuntimeManifest::Found(value) => {
            if let Some(mode) = get::text(value, &["execution_mode"]) {
                declared = Some(mode.to_owned());
            }
            for fault in schema_faults(value) {
                found.push((
                    "manifest_invalid",
                    Kind::Schema,
                    format!("runtime manifest schema validation: {fault}"),
                ));
            }
            if found.is_empty() {
                found.extend(claim_faults(value, digest));
            }
        }
    }
    for (_, kind, message) in &found {
        faults.add(RULE, *kind, message.clone());
    }
    Provenance {
        declared_mode: declared,
        verified: found.is_empty(),
        skipped: false,
        strict_blocking: strict && !found.is_empty(),
        issues: found
            .into_iter()
            .map(|(code, _, message)| (code, message))
            .collect(),
    }
}

fn claim_faults(manifest: &Value, digest: &str) -> Vec<(&'static str, Kind, String)> {
    let mut found = Vec::new();
    if get::text(manifest, &["execution_mode"]) != Some("container") {
        found.push((
            "execution_mode_invalid",
            Kind::Policy,
            "runtime manifest: execution_mode must be `container`".to_owned(),
        ));
    }
    if !get::is_true(manifest, &["runtime", "container_execution"]) {
        found.push((
            "execution_mode_invalid",
            Kind::Policy,
            "runtime manifest: runtime.container_execution must be true".to_owned(),
        ));
    }
    if get::text(manifest, &["runtime", "image_digest"]).is_none() {
        found.push((
            "verifier_failed",
            Kind::Policy,
            "runtime manifest: runtime.image_digest is required".to_owned(),
        ));
    }
    let claimed = get::text(manifest, &["report", "sha256"]).unwrap_or_default();
    if claimed != digest {
        found.push((
            "verifier_failed",
            Kind::Mismatch,
            format!("digest mismatch: the runtime manifest is for the report {claimed}, the report beside it is {digest}"),
        ));
    }
    found
}

/// Violations of the runtime manifest's schema.
pub(crate) fn schema_faults(manifest: &Value) -> Vec<String> {
    let Some(fields) = manifest.as_object() else {
        return vec!["it must be an object".to_owned()];
    };
    let mut faults = Vec::new();
    let mut demand = |holds: bool, what: &str| {
        if !holds {
            faults.push(what.to_owned());
        }
    };
    let top = [
        "manifest_version",
        "generated_at_utc",
        "verifier_contract_version",
        "report",
        "config",
        "execution_mode",
        "runtime",
        "context",
    ];
    demand(only(fields, &top), "unknown field at the top level");
    demand(
        fields.get("manifest_version").and_then(get::integer) == Some(1.0),
        "manifest_version must be 1",
    );
    demand(
        get::text(manifest, &["generated_at_utc"]).is_some_and(is_timestamp),
        "generated_at_utc must be an RFC 3339 time stamp",
    );
    demand(
        get::text(manifest, &["verifier_contract_version"]) == Some("runtime-manifest-v1"),
        "verifier_contract_version must be `runtime-manifest-v1`",
    );
    let mode = get::text(manifest, &["execution_mode"]);
    demand(
        mode.is_some_and(|mode| ["container", "host-bypass"].contains(&mode)),
        "execution_mode must be `container` or `host-bypass`",
    );
    demand(
        fields.get("context").is_none_or(Value::is_object),
        "context must be an object",
    );

    let empty = Map::new();
    let report = get::object(manifest, &["report"]).unwrap_or(&empty);
    demand(
        only(report, &["path", "filename", "sha256"]),
        "unknown field in `report`",
    );
    for key in ["path", "filename"] {
        demand(
            report
                .get(key)
                .and_then(Value::as_str)
                .is_some_and(|text| !text.is_empty()),
            "report.path and report.filename must be non-empty strings",
        );
    }
    demand(
        report
            .get("sha256")
            .and_then(Value::as_str)
            .is_some_and(digest::is_hex),
        "report.sha256 must be 64 lower-case hex digits",
    );

    demand(
        get::object(manifest, &["config"]).is_some(),
        "config must be an object",
    );
    let config = get::object(manifest, &["config"]).unwrap_or(&empty);
    demand(
        only(config, &["path", "sha256", "source"]),
        "unknown field in `config`",
    );
    demand(
        config
            .get("path")
            .is_some_and(|path| path.is_null() || path.is_string()),
        "config.path must be a string or null",
    );
    demand(
        config
            .get("sha256")
            .is_some_and(|sha256| sha256.is_null() || sha256.as_str().is_some_and(digest::is_hex)),
        "config.sha256 must be 64 lower-case hex digits or null",
    );
    demand(
        config
            .get("source")
            .and_then(Value::as_str)
            .is_some_and(|source| ["file", "inline", "missing"].contains(&source)),
        "config.source must be file, inline or missing",
    );

    let runtime = get::object(manifest, &["runtime"]).unwrap_or(&empty);
    let known = [
        "image_ref",
        "image_digest",
        "container_execution",
        "allow_network",
        "allow_remote_code",
        "allow_third_party_plugins",
    ];
    demand(only(runtime, &known), "unknown field in `runtime`");
    demand(
        runtime
            .get("image_ref")
            .and_then(Value::as_str)
            .is_some_and(|text| !text.is_empty()),
        "runtime.image_ref must be a non-empty string",
    );
    demand(
        runtime.get("image_digest").is_some_and(|value| {
            value.is_null() || value.as_str().is_some_and(digest::is_prefixed)
        }),
        "runtime.image_digest must be `sha256:` and 64 lower-case hex digits, or null",
    );
    for key in &known[2..] {
        demand(
            runtime.get(*key).is_some_and(Value::is_boolean),
            "the switches in `runtime` must be true or false",
        );
    }
    faults
}

fn only(fields: &Map<String, Value>, known: &[&str]) -> bool {
    fields.keys().all(|key| known.contains(&key.as_str()))
}

/// Whether a text is `YYYY-MM-DDThh:mm:ss`, an optional fraction, and `Z` or an offset `+hh:mm`.
pub(crate) fn is_timestamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    let shape = b"dddd-dd-ddTdd:dd:dd";
    let matches = |pattern: &[u8], bytes: &[u8]| {
        pattern.len() == bytes.len()
            && pattern.iter().zip(bytes).all(|(want, have)| {
                if *want == b'd' {
                    have.is_ascii_digit()
                } else {
                    want == have
                }
            })
    };
    let Some((head, mut rest)) = bytes.split_at_checked(shape.len()) else {
        return false;
    };
    if !matches(shape, head) {
        return false;
    }
    let number = |from: usize, digits: usize| {
        head[from..from + digits]
            .iter()
            .fold(0u32, |sum, digit| sum * 10 + u32::from(digit - b'0'))
    };
    let (year, month, day) = (number(0, 4), number(5, 2), number(8, 2));
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    if !(1..=days).contains(&day) || number(11, 2) > 23 || number(14, 2) > 59 || number(17, 2) > 60
    {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if digits == 0 {
            return false;
        }
        rest = &fraction[digits..];
    }
    rest == b"Z" || matches(b"+dd:dd", rest) || matches(b"-dd:dd", rest)
}

#[cfg(test)]
mod tests {
    use super::is_timestamp;

    #[test]
    fn time_stamps() {
        for good in [
            "2026-01-02T03:04:05Z",
            "2026-01-02T03:04:05+00:00",
            "2024-02-29T23:59:60.123456-11:30",
        ] {
            assert!(is_timestamp(good), "{good}");
        }
        for bad in [
            "",
            "xxxxxxxxxxxxxxxxxxxx",
            "2026-01-02 03:04:05Z",
            "2026-13-02T03:04:05Z",
            "2025-02-29T03:04:05Z",
            "2026-01-02T24:04:05Z",
            "2026-01-02T03:04:05",
            "2026-01-02T03:04:05.Z",
        ] {
            assert!(!is_timestamp(bad), "{bad}");
        }
    }
}
