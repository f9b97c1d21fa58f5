//! What calls cost: wall time, the part of it spent in the host's kernels, and fuel.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
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

/// Costs by the function that was called, such as `judge`.
pub type CallCosts = BTreeMap<&'static str, CallStats>;

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

impl std::iter::Sum for CallStats {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), |mut sum, cost| {
            sum += cost;
            sum
        })
    }
}

/// Sums of [`CallStats`] that many threads add to.
#[derive(Debug, Default)]
pub(crate) struct Totals(Mutex<CallCosts>);

impl Totals {
    pub(crate) fn add(&self, call: &'static str, stats: &CallStats) {
        let mut costs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *costs.entry(call).or_default() += *stats;
    }

    pub(crate) fn get(&self) -> CallCosts {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
