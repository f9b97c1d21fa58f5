//! Where things come from: the source repository, the machine, and the runtime that made a report.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::digest;
use crate::error::{Error, Result};

/// A marker file that stands for a checkout, and values that override what it or Git says.
#[derive(Clone, Debug, Default)]
pub struct SourceHints {
    /// Marker file to use instead of `GPU_RUN_SOURCE.txt` in the repository: the value of `INVARLOCK_SOURCE_REPO_MARKER`.
    pub marker: Option<std::path::PathBuf>,
    /// Overrides by marker key (`source_commit`, `source_uri`, `source_branch`, `source_describe`, `source_dirty`): the values of the environment variables
    /// `INVARLOCK_SOURCE_COMMIT` and so on.
    pub overrides: BTreeMap<String, String>,
}

/// Name of the marker file that is looked for.
const MARKER: &str = "GPU_RUN_SOURCE.txt";

/// The content of `metadata/source_repo.json` for a directory: from Git, or from a marker file where there is no usable checkout.
///
/// # Errors
/// If neither gives a commit of 40 hex digits and non-empty values; packing must stop then, because a pack without provenance claims less than it seems to.
pub fn source_repo(folder: &Path, hints: &SourceHints) -> Result<Value> {
    let from_git = if hints.overrides.contains_key("source_commit") || hints.marker.is_some() {
        Err("a marker was given".to_owned())
    } else {
        from_git(folder)
    };
    let git_reason = match from_git {
        Ok(value) => return Ok(value),
        Err(reason) => reason,
    };
    let marker = hints.marker.clone().unwrap_or_else(|| folder.join(MARKER));
    let mut fields = match fs::read_to_string(&marker) {
        Ok(text) => marker_fields(&text),
        Err(_) if hints.overrides.contains_key("source_commit") => BTreeMap::new(),
        Err(error) => {
            return Err(Error::Provenance(format!(
                "Git gives nothing ({git_reason}), and the marker file `{}` cannot be read ({error}); run inside a Git checkout with a commit, or write that file with a line `source_commit=<40 hex digits>`",
                marker.display()
            )));
        }
    };
    fields.extend(hints.overrides.clone());
    from_marker(&fields, &marker)
}

fn from_git(folder: &Path) -> std::result::Result<Value, String> {
    let git = |args: &[&str]| -> std::result::Result<String, String> {
        let output = Command::new("git")
            .arg("-C")
            .arg(folder)
            .args(args)
            .output()
            .map_err(|error| format!("`git` cannot be started: {error}"))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(format!(
                "`git {}` failed: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            ))
        }
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let branch = git(&["rev-parse", "--abbrev-ref", "HEAD"])?;
    let describe = git(&["describe", "--tags", "--always", "--dirty"])?;
    let dirty = !git(&["status", "--porcelain"])?.is_empty();
    let uri = match git(&["config", "--get", "remote.origin.url"]) {
        Ok(url) if !url.is_empty() => format!("git+{}", without_credentials(&url)),
        _ => format!("file://{}", git(&["rev-parse", "--show-toplevel"])?),
    };
    let value = json!({"uri": uri, "commit": commit, "branch": branch, "describe": describe, "dirty": dirty});
    check(&value).map(|()| value)
}

/// A remote's address without a user name or password in it, which must not get into a pack.
fn without_credentials(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = host.rsplit('@').next().unwrap_or(host);
            format!("{scheme}://{host}/{path}")
        }
        None => url.to_owned(),
    }
}

/// Lines `key=value`; `#` begins a comment line.
fn marker_fields(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

fn from_marker(fields: &BTreeMap<String, String>, marker: &Path) -> Result<Value> {
    let field = |key: &str| {
        fields
            .get(key)
            .map(String::as_str)
            .filter(|text| !text.is_empty())
    };
    let commit = field("source_commit").unwrap_or_default().to_lowercase();
    let describe =
        field("source_describe").map_or_else(|| commit.chars().take(12).collect(), str::to_owned);
    let dirty = field("source_dirty")
        .is_some_and(|text| ["1", "true", "yes", "on"].contains(&text.to_lowercase().as_str()));
    let value = json!({
        "uri": field("source_uri").unwrap_or("urn:packhost:source-snapshot"),
        "commit": commit,
        "branch": field("source_branch").unwrap_or("detached-snapshot"),
        "describe": describe,
        "dirty": dirty,
        "metadata_source": marker.file_name().map_or_else(|| MARKER.to_owned(), |name| name.to_string_lossy().into_owned()),
    });
    check(&value).map_err(|reason| {
        Error::Provenance(format!(
            "the marker file `{}` is unusable: {reason}",
            marker.display()
        ))
    })?;
    Ok(value)
}

fn check(value: &Value) -> std::result::Result<(), String> {
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let commit = text("commit");
    if commit.len() != 40 || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("the commit `{commit}` is not 40 hex digits"));
    }
    match ["uri", "branch", "describe"]
        .into_iter()
        .find(|key| text(key).is_empty())
    {
        Some(key) => Err(format!("`{key}` is empty")),
        None => Ok(()),
    }
}

/// The accelerators of a machine, as far as known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gpus {
    /// Name of the first one; empty without one.
    pub name: String,
    /// How many, if known.
    pub count: Option<u32>,
    /// Memory of one in GiB, if known.
    pub memory_gb: Option<f64>,
    /// Whether 8-bit floats are native there.
    pub fp8: bool,
}

/// The content of `metadata/environment.json`. The field for a Python version is empty: there is none.
pub fn environment(recorded_at: &str, gpus: &Gpus) -> Value {
    json!({
        "recorded_at": recorded_at,
        "platform": format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        "python_version": "",
        "gpu_name": gpus.name,
        "gpu_count": gpus.count,
        "gpu_memory_gb": gpus.memory_gb,
        "fp8_native_support": gpus.fp8,
    })
}

/// The runtime that evaluated a report.
///
/// Verifiers accept only reports that were made in a container. For packhost the image is the program itself, which holds everything that an evaluation
/// uses but the plugins, and those run in its sandbox without files, network or clock; the digest is that of the executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Name and version, such as `packhost:0.1.0`.
    pub image_ref: String,
    /// `sha256:` and the digest of the image.
    pub image_digest: String,
    /// When the report was made, RFC 3339.
    pub generated_at: String,
    /// Whether plugins other than our own were allowed.
    pub third_party_plugins: bool,
    /// Free information, an object.
    pub context: Option<Value>,
}

impl Runtime {
    /// The content of `runtime.manifest.json` for a report with these bytes.
    pub fn manifest(&self, report: &[u8]) -> Value {
        self.manifest_for(&digest::hex(report))
    }

    pub(crate) fn manifest_for(&self, report_digest: &str) -> Value {
        let mut value = json!({
            "manifest_version": 1,
            "generated_at_utc": self.generated_at,
            "verifier_contract_version": "runtime-manifest-v1",
            "report": {"path": crate::layout::REPORT, "filename": crate::layout::REPORT, "sha256": report_digest},
            "config": {"path": null, "sha256": null, "source": "missing"},
            "execution_mode": "container",
            "runtime": {
                "image_ref": self.image_ref,
                "image_digest": self.image_digest,
                "container_execution": true,
                "allow_network": false,
                "allow_remote_code": false,
                "allow_third_party_plugins": self.third_party_plugins,
            },
        });
        if let Some(context) = &self.context {
            value["context"] = context.clone();
        }
        value
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_stands_for_a_checkout() {
        let folder = tempfile::tempdir().unwrap();
        let error = source_repo(folder.path(), &SourceHints::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(MARKER), "{error}");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        fs::write(
            folder.path().join(MARKER),
            format!("# made by hand\nsource_commit = {commit}\nsource_dirty=yes\n"),
        )
        .unwrap();
        let value = source_repo(folder.path(), &SourceHints::default()).unwrap();
        assert_eq!(value["commit"], commit);
        assert_eq!(
            (&value["describe"], &value["branch"]),
            (&json!("0123456789ab"), &json!("detached-snapshot"))
        );
        assert_eq!(
            (&value["dirty"], &value["metadata_source"]),
            (&json!(true), &json!(MARKER))
        );
        let overrides = BTreeMap::from([("source_commit".to_owned(), "short".to_owned())]);
        assert!(
            source_repo(
                folder.path(),
                &SourceHints {
                    marker: None,
                    overrides
                }
            )
            .is_err()
        );
    }

    #[test]
    fn credentials_stay_out() {
        assert_eq!(
            without_credentials("https://me:secret@example.org/a/b.git"),
            "https://example.org/a/b.git"
        );
        assert_eq!(
            without_credentials("git@example.org:a/b.git"),
            "git@example.org:a/b.git"
        );
    }

    #[test]
    fn the_runtime_manifest_is_accepted_by_our_rules() {
        let runtime = Runtime {
            image_ref: "packhost:0".into(),
            image_digest: digest::prefixed(b"image"),
            generated_at: "2026-01-02T03:04:05Z".into(),
            third_party_plugins: false,
            context: Some(json!({})),
        };
        assert_eq!(
            crate::report_rules::runtime_schema_faults(&runtime.manifest(b"{}")),
            Vec::<String>::new()
        );
    }
}
