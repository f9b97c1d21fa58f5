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

            struct Component;

            impl world::Guest for Component {
                fn describe() -> world::Descriptor {
                    export::describe_edit::<$plugin>()
                }
                fn plan(params: ::std::string::String, model: world::ModelInfo) -> ::core::result::Result<::std::vec::Vec<world::Target>, world::Failure> {
                    export::plan_edit::<$plugin>(&params, model)
                }
                fn apply(target: world::Target, tensor: &world::Tensor) -> ::core::result::Result<world::Edited, world::Failure> {
                    export::apply_edit::<$plugin>(&target, tensor)
                }
                fn summarize(params: ::std::string::String, targets: ::std::vec::Vec<world::TargetFacts>) -> ::core::result::Result<::std::string::String, world::Failure> {
                    export::summarize_edit::<$plugin>(&params, targets)
                }
            }

            $crate::wasm::bindings::edit::__export_edit_world!(Component with_types_in $crate::wasm::bindings::edit);
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

            struct Component;

            impl world::Guest for Component {
                fn describe() -> world::Descriptor {
                    export::describe_injection::<$plugin>()
                }
                fn inject(params: ::std::string::String, draft: &world::Draft) -> ::core::result::Result<::std::string::String, world::Failure> {
                    export::inject::<$plugin>(&params, draft)
                }
            }

            $crate::wasm::bindings::injection::__export_injection_world!(Component with_types_in $crate::wasm::bindings::injection);
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

            struct Component;

            impl world::Guest for Component {
                fn describe() -> world::Descriptor {
                    export::describe_guard::<$plugin>()
                }
                fn plan(policy: ::std::string::String, model: world::ModelInfo) -> ::core::result::Result<::std::vec::Vec<world::Request>, world::Failure> {
                    export::plan_guard::<$plugin>(&policy, model)
                }
                fn probe(name: ::std::string::String, tensor: &world::Tensor) -> ::core::result::Result<::std::vec::Vec<f64>, world::Failure> {
                    export::probe::<$plugin>(&name, tensor)
                }
                fn judge(
                    policy: ::std::string::String,
                    baseline: ::std::vec::Vec<world::Row>,
                    subject: ::std::vec::Vec<world::Row>,
                ) -> ::core::result::Result<world::Step, world::Failure> {
                    export::judge::<$plugin>(&policy, baseline, subject)
                }
                fn calibrate(policy: ::std::string::String, runs: ::std::vec::Vec<::std::vec::Vec<world::Row>>) -> ::core::result::Result<::std::string::String, world::Failure> {
                    export::calibrate::<$plugin>(&policy, runs)
                }
            }

            $crate::wasm::bindings::guard::__export_guard_world!(Component with_types_in $crate::wasm::bindings::guard);
        };
    };
}
