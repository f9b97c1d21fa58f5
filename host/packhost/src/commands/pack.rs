//! `packhost pack`.

use std::io::Write;
use std::path::Path;

use packhost_pack::build::{self, BuildRequest};
use packhost_pack::diff::{Change, diff};
use packhost_pack::files::Files;
use packhost_pack::inspect::inspect;
use packhost_pack::verify::{VerifyOptions, verify};
use packhost_pack::{canonical, keys, signature};
use packhost_plugin::{CacheDir, Engine, EngineOptions, Limits};
use packhost_suite::replay::{Replay, replay_pack};
use packhost_verify::{accepted, say_findings};
use serde_json::{Value, json};

use super::{print, print_line};
use crate::cli::{BuildArgs, DiffArgs, InspectArgs, KeygenArgs, PackCommand, SignArgs, VerifyArgs};
use crate::exit::{Exit, Failure};
use crate::settings::Layer;

pub fn run(command: PackCommand) -> Result<Exit, Failure> {
    match command {
        PackCommand::Keygen(arguments) => keygen(&arguments),
        PackCommand::Build(arguments) => build_pack(arguments),
        PackCommand::Verify(arguments) => verify_pack(&arguments),
        PackCommand::Sign(arguments) => sign_pack(&arguments),
        PackCommand::Diff(arguments) => diff_packs(&arguments),
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

fn verify_pack(arguments: &VerifyArgs) -> Result<Exit, Failure> {
    let verification = arguments.verify.verify();
    let replayed = match &verification.files {
        Some(files) if arguments.replay => Some(replay_pack(files, &replay_engine()?)),
        _ => None,
    };
    let exit = match (&replayed, Exit::of_class(verification.exit)) {
        (Some(replay), Exit::Success) if !replay.agrees() => Exit::ReplayDiffers,
        (_, exit) => exit,
    };
    say_findings(&verification);
    if let Some(replay) = &replayed {
        say_differences(replay);
    }
    if arguments.verify.json {
        let mut answer = verification.json();
        if let Some(replay) = &replayed {
            answer["ok"] = json!(exit == Exit::Success);
            answer["packhost"]["exit"] = json!(exit as u8);
            answer["packhost"]["replay"] = replay.json();
        }
        print_line(&canonical::to_line(&answer));
        return Ok(exit);
    }
    if let Some(line) = accepted(&verification) {
        print_line(&line);
    }
    if let Some(replay) = replayed.filter(Replay::agrees) {
        print_line(&format!(
            "replayed: {} reports and {} verdicts of guards follow from the pack's tables, and {} files have the derived bytes; {} are taken as they stand",
            replay.reports,
            replay.judgements,
            replay.derived.len(),
            replay.taken.len()
        ));
    }
    Ok(exit)
}

/// The files of a pack that is as it was signed, whoever signed.
fn intact(pack: &Path) -> Result<Files, Failure> {
    let options = VerifyOptions {
        skip_verify: true,
        ..VerifyOptions::default()
    };
    let verification = verify(pack, &options);
    let reasons: Vec<String> = verification
        .failures
        .iter()
        .map(ToString::to_string)
        .collect();
    verification
        .files
        .filter(|_| reasons.is_empty())
        .ok_or_else(|| Failure::new(Exit::of_class(verification.exit), reasons.join("\nerror: ")))
}

fn sign_pack(arguments: &SignArgs) -> Result<Exit, Failure> {
    let files = intact(&arguments.pack)?;
    let refuse = |error: packhost_pack::Error| Failure::from_suite(error.into());
    let key = keys::load_signing(&arguments.signing_key).map_err(refuse)?;
    let bundle = signature::sign(files.manifest(), &key).map_err(refuse)?;
    let inside = |path: &Path| path.canonicalize().ok();
    let folder = arguments
        .out
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let folder = inside(folder.unwrap_or(Path::new(".")));
    if folder
        .zip(inside(&arguments.pack))
        .is_some_and(|(out, pack)| out.starts_with(pack))
    {
        let message = "the signature would lie inside the pack, which then holds a file that its list does not cover; name another place";
        return Err(Failure::new(Exit::Usage, message));
    }
    let made = std::fs::File::create_new(&arguments.out)
        .and_then(|mut file| file.write_all(&canonical::line_file(&bundle)));
    made.map_err(|error| {
        let message = format!(
            "failed to write the signature {}: {error}",
            arguments.out.display()
        );
        Failure::new(Exit::Output, message)
    })?;
    print_line(&format!(
        "signed by {}",
        keys::fingerprint(&key.verifying_key())
    ));
    Ok(Exit::Success)
}

fn diff_packs(arguments: &DiffArgs) -> Result<Exit, Failure> {
    let (before, after) = (intact(&arguments.before)?, intact(&arguments.after)?);
    let changes = diff(&before, &after).map_err(|reason| Failure::new(Exit::Format, reason))?;
    if arguments.json {
        let listed: Vec<Value> = changes.iter().map(Change::json).collect();
        let answer = json!({"format_version": "packhost-pack-diff-v1", "changes": listed});
        print_line(&canonical::to_line(&answer));
        return Ok(Exit::Success);
    }
    for change in &changes {
        print_line(&change.line());
    }
    if changes.is_empty() {
        print_line("the packs hold the same files");
    }
    Ok(Exit::Success)
}

/// The sandbox of a replay. Nothing is written, so compiled components are kept only where the settings name a folder.
fn replay_engine() -> Result<Engine, Failure> {
    let layer = Layer::from_environment(|name| std::env::var(name).ok())?;
    let cache = match layer.plugin_cache {
        Some(path) if !path.as_os_str().is_empty() => CacheDir::At(path),
        _ => CacheDir::Off,
    };
    let limits = Limits::default();
    Engine::new(EngineOptions { limits, cache })
        .map_err(|error| Failure::from_suite(packhost_suite::Error::from(error)))
}

/// The differences of a replay, the first ones in full.
fn say_differences(replay: &Replay) {
    const SHOWN: usize = 50;
    for difference in replay.differences.iter().take(SHOWN) {
        eprintln!("error: {difference}");
    }
    if replay.differences.len() > SHOWN {
        eprintln!(
            "error: and {} more differences; --json lists them all",
            replay.differences.len() - SHOWN
        );
    }
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
