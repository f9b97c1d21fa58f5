//! Trust policies: several keys with validity and revocation, k of n signatures, pinned plugins.

use std::fs;
use std::path::{Path, PathBuf};

use packhost_pack::keys::{self, SigningKey};
use packhost_pack::verify::{Status, Verification, VerifyOptions, verify};
use packhost_pack::{ExitClass, canonical, layout, signature};

use crate::{fixtures, sealing};

/// A sealed pack of the time 2026-01-02T03:04:05Z, the key that sealed it and another one.
struct Case {
    folder: tempfile::TempDir,
    first: SigningKey,
    second: SigningKey,
}

fn print(key: &SigningKey) -> String {
    keys::fingerprint(&key.verifying_key())
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        sealing::seal_with(&folder.path().join("pack"), |_| {}).unwrap();
        Self {
            folder,
            first: keys::load_signing(&fixtures::root().join("keys/signer.pem")).unwrap(),
            second: SigningKey::from_bytes(&[7; 32]),
        }
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn pack(&self) -> PathBuf {
        self.folder.path().join("pack")
    }

    /// The second key's signature beside the pack.
    fn countersigned(&self) -> PathBuf {
        let manifest = fs::read(self.pack().join(layout::MANIFEST)).unwrap();
        let bundle = signature::sign(&manifest, &self.second).unwrap();
        self.write("second.json", canonical::line_file(&bundle))
    }

    fn verify(&self, policy: &str, signatures: &[&Path]) -> Verification {
        let options = VerifyOptions {
            strict: true,
            trust_policy: Some(self.write("policy.toml", format!("format = 1\n{policy}"))),
            signatures: signatures.iter().map(|path| path.to_path_buf()).collect(),
            ..VerifyOptions::default()
        };
        verify(&self.pack(), &options)
    }

    /// An entry of a key with further lines.
    fn key(&self, key: &SigningKey, more: &str) -> String {
        format!(
            "[[key]]\nname = \"k\"\nfingerprint = \"{}\"\n{more}\n",
            print(key)
        )
    }
}

fn said(result: &Verification) -> String {
    let failures = result.failures.iter().map(ToString::to_string);
    failures.collect::<Vec<_>>().join("\n")
}

#[test]
fn one_known_key_is_enough_where_one_is_asked() {
    let case = Case::new();
    let result = case.verify(&case.key(&case.first, ""), &[]);
    assert_eq!(result.status(), Status::Authentic, "{}", said(&result));
    let result = case.verify(&case.key(&case.second, ""), &[]);
    assert_eq!(result.exit, ExitClass::Signature);
    assert!(
        said(&result).contains("is not among its keys"),
        "{}",
        said(&result)
    );
    assert_eq!(result.json()["authenticity"], "mismatch");
}

#[test]
fn keys_are_valid_for_a_time() {
    let case = Case::new();
    let outcome = |more: &str| {
        let result = case.verify(&case.key(&case.first, more), &[]);
        (result.exit, said(&result))
    };
    for good in [
        "not_before = 2026-01-02T03:04:05Z",
        "not_after = 2026-01-02T05:04:05+02:00",
        "not_before = 2025-01-01T00:00:00Z\nnot_after = 2027-01-01T00:00:00Z\nrevoked = 2026-02-01T00:00:00Z",
        "revoked = false",
    ] {
        assert_eq!(
            outcome(good).0,
            ExitClass::Ok,
            "{good}: {}",
            outcome(good).1
        );
    }
    for (bad, why) in [
        ("not_before = 2026-01-02T03:04:06Z", "was not valid yet"),
        ("not_after = 2026-01-02T03:04:04Z", "was no longer valid"),
        ("revoked = 2026-01-02T03:04:05Z", "was revoked when"),
    ] {
        let (exit, said) = outcome(bad);
        assert_eq!(exit, ExitClass::Signature, "{bad}");
        assert!(
            said.contains("[signature.policy]") && said.contains(why),
            "{said}"
        );
    }
    // A key that is revoked outright counts at no time; another one must sign.
    let second = case.countersigned();
    let keys = case.key(&case.first, "revoked = true") + &case.key(&case.second, "");
    let result = case.verify(&keys, &[]);
    assert!(said(&result).contains("is revoked"), "{}", said(&result));
    let result = case.verify(&keys, &[&second]);
    assert_eq!(result.exit, ExitClass::Ok, "{}", said(&result));
}

#[test]
fn several_keys_must_sign() {
    let case = Case::new();
    let both = format!(
        "threshold = 2\n{}{}",
        case.key(&case.first, ""),
        case.key(&case.second, "")
    );
    let result = case.verify(&both, &[]);
    assert_eq!(result.exit, ExitClass::Signature);
    assert!(said(&result).contains("demands 2 signatures of its keys, and 1 count"));
    let second = case.countersigned();
    let result = case.verify(&both, &[&second]);
    assert_eq!(result.status(), Status::Authentic, "{}", said(&result));
    assert_eq!(result.signers.len(), 2);
    // The same key twice is one signature.
    let own = case.pack().join(layout::SIGNATURE);
    assert_eq!(case.verify(&both, &[&own]).exit, ExitClass::Signature);
    // A signature over something else is a fault of its own.
    let text = fs::read_to_string(&second).unwrap();
    let at = text.find("\"value\": \"").unwrap();
    let at = at + text[at + 10..].find("\"value\": \"").unwrap() + 25;
    let mut broken = text.clone();
    let other = if text[at..].starts_with('A') {
        "B"
    } else {
        "A"
    };
    broken.replace_range(at..=at, other);
    let broken = case.write("broken.json", broken);
    let result = case.verify(&both, &[&broken]);
    assert!(
        said(&result).contains("[signature.detached]"),
        "{}",
        said(&result)
    );
    let absent = case.folder.path().join("absent.json");
    let result = case.verify(&both, &[&absent]);
    assert!(
        said(&result).contains("there is no such file"),
        "{}",
        said(&result)
    );
}

#[test]
fn other_demands_stand_beside_the_policy() {
    let case = Case::new();
    let policy = case.write(
        "p.toml",
        format!("format = 1\n{}", case.key(&case.first, "")),
    );
    let options = VerifyOptions {
        trust_policy: Some(policy),
        expected_fingerprint: Some(print(&case.second)),
        ..VerifyOptions::default()
    };
    let result = verify(&case.pack(), &options);
    assert_eq!(result.failures[0].check_id, "signature.untrusted_signer");
}

#[test]
fn plugins_are_pinned() {
    let folder = tempfile::tempdir().unwrap();
    let lock = format!(
        "format = 1\n\n[[plugin]]\nid = \"spectral\"\nversion = \"1.0.0\"\nsha256 = \"{}\"\n",
        "ab".repeat(32)
    );
    sealing::seal_with(&folder.path().join("pack"), |request| {
        for entry in &mut request.entries {
            if entry.name.ends_with("plugins.lock") {
                *entry = packhost_pack::seal::Entry::bytes(entry.name.clone(), lock.as_bytes());
            }
        }
    })
    .unwrap();
    let case = Case {
        folder,
        first: keys::load_signing(&fixtures::root().join("keys/signer.pem")).unwrap(),
        second: SigningKey::from_bytes(&[7; 32]),
    };
    let plugin = |id: &str, digest: &str| {
        format!(
            "[[plugin]]\nid = \"{id}\"\nsha256 = [\"{}\"]\n",
            digest.repeat(32)
        )
    };
    let outcome = |more: &str| {
        let result = case.verify(&(case.key(&case.first, "") + more), &[]);
        (result.exit, said(&result))
    };
    assert_eq!(outcome(&plugin("spectral", "ab")).0, ExitClass::Ok);
    for (more, why) in [
        (plugin("spectral", "cd"), "does not allow"),
        (plugin("rmt", "ab"), "does not pin it"),
    ] {
        let (exit, said) = outcome(&more);
        assert_eq!(exit, ExitClass::Signature, "{said}");
        assert!(
            said.contains("[trust.plugin]") && said.contains(why),
            "{said}"
        );
    }
    let only = format!(
        "format = 1\nonly_listed_plugins = true\n{}",
        case.key(&case.first, "")
    );
    let options = VerifyOptions {
        trust_policy: Some(case.write("only.toml", only)),
        ..VerifyOptions::default()
    };
    let result = verify(&case.pack(), &options);
    assert!(
        said(&result).contains("is not among those"),
        "{}",
        said(&result)
    );
}

#[test]
fn policies_that_make_no_sense_are_refused() {
    let case = Case::new();
    let key = case.key(&case.first, "");
    for (policy, why) in [
        (String::new(), "demands 1 signatures of 0 keys"),
        (
            format!("threshold = 2\n{key}"),
            "demands 2 signatures of 1 keys",
        ),
        (format!("threshold = 0\n{key}"), "demands 0 signatures"),
        (format!("{key}{key}"), "listed twice"),
        (
            case.key(&case.first, "revoked = true"),
            "of 0 keys that are not revoked",
        ),
        (case.key(&case.first, "signers = 1"), "unknown field"),
        (
            case.key(&case.first, "not_before = 2026-01-01"),
            "with an offset",
        ),
        (
            case.key(
                &case.first,
                "not_before = 2026-01-02T00:00:00Z\nnot_after = 2026-01-01T00:00:00Z",
            ),
            "never be valid",
        ),
        (key.replace("sha256:", "sha1:"), "not `sha256:`"),
        (
            format!("{key}[[plugin]]\nid = \"x\"\nsha256 = []"),
            "list of digests",
        ),
    ] {
        let result = case.verify(&policy, &[]);
        assert_eq!(result.exit, ExitClass::Usage, "{policy}");
        assert!(said(&result).contains(why), "{policy}: {}", said(&result));
        assert_eq!(result.failures[0].check_id, "usage.trust_policy");
    }
}
