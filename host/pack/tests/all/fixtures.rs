//! The committed copy of the reference fixtures, and how a case of them is made.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Root of the fixtures.
pub fn root() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/vectors/evidence-pack"
    ))
}

/// A JSON file of the fixtures.
pub fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(root().join(name)).unwrap()).unwrap()
}

/// Copies a directory over another.
pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::write(&target, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

/// All files below a directory, sorted, with their bytes; of a link its target.
pub fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    fn collect(folder: &Path, root: &Path, files: &mut Vec<(String, Vec<u8>)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                collect(&path, root, files);
                continue;
            }
            let bytes = if kind.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            files.push((
                path.strip_prefix(root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
                bytes,
            ));
        }
    }
    let mut all = Vec::new();
    collect(folder, folder, &mut all);
    all.sort();
    all
}

/// Makes the pack of a case below `work`, as the README of the fixtures says; the pack lies at `<work>/pack`.
pub fn make_case(case: &Value, work: &Path) {
    let pack = work.join("pack");
    let list = |key: &str| case[key].as_array().cloned().unwrap_or_default();
    copy_tree(&root().join("packs/good"), &pack);
    for beside in list("beside_pack") {
        let target = work.join(beside["path"].as_str().unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(pack.join(beside["copy_of"].as_str().unwrap()), target).unwrap();
    }
    for name in list("delete") {
        fs::remove_file(pack.join(name.as_str().unwrap())).unwrap();
    }
    if let Some(overlay) = case["overlay"].as_str() {
        copy_tree(&root().join(overlay), &pack);
    }
    for name in list("mkdirs") {
        fs::create_dir_all(pack.join(name.as_str().unwrap())).unwrap();
    }
    for link in list("symlinks") {
        let path = pack.join(link["path"].as_str().unwrap());
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink(link["target"].as_str().unwrap(), path).unwrap();
    }
}
