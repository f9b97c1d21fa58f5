//! Edit specifications: the strings by which a scenario or a person names an edit, and the file of tuned parameters that
//! the `clean` form refers to.
//!
//! ```text
//! spec   = type ":" p1 [":" p2] [":" scope]        quant_rtn:8:128:ffn   fp8_quant:e5m2:all   lowrank_svd:32:ffn@layer=15
//! clean  = type ":clean:" scope                    quant_rtn:clean:ffn
//! other  = type ":" JSON object                    acme.block-sparse:{"block":4,"scope":"ffn"}
//! ```
//!
//! The last form hands its object to the plugin as it is, so that a new edit type needs no change here.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::rundir::parse_named;
use crate::{Error, Result};

/// An edit, resolved: what to ask of which plugin, and how its folder is called.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedEdit {
    /// `quant_rtn`, `fp8_quant`, `magnitude_prune`, `lowrank_svd`, or a type that a third party's plugin serves.
    pub edit_type: String,
    /// What the plugin's `plan` gets.
    pub params: Value,
    /// Which tensors, as written in the specification or the tuned entry.
    pub scope: String,
    /// `clean`, `stress` or empty.
    pub version: String,
    /// Folder of the subject under `<model>/models/`. Empty when the version is.
    pub dir_name: String,
}

/// What became of a specification.
#[derive(Debug, Clone, PartialEq)]
pub enum Resolution {
    /// Ready to run.
    Selected(ResolvedEdit),
    /// The tuned entry says that this model has no such clean edit; the tasks succeed and do nothing.
    Skipped { reason: String },
    /// Nothing to run: `status` is the tuned entry's or `missing`/`invalid`, `reason` a word for machines.
    Refused { status: String, reason: String },
}

/// The four edit types of the specification, with the parameters that their strings carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Builtin {
    QuantRtn,
    Fp8Quant,
    MagnitudePrune,
    LowrankSvd,
}

impl Builtin {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "quant_rtn" => Self::QuantRtn,
            "fp8_quant" => Self::Fp8Quant,
            "magnitude_prune" => Self::MagnitudePrune,
            "lowrank_svd" => Self::LowrankSvd,
            _ => return None,
        })
    }
}

/// Names of formats that `fp8_quant` serves. The reference takes every other name for f16; here f16 must be asked for.
const FP_FORMATS: [&str; 7] = [
    "e4m3", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fn", "e5m2fnuz", "f16",
];

/// A specification taken apart; absent parts are empty.
#[derive(Debug, Clone, PartialEq)]
struct Parts<'a> {
    edit_type: &'a str,
    p1: &'a str,
    p2: &'a str,
    scope: &'a str,
}

impl<'a> Parts<'a> {
    /// Splits on colons and moves the scope to its place: it is the last part given.
    fn split(spec: &'a str) -> Self {
        let mut parts = spec.split(':');
        let mut next = || parts.next().unwrap_or("");
        let mut split = Self {
            edit_type: next(),
            p1: next(),
            p2: next(),
            scope: next(),
        };
        let scope_is_third =
            split.edit_type != "quant_rtn" || (!split.p1.is_empty() && !split.p2.is_empty());
        if split.scope.is_empty() && scope_is_third {
            split.scope = std::mem::take(&mut split.p2);
        }
        split
    }
}

/// Resolves `spec`. `version` is the caller's hint (`clean`, `stress` or empty); `tuned` serves the clean form for the
/// model that goes by one of `model_keys`.
///
/// Deviations from the reference, each a recorded decision: `quant_rtn:<bits>:<scope>` means one group per row; values
/// out of range are refused here with a reason instead of being run; an unknown type with colon-separated parts is refused.
pub fn resolve(spec: &str, version: &str, tuned: &Tuned, model_keys: &[&str]) -> Resolution {
    if let Some((edit_type, object)) = spec
        .split_once(':')
        .filter(|(_, rest)| rest.starts_with('{'))
    {
        return resolve_object(edit_type, object, version);
    }
    let parts = Parts::split(spec);
    let clean = parts.p1 == "clean";
    let version = if version.is_empty() && clean {
        "clean"
    } else {
        version
    };
    let Some(builtin) = Builtin::from_name(parts.edit_type) else {
        return refused("invalid", "unknown_edit_type");
    };
    if clean {
        return resolve_clean(builtin, &parts, version, tuned, model_keys);
    }
    match literal_params(builtin, &parts) {
        Ok(params) => selected(&parts, params, parts.scope, version, None),
        Err(reason) => refused("invalid", reason),
    }
}

fn refused(status: &str, reason: &str) -> Resolution {
    Resolution::Refused {
        status: status.into(),
        reason: reason.into(),
    }
}

fn resolve_object(edit_type: &str, object: &str, version: &str) -> Resolution {
    match serde_json::from_str::<Map<String, Value>>(object) {
        Err(_) => refused("invalid", "invalid_json_params"),
        Ok(map) => {
            let scope = map
                .get("scope")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_string();
            let dir_name = default_dir_name(edit_type, &Value::Null, version);
            Resolution::Selected(ResolvedEdit {
                edit_type: edit_type.into(),
                params: Value::Object(map),
                scope,
                version: version.into(),
                dir_name,
            })
        }
    }
}

/// Parameters from a literal specification, in the plugin's terms, without the scope.
fn literal_params(builtin: Builtin, parts: &Parts<'_>) -> std::result::Result<Value, &'static str> {
    match builtin {
        Builtin::QuantRtn => {
            let group = if parts.p2.is_empty() { "-1" } else { parts.p2 };
            match (parts.p1.parse::<i64>(), group.parse::<i64>()) {
                (Ok(bits @ 1..=16), Ok(group_size)) => {
                    Ok(json!({"bits": bits, "group_size": group_size}))
                }
                _ => Err("invalid_quant_params"),
            }
        }
        Builtin::Fp8Quant if FP_FORMATS.contains(&parts.p1) => Ok(json!({"format": parts.p1})),
        Builtin::Fp8Quant => Err("invalid_fp_format"),
        Builtin::MagnitudePrune => match parts.p1.parse::<f64>() {
            Ok(sparsity) if (0.0..=1.0).contains(&sparsity) => Ok(json!({"sparsity": sparsity})),
            _ => Err("invalid_prune_sparsity"),
        },
        Builtin::LowrankSvd => match parts.p1.parse::<u32>() {
            Ok(rank) if rank >= 1 => Ok(json!({"rank": rank})),
            _ => Err("invalid_lowrank_rank"),
        },
    }
}

fn resolve_clean(
    builtin: Builtin,
    parts: &Parts<'_>,
    version: &str,
    tuned: &Tuned,
    keys: &[&str],
) -> Resolution {
    let entry = match tuned.entry(parts.edit_type, keys) {
        Ok(Some(entry)) => entry,
        Ok(None) => return refused("missing", ""),
        Err(refusal) => return *refusal,
    };
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
    match text("status") {
        "selected" => {}
        "skipped" => {
            return Resolution::Skipped {
                reason: text("reason").into(),
            };
        }
        status => {
            return refused(
                if status.is_empty() { "missing" } else { status },
                text("reason"),
            );
        }
    }
    let number = |key: &str| entry.get(key).map(Value::to_string).unwrap_or_default();
    let (p1, p2) = match builtin {
        Builtin::QuantRtn => (number("bits"), number("group_size")),
        Builtin::Fp8Quant => (text("format").to_string(), String::new()),
        Builtin::MagnitudePrune => (number("sparsity"), String::new()),
        Builtin::LowrankSvd => (number("rank"), String::new()),
    };
    let literal = Parts {
        p1: &p1,
        p2: &p2,
        ..parts.clone()
    };
    let scope = if text("scope").is_empty() {
        parts.scope
    } else {
        text("scope")
    };
    let dir_name = Some(text("edit_dir_name")).filter(|name| !name.is_empty());
    match literal_params(builtin, &literal) {
        Ok(params) => selected(&literal, params, scope, version, dir_name),
        Err(reason) => refused("invalid", reason),
    }
}

fn selected(
    parts: &Parts<'_>,
    mut params: Value,
    scope: &str,
    version: &str,
    dir_name: Option<&str>,
) -> Resolution {
    let dir_name = dir_name.map_or_else(
        || default_dir_name(parts.edit_type, &params, version),
        Into::into,
    );
    params["scope"] = Value::from(scope);
    Resolution::Selected(ResolvedEdit {
        edit_type: parts.edit_type.into(),
        params,
        scope: scope.into(),
        version: version.into(),
        dir_name,
    })
}

/// The reference's folder names: `quant_4bit_clean`, `prune_50pct_stress` (truncated: 0.29 gives 28), ...
fn default_dir_name(edit_type: &str, params: &Value, version: &str) -> String {
    if version.is_empty() {
        return String::new();
    }
    let stem = match edit_type {
        "quant_rtn" => format!("quant_{}bit", params["bits"]),
        "fp8_quant" => format!("fp8_{}", params["format"].as_str().unwrap_or_default()),
        "magnitude_prune" => {
            let percent = (params["sparsity"].as_f64().unwrap_or_default() * 100.0).trunc();
            format!("prune_{percent}pct")
        }
        "lowrank_svd" => format!("svd_rank{}", params["rank"]),
        other => other.to_string(),
    };
    format!("{stem}_{version}")
}

/// The tuned parameters of clean edits, or why there are none.
#[derive(Debug, Clone, PartialEq)]
pub enum Tuned {
    /// No file was given.
    Absent,
    /// The file cannot be read or is not a JSON object.
    Unusable,
    /// The file's object.
    File(Map<String, Value>),
}

impl Tuned {
    /// Reads a file of tuned parameters.
    ///
    /// # Errors
    /// When the file cannot be read or its schema is not `tuned_edit_params_v1` (a file without `_meta` is accepted).
    pub fn load(path: &Path) -> Result<Self> {
        let fail = |message: String| Error::TunedParams {
            path: PathBuf::from(path),
            message,
        };
        let map: Map<String, Value> = parse_named("read the tuned edit parameters", path, fail)?;
        match map
            .get("_meta")
            .and_then(|meta| meta.get("schema"))
            .and_then(Value::as_str)
        {
            None | Some("tuned_edit_params_v1") => Ok(Self::File(map)),
            Some(other) => Err(fail(format!(
                "schema `{other}` is not `tuned_edit_params_v1`"
            ))),
        }
    }

    /// The entry of `edit_type` for the first of `keys` that has a map, else the default entry.
    fn entry(
        &self,
        edit_type: &str,
        keys: &[&str],
    ) -> std::result::Result<Option<&Map<String, Value>>, Box<Resolution>> {
        let file = match self {
            Self::Absent => {
                return Err(Box::new(refused(
                    "missing",
                    "missing_tuned_edit_params_file",
                )));
            }
            Self::Unusable => {
                return Err(Box::new(refused(
                    "invalid",
                    "invalid_tuned_edit_params_file",
                )));
            }
            Self::File(file) => file,
        };
        let models = file.get("models").and_then(Value::as_object);
        let of_model = keys.iter().find_map(|key| models?.get(*key)?.as_object());
        let whole_file = file.contains_key(edit_type).then_some(file);
        let defaults = file.get("defaults").and_then(Value::as_object);
        Ok([of_model.or(whole_file), defaults]
            .into_iter()
            .flatten()
            .find_map(|map| map.get(edit_type)?.as_object()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors() -> Value {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/vectors/edits/specs.json"
        );
        serde_json::from_str(&std::fs::read_to_string(path).expect("vectors are committed"))
            .expect("valid JSON")
    }

    /// Our resolution in the reference's terms: status, reason, scope, folder name.
    fn summary(resolution: &Resolution) -> (String, String, String, String) {
        match resolution {
            Resolution::Selected(edit) => (
                "selected".into(),
                String::new(),
                edit.scope.clone(),
                edit.dir_name.clone(),
            ),
            Resolution::Skipped { reason } => (
                "skipped".into(),
                reason.clone(),
                String::new(),
                String::new(),
            ),
            Resolution::Refused { status, reason } => {
                (status.clone(), reason.clone(), String::new(), String::new())
            }
        }
    }

    #[test]
    fn vectors_hold_except_where_we_decided_otherwise() {
        let vectors = vectors();
        let tuned = Tuned::File(
            vectors["tuned_edit_params"]
                .as_object()
                .expect("object")
                .clone(),
        );
        let mut compared = 0;
        for case in vectors["cases"].as_array().expect("array") {
            let text = |key: &str| case[key].as_str().expect("string");
            let tuned = if case.get("tuned_file").is_some() {
                &Tuned::Absent
            } else {
                &tuned
            };
            let ours = summary(&resolve(
                text("spec"),
                text("version_hint"),
                tuned,
                &[text("model")],
            ));
            let theirs = &case["result"];
            let field = |key: &str| theirs[key].as_str().expect("string").to_string();
            let decided = match text("spec") {
                // One group per row, where the reference refuses.
                "quant_rtn:8:all" => Some((
                    "selected".into(),
                    String::new(),
                    "all".into(),
                    "quant_8bit_stress".into(),
                )),
                // The reference selects what no plugin serves and fails later.
                "unknown:1:all" | "" => Some((
                    "invalid".into(),
                    "unknown_edit_type".into(),
                    String::new(),
                    String::new(),
                )),
                _ => None,
            };
            let expected = decided.unwrap_or_else(|| match field("status").as_str() {
                // The reason of a selected entry is the tuned entry's note; we drop it.
                "selected" => (
                    "selected".into(),
                    String::new(),
                    field("scope"),
                    field("edit_dir_name"),
                ),
                status => (
                    status.to_string(),
                    field("reason"),
                    String::new(),
                    String::new(),
                ),
            });
            assert_eq!(
                ours,
                expected,
                "spec {:?} of {:?}",
                text("spec"),
                text("model")
            );
            compared += 1;
        }
        assert_eq!(compared, 39);
    }

    #[test]
    fn parameters_reach_the_plugin_with_their_types() {
        let Resolution::Selected(edit) = resolve("quant_rtn:8:128:ffn", "", &Tuned::Absent, &[])
        else {
            panic!("must be selected")
        };
        assert_eq!(
            edit.params,
            json!({"bits": 8, "group_size": 128, "scope": "ffn"})
        );
        let Resolution::Selected(edit) =
            resolve("lowrank_svd:32:ffn@layer=15", "", &Tuned::Absent, &[])
        else {
            panic!("must be selected")
        };
        assert_eq!(edit.params, json!({"rank": 32, "scope": "ffn@layer=15"}));
        let Resolution::Selected(edit) = resolve(
            "acme.x:{\"scope\":\"ffn\",\"n\":1}",
            "stress",
            &Tuned::Absent,
            &[],
        ) else {
            panic!("must be selected")
        };
        assert_eq!(
            (edit.edit_type.as_str(), edit.dir_name.as_str()),
            ("acme.x", "acme.x_stress")
        );
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (spec, reason) in [
            ("quant_rtn:0:32:all", "invalid_quant_params"),
            ("quant_rtn:17:32:all", "invalid_quant_params"),
            ("magnitude_prune:7:all", "invalid_prune_sparsity"),
            ("magnitude_prune:NaN:all", "invalid_prune_sparsity"),
            ("lowrank_svd:0:all", "invalid_lowrank_rank"),
            ("lowrank_svd:-1:all", "invalid_lowrank_rank"),
            ("acme.x:{", "invalid_json_params"),
            ("fp8_quant:e6m1:ffn", "invalid_fp_format"),
            ("fp8_quant:E5M2:ffn", "invalid_fp_format"),
            ("fp8_quant::ffn", "invalid_fp_format"),
        ] {
            assert_eq!(
                resolve(spec, "", &Tuned::Absent, &[]),
                refused("invalid", reason),
                "{spec}"
            );
        }
    }
}
