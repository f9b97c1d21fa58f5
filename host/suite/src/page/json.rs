//! What the page shows, for programs: `packhost report show --json`.

use serde_json::{Value, json};

use super::matrix::demanded;
use super::read::{Contents, Subject};

/// The verdict, every report with its figures and each guard's answer, and where it comes from.
pub fn of(contents: &Contents) -> Value {
    let verdict = &contents.verdict;
    let models = contents.models.iter();
    let models = models.map(|model| {
        let profile = &model.profile;
        json!({"id": model.id, "revision": profile["revision"], "architecture": profile["architecture"],
               "parameters": profile["parameters"], "sha256": profile["weights"]["sha256"]})
    });
    json!({
        "verdict": verdict["verdict"],
        "failed_requirements": verdict["failed_requirements"],
        "counts": verdict["counts"],
        "guards": contents.guards,
        "reports": contents.subjects.iter().map(report).collect::<Vec<_>>(),
        "provenance": {
            "run": contents.run,
            "source": contents.source,
            "environment": contents.environment,
            "models": models.collect::<Vec<_>>(),
        },
    })
}

fn report(subject: &Subject) -> Value {
    let (met, words) = demanded(subject);
    let judged = &subject.judged;
    json!({
        "model": subject.model,
        "scenario": subject.scenario,
        "run": subject.run,
        "report": subject.path,
        "met": met,
        "outcome": words,
        "perplexity": subject.metric["final"],
        "ratio": judged.ratio,
        "interval": subject.metric["display_ci"],
        "kl": judged.kl,
        "same_top": judged.same_top,
        "guards": judged.guards,
    })
}
