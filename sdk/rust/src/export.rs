//! The export macros, one per world. In a native build they only mark the plugin as used.

/// Makes the crate an edit component whose behaviour is the given [`Edit`](crate::Edit).
#[macro_export]
macro_rules! export_edit {
    ($plugin:ty) => {
        /// A native build has no host to export to; the test bench calls the plugin.
        #[cfg(not(target_arch = "wasm32"))]
        #[allow(dead_code, reason = "it marks the plugin as used")]
        const _: fn() = || {
            let _ = $crate::bench::edit::<$plugin>;
        };

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use $crate::wasm::bindings::edit::exports::packhost::plugin::edit as world;
            use $crate::wasm::export;
            // The plugin may have its own types of these names.
            use ::std::{result::Result, string::String, vec::Vec};

            struct Component;

            impl world::Guest for Component {
                fn describe() -> world::Descriptor {
                    export::describe_edit::<$plugin>()
                }
                fn plan(
                    params: String,
                    model: world::ModelInfo,
                ) -> Result<Vec<world::Target>, world::Failure> {
                    export::plan_edit::<$plugin>(&params, model)
                }
                fn apply(
                    target: world::Target,
                    tensor: &world::Tensor,
                ) -> Result<world::Edited, world::Failure> {
                    export::apply_edit::<$plugin>(&target, tensor)
                }
                fn summarize(
                    params: String,
                    targets: Vec<world::TargetFacts>,
                ) -> Result<String, world::Failure> {
                    export::summarize_edit::<$plugin>(&params, targets)
                }
            }

            use $crate::wasm::bindings::edit::__export_edit_world as export_world;
            export_world! { Component with_types_in $crate::wasm::bindings::edit }
        };
    };
}

/// Makes the crate an error-injection component whose behaviour is the given [`Injection`](crate::Injection).
#[macro_export]
macro_rules! export_injection {
    ($plugin:ty) => {
        /// A native build has no host to export to; the test bench calls the plugin.
        #[cfg(not(target_arch = "wasm32"))]
        #[allow(dead_code, reason = "it marks the plugin as used")]
        const _: fn() = || {
            let _ = $crate::bench::inject::<$plugin>;
        };

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use $crate::wasm::bindings::injection::exports::packhost::plugin::injection as world;
            use $crate::wasm::export;
            // The plugin may have its own types of these names.
            use ::std::{result::Result, string::String, vec::Vec};

            struct Component;

            impl world::Guest for Component {
                fn describe() -> world::Descriptor {
                    export::describe_injection::<$plugin>()
                }
                fn inject(params: String, draft: &world::Draft) -> Result<String, world::Failure> {
                    export::inject::<$plugin>(&params, draft)
                }
            }

            use $crate::wasm::bindings::injection::__export_injection_world as export_world;
            export_world! { Component with_types_in $crate::wasm::bindings::injection }
        };
    };
}

/// Makes the crate a guard component whose behaviour is the given [`Guard`](crate::Guard).
#[macro_export]
macro_rules! export_guard {
    ($plugin:ty) => {
        /// A native build has no host to export to; the test bench calls the plugin.
        #[cfg(not(target_arch = "wasm32"))]
        #[allow(dead_code, reason = "it marks the plugin as used")]
        const _: fn() = || {
            let _ = $crate::bench::judge::<$plugin>;
        };

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use $crate::wasm::bindings::guard::exports::packhost::plugin::guard as world;
            use $crate::wasm::export;
            // The plugin may have its own types of these names.
            use ::std::{result::Result, string::String, vec::Vec};

            struct Component;

            impl world::Guest for Component {
                fn describe() -> world::Descriptor {
                    export::describe_guard::<$plugin>()
                }
                fn plan(
                    policy: String,
                    model: world::ModelInfo,
                ) -> Result<Vec<world::Request>, world::Failure> {
                    export::plan_guard::<$plugin>(&policy, model)
                }
                fn probe(name: String, tensor: &world::Tensor) -> Result<Vec<f64>, world::Failure> {
                    export::probe::<$plugin>(&name, tensor)
                }
                fn judge(
                    policy: String,
                    baseline: Vec<world::Row>,
                    subject: Vec<world::Row>,
                ) -> Result<world::Step, world::Failure> {
                    export::judge::<$plugin>(&policy, baseline, subject)
                }
                fn calibrate(
                    policy: String,
                    runs: Vec<Vec<world::Row>>,
                ) -> Result<String, world::Failure> {
                    export::calibrate::<$plugin>(&policy, runs)
                }
            }

            use $crate::wasm::bindings::guard::__export_guard_world as export_world;
            export_world! { Component with_types_in $crate::wasm::bindings::guard }
        };
    };
}
