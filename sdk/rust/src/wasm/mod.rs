//! The component side: generated bindings and their translation into the SDK's own types.

pub mod bindings;
pub mod export;
pub mod host;
