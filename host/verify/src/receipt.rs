//! Receipts of both verifying programs: the desk is opened before the work, so that a bad key or place is found out first.

use std::path::PathBuf;

use packhost_pack::keys::{self, SigningKey};
use packhost_pack::receipt::{self, Occasion};
use packhost_pack::verify::Verification;
use packhost_pack::{Error, ExitClass};
use packhost_pack::{digest, files};
use serde_json::Value;

use crate::VerifyArgs;

/// Where a receipt goes and who signs it.
#[derive(Debug)]
pub struct Desk {
    path: PathBuf,
    key: SigningKey,
}

impl Desk {
    /// The desk that the arguments ask for.
    ///
    /// # Errors
    /// If the key cannot be used, or the receipt would lie inside the pack or over a file.
    pub fn open(arguments: &VerifyArgs) -> Result<Option<Self>, Error> {
        let Some((path, key)) = arguments
            .receipt
            .as_ref()
            .zip(arguments.receipt_key.as_ref())
        else {
            return Ok(None);
        };
        let refuse = |message: String| Error::usage("usage.receipt", message);
        if files::inside(&arguments.pack, path) {
            return Err(refuse(format!(
                "the receipt `{}` would lie inside the pack; name another place",
                path.display()
            )));
        }
        if path.symlink_metadata().is_ok() {
            return Err(refuse(format!(
                "`{}` exists and is not overwritten; choose another name for the receipt",
                path.display()
            )));
        }
        Ok(Some(Self {
            path: path.clone(),
            key: keys::load_signing(key)?,
        }))
    }

    /// Writes the receipt. `exit` is the code that the program will end with.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn issue(
        &self,
        program: &str,
        verification: &Verification,
        exit: u8,
        replay: Option<Value>,
        recompute: Option<Value>,
    ) -> Result<(), Error> {
        let own = std::env::current_exe().ok();
        let own = own.and_then(|path| digest::hex_of_file(&path).ok());
        let now = jiff::Timestamp::now().as_second();
        let now = jiff::Timestamp::from_second(now).unwrap_or_default();
        let occasion = Occasion {
            program,
            version: env!("CARGO_PKG_VERSION"),
            program_sha256: own.map(|(digest, _)| digest),
            issued_at: &now.to_string(),
            exit,
            replay,
            recompute,
        };
        receipt::write_new(
            &self.path,
            &receipt::issue(verification, &occasion, &self.key)?,
        )
    }
}

/// The class of an error of a desk, as the programs end with it.
#[must_use]
pub fn class(error: &Error) -> ExitClass {
    match error {
        Error::Key { .. } => ExitClass::Signature,
        other => other.exit(),
    }
}
