//! What happens during a run, as data. The command line turns events into a live display, plain lines or JSON lines; the
//! run itself never prints.

use serde::Serialize;

/// Version of the event schema. Fields may be added within a version; a change of meaning raises it.
pub const VERSION: u32 = 1;

/// One event. Serialised as an object with `event` and the fields below.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run begins or goes on.
    RunStarted {
        run_dir: String,
        suite: String,
        tasks: usize,
        already_completed: usize,
        resumed: bool,
    },
    /// A task begins.
    TaskStarted {
        task: String,
        task_type: &'static str,
        model: Option<String>,
        scenario: Option<String>,
        run: Option<u32>,
    },
    /// A task ended well. `summary` is one line for people.
    TaskCompleted {
        task: String,
        task_type: &'static str,
        seconds: f64,
        summary: String,
    },
    /// A task ended in an error.
    TaskFailed {
        task: String,
        task_type: &'static str,
        seconds: f64,
        class: &'static str,
        message: String,
    },
    /// A task can never run because one that it needs failed.
    TaskBlocked {
        task: String,
        task_type: &'static str,
    },
    /// Something worth a person's attention that stops nothing.
    Warning { message: String },
    /// The run ended. `verdict` is absent when it did not get that far.
    RunFinished {
        verdict: Option<String>,
        pack: Option<String>,
        completed: usize,
        failed: usize,
        blocked: usize,
        seconds: f64,
        /// Time that calls of plugins took outside the host's services (kernels, drafts, copies), in percent of `seconds`.
        /// The sum over all calls, so those that ran side by side count twice.
        plugin_percent: f64,
        /// What each function of each plugin cost, sorted.
        plugin_calls: Vec<PluginCalls>,
    },
}

/// All calls of one function of one plugin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PluginCalls {
    /// The plugin's id.
    pub plugin: String,
    /// The function, such as `judge`.
    pub call: String,
    /// How often it was called.
    pub calls: u64,
    /// From making instances to dropping them, summed.
    pub seconds: f64,
    /// The part of `seconds` in the host's services.
    pub host_seconds: f64,
    /// How often it called the host.
    pub host_calls: u64,
    /// WebAssembly instructions, about; the same on every machine.
    pub fuel: u64,
}

impl PluginCalls {
    /// Seconds outside the host's services.
    pub fn outside_host(&self) -> f64 {
        (self.seconds - self.host_seconds).max(0.0)
    }
}

/// Where events go. Called from several threads.
pub trait Sink: Sync {
    /// Takes one event.
    fn event(&self, event: &Event);
}

/// A sink that drops everything.
pub struct Silent;

impl Sink for Silent {
    fn event(&self, _: &Event) {}
}

/// The event as one JSON line, with the schema's version.
pub fn to_json_line(event: &Event) -> String {
    let mut value = serde_json::to_value(event).unwrap_or_default();
    value["version"] = VERSION.into();
    value.to_string()
}
