//! The detached signature over the exact bytes of the manifest.
//!
//! The bundle holds the signer's public key. Without a set of accepted fingerprints any self-consistent bundle passes: that proves integrity, not origin.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey};
use serde_json::{Value, json};

use crate::digest;
use crate::error::Result;
use crate::json::{self, get};
use crate::keys;

/// The bundle's format id.
pub const FORMAT: &str = "evidence-pack-signature-v1";

/// What a bundle proves about a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Fingerprint of the key that signed, once the signature is known to be good.
    pub signer: Option<String>,
    /// Faults with their check ids; empty if the signature is accepted.
    pub faults: Vec<(&'static str, String)>,
}

/// The bundle for `manifest`, as a value; written in the one-line form.
pub fn sign(manifest: &[u8], key: &SigningKey) -> Result<Value> {
    let public = key.verifying_key();
    Ok(json!({
        "algorithm": "ed25519",
        "format": FORMAT,
        "public_key": {"encoding": "pem", "value": keys::public_pem(&public)?},
        "signature": {"encoding": "base64", "value": STANDARD.encode(key.sign(manifest).to_bytes())},
        "signing_key_fingerprint": keys::fingerprint(&public),
    }))
}

/// Checks a bundle over the manifest's bytes, in the order of the format: form, key, fingerprint, base64, signature, the manifest's own claim, and, if
/// `accepted` is not empty, the signer.
///
/// Small-order keys and non-canonical encodings are refused, which plain RFC 8032 verification leaves open.
pub fn check(
    bundle: &[u8],
    manifest_bytes: &[u8],
    manifest: &Value,
    accepted: &BTreeSet<String>,
) -> Checked {
    match verified_signer(bundle, manifest_bytes) {
        Err(faults) => Checked {
            signer: None,
            faults,
        },
        Ok(signer) => {
            let mut faults = Vec::new();
            let claimed = manifest.get("signing_key_fingerprint");
            if get::truthy(claimed) && claimed.and_then(Value::as_str) != Some(&signer) {
                faults.push((
                    "signature.manifest_fingerprint",
                    format!("the manifest says that another key signs it: it names {}, the signature is by {signer}", claimed.unwrap_or(&Value::Null)),
                ));
            }
            if !accepted.is_empty() && !accepted.contains(&signer) {
                faults.push((
                    "signature.untrusted_signer",
                    format!("the signer {signer} is not among the {} accepted; add it to the trust store only if you know whose key it is", accepted.len()),
                ));
            }
            Checked {
                signer: Some(signer),
                faults,
            }
        }
    }
}

/// The fingerprint of the key that signed, if bundle and signature are good.
pub(crate) fn verified_signer(
    bundle: &[u8],
    manifest: &[u8],
) -> std::result::Result<String, Vec<(&'static str, String)>> {
    let invalid = |message: String| vec![("signature.invalid", message)];
    let document = json::parse(bundle).map_err(|fault| {
        vec![(
            "signature.bundle",
            format!("`{}` {fault}", crate::layout::SIGNATURE),
        )]
    })?;
    let mut faults = form_faults(&document.value);
    if let Some(key) = document.repeated.first() {
        faults.push(format!("it repeats the key `{key}`"));
    }
    if !faults.is_empty() {
        return Err(faults
            .into_iter()
            .map(|fault| {
                (
                    "signature.bundle",
                    format!("the signature bundle is malformed: {fault}"),
                )
            })
            .collect());
    }
    let field = |path: &[&str]| get::text(&document.value, path).unwrap_or_default();
    let key = keys::parse_public(field(&["public_key", "value"])).map_err(|error| {
        invalid(format!(
            "the bundled public key is not an Ed25519 key in PEM: {error}"
        ))
    })?;
    let signer = keys::fingerprint(&key);
    let claimed = field(&["signing_key_fingerprint"]);
    if claimed != signer {
        return Err(vec![(
            "signature.self_fingerprint",
            format!("the bundle names the fingerprint {claimed}, but its key has {signer}"),
        )]);
    }
    let raw = STANDARD
        .decode(field(&["signature", "value"]))
        .map_err(|error| {
            invalid(format!(
                "the signature is not standard padded base64: {error}"
            ))
        })?;
    let signature = Signature::from_slice(&raw).map_err(|_| {
        invalid(format!(
            "the signature has {} bytes instead of 64",
            raw.len()
        ))
    })?;
    key.verify_strict(manifest, &signature).map_err(|_| {
        invalid("the signature does not belong to the bytes of `manifest.json`: one of the two was changed after signing".to_owned())
    })?;
    Ok(signer)
}

fn form_faults(bundle: &Value) -> Vec<String> {
    if !bundle.is_object() {
        return vec!["it is not an object".to_owned()];
    }
    let mut faults = Vec::new();
    let constants: [(&[&str], &str); 4] = [
        (&["format"], FORMAT),
        (&["algorithm"], "ed25519"),
        (&["public_key", "encoding"], "pem"),
        (&["signature", "encoding"], "base64"),
    ];
    for (path, expected) in constants {
        if get::text(bundle, path) != Some(expected) {
            faults.push(format!("`{}` must be `{expected}`", path.join(".")));
        }
    }
    for path in [["public_key", "value"], ["signature", "value"]] {
        if get::text(bundle, &path).is_none_or(|text| text.trim().is_empty()) {
            faults.push(format!("`{}` must be a non-empty string", path.join(".")));
        }
    }
    if !get::text(bundle, &["signing_key_fingerprint"]).is_some_and(digest::is_prefixed) {
        faults.push(
            "`signing_key_fingerprint` must be `sha256:` and 64 lower-case hex digits".to_owned(),
        );
    }
    faults
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_binds_every_byte() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let signer = keys::fingerprint(&key.verifying_key());
        let manifest = json!({"signing_key_fingerprint": signer});
        let bytes = b"{}\n";
        let bundle = sign(bytes, &key).unwrap().to_string();
        let none = BTreeSet::new();
        assert_eq!(
            check(bundle.as_bytes(), bytes, &manifest, &none),
            Checked {
                signer: Some(signer.clone()),
                faults: vec![]
            }
        );
        assert_eq!(
            check(bundle.as_bytes(), b"{}", &manifest, &none).faults[0].0,
            "signature.invalid"
        );
        let other = json!({"signing_key_fingerprint": "sha256:else"});
        assert_eq!(
            check(bundle.as_bytes(), bytes, &other, &none).faults[0].0,
            "signature.manifest_fingerprint"
        );
        let accepted = BTreeSet::from(["sha256:else".to_owned()]);
        assert_eq!(
            check(bundle.as_bytes(), bytes, &manifest, &accepted).faults[0].0,
            "signature.untrusted_signer"
        );
        assert!(
            check(
                bundle.as_bytes(),
                bytes,
                &manifest,
                &BTreeSet::from([signer])
            )
            .faults
            .is_empty()
        );
    }
}
