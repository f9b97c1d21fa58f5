//! Plugins of world `edit-plugin`.

use std::sync::Arc;

use packhost_tensor::{Device, Tensor};
use wasmtime::component::Resource;

use crate::{
    CallCosts, CallStats, Called, Descriptor, Edited, ModelInfo, Result, Target, TargetFacts,
    TensorInfo,
    bindings::edit::{
        EditPlugin as Instance, EditPluginPre, exports::packhost::plugin::edit as wit,
    },
    call::Stop,
    check,
    lend::lend_device,
    loaded::Loaded,
    state::State,
    tensors::HostTensor,
};

/// A loaded edit. Cloning is cheap; calls may run in parallel.
#[derive(Clone)]
pub struct EditPlugin(Arc<Loaded<EditPluginPre<State>>>);

impl EditPlugin {
    pub(crate) fn new(loaded: Loaded<EditPluginPre<State>>) -> Self {
        Self(Arc::new(loaded))
    }

    /// Who it says it is; asked once, at load.
    pub fn describe(&self) -> &Descriptor {
        self.0.describe()
    }

    /// What all calls so far cost, by function.
    pub fn costs(&self) -> CallCosts {
        self.0.costs()
    }

    /// What all calls so far cost together.
    pub fn totals(&self) -> CallStats {
        self.0.costs().into_values().sum()
    }

    /// Which tensors to change: each one a tensor of `model`, none twice. May be none at all; whether that is an error is
    /// the caller's to say. `params` is a JSON object.
    ///
    /// # Errors
    /// [`Error::Call`](crate::Error::Call): it declined, exceeded a limit, trapped, or broke a rule above.
    pub fn plan(&self, params: &str, model: &ModelInfo) -> Result<Called<Vec<Target>>> {
        let plugin = &*self.0;
        plugin.call(
            "plan",
            None,
            |_| {},
            |instance, store| {
                let answer =
                    instance
                        .packhost_plugin_edit()
                        .call_plan(store, params, &model.into())?;
                let targets = answer.map_err(|failure| check::failure(failure, plugin.limits()))?;
                Ok(check::targets(targets, model, plugin.limits())?)
            },
        )
    }

    /// Changes one tensor on `device`. The result has the shape and dtype of `tensor`, which is only lent. `info` is what
    /// the plugin is told about it; its shape and dtype are taken from `tensor`.
    ///
    /// # Errors
    /// As [`plan`](Self::plan); a result of another form is
    /// [`CallErrorKind::WrongResult`](crate::CallErrorKind::WrongResult).
    pub fn apply(
        &self,
        target: &Target,
        tensor: &Tensor,
        info: &TensorInfo,
        device: &dyn Device,
    ) -> Result<Called<Edited>> {
        let plugin = &*self.0;
        let run = |instance: &Instance, store: &mut wasmtime::Store<State>| {
            let lent = store
                .data_mut()
                .table
                .push(HostTensor::lent(tensor.clone(), Arc::new(info.clone())))?;
            let wanted = wit::Target {
                tensor: target.tensor.clone(),
                params: target.params.clone(),
            };
            let answer = instance.packhost_plugin_edit().call_apply(
                &mut *store,
                &wanted,
                Resource::new_borrow(lent.rep()),
            )?;
            let edited = answer.map_err(|failure| check::failure(failure, plugin.limits()))?;
            let result = store.data_mut().take_back(edited.tensor)?;
            check::same_form(tensor, &result)?;
            let facts = check::facts(edited.facts, plugin.limits())?;
            Ok::<_, Stop>(Edited {
                tensor: result,
                facts,
            })
        };
        lend_device(device, |device| {
            let prepare = |state: &mut State| {
                state.device = Some(device);
                state.budget.given = tensor.len() as u64;
            };
            plugin.call("apply", Some(&target.tensor), prepare, run)
        })
    }

    /// The edit's own keys of `edit_metadata.json`, a JSON object, from the facts of all targets in plan order.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn summarize(&self, params: &str, targets: &[TargetFacts]) -> Result<Called<String>> {
        let plugin = &*self.0;
        let facts: Vec<wit::TargetFacts> = targets
            .iter()
            .map(|target| wit::TargetFacts {
                tensor: target.tensor.clone(),
                facts: target
                    .facts
                    .iter()
                    .map(|fact| wit::Fact {
                        name: fact.name.clone(),
                        value: fact.value,
                    })
                    .collect(),
            })
            .collect();
        plugin.call(
            "summarize",
            None,
            |_| {},
            |instance, store| {
                let answer = instance
                    .packhost_plugin_edit()
                    .call_summarize(store, params, &facts)?;
                let summary = answer.map_err(|failure| check::failure(failure, plugin.limits()))?;
                check::document("a summary", &summary, plugin.limits())?;
                Ok(summary)
            },
        )
    }
}
