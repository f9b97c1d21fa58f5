//! WASI 0.2, all linked and all empty: language runtimes start, and reach nothing.
//!
//! No preopened folders, no environment, no arguments, an empty standard input; sockets and name look-up are denied before
//! any is made. Clocks stand still at zero and a timer is due at once, so that no call can sleep. Randomness is a fixed
//! sequence. Standard output and error go to the call's log.

use std::time::Duration;

use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::{
    HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxView, WasiView,
    p2::{
        DynPollable,
        bindings::clocks::monotonic_clock,
        pipe::{MemoryInputPipe, MemoryOutputPipe},
        subscribe,
    },
    random::Deterministic,
};

use crate::{Level, Limits, state::State};

/// Seed of the fixed sequence that stands in for randomness.
const SEED: u64 = 0x7061_636b_686f_7374;
/// Length of the sequence; it repeats after that.
const RANDOM_BYTES: usize = 4096;

/// One call's WASI.
pub(crate) struct Wasi {
    ctx: WasiCtx,
    stdout: MemoryOutputPipe,
    stderr: MemoryOutputPipe,
}

impl Wasi {
    pub(crate) fn new(limits: &Limits) -> Self {
        // One byte more than the log takes, so that a full pipe is known to be over the limit.
        let capacity = usize::try_from(limits.log_bytes)
            .unwrap_or(usize::MAX)
            .saturating_add(1);
        let (stdout, stderr) = (
            MemoryOutputPipe::new(capacity),
            MemoryOutputPipe::new(capacity),
        );
        let ctx = WasiCtx::builder()
            .stdout(stdout.clone())
            .stderr(stderr.clone())
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .secure_random(Deterministic::new(sequence(SEED)))
            .insecure_random(Deterministic::new(sequence(SEED + 1)))
            .insecure_random_seed(u128::from(SEED))
            .wall_clock(Stopped)
            .monotonic_clock(Stopped)
            .build();
        Self {
            ctx,
            stdout,
            stderr,
        }
    }

    /// What was written, standard output first.
    pub(crate) fn into_output(self) -> [(Level, String); 2] {
        let text = |pipe: &MemoryOutputPipe| String::from_utf8_lossy(&pipe.contents()).into_owned();
        [
            (Level::Info, text(&self.stdout)),
            (Level::Warn, text(&self.stderr)),
        ]
    }
}

/// SplitMix64, as bytes.
fn sequence(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    });
    words
        .take(RANDOM_BYTES / 8)
        .flat_map(u64::to_le_bytes)
        .collect()
}

/// A clock that stands at zero.
struct Stopped;

impl HostWallClock for Stopped {
    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

impl HostMonotonicClock for Stopped {
    fn resolution(&self) -> u64 {
        1_000_000_000
    }

    fn now(&self) -> u64 {
        0
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let (wasi, table) = self.wasi();
        WasiCtxView {
            ctx: &mut wasi.ctx,
            table,
        }
    }
}

/// The monotonic clock of WASI sleeps for real, out of reach of our deadlines; this one never does.
impl monotonic_clock::Host for State {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(0)
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        Ok(1_000_000_000)
    }

    fn subscribe_instant(&mut self, _: u64) -> wasmtime::Result<Resource<DynPollable>> {
        due_at_once(self)
    }

    fn subscribe_duration(&mut self, _: u64) -> wasmtime::Result<Resource<DynPollable>> {
        due_at_once(self)
    }
}

/// A pollable that is always ready: an empty pipe is.
fn due_at_once(state: &mut State) -> wasmtime::Result<Resource<DynPollable>> {
    let pipe = state.table.push(MemoryInputPipe::new(Vec::new()))?;
    subscribe(&mut state.table, pipe)
}

/// Adds all of it to `linker`.
pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)?;
    linker.allow_shadowing(true);
    monotonic_clock::add_to_linker::<State, wasmtime::component::HasSelf<State>>(
        linker,
        |state| state,
    )?;
    linker.allow_shadowing(false);
    Ok(())
}
