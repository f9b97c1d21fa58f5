//! `packhost pack`.

use std::io::Write;
use std::path::Path;

use packhost_pack::build::{self, BuildRequest};
use packhost_pack::files::Files;
use packhost_pack::inspect::inspect;
use packhost_pack::verify::{VerifyOptions, verify};
use packhost_pack::{canonical, keys, signature};
use packhost_plain::line;
use packhost_plugin::{CacheDir, Engine, EngineOptions, Limits};
use packhost_suite::replay::recompute::{Audit, Bound, Recompute, recompute};
use packhost_suite::replay::{Difference, Form, Replay, replay_pack};
use packhost_tensor::cpu::Cpu;
use packhost_tensor::cpu::matmul::use_matrix_tiles;
use packhost_verify::receipt::Desk;
use packhost_verify::{accepted, say_findings};
use serde_json::json;

use super::{attest, print, print_line, report, say};
use crate::cli::{BuildArgs, InspectArgs, KeygenArgs, PackCommand, SignArgs, VerifyArgs};
use crate::exit::{Exit, Failure};
use crate::settings::Layer;

pub fn run(command: PackCommand) -> Result<Exit, Failure> {
    match command {
        PackCommand::Keygen(arguments) => keygen(&arguments),
        PackCommand::Build(arguments) => build_pack(arguments),
        PackCommand::Verify(arguments) => verify_pack(&arguments),
        PackCommand::Sign(arguments) => sign_pack(&arguments),
        PackCommand::Diff(arguments) => report::diff_packs(&arguments),
        PackCommand::Receipt(arguments) => attest::check_receipt(&arguments),
        PackCommand::Export(arguments) => attest::export(&arguments),
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
                say(&format!("warning: {}", line(&warning.message)));
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
    let desk = Desk::open(&arguments.verify)?;
    let verification = arguments.verify.verify();
    let replays = arguments.replay || arguments.recompute.is_some();
    if let Some(form) = arguments.require_form {
        let current = Form::CURRENT.number();
        if !replays || form > current {
            let message = match replays {
                true => format!("--require-form {form}: this program knows forms up to {current}"),
                false => "--require-form is about a replay: add --replay".into(),
            };
            return Err(Failure::new(Exit::Usage, message));
        }
    }
    let (mut replayed, mut measured) = (None, None);
    if let Some(files) = verification.files.as_ref().filter(|_| replays) {
        let layer = Layer::from_environment(|name| std::env::var(name).ok())?;
        let engine = replay_engine(&layer)?;
        let mut replay = replay_pack(files, &engine);
        if let Some(least) = arguments.require_form {
            replay.require_form(least);
        }
        replayed = Some(replay);
        if let Some(count) = arguments.recompute {
            measured = Some(measure_again(arguments, count, files, &engine, &layer)?);
        }
    }
    let exit = match Exit::of_class(verification.exit) {
        Exit::Success if !replayed.as_ref().is_none_or(Replay::agrees) => Exit::ReplayDiffers,
        Exit::Success if !measured.as_ref().is_none_or(Recompute::agrees) => Exit::RecomputeDiffers,
        exit => exit,
    };
    say_findings(&verification);
    if let Some(replay) = &replayed {
        say_differences(&replay.differences);
    }
    if let Some(measured) = &measured {
        say_differences(&measured.differences);
        for model in &measured.absent {
            say(&format!(
                "warning: nothing was measured of `{}`: no checkpoint of it was given (--model)",
                line(model)
            ));
        }
    }
    if let Some(desk) = desk {
        let recompute = measured.as_ref().map(|measured| {
            let mut answer = measured.json();
            answer["seed"] = json!(arguments.recompute_seed);
            answer
        });
        let replay = replayed.as_ref().map(Replay::json);
        desk.issue("packhost", &verification, exit as u8, replay, recompute)?;
    }
    if arguments.verify.json {
        let mut answer = verification.json();
        if let Some(replay) = &replayed {
            answer["ok"] = json!(exit == Exit::Success);
            answer["packhost"]["exit"] = json!(exit as u8);
            answer["packhost"]["replay"] = replay.json();
        }
        if let Some(measured) = &measured {
            answer["packhost"]["recompute"] = measured.json();
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
        for lacking in replay.form.map(Form::lacks).unwrap_or_default() {
            print_line(&format!(
                "older:    the pack is of form {}, this program writes {}: {lacking}",
                replay.form.map_or(0, Form::number),
                Form::CURRENT.number()
            ));
        }
    }
    if let Some(measured) = measured.filter(Recompute::agrees) {
        let within = match measured.within {
            0 => "all are the same".to_owned(),
            within => format!("{within} differ, within {}", bound_in_words(measured.bound)),
        };
        print_line(&format!(
            "measured again: {} tensors have the stated digests; of {} measurements {} were drawn and made again from the weights, {} values: {within}",
            measured.tensors,
            measured.of,
            measured.drawn.len(),
            measured.values
        ));
    }
    Ok(exit)
}

/// Measures again what the auditor's choice falls on.
fn measure_again(
    arguments: &VerifyArgs,
    count: usize,
    files: &Files,
    engine: &Engine,
    layer: &Layer,
) -> Result<Recompute, Failure> {
    let model = |text: &String| match text.split_once('=') {
        // A folder may have the sign in its name.
        Some((id, dir)) if !Path::new(text).is_dir() => (Some(id.to_owned()), dir.into()),
        _ => (None, text.into()),
    };
    let audit = Audit {
        count,
        seed: arguments.recompute_seed.clone(),
        models: arguments.models.iter().map(model).collect(),
    };
    use_matrix_tiles(layer.matrix_tiles.unwrap_or(true));
    let threads = layer.threads.filter(|&threads| threads > 0);
    let device = Cpu::new(threads)
        .map_err(|error| Failure::from_suite(packhost_suite::Error::from(error)))?;
    Ok(recompute(files, engine, &device, &audit)?)
}

fn bound_in_words(bound: Bound) -> String {
    format!(
        "the bound for another kind of processor ({} of a number, or {})",
        bound.relative, bound.absolute
    )
}

/// The files of a pack that is as it was signed, whoever signed, and the signer's fingerprint.
pub fn intact(pack: &Path) -> Result<(Files, Option<String>), Failure> {
    let options = VerifyOptions {
        skip_verify: true,
        ..VerifyOptions::default()
    };
    let verification = verify(pack, &options);
    let reasons: Vec<String> = verification
        .failures
        .iter()
        .map(|failure| line(&failure.to_string()).into_owned())
        .collect();
    verification
        .files
        .filter(|_| reasons.is_empty())
        .map(|files| (files, verification.signer_fingerprint))
        .ok_or_else(|| Failure::new(Exit::of_class(verification.exit), reasons.join("\nerror: ")))
}

fn sign_pack(arguments: &SignArgs) -> Result<Exit, Failure> {
    let (files, _) = intact(&arguments.pack)?;
    let refuse = |error: packhost_pack::Error| Failure::from_suite(error.into());
    let key = keys::load_signing(&arguments.signing_key).map_err(refuse)?;
    let bundle = signature::sign(files.manifest(), &key).map_err(refuse)?;
    if packhost_pack::files::inside(&arguments.pack, &arguments.out) {
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

/// The sandbox of a replay. Nothing is written, so compiled components are kept only where the settings name a folder.
fn replay_engine(layer: &Layer) -> Result<Engine, Failure> {
    let cache = match &layer.plugin_cache {
        Some(path) if !path.as_os_str().is_empty() => CacheDir::At(path.clone()),
        _ => CacheDir::Off,
    };
    let limits = Limits::default();
    Engine::new(EngineOptions { limits, cache })
        .map_err(|error| Failure::from_suite(packhost_suite::Error::from(error)))
}

/// What a replay or measuring again found, the first ones in full.
fn say_differences(differences: &[Difference]) {
    const SHOWN: usize = 50;
    for difference in differences.iter().take(SHOWN) {
        say(&format!("error: {}", line(&difference.to_string())));
    }
    if differences.len() > SHOWN {
        say(&format!(
            "error: and {} more differences; --json lists them all",
            differences.len() - SHOWN
        ));
    }
}

fn inspect_pack(arguments: &InspectArgs) -> Exit {
    let inspection = inspect(&arguments.pack);
    for issue in &inspection.issues {
        say(&format!("error: {}", line(&issue.to_string())));
    }
    let answer = inspection.json();
    print(&match arguments.json {
        true => format!("{}\n", canonical::to_line(&answer)),
        false => canonical::to_pretty(&answer),
    });
    Exit::of_class(inspection.exit)
}
