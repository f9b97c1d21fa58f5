//! Charts as SVG: what they share is the figure around them and the scale of an axis.

pub mod bars;
pub mod lines;
pub mod matrix;

use libm::log10;

use crate::markup::Markup;
use crate::page::scrolling;

/// A figure: title, the drawing of that many units (CSS pixels at full size), and an explanation below.
fn figure(
    m: &mut Markup,
    title: &str,
    note: &str,
    size: (f64, f64),
    draw: impl FnOnce(&mut Markup),
) {
    m.element("figure", &[], |m| {
        m.leaf("figcaption", &[], title);
        scrolling(m, title, |m| {
            let (width, height) = size;
            let view = format!("0 0 {width} {height}");
            m.element(
                "svg",
                &[
                    ("xmlns", &"http://www.w3.org/2000/svg"),
                    ("viewBox", &view),
                    ("width", &width),
                    ("height", &height),
                    ("role", &"img"),
                    ("aria-label", &title),
                ],
                draw,
            );
        });
        if !note.is_empty() {
            m.leaf("p", &[("class", &"note")], note);
        }
    });
}

/// Width of a letter of a label, generously: fonts differ.
const LETTER: f64 = 7.2;
/// The most room that labels in front of a chart get.
const MOST: f64 = 250.0;

/// The room that these labels need in front of a chart, so that little is wasted on a telephone.
fn room<'a>(labels: impl Iterator<Item = &'a str>) -> f64 {
    let longest = labels.map(|label| label.chars().count()).max().unwrap_or(0);
    (longest as f64 * LETTER + 16.0).ceil().clamp(110.0, MOST)
}

/// A text cut to the letters that fit.
fn fitting(text: &str, room: f64) -> String {
    let most = (room / LETTER) as usize;
    match text.chars().count() > most {
        true => text
            .chars()
            .take(most.saturating_sub(1))
            .chain(['\u{2026}'])
            .collect(),
        false => text.to_owned(),
    }
}

/// A text in a drawing. `anchor` is `start`, `middle` or `end`.
fn label(m: &mut Markup, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
    use crate::markup::at;
    m.leaf(
        "text",
        &[
            ("x", &at(x)),
            ("y", &at(y)),
            ("text-anchor", &anchor),
            ("class", &class),
        ],
        text,
    );
}

/// Where values lie on an axis: from `low` at 0 to `high` at 1.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
    /// Between two ticks of a linear scale, whose ends are multiples of it.
    step: f64,
}

impl Scale {
    /// A scale that holds all `values` and ends on round numbers; a logarithmic one ignores what is not above 0. None
    /// where nothing is left to show.
    fn of(values: impl Iterator<Item = f64>, logarithmic: bool) -> Option<Self> {
        let shown = values.filter(|v| v.is_finite() && (!logarithmic || *v > 0.0));
        let (mut low, mut high) = shown
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
                (low.min(v), high.max(v))
            });
        if low > high {
            return None;
        }
        let mut step = 0.0;
        if logarithmic {
            low = ten_to(log10(low).floor());
            high = ten_to(log10(high).ceil());
            if low == high {
                high = low * 10.0;
            }
        } else {
            (low, high) = (low.min(0.0), high.max(0.0));
            if low == high {
                high = 1.0;
            }
            step = round_step(high - low);
            (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        }
        Some(Self {
            low,
            high,
            logarithmic,
            step,
        })
    }

    /// 0 to 1; what lies outside is drawn at the edge.
    fn place(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            if value <= 0.0 {
                return 0.0;
            }
            (log10(value) - log10(self.low)) / (log10(self.high) - log10(self.low))
        } else {
            (value - self.low) / (self.high - self.low)
        };
        share.clamp(0.0, 1.0)
    }

    /// Round values to label, at most about six.
    fn ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            let first = (self.low / self.step).round();
            let steps = ((self.high - self.low) / self.step).round();
            return (0..=steps as u32)
                .map(|i| (first + f64::from(i)) * self.step)
                .collect();
        }
        let (first, last) = (
            log10(self.low).round() as i32,
            log10(self.high).round() as i32,
        );
        let step = ((last - first) / 6 + 1).max(1);
        (first..=last)
            .step_by(step as usize)
            .map(|e| ten_to(f64::from(e)))
            .collect()
    }
}

/// A power of ten, the same on every machine.
fn ten_to(exponent: f64) -> f64 {
    libm::pow(10.0, exponent)
}

/// A step of 1, 2, 2.5 or 5 times a power of ten that divides a span into four parts or a few more.
fn round_step(span: f64) -> f64 {
    let raw = span / 4.0;
    let power = ten_to(log10(raw).floor());
    let fits = |step: &f64| *step * power <= raw * (1.0 + 1e-9);
    let steps = [5.0, 2.5, 2.0, 1.0];
    steps.into_iter().find(fits).unwrap_or(1.0) * power
}

/// A number for people: short, and in powers of ten where that is shorter.
fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".into()
    } else if !(1e-3..1e5).contains(&size) {
        format!("{value:.0e}")
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else {
        let digits = (2 - log10(size).floor() as i32).max(0) as usize;
        let text = format!("{value:.digits$}");
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').into(),
            false => text,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn scales_end_on_round_numbers() {
        let scale = Scale::of([0.003, 4.0].into_iter(), true).expect("there is something");
        assert_eq!((scale.low, scale.high), (0.001, 10.0));
        assert_eq!(scale.ticks(), [0.001, 0.01, 0.1, 1.0, 10.0]);
        assert!((scale.place(0.1) - 0.5).abs() < 1e-12);
        assert_eq!((scale.place(0.0), scale.place(1e9)), (0.0, 1.0));
        assert_eq!(Scale::of([0.0, f64::NAN].into_iter(), true), None);
        let linear = Scale::of([0.5, 1.0].into_iter(), false).expect("there is something");
        assert_eq!(linear.ticks(), [0.0, 0.25, 0.5, 0.75, 1.0]);
        let both = Scale::of([-3.3, 7.1].into_iter(), false).expect("there is something");
        assert_eq!((both.low, both.high), (-5.0, 7.5));
        assert_eq!(both.ticks(), [-5.0, -2.5, 0.0, 2.5, 5.0, 7.5]);
        let below = Scale::of([-0.8, -0.2].into_iter(), false).expect("there is something");
        assert_eq!((below.place(-0.8), below.place(0.0)), (0.0, 1.0));
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.1, 0.25, 1.0, 12.34, 1234.5, 1e-6, 2e7].map(number);
        assert_eq!(
            shown,
            ["0", "0.1", "0.25", "1", "12.3", "1234", "1e-6", "2e7"]
        );
    }
}
