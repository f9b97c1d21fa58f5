//! `packhost run`.

use packhost_suite::Error;
use packhost_suite::run::{self, Mode};

use super::{cancel_on_signal, now, print_line, suite, toolbox};
use crate::cli::{Events, RunArgs};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::Layer;

pub fn run(arguments: RunArgs, events: Events) -> Result<Exit, Failure> {
    let flags = Layer {
        out: arguments.out.clone(),
        mode: mode_flag(&arguments),
        materialize: arguments.materialize.then_some(true),
        pack_dir: arguments.pack_dir.clone(),
        signing_key: arguments.signing_key.clone(),
        require_pass: arguments.require_pass.then_some(true),
        profile: arguments.profile.clone(),
        ..Layer::default()
    };
    let layer = suite::layers(&arguments.suite, flags)?;
    let mut request = suite::request(&layer, &arguments.suite)?;
    request.resume = arguments.resume;
    match layer.mode.as_deref().unwrap_or("full") {
        "full" => {}
        "calibrate-only" => request.mode = Mode::CalibrateOnly,
        "run-only" => request.resume = true,
        other => {
            let message =
                format!("mode `{other}` is unknown; there are full, calibrate-only and run-only");
            return Err(Failure::new(Exit::Usage, message));
        }
    }
    if let Some(key) = &request.pack.key {
        // A key that cannot be used must not be found out about after the work is done.
        packhost_pack::keys::load_signing(key)?;
    }
    let toolbox = toolbox(&layer, None)?;
    let cancel = cancel_on_signal()?;
    let sink = output::sink(events);
    let outcome = match run::run(&request, &toolbox, &*sink, &cancel, &now) {
        Err(Error::Interrupted) => {
            let message = format!(
                "interrupted; go on with --resume --out {}",
                request.out.display()
            );
            return Err(Failure::new(Exit::Interrupted, message));
        }
        other => other?,
    };
    match (&outcome.verdict, &outcome.pack) {
        (Some(verdict), Some(pack)) => {
            print_line(&format!("{verdict} {}", pack.display()));
            Ok(if verdict == "PASS" {
                Exit::Success
            } else {
                Exit::VerdictFail
            })
        }
        (Some(verdict), None) => {
            print_line(verdict);
            let reports = outcome.run_dir.join("reports");
            let message = format!(
                "the verdict is {verdict} and a PASS is required (--require-pass), so nothing was sealed; {} says what failed\n\
                 hint: to seal the evidence all the same, go on with --resume and without --require-pass",
                reports.join("final_verdict.json").display()
            );
            Err(Failure::new(Exit::VerdictFail, message))
        }
        (None, _) => {
            print_line(&format!("calibrated {}", outcome.run_dir.display()));
            Ok(Exit::Success)
        }
    }
}

fn mode_flag(arguments: &RunArgs) -> Option<String> {
    match (arguments.calibrate_only, arguments.run_only) {
        (true, _) => Some("calibrate-only".into()),
        (_, true) => Some("run-only".into()),
        _ => None,
    }
}
