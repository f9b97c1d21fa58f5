//! Scenarios as the verdict needs them: what they are, what they demand, and which detectors they name.

use serde_json::Value;

use super::detectors::Detector;
use crate::error::{Error, Result};
use crate::json::get;

/// What a scenario is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    /// An edit that must do no harm.
    Clean,
    /// An edit that does harm.
    Stress,
    /// An injected fault.
    ErrorInjection,
    /// A category that the verdict ignores.
    Other,
}

impl Category {
    /// As files name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Stress => "stress",
            Self::ErrorInjection => "error_injection",
            Self::Other => "other",
        }
    }

    fn named(name: &str) -> Self {
        match name {
            "clean" => Self::Clean,
            "stress" => Self::Stress,
            "error_injection" => Self::ErrorInjection,
            _ => Self::Other,
        }
    }
}

/// What a scenario demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// Every run must pass.
    MustPass,
    /// Every run must be caught.
    MustFail,
    /// Every run must be detected.
    MustDetect,
    /// Only counted.
    Informational,
}

impl Strictness {
    /// As files name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MustPass => "must_pass",
            Self::MustFail => "must_fail",
            Self::MustDetect => "must_detect",
            Self::Informational => "informational",
        }
    }
}

/// A scenario of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Unique id.
    pub id: String,
    /// What it is for.
    pub category: Category,
    /// What it demands.
    pub strictness: Strictness,
    /// Label, free.
    pub intent: String,
    /// Label, free.
    pub failure_class: String,
    /// The guard that should see the change.
    pub primary_guard: String,
    /// Whether that guard must see it.
    pub primary_guard_required: bool,
    /// Whether it is one of the catastrophic edits that are counted apart.
    pub catastrophic_required: bool,
    /// Detectors of which one must match.
    pub any_of: Vec<Detector>,
    /// Detectors of which all must match.
    pub all_of: Vec<Detector>,
}

impl Scenario {
    /// Reads one entry of a scenario table.
    ///
    /// # Errors
    /// If the id is absent, the strictness or primary guard of a judged category is unknown, or a detector is malformed. A misspelt demand must not turn
    /// into no demand.
    pub fn from_json(value: &Value) -> Result<Self> {
        let text = |key: &str| get::text(value, &[key]).unwrap_or_default().to_owned();
        let id = text("id");
        if id.is_empty() {
            return Err(Error::Verdict("a scenario has no `id`".to_owned()));
        }
        let refuse = |what: String| Error::Verdict(format!("scenario `{id}`: {what}"));
        let category = Category::named(&text("category"));
        let strictness = match text("strictness").as_str() {
            "must_pass" => Strictness::MustPass,
            "must_fail" => Strictness::MustFail,
            "must_detect" => Strictness::MustDetect,
            "informational" => Strictness::Informational,
            other => {
                return Err(refuse(format!(
                    "strictness `{other}` is none of must_pass, must_fail, must_detect, informational"
                )));
            }
        };
        let primary_guard = text("primary_guard");
        let requirements = value.get("requirements").unwrap_or(&Value::Null);
        let primary_guard_required = get::is_true(requirements, &["primary_guard_required"]);
        if primary_guard_required && !super::CORE_GUARDS.contains(&primary_guard.as_str()) {
            return Err(refuse(format!(
                "primary_guard `{primary_guard}` is required to hit, but is none of {}",
                super::CORE_GUARDS.join(", ")
            )));
        }
        let detectors = |key: &str| -> Result<Vec<Detector>> {
            match requirements.get(key) {
                None | Some(Value::Null) => Ok(Vec::new()),
                Some(Value::Array(items)) => items
                    .iter()
                    .map(|item| {
                        Detector::from_json(item)
                            .map_err(|reason| refuse(format!("{key}: {reason}")))
                    })
                    .collect(),
                Some(_) => Err(refuse(format!("{key} must be an array"))),
            }
        };
        let (any_of, all_of) = (
            detectors("detectors_any_of")?,
            detectors("detectors_all_of")?,
        );
        Ok(Self {
            category,
            strictness,
            intent: text("intent"),
            failure_class: text("failure_class"),
            primary_guard,
            primary_guard_required,
            catastrophic_required: get::is_true(requirements, &["catastrophic_required"]),
            any_of,
            all_of,
            id,
        })
    }

    /// Whether each of its records decides about the verdict.
    pub fn gates(&self) -> bool {
        matches!(
            (self.category, self.strictness),
            (Category::Clean, Strictness::MustPass)
                | (Category::Stress, Strictness::MustFail)
                | (
                    Category::ErrorInjection,
                    Strictness::MustDetect | Strictness::MustFail
                )
        )
    }

    /// Whether it names any detector.
    pub fn has_detectors(&self) -> bool {
        !self.any_of.is_empty() || !self.all_of.is_empty()
    }

    /// Family of the edit: the first word of the id; empty for injected faults.
    pub(super) fn family(&self) -> &str {
        match self.category {
            Category::ErrorInjection => "",
            _ => self.id.split('_').next().unwrap_or_default(),
        }
    }
}

/// Reads a scenario table: the `scenarios` of `scenarios.json`.
///
/// # Errors
/// If there is no such list or one of its entries is unusable.
pub fn scenarios(table: &Value) -> Result<Vec<Scenario>> {
    let entries = table
        .get("scenarios")
        .and_then(Value::as_array)
        .ok_or_else(|| Error::Verdict("the scenario table has no array `scenarios`".to_owned()))?;
    entries.iter().map(Scenario::from_json).collect()
}
