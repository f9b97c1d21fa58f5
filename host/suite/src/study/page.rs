//! A study as a page.

use packhost_measure::report::is_parity;
use packhost_report::{
    Align, Bar, Bars, Block, Cell, Column, Group, Lines, Mark, Matrix, Page, Row, Section, Series,
    Table, Tone,
};
use serde_json::Number;

use super::Study;
use super::file::Part;
use super::observe::{Answer, Judgement, Level, Observed};
use super::summary::{HARMLESS, LadderResult, Rate, Smallest};
use super::text::{letter, levels, name, number, part_title};

/// The page.
pub fn page(study: &Study) -> Page {
    let section = |id: &str, title: &str, blocks| Section {
        id: id.into(),
        title: title.into(),
        blocks,
    };
    let mut sections = vec![
        section("about", "What was studied", about(study)),
        section("scenarios", "Scenarios and guards", scenarios(study)),
        section("false-alarms", "Harmless changes", harmless(study)),
    ];
    if !study.ladders.is_empty() {
        sections.push(section(
            "strength",
            "How much a guard needs",
            strength(study),
        ));
    }
    sections.push(section("damage", "What the changes cost", damage(study)));
    Page {
        title: format!("{}: {}", study.title, study.model.id),
        lead: "Which guard says what about which change, how often it is wrong about harmless ones, and how strong a change must be to be noticed.".into(),
        sections,
    }
}

fn about(study: &Study) -> Vec<Block> {
    let evaluations: usize = study.scenarios.iter().map(|s| s.runs.len()).sum();
    let windows = study.windows;
    let facts = [
        ("Model", study.model.id.clone()),
        ("Architecture", study.model.architecture.clone()),
        ("Parameters", study.model.parameters.to_string()),
        ("Weights, SHA-256", study.model.sha256.clone()),
        ("Text, SHA-256", study.dataset.sha256.clone()),
        (
            "Windows",
            format!(
                "{} preview, {} final, {} tokens at most",
                windows.preview, windows.final_, windows.seq_len
            ),
        ),
        (
            "Window draw",
            format!("{}, seeds from {}", study.selection, study.seed),
        ),
        (
            "Tier and profile",
            format!("{}, {}", study.tier, study.profile),
        ),
        (
            "Calibration",
            format!(
                "{} runs, each with one perturbation",
                study.calibration_runs
            ),
        ),
        ("Evaluations", evaluations.to_string()),
        ("packhost", study.host_version.to_owned()),
    ];
    let facts = facts.map(|(name, value)| (name.to_owned(), value));
    vec![Block::Facts(facts.into())]
}

fn scenarios(study: &Study) -> Vec<Block> {
    let mut columns = study.guards.clone();
    columns.extend(["parity alone".into(), "with ours".into()]);
    let mut groups: Vec<Group> = Vec::new();
    for scenario in study.scenarios.iter().filter(|s| s.part != Part::Ladder) {
        let title = part_title(scenario.part);
        if groups.last().is_none_or(|group| group.title != title) {
            groups.push(Group {
                title: title.into(),
                rows: Vec::new(),
            });
        }
        if let Some(group) = groups.last_mut() {
            group.rows.push(row(study, scenario));
        }
    }
    let text = "What a guard finds in the unedited model on the same windows does not count here: that is the reference's movement \
                rule, applied to every guard and to its probes. The first run of each scenario is shown.";
    vec![
        Block::Text(text.into()),
        Block::Matrix(Matrix {
            title: "What each guard says of each scenario".into(),
            columns,
            groups,
            legend: legend(),
            note: String::new(),
        }),
    ]
}

/// What the marks of a matrix of guards mean.
pub fn legend() -> Vec<(Cell, String)> {
    let legend = [
        (Tone::Fail, "D", "damaged: status fail"),
        (
            Tone::Warn,
            "M",
            "marked: status warn, or the guard's probe signals",
        ),
        (
            Tone::Note,
            "c",
            "changed beyond what rounding explains, and harmless as far as it goes",
        ),
        (Tone::Quiet, ".", "nothing"),
        (
            Tone::Doubt,
            "s",
            "stock: only what the unedited model shows too",
        ),
        (
            Tone::Absent,
            "-",
            "could not judge: no predictions to look at",
        ),
    ];
    let cells = legend.map(|(tone, mark, meaning)| {
        let cell = Cell {
            tone,
            mark: mark.into(),
            tip: String::new(),
        };
        (cell, meaning.to_owned())
    });
    cells.into()
}

fn row(study: &Study, scenario: &Observed) -> Row {
    let cells = match scenario.first() {
        Some(run) => {
            let (parity, all) = levels(study, run);
            let guards = study
                .guards
                .iter()
                .map(|guard| cell(guard, run.guards.get(guard)));
            let sums = [("the reference's guards", parity), ("all guards", all)];
            let sums = sums.map(|(who, level)| {
                let answer = Answer {
                    level: Some(level),
                    ..Answer::default()
                };
                cell(who, Some(&answer))
            });
            guards.chain(sums).collect()
        }
        None => {
            let why = scenario.inapplicable.clone().unwrap_or_default();
            let absent = Cell {
                tone: Tone::Absent,
                mark: String::new(),
                tip: why,
            };
            vec![absent; study.guards.len() + 2]
        }
    };
    let label = match &scenario.inapplicable {
        Some(_) => format!("{} (not applicable)", scenario.id),
        None => scenario.id.clone(),
    };
    Row { label, cells }
}

/// A guard's answer as a mark.
pub fn cell(who: &str, answer: Option<&Answer>) -> Cell {
    let level = answer.and_then(|answer| answer.level);
    let stock = answer.is_some_and(|answer| answer.stock);
    let (tone, word) = match level {
        None => (Tone::Absent, "could not judge"),
        Some(Level::Silent) if stock => (Tone::Doubt, "only what the unedited model shows"),
        Some(Level::Silent) => (Tone::Quiet, "nothing"),
        Some(Level::Changed) => (Tone::Note, "changed"),
        Some(Level::Marked) => (Tone::Warn, "marked"),
        Some(Level::Damaged) => (Tone::Fail, "damaged"),
    };
    let codes: Vec<&str> = answer
        .into_iter()
        .flat_map(|a| &a.codes)
        .map(String::as_str)
        .collect();
    let mut tip = format!("{who}: {word}");
    if !codes.is_empty() {
        tip += &format!(" ({})", codes.join(", "));
    }
    if answer.is_some_and(|answer| answer.probe) {
        tip += "; the probe signals";
    }
    Cell {
        tone,
        mark: letter(answer).into(),
        tip,
    }
}

/// A column of words.
pub fn words(title: &str) -> Column {
    Column {
        title: title.into(),
        align: Align::Start,
    }
}

/// A column of numbers.
pub fn figures(title: &str) -> Column {
    Column {
        title: title.into(),
        align: Align::End,
    }
}

fn harmless(study: &Study) -> Vec<Block> {
    let percent = |part: usize, whole: usize| match whole {
        0 => "-".to_owned(),
        whole => format!(
            "{part} of {whole} ({:.0} %)",
            100.0 * part as f64 / whole as f64
        ),
    };
    let table = |caption: &str, count: &dyn Fn(Rate) -> usize, guards: &dyn Fn(&str) -> bool| {
        let mut columns = vec![words("guard")];
        columns.extend(HARMLESS.map(|part| figures(part_title(part))));
        let shown = study
            .false_alarms
            .iter()
            .filter(|alarms| guards(&alarms.guard));
        let rows = shown.map(|alarms| {
            let rates = HARMLESS.map(|part| alarms.parts.get(&part).copied().unwrap_or_default());
            let cells = rates.map(|rate| percent(count(rate), rate.judged));
            std::iter::once(alarms.guard.clone()).chain(cells).collect()
        });
        Block::Table(Table {
            caption: caption.into(),
            columns,
            rows: rows.collect(),
        })
    };
    let any = |_: &str| true;
    let text = "Rounding noise moves a quarter of all elements of every matrix to the next number that their dtype can store; its \
                seeds are not those that the guards were calibrated with, and some windows are new to them too. Controls \
                are edits that cost next to nothing. Clean edits are the catalogue's, with the same parameters for every \
                model; how much they cost this one stands below.";
    vec![
        Block::Text(text.into()),
        table("Says damaged", &|rate| rate.damaged, &any),
        table("Says marked or damaged", &|rate| rate.marked, &any),
        table("Says changed or more", &|rate| rate.changed, &|guard| {
            !is_parity(guard)
        }),
        table(
            "Raises the flag by the reference's rules, without movement",
            &|rate| rate.flagged,
            &is_parity,
        ),
    ]
}

fn strength(study: &Study) -> Vec<Block> {
    let text = "Each change is made at several strengths, on several places or with several seeds. The curves say in what share of \
                subjects a guard says at least so much.";
    let shares = |level: Level, what: &str| {
        let charts = study
            .ladders
            .iter()
            .map(|ladder| shares(study, ladder, level, what));
        Block::Lines(charts.collect())
    };
    let cost = study.ladders.iter().map(cost);
    vec![
        Block::Text(text.into()),
        smallest(study),
        Block::Text("Share of subjects that are changed, marked or damaged:".into()),
        shares(Level::Changed, "changed or more"),
        Block::Text("Share of subjects that are marked or damaged:".into()),
        shares(Level::Marked, "marked or more"),
        Block::Text("What the same changes cost:".into()),
        Block::Lines(cost.collect()),
    ]
}

/// A level of a guard's answer, and where the weakest strength that reaches it stands.
type OfLevel = (&'static str, fn(&Smallest) -> Option<&Number>);

fn smallest(study: &Study) -> Block {
    let mut columns = vec![words("change"), words("at least")];
    columns.extend(study.guards.iter().map(|guard| figures(guard)));
    let shown = |number: Option<&Number>| number.map_or("-".to_owned(), Number::to_string);
    let rows = study.ladders.iter().flat_map(|ladder| {
        let levels: [OfLevel; 3] = [
            ("changed", |s| s.changed.as_ref()),
            ("marked", |s| s.marked.as_ref()),
            ("damaged", |s| s.damaged.as_ref()),
        ];
        levels.map(|(word, of)| {
            let cells = study
                .guards
                .iter()
                .map(|guard| shown(ladder.smallest.get(guard).and_then(of)));
            [ladder.title.clone(), word.to_owned()]
                .into_iter()
                .chain(cells)
                .collect()
        })
    });
    Block::Table(Table {
        caption: "The weakest strength from which on a guard says so of every subject".into(),
        columns,
        rows: rows.collect(),
    })
}

fn x(ladder: &LadderResult) -> Vec<String> {
    ladder
        .steps
        .iter()
        .map(|step| step.strength.to_string())
        .collect()
}

fn shares(study: &Study, ladder: &LadderResult, level: Level, what: &str) -> Lines {
    let series = study.guards.iter().enumerate().map(|(look, guard)| {
        let share = |step: &super::summary::Step| step.guards.get(guard)?.share(level);
        Series {
            name: guard.clone(),
            look,
            values: ladder.steps.iter().map(share).collect(),
        }
    });
    let subjects = ladder
        .steps
        .iter()
        .map(|step| step.subjects)
        .max()
        .unwrap_or(0);
    Lines {
        title: ladder.title.clone(),
        x_title: ladder.strength.clone(),
        y_title: format!("share {what}"),
        x: x(ladder),
        logarithmic: false,
        series: series.collect(),
        note: format!("{subjects} subjects at each strength; lines are drawn a little apart"),
    }
}

fn cost(ladder: &LadderResult) -> Lines {
    let series = |name: &str, look, of: fn(&super::summary::Step) -> Option<f64>| Series {
        name: name.into(),
        look,
        values: ladder.steps.iter().map(of).collect(),
    };
    Lines {
        title: ladder.title.clone(),
        x_title: ladder.strength.clone(),
        y_title: "nats per token".into(),
        x: x(ladder),
        logarithmic: true,
        series: vec![
            series("divergence (KL)", 0, |step| step.kl),
            series("|ln perplexity ratio|", 1, |step| {
                step.ratio.map(|ratio| ratio.ln().abs())
            }),
        ],
        note: "means over subjects".into(),
    }
}

/// The guards' own limits, for orientation: the divergence that `distribution-shift` calls damage, and the metric's ratio.
const KL_LIMIT: f64 = 0.05;
const RATIO_LIMIT: f64 = 1.10;

fn damage(study: &Study) -> Vec<Block> {
    let bars =
        |title: &str, limit: (f64, &str), value: fn(&Judgement) -> Option<f64>, note: &str| {
            let shown = study
                .scenarios
                .iter()
                .filter(|s| !matches!(s.part, Part::Ladder | Part::NoOp));
            let bar = |scenario: &Observed| Bar {
                label: scenario.id.clone(),
                value: scenario.first().and_then(value),
                shown: String::new(),
                missing: match scenario.inapplicable {
                    Some(_) => "not applicable".into(),
                    None => "no finite value".into(),
                },
            };
            Block::Bars(Bars {
                title: title.into(),
                logarithmic: true,
                bars: shown.map(bar).collect(),
                marks: vec![Mark {
                    value: limit.0,
                    label: limit.1.into(),
                }],
                note: note.into(),
            })
        };
    vec![
        bars(
            "Divergence from the baseline",
            (KL_LIMIT, "limit 0.05"),
            |run| run.kl,
            "Mean Kullback-Leibler divergence per scored token, nats; the limit is distribution-shift's, for the upper end of the interval.",
        ),
        bars(
            "Perplexity against the baseline's",
            (RATIO_LIMIT.ln(), "ratio 1.10"),
            |run| run.ratio.map(|ratio| ratio.ln().abs()),
            "Magnitude of the logarithm of the perplexity ratio on the final windows; the mark is the limit of tier balanced.",
        ),
        Block::Table(figures_table(study)),
    ]
}

fn figures_table(study: &Study) -> Table {
    let rows = study
        .scenarios
        .iter()
        .filter(|s| s.part != Part::Ladder)
        .flat_map(|scenario| {
            scenario.first().map(|run| {
                vec![
                    part_title(scenario.part).to_owned(),
                    name(scenario),
                    number(run.ratio, 5),
                    number(run.kl, 7),
                    number(run.same_top, 4),
                ]
            })
        });
    Table {
        caption: "The same in figures".into(),
        columns: vec![
            words("part"),
            words("scenario"),
            figures("ratio"),
            figures("KL"),
            figures("same top token"),
        ],
        rows: rows.collect(),
    }
}
