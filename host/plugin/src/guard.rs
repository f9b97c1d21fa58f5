//! Plugins of world `guard-plugin`.

use std::sync::Arc;

use packhost_tensor::{Device, Tensor};
use wasmtime::component::Resource;

use crate::{
    CallCosts, CallStats, Called, Descriptor, ModelInfo, Request, Result, Row, Step, TensorInfo,
    bindings::guard::{
        GuardPlugin as Instance, GuardPluginPre, exports::packhost::plugin::guard as wit,
    },
    call::Stop,
    check, convert,
    lend::lend_device,
    loaded::Loaded,
    state::State,
    tensors::HostTensor,
};

/// A loaded guard. Cloning is cheap; calls may run in parallel. Only `probe` sees a tensor; the other calls are pure
/// functions of their arguments, so that replaying them on the same arguments gives the same answer and the same fuel.
#[derive(Clone)]
pub struct GuardPlugin(Arc<Loaded<GuardPluginPre<State>>>);

impl GuardPlugin {
    pub(crate) fn new(loaded: Loaded<GuardPluginPre<State>>) -> Self {
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

    /// What it wants measured of `model`. `policy` is a JSON object.
    ///
    /// # Errors
    /// [`Error::Call`](crate::Error::Call): it declined, exceeded a limit, trapped, or answered against the rules.
    pub fn plan(&self, policy: &str, model: &ModelInfo) -> Result<Called<Vec<Request>>> {
        let plugin = &*self.0;
        plugin.call(
            "plan",
            None,
            |_| {},
            |instance, store| {
                let answer =
                    instance
                        .packhost_plugin_guard()
                        .call_plan(store, policy, &model.into())?;
                let requests =
                    answer.map_err(|failure| check::failure(failure, plugin.limits()))?;
                Ok(check::requests(requests, plugin.limits())?)
            },
        )
    }

    /// A statistic of its own about one tensor, lent for reading.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn probe(
        &self,
        name: &str,
        tensor: &Tensor,
        info: &TensorInfo,
        device: &dyn Device,
    ) -> Result<Called<Vec<f64>>> {
        let plugin = &*self.0;
        let run = |instance: &Instance, store: &mut wasmtime::Store<State>| {
            let lent = store
                .data_mut()
                .table
                .push(HostTensor::lent(tensor.clone(), Arc::new(info.clone())))?;
            let handle = Resource::new_borrow(lent.rep());
            let answer = instance
                .packhost_plugin_guard()
                .call_probe(&mut *store, name, handle)?;
            let values = answer.map_err(|failure| check::failure(failure, plugin.limits()))?;
            Ok::<_, Stop>(check::probe(values, plugin.limits())?)
        };
        lend_device(device, |device| {
            let prepare = |state: &mut State| {
                state.device = Some(device);
                state.budget.given = tensor.len() as u64;
            };
            plugin.call("probe", Some(&info.name), prepare, run)
        })
    }

    /// Judges a subject's table against the baseline's: a verdict, or what else it wants measured. How many rounds of that
    /// are played is the caller's to bound.
    ///
    /// # Errors
    /// As [`plan`](Self::plan); a step that asks for nothing is refused.
    pub fn judge(&self, policy: &str, baseline: &[Row], subject: &[Row]) -> Result<Called<Step>> {
        let plugin = &*self.0;
        let (baseline, subject): (Vec<wit::Row>, Vec<wit::Row>) =
            (convert::rows(baseline), convert::rows(subject));
        plugin.call(
            "judge",
            None,
            |_| {},
            |instance, store| {
                let answer = instance
                    .packhost_plugin_guard()
                    .call_judge(store, policy, &baseline, &subject)?;
                let step = answer.map_err(|failure| check::failure(failure, plugin.limits()))?;
                Ok(check::step(step, plugin.limits())?)
            },
        )
    }

    /// A policy fitted to repeated measurements of the unedited model: a JSON object.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn calibrate(&self, policy: &str, runs: &[&[Row]]) -> Result<Called<String>> {
        let plugin = &*self.0;
        let runs: Vec<Vec<wit::Row>> = runs.iter().map(|run| convert::rows(run)).collect();
        plugin.call(
            "calibrate",
            None,
            |_| {},
            |instance, store| {
                let answer = instance
                    .packhost_plugin_guard()
                    .call_calibrate(store, policy, &runs)?;
                let policy = answer.map_err(|failure| check::failure(failure, plugin.limits()))?;
                check::document("a policy", &policy, plugin.limits())?;
                Ok(policy)
            },
        )
    }
}
