//! Malformed safetensors files and indices: each is refused by name, none ends in a panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;

use common::{
    bf16, config, llama, safetensors, sharded_llama, with_header, write_index, write_single,
};
use packhost_model::{Checkpoint, Header, HeaderProblem};
use proptest::prelude::*;
use serde_json::{Value, json};

/// What is wrong with a file of this header and so many data bytes, without line and column.
fn problem(header: &str, data: usize) -> String {
    let file = with_header(header, &vec![0; data]);
    let message = Header::parse(&file)
        .expect_err("this header should be refused")
        .to_string();
    message.split(" at line ").next().unwrap().to_owned()
}

#[test]
fn good_headers_are_read() {
    let file = safetensors(&[bf16("b", &[2, 3]), bf16("a", &[0, 5]), bf16("c", &[])]);
    let header = Header::parse(&file).unwrap();
    assert_eq!(
        header
            .entries
            .iter()
            .map(|entry| entry.name.as_str())
            .collect::<Vec<_>>(),
        ["b", "a", "c"]
    );
    assert_eq!(header.entries[0].end, 12);
    assert_eq!(header.entries[1].shape, [0, 5]);
    assert_eq!(header.metadata["format"], "pt");
    assert_eq!(file.len(), header.data_start + 14);
    assert_eq!(
        header.to_bytes(),
        file[..header.data_start],
        "writing a header gives the bytes it was read from"
    );
}

#[test]
fn every_malformed_header_says_what_is_wrong() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let cases = [
        (one("BF16", "[2]", "[0,4]"), 3, "tensor `x` ends at byte 4 of the data, the file has only 3; it is truncated"),
        (one("BF16", "[2]", "[0,4]"), 5, "1 bytes after the last tensor belong to no tensor"),
        (one("F4", "[2]", "[0,4]"), 4, "tensor `x` has the unknown dtype `F4`"),
        (one("F32", "[2]", "[0,4]"), 4, "tensor `x` (F32, shape [2]) needs 8 bytes, its offsets span 4"),
        (one("BF16", "[2]", "[4,0]"), 4, "tensor `x` ends at byte 0, before its start at 4"),
        (one("BF16", "[2]", "[2,6]"), 6, "bytes 0 to 2 before tensor `x` belong to no tensor"),
        (
            one("BF16", "[9223372036854775808,2]", "[0,4]"),
            4,
            "tensor `x` has shape [9223372036854775808, 2], more elements than this machine can address",
        ),
        (
            r#"{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"y":{"dtype":"U8","shape":[3],"data_offsets":[2,5]}}"#
                .into(),
            5,
            "tensors `x` and `y` overlap at byte 2",
        ),
        (
            r#"{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"x":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#
                .into(),
            8,
            "the name `x` appears twice",
        ),
        (r#"{"x":{"dtype":"U8","data_offsets":[0,4]}}"#.into(), 4, "`x`: missing field `shape`"),
        (
            r#"{"x":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#.into(),
            4,
            "`x`: duplicate field `dtype`",
        ),
        (
            r#"{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"z":1}}"#.into(),
            4,
            "`x`: unknown field `z`, expected one of `dtype`, `shape`, `data_offsets`",
        ),
        (
            one("U8", "[-4]", "[0,4]"),
            4,
            "`x`: invalid value: integer `-4`, expected u64",
        ),
        (r#"{"__metadata__":{"a":"1","a":"2"}}"#.into(), 0, "`__metadata__`: the key `a` appears twice"),
        ("[]".into(), 0, "the header does not start with `{`"),
        (r#"{"x""#.into(), 0, "`x`: EOF while parsing an object"),
        ("{} {}".into(), 0, "trailing characters"),
    ];
    for (header, data, expected) in cases {
        assert_eq!(problem(&header, data), expected, "for {header}");
    }
}

#[test]
fn wrong_lengths_are_told_apart() {
    assert_eq!(
        Header::parse(&[1, 2, 3]),
        Err(HeaderProblem::TooShort { len: 3 })
    );
    assert_eq!(
        Header::parse(b"\x09\0\0\0\0\0\0\0{}      "),
        Err(HeaderProblem::LengthBeyondFile { length: 9, len: 16 })
    );
    assert!(matches!(
        Header::parse(&[0xff; 16]),
        Err(HeaderProblem::LengthTooLarge {
            length: u64::MAX,
            ..
        })
    ));
    assert_eq!(
        Header::parse(b"\x08\0\0\0\0\0\0\0{\"a\xff\":1}"),
        Err(HeaderProblem::NotUtf8 { at: 3 })
    );
}

/// Reads every tensor that `file` offers; an error is as good.
fn survives(file: &[u8]) -> bool {
    let Ok(header) = Header::parse(file) else {
        return false;
    };
    let data = file.len() - header.data_start;
    let total: usize = header
        .entries
        .iter()
        .map(|entry| entry.end - entry.start)
        .sum();
    assert_eq!(total, data, "an accepted header tiles its data");
    for entry in &header.entries {
        let elements: usize = entry.shape.iter().product();
        assert_eq!(elements * entry.dtype.size(), entry.end - entry.start);
    }
    true
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let file = safetensors(&llama(1));
    assert!(survives(&file));
    for len in 0..file.len() {
        assert!(
            !survives(&file[..len]),
            "accepted the first {len} of {} bytes",
            file.len()
        );
    }
}

#[test]
fn a_flipped_byte_never_panics_and_never_breaks_the_tiling() {
    let file = safetensors(&llama(1));
    let data_start = Header::parse(&file).unwrap().data_start;
    let original = Header::parse(&file).unwrap();
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut damaged = file.clone();
            damaged[at] ^= 1 << bit;
            let accepted = survives(&damaged);
            if at >= data_start {
                assert!(
                    accepted,
                    "a flip in the data at {at} is none of the header's business"
                );
                assert_eq!(Header::parse(&damaged).unwrap(), original);
            } else if at < 8 {
                assert!(!accepted, "accepted another header length");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        survives(&bytes);
    }

    #[test]
    fn arbitrary_headers_never_panic(header in r#"\{("[a-z_]{1,3}":(\{("(dtype|shape|data_offsets)":("U8"|\[[0-9]{1,20},?[0-9]{0,3}\]),?){0,4}\}|[0-9]),?){0,3}\}"#) {
        survives(&with_header(&header, &[0; 8]));
    }

    #[test]
    fn headers_survive_a_round_trip(shapes in proptest::collection::vec(proptest::collection::vec(0_usize..4, 0..4), 0..8)) {
        let tensors: Vec<_> = shapes.iter().enumerate().map(|(index, shape)| bf16(&format!("t\u{e9}.{index}"), shape)).collect();
        let file = safetensors(&tensors);
        let header = Header::parse(&file).unwrap();
        prop_assert_eq!(&header.to_bytes()[..], &file[..header.data_start]);
    }
}

#[test]
fn a_checkpoint_names_the_shard_that_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    sharded_llama(dir.path(), 2);
    let shard = dir.path().join("model-00002-of-00003.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(
        message.starts_with(&format!(
            "read the header of {}: tensor `model.",
            shard.display()
        )),
        "{message}"
    );
    assert!(message.ends_with("it is truncated"), "{message}");
    fs::write(&shard, "").unwrap();
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("the file has 0 bytes"), "{message}");
}

/// The message for a three-shard checkpoint whose index was changed by `change`.
fn index_problem(change: impl FnOnce(&mut Value)) -> String {
    let dir = tempfile::tempdir().unwrap();
    sharded_llama(dir.path(), 2);
    let path = dir.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut index);
    write_index(dir.path(), &index);
    let message = Checkpoint::open(dir.path())
        .expect_err("this index should be refused")
        .to_string();
    message
        .strip_prefix(&format!("read the shard index {}: ", path.display()))
        .expect(&message)
        .to_owned()
}

#[test]
fn every_malformed_index_says_what_is_wrong() {
    let norm = "model.norm.weight";
    assert_eq!(
        index_problem(|index| index["weight_map"] = json!({})),
        "`weight_map` is empty"
    );
    assert!(
        index_problem(|index| index["weight_map"] = json!(3))
            .starts_with("invalid type: integer `3`")
    );
    for outside in [
        "../model.safetensors",
        "/etc/passwd",
        "",
        "a/../../b",
        "./x",
    ] {
        assert_eq!(
            index_problem(|index| index["weight_map"][norm] = json!(outside)),
            format!(
                "`weight_map` places `{norm}` in `{outside}`, which is not a plain path inside the checkpoint"
            )
        );
    }
    assert_eq!(
        index_problem(|index| index["weight_map"][norm] = json!("model-4.safetensors")),
        format!("shard `model-4.safetensors` is missing, it should hold `{norm}`")
    );
    assert_eq!(
        index_problem(
            |index| index["weight_map"]["ghost"] = json!("model-00001-of-00003.safetensors")
        ),
        "tensor `ghost` is not in shard `model-00001-of-00003.safetensors`"
    );
    assert_eq!(
        index_problem(|index| {
            index["weight_map"].as_object_mut().unwrap().remove(norm);
        }),
        format!(
            "shard `model-00003-of-00003.safetensors` holds the tensor `{norm}`, which `weight_map` does not list"
        )
    );
}

#[test]
fn a_repeated_name_in_the_index_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    sharded_llama(dir.path(), 1);
    fs::write(
        dir.path().join("model.safetensors.index.json"),
        r#"{"weight_map":{"a":"x","a":"y"}}"#,
    )
    .unwrap();
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("the key `a` appears twice"), "{message}");
}

#[test]
fn folders_that_are_no_checkpoints_say_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(dir.path()).unwrap_err().to_string();
    let shown = dir.path().display();
    let missing = "config.json is missing; is this the folder of a checkpoint?";
    assert_eq!(open(), format!("open the checkpoint {shown}: {missing}"));
    fs::write(dir.path().join("config.json"), "{").unwrap();
    assert!(open().contains("is not JSON"));
    fs::write(dir.path().join("config.json"), "[]").unwrap();
    assert!(open().contains("is a list, it should be an object"));
    fs::write(dir.path().join("config.json"), config(1).to_string()).unwrap();
    let neither = "neither model.safetensors nor model.safetensors.index.json is there";
    assert_eq!(open(), format!("open the checkpoint {shown}: {neither}"));
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    assert!(open().contains("pickled"));
    write_single(dir.path(), &config(1), &[]);
    assert_eq!(
        open(),
        format!("open the checkpoint {shown}: it holds no tensors")
    );
    let message = Checkpoint::open(&dir.path().join("nowhere"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        format!("open the checkpoint {shown}/nowhere: there is no such folder")
    );
}
