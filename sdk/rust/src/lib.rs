//! Write a packhost plugin in one file.
//!
//! A plugin is a WebAssembly component. Implement [`Edit`], [`Injection`] or [`Guard`] on a type of your own, export it with
//! [`export_edit!`], [`export_injection!`] or [`export_guard!`], and test it natively with [`mod@bench`], without a host.
//!
//! ```
//! use packhost_sdk::{About, Edit, Edited, ModelInfo, Result, Target, TargetFacts, Tensor, scope::Scope};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Clone, Serialize, Deserialize, schemars::JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Params { factor: f32, scope: String }
//!
//! struct Scale;
//!
//! impl Edit for Scale {
//!     const ABOUT: About = About { id: "acme.scale", version: "1.0.0", title: "Multiply weights" };
//!     type Params = Params;
//!     type Task = f32;
//!
//!     fn plan(params: &Params, model: &ModelInfo) -> Result<Vec<Target<f32>>> {
//!         let names = params.scope.parse::<Scope>()?.select(model)?;
//!         Ok(names.into_iter().map(|tensor| Target { tensor, task: params.factor }).collect())
//!     }
//!
//!     fn apply(factor: &f32, tensor: &Tensor) -> Result<Edited> {
//!         tensor.map(|k| k.input(0) * *factor).map(Edited::new)
//!     }
//!
//!     fn summarize(params: &Params, _: &[TargetFacts]) -> Result<serde_json::Value> {
//!         Ok(serde_json::json!({ "parameters": { "factor": params.factor } }))
//!     }
//! }
//!
//! packhost_sdk::export_edit!(Scale);
//! ```
//!
//! The crate touches no files, clocks or sockets; a component can reach only what its world imports.

pub mod candidates;
mod crc;
mod export;
pub mod expr;
mod judging;
mod ops;
pub mod params;
mod plugin;
mod round;
pub mod scope;
pub mod screening;
mod table;
mod tensor;
mod types;

#[cfg(not(target_arch = "wasm32"))]
pub mod bench;
/// What the export macros expand to. Not for use by hand.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[allow(missing_docs, reason = "seen by the export macros only")]
pub mod wasm;

pub use crc::crc32;
pub use judging::{Against, enough_runs, glob, module_name, record};
pub use ops::{Comparison, MAX_MEASURES, MAX_OPS, MAX_STACK, Op, Rounding, Span, Statistic};
pub use plugin::{
    About, Edit, Edited, Fact, Finding, Guard, Injection, Request, Status, Step, Target,
    TargetFacts, Verdict, mean, total,
};
pub use round::round_to;
pub use table::{Row, Table, Value};
pub use tensor::{Computed, Draft, Program, Tensor, log};
pub use types::{DType, Failure, ModelInfo, Result, Role, TensorInfo};

/// Random streams and statistics that host and plugins share.
pub use packhost_stats as stats;
/// Random streams of NumPy, Python and PyTorch.
pub use packhost_stats::rng;
/// JSON, for metadata and details.
pub use serde_json as json;
