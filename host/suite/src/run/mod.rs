//! Carrying out a run.
//!
//! [`run`] opens the run directory, stores or compares the plan, generates the graph and lets the [`driver`] work through it
//! with `work` as the executor; `baselines`, `subjects`, `verdict` and `packing` hold what its tasks do, `presets` what is read
//! of presets. `model` holds what the tasks of one model share in memory, `memory` estimates, and `paths` says where files lie.

pub(crate) mod baselines;
pub(crate) mod bound;
pub(crate) mod changes;
pub mod driver;
pub mod memory;
pub(crate) mod model;
pub(crate) mod packing;
pub(crate) mod paths;
mod presets;
pub(crate) mod record;
mod request;
mod subjects;
mod verdict;
mod work;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use packhost_measure::dataset::Dataset;
use packhost_pack::canonical::to_pretty;
use serde_json::{Value, json};

pub use request::{Mode, ModelRequest, PackRequest, RunRequest};

use self::driver::Drive;
use self::memory::Footprint;
use self::model::ModelState;
use self::work::Work;
use crate::events::{Event, PluginCalls, Sink};
use crate::graph::{Graph, Task, TaskKind};
use crate::guards::Guards;
use crate::journal::Journal;
use crate::rundir::{RunDir, hex_digest};
use crate::spec::Tuned;
use crate::toolbox::Toolbox;
use crate::{Error, Result};

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOutcome {
    /// `PASS` or `FAIL`; none when the run stopped after calibration, as it was asked to.
    pub verdict: Option<String>,
    /// None also when a PASS was required and the verdict is FAIL: then nothing was sealed.
    pub pack: Option<PathBuf>,
    pub run_dir: PathBuf,
}

/// The graph of a request.
pub fn graph(request: &RunRequest) -> Graph {
    let folders: Vec<String> = request
        .models
        .iter()
        .map(|model| model.folder.clone())
        .collect();
    Graph::generate(&folders, &request.manifest.scenarios, &request.counts)
}

/// Opens a data set of one of the known kinds.
///
/// # Errors
/// An unknown kind, an unreadable or empty file, a bad line.
pub fn open_dataset(dataset: &crate::suites::Dataset) -> Result<Dataset> {
    match dataset.kind.as_str() {
        "local_jsonl" => Ok(Dataset::local_jsonl(
            &dataset.path,
            dataset.text_field.as_deref().unwrap_or("text"),
        )?),
        "text" => Ok(Dataset::text(&dataset.path)?),
        other => Err(Error::DatasetKind { kind: other.into() }),
    }
}

/// Carries out a run, or what is left of it. `now` is the time, RFC 3339 in UTC; `cancel` ends the run soon after it becomes
/// true and leaves it resumable.
///
/// # Errors
/// Everything that stops a run before or between its tasks; [`Error::TasksFailed`] when tasks failed and the rest is done.
pub fn run(
    request: &RunRequest,
    toolbox: &Toolbox,
    sink: &dyn Sink,
    cancel: &AtomicBool,
    now: &(dyn Fn() -> String + Sync),
) -> Result<RunOutcome> {
    let started = Instant::now();
    request.check()?;
    request.check_scenarios(toolbox.registry())?;
    presets::check_given(request)?;
    let guards = Guards::load(toolbox, &request.guards)?;
    let dataset = open_dataset(&request.dataset)?;
    let footprints = request
        .models
        .iter()
        .map(Footprint::of)
        .collect::<Result<Vec<_>>>()?;
    refuse_infeasible(request, &footprints)?;
    if request.mode == Mode::Full {
        packing::source()?;
    }
    let dir = RunDir::open(&request.out, request.resume)?;
    let plan = request.plan(&toolbox.identities(), dataset.digest());
    let began = store_plan(&dir, request, &plan, now)?;
    let journal = Journal::open(
        &dir.path("state/journal.jsonl"),
        &hex_digest(to_pretty(&plan).as_bytes()),
    )?;
    let graph = graph(request);
    write_memory_plan(&dir, request, &footprints)?;
    let models = request
        .models
        .iter()
        .cloned()
        .map(ModelState::new)
        .collect();
    let work = Work {
        request,
        graph: &graph,
        dir: &dir,
        toolbox,
        guards,
        dataset,
        models,
        footprints,
        began,
        cancel,
    };
    let done = graph
        .tasks
        .iter()
        .filter(|task| driver::is_complete(&journal, &dir, task))
        .count();
    sink.event(&Event::RunStarted {
        run_dir: dir.root().display().to_string(),
        suite: request.suite.clone(),
        tasks: graph.tasks.len(),
        already_completed: done,
        resumed: request.resume,
    });
    let allowed = |task: &Task| match request.mode {
        Mode::CalibrateOnly => is_calibration(&task.kind),
        Mode::Study => !matches!(task.kind, TaskKind::Verdict | TaskKind::Pack),
        Mode::Full => task.kind != TaskKind::Pack || !work.withheld(),
    };
    let drive = Drive {
        graph: &graph,
        dir: &dir,
        executor: &work,
        sink,
        cancel,
        allowed: &allowed,
        workers: request.workers,
        budget: request.memory,
        now,
    };
    let (tally, first_failure) = drive.run(journal)?;
    let finished = tally.failed == 0 && request.mode == Mode::Full;
    let verdict = if finished {
        Some(work.judge()?.word().to_string())
    } else {
        None
    };
    let pack = (finished && !work.withheld()).then(|| {
        request
            .pack
            .dir
            .clone()
            .unwrap_or_else(|| dir.path("evidence_pack"))
    });
    let seconds = started.elapsed().as_secs_f64();
    let plugin_calls = plugin_calls(toolbox);
    let outside_host: f64 = plugin_calls.iter().map(PluginCalls::outside_host).sum();
    sink.event(&Event::RunFinished {
        verdict: verdict.clone(),
        pack: pack.as_ref().map(|path| path.display().to_string()),
        completed: tally.completed,
        failed: tally.failed,
        blocked: tally.blocked,
        seconds,
        plugin_percent: 100.0 * outside_host / seconds,
        plugin_calls,
    });
    if let Some(first) = first_failure {
        let log = dir.path("logs/tasks");
        return Err(Error::TasksFailed {
            failed: tally.failed,
            blocked: tally.blocked,
            log,
            first: Box::new(first),
        });
    }
    Ok(RunOutcome {
        verdict,
        pack,
        run_dir: dir.root().into(),
    })
}

/// What the plugins' functions cost in this run.
fn plugin_calls(toolbox: &Toolbox) -> Vec<PluginCalls> {
    let costs = toolbox.costs();
    let of_plugin = costs.iter().flat_map(|(plugin, costs)| {
        costs.iter().map(|(call, stats)| PluginCalls {
            plugin: plugin.clone(),
            call: (*call).into(),
            calls: stats.calls,
            seconds: stats.wall.as_secs_f64(),
            host_seconds: stats.in_host.as_secs_f64(),
            host_calls: stats.host_calls,
            fuel: stats.fuel,
        })
    });
    of_plugin.collect()
}

fn is_calibration(kind: &TaskKind) -> bool {
    matches!(
        kind,
        TaskKind::SetupBaseline | TaskKind::CalibrationRun { .. } | TaskKind::GeneratePreset
    )
}

/// Stores the plan of a new run, or compares that of a resumed one. Returns when the run began.
fn store_plan(
    dir: &RunDir,
    request: &RunRequest,
    plan: &Value,
    now: &dyn Fn() -> String,
) -> Result<String> {
    let path = "state/plan.json";
    if request.resume {
        let text = dir.read(path)?;
        let stored: Value = serde_json::from_slice(&text)
            .map_err(|error| Error::io("read the stored plan", &dir.path(path), error.into()))?;
        request::same_plan(&stored["plan"], plan)?;
        return Ok(stored["began_at"].as_str().unwrap_or_default().to_string());
    }
    let began = now();
    dir.write("state/scenarios.json", request.manifest.render().as_bytes())?;
    if let Tuned::File(file) = &request.tuned {
        dir.write(
            "state/tuned_edit_params.json",
            to_pretty(&Value::Object(file.clone())).as_bytes(),
        )?;
    }
    // Last: a directory without a plan is not a run yet.
    dir.write(
        path,
        to_pretty(&json!({"began_at": began, "plan": plan})).as_bytes(),
    )?;
    Ok(began)
}

/// A run whose largest task cannot fit is refused before anything is loaded.
fn refuse_infeasible(request: &RunRequest, footprints: &[Footprint]) -> Result<()> {
    let seeds = u64::from(
        request
            .counts
            .calibration_runs
            .max(request.counts.clean_runs)
            .max(1),
    );
    let needed = footprints
        .iter()
        .map(|footprint| memory::peak_bytes(footprint, seeds))
        .max()
        .unwrap_or(0);
    match needed > request.memory {
        true => Err(Error::Infeasible {
            needed,
            available: request.memory,
        }),
        false => Ok(()),
    }
}

fn write_memory_plan(dir: &RunDir, request: &RunRequest, footprints: &[Footprint]) -> Result<()> {
    let mut text = String::from(
        "model,weight_bytes,overlay_bytes,reference_bytes_per_seed,activation_bytes\n",
    );
    for (model, sizes) in request.models.iter().zip(footprints) {
        let Footprint {
            weight_bytes,
            reference_bytes,
            overlay_bytes,
            activation_bytes,
        } = sizes;
        text += &format!(
            "{},{weight_bytes},{overlay_bytes},{reference_bytes},{activation_bytes}\n",
            model.folder
        );
    }
    dir.write("analysis/memory_plan.csv", text.as_bytes())
        .map(|_| ())
}
