//! Subjects on disk: same layout, same bytes where nothing changed, nothing left behind on failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{config, llama, sharded_llama, vectors, write_single};
use packhost_model::{
    Checkpoint, Error, Overlay, Weights,
    writer::{Changes, CheckpointWriter, LinkMode, WriteOptions, write_checkpoint},
};
use packhost_tensor::{DType, Tensor};
use serde_json::{Value, json};

fn zeros(dtype: DType, shape: &[usize]) -> Tensor {
    let bytes = shape.iter().product::<usize>() * dtype.size();
    Tensor::new(dtype, shape, vec![0; bytes].into()).unwrap()
}

fn options(link: LinkMode) -> WriteOptions {
    WriteOptions {
        link,
        ..WriteOptions::default()
    }
}

/// Every name in `dir`, hidden ones included.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    names(dir)
        .into_iter()
        .map(|name| (name.clone(), fs::read(dir.join(name)).unwrap()))
        .collect()
}

/// A folder with the checkpoint `base`, three shards, and tokenizer files.
fn sharded() -> (tempfile::TempDir, Arc<Checkpoint>, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    sharded_llama(&base, 3);
    fs::write(base.join("tokenizer.json"), "{ }").unwrap();
    fs::write(base.join("generation_config.json"), "{}").unwrap();
    fs::write(base.join("README.md"), "not part of a checkpoint").unwrap();
    let checkpoint = Checkpoint::open(&base).unwrap();
    let target = dir.path().join("subject");
    (dir, checkpoint, target)
}

const TARGET: &str = "model.layers.1.mlp.up_proj.weight";

#[test]
fn writing_unchanged_values_gives_the_references_bytes() {
    for folder in ["llama-yi", "mixtral", "qwen2-tied"] {
        let from = vectors("architectures").join(folder);
        let base = Checkpoint::open(&from).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("same");
        let mut overlay = Overlay::new(Arc::clone(&base));
        let name = "model.layers.0.self_attn.q_proj.weight";
        overlay.put(name, base.tensor(name).unwrap()).unwrap();
        let report = write_checkpoint(&overlay, &target, &WriteOptions::default()).unwrap();
        assert_eq!(report.rewritten, ["model.safetensors"]);
        for file in ["model.safetensors", "config.json", "generation_config.json"] {
            assert_eq!(
                fs::read(target.join(file)).unwrap(),
                fs::read(from.join(file)).unwrap(),
                "{folder}/{file}"
            );
        }
        assert_eq!(
            report.bytes_written,
            fs::metadata(target.join("model.safetensors"))
                .unwrap()
                .len()
        );
    }
}

#[test]
fn only_touched_shards_are_written_and_links_are_links() {
    let (_dir, base, target) = sharded();
    let touched = base.locate(TARGET).unwrap().0.name().to_owned();
    let kept: Vec<_> = base
        .shards()
        .iter()
        .map(|shard| shard.name().to_owned())
        .filter(|name| *name != touched)
        .collect();
    for link in [LinkMode::Copy, LinkMode::Hardlink, LinkMode::Symlink] {
        let mut overlay = Overlay::new(Arc::clone(&base));
        overlay.put(TARGET, zeros(DType::BF16, &[12, 8])).unwrap();
        let report = write_checkpoint(&overlay, &target, &options(link)).unwrap();
        assert_eq!(report.rewritten, std::slice::from_ref(&touched));
        let (linked, copied) = if link == LinkMode::Copy {
            (vec![], kept.clone())
        } else {
            (kept.clone(), vec![])
        };
        assert_eq!((&report.linked, &report.copied), (&linked, &copied));
        for name in &kept {
            let (old, new) = (base.dir().join(name), target.join(name));
            let same_inode = fs::metadata(&old).unwrap().ino() == fs::metadata(&new).unwrap().ino();
            assert_eq!(same_inode, link != LinkMode::Copy, "{link:?}");
            assert_eq!(
                fs::symlink_metadata(&new).unwrap().is_symlink(),
                link == LinkMode::Symlink
            );
            assert_eq!(fs::read(&old).unwrap(), fs::read(&new).unwrap());
        }
        let written = Checkpoint::open(&target).unwrap();
        assert_eq!(written.tensors(), base.tensors());
        for meta in base.tensors() {
            let (old, new) = (
                base.tensor(&meta.name).unwrap(),
                written.tensor(&meta.name).unwrap(),
            );
            assert_eq!(
                old.bytes() == new.bytes(),
                meta.name != TARGET,
                "{}",
                meta.name
            );
        }
        for file in [
            "config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            "generation_config.json",
        ] {
            assert_eq!(
                fs::read(target.join(file)).unwrap(),
                fs::read(base.dir().join(file)).unwrap(),
                "{file}"
            );
        }
        assert!(!target.join("README.md").exists());
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn hard_links_reach_through_the_baselines_own_links() {
    let (dir, base, target) = sharded();
    let linked = dir.path().join("cache");
    fs::create_dir(&linked).unwrap();
    for name in names(base.dir()) {
        std::os::unix::fs::symlink(base.dir().join(&name), linked.join(&name)).unwrap();
    }
    let overlay = Overlay::new(Checkpoint::open(&linked).unwrap());
    write_checkpoint(&overlay, &target, &options(LinkMode::Hardlink)).unwrap();
    for shard in base.shards() {
        assert!(
            fs::symlink_metadata(target.join(shard.name()))
                .unwrap()
                .is_file(),
            "no link to a link"
        );
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (dir, base, target) = sharded();
    let mut overlay = Overlay::new(Arc::clone(&base));
    overlay.put(TARGET, zeros(DType::F32, &[4, 8])).unwrap();
    overlay
        .put(
            "model.layers.0.self_attn.q_proj.bias",
            zeros(DType::BF16, &[8]),
        )
        .unwrap();
    overlay.remove("lm_head.weight").unwrap();
    let mut json = overlay.config_json().clone();
    json["tie_word_embeddings"] = json!(true);
    overlay.set_config(json).unwrap();
    write_checkpoint(&overlay, &target, &options(LinkMode::Copy)).unwrap();
    let other = dir.path().join("again");
    write_checkpoint(&overlay, &other, &options(LinkMode::Copy)).unwrap();
    assert_eq!(contents(&target), contents(&other));

    let written = Checkpoint::open(&target).unwrap();
    assert_eq!(
        written.tensors(),
        overlay.tensors(),
        "reshaped, added, removed and retied as the overlay says"
    );
    for meta in overlay.tensors() {
        assert_eq!(
            written.tensor(&meta.name).unwrap().bytes(),
            overlay.tensor(&meta.name).unwrap().bytes()
        );
    }
    let index: Value =
        serde_json::from_slice(&fs::read(target.join("model.safetensors.index.json")).unwrap())
            .unwrap();
    let bytes: u64 = overlay.tensors().iter().map(|meta| meta.byte_len()).sum();
    let elements: u64 = overlay.tensors().iter().map(|meta| meta.len()).sum();
    assert_eq!(
        index["metadata"],
        json!({"total_size": bytes, "total_parameters": elements})
    );
    assert_eq!(written.config_json(), overlay.config_json());
    let wide = written.locate(TARGET).unwrap();
    assert!(
        (wide.0.header().data_start + wide.1.start).is_multiple_of(4),
        "f32 data is aligned among bf16"
    );
}

#[test]
fn a_shard_without_tensors_goes() {
    let (_dir, base, target) = sharded();
    let shard = &base.shards()[1];
    let mut overlay = Overlay::new(Arc::clone(&base));
    for entry in &shard.header().entries {
        overlay.remove(&entry.name).unwrap();
    }
    write_checkpoint(&overlay, &target, &WriteOptions::default()).unwrap();
    assert!(!target.join(shard.name()).exists());
    assert_eq!(
        Checkpoint::open(&target).unwrap().tensors(),
        overlay.tensors()
    );

    let mut nothing = Overlay::new(Arc::clone(&base));
    for meta in base.tensors() {
        nothing.remove(&meta.name).unwrap();
    }
    let error = write_checkpoint(
        &nothing,
        &target.with_file_name("none"),
        &WriteOptions::default(),
    )
    .unwrap_err();
    assert!(
        error.to_string().ends_with("no tensor would be left"),
        "{error}"
    );
}

#[test]
fn tensors_are_asked_for_once_in_file_order() {
    let (_dir, base, target) = sharded();
    let mut wanted: Vec<_> = base
        .tensors()
        .iter()
        .map(|meta| meta.name.clone())
        .filter(|name| name.contains("proj"))
        .collect();
    let changes = Changes::values(wanted.clone());
    let mut asked = Vec::new();
    let mut extra = WriteOptions::default();
    extra
        .extra_files
        .insert("notes.txt".into(), b"hello".to_vec());
    let mut writer = CheckpointWriter::begin(&base, &target, &changes, &extra)
        .unwrap()
        .write(|meta| {
            asked.push(meta.name.clone());
            base.tensor(&meta.name)
        })
        .unwrap();
    assert!(!target.exists(), "nothing appears before it is complete");
    writer.add_file("edit_metadata.json", b"{}\n").unwrap();
    for name in ["../escape", "a/b", "", "/etc/x"] {
        assert!(
            matches!(writer.add_file(name, b""), Err(Error::Write { .. })),
            "{name}"
        );
    }
    writer.finish().unwrap();
    assert_eq!(
        fs::read(target.join("edit_metadata.json")).unwrap(),
        b"{}\n"
    );
    assert_eq!(fs::read(target.join("notes.txt")).unwrap(), b"hello");
    wanted.sort();
    assert_eq!(
        asked, wanted,
        "these shards hold their tensors in alphabetical order"
    );
}

#[test]
fn an_existing_folder_is_kept_unless_replacing_was_asked() {
    let (dir, base, target) = sharded();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("precious"), "old").unwrap();
    let overlay = Overlay::new(Arc::clone(&base));
    let error = write_checkpoint(&overlay, &target, &WriteOptions::default()).unwrap_err();
    let expected = "it exists already";
    assert_eq!(
        error.to_string(),
        format!("write the checkpoint {}: {expected}", target.display())
    );
    assert_eq!(names(&target), ["precious"]);

    let replace = WriteOptions {
        replace: true,
        ..WriteOptions::default()
    };
    write_checkpoint(&overlay, &target, &replace).unwrap();
    assert!(!target.join("precious").exists() && Checkpoint::open(&target).is_ok());
    assert_eq!(
        names(dir.path()),
        ["base", "subject"],
        "neither staging nor backup is left"
    );
    let error = write_checkpoint(&overlay, base.dir(), &replace).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("this is the baseline itself; choose another folder"),
        "{error}"
    );
}

#[test]
fn a_failure_leaves_everything_as_it_was() {
    let (dir, base, target) = sharded();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("precious"), "old").unwrap();
    let replace = WriteOptions {
        replace: true,
        ..WriteOptions::default()
    };
    let changes = Changes::values([TARGET]);
    let begin = || CheckpointWriter::begin(&base, &target, &changes, &replace).unwrap();

    let failed = begin().write(|meta| {
        Err(Error::NoTensor {
            name: meta.name.clone(),
            path: "here".into(),
        })
    });
    assert!(matches!(failed, Err(Error::NoTensor { .. })));
    let failed = begin().write(|_| Ok::<_, Error>(zeros(DType::BF16, &[12, 9])));
    let message = failed.unwrap_err().to_string();
    assert_eq!(
        message,
        format!("use the tensor `{TARGET}`: BF16 [12, 8] was announced, BF16 [12, 9] came")
    );
    let message = begin().finish().unwrap_err().to_string();
    assert!(message.ends_with("has not been written"), "{message}");
    let ghost = Changes::values(["ghost"]);
    assert!(matches!(
        CheckpointWriter::begin(&base, &target, &ghost, &replace),
        Err(Error::NoTensor { .. })
    ));

    assert_eq!(names(dir.path()), ["base", "subject"]);
    assert_eq!(names(&target), ["precious"]);
}

#[test]
fn places_that_cannot_be_written_say_so() {
    let (dir, base, _) = sharded();
    let overlay = Overlay::new(base);
    let write = |target: &Path| {
        write_checkpoint(&overlay, target, &WriteOptions::default())
            .unwrap_err()
            .to_string()
    };
    // No permission bits stop the superuser, so this takes a file system that has no room for folders at all.
    let message = write(Path::new("/proc/packhost/subject"));
    assert!(
        message.starts_with("make the folder /proc/packhost: "),
        "{message}"
    );
    fs::write(dir.path().join("file"), "").unwrap();
    let message = write(&dir.path().join("file/subject"));
    assert!(
        message.starts_with(&format!("make the folder {}/file: ", dir.path().display())),
        "{message}"
    );
    assert!(write(Path::new("/")).ends_with("this path names no folder of its own"));
}

#[test]
fn what_a_killed_writer_left_is_repaired() {
    let (dir, base, target) = sharded();
    let overlay = Overlay::new(base);
    // Killed while writing.
    fs::create_dir(dir.path().join(".subject.tmp")).unwrap();
    fs::write(dir.path().join(".subject.tmp/config.json"), "half").unwrap();
    write_checkpoint(&overlay, &target, &WriteOptions::default()).unwrap();
    assert_eq!(names(dir.path()), ["base", "subject"]);
    // Killed between the two renames: the old folder is only there as a backup.
    fs::rename(&target, dir.path().join(".subject.bak")).unwrap();
    assert!(matches!(
        write_checkpoint(&overlay, &target, &WriteOptions::default()),
        Err(Error::Exists { .. })
    ));
    assert!(
        Checkpoint::open(&target).is_ok(),
        "the backup is back in its place"
    );
    // Killed before the backup was removed.
    fs::create_dir(dir.path().join(".subject.bak")).unwrap();
    write_checkpoint(
        &overlay,
        &target,
        &WriteOptions {
            replace: true,
            ..WriteOptions::default()
        },
    )
    .unwrap();
    assert_eq!(names(dir.path()), ["base", "subject"]);
}

#[test]
fn shadowed_tensors_of_an_overlay_file_are_read_and_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let base_dir = dir.path().join("base");
    sharded_llama(&base_dir, 1);
    // As the reference writes its shape mismatch: an override beside the old shards, and an index that prefers it.
    let name = "model.embed_tokens.weight";
    fs::write(
        base_dir.join("overrides.safetensors"),
        common::safetensors(&[common::bf16(name, &[24, 8])]),
    )
    .unwrap();
    let path = base_dir.join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let old_shard = index["weight_map"][name].as_str().unwrap().to_owned();
    index["weight_map"][name] = json!("overrides.safetensors");
    common::write_index(&base_dir, &index);
    let base = Checkpoint::open(&base_dir).unwrap();
    assert_eq!(base.meta(name).unwrap().shape, [24, 8]);
    assert_eq!(
        base.tensors()
            .iter()
            .filter(|meta| meta.name == name)
            .count(),
        1
    );

    let touched = base
        .tensors()
        .iter()
        .find(|meta| base.locate(&meta.name).unwrap().0.name() == old_shard)
        .unwrap();
    let mut overlay = Overlay::new(Arc::clone(&base));
    overlay
        .put(&touched.name, zeros(DType::BF16, &touched.shape))
        .unwrap();
    let target = dir.path().join("subject");
    write_checkpoint(&overlay, &target, &WriteOptions::default()).unwrap();
    let written = Checkpoint::open(&target).unwrap();
    assert_eq!(written.tensors(), base.tensors());
    let rewritten = written
        .shards()
        .iter()
        .find(|shard| shard.name() == old_shard)
        .unwrap();
    assert!(
        rewritten
            .header()
            .entries
            .iter()
            .all(|entry| entry.name != name),
        "the shadow is not written again"
    );
}

#[test]
fn a_single_file_stays_a_single_file() {
    let dir = tempfile::tempdir().unwrap();
    let (from, target) = (dir.path().join("base"), dir.path().join("subject"));
    write_single(&from, &config(1), &llama(1));
    let mut overlay = Overlay::new(Checkpoint::open(&from).unwrap());
    overlay
        .put("model.norm.weight", zeros(DType::BF16, &[8]))
        .unwrap();
    write_checkpoint(&overlay, &target, &WriteOptions::default()).unwrap();
    assert_eq!(names(&target), ["config.json", "model.safetensors"]);
    let digests = |dir: &Path| Checkpoint::open(dir).unwrap().shard_digests().unwrap();
    assert_ne!(digests(&from), digests(&target));
    assert_eq!(
        digests(&from)["model.safetensors"],
        packhost_model::digest::bytes(&fs::read(from.join("model.safetensors")).unwrap())
    );
}
