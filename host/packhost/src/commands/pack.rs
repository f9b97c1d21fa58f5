//! `packhost pack`.

use packhost_pack::build::{self, BuildRequest};
use packhost_pack::inspect::inspect;
use packhost_pack::keys;
use packhost_pack::verify::{Authenticity, VerifyOptions, verify};
use packhost_pack::{ExitClass, canonical};
use serde_json::json;

use super::{print, print_line};
use crate::cli::{BuildArgs, InspectArgs, KeygenArgs, PackCommand, VerifyArgs};
use crate::exit::{Exit, Failure};

pub fn run(command: PackCommand) -> Result<Exit, Failure> {
    match command {
        PackCommand::Keygen(arguments) => keygen(&arguments),
        PackCommand::Build(arguments) => build_pack(arguments),
        PackCommand::Verify(arguments) => verify_pack(arguments),
        PackCommand::Inspect(arguments) => Ok(inspect_pack(&arguments)),
    }
}

fn keygen(arguments: &KeygenArgs) -> Result<Exit, Failure> {
    match keys::generate(&arguments.private_key, arguments.public_key_out.as_deref()) {
        Ok(made) if arguments.json => print_line(&canonical::to_line(&made.json())),
        Ok(made) => {
            print_line(&format!("private key: {}", made.private_key.display()));
            print_line(&format!("public key:  {}", made.public_key.display()));
            print_line(&format!("fingerprint: {}", made.fingerprint));
        }
        Err(error) => {
            if arguments.json {
                let format = "evidence-pack-keygen-v1";
                let answer =
                    json!({"format_version": format, "ok": false, "errors": [error.to_string()]});
                print_line(&canonical::to_line(&answer));
            }
            return Err(Failure::new(Exit::Usage, error.to_string()));
        }
    }
    Ok(Exit::Success)
}

fn build_pack(arguments: BuildArgs) -> Result<Exit, Failure> {
    let mut request = BuildRequest::new(arguments.out, arguments.final_verdict, arguments.reports);
    request.source_repo = arguments.source_repo;
    request.environment = arguments.environment;
    request.materials = arguments.materials;
    request.readme = arguments.readme;
    request.signing_key = arguments.signing_key;
    request.profile = arguments.profile;
    request.report_assurance = arguments.report_assurance;
    request.release_review = arguments.release_review;
    match build::build(&request) {
        Ok(built) => {
            for warning in &built.warnings {
                eprintln!("warning: {}", warning.message);
            }
            match arguments.json {
                true => print_line(&canonical::to_line(&built.json())),
                false => print_line(&format!("{}: {} files", built.pack.display(), built.hashed)),
            }
            Ok(Exit::Success)
        }
        Err(error) => {
            if arguments.json {
                print_line(&canonical::to_line(&request.refusal_json(&error)));
            }
            Err(Failure::new(
                Exit::of_class(error.exit()),
                error.to_string(),
            ))
        }
    }
}

fn verify_pack(arguments: VerifyArgs) -> Result<Exit, Failure> {
    let truthy = |value: String| {
        matches!(
            value.to_ascii_lowercase().as_str(),
            "1" | "true" | "yes" | "on"
        )
    };
    let verification = verify(
        &arguments.pack,
        &VerifyOptions {
            strict: arguments.strict,
            skip_verify: arguments.skip_verify,
            profile: arguments.profile,
            report_assurance: arguments.report_assurance,
            expected_fingerprint: arguments.expected_fingerprint,
            trust_store: arguments.trust_store,
            json_out: arguments.json_out,
            allow_unverified_provenance: std::env::var("INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE")
                .is_ok_and(truthy),
            require_pass: arguments.require_pass,
        },
    );
    let exit = Exit::of_class(verification.exit);
    for warning in &verification.warnings {
        eprintln!("warning: {}", warning.message);
    }
    for failure in &verification.failures {
        eprintln!("error: {failure}");
    }
    if arguments.json {
        print_line(&canonical::to_line(&verification.json()));
        return Ok(exit);
    }
    if verification.exit == ExitClass::Ok {
        let signer = verification
            .signer_fingerprint
            .as_deref()
            .unwrap_or("nobody");
        print_line(&match verification.authenticity {
            Authenticity::Pinned => {
                format!("verified: every byte is as signed by the expected signer {signer}")
            }
            _ => format!(
                "verified: every byte is as signed by {signer}; whether that is the right signer was not asked (--expected-fingerprint)"
            ),
        });
    }
    Ok(exit)
}

fn inspect_pack(arguments: &InspectArgs) -> Exit {
    let inspection = inspect(&arguments.pack);
    for issue in &inspection.issues {
        eprintln!("error: {issue}");
    }
    let answer = inspection.json();
    print(&match arguments.json {
        true => format!("{}\n", canonical::to_line(&answer)),
        false => canonical::to_pretty(&answer),
    });
    Exit::of_class(inspection.exit)
}
