//! Lines over named places: how something grows with the strength of a cause.

use super::{Scale, figure, label, number};
use crate::markup::{Markup, at};

/// A chart of lines.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    /// Above the chart.
    pub title: String,
    /// Below the horizontal axis.
    pub x_title: String,
    /// Beside the vertical axis.
    pub y_title: String,
    /// Places on the horizontal axis, evenly spaced.
    pub x: Vec<String>,
    /// Whether the vertical axis is logarithmic; then values not above 0 lie on its lower end.
    pub logarithmic: bool,
    /// The lines, at most eight that can be told apart.
    pub series: Vec<Series>,
    /// An explanation below.
    pub note: String,
}

/// One line.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// Colour and shape, 0 to 7: the same number is the same look on every chart.
    pub look: usize,
    /// A value for each place, where there is one.
    pub values: Vec<Option<f64>>,
}

const WIDTH: f64 = 420.0;
const PLOT: f64 = 190.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const LEGEND_ROW: f64 = 18.0;

impl Lines {
    pub(crate) fn render(&self, m: &mut Markup) {
        let legend = self.series.len().div_ceil(2) as f64 * LEGEND_ROW;
        let height = TOP + PLOT + 46.0 + legend;
        figure(m, &self.title, &self.note, (WIDTH, height), |m| {
            let values = self
                .series
                .iter()
                .flat_map(|s| s.values.iter().flatten().copied());
            match Scale::of(values, self.logarithmic) {
                Some(scale) => self.plot(m, scale),
                None => label(
                    m,
                    WIDTH / 2.0,
                    PLOT / 2.0,
                    "middle",
                    "tick",
                    "nothing to show",
                ),
            }
            self.legend(m, TOP + PLOT + 54.0);
        });
    }

    fn plot(&self, m: &mut Markup, scale: Scale) {
        let y = |value: f64| TOP + PLOT * (1.0 - scale.place(value));
        let right = WIDTH - RIGHT;
        for tick in scale.ticks() {
            let y = y(tick);
            m.empty(
                "line",
                &[
                    ("x1", &LEFT),
                    ("x2", &right),
                    ("y1", &at(y)),
                    ("y2", &at(y)),
                    ("class", &"grid"),
                ],
            );
            label(m, LEFT - 6.0, y + 4.0, "end", "tick", &number(tick));
        }
        let turn = format!("rotate(-90 12 {})", at(TOP + PLOT / 2.0));
        m.leaf(
            "text",
            &[
                ("x", &12),
                ("y", &at(TOP + PLOT / 2.0)),
                ("transform", &turn),
                ("text-anchor", &"middle"),
                ("class", &"tick"),
            ],
            &self.y_title,
        );
        // As many names as have room.
        let longest = self.x.iter().map(String::len).max().unwrap_or(1);
        let room = (48 / (longest + 2)).max(2);
        let every = self.x.len().div_ceil(room).max(1);
        for (index, name) in self.x.iter().enumerate().step_by(every) {
            label(
                m,
                self.x_of(index),
                TOP + PLOT + 17.0,
                "middle",
                "tick",
                name,
            );
        }
        label(
            m,
            f64::midpoint(LEFT, right),
            TOP + PLOT + 34.0,
            "middle",
            "tick",
            &self.x_title,
        );
        for series in &self.series {
            series.render(m, &|index| self.x_of(index), &y, &self.x);
        }
    }

    fn x_of(&self, index: usize) -> f64 {
        let inset = 22.0;
        let room = WIDTH - LEFT - RIGHT - 2.0 * inset;
        LEFT + inset + room * index as f64 / (self.x.len().max(2) - 1) as f64
    }

    fn legend(&self, m: &mut Markup, top: f64) {
        for (index, series) in self.series.iter().enumerate() {
            let x = LEFT + (index % 2) as f64 * (WIDTH - LEFT) / 2.0;
            let y = top + (index / 2) as f64 * LEGEND_ROW;
            marker(m, series.look, x, y, None);
            label(m, x + 10.0, y + 4.0, "start", "tick", &series.name);
        }
    }
}

impl Series {
    fn render(
        &self,
        m: &mut Markup,
        x: &dyn Fn(usize) -> f64,
        y: &dyn Fn(f64) -> f64,
        names: &[String],
    ) {
        // Lines that run over each other stay visible side by side.
        let shift = (self.look as f64 - 3.5) * 1.6;
        let place = |(index, value): (usize, &Option<f64>)| {
            let value = value.filter(|v| v.is_finite())?;
            Some((index, value, x(index) + shift, y(value)))
        };
        let points: Vec<_> = self.values.iter().enumerate().filter_map(place).collect();
        let path: Vec<String> = points
            .iter()
            .map(|(_, _, x, y)| format!("{},{}", at(*x), at(*y)))
            .collect();
        m.empty(
            "polyline",
            &[
                ("points", &path.join(" ")),
                ("class", &format!("line s{}", self.look % 8)),
            ],
        );
        for (index, value, x, y) in points {
            let tip = format!(
                "{} at {}: {}",
                self.name,
                names.get(index).map_or("", |s| s),
                number(value)
            );
            marker(m, self.look, x, y, Some(&tip));
        }
    }
}

/// The mark of a look: a shape of its own, so that it can be told without colour.
fn marker(m: &mut Markup, look: usize, x: f64, y: f64, tip: Option<&str>) {
    let class = format!("dot s{}", look % 8);
    let polygon = |points: &[(f64, f64)]| -> String {
        let points = points
            .iter()
            .map(|(dx, dy)| format!("{},{}", at(x + dx), at(y + dy)));
        points.collect::<Vec<_>>().join(" ")
    };
    let title = |m: &mut Markup| {
        if let Some(tip) = tip {
            m.leaf("title", &[], tip);
        }
    };
    let shape: &[(f64, f64)] = match look % 8 {
        0 => {
            return m.element(
                "circle",
                &[("cx", &at(x)), ("cy", &at(y)), ("r", &4), ("class", &class)],
                title,
            );
        }
        1 => &[(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)],
        2 => &[(0.0, -4.8), (4.6, 3.4), (-4.6, 3.4)],
        3 => &[(0.0, -5.0), (5.0, 0.0), (0.0, 5.0), (-5.0, 0.0)],
        4 => &[(0.0, 4.8), (4.6, -3.4), (-4.6, -3.4)],
        5 => &[(-4.6, -1.7), (4.6, -1.7), (4.6, 1.7), (-4.6, 1.7)],
        6 => &[(-1.7, -4.6), (1.7, -4.6), (1.7, 4.6), (-1.7, 4.6)],
        _ => &[
            (-4.4, 0.0),
            (-2.2, -3.8),
            (2.2, -3.8),
            (4.4, 0.0),
            (2.2, 3.8),
            (-2.2, 3.8),
        ],
    };
    m.element(
        "polygon",
        &[("points", &polygon(shape)), ("class", &class)],
        title,
    );
}
