//! The task about the whole run: the verdict over every report in its directory.

use std::collections::BTreeMap;
use std::path::Path;

use packhost_pack::verdict::{self, FinalVerdict, JudgeOptions, RecordInput};
use serde_json::Value;

use super::driver::Done;
use super::paths;
use super::work::Work;
use crate::graph::TaskKind;
use crate::{Error, Result};

/// An evaluation report as it lies in the run directory.
struct StoredReport {
    model: String,
    scenario: String,
    run: u32,
    seed: u64,
    /// Relative to the run directory.
    path: String,
    value: Value,
    rmt_probe: Option<Value>,
    ve_probe: Option<Value>,
}

impl Work<'_> {
    pub(super) fn verdict(&self) -> Result<Done> {
        let verdict = self.judge()?;
        let mut outputs = BTreeMap::new();
        for (name, bytes) in verdict::files(&verdict) {
            let file = Path::new(&name)
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or(&name);
            self.put(&mut outputs, &format!("reports/{file}"), &bytes)?;
        }
        let failed: Vec<_> = verdict
            .failed_requirements
            .iter()
            .map(|failed| failed.id)
            .collect();
        let why = if failed.is_empty() {
            String::new()
        } else {
            format!(" ({})", failed.join(", "))
        };
        Ok(Done {
            summary: format!("verdict {}{why}", verdict.word()),
            outputs,
        })
    }

    /// The verdict, from the reports in the run directory.
    pub fn judge(&self) -> Result<FinalVerdict> {
        let table = serde_json::to_value(&self.request.manifest).unwrap_or_default();
        let scenarios = verdict::scenarios(&table)?;
        let models: Vec<String> = self
            .models
            .iter()
            .map(|model| model.request.folder.clone())
            .collect();
        let reports = self.reports()?;
        let baselines = self.baseline_reports()?;
        let inputs: Vec<RecordInput<'_>> = reports
            .iter()
            .map(|report| RecordInput {
                model: &report.model,
                scenario: &report.scenario,
                run: report.run,
                path: &report.path,
                report: &report.value,
                baseline: baselines.get(&(report.model.as_str(), report.seed)),
                rmt_probe: report.rmt_probe.as_ref(),
                ve_probe: report.ve_probe.as_ref(),
            })
            .collect();
        let options = JudgeOptions {
            timestamp: &self.began,
            manifest_path: "state/scenarios.json",
        };
        Ok(verdict::judge_run(&scenarios, &models, &inputs, options)?)
    }

    /// Whether the run may not be sealed: a PASS is required, and there is a verdict of FAIL.
    pub(super) fn withheld(&self) -> bool {
        self.request.pack.require_pass && self.judge().is_ok_and(|verdict| !verdict.pass)
    }

    /// Every evaluation report of the run, in task order.
    fn reports(&self) -> Result<Vec<StoredReport>> {
        let mut reports = Vec::new();
        for task in &self.graph.tasks {
            let TaskKind::Evaluate {
                scenario,
                run,
                seed,
            } = task.kind
            else {
                continue;
            };
            let (model, scenario) = (&self.model(task).request.folder, self.scenario(scenario));
            let folder = paths::report_dir(model, scenario, run);
            let path = format!("{folder}/evaluation.report.json");
            // A scenario that its tuned entry skips has no report.
            if !self.dir.path(&path).is_file() {
                continue;
            }
            let [rmt_probe, ve_probe] =
                paths::PROBES.map(|(_, name)| self.probe(&format!("{folder}/{name}")));
            reports.push(StoredReport {
                rmt_probe: rmt_probe?,
                ve_probe: ve_probe?,
                model: model.clone(),
                scenario: scenario.id.clone(),
                run,
                seed,
                value: self.read_json(&path)?,
                path,
            });
        }
        Ok(reports)
    }

    /// The reports of the unedited models against themselves, by model folder and seed.
    fn baseline_reports(&self) -> Result<BTreeMap<(&str, u64), Value>> {
        let mut reports = BTreeMap::new();
        for task in &self.graph.tasks {
            let TaskKind::BaselineReport { seed } = task.kind else {
                continue;
            };
            let model = self.model(task).request.folder.as_str();
            let value = self.read_json(&paths::baseline_report(model, seed))?;
            reports.insert((model, seed), value);
        }
        Ok(reports)
    }

    /// A probe's answer, where there is one.
    fn probe(&self, path: &str) -> Result<Option<Value>> {
        let there = self.dir.path(path).is_file();
        there.then(|| self.read_json(path)).transpose()
    }

    fn read_json(&self, path: &str) -> Result<Value> {
        serde_json::from_slice(&self.dir.read(path)?)
            .map_err(|error| Error::io("read", &self.dir.path(path), error.into()))
    }
}
