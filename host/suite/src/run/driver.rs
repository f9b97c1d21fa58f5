//! The driver: takes tasks from the graph, has them executed by a few threads, and records every transition.
//!
//! It knows nothing of models or plugins; an [`Executor`] does the work. One mutex guards board and journal: transitions are
//! rare (a hundred a run) and must be in one order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::events::{Event, Sink};
use crate::graph::{Graph, Task, TaskIndex};
use crate::journal::{Journal, Record, Transition};
use crate::rundir::RunDir;
use crate::select::{self, Board, State};
use crate::{Error, Result};

/// What a task leaves.
#[derive(Debug, Default)]
pub struct Done {
    /// One line for people; empty for tasks that nobody wants to read about.
    pub summary: String,
    /// Files written, relative to the run directory, with their SHA-256. They must exist unchanged for the task to count as
    /// complete on resume.
    pub outputs: BTreeMap<String, String>,
}

/// Carries out tasks. Called from several threads at once.
pub trait Executor: Sync {
    /// Does one task.
    ///
    /// # Errors
    /// Whatever went wrong; the task is then failed and what depends on it is blocked.
    fn execute(&self, task: &Task) -> Result<Done>;

    /// Bytes of memory that the task is planned to need beside what is resident.
    fn bytes(&self, task: &Task) -> u64;

    /// Names of model and scenario, for events.
    fn labels(&self, task: &Task) -> Labels;
}

/// Names for people.
#[derive(Debug, Default)]
pub struct Labels {
    pub model: Option<String>,
    pub scenario: Option<String>,
    pub run: Option<u32>,
}

/// How a drive ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub completed: usize,
    pub failed: usize,
    pub blocked: usize,
}

/// Everything that a drive is given.
pub struct Drive<'a> {
    pub graph: &'a Graph,
    pub dir: &'a RunDir,
    pub executor: &'a dyn Executor,
    pub sink: &'a dyn Sink,
    /// Set from outside to stop: running tasks end, nothing new starts.
    pub cancel: &'a AtomicBool,
    /// Which tasks may start at all in this mode.
    pub allowed: &'a (dyn Fn(&Task) -> bool + Sync),
    pub workers: usize,
    /// Bytes that running tasks may plan for.
    pub budget: u64,
    /// UTC time now, RFC 3339.
    pub now: &'a (dyn Fn() -> String + Sync),
}

struct Shared {
    board: Board,
    journal: Journal,
    /// The first failure to record something; it stops everything.
    broken: Option<Error>,
    first_failure: Option<Error>,
}

/// Whether `task` was completed in an earlier life of this run and its outputs are still there.
pub fn is_complete(journal: &Journal, dir: &RunDir, task: &Task) -> bool {
    journal.completion(&task.id).is_some_and(|record| {
        record
            .outputs
            .iter()
            .all(|(path, digest)| dir.has(path, digest))
    })
}

impl Drive<'_> {
    /// Runs until nothing is left to do or `cancel` is set.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after a cancellation; a failure to write the journal. Failed tasks are no error here, but the
    /// first one's is returned beside the tally.
    pub fn run(&self, journal: Journal) -> Result<(Tally, Option<Error>)> {
        let board = Board::new(self.graph, |task| {
            is_complete(&journal, self.dir, &self.graph.tasks[task])
        });
        let shared = Mutex::new(Shared {
            board,
            journal,
            broken: None,
            first_failure: None,
        });
        let wake = Condvar::new();
        for task in 0..self.graph.tasks.len() {
            self.show_task(&lock(&shared), task);
        }
        std::thread::scope(|scope| {
            for _ in 0..self.workers.max(1) {
                scope.spawn(|| self.work(&shared, &wake));
            }
        });
        let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.write_progress(&shared.board)?;
        if let Some(error) = shared.broken {
            return Err(error);
        }
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let count = |wanted| {
            shared
                .board
                .states()
                .iter()
                .filter(|state| **state == wanted)
                .count()
        };
        let tally = Tally {
            completed: count(State::Completed),
            failed: count(State::Failed),
            blocked: count(State::Blocked),
        };
        Ok((tally, shared.first_failure))
    }

    /// One worker: waits for a task, does it, records it.
    fn work(&self, shared: &Mutex<Shared>, wake: &Condvar) {
        let mut guard = lock(shared);
        loop {
            if self.cancel.load(Ordering::Relaxed) || guard.broken.is_some() {
                break;
            }
            match self.next(&guard.board) {
                Some(index) => {
                    self.start(&mut guard, index);
                    drop(guard);
                    let began = Instant::now();
                    let result = self.executor.execute(&self.graph.tasks[index]);
                    guard = lock(shared);
                    self.finish(&mut guard, index, result, began.elapsed().as_secs_f64());
                    wake.notify_all();
                }
                None if guard.board.states().contains(&State::Running) => {
                    guard = wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                None => break,
            }
        }
        wake.notify_all();
    }

    fn next(&self, board: &Board) -> Option<TaskIndex> {
        let bytes = |index: TaskIndex| self.executor.bytes(&self.graph.tasks[index]);
        select::next(self.graph, board, self.budget, bytes, |index| {
            (self.allowed)(&self.graph.tasks[index])
        })
    }

    fn start(&self, shared: &mut Shared, index: TaskIndex) {
        let task = &self.graph.tasks[index];
        let Labels {
            model,
            scenario,
            run,
        } = self.executor.labels(task);
        let (task_id, task_type) = (task.id.clone(), task.kind.type_name());
        self.sink.event(&Event::TaskStarted {
            task: task_id,
            task_type,
            model,
            scenario,
            run,
        });
        self.record(shared, task, Transition::Started, BTreeMap::new(), None);
        self.set(shared, index, State::Running);
    }

    fn finish(&self, shared: &mut Shared, index: TaskIndex, result: Result<Done>, seconds: f64) {
        let task = &self.graph.tasks[index];
        let (id, task_type) = (task.id.clone(), task.kind.type_name());
        match result {
            Ok(Done { summary, outputs }) => {
                self.record(shared, task, Transition::Completed, outputs, None);
                self.set(shared, index, State::Completed);
                self.sink.event(&Event::TaskCompleted {
                    task: id,
                    task_type,
                    seconds,
                    summary,
                });
            }
            // A task that stopped because it was told to is neither done nor failed: resume runs it again.
            Err(error) if self.cancel.load(Ordering::Relaxed) => {
                self.log(task, &format!("stopped: {}", error.sentence()));
                self.set(shared, index, State::Ready);
            }
            Err(error) => {
                let message = error.sentence();
                self.log(task, &message);
                self.record(
                    shared,
                    task,
                    Transition::Failed,
                    BTreeMap::new(),
                    Some(message.clone()),
                );
                let class = error.class();
                self.sink.event(&Event::TaskFailed {
                    task: id,
                    task_type,
                    seconds,
                    class,
                    message,
                });
                for blocked in self.set(shared, index, State::Failed) {
                    let task = &self.graph.tasks[blocked];
                    if shared.board.state(blocked) == State::Blocked {
                        let (task, task_type) = (task.id.clone(), task.kind.type_name());
                        self.sink.event(&Event::TaskBlocked { task, task_type });
                    }
                }
                shared.first_failure.get_or_insert(error);
            }
        }
        if let Err(error) = self.write_progress(&shared.board) {
            shared.broken.get_or_insert(error);
        }
    }

    fn set(&self, shared: &mut Shared, index: TaskIndex, state: State) -> Vec<TaskIndex> {
        let changed = shared.board.set(self.graph, index, state);
        for task in changed.iter().copied().chain([index]) {
            self.show_task(shared, task);
        }
        changed
    }

    fn record(
        &self,
        shared: &mut Shared,
        task: &Task,
        transition: Transition,
        outputs: BTreeMap<String, String>,
        message: Option<String>,
    ) {
        let attempt = match transition {
            Transition::Started => shared.journal.next_attempt(&task.id),
            _ => shared
                .journal
                .next_attempt(&task.id)
                .saturating_sub(1)
                .max(1),
        };
        let record = Record {
            task: task.id.clone(),
            transition,
            attempt,
            at: (self.now)(),
            outputs,
            message,
        };
        if let Err(error) = shared.journal.append(record) {
            shared.broken.get_or_insert(error);
        }
    }

    /// The view of one task under `queue/`. Views are a service to people: a failure to write one stops nothing.
    fn show_task(&self, shared: &Shared, index: TaskIndex) {
        let task = &self.graph.tasks[index];
        let state = shared.board.state(index);
        let mut value = serde_json::to_value(task).unwrap_or_default();
        value["status"] = folder(state).into();
        for other in [
            State::Pending,
            State::Ready,
            State::Running,
            State::Completed,
            State::Failed,
            State::Blocked,
        ] {
            if other != state {
                let _ = std::fs::remove_file(self.dir.path(&format!(
                    "queue/{}/{}.task",
                    folder(other),
                    task.id
                )));
            }
        }
        let path = self
            .dir
            .path(&format!("queue/{}/{}.task", folder(state), task.id));
        if let Some(parent) = path.parent() {
            let _ = std::fs::create_dir_all(parent);
        }
        let _ = std::fs::write(path, packhost_pack::canonical::to_pretty(&value));
    }

    fn write_progress(&self, board: &Board) -> Result<()> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for state in board.states() {
            *counts.entry(folder(*state)).or_default() += 1;
        }
        let value = serde_json::json!({"tasks": self.graph.tasks.len(), "states": counts, "updated_at": (self.now)()});
        self.dir
            .write(
                "state/progress.json",
                packhost_pack::canonical::to_pretty(&value).as_bytes(),
            )
            .map(|_| ())
    }

    /// Keeps what a failed task said. Losing it would not change the run's result, so a failure here stops nothing.
    fn log(&self, task: &Task, message: &str) {
        let _ = self.dir.write(
            &format!("logs/tasks/{}.log", task.id),
            format!("{message}\n").as_bytes(),
        );
    }
}

/// Folder of a state under `queue/`.
fn folder(state: State) -> &'static str {
    match state {
        State::Pending => "pending",
        State::Ready => "ready",
        State::Running => "running",
        State::Completed => "completed",
        State::Failed => "failed",
        State::Blocked => "blocked",
    }
}

/// A panic in a worker is a defect that the thread scope reports; what it had recorded stays valid.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Silent;
    use crate::graph::{Counts, TaskKind, tests::scenario};
    use std::sync::atomic::AtomicUsize;

    /// Writes a file per task; fails or cancels where told.
    struct Fake<'a> {
        dir: &'a RunDir,
        executed: AtomicUsize,
        fails: Option<TaskKind>,
        cancels_at: Option<usize>,
        cancel: &'a AtomicBool,
    }

    impl Executor for Fake<'_> {
        fn execute(&self, task: &Task) -> Result<Done> {
            let count = self.executed.fetch_add(1, Ordering::Relaxed) + 1;
            if self.cancels_at == Some(count) {
                self.cancel.store(true, Ordering::Relaxed);
                return Err(Error::Interrupted);
            }
            if self.fails.as_ref() == Some(&task.kind) {
                return Err(Error::NothingChanged {
                    scenario: "x".into(),
                });
            }
            let path = format!("out/{}", task.id);
            let digest = self.dir.write(&path, task.id.as_bytes())?;
            Ok(Done {
                summary: String::new(),
                outputs: BTreeMap::from([(path, digest)]),
            })
        }

        fn bytes(&self, _: &Task) -> u64 {
            1
        }

        fn labels(&self, _: &Task) -> Labels {
            Labels::default()
        }
    }

    fn graph() -> Graph {
        let counts = Counts {
            calibration_runs: 2,
            clean_runs: 2,
            stress_runs: 1,
            error_runs: 1,
            seed: 42,
        };
        let scenarios = [
            scenario("a", "clean"),
            scenario("b", "stress"),
            scenario("c", "error_injection"),
        ];
        Graph::generate(&["m".into()], &scenarios, &counts)
    }

    /// One life of a run; returns how many tasks it executed and how it ended.
    fn live(
        dir: &RunDir,
        fails: Option<TaskKind>,
        cancels_at: Option<usize>,
    ) -> (usize, Result<Tally>) {
        let (graph, cancel) = (graph(), AtomicBool::new(false));
        let executor = Fake {
            dir,
            executed: AtomicUsize::new(0),
            fails,
            cancels_at,
            cancel: &cancel,
        };
        let journal = Journal::open(&dir.path("state/journal.jsonl"), "plan").expect("opens");
        let drive = Drive {
            graph: &graph,
            dir,
            executor: &executor,
            sink: &Silent,
            cancel: &cancel,
            allowed: &|_| true,
            workers: 3,
            budget: 10,
            now: &|| "2026-01-02T03:04:05Z".into(),
        };
        let result = drive.run(journal).map(|(tally, _)| tally);
        (executor.executed.into_inner(), result)
    }

    #[test]
    fn an_interrupted_run_goes_on_where_it_stopped() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let dir = RunDir::open(&temp.path().join("run"), false).expect("creates");
        let total = graph().tasks.len();
        let (first, result) = live(&dir, None, Some(5));
        assert!(matches!(result, Err(Error::Interrupted)));
        let (second, result) = live(&dir, None, None);
        assert_eq!(
            result.expect("completes"),
            Tally {
                completed: total,
                failed: 0,
                blocked: 0
            }
        );
        assert!(
            first < total && first + second > total,
            "{first} + {second} of {total}"
        );
        assert_eq!(
            live(&dir, None, None).0,
            0,
            "a finished run has nothing to do"
        );
    }

    #[test]
    fn a_task_whose_output_was_lost_runs_again() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let dir = RunDir::open(&temp.path().join("run"), false).expect("creates");
        live(&dir, None, None).1.expect("completes");
        let victim = &graph().tasks[3].id;
        std::fs::write(dir.path(&format!("out/{victim}")), "damaged").expect("writes");
        assert_eq!(live(&dir, None, None).0, 1);
    }

    #[test]
    fn failures_block_the_verdict_and_are_retried_on_resume() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let dir = RunDir::open(&temp.path().join("run"), false).expect("creates");
        let (_, result) = live(&dir, Some(TaskKind::Create { scenario: 1 }), None);
        let tally = result.expect("ends");
        // The evaluation, the cleanup, verdict and pack cannot run.
        assert_eq!((tally.failed, tally.blocked), (1, 4));
        assert_eq!(live(&dir, None, None).1.expect("completes").failed, 0);
    }
}
