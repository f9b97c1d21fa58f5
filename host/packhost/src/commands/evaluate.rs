//! `packhost evaluate`: any two checkpoints on the same text.

use std::sync::atomic::AtomicBool;

use packhost_suite::compare::{CompareRequest, Compared, compare};
use serde_json::Value;

use super::{dataset, now, plugin_layer, print_line, size, toolbox};
use crate::cli::EvaluateArgs;
use crate::exit::{Exit, Failure};

pub fn run(arguments: EvaluateArgs) -> Result<Exit, Failure> {
    let layer = plugin_layer(&arguments.plugins)?;
    let request = CompareRequest {
        size: size(&arguments.windows),
        seed: arguments.seed,
        selection: arguments.selection,
        tier: arguments.tier,
        preset: arguments.preset,
        guards: layer.guards.clone().unwrap_or_default(),
        replicates: layer.bootstrap.unwrap_or(1000),
        ..CompareRequest::new(
            arguments.baseline,
            arguments.subject,
            dataset(arguments.text),
            arguments.out,
        )
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
