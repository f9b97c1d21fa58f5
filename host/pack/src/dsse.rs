//! DSSE envelopes: a payload of a named type, and Ed25519 signatures over both.
//!
//! What is signed is the *pre-authentication encoding* ([`pae`]) of <https://github.com/secure-systems-lab/dsse>, protocol
//! version 1: `DSSEv1 LEN(type) type LEN(payload) payload`, with lengths in decimal. The key id is our fingerprint, a hint
//! without authority.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde_json::{Value, json};

use crate::json;
use crate::keys;

/// More signatures than this has no honest envelope.
const SIGNATURE_LIMIT: usize = 64;

/// An envelope that was read; nothing is said yet about its signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Media type of the payload.
    pub payload_type: String,
    /// The payload's bytes.
    pub payload: Vec<u8>,
    signatures: Vec<Vec<u8>>,
}

/// The bytes that are signed.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    )
    .into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// The envelope of a payload, signed by `key`.
pub fn seal(payload_type: &str, payload: &[u8], key: &SigningKey) -> Value {
    let signature = key.sign(&pae(payload_type, payload));
    json!({
        "payloadType": payload_type,
        "payload": STANDARD.encode(payload),
        "signatures": [{
            "keyid": keys::fingerprint(&key.verifying_key()),
            "sig": STANDARD.encode(signature.to_bytes()),
        }],
    })
}

/// Reads an envelope. Fields that DSSE does not have are ignored, as it demands.
///
/// # Errors
/// In words: it is no JSON, a field is missing or malformed, or it has no signature.
pub fn open(bytes: &[u8]) -> Result<Envelope, String> {
    let value = json::parse(bytes)
        .and_then(json::Document::strict)
        .map_err(|fault| fault.to_string())?;
    let text = |value: &Value, key: &str| {
        let text = value.get(key).and_then(Value::as_str);
        text.map(str::to_owned)
            .ok_or_else(|| format!("has no text `{key}`"))
    };
    let decoded = |value: &Value, key: &str| {
        STANDARD
            .decode(text(value, key)?)
            .map_err(|error| format!("has a `{key}` that is not base64: {error}"))
    };
    let signatures = value
        .get("signatures")
        .and_then(Value::as_array)
        .filter(|signatures| (1..=SIGNATURE_LIMIT).contains(&signatures.len()))
        .ok_or_else(|| format!("must have 1 to {SIGNATURE_LIMIT} `signatures`"))?;
    Ok(Envelope {
        payload_type: text(&value, "payloadType")?,
        payload: decoded(&value, "payload")?,
        signatures: signatures
            .iter()
            .map(|signature| decoded(signature, "sig"))
            .collect::<Result<_, _>>()?,
    })
}

impl Envelope {
    /// Whether one of the signatures is by `key`, over exactly this type and payload.
    pub fn signed_by(&self, key: &VerifyingKey) -> bool {
        let signed = pae(&self.payload_type, &self.payload);
        self.signatures.iter().any(|bytes| {
            Signature::from_slice(bytes)
                .is_ok_and(|signature| key.verify_strict(&signed, &signature).is_ok())
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_of_the_specification_s_example() {
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn a_signature_covers_type_and_payload() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let envelope = open(seal("a/b", b"text", &key).to_string().as_bytes()).unwrap();
        assert!(envelope.signed_by(&key.verifying_key()));
        assert!(!envelope.signed_by(&SigningKey::from_bytes(&[4; 32]).verifying_key()));
        for other in [
            Envelope {
                payload_type: "a/c".to_owned(),
                ..envelope.clone()
            },
            Envelope {
                payload: b"texts".to_vec(),
                ..envelope.clone()
            },
        ] {
            assert!(!other.signed_by(&key.verifying_key()));
        }
        for bad in [
            "",
            "{}",
            r#"{"payloadType":"a","payload":"","signatures":[]}"#,
        ] {
            assert!(open(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
