//! One report again: whoever holds it, the tables that it names and the components that judged can derive every guard's
//! verdict anew.

use packhost_measure::report::Judged;
use packhost_measure::table::Table;
use packhost_measure::{Request, is_asked};
use serde_json::Value;

use crate::guards::{Guards, Measurements};
use crate::{Error, Result};

/// The texts of the tables that a report names.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// The baseline's measurements.
    pub baseline: &'a str,
    /// What was measured of the baseline while the subject was judged.
    pub rounds: &'a str,
    /// The subject's measurements.
    pub subject: &'a str,
}

/// Lets every guard of a report judge again, by the policies and requests that the report states.
///
/// # Errors
/// A table is not the one that the report names, a component is not the one that judged, a guard fails or asks for rows
/// that are not stored, or the report lacks what is needed.
pub fn replay(guards: &Guards, report: &Value, stored: &Stored<'_>) -> Result<Vec<Judged>> {
    let table = |name: &str, text: &str| {
        let table = Table::parse(text)?;
        let stated = report["packhost"]["tables"][name]["sha256"].as_str();
        let digest = table.digest();
        if stated != Some(&digest) {
            return Err(refused(format!(
                "the table `{name}` has the digest {digest}, the report names {}; restore the table that was judged",
                stated.unwrap_or("none")
            )));
        }
        Ok(table)
    };
    let mut baseline = table("baseline", stored.baseline)?;
    baseline.copy_from(&table("baseline_rounds", stored.rounds)?, |_, _| true);
    let mut measurements = Tables {
        baseline,
        subject: table("subject", stored.subject)?,
    };
    let listed = report["packhost"]["guards"].as_array();
    let listed = listed.ok_or_else(|| refused("the report lists no guards".into()))?;
    let again = |guard: &Value| {
        let text = |key: &str| {
            let text = guard[key].as_str();
            text.ok_or_else(|| refused(format!("the report states no `{key}` of a guard")))
        };
        let id = text("id")?;
        let judged = guards.judge_again(
            id,
            guard["policy"].clone(),
            asked(id, guard)?,
            &mut measurements,
        )?;
        if judged.digest != text("sha256")? {
            return Err(refused(format!(
                "guard `{id}` was judged by the component {}, the one here is {}; install that one",
                text("sha256")?,
                judged.digest
            )));
        }
        Ok(judged)
    };
    listed.iter().map(again).collect()
}

fn asked(guard: &str, stated: &Value) -> Result<Vec<Request>> {
    let requests = stated["asked"].as_array().into_iter().flatten();
    let request = |request: &Value| {
        let text = |key: &str| {
            let text = request[key].as_str().map(str::to_owned);
            text.ok_or_else(|| refused(format!("a request of guard `{guard}` has no `{key}`")))
        };
        Ok(Request {
            guard: guard.to_owned(),
            quantity: text("quantity")?,
            scope: text("scope")?,
            params: text("params")?,
        })
    };
    requests.map(request).collect()
}

fn refused(message: String) -> Error {
    Error::Replay { message }
}

/// Tables to which nothing can be added.
pub struct Tables {
    pub baseline: Table,
    pub subject: Table,
}

impl Measurements for Tables {
    fn tables(&self) -> (&Table, &Table) {
        (&self.baseline, &self.subject)
    }

    /// Further rows are stored with the others, so there is nothing to measure; a guard that asks for what is not there was
    /// given other tables when it judged.
    fn measure(&mut self, wanted: &[Request]) -> Result<()> {
        let stored = |request: &&Request| {
            let has = |table: &Table| {
                let mut keys = table.keys();
                keys.any(|(scope, quantity)| is_asked(request, scope, quantity))
            };
            has(&self.baseline) || has(&self.subject)
        };
        let absent: Vec<String> = wanted
            .iter()
            .filter(|request| !stored(request))
            .map(|request| format!("{} of {}", request.quantity, request.scope))
            .collect();
        if absent.is_empty() {
            return Ok(());
        }
        Err(refused(format!(
            "a guard asks for {}, which no stored table holds; the tables are not those of this verdict",
            absent.join(", ")
        )))
    }
}
