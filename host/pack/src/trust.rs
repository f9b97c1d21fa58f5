//! Which signers are accepted: expected fingerprints and trust stores.
//!
//! The accepted set is the union of both, as in the reference verifier: a store that lists the signer makes somebody else's expected fingerprint succeed.
//! Unlike there, no store is read unless it is named: a file in the home directory must not change what a pack means.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::digest;
use crate::json;

/// The accepted signers, and what was wrong with the sources that name them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Prefixed fingerprints. Empty means that any signer is accepted, unless there are faults.
    pub fingerprints: BTreeSet<String>,
    /// Faults with their check ids.
    pub faults: Vec<(&'static str, String)>,
}

/// Reads the accepted signers from an expected fingerprint and a trust store, either of which may be absent.
pub fn accepted(expected: Option<&str>, store: Option<&Path>) -> Accepted {
    let mut accepted = Accepted::default();
    if let Some(text) = expected {
        match normal(text) {
            Some(fingerprint) => {
                accepted.fingerprints.insert(fingerprint);
            }
            None => accepted.faults.push((
                "usage.expected_fingerprint",
                format!(
                    "`{}` is not a fingerprint; write `sha256:` and 64 hex digits",
                    text.trim()
                ),
            )),
        }
    }
    if let Some(path) = store {
        let mut refuse = |reason: String| {
            accepted.faults.push((
                "usage.trust_store",
                format!("trust store `{}` {reason}", path.display()),
            ))
        };
        match json::read_strict(path, json::CONTROL_LIMIT) {
            Err(fault) => refuse(fault.to_string()),
            Ok(value) => match entries(&value) {
                None => refuse("must be an array, or an object with an array `trusted_signers` or `fingerprints`".to_owned()),
                Some(entries) => {
                    if entries.is_empty() {
                        refuse("lists no signer, so it would accept nobody".to_owned());
                    }
                    for (index, entry) in entries.iter().enumerate() {
                        let text = entry.as_str().or_else(|| entry.get("fingerprint")?.as_str());
                        match text.and_then(normal) {
                            Some(fingerprint) => {
                                accepted.fingerprints.insert(fingerprint);
                            }
                            None => accepted.faults.push((
                                "usage.trust_store",
                                format!("trust store `{}`: entry {} is not a fingerprint `sha256:` and 64 hex digits", path.display(), index + 1),
                            )),
                        }
                    }
                }
            },
        }
    }
    accepted
}

fn entries(value: &Value) -> Option<&Vec<Value>> {
    match value {
        Value::Array(entries) => Some(entries),
        Value::Object(fields) => fields
            .get("trusted_signers")
            .or_else(|| fields.get("fingerprints"))?
            .as_array(),
        _ => None,
    }
}

fn normal(text: &str) -> Option<String> {
    let text = text.trim().to_lowercase();
    digest::is_prefixed(&text).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expected_fingerprint_is_trimmed_and_lower_cased() {
        let text = format!("  SHA256:{}\n", "AB".repeat(32));
        let accepted = accepted(Some(&text), None);
        assert_eq!(
            accepted.fingerprints,
            BTreeSet::from([format!("sha256:{}", "ab".repeat(32))])
        );
        assert!(super::accepted(Some("ab"), None).faults[0].0 == "usage.expected_fingerprint");
        assert_eq!(super::accepted(None, None), Accepted::default());
    }
}
