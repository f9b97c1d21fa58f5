//! Sums over a study: false alarms by guard, and how much of a change each guard needs.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Number;

use super::file::{Part, StudyFile};
use super::observe::{Level, Observed};

/// What one guard says of changes that harm nothing.
#[derive(Debug, PartialEq, Serialize)]
pub struct FalseAlarms {
    pub guard: String,
    /// By part of the study.
    pub parts: BTreeMap<Part, Rate>,
}

/// How often a guard says how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Rate {
    /// Evaluations that it judged.
    pub judged: usize,
    /// At least changed, at least marked, damaged: each includes what follows.
    pub changed: usize,
    pub marked: usize,
    pub damaged: usize,
    /// Evaluations in which the reference's rules raise the guard's flag, without the movement rule.
    pub flagged: usize,
}

impl Rate {
    /// How many evaluations reach a level.
    pub fn at(&self, level: Level) -> usize {
        match level {
            Level::Silent => self.judged,
            Level::Changed => self.changed,
            Level::Marked => self.marked,
            Level::Damaged => self.damaged,
        }
    }

    /// The same as a share; none where nothing was judged.
    pub fn share(&self, level: Level) -> Option<f64> {
        (self.judged > 0).then(|| self.at(level) as f64 / self.judged as f64)
    }
}

/// Parts whose changes harm nothing, or little.
pub const HARMLESS: [Part; 4] = [Part::NoOp, Part::Perturbation, Part::Control, Part::Clean];

/// A ladder with what was seen on each step.
#[derive(Debug, PartialEq, Serialize)]
pub struct LadderResult {
    pub id: String,
    pub title: String,
    pub strength: String,
    pub steps: Vec<Step>,
    /// By guard: the weakest strength from which on it says so every time.
    pub smallest: BTreeMap<String, Smallest>,
}

/// One strength.
#[derive(Debug, PartialEq, Serialize)]
pub struct Step {
    pub strength: Number,
    pub subjects: usize,
    /// Means over subjects.
    pub kl: Option<f64>,
    pub ratio: Option<f64>,
    /// By guard.
    pub guards: BTreeMap<String, Rate>,
}

/// The weakest strength from which on a guard is sure; none where it never is.
#[derive(Debug, PartialEq, Serialize)]
pub struct Smallest {
    /// Something changed.
    pub changed: Option<Number>,
    /// Worth a look or worse.
    pub marked: Option<Number>,
    /// Damage.
    pub damaged: Option<Number>,
}

/// How often each guard speaks up about harmless changes.
pub fn false_alarms(scenarios: &[Observed], guards: &[String]) -> Vec<FalseAlarms> {
    let of_guard = |guard: &String| {
        let of_part = |part: Part| {
            let scenarios = scenarios.iter().filter(|scenario| scenario.part == part);
            (part, rate(scenarios, guard))
        };
        FalseAlarms {
            guard: guard.clone(),
            parts: HARMLESS.map(of_part).into(),
        }
    };
    guards.iter().map(of_guard).collect()
}

fn rate<'a>(scenarios: impl Iterator<Item = &'a Observed>, guard: &str) -> Rate {
    let mut rate = Rate::default();
    for answer in scenarios
        .flat_map(|scenario| &scenario.runs)
        .filter_map(|run| run.guards.get(guard))
    {
        let Some(level) = answer.level else {
            continue;
        };
        rate.judged += 1;
        rate.changed += usize::from(level >= Level::Changed);
        rate.marked += usize::from(level >= Level::Marked);
        rate.damaged += usize::from(level >= Level::Damaged);
        rate.flagged += usize::from(answer.flag == Some(true));
    }
    rate
}

/// Every ladder of the study file.
pub fn ladders(file: &StudyFile, scenarios: &[Observed], guards: &[String]) -> Vec<LadderResult> {
    let ladder = |(index, ladder): (usize, &super::file::Ladder)| {
        let step = |(number, strength): (usize, &Number)| {
            let here = || {
                scenarios
                    .iter()
                    .filter(move |s| s.step == Some((index, number)))
            };
            let mean = |what: fn(&Observed) -> Option<f64>| {
                let values: Vec<f64> = here().filter_map(what).collect();
                (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
            };
            Step {
                strength: strength.clone(),
                subjects: here().filter(|s| !s.runs.is_empty()).count(),
                kl: mean(|s| s.first()?.kl),
                ratio: mean(|s| s.first()?.ratio),
                guards: guards
                    .iter()
                    .map(|guard| (guard.clone(), rate(here(), guard)))
                    .collect(),
            }
        };
        let steps: Vec<Step> = ladder.strengths.iter().enumerate().map(step).collect();
        let smallest = guards.iter().map(|guard| {
            let at = |level| smallest(&steps, guard, level);
            let smallest = Smallest {
                changed: at(Level::Changed),
                marked: at(Level::Marked),
                damaged: at(Level::Damaged),
            };
            (guard.clone(), smallest)
        });
        LadderResult {
            id: ladder.id.clone(),
            title: ladder.title.clone(),
            strength: ladder.strength.clone(),
            smallest: smallest.collect(),
            steps,
        }
    };
    file.ladders.iter().enumerate().map(ladder).collect()
}

/// The weakest strength from which on every subject reaches `level`. Strengths without subjects say nothing.
fn smallest(steps: &[Step], guard: &str, level: Level) -> Option<Number> {
    let sure = |step: &&Step| {
        let rate = step.guards.get(guard).copied().unwrap_or_default();
        step.subjects == 0 || (rate.judged == step.subjects && rate.at(level) == rate.judged)
    };
    let from = steps
        .iter()
        .rev()
        .take_while(sure)
        .filter(|step| step.subjects > 0);
    from.last().map(|step| step.strength.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::file::tests::file;
    use crate::study::observe::{Answer, Judgement};

    /// A ladder's subject of which the one guard says `level`.
    fn seen(step: (usize, usize), level: Option<Level>) -> Observed {
        let answer = Answer {
            level,
            flag: Some(level > Some(Level::Changed)),
            ..Answer::default()
        };
        Observed {
            id: String::new(),
            part: Part::Ladder,
            change: String::new(),
            step: Some(step),
            inapplicable: None,
            runs: vec![Judgement {
                run: 1,
                seed: 42,
                ratio: Some(1.0),
                kl: Some(0.5),
                same_top: None,
                guards: BTreeMap::from([("g".to_owned(), answer)]),
            }],
        }
    }

    #[test]
    fn the_smallest_strength_is_sure_and_stays_sure() {
        let levels = [
            Level::Changed,
            Level::Marked,
            Level::Damaged,
            Level::Damaged,
        ]
        .map(Some);
        let places = [(0, 0), (0, 0), (0, 1), (0, 1)];
        let seen: Vec<Observed> = places
            .into_iter()
            .zip(levels)
            .map(|(place, level)| seen(place, level))
            .collect();
        let ladders = ladders(&file(), &seen, &["g".into()]);
        let smallest = &ladders[0].smallest["g"];
        let strength = |text: &str| serde_json::from_str::<Number>(text).ok();
        assert_eq!(smallest.changed, strength("0.01"));
        assert_eq!(smallest.marked, strength("0.3"));
        assert_eq!(smallest.damaged, strength("0.3"));
        assert_eq!(ladders[0].steps[0].guards["g"].marked, 1);
        assert_eq!(ladders[0].steps[1].kl, Some(0.5));
        // No subject at all is no proof.
        assert_eq!(ladders[1].smallest["g"].changed, None);
    }

    #[test]
    fn a_guard_that_could_not_judge_is_not_sure() {
        let seen = [seen((0, 1), Some(Level::Damaged)), seen((0, 1), None)];
        assert_eq!(
            ladders(&file(), &seen, &["g".into()])[0].smallest["g"].damaged,
            None
        );
    }

    #[test]
    fn alarms_are_counted_by_part() {
        let mut noise = seen((0, 0), Some(Level::Changed));
        noise.part = Part::Perturbation;
        let alarms = false_alarms(&[noise.clone(), noise], &["g".into()]);
        let rate = alarms[0].parts[&Part::Perturbation];
        assert_eq!(
            (rate.judged, rate.changed, rate.marked, rate.flagged),
            (2, 2, 0, 0)
        );
        assert_eq!(rate.share(Level::Changed), Some(1.0));
        assert_eq!(alarms[0].parts[&Part::Clean].share(Level::Changed), None);
    }
}
