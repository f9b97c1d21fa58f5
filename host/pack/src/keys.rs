//! Ed25519 key files and fingerprints.
//!
//! Private keys are unencrypted PKCS#8 version 0 in PEM (119 bytes of text), public keys SubjectPublicKeyInfo in PEM (113 bytes). A fingerprint is
//! `sha256:` and the SHA-256 of the 32 raw bytes of the public key, neither of its DER nor of its PEM.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{
    DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _,
    KeypairBytes,
};
use serde_json::{Value, json};

pub use ed25519_dalek::{SigningKey, VerifyingKey};

use crate::digest;
use crate::error::{Error, ExitClass, Result};
use crate::json;

/// A key file is never longer than this; what is longer is something else.
const KEY_FILE_LIMIT: u64 = 64 << 10;

/// What [`generate`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The private key file, mode 0600.
    pub private_key: PathBuf,
    /// The public key file.
    pub public_key: PathBuf,
    /// Fingerprint of the pair.
    pub fingerprint: String,
}

impl Generated {
    /// The answer of `pack keygen --json`.
    pub fn json(&self) -> Value {
        json!({
            "format_version": "evidence-pack-keygen-v1",
            "ok": true,
            "algorithm": "ed25519",
            "private_key": self.private_key.display().to_string(),
            "public_key": self.public_key.display().to_string(),
            "signing_key_fingerprint": self.fingerprint,
        })
    }
}

/// Makes a key pair from the operating system's randomness and writes both files.
///
/// The public key goes to `public`, or beside the private one with the ending `.pub.pem`. Parents are created.
///
/// # Errors
/// Refused with [`ExitClass::Usage`] if either file exists; then nothing is written.
pub fn generate(private: &Path, public: Option<&Path>) -> Result<Generated> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| Error::Key {
        role: "signing",
        path: private.to_path_buf(),
        reason: format!("the operating system gave no randomness: {error}"),
    })?;
    write_pair(&SigningKey::from_bytes(&seed), private, public)
}

/// Writes the files of a key pair. See [`generate`].
pub fn write_pair(key: &SigningKey, private: &Path, public: Option<&Path>) -> Result<Generated> {
    let public = public.map_or_else(|| private.with_extension("pub.pem"), Path::to_path_buf);
    if public == private {
        return Err(Error::refused(
            ExitClass::Usage,
            1,
            "usage.key_paths",
            format!(
                "the private and the public key would be the same file `{}`; name another for one of them",
                private.display()
            ),
        ));
    }
    for path in [private, &public] {
        if path.symlink_metadata().is_ok() {
            return Err(Error::refused(
                ExitClass::Usage,
                1,
                "usage.key_exists",
                format!(
                    "`{}` exists and is not overwritten; choose another name or remove it yourself",
                    path.display()
                ),
            ));
        }
    }
    let encoding_failed = |path: &Path, error: &dyn std::fmt::Display| Error::Key {
        role: "signing",
        path: path.to_path_buf(),
        reason: format!("it cannot be encoded: {error}"),
    };
    // Without the public part this is PKCS#8 version 0, the form that every reader knows.
    let pair = KeypairBytes {
        secret_key: key.to_bytes(),
        public_key: None,
    };
    let private_text = pair
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|error| encoding_failed(private, &error))?;
    let public_text = public_pem(&key.verifying_key())?;
    for path in [private, &public] {
        if let Some(parent) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            fs::create_dir_all(parent)
                .map_err(|source| Error::io("create the directory", parent, source))?;
        }
    }
    create(private, private_text.as_bytes(), Some(0o600))?;
    if let Err(error) = create(&public, public_text.as_bytes(), None) {
        // Half a pair is no pair.
        let _ = fs::remove_file(private);
        return Err(error);
    }
    Ok(Generated {
        private_key: private.to_path_buf(),
        public_key: public,
        fingerprint: fingerprint(&key.verifying_key()),
    })
}

/// Reads a private key.
///
/// # Errors
/// If the file cannot be read, is encrypted, is no PKCS#8 PEM, or holds a key of another algorithm.
pub fn load_signing(path: &Path) -> Result<SigningKey> {
    let refuse = |reason: String| Error::Key {
        role: "signing",
        path: path.to_path_buf(),
        reason,
    };
    let text = read_text(path).map_err(refuse)?;
    if text.contains("ENCRYPTED") {
        return Err(refuse("it is encrypted, and encrypted keys are not supported; store an unencrypted PKCS#8 key with mode 0600".to_owned()));
    }
    SigningKey::from_pkcs8_pem(text.trim_end()).or_else(|_| SigningKey::from_pkcs8_pem(&text)).map_err(|error| {
        refuse(format!("it is not an Ed25519 private key in PKCS#8 PEM ({error}); make one with `packhost pack keygen`"))
    })
}

/// Reads a public key.
///
/// # Errors
/// If the file cannot be read, is no SubjectPublicKeyInfo PEM, or holds a key of another algorithm.
pub fn load_public(path: &Path) -> Result<VerifyingKey> {
    let refuse = |reason: String| Error::Key {
        role: "public",
        path: path.to_path_buf(),
        reason,
    };
    let text = read_text(path).map_err(refuse)?;
    parse_public(&text)
        .map_err(|error| refuse(format!("it is not an Ed25519 public key in PEM ({error})")))
}

/// `sha256:` and the SHA-256 of the 32 raw bytes of the key.
pub fn fingerprint(key: &VerifyingKey) -> String {
    digest::prefixed(key.as_bytes())
}

/// The public key as PEM text with line feeds.
pub fn public_pem(key: &VerifyingKey) -> Result<String> {
    key.to_public_key_pem(LineEnding::LF)
        .map_err(|error| Error::Key {
            role: "public",
            path: PathBuf::new(),
            reason: format!("it cannot be encoded: {error}"),
        })
}

pub(crate) fn parse_public(text: &str) -> std::result::Result<VerifyingKey, String> {
    VerifyingKey::from_public_key_pem(text).map_err(|error| error.to_string())
}

fn read_text(path: &Path) -> std::result::Result<String, String> {
    let bytes = json::read_bytes(path, KEY_FILE_LIMIT).map_err(|fault| format!("it {fault}"))?;
    String::from_utf8(bytes).map_err(|_| "it is not text; a PEM file is expected".to_owned())
}

/// Creates a file that must not exist, with its mode from the first moment on.
fn create(path: &Path, bytes: &[u8], mode: Option<u32>) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if let Some(mode) = mode {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    }
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = options
        .open(path)
        .map_err(|source| Error::io("create", path, source))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|source| {
            let _ = fs::remove_file(path);
            Error::io("write", path, source)
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_written_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let private = folder.path().join("deep/er/k.key");
        let made = generate(&private, None).unwrap();
        assert_eq!(made.public_key, folder.path().join("deep/er/k.pub.pem"));
        assert_eq!(fs::metadata(&private).unwrap().len(), 119);
        assert_eq!(fs::metadata(&made.public_key).unwrap().len(), 113);
        #[cfg(unix)]
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&private).unwrap().permissions())
                & 0o777,
            0o600
        );
        let signing = load_signing(&private).unwrap();
        assert_eq!(
            load_public(&made.public_key).unwrap(),
            signing.verifying_key()
        );
        assert_eq!(fingerprint(&signing.verifying_key()), made.fingerprint);

        let before = fs::read(&private).unwrap();
        assert_eq!(
            generate(&private, Some(&folder.path().join("new.pem")))
                .unwrap_err()
                .exit(),
            ExitClass::Usage
        );
        assert!(!folder.path().join("new.pem").exists());
        assert_eq!(fs::read(&private).unwrap(), before);
    }

    #[test]
    fn other_keys_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.pem");
        for text in [
            "",
            "hello",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ] {
            fs::write(&path, text).unwrap();
            assert!(load_signing(&path).is_err(), "{text}");
            assert!(load_public(&path).is_err(), "{text}");
        }
        assert!(
            load_signing(&folder.path().join("absent"))
                .unwrap_err()
                .to_string()
                .contains("cannot be read")
        );
    }
}
