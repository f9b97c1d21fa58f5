//! One call: a fresh store and instance, limits armed, errors told apart, costs counted.

use std::{sync::Arc, time::Instant};

use wasmtime::{Store, Trap, UpdateDeadline, WasmBacktrace, component::ResourceTableError};

use crate::{
    CallCosts, CallError, CallErrorKind, Called, Error, LimitExceeded, Limits, Result,
    state::{State, printable},
    stats::Totals,
};

/// What all calls of one plugin share.
pub(crate) struct Core {
    pub(crate) id: String,
    pub(crate) engine: wasmtime::Engine,
    pub(crate) limits: Arc<Limits>,
    pub(crate) totals: Totals,
}

/// Why a call stopped: the engine's error, not told apart yet, or ours.
pub(crate) enum Stop {
    Engine(wasmtime::Error),
    Kind(CallErrorKind),
}

impl From<wasmtime::Error> for Stop {
    fn from(error: wasmtime::Error) -> Self {
        Stop::Engine(error)
    }
}

impl From<ResourceTableError> for Stop {
    fn from(error: ResourceTableError) -> Self {
        Stop::Engine(error.into())
    }
}

impl From<CallErrorKind> for Stop {
    fn from(kind: CallErrorKind) -> Self {
        Stop::Kind(kind)
    }
}

impl Core {
    /// Makes a store, lets `prepare` lend things to it and `run` make the call in it, and drops it.
    pub(crate) fn call<O>(
        &self,
        call: &'static str,
        subject: Option<&str>,
        prepare: impl FnOnce(&mut State),
        run: impl FnOnce(&mut Store<State>) -> std::result::Result<O, Stop>,
    ) -> Result<Called<O>> {
        let mut state = State::new(self.limits.clone());
        prepare(&mut state);
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| state);
        store.set_hostcall_fuel(usize::try_from(self.limits.transfer_bytes).unwrap_or(usize::MAX));
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|store| {
            store.data().check_clock(Instant::now())?;
            Ok(UpdateDeadline::Continue(1))
        });
        let outcome = store
            .set_fuel(self.limits.fuel)
            .map_err(Stop::Engine)
            .and_then(|()| run(&mut store));
        let fuel = self.limits.fuel - store.get_fuel().unwrap_or(self.limits.fuel);
        let (stats, log, fits) = store.data_mut().finish(fuel);
        drop(store);
        self.totals.add(call, &stats);
        let outcome = match (outcome, fits) {
            (Ok(value), Ok(())) => return Ok(Called { value, stats, log }),
            (Ok(_), Err(limit)) => CallErrorKind::Limit(limit),
            (Err(Stop::Kind(kind)), _) => kind,
            (Err(Stop::Engine(error)), fits) => classify(&error, fits, &self.limits),
        };
        let (plugin, subject) = (self.id.clone(), subject.map(str::to_owned));
        Err(Error::Call(Box::new(CallError {
            plugin,
            call,
            subject,
            kind: outcome,
            stats,
            log,
        })))
    }

    pub(crate) fn costs(&self) -> CallCosts {
        self.totals.get()
    }
}

/// What the engine's error means.
fn classify(
    error: &wasmtime::Error,
    fits: std::result::Result<(), LimitExceeded>,
    limits: &Limits,
) -> CallErrorKind {
    if let Some(kind) = error.downcast_ref::<CallErrorKind>() {
        return kind.clone();
    }
    if let Err(limit) = fits {
        return CallErrorKind::Limit(limit);
    }
    let exceeded = |name, limit: u64| {
        CallErrorKind::Limit(LimitExceeded {
            name,
            limit,
            requested: limit.saturating_add(1),
        })
    };
    if let Some(trap) = error.downcast_ref::<Trap>() {
        return match trap {
            Trap::OutOfFuel => exceeded("fuel", limits.fuel),
            trap => {
                let text = trap.to_string();
                let text = text.strip_prefix("wasm trap: ").unwrap_or(&text);
                CallErrorKind::Trap(with_place(text.to_owned(), error))
            }
        };
    }
    if let Some(ResourceTableError::Full) = error.downcast_ref::<ResourceTableError>() {
        return exceeded("handles", limits.handles);
    }
    let cause = error.root_cause().to_string();
    // The engine has no public type for this one; a test pins the words.
    if cause.contains("fuel allocated for hostcalls has been exhausted") {
        return exceeded("transfer_bytes", limits.transfer_bytes);
    }
    CallErrorKind::Trap(with_place(printable(&cause), error))
}

/// The text of a trap, with the innermost function whose name is known.
fn with_place(text: String, error: &wasmtime::Error) -> String {
    let name = error
        .downcast_ref::<WasmBacktrace>()
        .and_then(|trace| trace.frames().iter().find_map(|frame| frame.func_name()))
        .map(printable);
    match name {
        Some(name) => format!("{text} (in `{name}`)"),
        None => text,
    }
}
