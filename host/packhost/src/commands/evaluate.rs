//! `packhost evaluate`: any two checkpoints on the same text.

use std::sync::atomic::AtomicBool;

use packhost_suite::compare::{CompareRequest, Compared, compare};
use packhost_suite::suites::Dataset;
use serde_json::Value;

use super::{now, plugin_layer, print_line, toolbox};
use crate::cli::EvaluateArgs;
use crate::exit::{Exit, Failure};

pub fn run(arguments: EvaluateArgs) -> Result<Exit, Failure> {
    let layer = plugin_layer(&arguments.plugins)?;
    let jsonl = arguments
        .dataset
        .extension()
        .is_some_and(|ending| ending == "jsonl" || ending == "ndjson");
    let selection = arguments
        .selection
        .clone()
        .unwrap_or_else(|| if jsonl { "file_order" } else { "stratified" }.into());
    let request = CompareRequest {
        baseline: arguments.baseline,
        subject: arguments.subject,
        dataset: Dataset {
            kind: if jsonl { "local_jsonl" } else { "text" }.into(),
            path: arguments.dataset,
            text_field: Some(arguments.text_field),
        },
        out: arguments.out,
        preview: arguments.preview,
        final_windows: arguments.final_windows,
        seq_len: arguments.seq_len,
        seed: arguments.seed,
        selection,
        tier: arguments.tier,
        preset: arguments.preset,
        guards: layer.guards.clone().unwrap_or_default(),
        replicates: layer.bootstrap.unwrap_or(1000),
        probes: std::collections::BTreeSet::new(),
    };
    let toolbox = toolbox(&layer, arguments.threads)?;
    // Nothing is half done when this is interrupted: the report appears whole, at the end.
    let compared = compare(&request, &toolbox, &now(), &AtomicBool::new(false))?;
    if let Some(message) = compared.structural_failure() {
        print_line(&format!("report: {}", compared.path.display()));
        let message = format!(
            "the subject cannot be run: {message}; the report records a structural failure, so nothing was measured"
        );
        return Err(Failure::new(Exit::SubjectBroken, message));
    }
    print_line(&summary(&compared));
    Ok(Exit::Success)
}

/// The result in a few lines.
fn summary(compared: &Compared) -> String {
    let report = &compared.report;
    let metric = &report["primary_metric"];
    let number = |value: &Value, digits: usize| {
        value
            .as_f64()
            .map_or("none".into(), |v| format!("{v:.digits$}"))
    };
    let interval = &metric["display_ci"];
    let own = &report["packhost"]["divergence"]["final"];
    format!(
        "perplexity: baseline {}, subject {}, ratio {} [{}, {}]\n\
         divergence: KL mean {}, same top token {}\n\
         guards: {}\n\
         report: {}",
        number(&report["baseline_ref"]["primary_metric"]["final"], 4),
        number(&metric["final"], 4),
        number(&metric["ratio_vs_baseline"], 6),
        number(&interval[0], 6),
        number(&interval[1], 6),
        number(&own["kl"]["mean"], 6),
        number(&own["same_top_share"], 4),
        packhost_measure::report::guard_statuses(report),
        compared.path.display()
    )
}
