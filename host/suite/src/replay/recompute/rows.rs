//! Two tables of the same thing, row by row: what the pack states and what was measured again.

use packhost_measure::table::{Table, Value};

use super::super::difference::{Difference, Findings};

/// How far a number may lie from the one that the pack states: the larger of both.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// Of the larger of the two numbers.
    pub relative: f64,
    /// Whatever the numbers are.
    pub absolute: f64,
}

impl Bound {
    /// Between kinds of processors: products with bf16 weights differ in their last places, and what is computed of them
    /// by some orders more.
    pub const OTHER_PROCESSOR: Self = Self {
        relative: 1e-3,
        absolute: 1e-6,
    };
    /// The same bits.
    pub const EXACT: Self = Self {
        relative: 0.0,
        absolute: 0.0,
    };

    fn allows(self, stated: f64, derived: f64) -> bool {
        let most = (self.relative * stated.abs().max(derived.abs())).max(self.absolute);
        (stated - derived).abs() <= most
    }
}

/// How the rows of a table compare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Numbers and texts, those of vectors each.
    pub values: usize,
    /// Of these, how many are not the same, but within the bound.
    pub within: usize,
}

impl std::ops::AddAssign for Compared {
    fn add_assign(&mut self, other: Self) {
        self.values += other.values;
        self.within += other.within;
    }
}

/// Holds every row of a pack's table against the one that was measured, and names each row that differs: of a vector the
/// first place, and how many more there are.
pub fn compare(
    file: &str,
    stated: &Table,
    derived: &Table,
    bound: Bound,
    findings: &mut Findings,
) -> Compared {
    let mut compared = Compared::default();
    let mut note = |pointer: String, stated: String, derived: String| {
        findings.differences.push(Difference {
            check_id: "recompute.row",
            file: file.to_owned(),
            pointer,
            stated,
            derived,
        });
    };
    for (position, row) in stated.rows().enumerate() {
        let what = format!("`{}` of `{}`", row.quantity, row.scope);
        let pointer = format!("/rows/{position}");
        let Some(found) = derived.get(&row.scope, &row.quantity) else {
            note(pointer, what, "nothing".into());
            continue;
        };
        let (mine, theirs) = (numbers(found), numbers(&row.value));
        let (Some(mine), Some(theirs)) = (mine, theirs) else {
            compared.values += 1;
            if *found != row.value {
                let said = format!("{} as {what}", shown(&row.value));
                note(pointer, said, shown(found));
            }
            continue;
        };
        if mine.len() != theirs.len() {
            let said = format!("{} numbers as {what}", theirs.len());
            note(pointer, said, mine.len().to_string());
            continue;
        }
        compared.values += mine.len();
        let mut beyond = Vec::new();
        for (place, (mine, theirs)) in mine.iter().zip(theirs).enumerate() {
            if mine.to_bits() == theirs.to_bits() || (mine.is_nan() && theirs.is_nan()) {
                continue;
            }
            match bound.allows(*theirs, *mine) {
                true => compared.within += 1,
                false => beyond.push(place),
            }
        }
        if let Some(&first) = beyond.first() {
            let (pointer, what) = match row.value {
                Value::Vector(_) => (
                    format!("{pointer}/vector/{first}"),
                    format!("place {first} of {what}"),
                ),
                _ => (format!("{pointer}/number"), what),
            };
            let more = match beyond.len() {
                1 => String::new(),
                count => format!(", and {} more numbers of this row differ", count - 1),
            };
            let said = format!("{:?} as {what}", theirs[first]);
            note(pointer, said, format!("{:?}{more}", mine[first]));
        }
    }
    for (scope, quantity) in derived.keys() {
        if stated.get(scope, quantity).is_none() {
            let what = format!("`{quantity}` of `{scope}`");
            note("/rows".into(), "nothing".into(), what);
        }
    }
    compared
}

fn numbers(value: &Value) -> Option<&[f64]> {
    match value {
        Value::Number(number) => Some(std::slice::from_ref(number)),
        Value::Vector(numbers) => Some(numbers),
        Value::Text(_) => None,
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Number(number) => format!("{number:?}"),
        Value::Vector(numbers) => format!("{} numbers", numbers.len()),
        Value::Text(text) => format!("`{text}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new();
        table.put_number("a", "x", 2.0);
        table.put_text("a", "y", "bf16");
        table.put_vector("b", "z", vec![1.0, f64::NAN, 3.0]);
        table
    }

    fn said(change: impl Fn(&mut Table), bound: Bound) -> (Compared, Vec<String>) {
        let mut derived = table();
        change(&mut derived);
        let mut findings = Findings::default();
        let compared = compare("t", &table(), &derived, bound, &mut findings);
        let said = findings.differences.iter().map(ToString::to_string);
        (compared, said.collect())
    }

    #[test]
    fn rows_that_differ_are_named() {
        let all = Compared {
            values: 5,
            within: 0,
        };
        assert_eq!(said(|_| {}, Bound::EXACT), (all, vec![]));
        let (_, found) = said(
            |table| {
                table.put_vector("b", "z", vec![1.5, 2.0, 3.0]);
                table.put_text("a", "y", "f32");
                table.put_number("c", "new", 1.0);
            },
            Bound::EXACT,
        );
        assert_eq!(
            found,
            [
                "[recompute.row] `t` /rows/1 states `bf16` as `y` of `a`, derived is `f32`",
                "[recompute.row] `t` /rows/2/vector/0 states 1.0 as place 0 of `z` of `b`, derived is 1.5, and 1 more numbers of this row differ",
                "[recompute.row] `t` /rows states nothing, derived is `new` of `c`",
            ]
        );
    }

    #[test]
    fn the_last_bit_counts_where_the_bound_is_zero() {
        let change = |table: &mut Table| table.put_number("a", "x", 2.0_f64.next_up());
        assert_eq!(said(change, Bound::EXACT).1.len(), 1);
        let (compared, found) = said(change, Bound::OTHER_PROCESSOR);
        assert_eq!((compared.within, found.len()), (1, 0));
        let far = |table: &mut Table| table.put_number("a", "x", 2.01);
        assert_eq!(said(far, Bound::OTHER_PROCESSOR).1.len(), 1);
        let text = |table: &mut Table| table.put_number("a", "y", 1.0);
        assert_eq!(said(text, Bound::OTHER_PROCESSOR).1.len(), 1);
    }
}
