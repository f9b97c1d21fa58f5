//! Injections: what they may do to a draft.

use std::collections::BTreeMap;

use insta::assert_snapshot;
use packhost_plugin::{Draft, Failure, InjectionPlugin, Limits, ModelInfo, Plugin, TensorInfo};
use packhost_tensor::Tensor;

use crate::{
    device::{Plain, engine, engine_with, info, model, tensor},
    guest::{Guest, injection, strings},
};

/// A draft over a map.
struct Map {
    tensors: BTreeMap<String, Tensor>,
    config: String,
}

fn map() -> Map {
    Map {
        tensors: [("w".to_owned(), tensor())].into(),
        config: "{}".into(),
    }
}

impl Draft for Map {
    fn model(&self) -> Result<ModelInfo, Failure> {
        Ok(model())
    }

    fn get(&self, name: &str) -> Result<(TensorInfo, Tensor), Failure> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| Failure::Failed(format!("no tensor `{name}`")))?;
        Ok((info(), tensor.clone()))
    }

    fn put(&mut self, name: &str, tensor: Tensor) -> Result<(), Failure> {
        self.tensors.insert(name.into(), tensor);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), Failure> {
        self.tensors
            .remove(name)
            .map(|_| ())
            .ok_or_else(|| Failure::Failed(format!("no tensor `{name}`")))
    }

    fn config(&self) -> String {
        self.config.clone()
    }

    fn set_config(&mut self, config: &str) -> Result<(), Failure> {
        self.config = config.into();
        Ok(())
    }
}

fn load(limits: Option<Limits>, guest: &Guest) -> InjectionPlugin {
    let engine = limits.map_or_else(engine, engine_with);
    match engine.load_bytes("test-plugin", &guest.build(), None) {
        Ok(Plugin::Injection(plugin)) => plugin,
        Ok(_) => panic!("not an injection"),
        Err(error) => panic!("{error}"),
    }
}

/// Gets `w`, leaves its handle in local `$w`.
const GET: &str = r#"
    (local $w i32)
    (call $get (local.get $draft) (i32.const 17408) (i32.const 1) (i32.const 64))
    (if (i32.load8_u (i32.const 64)) (then unreachable))
    (local.set $w (i32.load (i32.const 68)))"#;
/// Answers `{}`.
const DONE: &str = "(call $ok2 (i32.const 1104) (i32.const 2))";

#[test]
fn a_tensor_is_fetched_overwritten_and_put_back() {
    // Element 0 becomes 9.
    let body = format!(
        r#"{GET}
        (call $write (local.get $w) (i64.const 0) (i32.const 2048) (i32.const 1) (i32.const 80))
        (if (i32.load8_u (i32.const 80)) (then unreachable))
        (call $put (local.get $draft) (i32.const 17408) (i32.const 1) (local.get $w) (i32.const 80))
        (if (i32.load8_u (i32.const 80)) (then unreachable))
        {DONE}"#
    );
    let guest = injection()
        .on("inject", &body)
        .with(r#"(data (i32.const 2048) "\00\00\10\41")"#);
    let mut draft = map();
    let report = load(None, &guest)
        .inject("{}", &mut draft, &Plain::default())
        .unwrap();
    assert_eq!(report.value, "{}");
    assert_eq!(draft.tensors["w"].to_f32()[..2], [9.0, 2.0]);
}

#[test]
fn a_tensor_is_removed_once() {
    let body = format!(
        "(call $remove (local.get $draft) (i32.const 17408) (i32.const 1) (i32.const 80)) {DONE}"
    );
    let mut draft = map();
    load(None, &injection().on("inject", &body))
        .inject("{}", &mut draft, &Plain::default())
        .unwrap();
    assert!(draft.tensors.is_empty());
    let missing = r#"
        (call $remove (local.get $draft) (i32.const 17408) (i32.const 1) (i32.const 80))
        (if (i32.eqz (i32.load8_u (i32.const 80))) (then unreachable))
        (call $fail (i32.load (i32.const 88)) (i32.load (i32.const 92)))"#;
    let error = load(None, &injection().on("inject", missing))
        .inject("{}", &mut draft, &Plain::default())
        .unwrap_err();
    assert_snapshot!(error, @"test-plugin: inject: no tensor `w`");
}

#[test]
fn putting_without_end() {
    let body = format!(
        r#"(loop
          (call $get (local.get $draft) (i32.const 17408) (i32.const 1) (i32.const 64))
          (call $put (local.get $draft) (i32.const 17408) (i32.const 1) (i32.load (i32.const 68)) (i32.const 80))
          (br 0))
        {DONE}"#
    );
    let limits = Limits {
        tensor_floor: 4096,
        ..Limits::default()
    };
    let error = load(Some(limits), &injection().on("inject", &body))
        .inject("{}", &mut map(), &Plain::default())
        .unwrap_err();
    assert_snapshot!(error, @"test-plugin: inject: limit `draft_factor` exceeded: got 5120 elements, limit 4128 elements");
}

#[test]
fn a_tensor_under_an_empty_name() {
    let body = format!(
        r#"{GET}
        (call $put (local.get $draft) (i32.const 0) (i32.const 0) (local.get $w) (i32.const 80))
        (if (i32.eqz (i32.load8_u (i32.const 80))) (then unreachable))
        (call $fail (i32.load (i32.const 88)) (i32.load (i32.const 92)))"#
    );
    let error = load(None, &injection().on("inject", &body))
        .inject("{}", &mut map(), &Plain::default())
        .unwrap_err();
    assert_snapshot!(error, @"test-plugin: inject: put: an empty name");
}

#[test]
fn a_config_that_is_not_json() {
    let body = r#"
        (call $set_config (local.get $draft) (i32.const 32768) (i32.const 4) (i32.const 80))
        (if (i32.eqz (i32.load8_u (i32.const 80))) (then unreachable))
        (call $fail (i32.load (i32.const 88)) (i32.load (i32.const 92)))"#;
    let guest = injection()
        .on("inject", body)
        .with(&strings(2048, &["true"]));
    let mut draft = map();
    let error = load(None, &guest)
        .inject("{}", &mut draft, &Plain::default())
        .unwrap_err();
    assert_snapshot!(error, @"test-plugin: inject: set-config: not a JSON object: invalid type: boolean `true`, expected a map at line 1 column 4");
    assert_eq!(draft.config, "{}");
}
