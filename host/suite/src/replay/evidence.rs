//! What a pack is replayed from: the run's settings, the guards that judged, the scenarios, and the facts about each model.

use std::collections::BTreeMap;

use packhost_measure::table::Table;
use packhost_measure::tiers::{MetricOptions, Profile, Tier};
use packhost_measure::windows::{Selection, WindowPlan};
use packhost_model::digest;
use packhost_pack::canonical::to_pretty;
use packhost_pack::files::Files;
use packhost_pack::layout;
use packhost_pack::seal::declared_scenarios;
use packhost_plugin::{Engine, ModelInfo};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::difference::Findings;
use crate::guards::Guards;
use crate::run::bound;
use crate::run::model::Named;
use crate::run::paths;
use crate::run::record::{Form, ModelRecord, RunRecord};
use crate::scenarios::Manifest;
use crate::spec::Tuned;
use crate::toolbox::LOCK_FILE;

/// Everything that a replay starts from.
pub struct Evidence<'a> {
    pub files: &'a Files,
    pub engine: &'a Engine,
    pub record: RunRecord,
    pub form: Form,
    pub guards: Guards,
    /// The scenario table as the run had it, and as a value.
    pub manifest: Manifest,
    pub scenarios: Value,
    pub models: Vec<ModelFacts>,
    pub tier: Tier,
    pub profile: Profile,
    pub selection: Selection,
    /// What every report must say of the settings.
    pub settings: Value,
    pins: BTreeMap<String, (String, String)>,
}

/// The facts about a model.
pub struct ModelFacts {
    pub record: ModelRecord,
    pub facts: Facts,
    /// SHA-256 of the file that states them.
    pub sha256: String,
}

/// What `metadata/packhost/models/<model>.json` says that a replay needs.
#[derive(Debug, Deserialize)]
pub struct Facts {
    architecture: String,
    tokenizer_sha256: String,
    tokenizer_vocab_size: usize,
    pub network: ModelInfo,
    pub weights: StoredWeights,
}

/// The baseline's tensors, as its checkpoint stores them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredWeights {
    /// One digest for all, as [`digest::of_weights`] makes it.
    pub sha256: String,
    pub tensors: BTreeMap<String, StoredTensor>,
}

/// One of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredTensor {
    pub dtype: String,
    pub shape: Vec<u64>,
    /// SHA-256 of the elements, hexadecimal.
    pub sha256: String,
}

impl StoredWeights {
    /// The digest for all that follows from the tensors'.
    fn fingerprint(&self) -> String {
        let tensors = self.tensors.iter();
        digest::of_weights(tensors.map(|(name, tensor)| {
            let StoredTensor {
                dtype,
                shape,
                sha256,
            } = tensor;
            (
                name.as_str(),
                dtype.as_str(),
                shape.as_slice(),
                sha256.as_str(),
            )
        }))
    }

    fn parameters(&self) -> u64 {
        let elements = |shape: &[u64]| shape.iter().copied().fold(1, u64::saturating_mul);
        let each = self.tensors.values().map(|tensor| elements(&tensor.shape));
        each.fold(0, u64::saturating_add)
    }
}

impl ModelFacts {
    /// What the model is known by in reports.
    pub fn named(&self) -> Named<'_> {
        Named {
            id: &self.record.id,
            revision: self.record.revision.as_deref(),
            family: &self.facts.architecture,
            tokenizer_digest: &self.facts.tokenizer_sha256,
            vocab_size: self.facts.tokenizer_vocab_size,
        }
    }
}

impl<'a> Evidence<'a> {
    /// Reads it; nothing when the pack does not hold enough to derive anything.
    pub fn read(files: &'a Files, engine: &'a Engine, findings: &mut Findings) -> Option<Self> {
        let name = paths::packed_record();
        if !files.has(&name) {
            findings.fail(
                "replay.missing",
                &name,
                "is not in the pack: it was not made by a run of this program, or by one that recorded too little, \
                 so nothing can be derived",
            );
            return None;
        }
        let record: RunRecord = document(files, &name, findings)?;
        let Some(form) = Form::of_schema(&record.schema) else {
            let why = format!(
                "has the schema `{}`; this program reads {} and older ones",
                record.schema,
                Form::CURRENT.schema()
            );
            findings.fail("replay.run", &name, why);
            return None;
        };
        if let Some(why) = excessive(&record, files) {
            findings.fail("replay.run", &name, why);
            return None;
        }
        let mut word = |what: &str, found: Option<_>| {
            if found.is_none() {
                findings.fail("replay.run", &name, format!("names no known {what}"));
            }
            found
        };
        let tier = word("tier", Tier::from_name(&record.tier).ok().map(Word::Tier));
        let profile = word(
            "profile",
            Profile::from_name(&record.profile).ok().map(Word::Profile),
        );
        let selection = Selection::from_name(&record.selection).map(Word::Selection);
        let selection = word("selection", selection);
        let (
            Some(Word::Tier(tier)),
            Some(Word::Profile(profile)),
            Some(Word::Selection(selection)),
        ) = (tier, profile, selection)
        else {
            return None;
        };
        let packed: Value = document(files, layout::SCENARIOS, findings)?;
        let scenarios = declared_scenarios(&packed);
        let manifest = serde_json::from_value(scenarios.clone());
        let manifest: Manifest = manifest
            .map_err(|error| {
                findings.fail("replay.scenarios", layout::SCENARIOS, error.to_string());
            })
            .ok()?;
        let written = to_pretty(&record.json());
        findings.file(files, &|_| "replay.run", &name, written.as_bytes());
        // Its form is the one that runs write; what it says is taken.
        findings.derived.remove(&name);
        let guards = guards(files, &record, engine, findings)?;
        let pins = pins(files, findings);
        let bytes = |name: &str| files.read(name).unwrap_or_default();
        let [lock, tuned] = [paths::packed(LOCK_FILE), paths::PACKED_TUNED.into()];
        let tuned = files.has(&tuned).then(|| bytes(&tuned));
        let settings = bound::settings(&record, &bytes(&lock), &scenarios, tuned.as_deref());
        let models = record
            .models
            .iter()
            .map(|record| model(files, record, findings))
            .collect::<Option<Vec<_>>>()?;
        Some(Self {
            files,
            engine,
            record,
            form,
            guards,
            manifest,
            scenarios,
            models,
            tier,
            profile,
            selection,
            settings,
            pins,
        })
        .inspect(|evidence| {
            for guard in evidence.guards.identities() {
                evidence.pinned(&guard.id, &guard.version, &guard.sha256, findings);
            }
        })
    }

    /// Notes if a component that had a part in the run is not the one that the lock file pins.
    pub fn pinned(&self, id: &str, version: &str, sha256: &str, findings: &mut Findings) {
        let used = (version.to_owned(), sha256.to_owned());
        let pin = self.pins.get(id);
        if pin == Some(&used) {
            return;
        }
        let pinned = pin.map_or("nothing".into(), |(version, sha)| {
            format!("version {version}, {sha}")
        });
        let why = format!("pins {pinned} as `{id}`, but version {version}, {sha256} was used");
        findings.fail("replay.lock", &paths::packed(LOCK_FILE), why);
    }

    /// How the metric's intervals were made on the windows of `seed`.
    pub fn metric(&self, seed: u64) -> MetricOptions {
        MetricOptions {
            seed,
            replicates: self.record.replicates,
            alpha: self.record.alpha,
        }
    }

    /// Which windows a model was given by `seed`.
    pub fn window_plan(&self, model: &ModelFacts, seed: u64) -> WindowPlan {
        model
            .record
            .size
            .window_plan(seed, self.selection, self.profile)
    }

    /// A table; none where it is not there, is no table, or is not in its one form.
    pub fn table(&self, name: &str, findings: &mut Findings) -> Option<Table> {
        let read = self.files.read(name).and_then(|bytes| {
            let text = String::from_utf8(bytes).map_err(|error| error.to_string())?;
            Table::parse(&text).map_err(|error| error.to_string())
        });
        read.map_err(|why| findings.fail("replay.table", name, why))
            .ok()
    }

    /// A table of the unedited model or of its perturbation: it names the model's facts.
    pub fn table_of(
        &self,
        model: &ModelFacts,
        name: &str,
        findings: &mut Findings,
    ) -> Option<Table> {
        let table = self.table(name, findings)?;
        let facts = paths::packed_profile(&model.record.folder);
        let named = bound::get(&table, bound::MODEL);
        bound_to(&facts, &model.sha256, name, named, findings);
        Some(table)
    }

    /// Notes each file of settings that is not the one that a report names.
    pub fn settled(&self, report: &str, stated: &Value, findings: &mut Findings) {
        for (key, file) in [
            ("run", paths::packed_record()),
            ("plugins", paths::packed(LOCK_FILE)),
            ("scenarios", layout::SCENARIOS.into()),
            ("tuned_edit_params", paths::PACKED_TUNED.into()),
        ] {
            let text = |settings: &Value| settings[key].as_str().unwrap_or_default().to_owned();
            let named = text(&stated["packhost"]["settings"]);
            bound_to(&file, &text(&self.settings), report, &named, findings);
        }
        let (began, made) = (&self.record.began, &stated["artifacts"]["generated_at"]);
        if made.as_str() != Some(began) {
            let why = format!("says that the run began at {began}, but `{report}` is of {made}");
            findings.fail("replay.run", &paths::packed_record(), why);
        }
    }

    /// The tuned parameters of edits.
    pub fn tuned(&self, findings: &mut Findings) -> Tuned {
        let name = paths::PACKED_TUNED;
        match self.files.has(name) {
            false => Tuned::Absent,
            true => match self.json(name, findings) {
                Some(Value::Object(tuned)) => Tuned::File(tuned),
                _ => Tuned::Unusable,
            },
        }
    }

    /// A JSON document of the pack.
    pub fn json(&self, name: &str, findings: &mut Findings) -> Option<Value> {
        document(self.files, name, findings)
    }
}

/// Notes a file whose digest is not the one that another file names.
pub fn bound_to(file: &str, digest: &str, by: &str, named: &str, findings: &mut Findings) {
    if digest != named {
        let named = if named.is_empty() { "nothing" } else { named };
        let why = format!("has the digest {digest}, but `{by}` names {named}");
        findings.fail("replay.bound", file, why);
    }
}

/// Why a run of these settings cannot have left this pack: a hostile number would only keep the replay busy.
fn excessive(record: &RunRecord, files: &Files) -> Option<String> {
    let most = files.digests().len() as u64;
    let counts = &record.counts;
    let runs = [
        counts.calibration_runs,
        counts.clean_runs,
        counts.stress_runs,
        counts.error_runs,
    ];
    if runs.iter().any(|&runs| u64::from(runs) > most) {
        return Some(format!("states more runs than the pack has files ({most})"));
    }
    counts.seed.checked_add(most).is_none().then(|| {
        format!(
            "states a seed ({}) that leaves no room for runs",
            counts.seed
        )
    })
}

/// One of the words of the settings.
enum Word {
    Tier(Tier),
    Profile(Profile),
    Selection(Selection),
}

fn document<T: DeserializeOwned>(files: &Files, name: &str, findings: &mut Findings) -> Option<T> {
    let read = files.read(name).and_then(|bytes| {
        serde_json::from_slice(&bytes).map_err(|error| format!("cannot be read: {error}"))
    });
    read.map_err(|why| findings.fail("replay.missing", name, why))
        .ok()
}

/// The guards, from the pack's own components.
fn guards(
    files: &Files,
    record: &RunRecord,
    engine: &Engine,
    findings: &mut Findings,
) -> Option<Guards> {
    let mut components = Vec::new();
    for guard in &record.guards {
        let name = paths::packed_component(&guard.sha256);
        let bytes = files.read(&name);
        match bytes {
            Ok(bytes) if digest::bytes(&bytes) == guard.sha256 => {
                components.push((guard.id.clone(), bytes));
            }
            Ok(bytes) => {
                let why = format!("has the digest {}", digest::bytes(&bytes));
                findings.fail("replay.component", &name, why);
            }
            Err(why) => {
                let absent = format!("names `{name}`, which is not there");
                findings.fail("replay.component", &paths::packed_record(), absent);
                findings.fail("replay.component", &name, why);
            }
        }
    }
    if components.len() < record.guards.len() {
        return None;
    }
    let name = paths::packed_record();
    let guards = Guards::of_components(engine, &components)
        .map_err(|error| findings.fail("replay.component", &name, error.sentence()))
        .ok()?;
    findings.value(
        "replay.component",
        &name,
        "/guards",
        &json!(guards.identities()),
        &json!({"guards": record.guards}),
    );
    for identity in guards.identities() {
        findings
            .derived
            .insert(paths::packed_component(&identity.sha256));
    }
    Some(guards)
}

/// What the lock file pins, by id: version and digest.
fn pins(files: &Files, findings: &mut Findings) -> BTreeMap<String, (String, String)> {
    let name = paths::packed(LOCK_FILE);
    let read = files.read(&name).and_then(|bytes| {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        toml::from_str::<toml::Table>(&text).map_err(|error| error.to_string())
    });
    let table = match read {
        Ok(table) => table,
        Err(why) => {
            findings.fail("replay.lock", &name, why);
            return BTreeMap::new();
        }
    };
    let text = |pin: &toml::Value, key: &str| pin.get(key)?.as_str().map(str::to_owned);
    let listed = table.get("plugin").and_then(toml::Value::as_array);
    listed
        .into_iter()
        .flatten()
        .filter_map(|pin| {
            Some((
                text(pin, "id")?,
                (text(pin, "version")?, text(pin, "sha256")?),
            ))
        })
        .collect()
}

fn model(files: &Files, record: &ModelRecord, findings: &mut Findings) -> Option<ModelFacts> {
    let name = paths::packed_profile(&record.folder);
    let document: Value = document(files, &name, findings)?;
    let facts: Facts = serde_json::from_value(document.clone())
        .map_err(|error| findings.fail("replay.model", &name, error.to_string()))
        .ok()?;
    for (pointer, derived) in [
        ("/model_id", json!(record.id)),
        ("/revision", json!(record.revision)),
        ("/architecture", json!(facts.network.architecture)),
        ("/parameters", json!(facts.weights.parameters())),
        ("/tensors", json!(facts.weights.tensors.len())),
        ("/weights/sha256", json!(facts.weights.fingerprint())),
    ] {
        findings.value("replay.model", &name, pointer, &derived, &document);
    }
    for (index, tensor) in facts.network.tensors.iter().enumerate() {
        let stored = facts.weights.tensors.get(&tensor.name);
        for (key, derived) in [
            ("dtype", json!(stored.map(|stored| &stored.dtype))),
            ("shape", json!(stored.map(|stored| &stored.shape))),
        ] {
            let pointer = format!("/network/tensors/{index}/{key}");
            findings.value("replay.model", &name, &pointer, &derived, &document);
        }
    }
    let read = files.read(&name);
    let sha256 = read.map(|bytes| digest::bytes(&bytes)).unwrap_or_default();
    Some(ModelFacts {
        record: record.clone(),
        facts,
        sha256,
    })
}
