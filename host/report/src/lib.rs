//! Self-contained HTML pages with charts, from plain data.
//!
//! A [`Page`] is sections of blocks: text, facts, commands, tables, a matrix of marks, line charts and bars, and parts that are
//! folded away until one opens them (printing shows them). [`Page::render`] makes one
//! file of it, which refers to nothing outside itself: style and charts (SVG) are inside, there is no script. It follows
//! the reader's light or dark theme, fits a telephone (what is too wide scrolls by itself) and prints.
//!
//! The output is a function of the data alone, byte for byte, and is well-formed XML beside being HTML, so that tests and
//! tools can read it. All text is escaped. Nothing here knows of tensors, plugins or evidence.
//!
//! [`Page::text`] makes lines for a terminal of the same page.
//!
//! Meaning is never carried by colour alone: marks have letters, lines have shapes, and every mark has its words as a
//! tooltip, which assistive technology reads as well.

mod chart;
mod markup;
mod page;
mod text;

pub use chart::bars::{Bar, Bars, Mark};
pub use chart::lines::{Lines, Series};
pub use chart::matrix::{Cell, Group, Matrix, Row, Tone};
pub use page::{Align, Banner, Block, Column, Fold, Page, Section, Table};
