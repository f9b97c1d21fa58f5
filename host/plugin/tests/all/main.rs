//! The sandbox from outside: one binary, a module per concern. Guests are core modules in text form, see `guest`.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod answers;
mod cache;
mod calls;
mod components;
mod device;
mod drafts;
mod evil;
mod guards;
mod guest;
mod load;
mod registry;
mod shifts;
mod wasi;
