//! Where the files of a run lie, relative to its directory. One function per kind, so that writers and readers agree.

use crate::scenarios::{Generation, Scenario};

/// Facts about a model, its shards' digests among them.
pub fn profile(model: &str) -> String {
    format!("{model}/profile.json")
}

/// Measurements of the unedited model on the windows of `seed`.
pub fn baseline_table(model: &str, seed: u64) -> String {
    format!("{model}/tables/baseline/seed_{seed}.json")
}

/// The unedited model judged against itself on the windows of `seed`.
pub fn baseline_report(model: &str, seed: u64) -> String {
    format!("{model}/baseline_reports/seed_{seed}/baseline_report.json")
}

/// Measurements of a harmless perturbation of the model on the windows of `seed`.
pub fn perturbation_table(model: &str, seed: u64) -> String {
    format!("{model}/tables/perturbation/seed_{seed}.json")
}

/// What was measured of the baseline while a subject was judged: further rounds and probes.
pub fn rounds_table(model: &str, scenario: &str, run: u32) -> String {
    format!("{model}/tables/{scenario}/run_{run}.baseline_rounds.json")
}

/// The same while the unedited model was judged against itself.
pub fn baseline_rounds_table(model: &str, seed: u64) -> String {
    format!("{model}/tables/baseline/seed_{seed}.baseline_rounds.json")
}

/// The unedited model's measurements as the subject of itself.
pub fn baseline_subject_table(model: &str, seed: u64) -> String {
    format!("{model}/tables/baseline/seed_{seed}.subject.json")
}

/// Answers of the probes, beside a report; by guard.
pub const PROBES: [(&str, &str); 2] = [("rmt", "rmt_probe.json"), ("variance", "ve_probe.json")];

/// Measurements of a subject.
pub fn subject_table(model: &str, scenario: &str, run: u32) -> String {
    format!("{model}/tables/{scenario}/run_{run}.json")
}

/// What one calibration run found.
pub fn calibration(model: &str, run: u32) -> String {
    format!("{model}/reports/calibration/run_{run}/report.json")
}

/// Intermediate figures of preset derivation.
pub fn calibration_statistics(model: &str) -> String {
    format!("{model}/reports/calibration/calibration_stats.json")
}

/// The preset.
pub fn preset(model: &str) -> String {
    format!("presets/calibrated_preset_{model}.json")
}

/// The preset's variant for one edit type.
pub fn preset_variant(model: &str, edit_type: &str) -> String {
    format!("presets/calibrated_preset_{model}__{edit_type}.json")
}

/// The same preset as YAML.
pub fn in_yaml(preset: &str) -> String {
    format!("{}.yaml", preset.trim_end_matches(".json"))
}

/// A subject's folder below `<model>/`.
pub fn subject(model: &str, scenario: &Scenario) -> String {
    match scenario.generation {
        Generation::Edit { .. } | Generation::Perturbation { .. } => {
            format!("{model}/models/{}", scenario.id)
        }
        Generation::Error { .. } => format!("{model}/models/error_{}", scenario.id),
    }
}

/// Why a subject could not be made of this model, in a study.
pub fn inapplicable(model: &str, scenario: &Scenario) -> String {
    format!("{model}/subjects/{}.inapplicable.txt", scenario.id)
}

/// What the plugin said about a subject.
pub fn metadata(model: &str, scenario: &Scenario) -> String {
    format!("{model}/subjects/{}.json", scenario.id)
}

/// Which tensors a subject changed.
pub fn changes(model: &str, scenario: &Scenario) -> String {
    format!("{model}/subjects/{}.changes.json", scenario.id)
}

/// Name of that file beside a report and in a checkpoint.
pub fn metadata_name(scenario: &Scenario) -> &'static str {
    match scenario.generation {
        Generation::Edit { .. } | Generation::Perturbation { .. } => "edit_metadata.json",
        Generation::Error { .. } => "error_metadata.json",
    }
}

/// Folder of an evaluation's report.
pub fn report_dir(model: &str, scenario: &Scenario, run: u32) -> String {
    let lane = match scenario.generation {
        Generation::Edit { .. } | Generation::Perturbation { .. } => "",
        Generation::Error { .. } => "errors/",
    };
    format!("{model}/reports/{lane}{}/run_{run}", scenario.id)
}

/// The same folder in a pack.
pub fn packed_report_dir(model: &str, scenario: &Scenario, run: u32) -> String {
    let in_run = report_dir(model, scenario, run);
    format!(
        "reports/{model}/{}",
        in_run.trim_start_matches(&format!("{model}/reports/"))
    )
}

/// Folder of our own files in a pack.
const OWN: &str = "metadata/packhost";

/// Where a file of ours lies in a pack.
pub fn packed(path: &str) -> String {
    format!("{OWN}/{path}")
}

/// The run's settings.
pub fn packed_record() -> String {
    packed("run.json")
}

/// The tuned parameters of edits.
pub const PACKED_TUNED: &str = "metadata/tuned_edit_params.json";

/// Where a table lies in a pack.
pub fn packed_table(path: &str) -> String {
    packed(&format!("tables/{}", path.replacen("/tables", "", 1)))
}

/// Facts about a model.
pub fn packed_profile(model: &str) -> String {
    packed(&format!("models/{model}.json"))
}

/// The report of an unedited model.
pub fn packed_baseline_report(model: &str, seed: u64) -> String {
    packed(&format!("baseline_reports/{model}/seed_{seed}.json"))
}

/// What a preset was derived from.
pub fn packed_statistics(model: &str) -> String {
    packed(&format!("presets/calibration_stats_{model}.json"))
}

/// A guard component.
pub fn packed_component(sha256: &str) -> String {
    packed(&format!("components/{sha256}.wasm"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::tests::scenario;

    #[test]
    fn packs_move_reports_to_the_front() {
        assert_eq!(
            packed_report_dir("m", &scenario("e", "clean"), 2),
            "reports/m/e/run_2"
        );
        assert_eq!(
            packed_report_dir("m", &scenario("f", "error_injection"), 1),
            "reports/m/errors/f/run_1"
        );
    }
}
