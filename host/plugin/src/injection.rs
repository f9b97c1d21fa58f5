//! Plugins of world `error-plugin`.

use std::sync::Arc;

use packhost_tensor::Device;
use wasmtime::component::Resource;

use crate::{
    CallCosts, CallErrorKind, CallStats, Called, Descriptor, Draft, Error, Result,
    bindings::injection::{ErrorPlugin as Instance, ErrorPluginPre},
    call::Stop,
    check,
    drafts::HostDraft,
    lend::{lend_device, lend_draft},
    loaded::Loaded,
    state::State,
};

/// A loaded error injection. Cloning is cheap; calls may run in parallel.
#[derive(Clone)]
pub struct InjectionPlugin(Arc<Loaded<ErrorPluginPre<State>>>);

impl InjectionPlugin {
    pub(crate) fn new(loaded: Loaded<ErrorPluginPre<State>>) -> Self {
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

    /// Damages `draft`, with tensor operations on `device`. Returns a JSON object that says what was damaged. `params` is a
    /// JSON object. After an error the draft may be half damaged: throw it away.
    ///
    /// # Errors
    /// [`Error::Call`](crate::Error::Call): it declined, exceeded a limit, trapped, or answered no JSON object.
    pub fn inject(
        &self,
        params: &str,
        draft: &mut dyn Draft,
        device: &dyn Device,
    ) -> Result<Called<String>> {
        let plugin = &*self.0;
        let model = draft.model().map_err(|failure| {
            let kind = CallErrorKind::Host(format!("the draft cannot be described: {failure}"));
            let (plugin, call) = (plugin.id().to_owned(), "inject");
            let (stats, log) = (CallStats::default(), Vec::new());
            Error::Call(Box::new(crate::CallError {
                plugin,
                call,
                subject: None,
                kind,
                stats,
                log,
            }))
        })?;
        let elements = |shape: &[u64]| {
            shape
                .iter()
                .fold(1_u64, |product, &axis| product.saturating_mul(axis))
        };
        let model = model.tensors.iter().fold(0_u64, |sum, tensor| {
            sum.saturating_add(elements(&tensor.shape))
        });
        let run = |instance: &Instance, store: &mut wasmtime::Store<State>| {
            let lent = store.data_mut().table.push(HostDraft)?;
            let answer = instance.packhost_plugin_injection().call_inject(
                &mut *store,
                params,
                Resource::new_borrow(lent.rep()),
            )?;
            let report = answer.map_err(|failure| check::failure(failure, plugin.limits()))?;
            check::document("a report", &report, plugin.limits())?;
            Ok::<_, Stop>(report)
        };
        lend_device(device, |device| {
            lend_draft(draft, |draft| {
                let prepare = |state: &mut State| {
                    state.device = Some(device);
                    state.draft = Some(draft);
                    state.budget.model = model;
                };
                plugin.call("inject", None, prepare, run)
            })
        })
    }
}
