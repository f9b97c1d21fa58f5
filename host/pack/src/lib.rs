//! Evidence packs (`evidence-pack-v1`): build, seal, sign, verify, inspect, and the verdict over the reports that they hold.
//!
//! A pack is a directory whose chain of trust is: fingerprint, public key, signature, manifest bytes, checksum list, payload bytes.
//! This crate reads and writes it, and judges the reports in it. It depends on neither tensors, models nor plugins, so an auditor's build
//! is small; it opens no socket, and it writes only where it is told to.
//!
//! | job | where |
//! | --- | --- |
//! | keys and fingerprints | [`keys`] |
//! | what signers and plugins to demand | [`trust`], [`policy`] |
//! | sealing the pack of a run (layout v2) | [`seal`] |
//! | packing reports by hand (package-native layout) | [`build`] |
//! | verifying, stage by stage | [`verify`] |
//! | the files of a pack that was verified | [`files`] |
//! | a verifier's signed receipt | [`receipt`] |
//! | the verdict for other tools: in-toto, DSSE | [`intoto`], [`dsse`] |
//! | what changed between two packs | [`diff`] |
//! | what a pack says about itself, without cryptography | [`inspect`] |
//! | outcomes, detectors, final verdict and summaries | [`verdict`] |
//! | Python-compatible JSON text | [`canonical`] |
//!
//! Everything written is a function of its inputs and the key: no clock is read (time stamps are parameters), maps are sorted, and Ed25519
//! signatures are deterministic.

pub mod build;
pub mod canonical;
pub mod checksums;
pub mod diff;
pub mod digest;
pub mod dsse;
mod edit_metadata;
mod error;
pub mod files;
pub mod inspect;
mod integrity;
pub mod intoto;
pub mod json;
pub mod keys;
pub mod layout;
pub mod manifest;
mod nested;
mod paths;
pub mod policy;
pub mod probes;
pub mod provenance;
pub mod receipt;
pub mod report_rules;
pub mod seal;
pub mod signature;
mod staging;
mod summaries;
pub mod trust;
pub mod verdict;
pub mod verify;

pub use error::{Error, ExitClass, Failure, Result, Warning};
