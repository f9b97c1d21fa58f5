//! What guards that compare two models have in common.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{Failure, Result, Table, Value};

/// What a guard holds the subject against.
///
/// The reference system evaluates a subject in a run of its own whose edit does nothing, so there every guard takes the
/// subject itself as its baseline. That is the default here, because verdicts must agree; the real comparison is a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Against {
    /// The subject itself.
    #[default]
    Subject,
    /// The baseline.
    Baseline,
}

impl Against {
    /// The table that the subject is held against.
    pub fn pick<'a>(self, baseline: &'a Table, subject: &'a Table) -> &'a Table {
        match self {
            Self::Subject => subject,
            Self::Baseline => baseline,
        }
    }
}

/// What each calibration run tells `guard`, as the details of a verdict would say it: the record of an earlier verdict
/// (`record.GUARD` of `model`) where a run's table holds one, so that a preset can be derived from reports too, else what
/// `measured` makes of its rows. None asked for means at least one run.
///
/// # Errors
/// When there are fewer runs than asked for, a record is no JSON object, or `measured` fails.
pub fn records(
    guard: &str,
    runs: &[Table],
    asked: Option<usize>,
    measured: impl Fn(&Table) -> Result<Json>,
) -> Result<Vec<Json>> {
    enough_runs(guard, runs, asked)?;
    runs.iter()
        .map(|run| match record(guard, run)? {
            Some(record) => Ok(record),
            None => measured(run),
        })
        .collect()
}

/// Refuses to calibrate on fewer runs than were asked for.
fn enough_runs(guard: &str, runs: &[Table], asked: Option<usize>) -> Result<()> {
    let asked = asked.unwrap_or(1).max(1);
    if runs.len() < asked {
        return Err(Failure::failed(format!(
            "guard {guard}: {asked} calibration runs were asked for and {} are there; measure the missing ones or ask for fewer",
            runs.len()
        )));
    }
    Ok(())
}

/// What an earlier verdict of `guard` said in its details, where the table holds it.
fn record(guard: &str, run: &Table) -> Result<Option<Json>> {
    let quantity = format!("record.{guard}");
    let text = match run.get("model", &quantity) {
        None => return Ok(None),
        Some(Value::Text(text)) => text,
        Some(_) => run.text("model", &quantity)?,
    };
    match serde_json::from_str(text) {
        Ok(record @ Json::Object(_)) => Ok(Some(record)),
        Ok(other) => Err(Failure::failed(format!(
            "measurement table: `{quantity}` at `model` must be a JSON object, found {other}"
        ))),
        Err(error) => Err(Failure::failed(format!(
            "measurement table: `{quantity}` at `model` is no JSON: {error}"
        ))),
    }
}

/// The module that owns a weight: the tensor's name without `.weight`; none for other tensors.
pub fn module_name(tensor: &str) -> Option<&str> {
    tensor.strip_suffix(".weight")
}

/// Whether `name` fits `pattern`, in which `*` stands for any text.
pub fn glob(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|head| name.strip_prefix(head)) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(tail) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Row;

    #[test]
    fn globs() {
        let tap = "transformer.h.*.mlp.c_proj";
        assert!(glob(tap, "transformer.h.12.mlp.c_proj"));
        assert!(!glob(tap, "transformer.h.12.attn.c_proj"));
        assert!(!glob("ab*b", "ab"), "head and tail may not overlap");
        assert!(glob("*", "") && glob("a", "a") && !glob("a", "ab"));
        assert!(glob("*b*d*", "abcde") && !glob("*d*b*", "abcde"));
    }

    #[test]
    fn too_few_runs() {
        let one = [Table::default()];
        assert!(enough_runs("g", &one, None).is_ok());
        assert!(enough_runs("g", &[], None).is_err());
        let failure = enough_runs("g", &one, Some(5))
            .err()
            .map(|failure| failure.to_string());
        assert_eq!(
            failure.as_deref(),
            Some(
                "failed: guard g: 5 calibration runs were asked for and 1 are there; measure the missing ones or ask for fewer"
            )
        );
    }

    #[test]
    fn records_are_objects() {
        let table = |value| {
            Table::new(vec![Row {
                scope: "model".into(),
                quantity: "record.g".into(),
                value,
            }])
        };
        let text = |text: &str| table(Value::Text(text.into()));
        assert_eq!(record("g", &Table::default()), Ok(None));
        assert_eq!(
            record("g", &text(r#"{"a": 1}"#)),
            Ok(Some(serde_json::json!({"a": 1})))
        );
        for bad in [text("[1]"), text("{"), table(Value::Number(1.0))] {
            assert!(record("g", &bad).is_err());
        }
    }
}
