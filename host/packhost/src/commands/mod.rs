//! The commands: each turns its arguments into a request, hands it on, and prints the result.

mod attest;
mod doctor;
mod edit;
mod evaluate;
mod pack;
mod plan;
mod plugin;
mod report;
mod run;
mod study;
mod suite;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::CommandFactory;
use packhost_plugin::{CacheDir, EngineOptions};
use packhost_suite::suites::{Dataset, EvaluationSize};
use packhost_suite::toolbox::Toolbox;

use crate::cli::{Cli, Command, PluginArgs, TextArgs, WindowArgs};
use crate::exit::{Exit, Failure};
use crate::settings::Layer;

/// Runs the command that was given.
pub fn run(cli: Cli) -> Result<Exit, Failure> {
    match cli.command {
        Command::Run(arguments) => run::run(*arguments, cli.output.events),
        Command::Plan(arguments) => plan::run(*arguments),
        Command::Edit(arguments) => edit::run(arguments),
        Command::Evaluate(arguments) => evaluate::run(arguments),
        Command::Study(arguments) => study::run(arguments, cli.output.events),
        Command::Pack(command) => pack::run(command),
        Command::Report(command) => report::run(command),
        Command::Plugin(command) => plugin::run(command),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "packhost", &mut script);
            print(&String::from_utf8_lossy(&script));
            Ok(Exit::Success)
        }
    }
}

/// Writes a result. A reader that has gone away (`packhost ... | head`) is no failure. Nothing reaches a terminal that could
/// do more there than be read, whoever wrote it.
fn print(text: &str) {
    let text = packhost_plain::text(text);
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Writes lines on standard error, as harmless.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", packhost_plain::text(text));
}

/// Writes one line of a result.
fn print_line(line: &str) {
    print(&format!("{line}\n"));
}

/// The flags, the environment and the configuration file of a command that only takes plugins.
fn plugin_layer(arguments: &PluginArgs) -> Result<Layer, Failure> {
    let flags = Layer {
        plugins: arguments.plugins.clone(),
        locked: arguments.locked.then_some(true),
        plugin_cache: arguments.plugin_cache.clone(),
        ..Layer::default()
    };
    let environment = Layer::from_environment(|name| std::env::var(name).ok())?;
    Ok(flags.or(environment).or(crate::settings::from_file(None)?))
}

/// Folder of the plugins.
fn plugin_dir(layer: &Layer) -> PathBuf {
    layer.plugins.clone().unwrap_or_else(|| "plugins".into())
}

/// Device and plugins, as the settings ask.
fn toolbox(layer: &Layer, threads: Option<usize>) -> Result<Toolbox, Failure> {
    let cache = match &layer.plugin_cache {
        None => CacheDir::User,
        Some(path) if path.as_os_str().is_empty() => CacheDir::Off,
        Some(path) => CacheDir::At(path.clone()),
    };
    let options = EngineOptions {
        limits: layer.limits.clone().unwrap_or_default(),
        cache,
    };
    let threads = threads.or(layer.threads).filter(|&threads| threads > 0);
    packhost_tensor::cpu::matmul::use_matrix_tiles(layer.matrix_tiles.unwrap_or(true));
    Ok(Toolbox::open(
        &plugin_dir(layer),
        layer.locked.unwrap_or(false),
        options,
        threads,
    )?)
}

/// UTC time now, RFC 3339 to the second.
fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// A flag that the first Ctrl-C (or a termination signal) sets; the second one ends the process at once.
fn cancel_on_signal() -> Result<Arc<AtomicBool>, Failure> {
    let cancel = Arc::new(AtomicBool::new(false));
    let shared = Arc::clone(&cancel);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::new(
                Exit::Internal,
                format!("failed to watch for signals: {error}"),
            )
        })?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            signal().await;
            eprintln!("interrupted: ending the running tasks; interrupt again to stop at once");
            shared.store(true, Ordering::Relaxed);
            signal().await;
            std::process::exit(Exit::Interrupted as i32);
        });
    });
    Ok(cancel)
}

/// Waits for an interrupt or a request to terminate.
async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

/// The text that was named.
fn dataset(text: TextArgs) -> Dataset {
    Dataset::of_file(text.dataset, text.text_field)
}

/// How much of it is measured.
fn size(windows: &WindowArgs) -> EvaluationSize {
    EvaluationSize {
        seq_len: windows.seq_len,
        preview: windows.preview,
        final_: windows.final_windows,
    }
}

/// The file name of a path, for people.
fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}
