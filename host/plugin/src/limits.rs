//! What one plugin call may use, and the one error that says that it wanted more.
//!
//! Limits are per call unless a field says otherwise; parallel calls each have their own. Each field's documentation says
//! what it bounds, what happens when it fires, the default, and what it does not cover. When a limit fires the call ends
//! with [`LimitExceeded`] inside [`CallErrorKind::Limit`](crate::CallErrorKind::Limit), its instance is dropped, and nothing
//! else is touched: the next call starts afresh.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// A plugin call wanted more than its limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct LimitExceeded {
    /// The field of [`Limits`] that fired.
    pub name: &'static str,
    /// What is allowed.
    pub limit: u64,
    /// What was asked for; where the true figure is unknown, the smallest that is too much.
    pub requested: u64,
}

impl fmt::Display for LimitExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            limit,
            requested,
        } = self;
        let unit = match *name {
            "own_time" | "deadline" => " ms",
            "tensor_factor" | "draft_factor" => " elements",
            _ => "",
        };
        write!(
            f,
            "limit `{name}` exceeded: got {requested}{unit}, limit {limit}{unit}"
        )
    }
}

impl LimitExceeded {
    /// An error when `requested` is more than `limit`.
    pub(crate) fn check(name: &'static str, requested: u64, limit: u64) -> Result<(), Self> {
        if requested > limit {
            Err(Self {
                name,
                limit,
                requested,
            })
        } else {
            Ok(())
        }
    }
}

/// What one plugin call may use. Plain data: start from [`Limits::default`] and change fields, or read it from the
/// configuration, where absent keys keep their defaults and unknown keys are refused. Durations are written in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Time in the plugin's own code, by the wall clock. When it runs out the code is interrupted at its next loop or call,
    /// within about 20 ms. Default 10 s. Does not cover host services (kernels): those count towards `deadline`.
    #[serde(with = "seconds")]
    pub own_time: Duration,
    /// Time of the whole call, host services included. Checked at each call of the host and, in the plugin's code, like
    /// `own_time`; a kernel program that is still running is given up. Default 30 min. A matrix product or factorisation,
    /// a selection or noise is not interrupted, so the call may end one of those late.
    #[serde(with = "seconds")]
    pub deadline: Duration,
    /// WebAssembly instructions, roughly: the limit that fires at the same place on every machine. Default 2^40 (about a
    /// minute of plain loops), so that the clock fires first unless replay sets this lower. Does not cover host services.
    pub fuel: u64,
    /// Bytes of linear memory over all memories of the instance. Growth beyond it ends the call. Default 256 MiB. Does not
    /// cover the host's copies of lists in flight (`transfer_bytes`) nor tensors (`tensor_factor`).
    pub memory_bytes: u64,
    /// Elements over all function tables. Default 200 000, enough for language runtimes.
    pub table_elements: u64,
    /// Core instances that one component may come to, its nested components multiplied out, and as many memories and as
    /// many tables. Exceeding it fails the load. Default 1024.
    pub instances: u64,
    /// Bytes of a component. Exceeding it fails the load. Default 64 MiB. Bounds the compiler's work only roughly.
    pub component_bytes: u64,
    /// Bytes of call stack; one setting for the engine, so only the limits given to the engine count. Deeper recursion ends
    /// as a trap, not as a limit. Default 512 KiB. Does not cover a language's own stack in linear memory.
    pub stack_bytes: u64,
    /// Calls of host functions. Default 1 000 000.
    pub host_calls: u64,
    /// Bytes of log lines, standard output and error included. Default 64 KiB. Covers the text, not the few bytes of
    /// bookkeeping per line; so each line counts at least 16 bytes.
    pub log_bytes: u64,
    /// Bytes that may pass from the plugin to the host in one transfer: the arguments of one host call, or one answer.
    /// Default 64 MiB. It also caps the values of one `write`.
    pub transfer_bytes: u64,
    /// Live tensor handles that the plugin holds. Default 4096.
    pub handles: u64,
    /// A call's own live tensors may together hold so many times the elements of the largest tensor it was given.
    /// Default 8; `tensor_floor` applies if that is more, and so does `draft_factor` times the model for an injection.
    /// Sharing is not credited: a `duplicate` counts in full. Does not cover the working memory of kernels, which the
    /// device bounds: [`packhost_tensor::Error::Memory`].
    pub tensor_factor: u64,
    /// Elements that a call's own live tensors may always hold. Default 2^24.
    pub tensor_floor: u64,
    /// Elements that an injection may put into the draft, as a multiple of the model's elements, in one call. Default 2;
    /// `tensor_floor` is allowed on top.
    pub draft_factor: u64,
    /// Kernel programs compiled. Default 256; their size is bounded by [`packhost_tensor::program::Program::MAX_OPS`].
    pub programs: u64,
    /// Targets of a plan. Default 200 000.
    pub targets: u64,
    /// Facts about one tensor. Default 64.
    pub facts: u64,
    /// Measurement requests of one plan or step. Default 10 000.
    pub requests: u64,
    /// Findings of a verdict. Default 10 000.
    pub findings: u64,
    /// Numbers that one probe returns. Default 1 000 000.
    pub probe_values: u64,
    /// Bytes of one returned name, code, scope or title. Default 1024.
    pub name_bytes: u64,
    /// Bytes of one returned message or of one target's or request's parameters. Default 64 KiB.
    pub text_bytes: u64,
    /// Bytes of one returned JSON document: a schema, a summary, details, a policy. Default 4 MiB.
    pub json_bytes: u64,
    /// How deep returned JSON may nest. Default 64.
    pub json_depth: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        Self {
            own_time: Duration::from_secs(10),
            deadline: Duration::from_secs(30 * 60),
            fuel: 1 << 40,
            memory_bytes: 256 * MIB,
            table_elements: 200_000,
            instances: 1024,
            component_bytes: 64 * MIB,
            stack_bytes: 512 * KIB,
            host_calls: 1_000_000,
            log_bytes: 64 * KIB,
            transfer_bytes: 64 * MIB,
            handles: 4096,
            tensor_factor: 8,
            tensor_floor: 1 << 24,
            draft_factor: 2,
            programs: 256,
            targets: 200_000,
            facts: 64,
            requests: 10_000,
            findings: 10_000,
            probe_values: 1_000_000,
            name_bytes: KIB,
            text_bytes: 64 * KIB,
            json_bytes: 4 * MIB,
            json_depth: 64,
        }
    }
}

/// Durations as a number of seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        time: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(time.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(seconds).map_err(|_| {
            D::Error::custom(format!("{seconds} is not a number of seconds above zero"))
        })
    }
}
