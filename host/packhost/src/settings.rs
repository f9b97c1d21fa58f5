//! Settings of a run in layers: built-in defaults, `packhost.toml`, the environment, flags. A later layer replaces an
//! earlier one value by value; lists replace lists.
//!
//! Each setting is one row of the table below: its key in `packhost.toml`, its type, the environment variables that set it
//! (the first one that is set wins) and its meaning. The reference's variable names are kept. Unknown keys in the file are
//! refused; a value that does not parse is an error that names the variable.

use std::path::{Path, PathBuf};

use packhost_plugin::Limits;
use serde::Deserialize;

use crate::exit::{Exit, Failure};

/// A value that an environment variable can hold.
trait FromVariable: Sized {
    fn parse(text: &str) -> Result<Self, &'static str>;
}

impl FromVariable for String {
    fn parse(text: &str) -> Result<Self, &'static str> {
        Ok(text.to_string())
    }
}

impl FromVariable for PathBuf {
    fn parse(text: &str) -> Result<Self, &'static str> {
        Ok(text.into())
    }
}

impl FromVariable for bool {
    fn parse(text: &str) -> Result<Self, &'static str> {
        match text.trim().to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(true),
            "0" | "false" | "no" | "off" => Ok(false),
            _ => Err("0, 1, true or false"),
        }
    }
}

impl FromVariable for Vec<String> {
    fn parse(text: &str) -> Result<Self, &'static str> {
        Ok(text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(Into::into)
            .collect())
    }
}

macro_rules! whole_numbers {
    ($($type:ty),+) => {$(
        impl FromVariable for $type {
            fn parse(text: &str) -> Result<Self, &'static str> {
                text.trim().parse().map_err(|_| "a whole number that is not negative")
            }
        }
    )+};
}
whole_numbers!(u32, u64, usize);

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = [$($variable:literal),*];)+) => {
        /// One layer: what it does not set is `None`.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Layer {
            $($(#[doc = $doc])+ pub $name: Option<$type>,)+
            /// Limits of plugin calls, each by name; see `packhost plugin list --limits`.
            pub limits: Option<Limits>,
        }

        impl Layer {
            /// Key, environment variables and meaning of every setting.
            pub const TABLE: &'static [(&'static str, &'static [&'static str], &'static str)] =
                &[$((stringify!($name), &[$($variable),*], concat!($($doc),+)),)+];

            /// The layer that environment variables make.
            ///
            /// # Errors
            /// A variable whose value does not parse.
            pub fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
                let mut layer = Self::default();
                $(layer.$name = variable(&get, &[$($variable),*])?;)+
                Ok(layer)
            }

            /// This layer, and `below` where this one is silent.
            pub fn or(self, below: Self) -> Self {
                Self {
                    $($name: self.$name.or(below.$name),)+
                    limits: self.limits.or(below.limits),
                }
            }
        }
    };
}

settings! {
    /// Suite to run.
    suite: String = ["PACK_SUITE"];
    /// File that describes suites and models.
    suites_file: PathBuf = ["PACKHOST_SUITES_FILE"];
    /// Scenario manifest; replaces the suite's.
    scenarios_file: PathBuf = ["PACK_SCENARIOS_MANIFEST_FILE"];
    /// Only these scenarios, whatever their suite.
    scenario_ids: Vec<String> = ["PACK_SCENARIO_IDS"];
    /// Models; replaces the suite's.
    models: Vec<String> = ["PACK_MODELS_CSV", "PACK_MODELS"];
    /// Folder that holds checkpoints as `<model folder>/baseline`.
    models_dir: PathBuf = ["PACKHOST_MODELS_DIR"];
    /// Folder with plugins.
    plugins: PathBuf = ["PACKHOST_PLUGINS"];
    /// Refuse plugins that the lock file does not pin.
    locked: bool = ["PACKHOST_LOCKED"];
    /// Run directory; it must not exist yet, unless the run is resumed.
    out: PathBuf = ["PACK_OUTPUT_DIR", "OUTPUT_DIR"];
    /// `full`, `calibrate-only` or `run-only`.
    mode: String = ["PACK_SUITE_MODE"];
    /// Guard tier: conservative, balanced or aggressive.
    tier: String = ["INVARLOCK_TIER"];
    /// Guards in their order.
    guards: Vec<String> = ["PACK_GUARDS_ORDER"];
    /// Data set provider: local_jsonl or text.
    dataset: String = ["INVARLOCK_DATASET"];
    /// Data set file.
    dataset_file: PathBuf = ["INVARLOCK_LOCAL_JSONL_FILE", "INVARLOCK_LOCAL_JSONL_PATH"];
    /// Field of a JSON line that holds the text.
    text_field: String = ["INVARLOCK_LOCAL_JSONL_TEXT_FIELD"];
    /// How windows are drawn: file_order, stratified or shuffled.
    selection: String = ["PACKHOST_SELECTION"];
    /// Tokens per window at most.
    seq_len: usize = ["INVARLOCK_SEQ_LEN"];
    /// Preview windows.
    preview: usize = ["INVARLOCK_PREVIEW_WINDOWS"];
    /// Final windows.
    final_windows: usize = ["INVARLOCK_FINAL_WINDOWS"];
    /// Seed of the first run; run r uses seed + r - 1.
    seed: u64 = ["PACKHOST_SEED"];
    /// Bootstrap replicates.
    bootstrap: usize = ["INVARLOCK_BOOTSTRAP_N"];
    /// Calibration runs.
    calibration_runs: u32 = ["DRIFT_CALIBRATION_RUNS"];
    /// Runs of each clean edit.
    clean_runs: u32 = ["CLEAN_EDIT_RUNS"];
    /// Runs of each stress edit.
    stress_runs: u32 = ["STRESS_EDIT_RUNS"];
    /// Whether faults are injected.
    errors: bool = ["RUN_ERROR_INJECTION"];
    /// Tuned parameters of clean edits.
    tuned_edit_params: PathBuf = ["PACK_TUNED_EDIT_PARAMS_FILE"];
    /// Preset folder or file to use instead of calibrating.
    preset: PathBuf = ["PACK_CALIBRATION_PRESET_FILE", "PACK_CALIBRATION_PRESET_DIR"];
    /// Write each subject as a checkpoint too.
    materialize: bool = ["PACKHOST_MATERIALIZE"];
    /// Threads for tensor work; 0 means one per core.
    threads: usize = ["PACKHOST_THREADS"];
    /// Multiply bf16 weights with the processor's matrix tiles where it has them: quicker, and the last places of losses differ from those of processors without; true by default.
    matrix_tiles: bool = ["PACKHOST_MATRIX_TILES"];
    /// Tasks at once at most.
    workers: usize = ["PACKHOST_WORKERS"];
    /// Bytes of memory that running tasks may plan for; 0 means what is free at the start.
    memory: u64 = ["PACKHOST_MEMORY"];
    /// Folder for compiled components; empty turns the cache off.
    plugin_cache: PathBuf = ["PACKHOST_PLUGIN_CACHE"];
    /// Pack folder; the run directory's `evidence_pack` by default.
    pack_dir: PathBuf = ["PACK_DIR"];
    /// Whether the pack is signed.
    sign: bool = ["PACK_SIGN_MANIFEST"];
    /// Ed25519 private key; without it a throw-away key signs.
    signing_key: PathBuf = ["PACK_SIGNING_KEY"];
    /// Profile of the run and of its reports: dev, ci or release; ci by default.
    profile: String = ["PACK_VERIFY_PROFILE"];
    /// Report assurance: report, strict or off.
    report_assurance: String = ["PACK_REPORT_ASSURANCE"];
    /// Seal no pack unless the verdict is PASS.
    require_pass: bool = ["PACK_REQUIRE_PASS"];
}

/// The first of `names` that is set and not empty, parsed.
fn variable<T: FromVariable>(
    get: &impl Fn(&str) -> Option<String>,
    names: &[&str],
) -> Result<Option<T>, Failure> {
    for name in names {
        if let Some(text) = get(name).filter(|text| !text.is_empty()) {
            return T::parse(&text).map(Some).map_err(|expected| {
                Failure::new(
                    Exit::Usage,
                    format!("environment variable {name}: `{text}` is not {expected}"),
                )
            });
        }
    }
    Ok(None)
}

/// The layer of a configuration file. Without `path`, `packhost.toml` of the working directory is read if it is there.
///
/// # Errors
/// The named file is absent, or a file is not TOML of known keys.
pub fn from_file(path: Option<&Path>) -> Result<Layer, Failure> {
    let default = Path::new("packhost.toml");
    let (path, named) = (path.unwrap_or(default), path.is_some());
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if !named && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Layer::default());
        }
        Err(error) => {
            return Err(Failure::new(
                Exit::Missing,
                format!("failed to read {}: {error}", path.display()),
            ));
        }
    };
    toml::from_str(&text).map_err(|error| {
        let message = error.to_string();
        Failure::new(
            Exit::Usage,
            format!("failed to read {}: {}", path.display(), message.trim_end()),
        )
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn layers_replace_value_by_value() {
        let flags = Layer {
            seed: Some(1),
            ..Layer::default()
        };
        let environment = |name: &str| match name {
            "PACK_SUITE" => Some("demo".into()),
            "CLEAN_EDIT_RUNS" => Some("4".into()),
            "OUTPUT_DIR" => Some("b".into()),
            "PACK_OUTPUT_DIR" => Some("a".into()),
            "PACK_SCENARIO_IDS" => Some("x, y,,".into()),
            _ => None,
        };
        let file: Layer =
            toml::from_str("suite = \"full\"\nseed = 9\nstress_runs = 2\n[limits]\nhandles = 3")
                .unwrap();
        let all = flags
            .or(Layer::from_environment(environment).unwrap())
            .or(file);
        assert_eq!(
            (
                all.suite.as_deref(),
                all.seed,
                all.clean_runs,
                all.stress_runs
            ),
            (Some("demo"), Some(1), Some(4), Some(2))
        );
        assert_eq!(all.out, Some("a".into()));
        assert_eq!(all.scenario_ids, Some(vec!["x".into(), "y".into()]));
        assert_eq!(all.limits.unwrap().handles, 3);
    }

    #[test]
    fn what_does_not_parse_is_named() {
        let failure =
            Layer::from_environment(|name| (name == "PACKHOST_SEED").then(|| "-1".into()))
                .unwrap_err();
        assert_eq!(
            failure.message,
            "environment variable PACKHOST_SEED: `-1` is not a whole number that is not negative"
        );
        assert!(toml::from_str::<Layer>("siute = \"demo\"").is_err());
        assert!(toml::from_str::<Layer>("[limits]\nhandels = 3").is_err());
    }
}
