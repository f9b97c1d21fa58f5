//! Which task runs next: a pure function of the graph, the tasks' states and the memory that is left.
//!
//! No clock, thread or file is touched here, so every rule can be tested by a table. A durable queue with several workers
//! can take this function's place without the executors noticing.

use serde::Serialize;

use crate::graph::{Graph, TaskIndex};

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waiting for dependencies.
    Pending,
    /// Free to run.
    Ready,
    Running,
    Completed,
    Failed,
    /// A dependency failed, so this can never run.
    Blocked,
}

/// The states of all tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Board {
    states: Vec<State>,
}

impl Board {
    /// A board on which the tasks of `completed` are done.
    pub fn new(graph: &Graph, completed: impl Fn(TaskIndex) -> bool) -> Self {
        let states = (0..graph.tasks.len()).map(|i| {
            if completed(i) {
                State::Completed
            } else {
                State::Pending
            }
        });
        let mut board = Self {
            states: states.collect(),
        };
        board.settle(graph);
        board
    }

    /// State of one task.
    pub fn state(&self, task: TaskIndex) -> State {
        self.states[task]
    }

    /// All states, in task order.
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// Moves a task and whatever depends on it. Returns the tasks whose state changed beside it.
    pub fn set(&mut self, graph: &Graph, task: TaskIndex, state: State) -> Vec<TaskIndex> {
        self.states[task] = state;
        self.settle(graph)
    }

    /// Pending tasks become ready when all dependencies are complete, and blocked when one can never be. One pass in
    /// creation order suffices, because dependencies come before.
    fn settle(&mut self, graph: &Graph) -> Vec<TaskIndex> {
        let mut changed = Vec::new();
        for (index, task) in graph.tasks.iter().enumerate() {
            if self.states[index] != State::Pending {
                continue;
            }
            let of_dependencies = || {
                task.dependencies
                    .iter()
                    .map(|&dependency| self.states[dependency])
            };
            let next =
                if of_dependencies().any(|state| matches!(state, State::Failed | State::Blocked)) {
                    State::Blocked
                } else if of_dependencies().all(|state| state == State::Completed) {
                    State::Ready
                } else {
                    continue;
                };
            self.states[index] = next;
            changed.push(index);
        }
        changed
    }

    /// Whether nothing runs and nothing can.
    pub fn is_finished(&self) -> bool {
        !self
            .states
            .iter()
            .any(|state| matches!(state, State::Ready | State::Running))
    }
}

/// The next task to start: the ready one of highest priority, the earliest created among equals, among those that are
/// `allowed` and whose estimated bytes fit beside the running ones. A task too large for the budget runs alone.
pub fn next(
    graph: &Graph,
    board: &Board,
    budget: u64,
    bytes: impl Fn(TaskIndex) -> u64,
    allowed: impl Fn(TaskIndex) -> bool,
) -> Option<TaskIndex> {
    let in_state = |wanted| (0..graph.tasks.len()).filter(move |&task| board.state(task) == wanted);
    let used: u64 = in_state(State::Running).map(&bytes).sum();
    let idle = in_state(State::Running).next().is_none();
    in_state(State::Ready)
        .filter(|&task| allowed(task))
        .filter(|&task| idle || used.saturating_add(bytes(task)) <= budget)
        .max_by_key(|&task| (graph.tasks[task].priority, std::cmp::Reverse(task)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Counts, TaskKind, tests::scenario};

    fn graph() -> Graph {
        let counts = Counts {
            calibration_runs: 1,
            clean_runs: 1,
            stress_runs: 1,
            error_runs: 1,
            seed: 42,
        };
        Graph::generate(
            &["m".into()],
            &[scenario("a", "clean"), scenario("b", "clean")],
            &counts,
        )
    }

    /// Runs the whole graph on `workers` without doing anything; returns the order of starts.
    fn play(
        graph: &Graph,
        workers: usize,
        budget: u64,
        fails: Option<TaskIndex>,
    ) -> (Vec<TaskIndex>, Board) {
        let mut board = Board::new(graph, |_| false);
        let (mut running, mut order) = (Vec::new(), Vec::new());
        loop {
            while running.len() < workers {
                let Some(task) = next(graph, &board, budget, |_| 1, |_| true) else {
                    break;
                };
                board.set(graph, task, State::Running);
                running.push(task);
                order.push(task);
            }
            if running.is_empty() {
                assert!(board.is_finished());
                return (order, board);
            }
            let done = running.remove(0);
            board.set(
                graph,
                done,
                if fails == Some(done) {
                    State::Failed
                } else {
                    State::Completed
                },
            );
        }
    }

    #[test]
    fn every_task_runs_once_after_its_dependencies() {
        let graph = graph();
        for workers in 1..4 {
            let (order, board) = play(&graph, workers, 100, None);
            assert_eq!(order.len(), graph.tasks.len());
            assert!(
                board
                    .states()
                    .iter()
                    .all(|state| *state == State::Completed)
            );
            for (position, &task) in order.iter().enumerate() {
                assert!(
                    graph.tasks[task]
                        .dependencies
                        .iter()
                        .all(|d| order[..position].contains(d))
                );
            }
        }
    }

    #[test]
    fn a_subject_is_judged_and_dropped_before_the_next_is_made() {
        let graph = graph();
        let (order, _) = play(&graph, 1, 100, None);
        let position = |kind: &TaskKind| {
            order
                .iter()
                .position(|&task| graph.tasks[task].kind == *kind)
                .expect("runs")
        };
        assert!(
            position(&TaskKind::Cleanup { scenario: 0 })
                < position(&TaskKind::Create { scenario: 1 })
        );
    }

    #[test]
    fn failure_blocks_what_depends_on_it_and_nothing_else() {
        let graph = graph();
        let create = graph
            .tasks
            .iter()
            .position(|task| task.kind == TaskKind::Create { scenario: 0 })
            .expect("exists");
        let (order, board) = play(&graph, 2, 100, Some(create));
        assert!(
            order
                .iter()
                .any(|&task| graph.tasks[task].kind == TaskKind::Cleanup { scenario: 1 })
        );
        let pack = graph.tasks.len() - 1;
        assert_eq!(
            (board.state(create), board.state(pack)),
            (State::Failed, State::Blocked)
        );
    }

    #[test]
    fn memory_limits_how_many_run_and_a_giant_runs_alone() {
        let graph = graph();
        let mut board = Board::new(&graph, |_| false);
        let first = next(&graph, &board, 0, |_| u64::MAX, |_| true).expect("runs alone");
        board.set(&graph, first, State::Completed);
        let second = next(&graph, &board, 10, |_| 6, |_| true).expect("fits");
        board.set(&graph, second, State::Running);
        assert_eq!(next(&graph, &board, 10, |_| 6, |_| true), None);
        assert!(next(&graph, &board, 12, |_| 6, |_| true).is_some());
    }

    #[test]
    fn completed_tasks_stay_completed_on_resume() {
        let graph = graph();
        let board = Board::new(&graph, |task| task < 3);
        assert_eq!(board.state(2), State::Completed);
        assert_eq!(board.state(3), State::Ready);
    }
}
