//! What of a pack can be measured again, and which of it an auditor's choice falls on.

use packhost_measure::canonical::sha256_hex;

use super::super::evidence::Evidence;
use crate::graph::{Graph, TaskKind};
use crate::run::paths;
use crate::scenarios::Scenario;

/// One measurement of a pack: of a subject, of the perturbed model, or of the unedited one, on the windows of one seed. The
/// baseline's own table on these windows is measured with each.
#[derive(Clone, Copy)]
pub struct Unit<'a> {
    pub model: usize,
    pub seed: u64,
    pub what: What<'a>,
}

/// Of what.
#[derive(Clone, Copy)]
pub enum What<'a> {
    /// The unedited model as the subject of itself.
    Itself,
    /// The model with rounding noise.
    Perturbation,
    /// A scenario's subject.
    Subject { scenario: &'a Scenario, run: u32 },
}

impl Unit<'_> {
    /// What it is called: the file of the pack that holds its table.
    pub fn table(&self, folder: &str) -> String {
        paths::packed_table(&match self.what {
            What::Itself => paths::baseline_subject_table(folder, self.seed),
            What::Perturbation => paths::perturbation_table(folder, self.seed),
            What::Subject { scenario, run } => paths::subject_table(folder, &scenario.id, run),
        })
    }
}

/// Everything that can be measured again, in the order of the run. Calibration runs on windows that no report lists cannot.
pub fn units<'a>(evidence: &'a Evidence<'_>) -> Vec<Unit<'a>> {
    let mut units = Vec::new();
    for (model, facts) in evidence.models.iter().enumerate() {
        let folder = &facts.record.folder;
        let graph = Graph::generate(
            std::slice::from_ref(folder),
            &evidence.manifest.scenarios,
            &evidence.record.counts,
        );
        for task in &graph.tasks {
            let (seed, all) = match task.kind {
                TaskKind::BaselineReport { seed } => {
                    (seed, [Some(What::Itself), Some(What::Perturbation)])
                }
                TaskKind::Evaluate {
                    scenario,
                    run,
                    seed,
                } => {
                    let scenario = &evidence.manifest.scenarios[scenario];
                    (seed, [Some(What::Subject { scenario, run }), None])
                }
                _ => continue,
            };
            let named = all.into_iter().flatten();
            let named = named.map(|what| Unit { model, seed, what });
            units.extend(named.filter(|unit| evidence.files.has(&unit.table(folder))));
        }
    }
    units
}

/// `count` of them, chosen by the pack's manifest and the auditor's seed, in the order of the run but by model and seed.
pub fn draw<'a>(
    evidence: &Evidence<'_>,
    units: Vec<Unit<'a>>,
    count: usize,
    seed: &str,
) -> Vec<Unit<'a>> {
    let manifest = sha256_hex(evidence.files.manifest());
    let folder = |unit: &Unit<'_>| evidence.models[unit.model].record.folder.as_str();
    let lot = |unit: &Unit<'_>| {
        sha256_hex(format!("{manifest}\n{seed}\n{}", unit.table(folder(unit))).as_bytes())
    };
    let mut drawn: Vec<(String, usize, Unit<'a>)> = units
        .into_iter()
        .enumerate()
        .map(|(place, unit)| (lot(&unit), place, unit))
        .collect();
    drawn.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    drawn.truncate(count);
    drawn.sort_by_key(|(_, place, unit)| (unit.model, unit.seed, *place));
    drawn.into_iter().map(|(_, _, unit)| unit).collect()
}
