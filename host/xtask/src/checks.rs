//! The project needs nothing outside its own tree: no path that leads out of it, no absolute path of somebody's machine.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Folders of machines and of people, which no committed file may name. Written apart, so that this file passes too.
const FOREIGN: [&[&str]; 4] = [
    &["/wo", "rk/"],
    &["/ro", "ot/"],
    &["/ho", "me/"],
    &["/Us", "ers/"],
];

/// Looks through every committed text file.
pub fn self_contained(root: &Path) -> Result<(), String> {
    let listing = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root)
        .output()
        .map_err(|error| format!("cannot list the committed files: {error}; is git installed?"))?;
    if !listing.status.success() {
        return Err("cannot list the committed files: this is not a git checkout".into());
    }
    let names = String::from_utf8_lossy(&listing.stdout).into_owned();
    let mut found = Vec::new();
    for name in names.split('\0').filter(|name| is_ours(name)) {
        let Ok(text) = fs::read_to_string(root.join(name)) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if let Some(path) = FOREIGN
                .iter()
                .map(|parts| parts.concat())
                .find(|path| line.contains(path.as_str()))
            {
                found.push(format!("{name}:{}: names {path}", number + 1));
            }
        }
    }
    if found.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "the project must not depend on a machine:\n{}",
            found.join("\n")
        ))
    }
}

/// Sources and documents; not lock files, whose content cargo writes, and not vectors, which are data.
fn is_ours(name: &str) -> bool {
    !name.is_empty() && !name.ends_with("Cargo.lock") && !name.starts_with("tests/vectors/")
}
