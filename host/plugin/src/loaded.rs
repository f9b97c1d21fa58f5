//! What a loaded plugin of any world is: the component, ready to be instantiated, and who it says it is.

use wasmtime::{Store, component::InstancePre};

use crate::{
    CallCosts, Called, Descriptor, Limits, Result,
    bindings::{
        edit::{EditPlugin, EditPluginPre},
        guard::{GuardPlugin, GuardPluginPre},
        injection::{ErrorPlugin, ErrorPluginPre},
        types as wit,
    },
    call::{Core, Stop},
    check,
    state::State,
};

/// A world of the contract: a component whose imports and exports have been found to fit it.
pub(crate) trait World: Sized {
    /// A running component.
    type Instance;

    /// Finds the world's exports in a linked component.
    fn new(linked: InstancePre<State>) -> wasmtime::Result<Self>;

    /// Starts the component.
    fn instantiate(&self, store: &mut Store<State>) -> wasmtime::Result<Self::Instance>;

    /// Asks it who it is.
    fn describe(
        instance: &Self::Instance,
        store: &mut Store<State>,
    ) -> wasmtime::Result<wit::Descriptor>;
}

/// Each world's bindings are types of their own with methods of the same names.
macro_rules! world {
    ($pre:ident, $instance:ident, $interface:ident) => {
        impl World for $pre<State> {
            type Instance = $instance;

            fn new(linked: InstancePre<State>) -> wasmtime::Result<Self> {
                $pre::new(linked)
            }

            fn instantiate(&self, store: &mut Store<State>) -> wasmtime::Result<$instance> {
                $pre::instantiate(self, store)
            }

            fn describe(
                instance: &$instance,
                store: &mut Store<State>,
            ) -> wasmtime::Result<wit::Descriptor> {
                instance.$interface().call_describe(store)
            }
        }
    };
}

world!(EditPluginPre, EditPlugin, packhost_plugin_edit);
world!(ErrorPluginPre, ErrorPlugin, packhost_plugin_injection);
world!(GuardPluginPre, GuardPlugin, packhost_plugin_guard);

/// A component of world `W`, loaded.
pub(crate) struct Loaded<W> {
    core: Core,
    world: W,
    descriptor: Descriptor,
}

impl<W: World> Loaded<W> {
    /// Starts the component once, to ask who it is.
    pub(crate) fn new(core: Core, world: W) -> Result<Self> {
        let describe = |store: &mut Store<State>| {
            let instance = world.instantiate(store)?;
            let descriptor = W::describe(&instance, store)?;
            Ok(check::descriptor(descriptor, &core.limits)?)
        };
        let descriptor = core.call("describe", None, |_| {}, describe)?.value;
        Ok(Self {
            core,
            world,
            descriptor,
        })
    }

    /// Who it says it is; asked once, at load.
    pub(crate) fn describe(&self) -> &Descriptor {
        &self.descriptor
    }

    /// What all calls so far cost, by function.
    pub(crate) fn costs(&self) -> CallCosts {
        self.core.costs()
    }

    /// Under what the registry knows it.
    pub(crate) fn id(&self) -> &str {
        &self.core.id
    }

    /// What one call may use.
    pub(crate) fn limits(&self) -> &Limits {
        &self.core.limits
    }

    /// One call in an instance of its own: lets `prepare` lend things to the store and `run` make the call.
    pub(crate) fn call<O>(
        &self,
        call: &'static str,
        subject: Option<&str>,
        prepare: impl FnOnce(&mut State),
        run: impl FnOnce(&W::Instance, &mut Store<State>) -> std::result::Result<O, Stop>,
    ) -> Result<Called<O>> {
        self.core.call(call, subject, prepare, |store| {
            let instance = self.world.instantiate(store)?;
            run(&instance, store)
        })
    }
}
