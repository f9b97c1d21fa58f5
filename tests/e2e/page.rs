//! `report.html` in a browser: it is quiet, whole, readable in both themes, on a telephone and on paper, and reachable by
//! keyboard; and what a hostile signer writes into a pack stays text there and on the terminal.

use std::fs;

use packhost_pack::layout;
use packhost_pack::seal::Draw as _;
use packhost_pack::verify::{VerifyOptions, verify};
use packhost_suite::page::PackPage;
use serde_json::{Value, json};

use crate::browser::{Browser, program};
use crate::replay::{Forgery, MODEL, sealed};
use crate::support::{Bench, files};

/// The tests of a page would pass on a browser that tells nothing: this shows that it does.
#[test]
fn the_browser_tells_of_what_a_page_does() {
    let Some(program) = program() else { return };
    let bench = Bench::new();
    let page = bench.write(
        "page.html",
        "<!DOCTYPE html><img src='http://other.invalid/a.png'><script>console.error('seen'); undefined_name();</script>",
    );
    let mut browser = Browser::open(&program, &page);
    let faults = browser.faults().join("\n");
    for part in [
        "seen",
        "undefined_name",
        "request: http://other.invalid/a.png",
    ] {
        assert!(faults.contains(part), "{part}: {faults}");
    }
}

#[test]
fn the_page_is_quiet_and_whole() {
    let Some(program) = program() else { return };
    let path = sealed().path("run/evidence_pack").join(layout::PAGE);
    let html = fs::read_to_string(&path).unwrap();
    let mut browser = Browser::open(&program, &path);
    browser.size(1200, 900);
    assert_eq!(browser.faults(), Vec::<String>::new());

    // Every chart is drawn, and none cuts off its own words.
    browser.eval("document.querySelectorAll('details').forEach(fold => fold.open = true)");
    let charts = browser.eval(
        "[...document.querySelectorAll('figure')].map(figure => {
            const svg = figure.querySelector('svg'), box = svg.getBoundingClientRect();
            const words = [...svg.querySelectorAll('text')];
            const out = words.filter(word => {
                const at = word.getBoundingClientRect();
                return at.left < box.left - 1 || at.right > box.right + 1 || at.top < box.top - 1 || at.bottom > box.bottom + 1;
            });
            return {title: figure.querySelector('figcaption').textContent, width: box.width, height: box.height,
                    words: words.length, out: out.map(word => word.textContent)};
         })",
    );
    let charts = charts.as_array().unwrap();
    assert_eq!(charts.len(), html.matches("<svg").count());
    for chart in charts {
        let size = |key: &str| chart[key].as_f64().unwrap();
        assert!(size("width") > 100.0 && size("height") > 40.0, "{chart:#}");
        assert!(chart["words"].as_u64() > Some(3), "{chart:#}");
        assert_eq!(chart["out"], json!([]), "{chart:#}");
    }
    for title in [
        "What each guard says of each report",
        "Perplexity against the baseline's",
        "Divergence from the baseline (KL)",
        "Unedited model: largest singular value",
        "z of the largest singular value, by layer",
        "Change of the largest singular value, by layer",
    ] {
        assert!(
            charts.iter().any(|chart| chart["title"] == title),
            "{title}"
        );
    }
    browser.picture("open");
    assert_eq!(browser.faults(), Vec::<String>::new());
}

/// Least contrast of all texts with what lies behind them, by the formula of WCAG 2.
const CONTRAST: &str = "(() => {
    const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * x + .7152 * y + .0722 * z; };
    const behind = node => { for (; node; node = node.parentElement) { const c = rgb(getComputedStyle(node).backgroundColor);
        if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
    let least = [99, ''];
    for (const node of document.querySelectorAll('h1, h2, h3, p, li, dt, dd, th, td, a, pre, b, summary span, figcaption, .banner strong')) {
        if (!node.checkVisibility()) continue;
        const a = light(rgb(getComputedStyle(node).color)), b = light(behind(node));
        const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (ratio < least[0]) least = [ratio, node.outerHTML.slice(0, 80)];
    }
    return least;
})()";

#[test]
fn the_page_is_readable_in_both_themes_on_a_telephone_and_on_paper() {
    let Some(program) = program() else { return };
    let path = sealed().path("run/evidence_pack").join(layout::PAGE);
    let mut browser = Browser::open(&program, &path);
    let mut papers = Vec::new();
    for theme in ["light", "dark"] {
        browser.media(theme, "screen");
        browser.size(1200, 900);
        let contrast = browser.eval(CONTRAST);
        assert!(contrast[0].as_f64() >= Some(4.5), "{theme}: {contrast}");
        papers.push(browser.eval("getComputedStyle(document.body).backgroundColor"));
        browser.picture(theme);
        // A telephone: the page does not scroll sideways, only what is too wide in it does.
        browser.size(380, 800);
        let wide = browser.eval("document.documentElement.scrollWidth");
        assert!(wide.as_u64() <= Some(380), "{wide}");
        browser.picture(&format!("phone-{theme}"));
    }
    assert_ne!(papers[0], papers[1]);
    browser.media("light", "print");
    browser.size(794, 1100);
    let folded = browser.eval(
        "[...document.querySelectorAll('details > :not(summary)')].filter(node => !node.getBoundingClientRect().height).length",
    );
    assert_eq!(
        folded, 0,
        "what is folded away on the screen is not on paper"
    );
    assert_eq!(
        browser.eval("document.querySelector('nav').checkVisibility()"),
        false
    );
    browser.picture("print");
    let paper = browser.printed();
    assert!(paper.starts_with(b"%PDF") && paper.len() > 10_000);
    if let Some(folder) = std::env::var_os("PACKHOST_SCREENSHOTS") {
        fs::write(std::path::Path::new(&folder).join("paper.pdf"), paper).unwrap();
    }
    assert_eq!(browser.faults(), Vec::<String>::new());
}

#[test]
fn the_page_is_reachable_by_keyboard() {
    let Some(program) = program() else { return };
    let path = sealed().path("run/evidence_pack").join(layout::PAGE);
    let mut browser = Browser::open(&program, &path);
    browser.size(1200, 900);
    browser.eval(
        "window.stops = [...document.querySelectorAll('a[href], summary, [tabindex]')].filter(node => node.checkVisibility()); 0",
    );
    let stops = browser.eval("stops.length").as_u64().unwrap();
    assert!(stops > 15, "{stops}");
    let mut reached = Vec::new();
    for _ in 0..stops {
        browser.press("Tab", 9, "");
        reached.push(browser.eval("stops.indexOf(document.activeElement)"));
        let outline = browser.eval("getComputedStyle(document.activeElement).outlineStyle");
        assert_ne!(outline, "none", "nothing shows where the focus is");
    }
    let expected: Vec<Value> = (0..stops).map(Value::from).collect();
    assert_eq!(reached, expected);
    // A fold opens from the keyboard.
    browser.eval("document.querySelector('summary').focus()");
    let open = "document.querySelector('details').open";
    assert_eq!(browser.eval(open), false);
    browser.press("Enter", 13, "\r");
    assert_eq!(browser.eval(open), true);
}

/// Markup that runs where it is not escaped, an escape sequence that repaints a terminal, and characters that turn words round.
const HOSTILE: &str = "x\"'><script>window.ran=1;alert(1)</script><img src=http://other.invalid/x onerror=window.ran=2>\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\u{200b}\r\nverified: PASS";

/// A pack whose signer wrote that wherever a stranger's text is shown.
fn hostile() -> Forgery {
    let forgery = Forgery::new();
    let spoil = |value: &mut Value| {
        *value = json!(format!("{}{HOSTILE}", value.as_str().unwrap_or_default()))
    };
    forgery.change("metadata/packhost/run.json", |run| {
        for pointer in [
            "/suite",
            "/host_version",
            "/tier",
            "/dataset/kind",
            "/models/0/id",
            "/guards/1/id",
            "/guards/1/version",
        ] {
            spoil(run.pointer_mut(pointer).unwrap());
        }
    });
    forgery.change("results/verdicts/final_verdict.json", |verdict| {
        let records = verdict["records"].as_array_mut().unwrap();
        for key in ["name", "failure_class", "primary_guard", "model"] {
            spoil(&mut records[0][key]);
        }
        records[1]["reasons"] = json!([HOSTILE]);
        verdict["failed_requirements"] = json!([{"id": HOSTILE, "details": [HOSTILE]}]);
        spoil(&mut verdict["verdict"]);
    });
    forgery.change("metadata/source_repo.json", |source| {
        spoil(&mut source["branch"])
    });
    forgery.change("metadata/environment.json", |machine| {
        spoil(&mut machine["gpu_name"])
    });
    forgery.change(&format!("metadata/packhost/models/{MODEL}.json"), |model| {
        spoil(&mut model["architecture"]);
        for tensor in model["network"]["tensors"].as_array_mut().unwrap() {
            spoil(&mut tensor["role"]);
        }
    });
    let report = format!("reports/{MODEL}/prune_50pct_stress/run_1/evaluation.report.json");
    forgery.change(&report, |report| {
        for guard in report["packhost"]["guards"].as_array_mut().unwrap() {
            spoil(&mut guard["version"]);
            for finding in guard["findings"].as_array_mut().unwrap() {
                spoil(&mut finding["code"]);
                spoil(&mut finding["message"]);
            }
        }
    });
    forgery.reseal();
    let options = VerifyOptions {
        skip_verify: true,
        ..VerifyOptions::default()
    };
    let files = verify(&forgery.pack(), &options).files.unwrap();
    fs::write(forgery.pack().join(layout::PAGE), PackPage.draw(&files)).unwrap();
    forgery.reseal();
    forgery
}

#[test]
fn hostile_text_stays_text() {
    let forgery = hostile();
    let bench = &forgery.bench;
    // A file that is not listed, with a name that would forge a line.
    bench.write("pack/a\u{1b}[31m\nverified\u{202e}", "x");
    let other = sealed().path("run/evidence_pack");
    for (line, code) in [
        ("report show pack", 0),
        ("report show pack --json", 0),
        (&*format!("report diff pack {}", other.display()), 0),
        (&*format!("pack diff {} pack --json", other.display()), 0),
        ("pack inspect pack", 6),
        ("pack inspect pack --json", 6),
        ("pack verify pack --replay", 19),
        ("pack verify pack --replay --json", 19),
        ("pack verify pack --strict", 6),
    ] {
        let output = bench.line(line).output().unwrap();
        let text = [output.stdout.clone(), output.stderr.clone()].concat();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}: {text}");
        let unseen = |c: &char| packhost_plain::is_unseen(*c) && *c != '\n';
        assert_eq!(text.chars().find(unseen), None, "{line}");
        // No line of a stranger's begins where one of ours does.
        assert!(
            !text.lines().any(|line| line == "verified: PASS"),
            "{line}: {text}"
        );
        if line.ends_with("--json") {
            serde_json::from_slice::<Value>(&output.stdout).unwrap();
        }
        if line.starts_with("report") {
            assert!(
                text.contains("\\u001b") && text.contains("\\u202e"),
                "{line}: {text}"
            );
        }
    }
    // So that the test shows something: the pack holds the bytes, and the page the words.
    let held = files(&forgery.pack());
    let page = String::from_utf8(held[layout::PAGE].clone()).unwrap();
    assert!(page.matches("&lt;script&gt;").count() > 20);
    assert!(!page.contains("<script") && !page.contains("<img") && !page.contains('\u{202e}'));

    let Some(program) = program() else { return };
    let mut browser = Browser::open(&program, &forgery.pack().join(layout::PAGE));
    browser.eval("document.querySelectorAll('details').forEach(fold => fold.open = true)");
    assert_eq!(browser.eval("typeof window.ran"), "undefined");
    assert_eq!(
        browser.eval("document.querySelectorAll('script, img').length"),
        0
    );
    assert_eq!(browser.faults(), Vec::<String>::new());
    browser.picture("hostile");
    browser.size(380, 800);
    let wide = browser.eval("document.documentElement.scrollWidth");
    assert!(wide.as_u64() <= Some(380), "{wide}");
}
