//! The page as a whole: well-formed, whole, and without anything outside itself.
#![allow(clippy::unwrap_used, reason = "tests")]

use packhost_report::{
    Align, Banner, Bar, Bars, Block, Cell, Column, Fold, Group, Lines, Mark, Matrix, Page, Row,
    Section, Series, Table, Tone,
};
use roxmltree::{Document, ParsingOptions};

fn page() -> Page {
    let cell = |tone, mark: &str| Cell {
        tone,
        mark: mark.into(),
        tip: format!("says <{mark}> & more"),
    };
    let matrix = Matrix {
        title: "Who saw what".into(),
        columns: vec!["one".into(), "two".into()],
        groups: vec![Group {
            title: "Faults".into(),
            rows: vec![Row {
                label: "a \"fault\"".into(),
                cells: vec![cell(Tone::Fail, "F"), cell(Tone::Quiet, "")],
            }],
        }],
        legend: vec![(cell(Tone::Fail, "F"), "damage".into())],
        note: "a note".into(),
    };
    let lines = |values: Vec<Option<f64>>| Lines {
        title: "Strength".into(),
        x: vec!["0.1".into(), "1".into()],
        logarithmic: true,
        series: (0..8)
            .map(|look| Series {
                name: format!("line {look}"),
                look,
                values: values.clone(),
            })
            .collect(),
        ..Lines::default()
    };
    let bars = Bars {
        title: "How much".into(),
        logarithmic: true,
        bars: vec![
            Bar {
                label: "much".into(),
                value: Some(3.0),
                ..Bar::default()
            },
            Bar {
                label: "none".into(),
                missing: "cannot be run".into(),
                ..Bar::default()
            },
            Bar {
                label: "infinite".into(),
                value: Some(f64::INFINITY),
                missing: "infinite".into(),
                ..Bar::default()
            },
        ],
        marks: vec![Mark {
            value: 0.05,
            label: "limit".into(),
        }],
        note: String::new(),
    };
    let table = Table {
        caption: "Figures".into(),
        columns: vec![
            Column {
                title: "name".into(),
                align: Align::Start,
            },
            Column {
                title: "value".into(),
                align: Align::End,
            },
        ],
        rows: vec![vec!["<script>alert(1)</script>".into(), "1".into()]],
    };
    let blocks = vec![
        Block::Banner(Banner {
            tone: Tone::Good,
            word: "PASS".into(),
            text: "as & hoped".into(),
        }),
        Block::Heading("Below".into()),
        Block::Text("Text & <text>".into()),
        Block::List(vec!["one".into(), "two".into()]),
        Block::Code("cat < list".into()),
        Block::Facts(vec![("model".into(), "m".into())]),
        Block::Fold(Fold {
            title: "Figures".into(),
            note: "two of them".into(),
            blocks: vec![Block::Table(table)],
        }),
        Block::Matrix(matrix),
        Block::Lines(vec![
            lines(vec![Some(0.5), Some(2.0)]),
            lines(vec![None, Some(f64::NAN)]),
        ]),
        Block::Bars(bars),
    ];
    Page {
        title: "A <page>".into(),
        lead: "Lead".into(),
        sections: vec![Section {
            id: "all".into(),
            title: "All".into(),
            blocks,
        }],
    }
}

fn parsed(html: &str) -> Document<'_> {
    let options = ParsingOptions {
        allow_dtd: true,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(html, options).unwrap()
}

#[test]
fn a_page_is_well_formed_and_holds_every_chart() {
    let html = page().render();
    let document = parsed(&html);
    let count = |name: &str| {
        document
            .descendants()
            .filter(|node| node.has_tag_name(name))
            .count()
    };
    let drawings = document
        .descendants()
        .filter(|node| node.tag_name().name() == "svg")
        .count();
    assert_eq!(drawings, 4, "matrix, two line charts, bars");
    assert_eq!(count("figure"), 4);
    assert_eq!(count("table"), 1);
    assert_eq!(count("dl"), 1);
    for name in ["details", "summary", "pre", "ul", "h3"] {
        assert_eq!(count(name), 1, "{name}");
    }
    assert_eq!(html, page().render());
}

#[test]
fn nothing_outside_is_referred_to_and_nothing_runs() {
    let html = page().render();
    let document = parsed(&html);
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        assert!(!["script", "link", "iframe", "img", "object"].contains(&node.tag_name().name()));
        for attribute in node.attributes() {
            assert!(!attribute.name().starts_with("on"), "{}", attribute.name());
            assert_ne!(attribute.name(), "src");
            assert!(attribute.name() != "href" || attribute.value().starts_with('#'));
        }
    }
    let style = document
        .descendants()
        .find(|node| node.has_tag_name("style"))
        .unwrap();
    let style = style.text().unwrap();
    assert!(!style.contains("url(") && !style.contains("@import"));
    assert!(style.contains("prefers-color-scheme: dark") && style.contains("@media print"));
}

#[test]
fn coordinates_are_numbers_whatever_the_data() {
    let html = page().render();
    assert!(!html.contains("NaN") && !html.contains("\"inf"), "{html}");
}

#[test]
fn what_scrolls_can_be_reached_by_keyboard_and_has_a_name() {
    let html = page().render();
    let document = parsed(&html);
    let wide: Vec<_> = document
        .descendants()
        .filter(|node| node.attribute("class") == Some("wide"))
        .collect();
    assert_eq!(wide.len(), 6, "four charts, a table, commands");
    for node in wide {
        assert_eq!(node.attribute("tabindex"), Some("0"));
        assert_eq!(node.attribute("role"), Some("region"));
        assert!(
            node.attribute("aria-label")
                .is_some_and(|name| !name.is_empty())
        );
    }
}

#[test]
fn every_anchor_exists() {
    let html = page().render();
    let document = parsed(&html);
    let ids: Vec<&str> = document
        .descendants()
        .filter_map(|node| node.attribute("id"))
        .collect();
    for link in document
        .descendants()
        .filter_map(|node| node.attribute("href"))
    {
        assert!(ids.contains(&&link[1..]), "{link}");
    }
}
