//! Making subjects: an edit or a fault, asked of a plugin and turned into an overlay on the baseline.
//!
//! Tensors are lent to the plugin one by one; what comes back is new memory, everything else stays the baseline's. A
//! subject in which nothing changed is an error, never a silent pass.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use packhost_model::writer::{Changes, CheckpointWriter, WriteOptions, WriteReport};
use packhost_model::{Checkpoint, Overlay, TensorMeta, Weights};
use packhost_plugin::{
    Called, EditPlugin, InjectionPlugin, LogLine, ModelInfo, Role, Target, TargetFacts, TensorInfo,
};
use packhost_tensor::Tensor;
use packhost_tensor::cpu::Cpu;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::convert::{OverlayDraft, model_info, tensor_info};
use crate::perturb::perturb;
use crate::spec::ResolvedEdit;
use crate::toolbox::{PluginIdentity, Toolbox};
use crate::{Error, Result};

/// What rounding noise is called where an edit's or fault's type stands.
pub const PERTURBATION: &str = "rounding_noise";

/// A changed model and what is known about the change.
pub struct Subject {
    pub overlay: Overlay,
    /// `edit_metadata.json` or `error_metadata.json`.
    pub metadata: Value,
    /// Of an edit: the tensors that its plan names, in plan order, with what was found while each was changed.
    pub planned: Option<Vec<TargetFacts>>,
    /// Which component made it; none where packhost did.
    pub plugin: Option<PluginIdentity>,
    /// What the component wrote while doing so.
    pub log: Vec<LogLine>,
}

/// An edit that has been planned on a checkpoint and can be applied tensor by tensor.
pub struct PlannedEdit<'a> {
    device: &'a Cpu,
    plugin: EditPlugin,
    identity: PluginIdentity,
    edit: &'a ResolvedEdit,
    info: ModelInfo,
    targets: Vec<Target>,
}

impl<'a> PlannedEdit<'a> {
    /// Asks the edit's plugin which tensors of `base` it would change.
    ///
    /// # Errors
    /// No plugin serves the type, it declines, or it selects no tensor.
    pub fn new(toolbox: &'a Toolbox, base: &Checkpoint, edit: &'a ResolvedEdit) -> Result<Self> {
        Self::by(toolbox.edit(&edit.edit_type)?, &toolbox.device, base, edit)
    }

    /// As [`new`](Self::new), with this plugin.
    ///
    /// # Errors
    /// It declines, or it selects no tensor.
    pub fn by(
        (plugin, identity): (EditPlugin, PluginIdentity),
        device: &'a Cpu,
        base: &Checkpoint,
        edit: &'a ResolvedEdit,
    ) -> Result<Self> {
        let info = model_info(base);
        let targets = plugin.plan(&edit.params.to_string(), &info)?.value;
        if targets.is_empty() {
            return Err(Error::NothingSelected {
                edit: edit.edit_type.clone(),
                scope: edit.scope.clone(),
            });
        }
        Ok(Self {
            device,
            plugin,
            identity,
            edit,
            info,
            targets,
        })
    }

    /// The tensors that change, in plan order.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The change of one target.
    fn apply(
        &self,
        target: &Target,
        base: &Checkpoint,
    ) -> Result<(Tensor, TargetFacts, Vec<LogLine>)> {
        let tensor = base.tensor(&target.tensor)?;
        let info =
            base.meta(&target.tensor)
                .map(tensor_info)
                .ok_or_else(|| Error::NothingSelected {
                    edit: self.edit.edit_type.clone(),
                    scope: target.tensor.clone(),
                })?;
        let Called { value, log, .. } = self.plugin.apply(target, &tensor, &info, self.device)?;
        Ok((
            value.tensor,
            TargetFacts {
                tensor: target.tensor.clone(),
                facts: value.facts,
            },
            log,
        ))
    }

    /// Applies the edit in memory, targets in parallel.
    ///
    /// # Errors
    /// The plugin fails on a tensor, or nothing changed.
    pub fn into_subject(self, base: &Arc<Checkpoint>) -> Result<Subject> {
        // In parallel, but gathered in plan order: the result does not depend on who finished first.
        let each = |target| self.apply(target, base);
        let applied: Vec<_> = self
            .device
            .install(|| self.targets.par_iter().map(each).collect::<Result<_>>())?;
        let mut overlay = Overlay::new(Arc::clone(base));
        let (mut facts, mut log) = (Vec::new(), Vec::new());
        for (tensor, of_target, lines) in applied {
            if tensor.bytes() != base.tensor(&of_target.tensor)?.bytes() {
                overlay.put(&of_target.tensor, tensor)?;
            }
            facts.push(of_target);
            log.extend(lines);
        }
        if overlay.changed().is_empty() {
            return Err(Error::NothingChanged {
                scenario: self.edit.edit_type.clone(),
            });
        }
        let metadata = self.metadata(&facts)?;
        Ok(Subject {
            overlay,
            metadata,
            planned: Some(facts),
            plugin: Some(self.identity),
            log,
        })
    }

    /// Applies the edit straight to a new checkpoint, one tensor in memory at a time.
    ///
    /// # Errors
    /// The plugin fails on a tensor, or the checkpoint cannot be written; nothing is left behind then.
    pub fn write(
        self,
        base: &Arc<Checkpoint>,
        dir: &Path,
        options: &WriteOptions,
    ) -> Result<WriteReport> {
        let by_name: BTreeMap<&str, &Target> = self
            .targets
            .iter()
            .map(|t| (t.tensor.as_str(), t))
            .collect();
        let mut facts = BTreeMap::new();
        let changes = Changes::values(by_name.keys().copied());
        let writer = CheckpointWriter::begin(base, dir, &changes, options)?;
        let mut writer = writer.write(|meta: &TensorMeta| -> Result<Tensor> {
            let (tensor, of_target, _) = self.apply(by_name[meta.name.as_str()], base)?;
            facts.insert(meta.name.clone(), of_target);
            base.release(&meta.name);
            Ok(tensor)
        })?;
        let in_plan_order: Vec<_> = self
            .targets
            .iter()
            .filter_map(|t| facts.remove(&t.tensor))
            .collect();
        let metadata = packhost_pack::canonical::to_pretty(&self.metadata(&in_plan_order)?);
        writer.add_file("edit_metadata.json", metadata.as_bytes())?;
        Ok(writer.finish()?)
    }

    fn metadata(&self, facts: &[TargetFacts]) -> Result<Value> {
        edit_metadata(&self.plugin, &self.identity, self.edit, &self.info, facts)
    }
}

/// `edit_metadata.json` (specification section 1.2): the common keys, the coverage, and the plugin's own. A function of the
/// plan and of what was found while it was carried out, so that a replay makes it again. `facts` are of every target, in
/// plan order, and `info` is the baseline's.
///
/// # Errors
/// The plugin declines to summarize.
pub fn edit_metadata(
    plugin: &EditPlugin,
    identity: &PluginIdentity,
    edit: &ResolvedEdit,
    info: &ModelInfo,
    facts: &[TargetFacts],
) -> Result<Value> {
    let own = plugin.summarize(&edit.params.to_string(), facts)?.value;
    let own: Map<String, Value> = serde_json::from_str(&own).unwrap_or_default();
    let by_name: BTreeMap<&str, &TensorInfo> = info
        .tensors
        .iter()
        .map(|tensor| (tensor.name.as_str(), tensor))
        .collect();
    let targets: Vec<&TensorInfo> = facts
        .iter()
        .filter_map(|target| by_name.get(target.tensor.as_str()).copied())
        .collect();
    let edited_params = targets
        .iter()
        .map(|tensor| elements(tensor))
        .fold(0, u64::saturating_add);
    let total_params = info
        .tensors
        .iter()
        .map(elements)
        .fold(0, u64::saturating_add);
    let ratio = if total_params == 0 {
        0.0
    } else {
        edited_params as f64 / total_params as f64
    };
    let mut common = json!({
        "schema": "invarlock/evidence-pack-edit-metadata-v1",
        "artifact_class": "validation_subject_checkpoint",
        "edit_type": edit.edit_type,
        "edit_semantics": "external_subject_validation_edit",
        "deployable_as_hf_checkpoint": true,
        "optimized_deployment_backend": false,
        "packed_quantized_storage": false,
        "runtime_memory_reduction": false,
        "runtime_memory_reduction_expected": false,
        "backend": null,
        "run_directory_contains_edit_artifacts": true,
        "scope": edit.scope,
        "parameters": without_scope(&edit.params),
        "coverage": {
            "edited_tensors": facts.len(),
            "edited_params": edited_params,
            "total_params": total_params,
            "coverage_ratio": ratio.clamp(0.0, 1.0),
        },
        "packhost_plugin": identity,
    });
    if info.experts > 0 {
        common["mixture_of_experts"] = expert_choices(&targets);
    }
    // The plugin adds keys; what the host knows stands.
    let mut metadata = own;
    if let Value::Object(common) = common {
        for (key, value) in common {
            if key != "parameters" || !metadata.contains_key("parameters") {
                metadata.insert(key, value);
            }
        }
    }
    Ok(Value::Object(metadata))
}

/// What the scope meant for a mixture of experts, where the reference's own choice depends on its library's version:
/// each expert is a matrix of its own, and the router is edited only when it was asked for.
fn expert_choices(targets: &[&TensorInfo]) -> Value {
    let count =
        |wanted: fn(&TensorInfo) -> bool| targets.iter().filter(|tensor| wanted(tensor)).count();
    json!({
        "expert_matrices": "per expert",
        "edited_expert_tensors": count(|tensor| tensor.expert.is_some()),
        "edited_router_tensors": count(|tensor| tensor.role == Role::Router),
    })
}

/// Number of elements; the largest that there is where a hostile shape has more.
fn elements(tensor: &TensorInfo) -> u64 {
    tensor.shape.iter().copied().fold(1, u64::saturating_mul)
}

fn without_scope(params: &Value) -> Value {
    let mut params = params.clone();
    if let Some(map) = params.as_object_mut() {
        map.remove("scope");
    }
    params
}

/// Injects a fault into an overlay on `base`.
///
/// # Errors
/// No plugin serves the type, it declines, or nothing changed.
pub fn inject(
    toolbox: &Toolbox,
    base: &Arc<Checkpoint>,
    error_type: &str,
    env: &Map<String, Value>,
) -> Result<Subject> {
    inject_by(
        toolbox.injection(error_type)?,
        &toolbox.device,
        base,
        error_type,
        env,
    )
}

/// As [`inject`], with this plugin.
///
/// # Errors
/// It declines, or nothing changed.
pub fn inject_by(
    (plugin, identity): (InjectionPlugin, PluginIdentity),
    device: &Cpu,
    base: &Arc<Checkpoint>,
    error_type: &str,
    env: &Map<String, Value>,
) -> Result<Subject> {
    let params = json!({"error_type": error_type, "env": env}).to_string();
    let mut overlay = Overlay::new(Arc::clone(base));
    let Called { value, log, .. } =
        plugin.inject(&params, &mut OverlayDraft(&mut overlay), device)?;
    if overlay.changed().is_empty() && !overlay.config_changed() {
        return Err(Error::NothingChanged {
            scenario: error_type.into(),
        });
    }
    let mut metadata: Map<String, Value> = serde_json::from_str(&value).unwrap_or_default();
    metadata.insert(
        "packhost_plugin".into(),
        serde_json::to_value(&identity).unwrap_or_default(),
    );
    Ok(Subject {
        overlay,
        metadata: Value::Object(metadata),
        planned: None,
        plugin: Some(identity),
        log,
    })
}

/// The baseline with rounding noise.
///
/// # Errors
/// A tensor cannot be read, or the model has no matrix that noise could change.
pub fn perturbed(base: &Arc<Checkpoint>, seed: u64) -> Result<Subject> {
    let overlay = perturb(base, seed)?;
    if overlay.changed().is_empty() {
        return Err(Error::NothingChanged {
            scenario: PERTURBATION.into(),
        });
    }
    Ok(Subject {
        overlay,
        metadata: json!({"edit_type": PERTURBATION, "parameters": {"seed": seed}}),
        planned: None,
        plugin: None,
        log: Vec::new(),
    })
}
