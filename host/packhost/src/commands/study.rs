//! `packhost study`: what every guard says about every scenario, on one model.

use packhost_measure::tiers::{Profile, Tier};
use packhost_measure::windows::Selection;
use packhost_suite::Error;
use packhost_suite::graph::Counts;
use packhost_suite::run::{Mode, ModelRequest, PackRequest, RunRequest};
use packhost_suite::scenarios::model_folder;
use packhost_suite::study::{self, StudyFile};

use super::suite::{DEFAULT_RUNS, free_memory, pack};
use super::{
    cancel_on_signal, dataset, name_of, now, plugin_layer, print, print_line, size, toolbox,
};
use crate::cli::{Events, StudyArgs};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::Layer;

pub fn run(arguments: StudyArgs, events: Events) -> Result<Exit, Failure> {
    let layer = plugin_layer(&arguments.plugins)?;
    let file = StudyFile::load(&arguments.study)?;
    let out = arguments.out.clone();
    let threads = arguments.threads;
    let request = request(arguments, &layer, &file)?;
    let toolbox = toolbox(&layer, threads)?;
    let cancel = cancel_on_signal()?;
    let sink = output::sink(events);
    let done = match study::study(&file, &request, &out, &toolbox, &*sink, &cancel, &now) {
        Err(Error::Interrupted) => {
            let message = format!(
                "interrupted; a study cannot be resumed: remove {} and start again",
                out.display()
            );
            return Err(Failure::new(Exit::Interrupted, message));
        }
        other => other?,
    };
    print(&done.text);
    print_line(&format!("\nstudy: {}", done.json.display()));
    print_line(&format!("page: {}", done.page.display()));
    Ok(Exit::Success)
}

/// The run that the study is made from.
fn request(arguments: StudyArgs, layer: &Layer, file: &StudyFile) -> Result<RunRequest, Failure> {
    let selection = Selection::from_name(&arguments.selection).ok_or(Error::SelectionName {
        name: arguments.selection,
    })?;
    packhost_model::Checkpoint::open(&arguments.model)?;
    let id = arguments
        .model_id
        .unwrap_or_else(|| name_of(&arguments.model));
    let (calibration, clean, stress, error) = DEFAULT_RUNS;
    let runs = file.runs;
    Ok(RunRequest {
        out: arguments.out.join("run"),
        resume: false,
        mode: Mode::Study,
        suite: "study".into(),
        tuned: file.tuned(&id),
        models: vec![ModelRequest {
            folder: model_folder(&id),
            id,
            revision: None,
            dir: arguments.model,
            size: size(&arguments.windows),
        }],
        manifest: file.to_manifest(),
        dataset: dataset(arguments.text),
        selection,
        tier: Tier::from_name(&arguments.tier)?,
        guards: arguments
            .guards
            .or(layer.guards.clone())
            .unwrap_or_default(),
        counts: Counts {
            calibration_runs: runs.calibration.unwrap_or(calibration),
            clean_runs: runs.clean.unwrap_or(clean),
            stress_runs: runs.stress.unwrap_or(stress),
            error_runs: runs.error.unwrap_or(error),
            seed: arguments.seed,
        },
        bootstrap: layer.bootstrap,
        preset: None,
        materialize: false,
        workers: arguments.workers.max(1),
        memory: layer
            .memory
            .filter(|&bytes| bytes > 0)
            .unwrap_or_else(free_memory),
        pack: PackRequest {
            profile: Profile::from_name(&arguments.profile)?,
            ..pack(layer)?
        },
    })
}
