//! What calls cost: wall time, the part of it spent in the host's kernels, and fuel.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::Serialize;

/// What one call, or many together, cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CallStats {
    /// How many calls.
    pub calls: u64,
    /// From making the instance to dropping it.
    pub wall: Duration,
    /// The part of `wall` spent in host services: kernels, draft reads and writes, copies of elements.
    pub in_host: Duration,
    /// How often the plugin called the host.
    pub host_calls: u64,
    /// Fuel burnt: about one unit per WebAssembly instruction. The same on every machine for the same input.
    pub fuel: u64,
}

impl CallStats {
    /// Time outside the host's services: the sandbox's own cost and the plugin's code.
    pub fn outside_host(&self) -> Duration {
        self.wall.saturating_sub(self.in_host)
    }
}

impl std::ops::AddAssign for CallStats {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.wall += other.wall;
        self.in_host += other.in_host;
        self.host_calls += other.host_calls;
        self.fuel += other.fuel;
    }
}

/// Sums of [`CallStats`] that many threads add to.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    calls: AtomicU64,
    wall_ns: AtomicU64,
    in_host_ns: AtomicU64,
    host_calls: AtomicU64,
    fuel: AtomicU64,
}

impl Totals {
    pub(crate) fn add(&self, stats: &CallStats) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.calls.fetch_add(stats.calls, Ordering::Relaxed);
        self.wall_ns.fetch_add(nanos(stats.wall), Ordering::Relaxed);
        self.in_host_ns
            .fetch_add(nanos(stats.in_host), Ordering::Relaxed);
        self.host_calls
            .fetch_add(stats.host_calls, Ordering::Relaxed);
        self.fuel.fetch_add(stats.fuel, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> CallStats {
        CallStats {
            calls: self.calls.load(Ordering::Relaxed),
            wall: Duration::from_nanos(self.wall_ns.load(Ordering::Relaxed)),
            in_host: Duration::from_nanos(self.in_host_ns.load(Ordering::Relaxed)),
            host_calls: self.host_calls.load(Ordering::Relaxed),
            fuel: self.fuel.load(Ordering::Relaxed),
        }
    }
}
