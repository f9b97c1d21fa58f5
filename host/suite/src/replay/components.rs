//! Components of a pack, by digest.

use packhost_pack::digest;
use packhost_pack::files::Files;
use packhost_plugin::{Inspection, Plugin, PluginKind, inspect};

use super::evidence::Evidence;
use crate::run::paths;
use crate::toolbox::PluginIdentity;

/// The bytes of the component that is called by this digest, and what can be told of it without running it.
///
/// # Errors
/// In words: it is not there, has another digest, or is no component of this kind.
pub fn read(
    files: &Files,
    sha256: &str,
    kind: PluginKind,
) -> Result<(Vec<u8>, Inspection), String> {
    let bytes = files.read(&paths::packed_component(sha256))?;
    let found = digest::hex(&bytes);
    if found != sha256 {
        return Err(format!("has the digest {found}"));
    }
    let inspection = inspect(&bytes, Some(kind)).map_err(|error| error.to_string())?;
    Ok((bytes, inspection))
}

/// The same, ready to be called.
///
/// # Errors
/// As [`read`], or it does not load.
pub fn load(
    evidence: &Evidence<'_>,
    sha256: &str,
    kind: PluginKind,
) -> Result<(Plugin, PluginIdentity), String> {
    let (bytes, inspection) = read(evidence.files, sha256, kind)?;
    let name = paths::packed_component(sha256);
    let plugin = evidence.engine.load_bytes(&name, &bytes, Some(kind));
    let plugin = plugin.map_err(|error| error.to_string())?;
    let described = plugin.describe();
    let identity = PluginIdentity {
        id: described.id.clone(),
        version: described.version.clone(),
        interface: inspection.interface.to_string(),
        sha256: sha256.to_owned(),
    };
    Ok((plugin, identity))
}
