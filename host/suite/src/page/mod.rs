//! The page that people read of a pack: `report.html`.
//!
//! It is drawn from the pack's own payload and nothing else, so that the same pack gives the same bytes: sealing draws it from
//! what is staged, a replay draws it again and compares. It decides nothing. What it shows is what verdict, reports and tables
//! say, in this order: the verdict and why (`verdict`), every report against every guard (`matrix`), what the changes cost
//! (`cost`), each report with its findings, z scores and spectra (`subject`), where it comes from and how to check it
//! (`provenance`). `read` gathers what they need; a part whose files are not there is left out or says so, since a pack that
//! was built by hand holds less. A pack holds no times of tasks, so there is no timeline.
//!
//! A page that is drawn otherwise is not the page of packs that were sealed before: changing what is drawn here, or the style
//! of `packhost_report`, takes a new form of packs (`run::record`).

mod cost;
mod json;
mod matrix;
mod provenance;
mod read;
mod subject;
mod verdict;

use packhost_pack::files::Payload;
use packhost_pack::seal::Draw;
use packhost_report::{Block, Page, Section};

use read::Contents;
use serde_json::Value;

/// Draws `report.html`.
#[derive(Debug, Clone, Copy, Default)]
pub struct PackPage;

impl Draw for PackPage {
    fn draw(&self, pack: &dyn Payload) -> String {
        page(&Contents::read(pack)).render()
    }
}

/// What a person wants on a terminal: the page's verdict, reasons, matrix, figures and provenance, as
/// [`Page::text`] writes them.
pub fn summary(pack: &dyn Payload) -> Page {
    let mut page = page(&Contents::read(pack));
    page.lead.clear();
    page.sections
        .retain(|section| !matches!(&*section.id, "reports" | "verify"));
    page
}

/// The same for programs: verdict, reports with figures and answers of the guards, provenance.
pub fn summary_json(pack: &dyn Payload) -> Value {
    json::of(&Contents::read(pack))
}

fn page(contents: &Contents) -> Page {
    let section = |id: &str, title: &str, blocks: Vec<Block>| Section {
        id: id.into(),
        title: title.into(),
        blocks,
    };
    let sections = [
        section("verdict", "Verdict", verdict::verdict(contents)),
        section("why", "Why", verdict::why(contents)),
        section("guards", "Scenarios and guards", matrix::blocks(contents)),
        section("cost", "What the changes cost", cost::blocks(contents)),
        section("reports", "Every report", subject::blocks(contents)),
        section("provenance", "Provenance", provenance::blocks(contents)),
        section("verify", "Verify by hand", provenance::by_hand(contents)),
    ];
    let suite = contents.run["suite"].as_str();
    let models: Vec<&str> = contents.models.iter().map(|m| m.id.as_str()).collect();
    Page {
        title: match (suite, models.as_slice()) {
            (Some(suite), models) => format!("Suite {suite}: {}", models.join(", ")),
            (None, _) => "Evidence pack".into(),
        },
        lead: "What was done to the weights, what the guards saw of it, and what follows. Every figure stands in a file of this \
               pack; this page only shows them, and the pack's signature is what counts."
            .into(),
        sections: sections
            .into_iter()
            .filter(|section| !section.blocks.is_empty())
            .collect(),
    }
}
