//! The cache of compiled components.

use std::{fs, path::Path, time::Instant};

use packhost_plugin::{CacheDir, Engine, EngineOptions, Limits};

use crate::{device::apply, guest::edit};

fn engine_at(dir: &Path) -> Engine {
    Engine::new(EngineOptions {
        cache: CacheDir::At(dir.to_path_buf()),
        limits: Limits::default(),
    })
    .unwrap()
}

/// Loads the honest edit through the cache in `dir` and uses it.
fn use_it(dir: &Path) {
    let plugin = engine_at(dir)
        .load_bytes("test-plugin", &edit().build(), None)
        .unwrap();
    apply(plugin.edit().unwrap()).unwrap();
}

fn entries(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    entries
}

#[test]
fn an_entry_is_written_once_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("cache");
    use_it(&dir);
    let [entry] = &entries(&dir)[..] else {
        panic!("{:?}", entries(&dir))
    };
    let written = fs::metadata(entry).unwrap().modified().unwrap();
    use_it(&dir);
    assert_eq!(entries(&dir), std::slice::from_ref(entry));
    assert_eq!(fs::metadata(entry).unwrap().modified().unwrap(), written);
}

#[test]
fn damaged_entries_are_compiled_anew_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("cache");
    use_it(&dir);
    let entry = entries(&dir).remove(0);
    let good = fs::read(&entry).unwrap();
    let middle = good.len() / 2;
    let mut flipped = good.clone();
    flipped[middle] ^= 1;
    for damaged in [flipped.as_slice(), &good[..middle], &good[..10], b""] {
        fs::write(&entry, damaged).unwrap();
        use_it(&dir);
        let restored = fs::read(&entry).unwrap();
        assert_ne!(restored, damaged);
        assert_eq!(restored.len(), good.len());
    }
}

#[test]
fn other_settings_have_other_entries() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("cache");
    use_it(&dir);
    let guest = edit().id("tast-plugin").build();
    engine_at(&dir).load_bytes("x", &guest, None).unwrap();
    assert_eq!(entries(&dir).len(), 2);
}

#[test]
#[cfg(unix)]
fn the_folder_must_be_private() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    use_it(&made);
    assert_eq!(
        fs::metadata(&made).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let options = EngineOptions {
        cache: CacheDir::At(open),
        limits: Limits::default(),
    };
    let error = Engine::new(options).err().unwrap().to_string();
    assert!(error.contains("must be private"), "{error}");
}

#[test]
fn loading_from_the_cache_is_quicker_than_compiling() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("cache");
    let bytes = edit().build();
    let engine = engine_at(&dir);
    let timed = || {
        let begin = Instant::now();
        engine.load_bytes("test-plugin", &bytes, None).unwrap();
        begin.elapsed()
    };
    let compiled = timed();
    // The quickest of a few: the machine may be busy.
    let cached = (0..10).map(|_| timed()).min().unwrap();
    assert!(
        cached < compiled,
        "{cached:?} from the cache, {compiled:?} compiled"
    );
}
