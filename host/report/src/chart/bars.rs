//! Horizontal bars, one to a row: how large something is for each of many things.

use super::{Scale, figure, fitting, label, number, room};
use crate::markup::{Markup, at};

/// A chart of bars.
#[derive(Debug, Clone, Default)]
pub struct Bars {
    /// Above the chart.
    pub title: String,
    /// Whether the axis is logarithmic.
    pub logarithmic: bool,
    /// Top to bottom.
    pub bars: Vec<Bar>,
    /// Limits to draw across.
    pub marks: Vec<Mark>,
    /// An explanation below.
    pub note: String,
}

/// One bar.
#[derive(Debug, Clone, Default)]
pub struct Bar {
    /// In front of it.
    pub label: String,
    /// How long; a row without a value is shown by its `missing` word.
    pub value: Option<f64>,
    /// What stands beside it; the value where this is empty.
    pub shown: String,
    /// What stands where there is no value.
    pub missing: String,
}

/// A line across all bars.
#[derive(Debug, Clone)]
pub struct Mark {
    /// Where.
    pub value: f64,
    /// What it means.
    pub label: String,
}

const WIDTH: f64 = 760.0;
const RIGHT: f64 = 70.0;
const TOP: f64 = 26.0;
const ROW: f64 = 19.0;

impl Bars {
    pub(crate) fn render(&self, m: &mut Markup) {
        let left = room(self.bars.iter().map(|bar| bar.label.as_str()));
        let bottom = TOP + ROW * self.bars.len() as f64;
        figure(m, &self.title, &self.note, (WIDTH, bottom + 30.0), |m| {
            let values = self.bars.iter().filter_map(|bar| bar.value);
            let values = values.chain(self.marks.iter().map(|mark| mark.value));
            let Some(scale) = Scale::of(values, self.logarithmic) else {
                return label(m, WIDTH / 2.0, TOP, "middle", "tick", "nothing to show");
            };
            let x = |value: f64| left + (WIDTH - left - RIGHT) * scale.place(value);
            for tick in scale.ticks() {
                let x = x(tick);
                m.empty(
                    "line",
                    &[
                        ("x1", &at(x)),
                        ("x2", &at(x)),
                        ("y1", &TOP),
                        ("y2", &bottom),
                        ("class", &"grid"),
                    ],
                );
                label(m, x, bottom + 16.0, "middle", "tick", &number(tick));
            }
            for mark in &self.marks {
                let x = x(mark.value);
                m.empty(
                    "line",
                    &[
                        ("x1", &at(x)),
                        ("x2", &at(x)),
                        ("y1", &(TOP - 6.0)),
                        ("y2", &bottom),
                        ("class", &"limit"),
                    ],
                );
                label(m, x, TOP - 10.0, "middle", "tick", &mark.label);
            }
            for (index, bar) in self.bars.iter().enumerate() {
                bar.render(m, (left, TOP + ROW * index as f64), &x);
            }
        });
    }
}

impl Bar {
    fn render(&self, m: &mut Markup, (left, top): (f64, f64), x: &dyn Fn(f64) -> f64) {
        let name = fitting(&self.label, left - 8.0);
        label(m, left - 8.0, top + 13.0, "end", "tick", &name);
        match self.value.filter(|value| value.is_finite()) {
            Some(value) => {
                let width = (x(value) - left).max(1.5);
                let shown = match self.shown.as_str() {
                    "" => number(value),
                    shown => shown.to_owned(),
                };
                m.element(
                    "rect",
                    &[
                        ("x", &left),
                        ("y", &at(top + 3.0)),
                        ("width", &at(width)),
                        ("height", &(ROW - 6.0)),
                        ("rx", &2),
                        ("class", &"bar"),
                    ],
                    |m| m.leaf("title", &[], &format!("{}: {shown}", self.label)),
                );
                label(m, left + width + 6.0, top + 13.0, "start", "value", &shown);
            }
            None => label(m, left + 6.0, top + 13.0, "start", "tick", &self.missing),
        }
    }
}
