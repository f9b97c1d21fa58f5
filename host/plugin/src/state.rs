//! What one call carries in its store: limits and what is used of them, handles, the log, the lent device and draft.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use packhost_tensor::{Device, deadline};
use wasmtime::{ResourceLimiter, component::ResourceTable};

use crate::{
    CallErrorKind, CallStats, Draft, Level, LimitExceeded, Limits, LogLine, lend::Loan, wasi::Wasi,
};

/// Data of one call's store.
pub(crate) struct State {
    pub(crate) limits: Arc<Limits>,
    pub(crate) table: ResourceTable,
    pub(crate) device: Option<Loan<&'static dyn Device>>,
    pub(crate) draft: Option<Loan<&'static mut dyn Draft>>,
    pub(crate) budget: Budget,
    /// Made when the plugin first calls WASI; most never do.
    wasi: Option<Box<Wasi>>,
    log: Vec<LogLine>,
    log_bytes: u64,
    started: Instant,
    in_host: Duration,
    host_calls: u64,
    memory_bytes: u64,
    table_elements: u64,
}

/// Tensor elements and handles that the plugin holds.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Elements of the largest tensor that the call was given.
    pub(crate) given: u64,
    /// Elements of the model behind the draft.
    pub(crate) model: u64,
    /// Elements in live tensors of the plugin's own.
    pub(crate) live: u64,
    /// Live handles, programs included.
    pub(crate) handles: u64,
    /// Elements put into the draft.
    pub(crate) put: u64,
    /// Programs compiled.
    pub(crate) programs: u64,
}

/// Host services fail with this; it ends the call.
pub(crate) fn fatal(kind: CallErrorKind) -> wasmtime::Error {
    wasmtime::Error::new(kind)
}

impl From<LimitExceeded> for CallErrorKind {
    fn from(limit: LimitExceeded) -> Self {
        CallErrorKind::Limit(limit)
    }
}

/// A limit check as the engine wants it.
pub(crate) fn within(name: &'static str, requested: u64, limit: u64) -> wasmtime::Result<()> {
    LimitExceeded::check(name, requested, limit).map_err(|limit| fatal(limit.into()))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl State {
    pub(crate) fn new(limits: Arc<Limits>) -> Self {
        let mut table = ResourceTable::new();
        // Our handles are counted by `handles`; the rest is for the handles of WASI, such as streams.
        table.set_max_capacity(
            usize::try_from(limits.handles)
                .unwrap_or(usize::MAX)
                .saturating_add(1024),
        );
        Self {
            limits,
            table,
            device: None,
            draft: None,
            budget: Budget::default(),
            wasi: None,
            log: Vec::new(),
            log_bytes: 0,
            started: Instant::now(),
            in_host: Duration::ZERO,
            host_calls: 0,
            memory_bytes: 0,
            table_elements: 0,
        }
    }

    /// Runs one host service: counts it, holds it to the deadline, and books its time as the host's.
    pub(crate) fn serve<O>(
        &mut self,
        service: impl FnOnce(&mut Self) -> wasmtime::Result<O>,
    ) -> wasmtime::Result<O> {
        self.host_calls += 1;
        within("host_calls", self.host_calls, self.limits.host_calls)?;
        let begin = Instant::now();
        self.check_clock(begin)?;
        // A moment beyond what the clock can count is no deadline.
        let answer = match self.started.checked_add(self.limits.deadline) {
            Some(until) => deadline::within(until, || service(self)),
            None => service(self),
        };
        let end = Instant::now();
        self.in_host += end.duration_since(begin);
        // First the clock: a kernel that was cut short fails, and this is why.
        self.check_clock(end)?;
        answer
    }

    /// Whether there is time left. Called at host services and, while the plugin's own code runs, at every tick.
    pub(crate) fn check_clock(&self, now: Instant) -> wasmtime::Result<()> {
        let elapsed = now.duration_since(self.started);
        let own = elapsed.saturating_sub(self.in_host);
        if own > self.limits.own_time {
            within(
                "own_time",
                millis(own).max(millis(self.limits.own_time) + 1),
                millis(self.limits.own_time),
            )?;
        }
        if elapsed > self.limits.deadline {
            within(
                "deadline",
                millis(elapsed).max(millis(self.limits.deadline) + 1),
                millis(self.limits.deadline),
            )?;
        }
        Ok(())
    }

    /// Books a new handle to `elements` of the plugin's own.
    pub(crate) fn take(&mut self, elements: u64) -> wasmtime::Result<()> {
        let Limits {
            tensor_floor,
            tensor_factor,
            draft_factor,
            ..
        } = *self.limits;
        // An injection may hold what it may put: many tensors of the model at once.
        let limit = tensor_floor
            .max(tensor_factor.saturating_mul(self.budget.given))
            .max(draft_factor.saturating_mul(self.budget.model));
        let wanted = self.budget.live.saturating_add(elements);
        within("tensor_factor", wanted, limit)?;
        within("handles", self.budget.handles + 1, self.limits.handles)?;
        self.budget.live = wanted;
        self.budget.handles += 1;
        Ok(())
    }

    /// Returns what [`take`](Self::take) booked.
    pub(crate) fn give_back(&mut self, elements: u64) {
        self.budget.live = self.budget.live.saturating_sub(elements);
        self.budget.handles = self.budget.handles.saturating_sub(1);
    }

    /// Adds lines to the log.
    pub(crate) fn write_log(&mut self, level: Level, message: &str) -> Result<(), LimitExceeded> {
        for line in message.lines() {
            let bytes = (line.len() as u64).max(16);
            LimitExceeded::check("log_bytes", self.log_bytes + bytes, self.limits.log_bytes)?;
            self.log_bytes += bytes;
            self.log.push(LogLine {
                level,
                message: printable(line),
            });
        }
        Ok(())
    }

    /// The state that WASI works on, and the handles.
    pub(crate) fn wasi(&mut self) -> (&mut Wasi, &mut ResourceTable) {
        let limits = &self.limits;
        (
            self.wasi.get_or_insert_with(|| Box::new(Wasi::new(limits))),
            &mut self.table,
        )
    }

    /// Ends the call: what it cost and wrote. `fuel` is what was burnt. Fails when standard output and error together with
    /// the log are over the limit.
    pub(crate) fn finish(
        &mut self,
        fuel: u64,
    ) -> (CallStats, Vec<LogLine>, Result<(), LimitExceeded>) {
        let mut fits = Ok(());
        if let Some(wasi) = self.wasi.take() {
            for (level, text) in wasi.into_output() {
                if fits.is_ok() {
                    fits = self.write_log(level, &text);
                }
            }
        }
        let stats = CallStats {
            calls: 1,
            wall: self.started.elapsed(),
            in_host: self.in_host,
            host_calls: self.host_calls,
            fuel,
        };
        (stats, std::mem::take(&mut self.log), fits)
    }
}

/// `text` without control characters, so that a plugin cannot steer the terminal that shows it.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|letter| {
            if letter.is_control() && letter != '\t' {
                '\u{fffd}'
            } else {
                letter
            }
        })
        .collect()
}

impl ResourceLimiter for State {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = self
            .memory_bytes
            .saturating_add(desired.saturating_sub(current) as u64);
        within("memory_bytes", wanted, self.limits.memory_bytes)?;
        self.memory_bytes = wanted;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = self
            .table_elements
            .saturating_add(desired.saturating_sub(current) as u64);
        within("table_elements", wanted, self.limits.table_elements)?;
        self.table_elements = wanted;
        Ok(true)
    }

    fn instances(&self) -> usize {
        usize::try_from(self.limits.instances).unwrap_or(usize::MAX)
    }

    fn tables(&self) -> usize {
        self.instances()
    }

    fn memories(&self) -> usize {
        self.instances()
    }
}
