//! From flags, environment, file and suite to the request of a run: what `run` and `plan` share.

use std::collections::BTreeMap;
use std::path::PathBuf;

use packhost_measure::tiers::{Profile, Tier};
use packhost_measure::windows::Selection;
use packhost_pack::report_rules::Assurance;
use packhost_suite::graph::Counts;
use packhost_suite::run::{Mode, ModelRequest, PackRequest, RunRequest};
use packhost_suite::scenarios::{Manifest, model_folder};
use packhost_suite::spec::Tuned;
use packhost_suite::suites::{Dataset, EvaluationSize, Suite, SuiteFile};

use crate::cli::SuiteArgs;
use crate::exit::{Exit, Failure};
use crate::settings::{self, Layer};

/// Runs of each kind where neither the suite nor a setting says.
pub const DEFAULT_RUNS: (u32, u32, u32, u32) = (5, 3, 2, 1);

/// Profile of runs. The reference's default is dev, but at dev nothing in an honest report of a catastrophic edit fails, so
/// a pack with scenarios that must fail cannot verify there.
const DEFAULT_PROFILE: &str = "ci";

/// The settings in force, from every layer but the suite's own values.
pub fn layers(arguments: &SuiteArgs, flags: Layer) -> Result<Layer, Failure> {
    let shared = Layer {
        suite: arguments.suite.clone(),
        suites_file: arguments.suites_file.clone(),
        scenarios_file: arguments.scenarios.clone(),
        scenario_ids: arguments.scenario_ids.clone(),
        models: arguments.models.clone(),
        models_dir: arguments.models_dir.clone(),
        plugins: arguments.plugins.plugins.clone(),
        locked: arguments.plugins.locked.then_some(true),
        plugin_cache: arguments.plugins.plugin_cache.clone(),
        tier: arguments.tier.clone(),
        dataset_file: arguments.dataset.clone(),
        seq_len: arguments.seq_len,
        preview: arguments.preview,
        final_windows: arguments.final_windows,
        seed: arguments.seed,
        calibration_runs: arguments.calibration_runs,
        clean_runs: arguments.clean_runs,
        stress_runs: arguments.stress_runs,
        preset: arguments.preset.clone(),
        threads: arguments.threads,
        workers: arguments.workers,
        ..Layer::default()
    };
    let environment = Layer::from_environment(|name| std::env::var(name).ok())?;
    let file = settings::from_file(arguments.config.config.as_deref())?;
    Ok(flags.or(shared).or(environment).or(file))
}

/// The request that the settings make.
pub fn request(layer: &Layer, arguments: &SuiteArgs) -> Result<RunRequest, Failure> {
    let name = layer.suite.clone().unwrap_or_else(|| "subset".into());
    let suites_file = layer
        .suites_file
        .clone()
        .unwrap_or_else(|| "scenarios/suites.json".into());
    let file = SuiteFile::load(&suites_file)?;
    let suite = file.suite(&name)?.clone();
    let beside = |own: &Option<PathBuf>, default: &str| {
        own.clone()
            .unwrap_or_else(|| suites_file.with_file_name(default))
    };
    let scenarios = layer
        .scenarios_file
        .clone()
        .unwrap_or_else(|| beside(&suite.scenarios, "scenarios.json"));
    let manifest = Manifest::load(&scenarios)?
        .select(&name, layer.scenario_ids.as_deref().unwrap_or_default())?;
    let tuned = layer
        .tuned_edit_params
        .clone()
        .unwrap_or_else(|| beside(&suite.tuned_edit_params, "tuned_edit_params.json"));
    let tuned = if tuned.is_file() {
        Tuned::load(&tuned)?
    } else {
        Tuned::Absent
    };
    let time = jiff::Timestamp::now().strftime("%Y%m%d_%H%M%S");
    Ok(RunRequest {
        out: layer
            .out
            .clone()
            .unwrap_or_else(|| format!("evidence_pack_runs/{name}_{time}").into()),
        resume: false,
        mode: Mode::Full,
        models: models(layer, arguments, &file, &suite)?,
        manifest,
        tuned,
        dataset: dataset(layer, &suite)?,
        selection: selection(layer, &suite)?,
        tier: Tier::from_name(
            layer
                .tier
                .as_deref()
                .or(suite.tier.as_deref())
                .unwrap_or("balanced"),
        )?,
        guards: layer.guards.clone().unwrap_or_default(),
        counts: counts(layer, &suite),
        bootstrap: layer.bootstrap,
        preset: layer.preset.clone(),
        materialize: layer.materialize.unwrap_or(false),
        workers: layer.workers.unwrap_or(2).max(1),
        memory: layer
            .memory
            .filter(|&bytes| bytes > 0)
            .unwrap_or_else(free_memory),
        pack: pack(layer)?,
        suite: name,
    })
}

fn counts(layer: &Layer, suite: &Suite) -> Counts {
    let (calibration, clean, stress, error) = DEFAULT_RUNS;
    let runs = suite.runs;
    let calibration = layer
        .calibration_runs
        .or(runs.calibration)
        .unwrap_or(calibration);
    Counts {
        // A preset that is given takes the place of calibration.
        calibration_runs: if layer.preset.is_some() {
            0
        } else {
            calibration
        },
        clean_runs: layer.clean_runs.or(runs.clean).unwrap_or(clean),
        stress_runs: layer.stress_runs.or(runs.stress).unwrap_or(stress),
        error_runs: if layer.errors == Some(false) {
            0
        } else {
            runs.error.unwrap_or(error)
        },
        seed: layer.seed.unwrap_or(42),
    }
}

fn models(
    layer: &Layer,
    arguments: &SuiteArgs,
    file: &SuiteFile,
    suite: &Suite,
) -> Result<Vec<ModelRequest>, Failure> {
    let mut paths = BTreeMap::new();
    for pair in &arguments.model_paths {
        let Some((id, path)) = pair
            .split_once('=')
            .filter(|(id, path)| !id.is_empty() && !path.is_empty())
        else {
            return Err(Failure::new(
                Exit::Usage,
                format!("--model-path {pair}: write it as ID=DIR"),
            ));
        };
        paths.insert(id.to_string(), PathBuf::from(path));
    }
    let ids = layer.models.clone().unwrap_or_else(|| suite.models.clone());
    if let Some(unused) = paths.keys().find(|id| !ids.contains(id)) {
        return Err(Failure::new(
            Exit::Usage,
            format!("--model-path {unused}: the run has no such model"),
        ));
    }
    let dir = layer.models_dir.clone().unwrap_or_else(|| "models".into());
    let model = |id: &String| {
        let known = file.models.get(id);
        let folder = model_folder(id);
        let own = paths
            .get(id)
            .or(known.and_then(|model| model.path.as_ref()))
            .cloned();
        let usual = EvaluationSize {
            seq_len: 512,
            preview: 64,
            final_: 64,
        };
        let size = file.evaluation_size(suite, id).unwrap_or(usual);
        let floor = if suite.evaluation.is_some() {
            0
        } else {
            coverage_floor(size.seq_len)
        };
        ModelRequest {
            id: id.clone(),
            revision: known.and_then(|model| model.revision.clone()),
            dir: own.unwrap_or_else(|| dir.join(&folder).join("baseline")),
            size: EvaluationSize {
                seq_len: layer.seq_len.unwrap_or(size.seq_len),
                preview: layer.preview.unwrap_or(size.preview.max(floor)),
                final_: layer.final_windows.unwrap_or(size.final_.max(floor)),
            },
            folder,
        }
    };
    Ok(ids.iter().map(model).collect())
}

/// Fewest windows per arm of a suite that does not say itself (scheduling specification, section 9.1): short windows hold
/// few tokens, and the tier's token floor has to be reached.
fn coverage_floor(seq_len: usize) -> usize {
    match seq_len {
        0..=256 => 352,
        257..=511 => 256,
        _ => 400,
    }
}

fn dataset(layer: &Layer, suite: &Suite) -> Result<Dataset, Failure> {
    let from_suite = suite.dataset.clone();
    let path = layer
        .dataset_file
        .clone()
        .or_else(|| from_suite.as_ref().map(|dataset| dataset.path.clone()));
    let Some(path) = path else {
        let message = "the suite brings no text of its own: name a data set with --dataset FILE";
        return Err(Failure::new(Exit::Usage, message));
    };
    let by_ending = if path.extension().is_some_and(|ending| ending == "jsonl") {
        "local_jsonl"
    } else {
        "text"
    };
    let kind = match (&layer.dataset, &from_suite) {
        (Some(kind), _) => kind.clone(),
        (None, Some(dataset)) if layer.dataset_file.is_none() => dataset.kind.clone(),
        _ => by_ending.into(),
    };
    let text_field = layer
        .text_field
        .clone()
        .or_else(|| from_suite.and_then(|dataset| dataset.text_field));
    Ok(Dataset {
        kind,
        path,
        text_field,
    })
}

fn selection(layer: &Layer, suite: &Suite) -> Result<Selection, Failure> {
    let name = layer
        .selection
        .as_deref()
        .or(suite.selection.as_deref())
        .unwrap_or("stratified");
    Selection::from_name(name).ok_or_else(|| {
        Failure::new(
            Exit::Usage,
            format!("selection `{name}` is unknown; there are file_order, stratified and shuffled"),
        )
    })
}

pub fn pack(layer: &Layer) -> Result<PackRequest, Failure> {
    let assurance = layer.report_assurance.as_deref().unwrap_or("report");
    Ok(PackRequest {
        dir: layer.pack_dir.clone(),
        key: layer.signing_key.clone(),
        sign: layer.sign.unwrap_or(true),
        profile: Profile::from_name(layer.profile.as_deref().unwrap_or(DEFAULT_PROFILE))?,
        assurance: Assurance::named(assurance).ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                format!(
                    "report assurance `{assurance}` is unknown; there are report, strict and off"
                ),
            )
        })?,
        require_pass: layer.require_pass.unwrap_or(false),
        image_ref: format!("packhost:{}", env!("CARGO_PKG_VERSION")),
        image_digest: program_digest()?,
    })
}

/// SHA-256 of this program's file: what a runtime manifest names as the image.
fn program_digest() -> Result<String, Failure> {
    let path = std::env::current_exe().map_err(|error| {
        Failure::new(
            Exit::Internal,
            format!("failed to find this program's file: {error}"),
        )
    })?;
    packhost_pack::digest::hex_of_file(&path)
        .map(|(digest, _)| format!("sha256:{digest}"))
        .map_err(|error| {
            Failure::new(
                Exit::Internal,
                format!("failed to read {}: {error}", path.display()),
            )
        })
}

/// Bytes of memory that are free for a run: what the system says is available, less an eighth for everything else.
pub fn free_memory() -> u64 {
    const FALLBACK: u64 = 4 << 30;
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
    kib.map_or(FALLBACK, |kib| kib * 1024 / 8 * 7)
}
