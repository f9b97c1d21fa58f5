//! The command line, exactly as typed: names, types, help. No logic; `commands` acts on it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Did this change to the weights damage the model, and can someone else check that?
#[derive(Debug, Parser)]
#[command(name = "packhost", version, propagate_version = true, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub output: OutputArgs,
}

const AFTER_HELP: &str = "Results go to standard output, everything else to standard error.\n\
    Exit codes are listed by `packhost doctor --exit-codes`.";

/// How packhost speaks.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// What to write about progress on standard error: human (live on a terminal, lines elsewhere), json (one JSON object
    /// per line), quiet
    #[arg(long, global = true, value_enum, default_value_t = Events::Human, value_name = "FORM")]
    pub events: Events,
}

/// Form of the progress messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Events {
    Human,
    Json,
    Quiet,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a suite: make every subject, measure and judge it, seal the evidence
    #[command(
        after_help = "Example:\n  packhost run --suite demo --plugins plugins --signing-key key.pem --out run1"
    )]
    Run(Box<RunArgs>),
    /// Show what a run would do and the memory it needs, without loading or running anything
    #[command(after_help = "Example:\n  packhost plan --suite demo --plugins plugins")]
    Plan(Box<PlanArgs>),
    /// Apply one edit to a checkpoint and write the result as a checkpoint
    #[command(
        after_help = "Example:\n  packhost edit models/base --spec quant_rtn:8:128:ffn --plugins plugins --out models/q8"
    )]
    Edit(EditArgs),
    /// Measure any checkpoint against a baseline on the same text and let the guards judge
    #[command(
        after_help = "Example:\n  packhost evaluate --baseline models/base --subject models/q8 --dataset text.jsonl --out report"
    )]
    Evaluate(EvaluateArgs),
    /// Study the guards on a model: what each says of each scenario, false alarms, smallest detectable strength
    #[command(
        after_help = "Example:\n  packhost study --model models/base --dataset text.jsonl --plugins plugins --out study1"
    )]
    Study(StudyArgs),
    /// Make, check and look into evidence packs
    #[command(subcommand)]
    Pack(PackCommand),
    /// Read packs on a terminal: what one says, what changed between two
    #[command(subcommand)]
    Report(ReportCommand),
    /// Look at plugins
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Say what this machine offers and what is missing
    #[command(after_help = "Example:\n  packhost doctor")]
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  packhost completions bash > /etc/bash_completion.d/packhost"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Where settings come from besides flags.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Configuration file; without it `packhost.toml` of the working directory is read if it is there
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Where plugins come from.
#[derive(Debug, Args)]
pub struct PluginArgs {
    /// Folder with plugins [default: plugins]
    #[arg(long, value_name = "DIR")]
    pub plugins: Option<PathBuf>,
    /// Refuse every plugin that plugins.lock in that folder does not pin
    #[arg(long)]
    pub locked: bool,
    /// Folder for compiled components [default: the user's cache folder]
    #[arg(long, value_name = "DIR")]
    pub plugin_cache: Option<PathBuf>,
}

/// What to run. Every flag has a key in packhost.toml and most have an environment variable: flags win over the
/// environment, the environment over the file, the file over the suite.
#[derive(Debug, Args)]
pub struct SuiteArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub plugins: PluginArgs,
    /// Suite: demo, subset, showcase, workshop3 or full [default: subset]
    #[arg(long, value_name = "NAME")]
    pub suite: Option<String>,
    /// File that describes suites and models [default: scenarios/suites.json]
    #[arg(long, value_name = "FILE")]
    pub suites_file: Option<PathBuf>,
    /// Scenario manifest, instead of the suite's
    #[arg(long, value_name = "FILE")]
    pub scenarios: Option<PathBuf>,
    /// Only these scenarios, whatever their suite
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    pub scenario_ids: Option<Vec<String>>,
    /// Models, instead of the suite's
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    pub models: Option<Vec<String>>,
    /// Where a model's checkpoint lies; may be given several times
    #[arg(long = "model-path", value_name = "ID=DIR")]
    pub model_paths: Vec<String>,
    /// Folder that holds checkpoints as `<model folder>/baseline` [default: models]
    #[arg(long, value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
    /// Data set file, instead of the suite's
    #[arg(long, value_name = "FILE")]
    pub dataset: Option<PathBuf>,
    /// Guard tier: conservative, balanced or aggressive
    #[arg(long, value_name = "TIER")]
    pub tier: Option<String>,
    /// Preview windows
    #[arg(long, value_name = "N")]
    pub preview: Option<usize>,
    /// Final windows
    #[arg(long = "final", value_name = "N")]
    pub final_windows: Option<usize>,
    /// Tokens per window at most
    #[arg(long, value_name = "N")]
    pub seq_len: Option<usize>,
    /// Seed of the first run; run r uses seed + r - 1 [default: 42]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Runs of each clean edit
    #[arg(long, value_name = "N")]
    pub clean_runs: Option<u32>,
    /// Runs of each stress edit
    #[arg(long, value_name = "N")]
    pub stress_runs: Option<u32>,
    /// Calibration runs of the unedited model
    #[arg(long, value_name = "N")]
    pub calibration_runs: Option<u32>,
    /// Preset folder or file to use instead of calibrating
    #[arg(long, value_name = "PATH")]
    pub preset: Option<PathBuf>,
    /// Threads for tensor work [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Tasks at once at most [default: 2]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub suite: SuiteArgs,
    /// Run directory [default: evidence_pack_runs/SUITE_TIME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with the run in --out: finished tasks stay finished
    #[arg(long)]
    pub resume: bool,
    /// Stop when all presets exist
    #[arg(long, conflicts_with = "run_only")]
    pub calibrate_only: bool,
    /// Go on after --calibrate-only
    #[arg(long)]
    pub run_only: bool,
    /// Write each subject as a checkpoint too
    #[arg(long)]
    pub materialize: bool,
    /// Pack folder [default: evidence_pack in the run directory]
    #[arg(long, value_name = "DIR")]
    pub pack_dir: Option<PathBuf>,
    /// Ed25519 private key that signs the pack; without it a throw-away key does
    #[arg(long, value_name = "FILE")]
    pub signing_key: Option<PathBuf>,
    /// Seal no pack unless the verdict is PASS
    #[arg(long)]
    pub require_pass: bool,
    /// Profile of the run and of its reports: dev, ci or release [default: ci]
    #[arg(long, value_name = "PROFILE")]
    pub profile: Option<String>,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub suite: SuiteArgs,
    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct EditArgs {
    /// Folder of the checkpoint
    pub model: PathBuf,
    /// What to do: type:parameters:scope, or type:{JSON}
    #[arg(long, value_name = "SPEC")]
    pub spec: String,
    /// Folder to write; it must not exist unless --replace is given
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace the folder if it exists
    #[arg(long)]
    pub replace: bool,
    /// How shards that the edit does not touch get there
    #[arg(long, value_enum, default_value_t = Link::Copy, value_name = "HOW")]
    pub link: Link,
    /// Tuned parameters, for the clean form of a specification
    #[arg(long, value_name = "FILE")]
    pub tuned_edit_params: Option<PathBuf>,
    /// Model id in the file of tuned parameters [default: the folder's name]
    #[arg(long, value_name = "ID")]
    pub model_id: Option<String>,
    #[command(flatten)]
    pub plugins: PluginArgs,
    /// Threads for tensor work [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// How an untouched shard gets to the new checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Link {
    Copy,
    Hardlink,
    Symlink,
}

/// The text that models are measured on.
#[derive(Debug, Args)]
pub struct TextArgs {
    /// Text: a JSON-lines file (.jsonl) or plain text
    #[arg(long, value_name = "FILE")]
    pub dataset: PathBuf,
    /// Field of a JSON line that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_field: String,
}

/// How much of it.
#[derive(Debug, Args)]
pub struct WindowArgs {
    /// Preview windows
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub preview: usize,
    /// Final windows
    #[arg(long = "final", value_name = "N", default_value_t = 32)]
    pub final_windows: usize,
    /// Tokens per window at most
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub seq_len: usize,
}

#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Folder of the baseline checkpoint
    #[arg(long, value_name = "DIR")]
    pub baseline: PathBuf,
    /// Folder of the subject checkpoint
    #[arg(long, value_name = "DIR")]
    pub subject: PathBuf,
    #[command(flatten)]
    pub text: TextArgs,
    /// Folder for evaluation.report.json and its sidecars; created if it is absent
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub windows: WindowArgs,
    /// Seed of the window draw and the bootstrap
    #[arg(long, value_name = "S", default_value_t = 42)]
    pub seed: u64,
    /// How windows are drawn: file_order, stratified or shuffled [default: file_order for JSON lines, stratified for text]
    #[arg(long, value_name = "HOW")]
    pub selection: Option<String>,
    /// Guard tier: conservative, balanced or aggressive
    #[arg(long, value_name = "TIER", default_value = "balanced")]
    pub tier: String,
    /// Preset from a calibrated run
    #[arg(long, value_name = "FILE")]
    pub preset: Option<PathBuf>,
    #[command(flatten)]
    pub plugins: PluginArgs,
    /// Threads for tensor work [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

#[derive(Debug, Args)]
pub struct StudyArgs {
    /// Folder of the checkpoint
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Name of the model in the results [default: the folder's name]
    #[arg(long, value_name = "ID")]
    pub model_id: Option<String>,
    #[command(flatten)]
    pub text: TextArgs,
    /// Folder for study.json, index.html and the run that they come from; it must be absent or empty
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Scenarios and strengths
    #[arg(long, value_name = "FILE", default_value = "scenarios/study.json")]
    pub study: PathBuf,
    /// Guards that judge; primary-metric always does [default: every installed one]
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    pub guards: Option<Vec<String>>,
    #[command(flatten)]
    pub windows: WindowArgs,
    /// Seed of the first run; run r uses seed + r - 1
    #[arg(long, value_name = "S", default_value_t = 42)]
    pub seed: u64,
    /// How windows are drawn: file_order, stratified or shuffled
    #[arg(long, value_name = "HOW", default_value = "stratified")]
    pub selection: String,
    /// Guard tier: conservative, balanced or aggressive
    #[arg(long, value_name = "TIER", default_value = "balanced")]
    pub tier: String,
    /// Profile: dev, ci or release
    #[arg(long, value_name = "PROFILE", default_value = "dev")]
    pub profile: String,
    #[command(flatten)]
    pub plugins: PluginArgs,
    /// Threads for tensor work [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Tasks at once at most
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub workers: usize,
}

#[derive(Debug, Subcommand)]
pub enum PackCommand {
    /// Make an Ed25519 key pair for signing packs
    #[command(after_help = "Example:\n  packhost pack keygen signer.key.pem")]
    Keygen(KeygenArgs),
    /// Build a pack from reports that exist
    #[command(
        after_help = "Example:\n  packhost pack build pack --final-verdict final_verdict.json --report r1/evaluation.report.json --signing-key signer.key.pem"
    )]
    Build(BuildArgs),
    /// Check a pack offline: signature, digests, every report
    #[command(
        after_help = "Example:\n  packhost pack verify pack --strict --expected-fingerprint sha256:..."
    )]
    Verify(VerifyArgs),
    /// Add a signature of your own to a pack, as a file beside it
    #[command(
        after_help = "Example:\n  packhost pack sign pack --signing-key second.key.pem --out pack.second.signature.json"
    )]
    Sign(SignArgs),
    /// Check a receipt that a verification left, and say what it says
    #[command(
        after_help = "Example:\n  packhost pack receipt receipt.json --expected-fingerprint sha256:..."
    )]
    Receipt(ReceiptArgs),
    /// Write a pack's verdict as a signed in-toto statement, for other tools
    #[command(
        after_help = "Example:\n  packhost pack export pack --in-toto verdict.intoto.json --signing-key signer.key.pem"
    )]
    Export(ExportArgs),
    /// Say what changed between two packs: the same as `report diff`
    #[command(after_help = "Example:\n  packhost pack diff before after --json")]
    Diff(DiffArgs),
    /// Say what a pack holds, without checking signature or reports
    #[command(after_help = "Example:\n  packhost pack inspect pack --json")]
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// File for the private key; it must not exist
    pub private_key: PathBuf,
    /// File for the public key [default: the private key's name with .pub.pem]
    #[arg(long, value_name = "FILE")]
    pub public_key_out: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Pack folder; it must not exist
    pub out: PathBuf,
    /// Final verdict (JSON)
    #[arg(long, value_name = "FILE")]
    pub final_verdict: PathBuf,
    /// Evaluation report, with runtime.manifest.json beside it; may be given several times
    #[arg(long = "report", value_name = "FILE")]
    pub reports: Vec<PathBuf>,
    /// Provenance of the source (JSON)
    #[arg(long, value_name = "FILE")]
    pub source_repo: Option<PathBuf>,
    /// Environment of the run (JSON)
    #[arg(long, value_name = "FILE")]
    pub environment: Option<PathBuf>,
    /// Further material (JSON); may be given several times
    #[arg(long = "material", value_name = "NAME=PATH")]
    pub materials: Vec<String>,
    /// Text for the pack's README.md
    #[arg(long, value_name = "FILE")]
    pub readme: Option<PathBuf>,
    /// Ed25519 private key; without it the pack is not signed
    #[arg(long, value_name = "FILE")]
    pub signing_key: Option<PathBuf>,
    /// Profile that the reports must satisfy
    #[arg(long, value_name = "PROFILE", default_value = "dev")]
    pub profile: String,
    /// Assurance that the reports must have: report, strict or off
    #[arg(long, value_name = "MODE", default_value = "report")]
    pub report_assurance: String,
    /// Ask for everything a release review needs
    #[arg(long)]
    pub release_review: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub verify: packhost_verify::VerifyArgs,
    /// Derive every number, flag and verdict of the pack again from its tables and guards, and compare
    #[arg(long)]
    pub replay: bool,
    /// With a replay: refuse packs of an older form than this (the replay says which form a pack has), since they show less
    #[arg(long, value_name = "N")]
    pub require_form: Option<u8>,
    /// Measure again from the weights, on so many of the pack's subjects and seeds, and compare; implies --replay
    #[arg(long, value_name = "K", requires = "models")]
    pub recompute: Option<usize>,
    /// Checkpoint of the pack's model, for --recompute; of several models each ID=DIR
    #[arg(long = "model", value_name = "[ID=]DIR", requires = "recompute")]
    pub models: Vec<String>,
    /// Your own word for choosing what is measured again, best a random one: without it a signer could know the choice
    #[arg(long, value_name = "TEXT", requires = "recompute", default_value = "")]
    pub recompute_seed: String,
}

#[derive(Debug, Args)]
pub struct SignArgs {
    /// Pack folder
    pub pack: PathBuf,
    /// Ed25519 private key
    #[arg(long, value_name = "FILE")]
    pub signing_key: PathBuf,
    /// File for the signature, outside the pack; it must not exist
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum ReportCommand {
    /// Show a pack: verdict, why, every scenario against every guard, figures, provenance
    #[command(after_help = "Example:\n  packhost report show pack\n\n\
        Ends with 0 whatever the verdict is, and with 3 to 6 where the pack is not as it was signed.")]
    Show(ShowArgs),
    /// Say what changed between two packs: verdict, outcomes, guards, ratios and intervals, policies, plugins, settings,
    /// environment, files
    #[command(
        after_help = "Example:\n  packhost report diff before after --json\n\n\
        Ends with 0 whether or not something changed, and with 3 to 6 where a pack is not as it was signed."
    )]
    Diff(DiffArgs),
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Pack folder
    pub pack: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ReceiptArgs {
    /// Receipt
    pub receipt: PathBuf,
    /// Fingerprint of the verifier that is expected to have signed it
    #[arg(long, value_name = "sha256:HEX")]
    pub expected_fingerprint: Option<String>,
    /// Pack folder that the receipt must be about
    #[arg(long, value_name = "DIR")]
    pub pack: Option<PathBuf>,
    /// Print the receipt as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Pack folder
    pub pack: PathBuf,
    /// File for the statement (a DSSE envelope), outside the pack; it must not exist
    #[arg(long, value_name = "FILE")]
    pub in_toto: PathBuf,
    /// Ed25519 private key
    #[arg(long, value_name = "FILE")]
    pub signing_key: PathBuf,
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Pack folder before
    pub before: PathBuf,
    /// Pack folder after
    pub after: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Pack folder
    pub pack: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// List the plugins of a folder, with size and digest
    #[command(after_help = "Example:\n  packhost plugin list --plugins plugins")]
    List {
        #[command(flatten)]
        plugins: PluginArgs,
        /// Print the list as JSON
        #[arg(long)]
        json: bool,
        /// Print the limits of plugin calls instead
        #[arg(long)]
        limits: bool,
    },
    /// Load one plugin and print what it says about itself
    #[command(after_help = "Example:\n  packhost plugin inspect quant-rtn --plugins plugins")]
    Inspect {
        /// Id of the plugin
        id: String,
        #[command(flatten)]
        plugins: PluginArgs,
    },
    /// Write plugins.lock: pin the id, version and digest of every plugin in the folder
    #[command(after_help = "Example:\n  packhost plugin lock --plugins plugins")]
    Lock {
        #[command(flatten)]
        plugins: PluginArgs,
    },
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print the exit codes and their meanings instead
    #[arg(long)]
    pub exit_codes: bool,
    /// Print the settings of `run` with their environment variables instead
    #[arg(long, conflicts_with = "exit_codes")]
    pub settings: bool,
}
