//! The checksum list `checksums.sha256`.
//!
//! Each line is 64 hex digits, a space, a space or `*`, and a name. Reading accepts either case of digit, CRLF, blank lines, a leading `./` and any order,
//! as the reference verifier does; it refuses, more strictly than that, backslashes, repeated names and text that is not UTF-8.

use std::collections::BTreeSet;

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Hex digest, lower case.
    pub digest: String,
    /// The covered name: without leading `./`.
    pub name: String,
}

/// A list as read: its good lines and its faults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Lines that can be checked, in file order.
    pub lines: Vec<Line>,
    /// Faults, in file order, each naming its line.
    pub faults: Vec<String>,
}

/// How names are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Plain names in the order given: what `build` writes.
    Native,
    /// Names with `./` in front, sorted: layout v2.
    V2,
}

/// Parses a list. Faulty lines do not hide the others.
pub fn parse(bytes: &[u8]) -> List {
    let mut list = List::default();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            list.faults.push(format!(
                "the list is not UTF-8 from byte {} on",
                error.valid_up_to()
            ));
            return list;
        }
    };
    let mut seen = BTreeSet::new();
    for (number, line) in text
        .split('\n')
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim_end()))
    {
        if line.is_empty() {
            continue;
        }
        let Some((digest, name)) = split(line) else {
            list.faults.push(format!(
                "line {number} is not `<64 hex digits>  <name>`: `{}`",
                shorten(line)
            ));
            continue;
        };
        if name.contains('\\') {
            list.faults.push(format!(
                "line {number} names `{}` with a backslash; write `/`",
                shorten(name)
            ));
        }
        let slashes = name.replace('\\', "/");
        let mut covered = slashes.as_str();
        while let Some(rest) = covered.strip_prefix("./") {
            covered = rest;
        }
        if !seen.insert(covered.to_owned()) {
            list.faults
                .push(format!("line {number} repeats `{}`", shorten(covered)));
            continue;
        }
        list.lines.push(Line {
            digest: digest.to_ascii_lowercase(),
            name: covered.to_owned(),
        });
    }
    list
}

/// The bytes of a list.
pub fn write(lines: &[Line], form: Form) -> Vec<u8> {
    let mut order: Vec<&Line> = lines.iter().collect();
    let prefix = match form {
        Form::Native => "",
        Form::V2 => {
            order.sort_by(|a, b| a.name.cmp(&b.name));
            "./"
        }
    };
    let mut text = String::new();
    for line in order {
        text.push_str(&line.digest);
        text.push_str("  ");
        text.push_str(prefix);
        text.push_str(&line.name);
        text.push('\n');
    }
    text.into_bytes()
}

fn split(line: &str) -> Option<(&str, &str)> {
    let digest = line
        .get(..64)
        .filter(|digest| digest.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    let rest = line.get(64..)?.strip_prefix(' ')?;
    let name = rest.strip_prefix(' ').or_else(|| rest.strip_prefix('*'))?;
    (!name.is_empty()).then_some((digest, name))
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= 100 {
        text.to_owned()
    } else {
        text.chars().take(97).chain("...".chars()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lenient_where_the_format_is_and_no_further() {
        let digest = "ab".repeat(32);
        let upper = digest.to_uppercase();
        let text = format!(
            "{upper} *./././x y\r\n\n  \n{digest}  z\n{digest}\tq\n{digest} q\n# no\n{digest}  \n{digest}  a\\b\n{digest}  ./z"
        );
        let list = parse(text.as_bytes());
        let names: Vec<_> = list.lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, ["x y", "z", "a/b"]);
        assert!(list.lines.iter().all(|line| line.digest == digest));
        assert_eq!(list.faults.len(), 6, "{:?}", list.faults);
        assert_eq!(parse(b"\xff").faults.len(), 1);
        assert_eq!(parse(b""), List::default());
    }

    #[test]
    fn both_forms_read_back() {
        let lines = [
            Line {
                digest: "0".repeat(64),
                name: "b".into(),
            },
            Line {
                digest: "1".repeat(64),
                name: "a/c".into(),
            },
        ];
        assert_eq!(parse(&write(&lines, Form::Native)).lines, lines);
        let sorted = write(&lines, Form::V2);
        assert!(sorted.starts_with(b"1"));
        assert_eq!(parse(&sorted).lines.len(), 2);
    }
}
