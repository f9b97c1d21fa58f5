//! Generated bindings, one module per world. The first has every import; the others share its types.
#![allow(
    missing_docs,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    unused_qualifications,
    reason = "generated code"
)]

pub mod injection {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "error-plugin",
        pub_export_macro: true,
        export_macro_name: "__export_injection_world",
        default_bindings_module: "packhost_sdk::wasm::bindings::injection",
        generate_all,
    });
}

pub mod edit {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "edit-plugin",
        pub_export_macro: true,
        export_macro_name: "__export_edit_world",
        default_bindings_module: "packhost_sdk::wasm::bindings::edit",
        with: {
            "packhost:plugin/types@0.1.0": super::injection::packhost::plugin::types,
            "packhost:plugin/tensors@0.1.0": super::injection::packhost::plugin::tensors,
            "packhost:plugin/log@0.1.0": super::injection::packhost::plugin::log,
        },
        generate_all,
    });
}

pub mod guard {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "guard-plugin",
        pub_export_macro: true,
        export_macro_name: "__export_guard_world",
        default_bindings_module: "packhost_sdk::wasm::bindings::guard",
        with: {
            "packhost:plugin/types@0.1.0": super::injection::packhost::plugin::types,
            "packhost:plugin/tensors@0.1.0": super::injection::packhost::plugin::tensors,
            "packhost:plugin/log@0.1.0": super::injection::packhost::plugin::log,
        },
        generate_all,
    });
}
