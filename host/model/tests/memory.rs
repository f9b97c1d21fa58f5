//! Memory of a streaming edit. Alone in its file, because it watches the whole process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{fs, io::Write};

use common::memory::{MIB, peak, reset_peak};
use packhost_model::{
    Checkpoint, Error,
    writer::{Changes, CheckpointWriter, WriteOptions},
};
use packhost_tensor::Tensor;
use serde_json::json;

/// Bytes of each tensor, and how many each of two shards has.
const TENSOR: usize = 16 * MIB;
const TENSORS: usize = 8;

#[test]
fn an_edit_holds_one_tensor_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    fs::create_dir(&base).unwrap();
    fs::write(base.join("config.json"), common::config(2).to_string()).unwrap();
    let mut weight_map = serde_json::Map::new();
    for shard in 0..2 {
        let file_name = format!("model-{shard}.safetensors");
        let mut entries = Vec::new();
        for index in 0..TENSORS {
            let name = format!("model.layers.{shard}.mlp.experts.{index}.up_proj.weight");
            let (start, end) = (index * TENSOR, (index + 1) * TENSOR);
            let rows = TENSOR / 2048;
            entries.push(format!(r#""{name}":{{"dtype":"BF16","shape":[{rows},1024],"data_offsets":[{start},{end}]}}"#));
            weight_map.insert(name, json!(file_name));
        }
        let mut file = fs::File::create(base.join(&file_name)).unwrap();
        file.write_all(&common::with_header(
            &format!("{{{}}}", entries.join(",")),
            &[],
        ))
        .unwrap();
        for index in 0..TENSORS {
            // In small pieces: the allocator must not keep a large one that the edit could use unseen.
            (0..TENSOR / MIB).for_each(|_| file.write_all(&[index as u8 + 1; MIB]).unwrap());
        }
    }
    common::write_index(&base, &json!({"weight_map": weight_map}));

    let checkpoint = Checkpoint::open(&base).unwrap();
    let before = {
        reset_peak();
        peak()
    };
    let changes = Changes::values(checkpoint.tensors().iter().map(|meta| meta.name.clone()));
    let target = dir.path().join("subject");
    CheckpointWriter::begin(&checkpoint, &target, &changes, &WriteOptions::default())
        .unwrap()
        .write(|meta| {
            let old = checkpoint.tensor(&meta.name)?;
            let new: Vec<u8> = old.bytes().iter().map(|byte| byte ^ 0xff).collect();
            Ok::<_, Error>(Tensor::new(old.dtype(), old.shape(), new.into())?)
        })
        .unwrap()
        .finish()
        .unwrap();
    let grown = peak() - before;
    println!(
        "peak grew by {} MiB over {} MiB of weights",
        grown / MIB,
        2 * TENSORS * TENSOR / MIB
    );
    // One tensor of the baseline and one of the subject, and room for the allocator.
    assert!(grown > TENSOR, "the measurement sees the tensors at all");
    assert!(
        grown < 2 * TENSOR + 8 * MIB,
        "an edit of {} MiB grew by {grown} bytes",
        2 * TENSORS * TENSOR / MIB
    );
    let written = Checkpoint::open(&target).unwrap();
    for meta in written.tensors() {
        let (old, new) = (
            checkpoint.tensor(&meta.name).unwrap(),
            written.tensor(&meta.name).unwrap(),
        );
        assert!(
            old.bytes()
                .iter()
                .zip(new.bytes())
                .all(|(old, new)| old ^ 0xff == *new),
            "{}",
            meta.name
        );
    }
}
