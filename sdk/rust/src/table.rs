//! Measurement tables, as a guard reads them.

use crate::{Failure, Result};

/// What a row holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// One number.
    Number(f64),
    /// Several.
    Vector(Vec<f64>),
    /// Words.
    Text(String),
}

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// A tensor, a module, a split or `model`.
    pub scope: String,
    /// Such as `window.loss`.
    pub quantity: String,
    /// What was measured.
    pub value: Value,
}

/// All measurements of one subject.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// A table of `rows`, in their order.
    pub fn new(rows: Vec<Row>) -> Self {
        Self { rows }
    }

    /// Every row.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The rows of one quantity, in the table's order.
    pub fn of<'a>(&'a self, quantity: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.quantity == quantity)
    }

    /// The value of `quantity` at `scope`.
    pub fn get(&self, scope: &str, quantity: &str) -> Option<&Value> {
        self.rows
            .iter()
            .find(|row| row.scope == scope && row.quantity == quantity)
            .map(|row| &row.value)
    }

    /// A number.
    ///
    /// # Errors
    /// When the row is missing or of another kind.
    pub fn number(&self, scope: &str, quantity: &str) -> Result<f64> {
        match self.get(scope, quantity) {
            Some(Value::Number(number)) => Ok(*number),
            other => Err(wrong(scope, quantity, "a number", other)),
        }
    }

    /// A vector.
    ///
    /// # Errors
    /// When the row is missing or of another kind.
    pub fn vector(&self, scope: &str, quantity: &str) -> Result<&[f64]> {
        match self.get(scope, quantity) {
            Some(Value::Vector(vector)) => Ok(vector),
            other => Err(wrong(scope, quantity, "a vector", other)),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// When the row is missing or of another kind.
    pub fn text(&self, scope: &str, quantity: &str) -> Result<&str> {
        match self.get(scope, quantity) {
            Some(Value::Text(text)) => Ok(text),
            other => Err(wrong(scope, quantity, "a text", other)),
        }
    }
}

/// The failure for a row that is not what the guard needs.
fn wrong(scope: &str, quantity: &str, wanted: &str, found: Option<&Value>) -> Failure {
    let found = match found {
        None => "no such row",
        Some(Value::Number(_)) => "a number",
        Some(Value::Vector(_)) => "a vector",
        Some(Value::Text(_)) => "a text",
    };
    Failure::failed(format!(
        "measurement table: `{quantity}` at `{scope}` must be {wanted}, found {found}"
    ))
}
