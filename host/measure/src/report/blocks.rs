//! The blocks of a report.

use super::{OPTIONAL_GUARDS, ReportInputs, Status, guards};
use crate::canonical::{sha256_hex, to_line};
use crate::table::Table;
use crate::windows::{Pairing, Window, Windows};
use serde_json::{Map, Value, json};

/// A ratio interval narrower than this, on enough text, is trusted.
const CONFIDENCE_WIDTH: f64 = 0.03;

/// Without the keys that are null: the format types many keys as numbers *when present*.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(_, value)| !value.is_null())
                .collect(),
        ),
        other => other,
    }
}

fn canonical_digest(value: &Value) -> String {
    sha256_hex(to_line(value).as_bytes())
}

pub(super) fn artifacts(inputs: &ReportInputs<'_>) -> Value {
    json!({
        "generated_at": inputs.timestamp,
        "checkpoint_path": null,
        "events_path": "",
        "logs_path": "",
        "report_path": "",
    })
}

pub(super) fn assurance(inputs: &ReportInputs<'_>) -> Value {
    json!({
        "mode": "off",
        "profile": inputs.policies.profile().name(),
        "tier": inputs.policies.tier().name(),
        "guard_chain_observed": guards::chain(inputs),
    })
}

pub(super) fn auto(inputs: &ReportInputs<'_>) -> Value {
    json!({
        "policy_digest": inputs.policies.digest(),
        "probes_used": 0,
        "target_pm_ratio": 1.0,
        "tier": inputs.policies.tier().name(),
    })
}

pub(super) fn baseline_ref(inputs: &ReportInputs<'_>, metric: Option<&Value>) -> Value {
    let final_ = metric.map_or(Value::Null, |metric| metric["baseline"]["final"].clone());
    json!({
        "adapter": "packhost",
        "model_id": inputs.baseline.model_id,
        "primary_metric": without_nulls(json!({"kind": "ppl_causal", "final": final_})),
        "run_id": inputs.baseline.run_id,
        "tokenizer_hash": inputs.baseline.tokenizer_digest,
    })
}

/// Whether the evaluation rests on too little text: coverage or token floor missed.
fn unstable(metric: &Value) -> bool {
    let coverage = ["preview", "final", "replicates"]
        .iter()
        .all(|what| metric["coverage"][what]["ok"] != json!(false));
    !coverage || metric["acceptance"]["tokens_acceptable"] == json!(false)
}

/// High when the interval of the ratio is narrow and the text enough, medium when one of the two holds.
pub(super) fn confidence(metric: &Value) -> Value {
    let bound = |index: usize| metric["display_ci"][index].as_f64();
    let width = bound(0).zip(bound(1)).map(|(low, high)| high - low);
    let narrow = width.is_some_and(|width| width <= CONFIDENCE_WIDTH);
    let label = match (narrow, unstable(metric)) {
        (true, false) => "High",
        (false, false) => "Medium",
        (_, true) => "Low",
    };
    without_nulls(json!({
        "basis": "ppl_ratio",
        "label": label,
        "threshold": CONFIDENCE_WIDTH,
        "unstable": unstable(metric),
        "width": width,
    }))
}

pub(super) fn context(inputs: &ReportInputs<'_>) -> Value {
    let policy = inputs.policies.for_guard(super::METRIC, &inputs.metric);
    let range = policy.get("acceptance_range").cloned();
    json!({
        "assurance": {"mode": "off"},
        "auto": {"enabled": true, "probes": 0, "tier": inputs.policies.tier().name()},
        "eval": {
            "bootstrap": {"alpha": inputs.metric.alpha, "replicates": inputs.metric.replicates},
            "loss": {"resolved_type": "causal", "type": "causal"},
            "metric": {"kind": "ppl_causal"},
        },
        "guard_chain_observed": guards::chain(inputs),
        "primary_metric": {
            "acceptance_range": range.unwrap_or_else(|| json!({})),
            "overhead_threshold": 0.01,
        },
        "profile": inputs.policies.profile().name(),
        "run": {},
        "runtime": {"execution_mode": "host"},
    })
}

pub(super) fn dataset(inputs: &ReportInputs<'_>, metric: Option<&Value>) -> Value {
    let windows = inputs.windows;
    let tokens = |arm: &[Window]| Windows::tokens(arm);
    let (preview, final_) = (tokens(&windows.preview), tokens(&windows.final_));
    let hash = match metric {
        Some(_) => json!({
            "dataset": inputs.dataset.digest,
            "preview": format!("sha256:{}", sequences_digest(&windows.preview)),
            "final": format!("sha256:{}", sequences_digest(&windows.final_)),
            "preview_tokens": preview,
            "final_tokens": final_,
            "total_tokens": preview + final_,
            "source": "explicit_preview_final_hashes",
        }),
        None => json!({
            "dataset": "", "preview": "", "final": "",
            "preview_tokens": preview,
            "final_tokens": final_,
            "total_tokens": preview + final_,
            "source": "config_fallback",
        }),
    };
    json!({
        "hash": hash,
        "provider": inputs.dataset.provider,
        "seq_len": windows.plan.seq_len,
        "split": "None",
        "stride": windows.plan.seq_len,
        "tokenizer": {
            "hash": inputs.subject.tokenizer_digest,
            "name": inputs.subject.model_id,
            "vocab_size": inputs.subject.vocab_size,
        },
        "windows": {
            "preview": windows.preview.len(),
            "final": windows.final_.len(),
            "seed": windows.plan.effective_seed(),
            "stats": window_stats(inputs, metric),
        },
    })
}

fn window_stats(inputs: &ReportInputs<'_>, metric: Option<&Value>) -> Value {
    let windows = inputs.windows;
    let plan = &windows.plan;
    let floor = inputs.policies.tier().coverage();
    let block = |used: usize, required: usize| json!({"ok": used >= required, "required": required, "used": used});
    let coverage = json!({
        "preview": block(windows.preview.len(), floor.preview),
        "final": block(windows.final_.len(), floor.final_),
        "replicates": block(inputs.metric.replicates, floor.replicates),
        "tier": inputs.policies.tier().name(),
    });
    let null = Value::Null;
    let figures = metric.map_or(&null, |metric| &metric["windows"]);
    let count = |arm: &str, otherwise: usize| {
        let matched = figures[arm]["matched"].as_u64();
        matched.map_or(otherwise, |matched| matched as usize)
    };
    let matched = count("paired_preview", windows.preview.len())
        + count("paired_final", windows.final_.len());
    let all = windows.preview.len() + windows.final_.len();
    let sequences = windows.sequences();
    let pairing = Pairing::new(plan.seq_len, plan.seq_len, &sequences, matched, all);
    let arm = |arm: &str, len: usize| match &figures[arm] {
        Value::Null => json!({"expected": len, "matched": len, "reason": null}),
        block => block.clone(),
    };
    let method = metric.map_or(&null, |metric| &metric["bootstrap"]["method"]);
    json!({
        "requested_preview": plan.preview,
        "requested_final": plan.final_,
        "actual_preview": windows.preview.len(),
        "actual_final": windows.final_.len(),
        "bootstrap": {
            "enabled": true,
            "method": method,
            "alpha": inputs.metric.alpha,
            "replicates": inputs.metric.replicates,
            "seed": inputs.metric.seed,
            "coverage": coverage.clone(),
            "window_duplicate_fraction": pairing.duplicate_fraction,
            "window_match_fraction": pairing.match_fraction,
        },
        "coverage": coverage,
        "coverage_ok": windows.preview.len() >= floor.preview && windows.final_.len() >= floor.final_,
        "paired_delta_summary": metric.map_or(&null, |metric| &metric["paired_delta_summary"]),
        "paired_windows": count("paired_preview", windows.preview.len()),
        "pairing": "paired_baseline",
        "window_match_fraction": pairing.match_fraction,
        "window_overlap_fraction": pairing.overlap_fraction,
        "window_pairing_reason": pairing.reason,
        "window_pairing_preview": arm("paired_preview", windows.preview.len()),
        "window_pairing_final": arm("paired_final", windows.final_.len()),
    })
}

pub(super) fn edit(inputs: &ReportInputs<'_>) -> Value {
    json!({
        "name": inputs.edit.name,
        "algorithm": inputs.edit.name,
        "algorithm_version": "",
        "implementation": inputs.edit.spec,
        "mask_digest": "",
        "plan_digest": inputs.edit.digest,
        "seed": inputs.windows.plan.seed,
    })
}

/// Ids, losses and token counts of the subject's windows with a finite loss, from which the metric can be computed again.
pub(super) fn evaluation_windows(inputs: &ReportInputs<'_>) -> Value {
    let arm = |scope: &str, windows: &[Window]| {
        let losses = inputs
            .subject_table
            .vector(scope, "window.loss")
            .unwrap_or_default();
        let kept: Vec<(&Window, f64)> = windows
            .iter()
            .zip(losses.iter().copied())
            .filter(|(_, loss)| loss.is_finite())
            .collect();
        let of =
            |value: fn(&(&Window, f64)) -> Value| kept.iter().map(value).collect::<Vec<Value>>();
        json!({
            "window_ids": of(|(window, _)| json!(window.id)),
            "logloss": of(|(_, loss)| json!(loss)),
            "token_counts": of(|(window, _)| json!(window.tokens.len())),
            "input_ids": of(|(window, _)| json!(window.tokens)),
            "skipped_non_finite": windows.len() - kept.len(),
        })
    };
    json!({
        "preview": arm("preview", &inputs.windows.preview),
        "final": arm("final", &inputs.windows.final_),
    })
}

/// Guards judge tables after the measurement, so they cost the model nothing and no overhead is measured.
pub(super) fn guard_overhead() -> Value {
    json!({"evaluated": false, "mode": "skipped", "skipped": true, "skip_reason": "guards_run_outside_the_model"})
}

/// Demands that a verifier checks at every profile. Without those on the flags, profile `dev` would accept the report of a
/// damaged model, and a pack whose scenario must fail would verify at `ci` but not at `dev`.
fn lints() -> Value {
    let flags = [
        "invariants_pass",
        "primary_metric_acceptable",
        "spectral_stable",
        "rmt_stable",
        "preview_final_drift_acceptable",
    ];
    let mut lints = vec![json!({
        "message": "Causal evaluation report must use causal ppl metric.",
        "path": "primary_metric.kind",
        "type": "equals",
        "value": "ppl_causal",
    })];
    lints.extend(flags.iter().map(|flag| {
        json!({
            "message": format!("validation.{flag} must be true."),
            "path": format!("validation.{flag}"),
            "type": "equals",
            "value": true,
        })
    }));
    Value::Array(lints)
}

pub(super) fn meta(inputs: &ReportInputs<'_>) -> Value {
    let seed = inputs.windows.plan.effective_seed();
    json!({
        "adapter": "packhost",
        "commit": inputs.subject.revision,
        "device": inputs.device,
        "model_id": inputs.subject.model_id,
        "model_profile": {
            "cert_lints": lints(),
            "default_loss": "causal",
            "family": inputs.subject.family,
        },
        "packhost_version": inputs.host_version,
        "profile": inputs.policies.profile().name(),
        "seed": seed,
        "seeds": {"windows": seed, "bootstrap": inputs.metric.seed},
        "tokenizer_hash": inputs.subject.tokenizer_digest,
        "ts": inputs.timestamp,
    })
}

/// Our own figures, which the reference's format does not have.
pub(super) fn own(inputs: &ReportInputs<'_>, metric: &Value) -> Value {
    let table = |table: &Table| json!({"sha256": table.digest(), "rows": table.len()});
    let guards: Vec<Value> = inputs.guards.iter().map(guards::own).collect();
    let divergence = |scope: &str| {
        let number = |quantity: &str| inputs.subject_table.number(scope, quantity);
        let finite = |quantity: &str| number(quantity).filter(|value| value.is_finite());
        number("kl.mean").map(|_| {
            json!({
                "kl": {
                    "mean": finite("kl.mean"),
                    "median": finite("kl.median"),
                    "p99": finite("kl.p99"),
                    "max": finite("kl.max"),
                },
                "same_top_share": finite("same_top.share"),
            })
        })
    };
    let windows = inputs.windows;
    json!({
        "schema": "packhost-report-v1",
        "divergence": {
            "unit": "nat per token, baseline's probabilities in front",
            "all_scored_tokens": divergence("model"),
            "final": divergence("final"),
        },
        "closed_form_interval": metric["ours"]["closed_form_interval"],
        "drift_ratio_vs_baseline": metric["ours"]["drift_ratio_vs_baseline"],
        "ci_upper_within_limit": metric["acceptance"]["ci_upper_within_limit"],
        "delta_mean": metric["delta_mean"],
        "guards": guards,
        "not_evaluated": not_evaluated(inputs),
        "tables": {
            "baseline": table(inputs.baseline_table),
            "baseline_rounds": table(inputs.baseline_rounds),
            "subject": table(inputs.subject_table),
        },
        "windows": {
            "selection": windows.plan.selection.name(),
            "seed": windows.plan.seed,
            "run": windows.plan.run,
            "texts": {
                "preview": windows.preview.iter().map(|window| window.text).collect::<Vec<_>>(),
                "final": windows.final_.iter().map(|window| window.text).collect::<Vec<_>>(),
            },
            "short_texts": windows.short,
            "repeated_texts": windows.duplicates,
            "reductions": windows
                .reductions
                .iter()
                .map(|step| json!({"deficit": step.deficit, "per_arm": step.per_arm}))
                .collect::<Vec<_>>(),
        },
    })
}

fn not_evaluated<'a>(inputs: &ReportInputs<'_>) -> Vec<&'a str> {
    let guards = OPTIONAL_GUARDS.into_iter();
    guards
        .filter(|guard| inputs.judged(guard).is_none())
        .collect()
}

/// The component identities, in the lists that the format has for plugins.
pub(super) fn plugins(inputs: &ReportInputs<'_>) -> Value {
    let guards = inputs.guards.iter().map(
        |judged| json!({"name": judged.id, "version": judged.version, "sha256": judged.digest}),
    );
    json!({"adapters": [], "edits": [], "guards": guards.collect::<Vec<_>>()})
}

pub(super) fn policy_digest(inputs: &ReportInputs<'_>) -> Value {
    let metrics = inputs.policies.section("metrics");
    json!({
        "changed": !inputs.policies.overridden().is_empty(),
        "hysteresis": {
            "accuracy_delta_pp": metrics["accuracy"]["hysteresis_delta_pp"],
            "ppl": metrics["pm_ratio"]["hysteresis_ratio"],
        },
        "min_effective": inputs.policies.section("variance")["min_effect_lognll"].as_f64().unwrap_or(0.0),
        "policy_version": "policy-v1",
        "thresholds_hash": canonical_digest(metrics)[..16],
        "tier_policy_name": inputs.policies.tier().name(),
    })
}

pub(super) fn policy_provenance(inputs: &ReportInputs<'_>) -> Value {
    json!({
        "overrides": inputs.policies.overridden(),
        "policy_digest": inputs.policies.digest(),
        "resolved_at": inputs.timestamp,
        "tier": inputs.policies.tier().name(),
    })
}

pub(super) fn primary_metric(inputs: &ReportInputs<'_>, metric: &Value) -> Value {
    let mut block = Map::new();
    for key in [
        "kind",
        "unit",
        "direction",
        "aggregation_scope",
        "analysis_basis",
        "analysis_point_final",
        "analysis_point_preview",
        "ci",
        "degraded",
        "degraded_reason",
        "display_ci",
        "final",
        "gating_basis",
        "invalid",
        "paired",
        "preview",
        "ratio_vs_baseline",
        "supports_bootstrap",
    ] {
        block.insert(key.to_owned(), metric[key].clone());
    }
    block.insert("unstable".into(), json!(unstable(metric)));
    block.insert(
        "drift_band".into(),
        metric["acceptance"]["drift_band"].clone(),
    );
    block.insert("reps".into(), json!(inputs.metric.replicates));
    block.insert("ci_level".into(), json!(1.0 - inputs.metric.alpha));
    without_nulls(Value::Object(block))
}

pub(super) fn provenance(inputs: &ReportInputs<'_>, metric: Option<&Value>) -> Value {
    let windows = inputs.windows;
    let ids: Vec<u32> = windows.all().map(|window| window.id).collect();
    let ids_digest = canonical_digest(&json!(ids));
    // Nothing is padded, so the masks are as many ones as a window has tokens.
    let lengths: Vec<usize> = windows.all().map(|window| window.tokens.len()).collect();
    let plan = json!({
        "profile": inputs.policies.profile().name(),
        "requested_preview": windows.plan.preview,
        "requested_final": windows.plan.final_,
        "actual_preview": windows.preview.len(),
        "actual_final": windows.final_.len(),
        "preview_total_tokens": Windows::tokens(&windows.preview),
        "final_total_tokens": Windows::tokens(&windows.final_),
        "min_tokens_target": inputs.policies.section("metrics")["pm_ratio"]["min_tokens"],
        "tokens_floor_met": metric.map(|metric| metric["acceptance"]["tokens_acceptable"].clone()),
    });
    json!({
        "baseline": {
            "run_id": inputs.baseline.run_id,
            "report_path": "",
            "report_hash": inputs.baseline_table.digest()[..16],
        },
        "edited": {
            "run_id": inputs.subject.run_id,
            "report_path": "",
            "report_hash": inputs.subject_table.digest()[..16],
        },
        "dataset_split": "None",
        "policy": policy_provenance(inputs),
        "provider_digest": {
            "ids_sha256": ids_digest,
            "masking_sha256": canonical_digest(&json!(lengths)),
            "tokenizer_sha256": inputs.subject.tokenizer_digest,
        },
        "split_fallback": false,
        "window_ids_digest": ids_digest,
        "window_plan": plan.clone(),
        "window_plan_digest": canonical_digest(&plan),
    })
}

pub(super) fn structure(inputs: &ReportInputs<'_>) -> Value {
    json!({
        "layers_modified": inputs.edit.layers_modified,
        "params_changed": inputs.edit.params_changed,
        "ranks": {},
    })
}

pub(super) fn telemetry(inputs: &ReportInputs<'_>, metric: &Value) -> Value {
    let (preview, final_) = (&metric["tokens"]["preview"], &metric["tokens"]["final"]);
    let total = preview.as_f64().unwrap_or(0.0) + final_.as_f64().unwrap_or(0.0);
    json!({
        "device": inputs.device,
        "preview_total_tokens": preview,
        "final_total_tokens": final_,
        "masked_tokens_preview": preview,
        "masked_tokens_final": final_,
        "masked_tokens_total": total,
    })
}

pub(super) fn validation(inputs: &ReportInputs<'_>, metric: &Value) -> Value {
    let flag = |name: &str| metric["flags"][name].as_bool().unwrap_or(false);
    let invariants = inputs.judged("invariants");
    let mut flags = Map::new();
    for name in [
        "preview_final_drift_acceptable",
        "primary_metric_acceptable",
        "primary_metric_tail_acceptable",
    ] {
        flags.insert(name.into(), json!(flag(name)));
    }
    if flag("hysteresis_applied") {
        flags.insert("hysteresis_applied".into(), json!(true));
    }
    if let Some(invariants) = invariants {
        flags.insert(
            "invariants_pass".into(),
            json!(invariants.status != Status::Fail),
        );
    }
    flags.insert(
        "spectral_stable".into(),
        json!(guards::stable(inputs, "spectral")),
    );
    flags.insert("rmt_stable".into(), json!(guards::stable(inputs, "rmt")));
    flags.insert("guard_overhead_acceptable".into(), json!(true));
    Value::Object(flags)
}

/// SHA-256 over the token ids of an arm: each window as its length and ids, little-endian 32-bit words.
fn sequences_digest(arm: &[Window]) -> String {
    let mut bytes = Vec::new();
    for window in arm {
        bytes.extend((window.tokens.len() as u32).to_le_bytes());
        for token in &window.tokens {
            bytes.extend(token.to_le_bytes());
        }
    }
    sha256_hex(&bytes)
}
