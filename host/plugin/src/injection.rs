//! Plugins of world `error-plugin`.

use std::sync::Arc;

use packhost_tensor::Device;
use wasmtime::component::Resource;

use crate::{
    CallErrorKind, CallStats, Called, Descriptor, Draft, Error, Result,
    bindings::injection::ErrorPluginPre,
    call::{Core, Stop},
    check,
    drafts::HostDraft,
    lend::{lend_device, lend_draft},
    state::State,
};

/// A loaded error injection. Cloning is cheap; calls may run in parallel.
#[derive(Clone)]
pub struct InjectionPlugin(Arc<Inner>);

struct Inner {
    core: Core,
    pre: ErrorPluginPre<State>,
    descriptor: Descriptor,
}

impl InjectionPlugin {
    pub(crate) fn new(core: Core, pre: ErrorPluginPre<State>) -> Result<Self> {
        let called = core.call(
            "describe",
            None,
            |_| {},
            |store| {
                let instance = pre.instantiate(&mut *store)?;
                let descriptor = instance.packhost_plugin_injection().call_describe(store)?;
                Ok(check::descriptor(descriptor, &core.limits)?)
            },
        )?;
        Ok(Self(Arc::new(Inner {
            core,
            pre,
            descriptor: called.value,
        })))
    }

    /// Who it says it is; asked once, at load.
    pub fn describe(&self) -> &Descriptor {
        &self.0.descriptor
    }

    /// What all calls so far cost together.
    pub fn totals(&self) -> CallStats {
        self.0.core.totals()
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
        let Inner { core, pre, .. } = &*self.0;
        let model = draft.model().map_err(|failure| {
            let kind = CallErrorKind::Host(format!("the draft cannot be described: {failure}"));
            let (plugin, call) = (core.id.clone(), "inject");
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
        let run = |store: &mut wasmtime::Store<State>| {
            let instance = pre.instantiate(&mut *store)?;
            let lent = store.data_mut().table.push(HostDraft)?;
            let answer = instance.packhost_plugin_injection().call_inject(
                &mut *store,
                params,
                Resource::new_borrow(lent.rep()),
            )?;
            let report = answer.map_err(|failure| check::failure(failure, &core.limits))?;
            check::document("a report", &report, &core.limits)?;
            Ok::<_, Stop>(report)
        };
        lend_device(device, |device| {
            lend_draft(draft, |draft| {
                let prepare = |state: &mut State| {
                    state.device = Some(device);
                    state.draft = Some(draft);
                    state.budget.model = model;
                };
                core.call("inject", None, prepare, run)
            })
        })
    }
}
