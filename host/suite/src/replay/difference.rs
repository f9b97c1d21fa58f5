//! Comparing what a pack states with what was derived, down to the place.

use std::collections::BTreeSet;
use std::fmt;

use packhost_pack::files::Files;
use serde::Serialize;
use serde_json::Value;

/// A claim of a pack that does not follow from its evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Stable name of the step that showed it, such as `replay.guard`.
    pub check_id: &'static str,
    /// The file of the pack that makes the claim.
    pub file: String,
    /// JSON pointer into it; empty for the file as a whole.
    pub pointer: String,
    /// What the pack states, as JSON; shortened where it is long.
    pub stated: String,
    /// What was derived, or why nothing could be.
    pub derived: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            check_id,
            file,
            pointer,
            stated,
            derived,
        } = self;
        write!(f, "[{check_id}] `{file}` {pointer}")?;
        let space = if pointer.is_empty() { "" } else { " " };
        match stated.as_str() {
            "" => write!(f, "{space}{derived}"),
            stated => write!(f, "{space}states {stated}, derived is {derived}"),
        }
    }
}

/// Everything that a replay finds.
#[derive(Debug, Default)]
pub struct Findings {
    pub differences: Vec<Difference>,
    /// Files that were made again and agree, or whose digest a derived file names.
    pub derived: BTreeSet<String>,
}

impl Findings {
    /// Notes that a step could not be taken, and why; once, however many steps find the same.
    pub fn fail(&mut self, check_id: &'static str, file: &str, why: impl Into<String>) {
        let difference = Difference {
            check_id,
            file: file.to_owned(),
            pointer: String::new(),
            stated: String::new(),
            derived: why.into(),
        };
        if !self.differences.contains(&difference) {
            self.differences.push(difference);
        }
    }

    /// Takes in what another thread found.
    pub fn merge(&mut self, other: Self) {
        self.differences.extend(other.differences);
        self.derived.extend(other.derived);
    }

    /// Notes the value at a pointer if it is not the derived one.
    pub fn value(
        &mut self,
        check_id: &'static str,
        file: &str,
        pointer: &str,
        derived: &Value,
        document: &Value,
    ) {
        let stated = document.pointer(pointer).unwrap_or(&Value::Null);
        let check = |_: &str| check_id;
        walk(
            &check,
            file,
            stated,
            derived,
            pointer,
            &mut self.differences,
        );
    }

    /// Compares a file of the pack with its derived bytes. `check` names the check by the pointer of a difference.
    pub fn file(
        &mut self,
        files: &Files,
        check: &dyn Fn(&str) -> &'static str,
        name: &str,
        derived: &[u8],
    ) {
        let stated = match files.read(name) {
            Ok(stated) => stated,
            Err(why) => return self.fail("replay.missing", name, why),
        };
        if stated == derived {
            self.derived.insert(name.to_owned());
            return;
        }
        let before = self.differences.len();
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
        if let (Some(stated), Some(derived)) = (parse(&stated), parse(derived)) {
            walk(check, name, &stated, &derived, "", &mut self.differences);
        }
        if self.differences.len() == before {
            // The same values in another spelling, or no JSON.
            let at = stated.iter().zip(derived).take_while(|(a, b)| a == b);
            let at = at.count();
            let line = stated[..at].iter().filter(|byte| **byte == b'\n').count();
            let text = |bytes: &[u8]| {
                let text = String::from_utf8_lossy(bytes);
                shortened(text.lines().nth(line).unwrap_or_default())
            };
            self.differences.push(Difference {
                check_id: check(""),
                file: name.to_owned(),
                pointer: format!("line {}", line + 1),
                stated: format!("`{}`", text(&stated)),
                derived: format!("`{}`", text(derived)),
            });
        }
    }
}

/// Notes every place where two values differ.
fn walk(
    check: &dyn Fn(&str) -> &'static str,
    file: &str,
    stated: &Value,
    derived: &Value,
    pointer: &str,
    out: &mut Vec<Difference>,
) {
    if stated == derived {
        return;
    }
    match (stated, derived) {
        (Value::Object(stated), Value::Object(derived)) => {
            let keys: BTreeSet<&String> = stated.keys().chain(derived.keys()).collect();
            for key in keys {
                let pointer = format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"));
                match (stated.get(key), derived.get(key)) {
                    (Some(stated), Some(derived)) => {
                        walk(check, file, stated, derived, &pointer, out);
                    }
                    (stated, derived) => out.push(place(check, file, &pointer, stated, derived)),
                }
            }
        }
        (Value::Array(stated), Value::Array(derived)) => {
            for index in 0..stated.len().max(derived.len()) {
                let pointer = format!("{pointer}/{index}");
                match (stated.get(index), derived.get(index)) {
                    (Some(stated), Some(derived)) => {
                        walk(check, file, stated, derived, &pointer, out);
                    }
                    (stated, derived) => out.push(place(check, file, &pointer, stated, derived)),
                }
            }
        }
        (stated, derived) => out.push(place(check, file, pointer, Some(stated), Some(derived))),
    }
}

fn place(
    check: &dyn Fn(&str) -> &'static str,
    file: &str,
    pointer: &str,
    stated: Option<&Value>,
    derived: Option<&Value>,
) -> Difference {
    let shown = |value: Option<&Value>| {
        value.map_or("nothing".into(), |value| shortened(&value.to_string()))
    };
    Difference {
        check_id: check(pointer),
        file: file.to_owned(),
        pointer: pointer.to_owned(),
        stated: shown(stated),
        derived: shown(derived),
    }
}

fn shortened(text: &str) -> String {
    const MOST: usize = 120;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_place_is_named() {
        let stated = json!({"a": [1, 2.5], "b/c": {"x": true}, "gone": 1});
        let derived = json!({"a": [1, 2.25, 3], "b/c": {"x": false}, "new": null});
        let mut out = Vec::new();
        walk(&|_| "replay.report", "f", &stated, &derived, "", &mut out);
        let said: Vec<String> = out.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "[replay.report] `f` /a/1 states 2.5, derived is 2.25",
                "[replay.report] `f` /a/2 states nothing, derived is 3",
                "[replay.report] `f` /b~1c/x states true, derived is false",
                "[replay.report] `f` /gone states 1, derived is nothing",
                "[replay.report] `f` /new states nothing, derived is null",
            ]
        );
    }
}
