//! The task graph of one run: what has to be done, in which order, for every model and scenario.
//!
//! The graph is a pure function of the run's description; it is always generated whole, so that a later command on the same
//! run directory (`--resume`) finds the same tasks under the same names. Nothing here runs anything.
//!
//! ```text
//! SETUP_BASELINE
//!  ├─ CALIBRATION_RUN x N ── GENERATE_PRESET ────────────────┐
//!  │                          BASELINE_REPORT(seed of run r) ─┤
//!  ├─ CREATE_EDIT(e)  ───────────── evaluate_EDIT(e, run r) ─┴─ CLEANUP_EDIT(e)
//!  └─ CREATE_ERROR(t) ───────────── evaluate_ERROR(t, run r) ── CLEANUP_ERROR(t)
//! VERDICT (all models) ── PACK
//! ```

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::scenarios::{Category, Scenario};

/// Position of a task in [`Graph::tasks`]; also its creation order.
pub type TaskIndex = usize;

/// What a task does. Scenarios are positions in the run's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TaskKind {
    /// Open the checkpoint, check it, draw nothing yet.
    SetupBaseline,
    /// Measure the unedited model on the windows of `seed`.
    CalibrationRun { run: u32, seed: u64 },
    /// Fit guard policies to the calibration runs.
    GeneratePreset,
    /// Judge the unedited model against itself on the windows of `seed`, which are measured here if no calibration run has
    /// that seed.
    BaselineReport { seed: u64 },
    /// Make the subject of a scenario.
    Create { scenario: usize },
    /// Measure and judge it on the windows of `seed`.
    Evaluate {
        scenario: usize,
        run: u32,
        seed: u64,
    },
    /// Drop the subject.
    Cleanup { scenario: usize },
    /// Judge the whole run.
    Verdict,
    /// Seal the evidence.
    Pack,
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Task {
    /// `<model>_<TYPE>_<seq>_<hex>`, unique and the same in every generation of the same run.
    pub id: String,
    pub kind: TaskKind,
    /// Position of the model; none for the tasks of the whole run.
    pub model: Option<usize>,
    /// Tasks that must be complete before.
    pub dependencies: Vec<TaskIndex>,
    /// Base priority, 0 to 100, larger first.
    pub priority: u32,
}

/// How often things are done.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Calibration runs; 0 when a preset is given.
    pub calibration_runs: u32,
    pub clean_runs: u32,
    pub stress_runs: u32,
    pub error_runs: u32,
    /// Seed of the first run; run r uses `seed + r - 1`.
    pub seed: u64,
}

impl Counts {
    /// Runs of a scenario.
    pub fn of(&self, scenario: &Scenario) -> u32 {
        match scenario.category {
            Category::Clean => self.clean_runs,
            Category::Stress => self.stress_runs,
            Category::ErrorInjection => self.error_runs,
        }
    }

    /// Whether a calibration run draws its windows by `seed`.
    pub fn calibrates(&self, seed: u64) -> bool {
        (self.seed..self.seed + u64::from(self.calibration_runs)).contains(&seed)
    }
}

/// All tasks of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    pub tasks: Vec<Task>,
}

impl Graph {
    /// Generates the graph. `models` are folder names.
    pub fn generate(models: &[String], scenarios: &[Scenario], counts: &Counts) -> Self {
        let mut graph = Self { tasks: Vec::new() };
        let mut evaluations = Vec::new();
        for (index, model) in models.iter().enumerate() {
            evaluations.extend(
                ModelGraph {
                    graph: &mut graph,
                    model,
                    index,
                    counts,
                }
                .generate(scenarios),
            );
        }
        let verdict = graph.push("run", None, TaskKind::Verdict, evaluations);
        graph.push("run", None, TaskKind::Pack, vec![verdict]);
        graph
    }

    fn push(
        &mut self,
        owner: &str,
        model: Option<usize>,
        kind: TaskKind,
        dependencies: Vec<TaskIndex>,
    ) -> TaskIndex {
        let index = self.tasks.len();
        let type_name = kind.type_name();
        let digest = Sha256::digest(format!("{owner}/{kind:?}"));
        let id = format!(
            "{owner}_{type_name}_{:03}_{:02x}{:02x}",
            index + 1,
            digest[0],
            digest[1]
        );
        let priority = kind.priority();
        self.tasks.push(Task {
            id,
            kind,
            model,
            dependencies,
            priority,
        });
        index
    }
}

/// Generation for one model.
struct ModelGraph<'a> {
    graph: &'a mut Graph,
    model: &'a str,
    index: usize,
    counts: &'a Counts,
}

impl ModelGraph<'_> {
    fn generate(mut self, scenarios: &[Scenario]) -> Vec<TaskIndex> {
        let setup = self.push(TaskKind::SetupBaseline, vec![]);
        let seed = |run: u32| self.counts.seed + u64::from(run) - 1;
        let most_runs = scenarios
            .iter()
            .map(|s| self.counts.of(s))
            .max()
            .unwrap_or(0);
        let mut calibration = Vec::new();
        for run in 1..=self.counts.calibration_runs {
            let kind = TaskKind::CalibrationRun {
                run,
                seed: seed(run),
            };
            calibration.push(self.push(kind, vec![setup]));
        }
        // The policies that judge: without a preset they are there from the beginning.
        let policies = match calibration.is_empty() {
            true => setup,
            false => self.push(TaskKind::GeneratePreset, calibration),
        };
        let mut baselines = Vec::new();
        for run in 1..=most_runs {
            baselines.push(self.push(TaskKind::BaselineReport { seed: seed(run) }, vec![policies]));
        }
        let in_order = [Category::Clean, Category::Stress, Category::ErrorInjection]
            .into_iter()
            .flat_map(|category| {
                scenarios
                    .iter()
                    .enumerate()
                    .filter(move |(_, s)| s.category == category)
            });
        in_order
            .flat_map(|(index, scenario)| self.scenario(index, scenario, setup, &baselines))
            .collect()
    }

    fn scenario(
        &mut self,
        scenario: usize,
        description: &Scenario,
        setup: TaskIndex,
        baselines: &[TaskIndex],
    ) -> Vec<TaskIndex> {
        let runs = self.counts.of(description);
        if runs == 0 {
            return Vec::new();
        }
        let create = self.push(TaskKind::Create { scenario }, vec![setup]);
        let evaluations: Vec<_> = (1..=runs)
            .map(|run| {
                let seed = self.counts.seed + u64::from(run) - 1;
                let needs = vec![create, baselines[run as usize - 1]];
                self.push(
                    TaskKind::Evaluate {
                        scenario,
                        run,
                        seed,
                    },
                    needs,
                )
            })
            .collect();
        self.push(TaskKind::Cleanup { scenario }, evaluations.clone());
        evaluations
    }

    fn push(&mut self, kind: TaskKind, dependencies: Vec<TaskIndex>) -> TaskIndex {
        self.graph
            .push(self.model, Some(self.index), kind, dependencies)
    }
}

impl TaskKind {
    /// The type's name in ids, records and reports.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::SetupBaseline => "SETUP_BASELINE",
            Self::CalibrationRun { .. } => "CALIBRATION_RUN",
            Self::GeneratePreset => "GENERATE_PRESET",
            Self::BaselineReport { .. } => "SETUP_EVALUATE_BASELINE_REPORT",
            Self::Create { .. } => "CREATE_SUBJECT",
            Self::Evaluate { .. } => "EVALUATE_SUBJECT",
            Self::Cleanup { .. } => "CLEANUP_SUBJECT",
            Self::Verdict => "VERDICT",
            Self::Pack => "PACK",
        }
    }

    /// Base priority. Evaluating comes before creating the next subject and dropping before both, so that few subjects
    /// exist at once.
    fn priority(&self) -> u32 {
        match self {
            Self::SetupBaseline => 90,
            Self::CalibrationRun { .. } => 85,
            Self::Cleanup { .. } => 80,
            Self::GeneratePreset => 75,
            Self::Evaluate { .. } => 74,
            Self::BaselineReport { .. } => 73,
            Self::Create { .. } => 70,
            Self::Verdict => 60,
            Self::Pack => 50,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn scenario(id: &str, category: &str) -> Scenario {
        let generation = match category {
            "error_injection" => serde_json::json!({"kind": "error", "error_type": id}),
            _ => {
                serde_json::json!({"kind": "edit", "edit_spec": "quant_rtn:8:all", "version": category})
            }
        };
        serde_json::from_value(serde_json::json!({
            "id": id, "category": category, "failure_class": "x", "strictness": "informational", "intent": "x",
            "primary_guard": "primary_metric", "generation": generation,
        }))
        .expect("valid scenario")
    }

    fn counts() -> Counts {
        Counts {
            calibration_runs: 2,
            clean_runs: 3,
            stress_runs: 1,
            error_runs: 1,
            seed: 42,
        }
    }

    #[test]
    fn graph_has_the_reference_shape() {
        let scenarios = [
            scenario("fault", "error_injection"),
            scenario("clean", "clean"),
        ];
        let graph = Graph::generate(&["m".into()], &scenarios, &counts());
        let names: Vec<_> = graph
            .tasks
            .iter()
            .map(|task| task.kind.type_name())
            .collect();
        assert_eq!(
            names,
            [
                "SETUP_BASELINE",
                "CALIBRATION_RUN",
                "CALIBRATION_RUN",
                "GENERATE_PRESET",
                "SETUP_EVALUATE_BASELINE_REPORT",
                "SETUP_EVALUATE_BASELINE_REPORT",
                "SETUP_EVALUATE_BASELINE_REPORT",
                "CREATE_SUBJECT",
                "EVALUATE_SUBJECT",
                "EVALUATE_SUBJECT",
                "EVALUATE_SUBJECT",
                "CLEANUP_SUBJECT",
                "CREATE_SUBJECT",
                "EVALUATE_SUBJECT",
                "CLEANUP_SUBJECT",
                "VERDICT",
                "PACK",
            ]
        );
        assert_eq!(
            graph.tasks[10].kind,
            TaskKind::Evaluate {
                scenario: 1,
                run: 3,
                seed: 44
            }
        );
        assert_eq!(graph.tasks[10].dependencies, [7, 6]);
        assert_eq!(graph.tasks[15].dependencies, [8, 9, 10, 13]);
    }

    #[test]
    fn dependencies_come_before_and_ids_repeat() {
        let scenarios = [
            scenario("a", "clean"),
            scenario("b", "stress"),
            scenario("c", "error_injection"),
        ];
        let models = ["m".to_string(), "n".to_string()];
        let graph = Graph::generate(&models, &scenarios, &counts());
        for (index, task) in graph.tasks.iter().enumerate() {
            assert!(
                task.dependencies
                    .iter()
                    .all(|&dependency| dependency < index),
                "{}",
                task.id
            );
        }
        assert_eq!(graph, Graph::generate(&models, &scenarios, &counts()));
        let mut ids: Vec<_> = graph.tasks.iter().map(|task| &task.id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), graph.tasks.len());
    }

    #[test]
    fn every_seed_has_a_baseline_report_with_and_without_calibration() {
        let none = Counts {
            calibration_runs: 0,
            ..counts()
        };
        let graph = Graph::generate(&["m".into()], &[scenario("a", "clean")], &none);
        let reports = graph
            .tasks
            .iter()
            .filter(|task| matches!(task.kind, TaskKind::BaselineReport { .. }));
        assert_eq!(reports.count(), 3);
        assert!(
            !graph
                .tasks
                .iter()
                .any(|task| task.kind == TaskKind::GeneratePreset)
        );
    }
}
