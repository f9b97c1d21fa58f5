//! What an author implements: one trait per world.

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Draft, ModelInfo, Result, Table, Tensor};

/// How a plugin introduces itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// Lower-case, dots and dashes: `quant-rtn`, `acme.block-sparse`.
    pub id: &'static str,
    /// The plugin's own version; usually `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// One line for people.
    pub title: &'static str,
}

/// One tensor to change, with parameters of the plugin's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Target<T> {
    /// The tensor's name.
    pub tensor: String,
    /// What [`Edit::apply`] gets beside the tensor.
    pub task: T,
}

/// A number about one changed tensor, such as `("relative-error", 0.04)`.
pub type Fact = (String, f64);

/// A changed tensor and the facts about it.
#[derive(Debug)]
pub struct Edited {
    /// The result, of the target's shape and dtype.
    pub tensor: Tensor,
    /// For the edit's metadata.
    pub facts: Vec<Fact>,
}

impl Edited {
    /// A result without facts.
    pub fn new(tensor: Tensor) -> Self {
        Self {
            tensor,
            facts: Vec::new(),
        }
    }

    /// Adds a fact.
    #[must_use]
    pub fn fact(mut self, name: &str, value: f64) -> Self {
        self.facts.push((name.to_owned(), value));
        self
    }
}

/// The facts of one target.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetFacts {
    /// The tensor's name.
    pub tensor: String,
    /// In the order in which they were added.
    pub facts: Vec<Fact>,
}

impl TargetFacts {
    /// The fact called `name`.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.facts
            .iter()
            .find(|fact| fact.0 == name)
            .map(|fact| fact.1)
    }
}

/// Sum of a fact over targets, and over how many targets that have it.
pub fn total(targets: &[TargetFacts], fact: &str) -> (f64, usize) {
    targets
        .iter()
        .filter_map(|target| target.get(fact))
        .fold((0.0, 0), |(sum, count), value| (sum + value, count + 1))
}

/// Mean of a fact over the targets that have it; 0 where none has.
pub fn mean(targets: &[TargetFacts], fact: &str) -> f64 {
    let (sum, count) = total(targets, fact);
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// A useful or stressing change to weights. Export it with [`export_edit!`](crate::export_edit).
pub trait Edit {
    /// Identity.
    const ABOUT: About;
    /// Parameters, as JSON in the contract.
    type Params: DeserializeOwned + JsonSchema;
    /// Parameters of one target; often a copy of `Params`.
    type Task: Serialize + DeserializeOwned;

    /// Which tensors to change. Pure: same input, same answer.
    ///
    /// # Errors
    /// When the parameters are out of range, or nothing would be changed.
    fn plan(params: &Self::Params, model: &ModelInfo) -> Result<Vec<Target<Self::Task>>>;

    /// Changes one tensor. Called once per target, in any order, possibly in parallel instances.
    ///
    /// # Errors
    /// What the host refused, or what the plugin cannot do.
    fn apply(task: &Self::Task, tensor: &Tensor) -> Result<Edited>;

    /// The edit's own keys of `edit_metadata.json`, a JSON object, from the facts of all targets in plan order.
    ///
    /// # Errors
    /// When facts that it needs are missing.
    fn summarize(params: &Self::Params, targets: &[TargetFacts]) -> Result<Value>;
}

/// Deliberate damage. Export it with [`export_injection!`](crate::export_injection).
pub trait Injection {
    /// Identity.
    const ABOUT: About;
    /// Parameters, as JSON in the contract.
    type Params: DeserializeOwned + JsonSchema;

    /// Damages the draft and returns a JSON record of what was damaged.
    ///
    /// # Errors
    /// When the parameters are wrong, and when nothing would be damaged.
    fn inject(params: &Self::Params, draft: &Draft) -> Result<Value>;
}

/// Something to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Such as `window.loss` or `tensor.shape`.
    pub quantity: String,
    /// Tensors or modules by role, layer or glob; `model` is the whole model.
    pub scope: String,
    /// Parameters of the quantity, JSON; `{}` for none.
    pub params: String,
}

impl Request {
    /// A request without parameters.
    pub fn new(quantity: &str, scope: &str) -> Self {
        Self {
            quantity: quantity.to_owned(),
            scope: scope.to_owned(),
            params: "{}".to_owned(),
        }
    }

    /// The same request with parameters: JSON whose keys are in a fixed order, because the row is found by this text.
    #[must_use]
    pub fn with_params(self, params: &Value) -> Self {
        Self {
            params: params.to_string(),
            ..self
        }
    }

    /// The scope under which the answer stands in the table. A row names all that it depends on: with parameters it is
    /// `SCOPE PARAMS`, the parameters word for word.
    pub fn row_scope(&self) -> String {
        match self.params.trim() {
            "" | "{}" => self.scope.clone(),
            params => format!("{} {params}", self.scope),
        }
    }
}

/// How serious a verdict is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Nothing found.
    Pass,
    /// Worth a look.
    Warn,
    /// Damaged.
    Fail,
}

/// One thing that a guard found.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Where: a tensor, a module or `model`.
    pub scope: String,
    /// A stable word for machines.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// What was measured.
    pub value: Option<f64>,
    /// What was allowed.
    pub limit: Option<f64>,
}

/// A guard's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The gravest finding's weight.
    pub status: Status,
    /// What was found.
    pub findings: Vec<Finding>,
    /// For the report, in the guard's own terms.
    pub details: Value,
}

/// An answer, or a wish for further measurements.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The answer.
    Verdict(Verdict),
    /// Measure these as well and ask again. The host bounds the rounds.
    Measure(Vec<Request>),
}

/// A judge of measurements. Export it with [`export_guard!`](crate::export_guard).
pub trait Guard {
    /// Identity.
    const ABOUT: About;
    /// This guard's section of the resolved tier policy.
    type Policy: DeserializeOwned + Serialize + JsonSchema + Clone;

    /// What to measure.
    ///
    /// # Errors
    /// When the policy is out of range or the model lacks what the guard needs.
    fn plan(policy: &Self::Policy, model: &ModelInfo) -> Result<Vec<Request>>;

    /// A statistic of the guard's own, measured per tensor that a `probe` request names.
    ///
    /// # Errors
    /// By default every name is refused.
    fn probe(name: &str, tensor: &Tensor) -> Result<Vec<f64>> {
        let _ = tensor;
        Err(crate::Failure::unsupported(format!(
            "guard {} has no probe called `{name}`",
            Self::ABOUT.id
        )))
    }

    /// Tables in, step out; pure, because it is replayed when a pack is verified.
    ///
    /// # Errors
    /// When a row that the plan asked for is missing.
    fn judge(policy: &Self::Policy, baseline: &Table, subject: &Table) -> Result<Step>;

    /// A policy fitted to repeated measurements of the unedited model. By default the policy as it was given.
    ///
    /// # Errors
    /// When the runs do not hold what the guard needs.
    fn calibrate(policy: &Self::Policy, runs: &[Table]) -> Result<Self::Policy> {
        let _ = runs;
        Ok(policy.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::Request;
    use serde_json::json;

    #[test]
    fn a_row_names_what_it_depends_on() {
        let plain = Request::new("window.loss", "final");
        assert_eq!(plain.row_scope(), "final");
        let scaled =
            Request::new("window.loss", "first:8").with_params(&json!({"scale": {"m": 1.03}}));
        assert_eq!(scaled.row_scope(), r#"first:8 {"scale":{"m":1.03}}"#);
    }
}
