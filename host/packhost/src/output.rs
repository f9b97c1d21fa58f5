//! What people and programs see of a run: a live line on a terminal, plain lines elsewhere, JSON lines on request, or
//! nothing. Everything here goes to standard error; results are printed by the commands.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use packhost_suite::events::{Event, Sink, to_json_line};

use crate::cli::Events;

/// The sink for `form`.
pub fn sink(form: Events) -> Box<dyn Sink> {
    let terminal = std::io::stderr().is_terminal()
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    match form {
        Events::Quiet => Box::new(packhost_suite::events::Silent),
        Events::Json => Box::new(JsonLines),
        Events::Human if terminal => Box::new(Live::new()),
        Events::Human => Box::new(Lines),
    }
}

/// One JSON object per line.
struct JsonLines;

impl Sink for JsonLines {
    fn event(&self, event: &Event) {
        write_line(&to_json_line(event));
    }
}

/// One line per event that a person wants to see.
struct Lines;

impl Sink for Lines {
    fn event(&self, event: &Event) {
        if let Some(line) = describe(event) {
            write_line(&line);
        }
    }
}

/// A progress bar under lines that stay.
struct Live {
    bar: ProgressBar,
}

impl Live {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        // The template is a constant that the test below parses, so the fallback is never taken.
        let style =
            ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar }
    }
}

const TEMPLATE: &str = "{spinner} [{elapsed}] {wide_bar} {pos}/{len} {msg}";

impl Sink for Live {
    fn event(&self, event: &Event) {
        match event {
            Event::RunStarted {
                tasks,
                already_completed,
                ..
            } => {
                self.bar.set_length(*tasks as u64);
                self.bar.set_position(*already_completed as u64);
            }
            Event::TaskStarted {
                scenario,
                task_type,
                ..
            } => {
                let name = scenario.clone().unwrap_or_else(|| task_type.to_lowercase());
                self.bar
                    .set_message(packhost_plain::line(&name).into_owned());
            }
            Event::TaskCompleted { .. } | Event::TaskFailed { .. } => self.bar.inc(1),
            Event::RunFinished { .. } => self.bar.finish_and_clear(),
            Event::TaskBlocked { .. } | Event::Warning { .. } => {}
        }
        if let Some(line) = describe(event) {
            self.bar.suspend(|| write_line(&line));
        }
    }
}

/// The line for people, if the event deserves one.
fn describe(event: &Event) -> Option<String> {
    Some(match event {
        Event::RunStarted {
            run_dir,
            suite,
            tasks,
            already_completed,
            resumed,
        } => match resumed {
            true => format!(
                "resuming suite {suite} in {run_dir}: {already_completed} of {tasks} tasks are done"
            ),
            false => format!("running suite {suite} in {run_dir}: {tasks} tasks"),
        },
        Event::TaskStarted { .. } => return None,
        Event::TaskCompleted { summary, .. } if summary.is_empty() => return None,
        Event::TaskCompleted {
            seconds, summary, ..
        } => format!("{seconds:7.2} s  {summary}"),
        Event::TaskFailed {
            task,
            message,
            seconds,
            ..
        } => format!("{seconds:7.2} s  FAILED {task}: {message}"),
        Event::TaskBlocked { task, .. } => {
            format!("           cannot run {task}: a task that it needs failed")
        }
        Event::Warning { message } => format!("warning: {message}"),
        Event::RunFinished {
            verdict,
            completed,
            failed,
            blocked,
            seconds,
            plugin_percent,
            ..
        } => {
            let verdict = verdict.as_deref().unwrap_or("none");
            format!(
                "verdict {verdict}: {completed} tasks done, {failed} failed, {blocked} blocked in {seconds:.1} s, {plugin_percent:.1} % of it in plugins"
            )
        }
    })
}

/// A closed standard error is no reason to stop a run.
fn write_line(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", packhost_plain::text(line));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_parses() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }

    #[test]
    fn people_are_not_told_of_every_start() {
        let started = Event::TaskStarted {
            task: "t".into(),
            task_type: "X",
            model: None,
            scenario: None,
            run: None,
        };
        assert_eq!(describe(&started), None);
    }
}
