//! A page as plain text, for a terminal: the same sections and words, without what only a picture can say. Charts are left
//! out (their figures stand in tables), and so is what is folded away. Text of strangers is spelled so that it cannot do
//! more than be read.

use std::fmt::Write as _;

use packhost_plain::line;

use crate::chart::matrix::Matrix;
use crate::page::{Align, Block, Page, Table};

/// Where prose is broken.
const WIDTH: usize = 100;

impl Page {
    /// The text; it ends with a line feed.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n", line(&self.title));
        if !self.lead.is_empty() {
            prose(&mut out, "", &self.lead);
        }
        for section in &self.sections {
            let _ = write!(out, "\n{}\n", line(&section.title).to_uppercase());
            for block in &section.blocks {
                block.text(&mut out);
            }
        }
        out
    }
}

impl Block {
    fn text(&self, out: &mut String) {
        // Writing to a string cannot fail.
        match self {
            Self::Banner(banner) => {
                let _ = writeln!(out, "  {}: {}", line(&banner.word), line(&banner.text));
            }
            Self::Heading(text) => {
                let _ = writeln!(out, "\n  {}", line(text));
            }
            Self::Text(text) => prose(out, "  ", text),
            Self::List(items) => {
                for item in items {
                    let _ = writeln!(out, "  - {}", line(item));
                }
            }
            Self::Code(lines) => {
                for code in lines.lines() {
                    let _ = writeln!(out, "    {}", line(code));
                }
            }
            Self::Facts(facts) => {
                let facts: Vec<_> = facts.iter().map(|(a, b)| (line(a), line(b))).collect();
                let width = facts.iter().map(|(name, _)| length(name)).max();
                for (name, value) in &facts {
                    let _ = writeln!(out, "  {}  {value}", padded(name, width.unwrap_or(0), true));
                }
            }
            Self::Table(table) => table.text(out),
            Self::Matrix(matrix) => matrix.text(out),
            Self::Lines(_) | Self::Bars(_) | Self::Fold(_) => {}
        }
    }
}

impl Table {
    fn text(&self, out: &mut String) {
        if !self.caption.is_empty() {
            let _ = writeln!(out, "\n  {}", line(&self.caption));
        }
        let heads: Vec<String> = self
            .columns
            .iter()
            .map(|column| line(&column.title).into_owned())
            .collect();
        let rows = self.rows.iter().map(|row| {
            let cells = row.iter().map(|cell| line(cell).into_owned());
            cells.collect::<Vec<_>>()
        });
        let rows: Vec<Vec<String>> = std::iter::once(heads).chain(rows).collect();
        let width = |at: usize| {
            let cells = rows.iter().filter_map(|row| row.get(at));
            cells.map(|cell| length(cell)).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for row in &rows {
            let cells = row.iter().zip(&self.columns).zip(&widths);
            let cells: Vec<String> = cells
                .map(|((cell, column), &width)| padded(cell, width, column.align != Align::End))
                .collect();
            let _ = writeln!(out, "  {}", cells.join("  ").trim_end());
        }
    }
}

impl Matrix {
    fn text(&self, out: &mut String) {
        let _ = writeln!(out, "\n  {}", line(&self.title));
        let rows = self.groups.iter().flat_map(|group| &group.rows);
        let width = rows
            .map(|row| length(&line(&row.label)) + 2)
            .max()
            .unwrap_or(0);
        // A column is called by the last line that points at it.
        let stem = |until: usize| "| ".repeat(until);
        for (at, column) in self.columns.iter().enumerate() {
            let stem = stem(at);
            let _ = writeln!(out, "  {:width$}  {stem}{}", "", line(column));
        }
        let _ = writeln!(
            out,
            "  {:width$}  {}",
            "",
            stem(self.columns.len()).trim_end()
        );
        for group in &self.groups {
            if !group.title.is_empty() {
                let _ = writeln!(out, "  {}", line(&group.title));
            }
            for row in &group.rows {
                let marks: Vec<_> = row.cells.iter().map(|cell| line(&cell.mark)).collect();
                let label = padded(&format!("  {}", line(&row.label)), width, true);
                let _ = writeln!(out, "  {label}  {}", marks.join(" "));
            }
        }
        for (cell, meaning) in &self.legend {
            let _ = writeln!(out, "    {}  {}", line(&cell.mark), line(meaning));
        }
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn padded(text: &str, width: usize, start: bool) -> String {
    let space = " ".repeat(width.saturating_sub(length(text)));
    match start {
        true => format!("{text}{space}"),
        false => format!("{space}{text}"),
    }
}

fn prose(out: &mut String, indent: &str, text: &str) {
    let text = line(text);
    let mut at = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let space = match at {
            0 => indent.to_owned(),
            _ if at + 1 + length(word) > WIDTH => format!("\n{indent}"),
            _ => " ".into(),
        };
        at = match space.strip_prefix('\n') {
            Some(rest) => length(rest) + length(word),
            None => at + length(&space) + length(word),
        };
        out.push_str(&space);
        out.push_str(word);
    }
    out.push('\n');
}
