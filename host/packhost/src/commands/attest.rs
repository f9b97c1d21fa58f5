//! `packhost pack receipt` and `pack export`: what goes from hand to hand without the pack.

use packhost_pack::{canonical, digest, dsse, intoto, json as reader, keys, layout, receipt};
use serde_json::json;

use super::pack::intact;
use super::print_line;
use crate::cli::{ExportArgs, ReceiptArgs};
use crate::exit::{Exit, Failure};

/// Checks a receipt and says what it says. A good receipt that says FAIL ends like a verdict that is not PASS.
pub fn check_receipt(arguments: &ReceiptArgs) -> Result<Exit, Failure> {
    let path = &arguments.receipt;
    let bytes = reader::read_bytes(path, reader::CONTROL_LIMIT).map_err(|fault| {
        let message = format!("the receipt `{}` {fault}", path.display());
        Failure::new(Exit::Missing, message)
    })?;
    let expected = arguments.expected_fingerprint.as_deref();
    let checked = receipt::check(&bytes, expected)
        .map_err(|error| Failure::new(Exit::of_class(error.exit()), error.to_string()))?;
    if let Some(pack) = &arguments.pack {
        let manifest = pack.join(layout::MANIFEST);
        let (found, _) = digest::hex_of_file(&manifest)?;
        if checked.manifest_sha256() != Some(&found) {
            let message = format!(
                "[receipt.other_pack] the receipt is about another pack: `{}` has the digest {found}",
                manifest.display()
            );
            return Err(Failure::new(Exit::Integrity, message));
        }
    }
    let outcome = if checked.passed() { "PASS" } else { "FAIL" };
    let (about, signer) = (checked.manifest_sha256().unwrap_or("none"), &checked.signer);
    match (arguments.json, expected) {
        (true, _) => print_line(&canonical::to_line(
            &json!({"ok": true, "pinned": expected.is_some(), "receipt": checked.statement}),
        )),
        (false, Some(_)) => print_line(&format!(
            "{outcome}: of the pack with manifest {about}, signed by the expected verifier {signer}"
        )),
        (false, None) => print_line(&format!(
            "{outcome}: of the pack with manifest {about}, signed by {signer}; whether that is the right verifier was not asked (--expected-fingerprint)"
        )),
    }
    Ok(match checked.passed() {
        true => Exit::Success,
        false => Exit::VerdictFail,
    })
}

/// Writes a pack's verdict as a signed in-toto statement.
pub fn export(arguments: &ExportArgs) -> Result<Exit, Failure> {
    let (files, _) = intact(&arguments.pack)?;
    if packhost_pack::files::inside(&arguments.pack, &arguments.in_toto) {
        let message = "the statement would lie inside the pack, which then holds a file that its list does not cover; name another place";
        return Err(Failure::new(Exit::Usage, message));
    }
    let key = keys::load_signing(&arguments.signing_key)?;
    let statement =
        intoto::statement(&files).map_err(|reason| Failure::new(Exit::Format, reason))?;
    let payload = canonical::to_line(&statement);
    let envelope = dsse::seal(intoto::PAYLOAD_TYPE, payload.as_bytes(), &key);
    receipt::write_new(&arguments.in_toto, &canonical::line_file(&envelope))?;
    print_line(&format!(
        "in-toto statement signed by {}",
        keys::fingerprint(&key.verifying_key())
    ));
    Ok(Exit::Success)
}
