//! A pack's verdict as an in-toto attestation: Statement v1 with the predicate test-result v0.1, for tools that know these.
//!
//! The subject is the pack's manifest, which binds every other file. The configuration lists what the test was made with.
//! <https://in-toto.io/Statement/v1>, <https://in-toto.io/attestation/test-result/v0.1>.

use serde_json::{Value, json};

use crate::digest;
use crate::files::Files;
use crate::json::{self as reader, get};
use crate::layout;

/// The media type of a statement in an envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// What a test of models is configured by, where the pack has it.
const CONFIGURATION: [&str; 4] = [
    layout::SCENARIOS,
    "metadata/model_revisions.json",
    "metadata/packhost/plugins.lock",
    "metadata/packhost/run.json",
];

/// The statement about a pack that was verified.
///
/// # Errors
/// In words: the pack's subject is absent or holds no verdict.
pub fn statement(files: &Files) -> Result<Value, String> {
    let manifest = reader::parse(files.manifest())
        .and_then(reader::Document::strict)
        .map_err(|fault| format!("`{}` {fault}", layout::MANIFEST))?;
    let subject = get::text(&manifest, &["subject", "path"])
        .ok_or("the manifest names no subject, so there is no verdict to export")?;
    let verdict = reader::parse(&files.read(subject)?)
        .and_then(reader::Document::strict)
        .map_err(|fault| format!("`{subject}` {fault}"))?;
    let result = match get::text(&verdict, &["verdict"]).map(str::trim) {
        Some(word) if word.eq_ignore_ascii_case("PASS") => "PASSED",
        Some(_) => "FAILED",
        None => return Err(format!("`{subject}` holds no verdict")),
    };
    let configuration: Vec<Value> = CONFIGURATION
        .iter()
        .filter_map(|name| {
            let digest = files.digests().get(*name)?;
            Some(json!({"name": name, "digest": {"sha256": digest}}))
        })
        .collect();
    Ok(json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{
            "name": layout::MANIFEST,
            "digest": {"sha256": digest::hex(files.manifest())},
        }],
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {"result": result, "configuration": configuration},
    }))
}
