//! The host side of `packhost:plugin/drafts` and `log`.

use std::sync::Arc;

use wasmtime::component::Resource;

use crate::{
    CallErrorKind, Draft, Level,
    bindings::{
        drafts::{Host, HostDraft as DraftHost},
        log,
        types::{Failure as WitFailure, Host as TypesHost, ModelInfo as WitModelInfo},
    },
    check,
    state::{State, fatal, within},
    tensors::HostTensor,
};

/// What the one `draft` handle stands for: the draft that the call was lent.
pub struct HostDraft;

type Answer<T> = wasmtime::Result<Result<T, WitFailure>>;

fn refused<T>(text: String) -> Answer<T> {
    Ok(Err(WitFailure::Failed(text)))
}

impl State {
    fn with_draft<O>(&self, work: impl FnOnce(&mut dyn Draft) -> O) -> wasmtime::Result<O> {
        let missing = || fatal(CallErrorKind::Host("no draft is lent to this call".into()));
        self.draft
            .as_ref()
            .and_then(|draft| draft.draft(work))
            .ok_or_else(missing)
    }
}

impl TypesHost for State {}
impl Host for State {}

impl DraftHost for State {
    fn model(&mut self, _: Resource<HostDraft>) -> wasmtime::Result<WitModelInfo> {
        self.serve(|state| {
            let model = state.with_draft(|draft| draft.model())?;
            let model = model.map_err(|failure| fatal(CallErrorKind::Host(failure.to_string())))?;
            Ok((&model).into())
        })
    }

    fn get(&mut self, _: Resource<HostDraft>, name: String) -> Answer<Resource<HostTensor>> {
        self.serve(|state| {
            let (info, tensor) = match state.with_draft(|draft| draft.get(&name))? {
                Ok(found) => found,
                Err(failure) => return Ok(Err(failure.into())),
            };
            let elements = tensor.len() as u64;
            state.budget.given = state.budget.given.max(elements);
            state.take(elements)?;
            Ok(Ok(state.hand_out(tensor, Arc::new(info))?))
        })
    }

    fn put(
        &mut self,
        _: Resource<HostDraft>,
        name: String,
        tensor: Resource<HostTensor>,
    ) -> Answer<()> {
        self.serve(|state| {
            let tensor = state.take_back(tensor)?;
            if let Err(message) = check::name(&name, state.limits.name_bytes) {
                return refused(format!("put: {message}"));
            }
            let put = state
                .budget
                .put
                .saturating_add((tensor.len() as u64).max(1024));
            let limit = state
                .limits
                .draft_factor
                .saturating_mul(state.budget.model)
                .saturating_add(state.limits.tensor_floor);
            within("draft_factor", put, limit)?;
            state.budget.put = put;
            let result = state.with_draft(|draft| draft.put(&name, tensor))?;
            Ok(result.map_err(Into::into))
        })
    }

    fn remove(&mut self, _: Resource<HostDraft>, name: String) -> Answer<()> {
        self.serve(|state| {
            Ok(state
                .with_draft(|draft| draft.remove(&name))?
                .map_err(Into::into))
        })
    }

    fn config(&mut self, _: Resource<HostDraft>) -> wasmtime::Result<String> {
        self.serve(|state| state.with_draft(|draft| draft.config()))
    }

    fn set_config(&mut self, _: Resource<HostDraft>, config: String) -> Answer<()> {
        self.serve(|state| {
            within("json_bytes", config.len() as u64, state.limits.json_bytes)?;
            if let Err(message) = check::json_object(&config, state.limits.json_depth) {
                return refused(format!("set-config: {message}"));
            }
            Ok(state
                .with_draft(|draft| draft.set_config(&config))?
                .map_err(Into::into))
        })
    }

    fn drop(&mut self, this: Resource<HostDraft>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

impl log::Host for State {
    fn write(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        self.serve(|state| {
            let level = match level {
                log::Level::Debug => Level::Debug,
                log::Level::Info => Level::Info,
                log::Level::Warn => Level::Warn,
            };
            state
                .write_log(level, &message)
                .map_err(|limit| fatal(limit.into()))
        })
    }
}
