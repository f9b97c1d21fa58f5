//! The page: sections of blocks, a table of contents, and the style sheet.

use std::fmt::Display;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::chart::bars::Bars;
use crate::chart::lines::Lines;
use crate::chart::matrix::{Matrix, Tone};
use crate::markup::Markup;

/// A page.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Heading and title of the window.
    pub title: String,
    /// A sentence below the heading.
    pub lead: String,
    /// In order.
    pub sections: Vec<Section>,
}

/// A part of a page with a heading of its own.
#[derive(Debug, Clone, Default)]
pub struct Section {
    /// Anchor: letters, digits and dashes.
    pub id: String,
    /// Heading.
    pub title: String,
    /// In order.
    pub blocks: Vec<Block>,
}

/// What a section holds.
#[derive(Debug, Clone)]
pub enum Block {
    /// One word that matters most, with a sentence.
    Banner(Banner),
    /// A heading within a section.
    Heading(String),
    /// A paragraph.
    Text(String),
    /// Paragraphs with a dot in front.
    List(Vec<String>),
    /// Lines for a shell, as they are.
    Code(String),
    /// Names with their values.
    Facts(Vec<(String, String)>),
    /// A table.
    Table(Table),
    /// A matrix of marks.
    Matrix(Matrix),
    /// Line charts side by side, as many as fit.
    Lines(Vec<Lines>),
    /// Horizontal bars.
    Bars(Bars),
    /// What is folded away.
    Fold(Fold),
}

/// One word that matters most.
#[derive(Debug, Clone, Default)]
pub struct Banner {
    /// Its look.
    pub tone: Tone,
    /// The word.
    pub word: String,
    /// A sentence beside it.
    pub text: String,
}

/// Blocks under one line, which opens them.
#[derive(Debug, Clone, Default)]
pub struct Fold {
    /// The line.
    pub title: String,
    /// What the line says beside its title; may be empty.
    pub note: String,
    /// In order.
    pub blocks: Vec<Block>,
}

/// A table.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Above the table; may be empty.
    pub caption: String,
    /// Headings.
    pub columns: Vec<Column>,
    /// As many cells as there are columns.
    pub rows: Vec<Vec<String>>,
}

/// A column of a table.
#[derive(Debug, Clone)]
pub struct Column {
    /// Heading.
    pub title: String,
    /// How its cells stand.
    pub align: Align,
}

/// How the cells of a column stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Start,
    /// Sentences, which may take several lines.
    Prose,
    /// Numbers.
    End,
}

const STYLE: &str = include_str!("style.css");

/// What a browser may do with the page: use its own style sheet, which is named by digest, and nothing else. So even markup
/// that got past the escaping could neither run nor load anything.
fn policy() -> String {
    let digest = STANDARD.encode(Sha256::digest(STYLE));
    format!("default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'")
}

impl Page {
    /// The file.
    pub fn render(&self) -> String {
        let mut m = Markup::default();
        m.raw("<!DOCTYPE html>\n");
        m.element("html", &[("lang", &"en")], |m| {
            m.element("head", &[], |m| {
                m.empty("meta", &[("charset", &"utf-8")]);
                let name: (&str, &dyn Display) = ("http-equiv", &"Content-Security-Policy");
                m.empty("meta", &[name, ("content", &policy())]);
                let viewport = "width=device-width, initial-scale=1";
                m.empty("meta", &[("name", &"viewport"), ("content", &viewport)]);
                m.empty(
                    "meta",
                    &[("name", &"color-scheme"), ("content", &"light dark")],
                );
                m.leaf("title", &[], &self.title);
                m.element("style", &[], |m| m.raw(STYLE));
            });
            m.raw("\n");
            m.element("body", &[], |m| self.body(m));
        });
        m.raw("\n");
        m.into_string()
    }

    fn body(&self, m: &mut Markup) {
        m.element("header", &[], |m| {
            m.leaf("h1", &[], &self.title);
            m.leaf("p", &[("class", &"lead")], &self.lead);
            m.element("nav", &[("aria-label", &"Contents")], |m| {
                for section in &self.sections {
                    m.leaf(
                        "a",
                        &[("href", &format!("#{}", section.id))],
                        &section.title,
                    );
                    m.raw("\n");
                }
            });
        });
        m.raw("\n");
        m.element("main", &[], |m| {
            for section in &self.sections {
                m.element("section", &[("id", &section.id)], |m| {
                    m.leaf("h2", &[], &section.title);
                    for block in &section.blocks {
                        block.render(m);
                        m.raw("\n");
                    }
                });
                m.raw("\n");
            }
        });
    }
}

impl Block {
    fn render(&self, m: &mut Markup) {
        match self {
            Self::Banner(banner) => banner.render(m),
            Self::Heading(text) => m.leaf("h3", &[], text),
            Self::Text(text) => m.leaf("p", &[], text),
            Self::List(items) => m.element("ul", &[], |m| {
                for item in items {
                    m.leaf("li", &[], item);
                }
            }),
            Self::Code(lines) => scrolling(m, "Commands", |m| m.leaf("pre", &[], lines)),
            Self::Facts(facts) => m.element("dl", &[], |m| {
                for (name, value) in facts {
                    m.element("div", &[], |m| {
                        m.leaf("dt", &[], name);
                        m.leaf("dd", &[], value);
                    });
                }
            }),
            Self::Table(table) => table.render(m),
            Self::Matrix(matrix) => matrix.render(m),
            Self::Lines(charts) => m.element("div", &[("class", &"charts")], |m| {
                for chart in charts {
                    chart.render(m);
                }
            }),
            Self::Bars(bars) => bars.render(m),
            Self::Fold(fold) => fold.render(m),
        }
    }
}

/// A region that scrolls by itself where it is too wide, also by keyboard. `name` is what assistive technology calls it.
pub fn scrolling(m: &mut Markup, name: &str, fill: impl FnOnce(&mut Markup)) {
    let region: [(&str, &dyn Display); 4] = [
        ("class", &"wide"),
        ("tabindex", &"0"),
        ("role", &"region"),
        ("aria-label", &name),
    ];
    m.element("div", &region, fill);
}

impl Banner {
    fn render(&self, m: &mut Markup) {
        let class = format!("banner {}", self.tone.name());
        m.element("p", &[("class", &class)], |m| {
            m.leaf("strong", &[], &self.word);
            m.raw(" ");
            m.leaf("span", &[], &self.text);
        });
    }
}

impl Fold {
    fn render(&self, m: &mut Markup) {
        m.element("details", &[], |m| {
            m.element("summary", &[], |m| {
                m.leaf("b", &[], &self.title);
                if !self.note.is_empty() {
                    m.raw(" ");
                    m.leaf("span", &[], &self.note);
                }
            });
            m.raw("\n");
            for block in &self.blocks {
                block.render(m);
                m.raw("\n");
            }
        });
    }
}

impl Table {
    fn render(&self, m: &mut Markup) {
        let name = match self.caption.as_str() {
            "" => "Table",
            caption => caption,
        };
        scrolling(m, name, |m| {
            m.element("table", &[], |m| {
                if !self.caption.is_empty() {
                    m.leaf("caption", &[], &self.caption);
                }
                let class = |column: &Column| match column.align {
                    Align::Start => "words",
                    Align::Prose => "prose",
                    Align::End => "number",
                };
                m.element("thead", &[], |m| {
                    m.element("tr", &[], |m| {
                        for column in &self.columns {
                            m.leaf(
                                "th",
                                &[("class", &class(column)), ("scope", &"col")],
                                &column.title,
                            );
                        }
                    });
                });
                m.element("tbody", &[], |m| {
                    for row in &self.rows {
                        m.element("tr", &[], |m| {
                            for (column, cell) in self.columns.iter().zip(row) {
                                m.leaf("td", &[("class", &class(column))], cell);
                            }
                        });
                        m.raw("\n");
                    }
                });
            });
        });
    }
}
