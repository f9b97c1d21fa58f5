//! `packhost plan`: the tasks of a run and the memory they need, from headers and configuration alone.

use std::collections::BTreeMap;

use packhost_plugin::Registry;
use packhost_suite::run::memory::{Footprint, peak_bytes, task_bytes};
use packhost_suite::run::{self, RunRequest};
use serde_json::json;

use super::{plugin_dir, print, suite};
use crate::cli::PlanArgs;
use crate::exit::{Exit, Failure};
use crate::settings::Layer;

pub fn run(arguments: PlanArgs) -> Result<Exit, Failure> {
    let layer = suite::layers(&arguments.suite, Layer::default())?;
    let request = suite::request(&layer, &arguments.suite)?;
    request.check()?;
    request.check_scenarios(&Registry::scan(&plugin_dir(&layer))?)?;
    let footprints = request
        .models
        .iter()
        .map(Footprint::of)
        .collect::<Result<Vec<_>, _>>()?;
    if arguments.json {
        print(&as_json(&request, &footprints));
    } else {
        print(&as_text(&request, &footprints));
    }
    Ok(Exit::Success)
}

fn seeds(request: &RunRequest) -> u64 {
    let counts = &request.counts;
    u64::from(
        [
            counts.calibration_runs,
            counts.clean_runs,
            counts.stress_runs,
            counts.error_runs,
            1,
        ]
        .into_iter()
        .max()
        .unwrap_or(1),
    )
}

fn as_json(request: &RunRequest, footprints: &[Footprint]) -> String {
    let graph = run::graph(request);
    let tasks: Vec<_> = graph
        .tasks
        .iter()
        .map(|task| {
            let bytes = task
                .model
                .map_or(0, |model| task_bytes(&footprints[model], task));
            let dependencies: Vec<_> = task
                .dependencies
                .iter()
                .map(|&index| &graph.tasks[index].id)
                .collect();
            json!({
                "id": task.id,
                "type": task.kind.type_name(),
                "priority": task.priority,
                "bytes": bytes,
                "dependencies": dependencies,
            })
        })
        .collect();
    let models: Vec<_> = request
        .models
        .iter()
        .zip(footprints)
        .map(|(model, sizes)| {
            json!({"id": model.id, "size": model.size, "memory": sizes, "peak_bytes": peak_bytes(sizes, seeds(request))})
        })
        .collect();
    let plan = json!({"version": 1, "suite": request.suite, "models": models, "tasks": tasks, "memory": request.memory});
    packhost_pack::canonical::to_pretty(&plan)
}

fn as_text(request: &RunRequest, footprints: &[Footprint]) -> String {
    let graph = run::graph(request);
    let mut text = format!("suite {}: {} tasks\n\n", request.suite, graph.tasks.len());
    let mut by_type: BTreeMap<&str, usize> = BTreeMap::new();
    for task in &graph.tasks {
        *by_type.entry(task.kind.type_name()).or_default() += 1;
    }
    for (name, count) in by_type {
        text += &format!("{count:>6}  {name}\n");
    }
    text += "\nmodel                                weights   subject  activations  peak of one worker\n";
    for (model, sizes) in request.models.iter().zip(footprints) {
        let peak = peak_bytes(sizes, seeds(request));
        text += &format!(
            "{:<34} {:>9} {:>9} {:>12} {:>19}\n",
            model.id,
            megabytes(sizes.weight_bytes),
            megabytes(sizes.overlay_bytes),
            megabytes(sizes.activation_bytes),
            megabytes(peak)
        );
    }
    text += "\nscenarios\n";
    for scenario in &request.manifest.scenarios {
        text += &format!("  {}\n", scenario.id);
    }
    text
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
