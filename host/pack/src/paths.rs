//! Names inside a pack, and what lies in its directory.
//!
//! A name is resolved against the pack's root, following symbolic links and `..`, without requiring that anything exists there. A name that is absolute,
//! climbs above the root or is led out of it by a link is an escape. What a name means never depends on where the pack lies.

use std::ffi::OsString;
use std::fs::{self, FileType};
use std::path::{Component, Path, PathBuf};

/// Most links that are followed for one name.
const LINK_LIMIT: usize = 40;
/// Deepest directory that is entered.
pub(crate) const DIRECTORY_LIMIT: usize = 64;
/// Most entries of one pack.
pub(crate) const ENTRY_LIMIT: usize = 1_000_000;

/// Where a name leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A regular file inside the pack.
    File(PathBuf),
    /// Inside the pack, but no regular file: absent, a directory, or something else.
    NoFile,
    /// Outside the pack.
    Outside,
}

/// A pack's directory.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    given: PathBuf,
    real: PathBuf,
}

impl Root {
    /// Opens a directory; the pack itself may be reached through a link.
    pub(crate) fn open(pack: &Path) -> Option<Self> {
        let real = fs::canonicalize(pack).ok()?;
        real.is_dir().then(|| Self {
            given: pack.to_path_buf(),
            real,
        })
    }

    /// The directory as the caller named it.
    pub(crate) fn given(&self) -> &Path {
        &self.given
    }

    /// The path of a plain relative name, without following anything.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.real.join(name)
    }

    /// Resolves a name, following links.
    pub(crate) fn resolve(&self, name: &str) -> Place {
        if name.contains('\0') {
            return Place::NoFile;
        }
        let mut links = 0;
        let mut pending: Vec<OsString> = Vec::new();
        if !push_components(&mut pending, Path::new(name)) {
            return Place::Outside;
        }
        // `below` are the components under the root that are resolved already.
        let mut below: Vec<OsString> = Vec::new();
        // Whether the path so far is a regular file, where that was just asked.
        let mut asked = None;
        while let Some(component) = pending.pop() {
            if component == ".." {
                if below.pop().is_none() {
                    return Place::Outside;
                }
                asked = None;
                continue;
            }
            let here = self.path_of(&below).join(&component);
            match fs::symlink_metadata(&here) {
                Ok(metadata) if metadata.file_type().is_symlink() => {
                    links += 1;
                    let Ok(target) = fs::read_link(&here) else {
                        return Place::NoFile;
                    };
                    if links > LINK_LIMIT {
                        return Place::NoFile;
                    }
                    if !push_components(&mut pending, &target) {
                        return Place::Outside;
                    }
                }
                // Absent components are kept: `..` after them may lead back.
                found => {
                    asked = Some(found.is_ok_and(|metadata| metadata.is_file()));
                    below.push(component);
                }
            }
        }
        let path = self.path_of(&below);
        let is_file = asked.unwrap_or_else(|| {
            fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file())
        });
        if is_file {
            Place::File(path)
        } else {
            Place::NoFile
        }
    }

    fn path_of(&self, below: &[OsString]) -> PathBuf {
        let mut path = self.real.clone();
        path.extend(below);
        path
    }

    /// Whether a path that may not exist yet would lie inside the pack.
    pub(crate) fn holds(&self, path: &Path) -> bool {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        // The longest existing ancestor, resolved, then the rest.
        let real = absolute
            .ancestors()
            .find_map(|ancestor| {
                Some(
                    fs::canonicalize(ancestor)
                        .ok()?
                        .join(absolute.strip_prefix(ancestor).ok()?),
                )
            })
            .unwrap_or(absolute);
        let mut plain = PathBuf::new();
        for component in real.components() {
            match component {
                Component::ParentDir => {
                    plain.pop();
                }
                Component::CurDir => {}
                other => plain.push(other),
            }
        }
        plain.starts_with(&self.real)
    }

    /// Everything in the pack, sorted by path; links to directories are not entered.
    pub(crate) fn walk(&self) -> Listing {
        let mut listing = Listing::default();
        self.walk_into(&mut Vec::new(), &mut listing);
        listing.entries.sort_by(|a, b| a.name.cmp(&b.name));
        listing
    }

    fn walk_into(&self, below: &mut Vec<OsString>, listing: &mut Listing) {
        let folder = self.path_of(below);
        let shown = || {
            below
                .iter()
                .map(|part| part.to_string_lossy())
                .collect::<Vec<_>>()
                .join("/")
        };
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                listing
                    .unreadable
                    .push(format!("directory `{}` cannot be read: {error}", shown()));
                return;
            }
        };
        let mut children: Vec<(OsString, Option<FileType>)> = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => children.push((entry.file_name(), entry.file_type().ok())),
                Err(error) => listing.unreadable.push(format!(
                    "directory `{}` cannot be read to its end: {error}",
                    shown()
                )),
            }
        }
        children.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (child, file_type) in children {
            if listing.entries.len() >= ENTRY_LIMIT {
                listing
                    .unreadable
                    .push(format!("the pack has more than {ENTRY_LIMIT} entries"));
                return;
            }
            below.push(child);
            let name = below
                .iter()
                .map(|part| part.to_string_lossy())
                .collect::<Vec<_>>()
                .join("/");
            let plain_name = below.iter().all(|part| part.to_str().is_some());
            let kind = match file_type {
                None => Kind::Special,
                Some(file_type) if file_type.is_symlink() => self.link_kind(&name, plain_name),
                Some(file_type) if file_type.is_dir() => Kind::Directory,
                Some(file_type) if file_type.is_file() => Kind::File,
                Some(_) => Kind::Special,
            };
            listing.entries.push(Entry { name, kind });
            if kind == Kind::Directory {
                if below.len() >= DIRECTORY_LIMIT {
                    listing.unreadable.push(format!(
                        "directory `{}` lies deeper than {DIRECTORY_LIMIT} levels",
                        shown_of(below)
                    ));
                } else {
                    self.walk_into(below, listing);
                }
            }
            below.pop();
        }
    }

    fn link_kind(&self, name: &str, plain_name: bool) -> Kind {
        let file = fs::metadata(self.real.join(name)).is_ok_and(|metadata| metadata.is_file());
        match self.resolve(name) {
            Place::File(_) if plain_name => Kind::Link {
                file: true,
                outside: false,
            },
            Place::Outside => Kind::Link {
                file,
                outside: true,
            },
            _ => Kind::Link {
                file,
                outside: false,
            },
        }
    }
}

fn shown_of(below: &[OsString]) -> String {
    below
        .iter()
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join("/")
}

/// Puts the components of a path on a stack, the first on top. False if the path is absolute.
fn push_components(pending: &mut Vec<OsString>, path: &Path) -> bool {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Prefix(_) | Component::RootDir => return false,
            Component::CurDir => {}
            Component::ParentDir => parts.push(OsString::from("..")),
            Component::Normal(part) => parts.push(part.to_os_string()),
        }
    }
    pending.extend(parts.into_iter().rev());
    true
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    /// A symbolic link; `file` if a regular file is at its end, `outside` if it leads out of the pack.
    Link {
        file: bool,
        outside: bool,
    },
    /// A pipe, socket or device, or an entry that cannot be examined.
    Special,
}

/// One entry of a pack's directory.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Path below the root with `/`; bytes that are not UTF-8 are replaced.
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

impl Entry {
    /// Whether a regular file is here, after following links.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self.kind, Kind::File | Kind::Link { file: true, .. })
    }
}

/// Everything in a pack's directory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    pub(crate) entries: Vec<Entry>,
    /// What could not be listed, in words.
    pub(crate) unreadable: Vec<String>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_without_leaving_the_pack() {
        let folder = tempfile::tempdir().unwrap();
        let pack = folder.path().join("pack");
        fs::create_dir_all(pack.join("a/b")).unwrap();
        fs::write(pack.join("a/b/f"), "x").unwrap();
        fs::write(folder.path().join("out"), "x").unwrap();
        let root = Root::open(&pack).unwrap();
        let file = Place::File(root.join("a/b/f"));
        assert_eq!(root.resolve("a/b/f"), file);
        assert_eq!(root.resolve("a/./b/../b/f"), file);
        assert_eq!(root.resolve("ghost/../a/b/f"), file);
        assert_eq!(root.resolve("a/b"), Place::NoFile);
        assert_eq!(root.resolve("ghost"), Place::NoFile);
        assert_eq!(root.resolve("a\0b"), Place::NoFile);
        for name in ["../out", "a/../../pack/a/b/f", "/etc/hostname"] {
            assert_eq!(root.resolve(name), Place::Outside, "{name}");
        }
        assert!(root.holds(&pack.join("x/y")) && root.holds(&pack.join("x/../y")));
        assert!(!root.holds(&pack.join("../y")) && !root.holds(folder.path()));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("b/f", pack.join("a/inside")).unwrap();
            std::os::unix::fs::symlink("../../out", pack.join("a/outside")).unwrap();
            std::os::unix::fs::symlink("loop", pack.join("loop")).unwrap();
            assert_eq!(root.resolve("a/inside"), file);
            assert_eq!(root.resolve("a/outside"), Place::Outside);
            assert_eq!(root.resolve("loop"), Place::NoFile);
            let kinds: Vec<_> = root
                .walk()
                .entries
                .into_iter()
                .map(|entry| (entry.name, entry.kind))
                .collect();
            assert!(kinds.contains(&(
                "a/inside".to_owned(),
                Kind::Link {
                    file: true,
                    outside: false
                }
            )));
            assert!(kinds.contains(&(
                "a/outside".to_owned(),
                Kind::Link {
                    file: true,
                    outside: true
                }
            )));
            assert!(kinds.contains(&(
                "loop".to_owned(),
                Kind::Link {
                    file: false,
                    outside: false
                }
            )));
        }
    }
}
