//! What the export macros call: from the contract's types to the traits and back.

use super::bindings::injection::packhost::plugin::{
    drafts as raw_drafts, tensors as raw, types as raw_types,
};
use super::bindings::{
    edit::exports::packhost::plugin::edit as raw_edit,
    guard::exports::packhost::plugin::guard as raw_guard,
};
use super::host::{own_model, raw_failure};
use crate::plugin::{About, Edit, Guard, Injection, Request, Status, Step, Target, TargetFacts};
use crate::{Draft, Row, Table, Tensor, Value, params};

type RawResult<T> = Result<T, raw_types::Failure>;

/// A lent tensor as the SDK's type.
fn lent(tensor: &raw::Tensor) -> &Tensor {
    // SAFETY: `Tensor` and `host::Tensor` are `repr(transparent)` over `raw::Tensor`, so the layouts agree, and the
    // reference keeps its lifetime.
    unsafe { &*std::ptr::from_ref(tensor).cast::<Tensor>() }
}

/// A lent draft as the SDK's type.
fn lent_draft(draft: &raw_drafts::Draft) -> &Draft {
    // SAFETY: as in `lent`.
    unsafe { &*std::ptr::from_ref(draft).cast::<Draft>() }
}

/// The descriptor of a plugin.
fn descriptor(about: About, schema: String) -> raw_types::Descriptor {
    raw_types::Descriptor {
        id: about.id.into(),
        version: about.version.into(),
        title: about.title.into(),
        schema,
    }
}

pub fn describe_edit<T: Edit>() -> raw_types::Descriptor {
    descriptor(T::ABOUT, params::schema::<T::Params>())
}

pub fn describe_injection<T: Injection>() -> raw_types::Descriptor {
    descriptor(T::ABOUT, params::schema::<T::Params>())
}

pub fn describe_guard<T: Guard>() -> raw_types::Descriptor {
    descriptor(T::ABOUT, params::schema::<T::Policy>())
}

pub fn plan_edit<T: Edit>(
    text: &str,
    model: raw_types::ModelInfo,
) -> RawResult<Vec<raw_edit::Target>> {
    let plan = || {
        let targets = T::plan(&params::parse(text)?, &own_model(model))?;
        targets
            .into_iter()
            .map(|target| {
                Ok(raw_edit::Target {
                    tensor: target.tensor,
                    params: params::write(&target.task)?,
                })
            })
            .collect::<crate::Result<Vec<_>>>()
    };
    plan().map_err(raw_failure)
}

pub fn apply_edit<T: Edit>(
    target: &raw_edit::Target,
    tensor: &raw::Tensor,
) -> RawResult<raw_edit::Edited> {
    let target: Target<T::Task> = Target {
        tensor: target.tensor.clone(),
        task: params::parse(&target.params).map_err(raw_failure)?,
    };
    let edited = T::apply(&target.task, lent(tensor)).map_err(raw_failure)?;
    let facts = edited
        .facts
        .into_iter()
        .map(|(name, value)| raw_edit::Fact { name, value })
        .collect();
    Ok(raw_edit::Edited {
        tensor: edited.tensor.0.0,
        facts,
    })
}

pub fn summarize_edit<T: Edit>(
    text: &str,
    targets: Vec<raw_edit::TargetFacts>,
) -> RawResult<String> {
    let targets: Vec<TargetFacts> = targets
        .into_iter()
        .map(|target| TargetFacts {
            tensor: target.tensor,
            facts: target
                .facts
                .into_iter()
                .map(|fact| (fact.name, fact.value))
                .collect(),
        })
        .collect();
    params::parse(text)
        .and_then(|params| T::summarize(&params, &targets))
        .map(|value| value.to_string())
        .map_err(raw_failure)
}

pub fn inject<T: Injection>(text: &str, draft: &raw_drafts::Draft) -> RawResult<String> {
    params::parse(text)
        .and_then(|params| T::inject(&params, lent_draft(draft)))
        .map(|record| record.to_string())
        .map_err(raw_failure)
}

/// Requests for the host.
fn raw_requests(requests: Vec<Request>) -> Vec<raw_guard::Request> {
    requests
        .into_iter()
        .map(|request| raw_guard::Request {
            quantity: request.quantity,
            scope: request.scope,
            params: request.params,
        })
        .collect()
}

/// A table from the host.
fn table(rows: Vec<raw_guard::Row>) -> Table {
    let row = |row: raw_guard::Row| Row {
        scope: row.scope,
        quantity: row.quantity,
        value: match row.value {
            raw_guard::Value::Number(number) => Value::Number(number),
            raw_guard::Value::Vector(vector) => Value::Vector(vector),
            raw_guard::Value::Text(text) => Value::Text(text),
        },
    };
    Table::new(rows.into_iter().map(row).collect())
}

pub fn plan_guard<T: Guard>(
    policy: &str,
    model: raw_types::ModelInfo,
) -> RawResult<Vec<raw_guard::Request>> {
    params::parse(policy)
        .and_then(|policy| T::plan(&policy, &own_model(model)))
        .map(raw_requests)
        .map_err(raw_failure)
}

pub fn probe<T: Guard>(name: &str, tensor: &raw::Tensor) -> RawResult<Vec<f64>> {
    T::probe(name, lent(tensor)).map_err(raw_failure)
}

pub fn judge<T: Guard>(
    policy: &str,
    baseline: Vec<raw_guard::Row>,
    subject: Vec<raw_guard::Row>,
) -> RawResult<raw_guard::Step> {
    let step = params::parse(policy)
        .and_then(|policy| T::judge(&policy, &table(baseline), &table(subject)));
    Ok(match step.map_err(raw_failure)? {
        Step::Measure(requests) => raw_guard::Step::Measure(raw_requests(requests)),
        Step::Verdict(verdict) => raw_guard::Step::Verdict(raw_guard::Verdict {
            status: match verdict.status {
                Status::Pass => raw_guard::Status::Pass,
                Status::Warn => raw_guard::Status::Warn,
                Status::Fail => raw_guard::Status::Fail,
            },
            findings: verdict
                .findings
                .into_iter()
                .map(|finding| raw_guard::Finding {
                    scope: finding.scope,
                    code: finding.code,
                    message: finding.message,
                    value: finding.value,
                    limit: finding.limit,
                })
                .collect(),
            details: verdict.details.to_string(),
        }),
    })
}

pub fn calibrate<T: Guard>(policy: &str, runs: Vec<Vec<raw_guard::Row>>) -> RawResult<String> {
    let runs: Vec<Table> = runs.into_iter().map(table).collect();
    params::parse(policy)
        .and_then(|policy| T::calibrate(&policy, &runs))
        .and_then(|policy| params::write(&policy))
        .map_err(raw_failure)
}
