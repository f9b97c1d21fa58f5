//! Generated bindings of the three worlds. Private: nothing of this shows in a public signature.
//!
//! The error world imports every interface, so it owns their bindings; the other two worlds refer to them, and the host
//! implements each interface once.

/// World `error-plugin`, and the bindings of all imported interfaces.
pub(crate) mod injection {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "error-plugin",
        imports: { default: trappable },
        with: {
            "packhost:plugin/tensors.tensor": crate::tensors::HostTensor,
            "packhost:plugin/tensors.program": crate::tensors::HostProgram,
            "packhost:plugin/drafts.draft": crate::drafts::HostDraft,
        },
    });
}

/// World `edit-plugin`.
pub(crate) mod edit {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "edit-plugin",
        imports: { default: trappable },
        with: {
            "packhost:plugin/types": super::injection::packhost::plugin::types,
            "packhost:plugin/tensors": super::injection::packhost::plugin::tensors,
            "packhost:plugin/log": super::injection::packhost::plugin::log,
        },
    });
}

/// World `guard-plugin`.
pub(crate) mod guard {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "guard-plugin",
        imports: { default: trappable },
        with: {
            "packhost:plugin/types": super::injection::packhost::plugin::types,
            "packhost:plugin/tensors": super::injection::packhost::plugin::tensors,
            "packhost:plugin/log": super::injection::packhost::plugin::log,
        },
    });
}

pub(crate) use injection::packhost::plugin::{drafts, log, tensors, types};
