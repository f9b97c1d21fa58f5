//! A loaded plugin of any kind.

use crate::{CallCosts, Descriptor, EditPlugin, GuardPlugin, InjectionPlugin, PluginKind};

/// A loaded plugin.
#[derive(Clone)]
pub enum Plugin {
    /// Changes weights on purpose.
    Edit(EditPlugin),
    /// Damages a checkpoint on purpose.
    Injection(InjectionPlugin),
    /// Judges measurements.
    Guard(GuardPlugin),
}

impl Plugin {
    /// What it is for.
    pub fn kind(&self) -> PluginKind {
        match self {
            Plugin::Edit(_) => PluginKind::Edit,
            Plugin::Injection(_) => PluginKind::Injection,
            Plugin::Guard(_) => PluginKind::Guard,
        }
    }

    /// Who it says it is.
    pub fn describe(&self) -> &Descriptor {
        match self {
            Plugin::Edit(plugin) => plugin.describe(),
            Plugin::Injection(plugin) => plugin.describe(),
            Plugin::Guard(plugin) => plugin.describe(),
        }
    }

    /// What all calls so far cost, by function.
    pub fn costs(&self) -> CallCosts {
        match self {
            Plugin::Edit(plugin) => plugin.costs(),
            Plugin::Injection(plugin) => plugin.costs(),
            Plugin::Guard(plugin) => plugin.costs(),
        }
    }

    /// The edit, if it is one.
    pub fn edit(&self) -> Option<&EditPlugin> {
        if let Plugin::Edit(plugin) = self {
            Some(plugin)
        } else {
            None
        }
    }

    /// The injection, if it is one.
    pub fn injection(&self) -> Option<&InjectionPlugin> {
        if let Plugin::Injection(plugin) = self {
            Some(plugin)
        } else {
            None
        }
    }

    /// The guard, if it is one.
    pub fn guard(&self) -> Option<&GuardPlugin> {
        if let Plugin::Guard(plugin) = self {
            Some(plugin)
        } else {
            None
        }
    }
}
