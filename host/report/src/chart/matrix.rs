//! A matrix of marks: what each of several observers says about each of many things.

use super::{figure, fitting, label, room};
use crate::markup::{Markup, at};

/// A matrix.
#[derive(Debug, Clone, Default)]
pub struct Matrix {
    /// Above it.
    pub title: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Rows, in groups with a heading.
    pub groups: Vec<Group>,
    /// What the marks mean, in the order of the legend.
    pub legend: Vec<(Cell, String)>,
    /// An explanation below.
    pub note: String,
}

/// Rows that belong together.
#[derive(Debug, Clone, Default)]
pub struct Group {
    /// Heading.
    pub title: String,
    /// The rows.
    pub rows: Vec<Row>,
}

/// One row.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// In front of it.
    pub label: String,
    /// As many as there are columns.
    pub cells: Vec<Cell>,
}

/// One mark.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    /// Its look.
    pub tone: Tone,
    /// A letter or two inside.
    pub mark: String,
    /// In words, as a tooltip.
    pub tip: String,
}

/// How a mark looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// Nothing to see: an empty frame.
    #[default]
    Quiet,
    /// Something that needs no action.
    Note,
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Damage.
    Fail,
    /// Not to be taken at face value: hatched by a dashed frame.
    Doubt,
    /// There is no answer.
    Absent,
}

impl Tone {
    /// Its class in the style sheet.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Note => "note",
            Self::Good => "good",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Doubt => "doubt",
            Self::Absent => "absent",
        }
    }
}

const CELL: f64 = 52.0;
const ROW: f64 = 22.0;
const HEAD: f64 = 108.0;
const LEGEND: f64 = 520.0;
const LEGEND_ROW: f64 = 24.0;

impl Matrix {
    pub(crate) fn render(&self, m: &mut Markup) {
        let lines: usize = self.groups.iter().map(|group| group.rows.len() + 1).sum();
        let rows = self.groups.iter().flat_map(|group| &group.rows);
        let labels = room(rows.map(|row| row.label.as_str()));
        // Slanted headings lean out to the right, and the legend needs its width.
        let width = (labels + CELL * self.columns.len() as f64 + 70.0).max(LEGEND);
        let legend = LEGEND_ROW * self.legend.len() as f64;
        let height = HEAD + ROW * lines as f64 + 16.0 + legend;
        figure(m, &self.title, &self.note, (width, height), |m| {
            for (index, column) in self.columns.iter().enumerate() {
                let x = labels + CELL * (index as f64 + 0.5);
                let turn = format!("rotate(-45 {} {})", at(x), at(HEAD - 8.0));
                m.leaf(
                    "text",
                    &[
                        ("x", &at(x)),
                        ("y", &at(HEAD - 8.0)),
                        ("transform", &turn),
                        ("class", &"tick head"),
                    ],
                    &fitting(column, HEAD * std::f64::consts::SQRT_2),
                );
            }
            let mut top = HEAD;
            for group in &self.groups {
                label(m, 0.0, top + 16.0, "start", "group", &group.title);
                top += ROW;
                for row in &group.rows {
                    let name = fitting(&row.label, labels - 10.0);
                    label(m, labels - 10.0, top + 15.0, "end", "tick", &name);
                    for (index, cell) in row.cells.iter().enumerate() {
                        cell.render(m, labels + CELL * index as f64, top);
                    }
                    top += ROW;
                }
            }
            top += 16.0;
            for (cell, meaning) in &self.legend {
                cell.render(m, 0.0, top);
                label(m, CELL + 8.0, top + 15.0, "start", "tick", meaning);
                top += LEGEND_ROW;
            }
        });
    }
}

impl Cell {
    fn render(&self, m: &mut Markup, x: f64, y: f64) {
        let class = format!("cell {}", self.tone.name());
        m.element("g", &[("class", &class)], |m| {
            let place: [(&str, &dyn std::fmt::Display); 5] = [
                ("x", &(x + 2.0)),
                ("y", &(y + 2.0)),
                ("width", &(CELL - 4.0)),
                ("height", &(ROW - 4.0)),
                ("rx", &3),
            ];
            m.empty("rect", &place);
            label(m, x + CELL / 2.0, y + 15.0, "middle", "mark", &self.mark);
            if !self.tip.is_empty() {
                m.leaf("title", &[], &self.tip);
            }
        });
    }
}
