//! Judging again from stored tables alone, without a model.
//!
//! [`replay`] does it for one report, [`replay_pack`] for everything that a pack claims, in the order in which a run makes it:
//!
//! 1. settings (`run.json`), the guard components by digest, and the lock file (`evidence`);
//! 2. per model: what its facts say twice, the preset from the calibration tables, then per seed the baseline's report, then every subject's report with
//!    its probes (`models`, `evaluation`): window losses become perplexities, ratio and intervals, guards' verdicts, flags;
//! 3. per subject: what its edit planned and says of itself, and whether its changes fit the baseline (`changes`);
//! 4. scenario outcomes, the final verdict and its summaries, and what sealing added (`claims`).
//!
//! Each result is compared with the file that the pack holds, byte for byte; where they differ the places are listed
//! ([`Difference`]). Later steps build on what was derived, not on what was stated, so that a falsified report cannot carry a
//! falsified verdict.
//!
//! Guards run in the sandbox with nothing but their rows. What a replay must take as it stands are measurements: whoever
//! invents tables, with the facts and lists that they name (`crate::run::bound`), and lets guards judge them makes a pack that replays. [`Replay::taken`] lists these files. [`recompute`] measures again,
//! for who has the model.

mod changes;
mod claims;
mod components;
mod difference;
mod evaluation;
mod evidence;
mod models;
pub mod recompute;
mod stored;

use packhost_pack::files::Files;
use packhost_plugin::Engine;
use serde_json::{Value, json};

pub use crate::run::record::Form;

pub use difference::Difference;
pub use stored::{Stored, replay};

use difference::Findings;
use evidence::Evidence;

/// What a replay showed.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Where the pack's claims do not follow from its evidence, in the order of the steps.
    pub differences: Vec<Difference>,
    /// How many verdicts of guards were derived.
    pub judgements: usize,
    /// How many reports were derived, baselines' included.
    pub reports: usize,
    /// Files that were made again and have the same bytes.
    pub derived: Vec<String>,
    /// Files that were not made again: measurements, settings, components, and what is said for people.
    pub taken: Vec<String>,
    /// The form of the pack, by its own word; none where it has no settings that can be read.
    pub form: Option<Form>,
}

impl Replay {
    /// Whether everything that was derived is what the pack claims.
    pub fn agrees(&self) -> bool {
        self.differences.is_empty()
    }

    /// Demands a form: packs of an older one hold less, so their replay shows less. Without this a signer chooses how much his
    /// packs let anyone derive, though never unsaid.
    pub fn require_form(&mut self, least: u8) {
        if let Some(form) = self.form.filter(|form| form.number() < least) {
            let why = format!("states form {}; form {least} was demanded", form.number());
            self.differences.push(Difference {
                check_id: "replay.form",
                file: crate::run::paths::packed_record(),
                pointer: "/schema".into(),
                stated: String::new(),
                derived: why,
            });
        }
    }

    /// As the output of `pack verify --json` shows it.
    pub fn json(&self) -> Value {
        json!({
            "form": self.form.map(Form::number),
            "current_form": Form::CURRENT.number(),
            "lacks": self.form.map(Form::lacks).unwrap_or_default(),
            "status": if self.agrees() { "agrees" } else { "differs" },
            "reports": self.reports,
            "judgements": self.judgements,
            "derived": self.derived,
            "taken": self.taken,
            "differences": self.differences,
        })
    }
}

/// Derives everything that a pack claims from what it holds. `files` are those of a pack that was verified.
///
/// What cannot be derived is a difference too; so this never fails.
pub fn replay_pack(files: &Files, engine: &Engine) -> Replay {
    let mut findings = Findings::default();
    let (mut reports, mut judgements, mut form) = (0, 0, None);
    if let Some(evidence) = Evidence::read(files, engine, &mut findings) {
        form = Some(evidence.form);
        let mut editors = changes::Editors::new(&evidence, &mut findings);
        let derived: Vec<models::Derived> = evidence
            .models
            .iter()
            .map(|model| models::derive(&evidence, model, &mut editors, &mut findings))
            .collect();
        for model in &derived {
            reports += model.baselines.len() + model.subjects.len();
            judgements += model.judgements;
        }
        claims::derive(&evidence, &derived, &mut findings);
    }
    let Findings {
        differences,
        derived,
    } = findings;
    let taken = files.names().filter(|name| !derived.contains(*name));
    Replay {
        form,
        reports,
        judgements,
        taken: taken.map(str::to_owned).collect(),
        derived: derived.into_iter().collect(),
        differences,
    }
}
