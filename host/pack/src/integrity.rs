//! Stage 6: whether the files of a pack are exactly those that its manifest binds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use rayon::prelude::*;
use serde_json::Value;

use crate::checksums;
use crate::digest;
use crate::edit_metadata::{self, Table};
use crate::json::{self, get};
use crate::layout;
use crate::manifest::Reference;
use crate::paths::{Kind, Listing, Place, Root};

/// A finding: check id and message.
pub(crate) type Finding = (&'static str, String);

/// Everything that stage 6 found, by part.
#[derive(Debug, Default)]
pub(crate) struct Integrity {
    pub(crate) binding: Vec<Finding>,
    pub(crate) checksums: Vec<Finding>,
    pub(crate) mirrors: Vec<Finding>,
    pub(crate) references: Vec<Finding>,
    pub(crate) edit_metadata: Vec<Finding>,
    /// Unlisted files.
    pub(crate) extras: Vec<String>,
    /// Refused in every mode: what cannot be listed, and links that lead out of the pack.
    pub(crate) limits: Vec<Finding>,
    /// Refused in strict mode only: links, special files, names that differ in case alone.
    pub(crate) strict: Vec<Finding>,
    /// Reports, sorted part by part.
    pub(crate) reports: Vec<String>,
    /// Digest of each covered file.
    pub(crate) digests: BTreeMap<String, String>,
    pub(crate) table: Table,
    /// Regular files in the pack, and how many of them the list covers.
    pub(crate) files: usize,
    pub(crate) hashed: usize,
}

/// Examines all files of a pack.
pub(crate) fn examine(
    root: &Root,
    manifest: &Value,
    references: &[Reference],
    list: &[u8],
) -> Integrity {
    let mut found = Integrity::default();
    let claimed = get::text(manifest, &["checksums_sha256_digest"]).unwrap_or_default();
    let actual = digest::hex(list);
    if claimed != actual {
        found.binding.push((
            "integrity.binding",
            format!("`{}` has the digest {actual}, the manifest binds {claimed}: the list or the manifest was changed", layout::CHECKSUMS),
        ));
    }
    let mut escapes = BTreeSet::new();
    let list = checksums::parse(list);
    found.checksums.extend(list.faults.iter().map(|fault| {
        (
            "integrity.line_syntax",
            format!("`{}`: {fault}", layout::CHECKSUMS),
        )
    }));
    found.hashed = list.lines.len();
    // Files are hashed in parallel; findings keep the order of the list.
    let checked: Vec<Option<Finding>> = list
        .lines
        .par_iter()
        .map(|line| check_line(root, &line.name, &line.digest))
        .collect();
    for (line, finding) in list.lines.iter().zip(checked) {
        if let Some(finding) = finding {
            if finding.0 == "integrity.path_escape" {
                escapes.insert(line.name.clone());
            }
            found.checksums.push(finding);
        }
        found.digests.insert(line.name.clone(), line.digest.clone());
    }
    mirrors(root, &mut found);
    for reference in references {
        if let Some(finding) = check_reference(root, reference) {
            if finding.0 == "integrity.ref_escape" {
                escapes.insert(reference.path.clone());
            }
            found.references.push(finding);
        }
    }
    let listing = root.walk();
    found.files = listing
        .entries
        .iter()
        .filter(|entry| entry.is_file())
        .count();
    found.reports = listing
        .entries
        .iter()
        .filter(|entry| entry.is_file() && layout::is_report(&entry.name))
        .map(|entry| entry.name.clone())
        .collect();
    layout::sort_by_parts(&mut found.reports);
    found.table = Table::read(root);
    found.edit_metadata.extend(
        found
            .table
            .fault
            .iter()
            .map(|fault| ("integrity.scenarios", fault.clone())),
    );
    let disagreements = edit_metadata::faults(root, &found.table, &found.reports);
    found.edit_metadata.extend(
        disagreements
            .into_iter()
            .map(|fault| ("integrity.edit_metadata", fault)),
    );
    extras(&listing, &mut found);
    hardening(&listing, &escapes, &mut found);
    subject_form(root, manifest, &mut found);
    found
}

impl Integrity {
    /// All findings that refuse the pack, in the order in which the parts are checked.
    pub(crate) fn findings(&self, strict: bool) -> Vec<Finding> {
        let mut all: Vec<Finding> = Vec::new();
        for part in [
            &self.binding,
            &self.checksums,
            &self.mirrors,
            &self.references,
            &self.edit_metadata,
        ] {
            all.extend(part.iter().cloned());
        }
        if strict {
            all.extend(self.extras_finding());
        }
        all.extend(self.limits.iter().cloned());
        if strict {
            all.extend(self.strict.iter().cloned());
        }
        all
    }

    /// One finding for all unlisted files.
    pub(crate) fn extras_finding(&self) -> Option<Finding> {
        const SHOWN: usize = 20;
        if self.extras.is_empty() {
            return None;
        }
        let mut names = self
            .extras
            .iter()
            .take(SHOWN)
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ");
        if self.extras.len() > SHOWN {
            names.push_str(&format!(" and {} more", self.extras.len() - SHOWN));
        }
        Some((
            "integrity.extra_files",
            format!("in the pack, but not in `{}`: {names}", layout::CHECKSUMS),
        ))
    }
}

fn check_line(root: &Root, name: &str, expected: &str) -> Option<Finding> {
    match root.resolve(name) {
        Place::Outside => Some((
            "integrity.path_escape",
            format!("`{name}` in `{}` leads out of the pack", layout::CHECKSUMS),
        )),
        Place::NoFile => Some((
            "integrity.missing_file",
            format!(
                "`{name}` is listed in `{}`, but is no file in the pack",
                layout::CHECKSUMS
            ),
        )),
        Place::File(path) => match digest::hex_of_file(&path) {
            Err(error) => Some((
                "integrity.unreadable",
                format!("`{name}` cannot be checked: {error}"),
            )),
            Ok((actual, _)) if actual != expected => Some((
                "integrity.digest",
                format!(
                    "`{name}` has the digest {actual}, the list says {expected}: the file was changed"
                ),
            )),
            Ok(_) => None,
        },
    }
}

fn check_reference(root: &Root, reference: &Reference) -> Option<Finding> {
    let Reference {
        field,
        path: name,
        digest: expected,
    } = reference;
    match root.resolve(name) {
        Place::Outside => Some((
            "integrity.ref_escape",
            format!("manifest field `{field}` names `{name}`, which leads out of the pack"),
        )),
        Place::NoFile => Some((
            "integrity.ref_missing",
            format!("manifest field `{field}` names `{name}`, which is no file in the pack"),
        )),
        Place::File(path) => match digest::hex_of_file(&path) {
            Err(error) => Some((
                "integrity.unreadable",
                format!("`{name}` cannot be checked: {error}"),
            )),
            Ok((actual, _)) if actual != *expected => Some((
                "integrity.ref_digest",
                format!(
                    "manifest field `{field}`: `{name}` has the digest {actual}, the manifest says {expected}"
                ),
            )),
            Ok(_) => None,
        },
    }
}

fn mirrors(root: &Root, found: &mut Integrity) {
    for (mirror, original) in layout::MIRRORS {
        let mirror_path = root.join(mirror);
        if !fs::metadata(&mirror_path).is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let read = |path| json::read_bytes(path, json::CONTROL_LIMIT);
        let problem = match (read(&mirror_path), read(&root.join(original))) {
            (Ok(copy), Ok(original)) if copy == original => continue,
            (Ok(_), Ok(_)) => "differs from".to_owned(),
            (Err(fault), _) => format!("{fault}, so it cannot be compared with"),
            (_, Err(_)) => "mirrors a file that is not there:".to_owned(),
        };
        found.mirrors.push((
            "integrity.mirror",
            format!("`{mirror}` {problem} `{original}`"),
        ));
    }
}

fn extras(listing: &Listing, found: &mut Integrity) {
    found.extras = listing
        .entries
        .iter()
        .filter(|entry| {
            entry.is_file()
                && !layout::is_control(&entry.name)
                && !layout::is_transport(&entry.name)
                && !found.digests.contains_key(&entry.name)
        })
        .map(|entry| entry.name.clone())
        .collect();
}

fn hardening(listing: &Listing, escapes: &BTreeSet<String>, found: &mut Integrity) {
    found.limits.extend(
        listing
            .unreadable
            .iter()
            .map(|reason| ("integrity.limits", reason.clone())),
    );
    let mut folded: BTreeMap<String, &str> = BTreeMap::new();
    for entry in &listing.entries {
        match entry.kind {
            Kind::Link {
                file: true,
                outside: true,
            } if !escapes.contains(&entry.name) => {
                found.limits.push((
                    "integrity.link",
                    format!(
                        "`{}` is a symbolic link to a file outside the pack",
                        entry.name
                    ),
                ));
            }
            Kind::Link { .. } if !escapes.contains(&entry.name) => {
                found.strict.push((
                    "integrity.link",
                    format!(
                        "`{}` is a symbolic link; a strict pack holds none",
                        entry.name
                    ),
                ));
            }
            Kind::Special => {
                found.strict.push((
                    "integrity.link",
                    format!("`{}` is neither a file nor a directory", entry.name),
                ));
            }
            _ => {}
        }
        if let Some(other) = folded.insert(entry.name.to_lowercase(), &entry.name) {
            found.strict.push((
                "integrity.collision",
                format!("`{other}` and `{}` are one name where case does not count, so the pack cannot be copied everywhere", entry.name),
            ));
        }
    }
}

/// In strict mode the subject of the manifest must be what its name says: a JSON document.
fn subject_form(root: &Root, manifest: &Value, found: &mut Integrity) {
    let Some(name) =
        get::text(manifest, &["subject", "path"]).filter(|name| name.ends_with(".json"))
    else {
        return;
    };
    let Place::File(path) = root.resolve(name) else {
        return;
    };
    if let Err(fault) = json::read_strict(&path, json::REPORT_LIMIT) {
        found.strict.push((
            "integrity.ref_digest",
            format!("the subject `{name}` {fault}"),
        ));
    }
}
