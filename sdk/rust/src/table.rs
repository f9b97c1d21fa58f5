//! Measurement tables, as a guard reads them.

use std::collections::BTreeMap;

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

    /// The values of one quantity by scope, in the order of the scopes' bytes. One pass over the table: a guard that looks
    /// at many scopes asks for this once instead of asking for each row.
    pub fn by_scope(&self, quantity: &str) -> BTreeMap<&str, &Value> {
        let rows = self.rows.iter().filter(|row| row.quantity == quantity);
        rows.map(|row| (row.scope.as_str(), &row.value)).collect()
    }

    /// The numbers of one quantity by scope.
    ///
    /// # Errors
    /// When a row is of another kind.
    pub fn numbers(&self, quantity: &str) -> Result<BTreeMap<&str, f64>> {
        let read = |(scope, value): (_, &Value)| match value {
            Value::Number(number) => Ok((scope, *number)),
            other => Err(wrong(scope, quantity, "a number", Some(other))),
        };
        self.by_scope(quantity).into_iter().map(read).collect()
    }

    /// The vectors of one quantity by scope.
    ///
    /// # Errors
    /// When a row is of another kind.
    pub fn vectors(&self, quantity: &str) -> Result<BTreeMap<&str, &[f64]>> {
        let values = self.by_scope(quantity).into_iter();
        values
            .map(|(scope, value)| match value {
                Value::Vector(vector) => Ok((scope, vector.as_slice())),
                other => Err(wrong(scope, quantity, "a vector", Some(other))),
            })
            .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let row = |scope: &str, quantity: &str, value| Row {
            scope: scope.to_owned(),
            quantity: quantity.to_owned(),
            value,
        };
        Table::new(vec![
            row("b", "weight", Value::Number(2.0)),
            row("a", "weight", Value::Number(1.0)),
            row("a", "losses", Value::Vector(vec![3.0])),
        ])
    }

    #[test]
    fn rows_of_a_quantity_by_scope() {
        let table = table();
        let weights = table.numbers("weight").unwrap_or_default();
        assert_eq!(
            weights.into_iter().collect::<Vec<_>>(),
            [("a", 1.0), ("b", 2.0)]
        );
        let losses = table.vectors("losses").unwrap_or_default();
        assert_eq!(losses.get("a").copied(), Some([3.0].as_slice()));
        assert!(table.by_scope("absent").is_empty());
    }

    #[test]
    fn a_row_of_another_kind_is_named() {
        let failure = table()
            .numbers("losses")
            .err()
            .map(|failure| failure.to_string());
        assert_eq!(
            failure.as_deref(),
            Some("failed: measurement table: `losses` at `a` must be a number, found a vector")
        );
    }
}
