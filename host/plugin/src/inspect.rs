//! Reading what a component is for, before anything is compiled: its kind, its interface version, its imports.
//!
//! Only names are read here; types are checked when the component is linked. Input is untrusted and may be cut anywhere.

use semver::{Version, VersionReq};
use wasmparser::{ComponentInstance, Encoding, Instance, Parser, Payload};

use crate::{LoadErrorKind, PluginKind};

/// The package of the plugin interfaces.
const PACKAGE: &str = "packhost:plugin";
/// The version that this host was built with.
pub const SERVED: Version = Version::new(0, 1, 0);
/// The WASI packages that are linked, all of them empty, and their range of versions.
const WASI: [&str; 6] = [
    "wasi:cli",
    "wasi:clocks",
    "wasi:filesystem",
    "wasi:io",
    "wasi:random",
    "wasi:sockets",
];
/// No honest component has more names than this at its top level.
const MAX_NAMES: usize = 10_000;

/// What a component says about itself in its import and export names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// What it is for.
    pub kind: PluginKind,
    /// The version of `packhost:plugin` it exports.
    pub interface: Version,
    /// All import names, sorted.
    pub imports: Vec<String>,
    /// All export names, sorted.
    pub exports: Vec<String>,
    /// How many core instances it may come to, at most.
    pub instances: u64,
}

/// The range of interface versions that this host serves: before 1.0.0 the same minor, from then on the same major.
fn range() -> VersionReq {
    VersionReq {
        comparators: vec![semver::Comparator {
            op: semver::Op::Caret,
            major: SERVED.major,
            minor: Some(SERVED.minor),
            patch: Some(SERVED.patch),
            pre: semver::Prerelease::EMPTY,
        }],
    }
}

/// That range in text.
pub(crate) fn served_range() -> String {
    range().to_string()
}

/// Whether this host serves interface `version`.
pub(crate) fn serves(version: &Version) -> bool {
    range().matches(version)
}

/// Reads the names in `bytes` and decides what the component is for. `announced` is the kind that its manifest states.
///
/// # Errors
/// When the bytes are no component, when it is for no plugin world or another one, when it was built against an interface
/// version that this host does not serve, or when it imports what this host does not offer.
pub fn inspect(bytes: &[u8], announced: Option<PluginKind>) -> Result<Inspection, LoadErrorKind> {
    let Outline {
        mut imports,
        mut exports,
        instances,
    } = outline(bytes)?;
    imports.sort_unstable();
    exports.sort_unstable();
    let mut kinds = Vec::new();
    for name in &exports {
        let Some((interface, version)) = plugin_interface(name) else {
            continue;
        };
        if let Some(kind) = PluginKind::ALL
            .into_iter()
            .find(|kind| kind.name() == interface)
        {
            kinds.push((kind, version));
        }
    }
    let found = match announced {
        Some(announced) => kinds
            .iter()
            .find(|(kind, _)| *kind == announced)
            .or_else(|| kinds.first()),
        None => kinds.first(),
    };
    let Some((kind, version)) = found else {
        let expected: Vec<String> = PluginKind::ALL
            .iter()
            .map(|kind| format!("`{PACKAGE}/{kind}@{SERVED}`"))
            .collect();
        return Err(LoadErrorKind::NoInterface {
            expected: expected.join(", "),
            found: list(&exports),
        });
    };
    if let Some(announced) = announced
        && *kind != announced
    {
        return Err(LoadErrorKind::WrongKind {
            announced,
            found: *kind,
        });
    }
    let interface = check_version(kind.name(), version)?;
    for import in &imports {
        check_import(import, *kind)?;
    }
    Ok(Inspection {
        kind: *kind,
        interface,
        imports,
        exports,
        instances,
    })
}

/// What is read from the bytes.
struct Outline {
    imports: Vec<String>,
    exports: Vec<String>,
    instances: u64,
}

/// Import and export names at the component's top level, and a bound on its core instances.
///
/// A component may instantiate nested ones many times, those may do the same, and the compiler multiplies it all out. The
/// product over all components of (1 + instantiations of components) bounds how often any one of them can occur, without
/// following who instantiates whom.
fn outline(bytes: &[u8]) -> Result<Outline, LoadErrorKind> {
    let malformed =
        |error: wasmparser::BinaryReaderError| LoadErrorKind::Malformed(error.to_string());
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    if !bytes.starts_with(b"\0asm") {
        let what = if bytes.is_empty() {
            "the file is empty"
        } else {
            "the file does not begin like WebAssembly"
        };
        return Err(LoadErrorKind::Malformed(what.into()));
    }
    // Instantiations of components in each component that is open.
    let mut open: Vec<u64> = Vec::new();
    let (mut occurrences, mut core_instances) = (1_u64, 0_u64);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(malformed)? {
            Payload::Version {
                encoding: Encoding::Module,
                ..
            } if open.is_empty() => return Err(LoadErrorKind::CoreModule),
            Payload::Version { .. } => open.push(0),
            Payload::End(_) => {
                let inside = open.pop().unwrap_or_default();
                occurrences = occurrences.saturating_mul(inside.saturating_add(1));
            }
            Payload::ComponentImportSection(section) if open.len() == 1 => {
                for import in section {
                    imports.push(import.map_err(malformed)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if open.len() == 1 => {
                for export in section {
                    exports.push(export.map_err(malformed)?.name.name.to_owned());
                }
            }
            Payload::InstanceSection(section) => {
                for instance in section {
                    if let Instance::Instantiate { .. } = instance.map_err(malformed)? {
                        core_instances += 1;
                    }
                }
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section {
                    if let ComponentInstance::Instantiate { .. } = instance.map_err(malformed)?
                        && let Some(here) = open.last_mut()
                    {
                        *here += 1;
                    }
                }
            }
            _ => {}
        }
        if imports.len() + exports.len() > MAX_NAMES {
            return Err(LoadErrorKind::Malformed(format!(
                "more than {MAX_NAMES} imports and exports"
            )));
        }
    }
    Ok(Outline {
        imports,
        exports,
        instances: occurrences.saturating_mul(core_instances),
    })
}

/// `(interface, version)` of a name in our package; the version may be absent or odd.
fn plugin_interface(name: &str) -> Option<(&str, Option<&str>)> {
    let rest = name.strip_prefix(PACKAGE)?.strip_prefix('/')?;
    Some(match rest.split_once('@') {
        Some((interface, version)) => (interface, Some(version)),
        None => (rest, None),
    })
}

/// The version, if this host serves it.
fn check_version(interface: &str, version: &Option<&str>) -> Result<Version, LoadErrorKind> {
    let parsed = version.and_then(|version| Version::parse(version).ok());
    match parsed {
        Some(version) if serves(&version) => Ok(version),
        _ => Err(LoadErrorKind::Interface {
            interface: format!("{PACKAGE}/{interface}"),
            found: version.unwrap_or("none").to_owned(),
            served: SERVED.to_string(),
            range: served_range(),
        }),
    }
}

/// Our interfaces that the host offers to plugins of `kind`.
fn offered(kind: PluginKind) -> &'static [&'static str] {
    match kind {
        PluginKind::Injection => &["types", "tensors", "drafts", "log"],
        PluginKind::Edit | PluginKind::Guard => &["types", "tensors", "log"],
    }
}

/// Whether the host offers `import` to plugins of `kind`.
fn check_import(import: &str, kind: PluginKind) -> Result<(), LoadErrorKind> {
    if let Some((interface, version)) = plugin_interface(import) {
        if offered(kind).contains(&interface) {
            return check_version(interface, &version).map(|_| ());
        }
    } else if let Some((package, rest)) = import.split_once('/')
        && WASI.contains(&package)
        && rest
            .split_once('@')
            .and_then(|(_, version)| Version::parse(version).ok())
            .is_some_and(|version| (version.major, version.minor) == (0, 2))
    {
        return Ok(());
    }
    let own: Vec<String> = offered(kind)
        .iter()
        .map(|name| format!("`{PACKAGE}/{name}@{SERVED}`"))
        .collect();
    Err(LoadErrorKind::Import {
        import: import.to_owned(),
        world: kind.world(),
        offered: format!("{} and WASI 0.2 ({})", own.join(", "), WASI.join(", ")),
    })
}

/// Names for a message: the first few.
fn list(names: &[String]) -> String {
    match names {
        [] => "nothing".into(),
        names => {
            let mut text = names
                .iter()
                .take(8)
                .map(|name| format!("`{name}`"))
                .collect::<Vec<_>>()
                .join(", ");
            if names.len() > 8 {
                text.push_str(&format!(" and {} more", names.len() - 8));
            }
            text
        }
    }
}
