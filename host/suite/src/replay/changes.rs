//! Which tensors a subject changed, as far as that follows without weights: an edit's plan from its component, its parameters
//! and the checkpoint's header; what the edit says of itself from the plan and the numbers that were found; and for every
//! subject whether its list of changes fits the baseline's tensors and digests.
//!
//! A fault chooses by values as well, so what it damaged is only held against the header and the digests.

use std::collections::{BTreeMap, BTreeSet};

use packhost_model::names;
use packhost_pack::canonical::to_pretty;
use packhost_pack::digest;
use packhost_plugin::{EditPlugin, Plugin, PluginKind};
use serde_json::{Value, json};

use super::components;
use super::difference::Findings;
use super::evidence::{Evidence, ModelFacts, StoredTensor};
use crate::run::changes::{ChangedTensor, Changes, SCHEMA};
use crate::run::paths;
use crate::scenarios::{Generation, Scenario};
use crate::spec::{Resolution, ResolvedEdit, Tuned, resolve};
use crate::subject::edit_metadata;
use crate::toolbox::PluginIdentity;

const PLAN: &str = "replay.plan";
const CHANGES: &str = "replay.changes";

/// The edits of a pack: each component is compiled once.
pub struct Editors<'a> {
    evidence: &'a Evidence<'a>,
    tuned: Tuned,
    loaded: BTreeMap<String, Option<(EditPlugin, PluginIdentity)>>,
}

impl<'a> Editors<'a> {
    /// Reads the tuned parameters, where the run had some.
    pub fn new(evidence: &'a Evidence<'a>, findings: &mut Findings) -> Self {
        Self {
            evidence,
            tuned: evidence.tuned(findings),
            loaded: BTreeMap::new(),
        }
    }

    /// Holds a scenario's list of changes against the model, and an edit's plan and metadata against its component.
    /// `metadata` are the names of its `edit_metadata.json`, one per run that the pack holds.
    pub fn check(
        &mut self,
        model: &ModelFacts,
        scenario: &Scenario,
        metadata: &[String],
        findings: &mut Findings,
    ) {
        let name = paths::packed(&paths::changes(&model.record.folder, scenario));
        let Some(document) = self.evidence.json(&name, findings) else {
            return;
        };
        let changes: Changes = match serde_json::from_value(document.clone()) {
            Ok(changes) => changes,
            Err(error) => return findings.fail(CHANGES, &name, error.to_string()),
        };
        findings.value(CHANGES, &name, "/schema", &json!(SCHEMA), &document);
        let list = Listed {
            model,
            changes: &changes,
            name: &name,
            document: &document,
        };
        let before = findings.differences.len();
        list.forms(findings);
        let Generation::Edit { edit_spec, version } = &scenario.generation else {
            if matches!(scenario.generation, Generation::Error { .. }) {
                self.fault(metadata, findings);
            }
            return list.fault(findings);
        };
        let keys = [model.record.id.as_str(), model.record.folder.as_str()];
        let edit = match resolve(edit_spec, version, &self.tuned, &keys) {
            Resolution::Selected(edit) => edit,
            Resolution::Skipped { reason } | Resolution::Refused { reason, .. } => {
                let why =
                    format!("is of `{edit_spec}`, which the settings do not let run: {reason}");
                return findings.fail(PLAN, &name, why);
            }
        };
        if let Err(why) = self.edit(&list, &edit, metadata, findings) {
            findings.fail(PLAN, &name, why);
        }
        // The digests are not derived, but what else the list says is, and the subject's tables name the list.
        if findings.differences.len() == before {
            findings.derived.insert(name);
        }
    }

    fn edit(
        &mut self,
        list: &Listed<'_>,
        edit: &ResolvedEdit,
        metadata: &[String],
        findings: &mut Findings,
    ) -> Result<(), String> {
        let Some(first) = metadata.first() else {
            return Ok(());
        };
        let evidence = self.evidence;
        let Some(said) = evidence.json(first, findings) else {
            return Ok(());
        };
        let sha256 = said["packhost_plugin"]["sha256"]
            .as_str()
            .unwrap_or_default();
        let Some((plugin, identity)) = self.load(sha256, findings) else {
            return Ok(());
        };
        let network = &list.model.facts.network;
        let planned = plugin.plan(&edit.params.to_string(), network);
        let planned = planned.map_err(|error| error.to_string())?.value;
        let stated = list.changes.planned.as_deref().unwrap_or_default();
        for index in 0..planned.len().max(stated.len()) {
            let derived = planned.get(index).map(|target| &target.tensor);
            let pointer = format!("/planned/{index}/name");
            findings.value(PLAN, list.name, &pointer, &json!(derived), list.document);
        }
        list.edited(
            planned
                .iter()
                .map(|target| target.tensor.as_str())
                .collect(),
            findings,
        );
        let facts = stated
            .iter()
            .map(|target| target.facts())
            .collect::<Result<Vec<_>, _>>()?;
        let derived = edit_metadata(plugin, identity, edit, network, &facts)
            .map_err(|error| error.sentence())?;
        let bytes = to_pretty(&derived).into_bytes();
        for name in metadata {
            findings.file(evidence.files, &|_| "replay.edit", name, &bytes);
        }
        Ok(())
    }

    /// The component of a fault is the one that its metadata names. It is not run: a fault chooses by values, see
    /// [`recompute`](super::recompute).
    fn fault(&self, metadata: &[String], findings: &mut Findings) {
        for name in metadata {
            let Some(said) = self.evidence.json(name, findings) else {
                continue;
            };
            let sha256 = &said["packhost_plugin"]["sha256"];
            let sha256 = sha256.as_str().unwrap_or_default();
            let name = paths::packed_component(sha256);
            match components::read(self.evidence.files, sha256, PluginKind::Injection) {
                Ok(_) => {
                    findings.derived.insert(name);
                }
                Err(why) => findings.fail("replay.component", &name, why),
            }
        }
    }

    /// The edit component with this digest.
    fn load(
        &mut self,
        sha256: &str,
        findings: &mut Findings,
    ) -> Option<&(EditPlugin, PluginIdentity)> {
        if !self.loaded.contains_key(sha256) {
            let name = paths::packed_component(sha256);
            let loaded = match components::load(self.evidence, sha256, PluginKind::Edit) {
                Ok((Plugin::Edit(plugin), identity)) => {
                    findings.derived.insert(name);
                    Some((plugin, identity))
                }
                loaded => {
                    let why = loaded.err().unwrap_or_else(|| "is no edit".into());
                    findings.fail("replay.component", &name, why);
                    None
                }
            };
            self.loaded.insert(sha256.to_owned(), loaded);
        }
        self.loaded.get(sha256)?.as_ref()
    }
}

/// A list of changes and what it is held against.
struct Listed<'a> {
    model: &'a ModelFacts,
    changes: &'a Changes,
    /// Its name in the pack.
    name: &'a str,
    document: &'a Value,
}

impl Listed<'_> {
    fn base(&self, name: &str) -> Option<&StoredTensor> {
        self.model.facts.weights.tensors.get(name)
    }

    fn changed(&self) -> impl Iterator<Item = (usize, &ChangedTensor)> {
        self.changes.changed.iter().enumerate()
    }

    /// Names in order, layers as the names say, digests that are digests, and nothing removed that was not there.
    fn forms(&self, findings: &mut Findings) {
        let mut last = None;
        for (index, changed) in self.changed() {
            let name = Some(changed.name.as_str());
            if last >= name {
                findings.fail(
                    CHANGES,
                    self.name,
                    format!("does not list `{}` in order", changed.name),
                );
            }
            last = name;
            let removed = changed.sha256.is_none();
            let layer = if removed {
                None
            } else {
                names::layer_of_name(&changed.name)
            };
            let pointer = format!("/changed/{index}/layer");
            findings.value(CHANGES, self.name, &pointer, &json!(layer), self.document);
            if removed
                && (changed.shape.is_some()
                    || changed.dtype.is_some()
                    || self.base(&changed.name).is_none())
            {
                let why = format!(
                    "says that `{}` was removed, and that it is there or never was",
                    changed.name
                );
                findings.fail(CHANGES, self.name, why);
            }
            let whole = changed.shape.is_some() && changed.dtype.is_some();
            if changed
                .sha256
                .as_ref()
                .is_some_and(|sha| !whole || !digest::is_hex(sha))
            {
                let why = format!(
                    "states no digest, shape and element type of `{}`",
                    changed.name
                );
                findings.fail(CHANGES, self.name, why);
            }
        }
    }

    /// What an edit changed is of its plan, has the form that it had, and is not what it was.
    fn edited(&self, planned: BTreeSet<&str>, findings: &mut Findings) {
        if self.changes.changed.is_empty() {
            findings.fail(PLAN, self.name, "lists nothing that changed");
        }
        findings.value(
            PLAN,
            self.name,
            "/config_sha256",
            &Value::Null,
            self.document,
        );
        for (index, changed) in self.changed() {
            if !planned.contains(changed.name.as_str()) {
                let why = format!(
                    "says that `{}` was changed, which the edit's plan does not name",
                    changed.name
                );
                findings.fail(PLAN, self.name, why);
            }
            let Some(base) = self.base(&changed.name) else {
                let why = format!(
                    "says that `{}` was changed, which the baseline does not have",
                    changed.name
                );
                findings.fail(PLAN, self.name, why);
                continue;
            };
            for (key, derived) in [("dtype", json!(base.dtype)), ("shape", json!(base.shape))] {
                let pointer = format!("/changed/{index}/{key}");
                findings.value(PLAN, self.name, &pointer, &derived, self.document);
            }
            if changed.sha256.as_ref() == Some(&base.sha256) {
                let why = format!(
                    "says that `{}` was changed, with the baseline's digest",
                    changed.name
                );
                findings.fail(PLAN, self.name, why);
            }
        }
    }

    /// A fault has no plan, and changed something.
    fn fault(&self, findings: &mut Findings) {
        findings.value(CHANGES, self.name, "/planned", &Value::Null, self.document);
        let differs = |changed: &ChangedTensor| match self.base(&changed.name) {
            None => true,
            Some(base) => {
                let shape = changed.shape.iter().flatten().map(|&axis| axis as u64);
                changed.sha256.as_ref() != Some(&base.sha256)
                    || changed.dtype.as_ref() != Some(&base.dtype)
                    || !shape.eq(base.shape.iter().copied())
            }
        };
        let changed = self.changed().any(|(_, changed)| differs(changed));
        if !changed && self.changes.config_sha256.is_none() {
            findings.fail(
                CHANGES,
                self.name,
                "lists nothing that is not as the baseline has it",
            );
        }
    }
}
