//! Trust policies: a TOML file that says whose signatures a pack needs, and which plugins it may have been made with.
//!
//! ```toml
//! format = 1
//! threshold = 2                  # so many of the keys below must have signed; 1 where it is absent
//!
//! [[key]]
//! name = "release 2026"
//! fingerprint = "sha256:..."
//! not_before = 2026-01-01T00:00:00Z
//! not_after = 2027-01-01T00:00:00Z
//!
//! [[key]]
//! name = "lost laptop"
//! fingerprint = "sha256:..."
//! revoked = true                 # or a time: packs from then on are refused
//!
//! [[plugin]]
//! id = "spectral"
//! sha256 = ["..."]               # one of these must be the one that the pack's lock file pins
//! ```
//!
//! Times are compared with the manifest's `generated_at`, so that a verdict about a pack does not change with the clock. That time
//! is the signer's own word: whoever steals a key can write any. A stolen key is revoked with `true`, which no date gets around.
//!
//! A pack holds one signature. Further ones lie beside it as files of their own, in the same format over the same bytes.
//! Plugins are pinned by digest, because packs carry no signatures of plugins.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::value::Datetime;

use crate::digest;
use crate::files::Files;
use crate::integrity::Finding;
use crate::json;
use crate::report_rules::is_timestamp;
use crate::signature;

/// The lock file of a pack.
pub(crate) const LOCK: &str = "metadata/packhost/plugins.lock";

/// A policy that was read and makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    threshold: usize,
    keys: BTreeMap<String, Key>,
    plugins: Vec<Plugin>,
    only_listed_plugins: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    name: String,
    /// Seconds since 1970.
    not_before: Option<i64>,
    not_after: Option<i64>,
    /// From when on; the smallest number for always.
    revoked: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    #[serde(default = "one")]
    threshold: usize,
    #[serde(default, rename = "key")]
    keys: Vec<FileKey>,
    #[serde(default, rename = "plugin")]
    plugins: Vec<Plugin>,
    #[serde(default)]
    only_listed_plugins: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKey {
    name: String,
    fingerprint: String,
    not_before: Option<Datetime>,
    not_after: Option<Datetime>,
    revoked: Option<Revoked>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Revoked {
    Always(bool),
    From(Datetime),
}

/// A plugin that must be one of a few components.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugin {
    id: String,
    sha256: Vec<String>,
}

impl FileKey {
    /// The key's fingerprint, and the key; tells `refuse` all its faults.
    fn read(&self, refuse: &mut dyn FnMut(String)) -> (String, Key) {
        let mut time = |name: &str, time: &Option<Datetime>| {
            let seconds = seconds(&time.as_ref()?.to_string());
            if seconds.is_none() {
                refuse(format!(
                    "`{name}` must be a time with an offset, such as 2026-01-01T00:00:00Z"
                ));
            }
            seconds
        };
        let not_before = time("not_before", &self.not_before);
        let not_after = time("not_after", &self.not_after);
        let revoked = match &self.revoked {
            None | Some(Revoked::Always(false)) => None,
            Some(Revoked::Always(true)) => Some(i64::MIN),
            // A time that cannot be read is a fault; until then the key counts as revoked.
            Some(Revoked::From(from)) => Some(time("revoked", &Some(*from)).unwrap_or(i64::MIN)),
        };
        let ends = not_before.zip(not_after);
        if ends.is_some_and(|(from, to)| from > to) {
            refuse("`not_before` is after `not_after`, so it would never be valid".into());
        }
        let fingerprint = self.fingerprint.trim().to_lowercase();
        if !digest::is_prefixed(&fingerprint) {
            refuse("its fingerprint is not `sha256:` and 64 hex digits".into());
        }
        let name = self.name.clone();
        let key = Key {
            name,
            not_before,
            not_after,
            revoked,
        };
        (fingerprint, key)
    }
}

fn one() -> usize {
    1
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// All its faults: not readable, not of this form, a repeated or malformed fingerprint, a threshold that no set of keys reaches.
    pub fn read(path: &Path) -> Result<Self, Vec<Finding>> {
        let fault = |reason: String| {
            (
                "usage.trust_policy",
                format!("trust policy `{}` {reason}", path.display()),
            )
        };
        let bytes = json::read_bytes(path, json::CONTROL_LIMIT)
            .map_err(|reason| vec![fault(reason.to_string())])?;
        let file: File = std::str::from_utf8(&bytes)
            .map_err(|error| error.to_string())
            .and_then(|text| toml::from_str(text).map_err(|error| error.to_string()))
            .map_err(|reason| vec![fault(format!("cannot be used: {}", reason.trim()))])?;
        let mut faults = Vec::new();
        if file.format != 1 {
            faults.push(fault(format!(
                "has format {}; this program reads format 1",
                file.format
            )));
        }
        let mut keys = BTreeMap::new();
        for key in &file.keys {
            let mut refuse =
                |reason: String| faults.push(fault(format!("key `{}`: {reason}", key.name)));
            let (fingerprint, read) = key.read(&mut refuse);
            if keys.insert(fingerprint, read).is_some() {
                refuse("its fingerprint is listed twice, and would count twice".into());
            }
        }
        let usable = keys
            .values()
            .filter(|key| key.revoked != Some(i64::MIN))
            .count();
        if file.threshold == 0 || file.threshold > usable {
            faults.push(fault(format!(
                "demands {} signatures of {usable} keys that are not revoked; a threshold from 1 to their number makes sense",
                file.threshold
            )));
        }
        for plugin in &file.plugins {
            let hex = |text: &String| digest::is_prefixed(&format!("sha256:{text}"));
            if plugin.sha256.is_empty() || !plugin.sha256.iter().all(hex) {
                faults.push(fault(format!(
                    "plugin `{}`: `sha256` must be a list of digests of 64 lower-case hex digits",
                    plugin.id
                )));
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            threshold: file.threshold,
            keys,
            plugins: file.plugins,
            only_listed_plugins: file.only_listed_plugins,
        })
    }

    /// What is wrong with the set of keys that signed a pack of the time `generated_at`.
    pub(crate) fn signers(
        &self,
        signers: &BTreeSet<String>,
        generated_at: Option<&str>,
    ) -> Vec<Finding> {
        let at = generated_at.and_then(seconds);
        let mut counted = 0;
        let mut reasons = Vec::new();
        for signer in signers {
            match self.refusal(signer, at) {
                None => counted += 1,
                Some(reason) => reasons.push(format!("{signer} {reason}")),
            }
        }
        if counted >= self.threshold {
            return Vec::new();
        }
        let mut message = format!(
            "the trust policy demands {} signatures of its keys, and {counted} count",
            self.threshold
        );
        for reason in reasons {
            message.push_str("; ");
            message.push_str(&reason);
        }
        vec![("signature.policy", message)]
    }

    /// Why a signature by that key does not count for a pack of the time `at`.
    fn refusal(&self, signer: &str, at: Option<i64>) -> Option<String> {
        let Some(key) = self.keys.get(signer) else {
            return Some("is not among its keys".to_owned());
        };
        let name = &key.name;
        if key.revoked == Some(i64::MIN) {
            return Some(format!("(`{name}`) is revoked"));
        }
        // A key without limits of time is good at any.
        key.not_before.or(key.not_after).or(key.revoked)?;
        let Some(at) = at else {
            return Some(format!(
                "(`{name}`) is limited in time, and the manifest states no time `generated_at`"
            ));
        };
        let outside = [
            (
                key.not_before.is_some_and(|from| at < from),
                "was not valid yet",
            ),
            (
                key.not_after.is_some_and(|to| at > to),
                "was no longer valid",
            ),
            (key.revoked.is_some_and(|from| at >= from), "was revoked"),
        ];
        outside
            .into_iter()
            .find(|(holds, _)| *holds)
            .map(|(_, reason)| format!("(`{name}`) {reason} when the pack was made"))
    }

    /// What is wrong with the plugins that a pack pins.
    pub(crate) fn plugins(&self, files: &Files) -> Vec<Finding> {
        const ID: &str = "trust.plugin";
        if self.plugins.is_empty() && !self.only_listed_plugins {
            return Vec::new();
        }
        let pins = match pins(files) {
            Ok(pins) => pins,
            Err(reason) => {
                return vec![(
                    ID,
                    format!("the trust policy demands plugins, but {reason}"),
                )];
            }
        };
        let mut faults = Vec::new();
        for plugin in &self.plugins {
            match pins.get(&plugin.id) {
                None => faults.push((
                    ID,
                    format!("the trust policy demands plugin `{}`, and `{LOCK}` does not pin it", plugin.id),
                )),
                Some(pinned) if !plugin.sha256.contains(pinned) => faults.push((
                    ID,
                    format!("plugin `{}` is the component {pinned}, which the trust policy does not allow", plugin.id),
                )),
                Some(_) => {}
            }
        }
        let listed = |id: &String| self.plugins.iter().any(|plugin| plugin.id == *id);
        if self.only_listed_plugins {
            let others = pins.keys().filter(|id| !listed(id));
            faults.extend(others.map(|id| {
                (
                    ID,
                    format!("plugin `{id}` is not among those that the trust policy lists"),
                )
            }));
        }
        faults
    }
}

/// Plugins and their digests in a pack's lock file.
fn pins(files: &Files) -> Result<BTreeMap<String, String>, String> {
    #[derive(Deserialize)]
    struct Lock {
        #[serde(default)]
        plugin: Vec<Pin>,
    }
    #[derive(Deserialize)]
    struct Pin {
        id: String,
        sha256: String,
    }
    let bytes = files.read(LOCK)?;
    let text = String::from_utf8_lossy(&bytes);
    let lock: Lock = toml::from_str(&text)
        .map_err(|error| format!("`{LOCK}` cannot be read: {}", error.message()))?;
    Ok(lock
        .plugin
        .into_iter()
        .map(|pin| (pin.id, pin.sha256))
        .collect())
}

/// The keys behind detached signatures over a manifest, and what is wrong with those files.
pub(crate) fn detached(files: &[PathBuf], manifest: &[u8]) -> (BTreeSet<String>, Vec<Finding>) {
    let (mut signers, mut faults) = (BTreeSet::new(), Vec::new());
    for path in files {
        let signer = json::read_bytes(path, json::CONTROL_LIMIT)
            .map_err(|fault| vec![("signature.detached", fault.to_string())])
            .and_then(|bundle| signature::verified_signer(&bundle, manifest));
        match signer {
            Ok(signer) => {
                signers.insert(signer);
            }
            Err(found) => faults.extend(found.into_iter().map(|(_, reason)| {
                (
                    "signature.detached",
                    format!("the signature `{}`: {reason}", path.display()),
                )
            })),
        }
    }
    (signers, faults)
}

/// Seconds since 1970 of an RFC 3339 time; fractions are cut off.
fn seconds(text: &str) -> Option<i64> {
    if !is_timestamp(text) {
        return None;
    }
    let time: jiff::Timestamp = text.parse().ok()?;
    Some(time.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_since_1970() {
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2026-11-24T03:04:05Z"), Some(1_795_489_445));
        assert_eq!(seconds("2000-02-29T23:59:59.5+01:30"), Some(951_863_399));
        assert_eq!(seconds("1969-12-31T23:00:00-01:00"), Some(0));
        assert_eq!(seconds("2026-02-30T00:00:00Z"), None);
        assert_eq!(seconds("yesterday"), None);
    }
}
