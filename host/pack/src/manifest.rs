//! The manifest: its schema, its references to files, and the evidence level that it may claim.
//!
//! Unknown fields are allowed at every level. Which bytes are signed does not depend on their shape: nothing is re-serialised on reading.

use serde_json::{Map, Value, json};

use crate::digest;
use crate::json::get;

/// The format id.
pub const FORMAT: &str = "evidence-pack-v1";

/// A file that the manifest binds by path and digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Where in the manifest: `subject`, `environment`, `materials[2]`, ...
    pub field: String,
    /// Path below the pack's root.
    pub path: String,
    /// Bare hex digest.
    pub digest: String,
}

/// Violations of the schema, all of them.
pub fn schema_faults(manifest: &Value) -> Vec<String> {
    let Some(fields) = manifest.as_object() else {
        return vec![format!("the manifest is {}, not an object", kind(manifest))];
    };
    let mut check = Check::default();
    check.required_const(fields, "format", FORMAT);
    check.required_const(fields, "checksums_sha256", crate::layout::CHECKSUMS);
    match fields.get("checksums_sha256_digest") {
        Some(Value::String(text)) if digest::is_hex(text) => {}
        None => check.fault("checksums_sha256_digest", "is required"),
        Some(_) => check.fault(
            "checksums_sha256_digest",
            "must be 64 lower-case hex digits",
        ),
    }
    check.one_of(fields, "evidence_level", &["low", "medium", "high"]);
    check.one_of(fields, "network_mode", &["offline", "online"]);
    check.text(fields, "signing_key_fingerprint", 16);
    check.text(fields, "generated_at", 20);
    for key in ["suite", "determinism", "run_dir"] {
        check.text(fields, key, 1);
    }
    check.text(fields, "invarlock_version", 0);
    if let Some(repeats) = fields.get("repeats")
        && get::integer(repeats).is_none_or(|repeats| repeats < 0.0)
    {
        check.fault("repeats", "must be an integer of at least 0");
    }
    if let Some(value) = fields.get("determinism_repeats")
        && !matches!(value, Value::Object(_) | Value::Array(_) | Value::Null)
    {
        check.fault("determinism_repeats", "must be an object, an array or null");
    }
    check.object(fields, "verification");
    if let Some(subject) = check.object(fields, "subject") {
        check.required_text(subject, "subject.", "name");
        check.required_text(subject, "subject.", "path");
        check.prefixed(subject, "subject.", true);
    }
    if let Some(invocation) = check.object(fields, "invocation") {
        check.nested_object(invocation, "invocation.", "parameters");
        if let Some(source) = check.nested_object(invocation, "invocation.", "config_source") {
            check.backing(source, "invocation.config_source.");
        }
    }
    if let Some(environment) = check.object(fields, "environment") {
        check.environment(environment);
    }
    if let Some(builder) = check.object(fields, "builder") {
        check.required_text(builder, "builder.", "id");
        check.required_text(builder, "builder.", "name");
        if builder
            .get("version")
            .is_some_and(|version| !version.is_string())
        {
            check.fault("builder.version", "must be a string");
        }
    }
    check.each(fields, "materials", |check, place, item| {
        let Some(item) = item.as_object() else {
            return check.fault(place, "must be an object");
        };
        let prefix = format!("{place}.");
        if !item
            .get("name")
            .and_then(Value::as_str)
            .is_some_and(is_material_name)
        {
            check.fault(
                &format!("{place}.name"),
                "must begin with a letter or digit and hold only letters, digits, `.`, `_` and `-`",
            );
        }
        check.required_text(item, &prefix, "path");
        check.prefixed(item, &prefix, true);
    });
    check.each(fields, "models", |check, place, item| {
        let Some(item) = item.as_object() else {
            return check.fault(place, "must be an object");
        };
        check.required_text(item, &format!("{place}."), "model_id");
        if !item.get("revision").is_some_and(Value::is_string) {
            check.fault(&format!("{place}.revision"), "must be a string");
        }
    });
    check.each(fields, "model_list", |check, place, item| {
        if !item.is_string() {
            check.fault(place, "must be a string");
        }
    });
    check.each(fields, "artifacts", |check, place, item| {
        if item.as_str().is_none_or(str::is_empty) {
            check.fault(place, "must be a non-empty string");
        }
    });
    if let Some(licenses) = check.object(fields, "model_licenses")
        && licenses.values().any(|license| !license.is_string())
    {
        check.fault("model_licenses", "must hold strings only");
    }
    check.faults
}

/// Field rules beyond the schema: a reference has both path and digest, or neither where that is allowed. Also the references that are backed.
pub fn references(manifest: &Value) -> (Vec<Reference>, Vec<String>) {
    let mut references = Vec::new();
    let mut faults = Vec::new();
    let mut take = |field: String, value: Option<&Value>| {
        let Some(fields) = value.and_then(Value::as_object) else {
            return;
        };
        let path = fields.get("path").and_then(Value::as_str);
        let digest = fields
            .get("digest")
            .and_then(Value::as_str)
            .and_then(|digest| digest.strip_prefix("sha256:"));
        match (path, digest) {
            (Some(path), Some(digest)) => references.push(Reference {
                field,
                path: path.to_owned(),
                digest: digest.to_owned(),
            }),
            (None, None) => {}
            (Some(_), None) => {
                faults.push(format!("`{field}` has a path but no digest; give both"))
            }
            (None, Some(_)) => {
                faults.push(format!("`{field}` has a digest but no path; give both"))
            }
        }
    };
    take("subject".to_owned(), manifest.get("subject"));
    take(
        "invocation.config_source".to_owned(),
        get::at(manifest, &["invocation", "config_source"]),
    );
    take("environment".to_owned(), manifest.get("environment"));
    for (index, item) in manifest
        .get("materials")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        take(format!("materials[{index}]"), Some(item));
    }
    (references, faults)
}

/// Whether a name may be a material's.
pub fn is_material_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|character| {
            character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
        })
}

/// The evidence level that a manifest's content supports: section 4.4 of the format.
pub fn evidence_level(manifest: &Value) -> &'static str {
    let count = |key| get::number(manifest, &["verification", key]).unwrap_or(0.0);
    let subject = manifest.get("subject").is_some_and(Value::is_object);
    let bound = manifest
        .get("checksums_sha256_digest")
        .is_some_and(Value::is_string);
    if !(subject && bound && count("clean_reports") > 0.0) {
        return "low";
    }
    let backed = |path: &[&str]| {
        get::object(manifest, path)
            .is_some_and(|fields| fields.contains_key("path") && fields.contains_key("digest"))
    };
    let both = backed(&["invocation", "config_source"]) && backed(&["environment"]);
    if both && count("failed_reports") == 0.0 {
        "high"
    } else {
        "medium"
    }
}

/// A reference as the manifest writes it.
pub fn backed(path: &str, digest: &str) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("path".to_owned(), json!(path));
    fields.insert("digest".to_owned(), json!(format!("sha256:{digest}")));
    fields
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Collects violations.
#[derive(Default)]
struct Check {
    faults: Vec<String>,
}

impl Check {
    fn fault(&mut self, field: &str, what: &str) {
        self.faults.push(format!("field `{field}` {what}"));
    }

    fn required_const(&mut self, fields: &Map<String, Value>, key: &str, expected: &str) {
        if fields.get(key).and_then(Value::as_str) != Some(expected) {
            self.fault(key, &format!("must be `{expected}`"));
        }
    }

    fn one_of(&mut self, fields: &Map<String, Value>, key: &str, allowed: &[&str]) {
        if let Some(value) = fields.get(key)
            && !value.as_str().is_some_and(|text| allowed.contains(&text))
        {
            self.fault(key, &format!("must be one of {}", allowed.join(", ")));
        }
    }

    /// An optional text of at least `least` characters.
    fn text(&mut self, fields: &Map<String, Value>, key: &str, least: usize) {
        if let Some(value) = fields.get(key)
            && value
                .as_str()
                .is_none_or(|text| text.chars().count() < least)
        {
            self.fault(
                key,
                &format!("must be a string of at least {least} characters"),
            );
        }
    }

    fn required_text(&mut self, fields: &Map<String, Value>, prefix: &str, key: &str) {
        if fields
            .get(key)
            .and_then(Value::as_str)
            .is_none_or(str::is_empty)
        {
            self.fault(&format!("{prefix}{key}"), "must be a non-empty string");
        }
    }

    fn prefixed(&mut self, fields: &Map<String, Value>, prefix: &str, required: bool) {
        match fields.get("digest") {
            None if !required => {}
            Some(Value::String(text)) if digest::is_prefixed(text) => {}
            _ => self.fault(
                &format!("{prefix}digest"),
                "must be `sha256:` and 64 lower-case hex digits",
            ),
        }
    }

    /// Optional path and digest; that they come together is a field rule, not the schema's.
    fn backing(&mut self, fields: &Map<String, Value>, prefix: &str) {
        if fields.contains_key("path") {
            self.required_text(fields, prefix, "path");
        }
        self.prefixed(fields, prefix, false);
    }

    fn environment(&mut self, fields: &Map<String, Value>) {
        for key in ["recorded_at", "platform", "python_version", "gpu_name"] {
            if fields.get(key).is_some_and(|value| !value.is_string()) {
                self.fault(&format!("environment.{key}"), "must be a string");
            }
        }
        for key in ["gpu_count", "gpu_memory_gb"] {
            if fields
                .get(key)
                .is_some_and(|value| !value.is_number() && !value.is_null())
            {
                self.fault(&format!("environment.{key}"), "must be a number or null");
            }
        }
        if fields
            .get("fp8_native_support")
            .is_some_and(|value| !value.is_boolean())
        {
            self.fault("environment.fp8_native_support", "must be true or false");
        }
        self.backing(fields, "environment.");
    }

    fn object<'f>(
        &mut self,
        fields: &'f Map<String, Value>,
        key: &str,
    ) -> Option<&'f Map<String, Value>> {
        self.nested_object(fields, "", key)
    }

    fn nested_object<'f>(
        &mut self,
        fields: &'f Map<String, Value>,
        prefix: &str,
        key: &str,
    ) -> Option<&'f Map<String, Value>> {
        let value = fields.get(key)?;
        if !value.is_object() {
            self.fault(&format!("{prefix}{key}"), "must be an object");
        }
        value.as_object()
    }

    fn each(
        &mut self,
        fields: &Map<String, Value>,
        key: &str,
        mut item_check: impl FnMut(&mut Self, &str, &Value),
    ) {
        match fields.get(key) {
            None => {}
            Some(Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    item_check(self, &format!("{key}[{index}]"), item);
                }
            }
            Some(_) => self.fault(key, "must be an array"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Value {
        json!({
            "format": FORMAT, "checksums_sha256": "checksums.sha256", "checksums_sha256_digest": "0".repeat(64),
            "subject": {"name": "v", "path": "p", "digest": digest::prefixed(b"")}, "repeats": 1.0, "unknown": {"x": [1]},
        })
    }

    #[test]
    fn each_field_is_checked() {
        assert_eq!(schema_faults(&good()), Vec::<String>::new());
        let breaks: [(&str, Value); 22] = [
            ("format", json!("evidence-pack-v2")),
            ("checksums_sha256", json!("sums")),
            ("checksums_sha256_digest", json!("A".repeat(64))),
            ("evidence_level", json!("best")),
            ("subject", Value::Null),
            (
                "subject",
                json!({"name": "", "path": "p", "digest": digest::prefixed(b"")}),
            ),
            ("subject", json!({"name": "v", "path": "p"})),
            ("invocation", json!({"config_source": 3})),
            ("invocation", json!({"parameters": []})),
            ("environment", json!({"gpu_count": "2"})),
            ("environment", json!({"fp8_native_support": 1})),
            (
                "materials",
                json!([{"name": "a/b", "path": "p", "digest": digest::prefixed(b"")}]),
            ),
            ("materials", json!({})),
            ("verification", json!([])),
            ("signing_key_fingerprint", json!("short")),
            ("generated_at", json!("2026")),
            ("network_mode", json!("on")),
            ("repeats", json!(-1)),
            ("repeats", json!(true)),
            ("determinism_repeats", json!("x")),
            ("models", json!([{"model_id": "m"}])),
            ("artifacts", json!([""])),
        ];
        for (key, value) in breaks {
            let mut manifest = good();
            manifest[key] = value;
            assert_eq!(schema_faults(&manifest).len(), 1, "{key}");
        }
        for key in ["format", "checksums_sha256", "checksums_sha256_digest"] {
            let mut manifest = good();
            manifest.as_object_mut().map(|fields| fields.remove(key));
            assert_eq!(schema_faults(&manifest).len(), 1, "{key}");
        }
        assert_eq!(schema_faults(&json!([])).len(), 1);
    }

    #[test]
    fn halves_of_references_are_faults() {
        let manifest = json!({"environment": {"path": "e"}, "invocation": {"config_source": {"digest": digest::prefixed(b"")}}, "subject": {"path": "p", "digest": digest::prefixed(b"")}});
        let (references, faults) = references(&manifest);
        assert_eq!(references.len(), 1);
        assert_eq!(faults.len(), 2);
    }
}
