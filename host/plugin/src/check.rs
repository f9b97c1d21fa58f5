//! Checks of what plugins answer. Everything here is untrusted: sizes first, then form, then meaning.

use std::collections::{BTreeMap, HashSet};

use packhost_tensor::Tensor;
use serde::de::IgnoredAny;

use crate::{
    CallErrorKind, Descriptor, Fact, Failure, Finding, LimitExceeded, Limits, ModelInfo, Request,
    Status, Step, Target, Verdict,
    bindings::{
        edit::exports::packhost::plugin::edit as edit_wit,
        guard::exports::packhost::plugin::guard as guard_wit, types as wit,
    },
    state::printable,
};

type Checked<T> = Result<T, CallErrorKind>;

fn answer<T>(message: impl Into<String>) -> Checked<T> {
    Err(CallErrorKind::Answer(message.into()))
}

fn count(name: &'static str, found: usize, limit: u64) -> Checked<()> {
    Ok(LimitExceeded::check(name, found as u64, limit)?)
}

/// A name that can be written to files and shown: not empty, not long, no control characters.
pub(crate) fn name(text: &str, limit: u64) -> Result<(), String> {
    if text.is_empty() {
        Err("an empty name".into())
    } else if text.len() as u64 > limit {
        Err(format!(
            "a name of {} bytes; at most {limit} are served",
            text.len()
        ))
    } else if text.chars().any(char::is_control) {
        Err(format!("a name with control characters: {text:?}"))
    } else {
        Ok(())
    }
}

/// Whether `text` is a JSON object that nests at most `depth` deep.
pub(crate) fn json_object(text: &str, depth: u64) -> Result<(), String> {
    let found = json_depth(text);
    if found > depth {
        return Err(format!(
            "JSON nested {found} deep; at most {depth} is served"
        ));
    }
    serde_json::from_str::<BTreeMap<String, IgnoredAny>>(text)
        .map(|_| ())
        .map_err(|error| format!("not a JSON object: {error}"))
}

/// How deep brackets outside strings nest. Right for every valid document, and never recursive.
fn json_depth(text: &str) -> u64 {
    let (mut depth, mut deepest) = (0_u64, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// A returned name under the limit `name_bytes`; `what` it names is for the message.
fn named(what: &str, text: &str, limits: &Limits) -> Checked<()> {
    count("name_bytes", text.len(), limits.name_bytes)?;
    name(text, limits.name_bytes).or_else(|message| answer(format!("{what} with {message}")))
}

fn text(text: &str, limits: &Limits) -> Checked<()> {
    count("text_bytes", text.len(), limits.text_bytes)
}

/// A returned JSON object.
pub(crate) fn document(what: &str, text: &str, limits: &Limits) -> Checked<()> {
    count("json_bytes", text.len(), limits.json_bytes)?;
    LimitExceeded::check("json_depth", json_depth(text), limits.json_depth)?;
    json_object(text, limits.json_depth)
        .or_else(|message| answer(format!("{what} that cannot be used: {message}")))
}

/// What a plugin says when it declines, cut to the limit and made safe to show.
pub(crate) fn failure(failure: wit::Failure, limits: &Limits) -> CallErrorKind {
    let tame = |text: String| {
        let limit = usize::try_from(limits.text_bytes).unwrap_or(usize::MAX);
        let end = text.floor_char_boundary(limit);
        let cut = text.get(..end).unwrap_or_default();
        let mut lines = cut.lines().map(printable).collect::<Vec<_>>().join("\n");
        if end < text.len() {
            lines.push('…');
        }
        lines
    };
    CallErrorKind::Declined(match failure.into() {
        Failure::InvalidParams(text) => Failure::InvalidParams(tame(text)),
        Failure::Unsupported(text) => Failure::Unsupported(tame(text)),
        Failure::Failed(text) => Failure::Failed(tame(text)),
    })
}

pub(crate) fn descriptor(descriptor: wit::Descriptor, limits: &Limits) -> Checked<Descriptor> {
    named("a descriptor's id", &descriptor.id, limits)?;
    named("a descriptor's version", &descriptor.version, limits)?;
    named("a descriptor's title", &descriptor.title, limits)?;
    document("a parameter schema", &descriptor.schema, limits)?;
    Ok(descriptor.into())
}

/// A plan: each target is a tensor of the model, none twice.
pub(crate) fn targets(
    targets: Vec<edit_wit::Target>,
    model: &ModelInfo,
    limits: &Limits,
) -> Checked<Vec<Target>> {
    count("targets", targets.len(), limits.targets)?;
    let known: HashSet<&str> = model
        .tensors
        .iter()
        .map(|tensor| tensor.name.as_str())
        .collect();
    let mut seen = HashSet::new();
    for target in &targets {
        named("a target", &target.tensor, limits)?;
        text(&target.params, limits)?;
        if !known.contains(target.tensor.as_str()) {
            return answer(format!(
                "a target that the model does not have: `{}`",
                target.tensor
            ));
        }
        if !seen.insert(target.tensor.as_str()) {
            return answer(format!("the same target twice: `{}`", target.tensor));
        }
    }
    Ok(targets
        .into_iter()
        .map(|target| Target {
            tensor: target.tensor,
            params: target.params,
        })
        .collect())
}

/// The result of `apply`: shape and dtype of the target.
pub(crate) fn same_form(target: &Tensor, result: &Tensor) -> Checked<()> {
    if target.shape() == result.shape() && target.dtype() == result.dtype() {
        return Ok(());
    }
    let form = |tensor: &Tensor| format!("{} {:?}", tensor.dtype(), tensor.shape());
    Err(CallErrorKind::WrongResult {
        expected: form(target),
        found: form(result),
    })
}

pub(crate) fn facts(facts: Vec<edit_wit::Fact>, limits: &Limits) -> Checked<Vec<Fact>> {
    count("facts", facts.len(), limits.facts)?;
    let mut seen = HashSet::new();
    for fact in &facts {
        named("a fact", &fact.name, limits)?;
        if !seen.insert(fact.name.as_str()) {
            return answer(format!("the same fact twice: `{}`", fact.name));
        }
    }
    Ok(facts
        .into_iter()
        .map(|fact| Fact {
            name: fact.name,
            value: fact.value,
        })
        .collect())
}

pub(crate) fn requests(
    requests: Vec<guard_wit::Request>,
    limits: &Limits,
) -> Checked<Vec<Request>> {
    count("requests", requests.len(), limits.requests)?;
    for request in &requests {
        named("a request's quantity", &request.quantity, limits)?;
        named("a request's scope", &request.scope, limits)?;
        text(&request.params, limits)?;
    }
    let convert = |guard_wit::Request {
                       quantity,
                       scope,
                       params,
                   }| Request {
        quantity,
        scope,
        params,
    };
    Ok(requests.into_iter().map(convert).collect())
}

pub(crate) fn step(step: guard_wit::Step, limits: &Limits) -> Checked<Step> {
    match step {
        guard_wit::Step::Verdict(found) => Ok(Step::Verdict(verdict(found, limits)?)),
        guard_wit::Step::Measure(wanted) if wanted.is_empty() => {
            answer("a step that asks for nothing more and gives no verdict")
        }
        guard_wit::Step::Measure(wanted) => Ok(Step::Measure(requests(wanted, limits)?)),
    }
}

fn verdict(verdict: guard_wit::Verdict, limits: &Limits) -> Checked<Verdict> {
    count("findings", verdict.findings.len(), limits.findings)?;
    for finding in &verdict.findings {
        named("a finding's scope", &finding.scope, limits)?;
        named("a finding's code", &finding.code, limits)?;
        text(&finding.message, limits)?;
    }
    document("details", &verdict.details, limits)?;
    let convert = |finding: guard_wit::Finding| Finding {
        scope: finding.scope,
        code: finding.code,
        message: printable(&finding.message),
        value: finding.value,
        limit: finding.limit,
    };
    Ok(Verdict {
        status: match verdict.status {
            guard_wit::Status::Pass => Status::Pass,
            guard_wit::Status::Warn => Status::Warn,
            guard_wit::Status::Fail => Status::Fail,
        },
        findings: verdict.findings.into_iter().map(convert).collect(),
        details: verdict.details,
    })
}

pub(crate) fn probe(values: Vec<f64>, limits: &Limits) -> Checked<Vec<f64>> {
    count("probe_values", values.len(), limits.probe_values)?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_depth_ignores_brackets_in_strings() {
        assert_eq!(json_depth(r#"{"a": [1, {"b\"[[[[": "]]"}]}"#), 3);
        assert_eq!(json_depth("[[[["), 4);
        assert_eq!(json_depth(""), 0);
    }

    #[test]
    fn only_objects_are_documents() {
        assert_eq!(json_object("{}", 1), Ok(()));
        for text in ["", "[]", "1", "{", "{}x", "{\"a\":}", "null"] {
            assert!(json_object(text, 8).is_err(), "{text}");
        }
        assert!(json_object(&("{\"a\":".repeat(9) + "1" + &"}".repeat(9)), 8).is_err());
    }
}
