//! Where the evidence comes from, and how to check the pack without trusting this page.

use packhost_report::{Block, Table};
use serde_json::Value;

use super::read::Contents;
use crate::study::page::words;

/// Program, source, machine, text, models and plugins.
pub fn blocks(contents: &Contents) -> Vec<Block> {
    let Contents {
        run,
        source,
        environment,
        verification,
        ..
    } = contents;
    let facts = [
        ("packhost", &run["host_version"]),
        ("Began", &run["began"]),
        ("Suite", &run["suite"]),
        ("Tier", &run["tier"]),
        ("Profile", &run["profile"]),
        ("Window draw", &run["selection"]),
        ("First seed", &run["counts"]["seed"]),
        ("Calibration runs", &run["counts"]["calibration_runs"]),
        ("Text, kind", &run["dataset"]["kind"]),
        ("Text, SHA-256", &run["dataset"]["sha256"]),
        ("Engine of the plugins", &run["engine"]),
        ("Plugin interface", &run["interface"]),
        ("Source", &source["uri"]),
        ("Commit", &source["commit"]),
        ("Branch", &source["branch"]),
        ("Uncommitted changes", &source["dirty"]),
        ("Platform", &environment["platform"]),
        ("GPU", &environment["gpu_name"]),
        (
            "Reports verified at profile",
            &verification["policy_profile"],
        ),
        ("Reports at assurance", &verification["report_assurance"]),
    ];
    let facts: Vec<(String, String)> = facts
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), shown(value)?)))
        .collect();
    let mut blocks = Vec::new();
    if !facts.is_empty() {
        blocks.push(Block::Facts(facts));
    }
    blocks.extend(models(contents));
    blocks.extend(guards(contents));
    blocks
}

fn shown(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Bool(true) => Some("yes".into()),
        Value::Bool(false) => Some("no".into()),
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn table(caption: &str, columns: &[&str], rows: Vec<Vec<String>>) -> Option<Block> {
    (!rows.is_empty()).then(|| {
        Block::Table(Table {
            caption: caption.into(),
            columns: columns.iter().map(|title| words(title)).collect(),
            rows,
        })
    })
}

fn models(contents: &Contents) -> Option<Block> {
    let mut rows = Vec::new();
    for model in &contents.models {
        let profile = &model.profile;
        let text = |key: &str| shown(&profile[key]).unwrap_or_else(|| "-".into());
        let shards = profile["shards"].as_object().into_iter().flatten();
        for (shard, digest) in shards {
            rows.push(vec![
                model.id.clone(),
                text("revision"),
                text("architecture"),
                text("parameters"),
                shard.clone(),
                shown(digest).unwrap_or_default(),
            ]);
        }
    }
    let columns = [
        "model",
        "revision",
        "architecture",
        "parameters",
        "file",
        "SHA-256",
    ];
    table("Unedited models", &columns, rows)
}

fn guards(contents: &Contents) -> Option<Block> {
    let listed = contents.run["guards"].as_array().into_iter().flatten();
    let rows = listed.map(|guard| {
        let text = |key: &str| shown(&guard[key]).unwrap_or_default();
        vec![
            text("id"),
            text("version"),
            text("interface"),
            text("sha256"),
        ]
    });
    let columns = ["guard", "version", "interface", "SHA-256 of the component"];
    table("Guards that judged", &columns, rows.collect())
}

const WITH_PACKHOST: &str = "\
packhost pack verify PACK --strict --expected-fingerprint FINGERPRINT
packhost pack verify PACK --strict --replay";

const BY_HAND: &str = "\
cd PACK
sha256sum --quiet -c checksums.sha256
sha256sum checksums.sha256        # the field checksums_sha256_digest of manifest.json
jq -r .public_key.value manifest.signature.json > signer.pem
jq -r .signature.value manifest.signature.json | base64 -d > manifest.sig
openssl pkeyutl -verify -pubin -inkey signer.pem -rawin -in manifest.json -sigfile manifest.sig
openssl pkey -pubin -in signer.pem -outform DER | sha256sum        # the signer's fingerprint";

/// What to type.
pub fn by_hand(contents: &Contents) -> Vec<Block> {
    let replay = match contents.run.is_null() {
        true => {
            "This pack was not sealed by a run of packhost, so it holds too little for the second line: a replay."
        }
        false => {
            "The second line replays the pack: every guard judges again in its sandbox from the tables in the pack, and what follows, \
             this page included, is compared byte for byte. What no replay can derive are the measurements themselves."
        }
    };
    vec![
        Block::Text(
            "A page proves nothing. Ask the signer for the fingerprint of the key by another way than this pack, and let a verifier \
             compare. Without a fingerprint, verifying shows that nothing was changed since it was signed, but not by whom."
                .into(),
        ),
        Block::Code(WITH_PACKHOST.into()),
        Block::Text(replay.into()),
        Block::Text("With common tools alone (write the two files elsewhere if the pack is to stay as it is):".into()),
        Block::Code(BY_HAND.into()),
    ]
}
