//! Writing markup: elements, attributes and escaped text. One writer serves HTML and the SVG inside it.

use std::fmt::{Display, Write as _};

use packhost_plain::is_unseen;

/// Text of markup that grows. Elements are closed by the closure that fills them, so it is well-formed by construction.
#[derive(Default)]
pub struct Markup {
    text: String,
}

impl Markup {
    /// What was written.
    pub fn into_string(self) -> String {
        self.text
    }

    /// An element with what `fill` writes inside.
    pub fn element(
        &mut self,
        name: &str,
        attributes: &[(&str, &dyn Display)],
        fill: impl FnOnce(&mut Self),
    ) {
        self.open(name, attributes);
        self.text.push('>');
        fill(self);
        // Writing to a string cannot fail.
        let _ = write!(self.text, "</{name}>");
    }

    /// An element that holds only text.
    pub fn leaf(&mut self, name: &str, attributes: &[(&str, &dyn Display)], text: &str) {
        self.element(name, attributes, |markup| markup.text(text));
    }

    /// An element without content.
    pub fn empty(&mut self, name: &str, attributes: &[(&str, &dyn Display)]) {
        self.open(name, attributes);
        self.text.push_str("/>");
    }

    /// Text, escaped.
    pub fn text(&mut self, text: &str) {
        escape(&mut self.text, text);
    }

    /// Markup as it is: the style sheet and line ends.
    pub fn raw(&mut self, markup: &str) {
        self.text.push_str(markup);
    }

    fn open(&mut self, name: &str, attributes: &[(&str, &dyn Display)]) {
        let _ = write!(self.text, "<{name}");
        for (key, value) in attributes {
            let _ = write!(self.text, " {key}=\"");
            escape(&mut self.text, &value.to_string());
            self.text.push('"');
        }
    }
}

/// Replaces what has a meaning in markup, and characters that show nothing but change what is shown: control characters,
/// which XML cannot hold, and direction overrides, with which a text could be made to read as another.
fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if is_unseen(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
}

/// A coordinate: two decimals at most, so that pages stay small and equal on every machine.
pub fn at(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" {
        "0".into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_are_escaped() {
        let mut markup = Markup::default();
        markup.element("a", &[("title", &"1 < \"2\" & 3")], |m| m.text("<b>\u{1}"));
        markup.empty("br", &[]);
        assert_eq!(
            markup.into_string(),
            "<a title=\"1 &lt; &quot;2&quot; &amp; 3\">&lt;b&gt;\u{fffd}</a><br/>"
        );
    }

    #[test]
    fn coordinates_are_short() {
        assert_eq!(
            [at(1.0), at(1.256), at(-0.001), at(10.0)],
            ["1", "1.26", "0", "10"]
        );
    }
}
