//! Where things lie in a pack: control files, transport leftovers, reports, and what a report's path says about its scenario.

use std::collections::BTreeMap;

use serde_json::Value;

/// The checksum list.
pub const CHECKSUMS: &str = "checksums.sha256";
/// The manifest.
pub const MANIFEST: &str = "manifest.json";
/// The signature bundle.
pub const SIGNATURE: &str = "manifest.signature.json";
/// A report.
pub const REPORT: &str = "evaluation.report.json";
/// The runtime manifest beside each report.
pub const RUNTIME_MANIFEST: &str = "runtime.manifest.json";
/// The edit metadata beside a report.
pub const EDIT_METADATA: &str = "edit_metadata.json";
/// The scenario table.
pub const SCENARIOS: &str = "metadata/scenarios.json";
/// The page for people, drawn from the other files.
pub const PAGE: &str = "report.html";
/// The verdict in the package-native layout.
pub const NATIVE_VERDICT: &str = "results/final_verdict.json";
/// The verdict in layout v2.
pub const V2_VERDICT: &str = "results/verdicts/final_verdict.json";

/// Optional mirrors and what they mirror.
pub const MIRRORS: [(&str, &str); 3] = [
    ("metadata/manifest.json", MANIFEST),
    ("metadata/manifest.signature.json", SIGNATURE),
    ("metadata/checksums.sha256", CHECKSUMS),
];

/// Sidecars that the package-native layout takes from beside a report, in the order in which they are written.
pub const NATIVE_SIDECARS: [&str; 6] = [
    EDIT_METADATA,
    "deployable_artifact_validation.json",
    "backend_inventory.json",
    "memory_report.json",
    "load_smoke.json",
    "inference_smoke.json",
];

/// Whether a name is in the control set: never extra, never required in the list.
pub fn is_control(name: &str) -> bool {
    [CHECKSUMS, MANIFEST, SIGNATURE].contains(&name)
        || MIRRORS.iter().any(|(mirror, _)| *mirror == name)
}

/// Whether a name is a leftover of file managers and archivers that the format ignores.
pub fn is_transport(name: &str) -> bool {
    name.split('/').any(|part| part == "__MACOSX") || name.rsplit('/').next() == Some(".DS_Store")
}

/// Sorts report paths part by part, as the reference verifier does: `a/x` comes before `a-b/x`.
pub fn sort_by_parts(names: &mut [String]) {
    names.sort_by(|a, b| a.split('/').cmp(b.split('/')));
}

/// Whether `name` is `reports/**/evaluation.report.json`.
pub fn is_report(name: &str) -> bool {
    name.starts_with("reports/") && name.rsplit('/').next() == Some(REPORT)
}

/// The scenario that a report belongs to, by its path: `reports/<model>/<id>/...` or `reports/<model>/errors/<id>/...`.
pub fn scenario_of(report: &str) -> Option<&str> {
    let parts: Vec<&str> = report.strip_prefix("reports/")?.split('/').collect();
    match parts.as_slice() {
        [_, "errors", id, _, ..] => Some(id),
        [_, id, _, ..] => Some(id),
        _ => None,
    }
}

/// Whether a report is expected to fail nested verification: the table decides, and for unknown scenarios a folder named `errors`.
///
/// Only the part of the path below `reports/` is regarded, so that it does not matter where the pack lies.
pub fn expects_failure(report: &str, strictness: &BTreeMap<String, String>) -> bool {
    match scenario_of(report).and_then(|id| strictness.get(id)) {
        Some(strictness) => strictness == "must_fail",
        None => report.split('/').any(|part| part == "errors"),
    }
}

/// The strictness of each scenario in a table; whatever has another shape is left out.
pub fn strictness_table(scenarios: &Value) -> BTreeMap<String, String> {
    scenarios
        .get("scenarios")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|scenario| {
            Some((
                scenario.get("id")?.as_str()?.to_owned(),
                scenario.get("strictness")?.as_str()?.to_owned(),
            ))
        })
        .collect()
}

/// A model id as a folder name: ASCII lower case, `/` becomes `__`, a space `_`, and all but letters, digits, `_` and `-` is dropped.
///
/// Two ids can collide; callers refuse that before a run begins.
pub fn model_folder(model: &str) -> String {
    let mut name = String::new();
    for character in model
        .chars()
        .map(|character| character.to_ascii_lowercase())
    {
        match character {
            '/' => name.push_str("__"),
            ' ' => name.push('_'),
            'a'..='z' | '0'..='9' | '_' | '-' => name.push(character),
            _ => {}
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_by_path() {
        assert_eq!(
            scenario_of("reports/m/s/run_1/evaluation.report.json"),
            Some("s")
        );
        assert_eq!(scenario_of("reports/m/s/evaluation.report.json"), Some("s"));
        assert_eq!(
            scenario_of("reports/m/errors/e/evaluation.report.json"),
            Some("e")
        );
        assert_eq!(
            scenario_of("reports/m/errors/evaluation.report.json"),
            Some("errors")
        );
        assert_eq!(
            scenario_of("reports/report-001/evaluation.report.json"),
            None
        );
        let table = BTreeMap::from([
            ("e".to_owned(), "must_detect".to_owned()),
            ("s".to_owned(), "must_fail".to_owned()),
        ]);
        assert!(!expects_failure(
            "reports/m/errors/e/evaluation.report.json",
            &table
        ));
        assert!(expects_failure(
            "reports/m/errors/x/evaluation.report.json",
            &table
        ));
        assert!(expects_failure(
            "reports/m/s/run_1/evaluation.report.json",
            &table
        ));
        assert!(!expects_failure(
            "reports/m/t/run_1/evaluation.report.json",
            &table
        ));
    }

    #[test]
    fn model_folders() {
        assert_eq!(
            model_folder("mistralai/Mistral-7B-v0.1"),
            "mistralai__mistral-7b-v01"
        );
        assert_eq!(model_folder("A B"), "a_b");
    }

    #[test]
    fn order_is_by_parts() {
        let mut names = vec!["a-b/x".to_owned(), "a/x".to_owned()];
        sort_by_parts(&mut names);
        assert_eq!(names, ["a/x", "a-b/x"]);
    }
}
