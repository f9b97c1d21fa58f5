//! Tokenizers: ids, special tokens, and files that are missing or broken.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path};

use packhost_model::Tokenizer;

/// A word-level tokenizer whose template puts `<s>` in front, and which asks for truncation and padding.
const WORDS: &str = r#"{
  "version": "1.0",
  "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
  "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
              "pad_token": "<unk>"},
  "added_tokens": [
    {"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
    {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}
  ],
  "normalizer": null,
  "pre_tokenizer": {"type": "Whitespace"},
  "post_processor": {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
  },
  "decoder": null,
  "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "the": 2, "cat": 3, "sat": 4}, "unk_token": "<unk>"}
}"#;

fn write(dir: &Path, tokenizer: &str) {
    fs::write(dir.join("tokenizer.json"), tokenizer).unwrap();
}

#[test]
fn text_becomes_ids_whole_and_with_special_tokens() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), WORDS);
    fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"bos_token": "<s>", "unk_token": {"content": "<unk>", "special": true}, "pad_token": null}"#,
    )
    .unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(
        tokenizer.encode("the cat sat there").unwrap(),
        [1, 2, 3, 4, 0],
        "neither cut nor padded"
    );
    assert_eq!(tokenizer.encode("").unwrap(), [1]);
    assert_eq!(
        tokenizer.encode_all(&["cat", "the the"]).unwrap(),
        [vec![1, 3], vec![1, 2, 2]]
    );
    assert_eq!(tokenizer.vocab_size(), 5);
    assert_eq!(tokenizer.special_id("bos_token"), Some(1));
    assert_eq!(tokenizer.special_id("unk_token"), Some(0));
    assert_eq!(tokenizer.special_id("pad_token"), None);
    assert_eq!(
        tokenizer.digest(),
        packhost_model::digest::bytes(WORDS.as_bytes())
    );
}

#[test]
fn without_a_template_the_settings_name_the_first_token() {
    let dir = tempfile::tempdir().unwrap();
    let start = WORDS.find("\"post_processor\"").unwrap();
    let end = WORDS.find("\"decoder\"").unwrap();
    let plain = format!(
        "{}\"post_processor\": null, {}",
        &WORDS[..start],
        &WORDS[end..]
    );
    write(dir.path(), &plain);
    let ids = |settings: &str| {
        fs::write(dir.path().join("tokenizer_config.json"), settings).unwrap();
        Tokenizer::open(dir.path())
            .unwrap()
            .encode("the cat")
            .unwrap()
    };
    assert_eq!(ids(r#"{"bos_token": "<s>"}"#), [1, 2, 3]);
    assert_eq!(
        ids(r#"{"bos_token": "<s>", "add_bos_token": false}"#),
        [2, 3]
    );
    assert_eq!(ids("{}"), [2, 3]);
}

#[test]
fn missing_and_broken_files_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let open = || Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(
        open().starts_with(&format!(
            "read the tokenizer {}: the file is missing; ",
            path.display()
        )),
        "{}",
        open()
    );
    for broken in [
        "",
        "{",
        "{}",
        &WORDS[..WORDS.len() / 2],
        &WORDS.replace("WordLevel", "WordSalad"),
    ] {
        write(dir.path(), broken);
        assert!(
            open().starts_with(&format!(
                "read the tokenizer {}: it is not a tokenizer: ",
                path.display()
            )),
            "{}",
            open()
        );
    }
    write(dir.path(), WORDS);
    fs::write(dir.path().join("tokenizer_config.json"), "[").unwrap();
    assert!(
        open().contains("tokenizer_config.json: it is not JSON"),
        "{}",
        open()
    );
}

#[test]
fn a_known_digest() {
    assert_eq!(
        packhost_model::digest::bytes(b"abc"),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}
