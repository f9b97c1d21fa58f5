//! A study as tables of plain text.

use packhost_measure::report::is_parity;
use std::fmt::Write as _;

use super::file::Part;
use super::observe::{Answer, Judgement, Level, Observed};
use super::summary::HARMLESS;
use super::{Study, strongest};

/// A letter for an answer.
pub fn letter(answer: Option<&Answer>) -> &'static str {
    match answer.and_then(|answer| Some((answer.level?, answer.stock))) {
        None => "-",
        Some((Level::Silent, false)) => ".",
        Some((Level::Silent, true)) => "s",
        Some((Level::Changed, _)) => "c",
        Some((Level::Marked, _)) => "M",
        Some((Level::Damaged, _)) => "D",
    }
}

/// The heading of a part.
pub fn part_title(part: Part) -> &'static str {
    match part {
        Part::NoOp => "Unedited",
        Part::Perturbation => "Rounding noise",
        Part::Control => "Controls",
        Part::Clean => "Clean edits",
        Part::Stress => "Stress edits",
        Part::Fault => "Faults",
        Part::Ladder => "Ladders",
    }
}

const LEGEND: &str = ". nothing   s only what the unedited model shows too   c changed   M marked   D damaged   - could not judge\n";

/// The tables.
pub fn text(study: &Study) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{}: {}, {} parameters",
        study.title, study.model.id, study.model.parameters
    );
    matrix(&mut out, study);
    alarms(&mut out, study);
    for ladder in &study.ladders {
        let _ = writeln!(out, "\n{} ({})", ladder.title, ladder.strength);
        let _ = write!(
            out,
            "{:<12}{:>9}{:>10}{:>11}",
            "strength", "subjects", "ratio", "KL"
        );
        for guard in &study.guards {
            let _ = write!(out, "  {guard}");
        }
        out.push('\n');
        for step in &ladder.steps {
            let strength = step.strength.to_string();
            let _ = write!(
                out,
                "{strength:<12}{:>9}{:>10}{:>11}",
                step.subjects,
                number(step.ratio, 4),
                number(step.kl, 6)
            );
            for guard in &study.guards {
                let rate = step.guards.get(guard).copied().unwrap_or_default();
                let counts = format!("{}/{}/{}", rate.changed, rate.marked, rate.damaged);
                let _ = write!(out, "  {counts:>width$}", width = guard.len());
            }
            out.push('\n');
        }
    }
    if !study.ladders.is_empty() {
        out.push_str("changed/marked/damaged count subjects; each includes what follows\n");
        smallest(&mut out, study);
    }
    out
}

fn matrix(out: &mut String, study: &Study) {
    let width = study
        .scenarios
        .iter()
        .map(|s| s.id.len())
        .max()
        .unwrap_or(0)
        .max(10);
    let _ = write!(out, "\n{:<width$}{:>11}{:>11}", "scenario", "ratio", "KL");
    for guard in &study.guards {
        let _ = write!(out, "  {guard}");
    }
    out.push_str("  parity  all\n");
    let mut part = None;
    for scenario in &study.scenarios {
        if scenario.part == Part::Ladder {
            continue;
        }
        if part != Some(scenario.part) {
            part = Some(scenario.part);
            let _ = writeln!(out, "{}", part_title(scenario.part));
        }
        let _ = write!(out, "{:<width$}", scenario.id);
        match (scenario.first(), &scenario.inapplicable) {
            (Some(run), _) => row(out, study, run),
            (None, why) => {
                let _ = writeln!(out, "  {}", why.as_deref().unwrap_or("not run"));
            }
        }
    }
    out.push_str(LEGEND);
}

fn row(out: &mut String, study: &Study, run: &Judgement) {
    let _ = write!(out, "{:>11}{:>11}", number(run.ratio, 4), number(run.kl, 6));
    for guard in &study.guards {
        let _ = write!(
            out,
            "  {:>width$}",
            letter(run.guards.get(guard)),
            width = guard.len()
        );
    }
    let (parity, all) = levels(study, run);
    let _ = writeln!(out, "  {:>6}  {:>3}", of_level(parity), of_level(all));
}

/// The strongest answers: of the reference's guards alone, and of all.
pub fn levels(study: &Study, run: &Judgement) -> (Level, Level) {
    let parity = study.guards.iter().filter(|guard| is_parity(guard));
    (strongest(run, parity), strongest(run, study.guards.iter()))
}

fn of_level(level: Level) -> &'static str {
    letter(Some(&Answer {
        level: Some(level),
        ..Answer::default()
    }))
}

fn alarms(out: &mut String, study: &Study) {
    out.push_str("\nHarmless changes: evaluations that are changed/marked/damaged of those judged; [f] raise the reference's flag\n");
    let _ = write!(out, "{:<20}", "guard");
    for part in HARMLESS {
        let _ = write!(out, "{:>22}", part_title(part));
    }
    out.push('\n');
    for alarms in &study.false_alarms {
        let _ = write!(out, "{:<20}", alarms.guard);
        for part in HARMLESS {
            let rate = alarms.parts.get(&part).copied().unwrap_or_default();
            let mut text = format!(
                "{}/{}/{} of {}",
                rate.changed, rate.marked, rate.damaged, rate.judged
            );
            if rate.flagged > 0 {
                let _ = write!(text, " [{}]", rate.flagged);
            }
            let _ = write!(out, "{text:>22}");
        }
        out.push('\n');
    }
}

fn smallest(out: &mut String, study: &Study) {
    out.push_str("\nSmallest strength from which on a guard always says changed/marked/damaged\n");
    let width = study
        .ladders
        .iter()
        .map(|l| l.id.len())
        .max()
        .unwrap_or(0)
        .max(10);
    let _ = write!(out, "{:<width$}", "ladder");
    for guard in &study.guards {
        let _ = write!(out, "  {guard:>18}");
    }
    out.push('\n');
    for ladder in &study.ladders {
        let _ = write!(out, "{:<width$}", ladder.id);
        for guard in &study.guards {
            let text = ladder.smallest.get(guard).map(|s| {
                [&s.changed, &s.marked, &s.damaged]
                    .map(|n| n.as_ref().map_or("-".to_owned(), ToString::to_string))
                    .join("/")
            });
            let _ = write!(out, "  {:>18}", text.unwrap_or_default());
        }
        out.push('\n');
    }
}

/// A number with so many digits, or a dash.
pub fn number(value: Option<f64>, digits: usize) -> String {
    match value {
        Some(value) if value.abs() >= 1e4 => format!("{value:.2e}"),
        Some(value) => format!("{value:.digits$}"),
        None => "-".into(),
    }
}

/// A scenario as it is called in tables: its id, and what it does where that says more.
pub fn name(scenario: &Observed) -> String {
    match scenario.part {
        Part::Control => format!("{} ({})", scenario.id, scenario.change),
        _ => scenario.id.clone(),
    }
}
