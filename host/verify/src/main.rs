//! `packhost-verify PACK`: what `packhost pack verify` says, from a program small enough to be read by whoever must trust it.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use packhost_pack::canonical;
use packhost_verify::receipt::{self, Desk};
use packhost_verify::{VerifyArgs, accepted, code, say_findings};

/// Checks an evidence pack offline: signature, digests, every report
#[derive(Parser)]
#[command(
    name = "packhost-verify",
    version,
    after_help = "Example:\n  packhost-verify pack --strict --expected-fingerprint sha256:...\n\n\
                  Exit codes are those of `packhost pack verify`. Deriving the verdict again from the pack's tables needs\n\
                  `packhost pack verify --replay`."
)]
struct Cli {
    #[command(flatten)]
    verify: VerifyArgs,
}

fn main() -> ExitCode {
    let arguments = Cli::parse().verify;
    let desk = match Desk::open(&arguments) {
        Ok(desk) => desk,
        Err(error) => {
            eprintln!("error: {error}");
            return code(receipt::class(&error)).into();
        }
    };
    let verification = arguments.verify();
    say_findings(&verification);
    let exit = code(verification.exit);
    let issued = desk.map(|desk| desk.issue("packhost-verify", &verification, exit, None, None));
    if let Some(Err(error)) = issued {
        eprintln!("error: {error}");
        return code(receipt::class(&error)).into();
    }
    let line = match arguments.json {
        true => Some(canonical::to_line(&verification.json())),
        false => accepted(&verification),
    };
    if let Some(line) = line {
        // A reader that has gone away is no failure.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
    exit.into()
}
