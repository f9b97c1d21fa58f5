//! Guests for tests: a core module in text, with the exports of its world filled in, made into a component.
//!
//! A test gives the bodies that matter. Memory: answers at 16, static data from 1024 on, heap from 512 KiB on; from
//! [`ZEROS`] on nothing is ever written.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use packhost_plugin::PluginKind;

/// Memory from here on holds zeros, where a guest asks for that much.
pub const ZEROS: u32 = 0x20_0000;

/// Names of the imports below and their core types.
const TENSORS: &[(&str, &str, &str)] = &[
    ("$info", "[method]tensor.info", "(param i32 i32)"),
    (
        "$compute",
        "[method]tensor.compute",
        "(param i32 i32 i32 i32 i32 i32 i32)",
    ),
    (
        "$measure",
        "[method]tensor.measure",
        "(param i32 i32 i32 i32 i32 i32 i32)",
    ),
    (
        "$kth",
        "[method]tensor.kth-magnitude",
        "(param i32 i64 i32)",
    ),
    (
        "$reshape",
        "[method]tensor.reshape",
        "(param i32 i32 i32 i32)",
    ),
    (
        "$convert",
        "[method]tensor.convert",
        "(param i32 i32 i32 i32)",
    ),
    (
        "$duplicate",
        "[method]tensor.duplicate",
        "(param i32) (result i32)",
    ),
    ("$read", "[method]tensor.read", "(param i32 i64 i32 i32)"),
    (
        "$write",
        "[method]tensor.write",
        "(param i32 i64 i32 i32 i32)",
    ),
    ("$drop_tensor", "[resource-drop]tensor", "(param i32)"),
    ("$compile", "[static]program.compile", "(param i32 i32 i32)"),
];
const DRAFTS: &[(&str, &str, &str)] = &[
    ("$drop_draft", "[resource-drop]draft", "(param i32)"),
    ("$get", "[method]draft.get", "(param i32 i32 i32 i32)"),
    ("$put", "[method]draft.put", "(param i32 i32 i32 i32 i32)"),
    ("$remove", "[method]draft.remove", "(param i32 i32 i32 i32)"),
    (
        "$set_config",
        "[method]draft.set-config",
        "(param i32 i32 i32 i32)",
    ),
];
const LOG: &[(&str, &str, &str)] = &[("$log", "write", "(param i32 i32 i32)")];

/// Exports of each kind: name, core type with parameter names, and what an honest plugin does.
const EDIT: &[(&str, &str, &str)] = &[
    ("describe", "(result i32)", "(i32.const 1024)"),
    (
        "plan",
        "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)",
        "(call $ok2 (i32.const 1088) (i32.const 1))",
    ),
    (
        "apply",
        "(param $target i32) (param i32 i32 i32) (param $tensor i32) (result i32)",
        "(call $ok (call $duplicate (local.get $tensor)))",
    ),
    (
        "summarize",
        "(param i32 i32 i32 i32) (result i32)",
        "(call $ok2 (i32.const 1104) (i32.const 2))",
    ),
];
const INJECTION: &[(&str, &str, &str)] = &[
    ("describe", "(result i32)", "(i32.const 1024)"),
    (
        "inject",
        "(param i32 i32) (param $draft i32) (result i32)",
        "(call $ok2 (i32.const 1104) (i32.const 2))",
    ),
];
const GUARD: &[(&str, &str, &str)] = &[
    ("describe", "(result i32)", "(i32.const 1024)"),
    (
        "plan",
        "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)",
        "(call $ok2 (i32.const 0) (i32.const 0))",
    ),
    (
        "probe",
        "(param i32 i32) (param $tensor i32) (result i32)",
        "(call $ok2 (i32.const 0) (i32.const 0))",
    ),
    // A verdict: pass, no findings, details {}.
    (
        "judge",
        "(param i32 i32 i32 i32 i32 i32) (result i32)",
        "(call $verdict (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1104) (i32.const 2))",
    ),
    (
        "calibrate",
        "(param i32 i32 i32 i32) (result i32)",
        "(call $ok2 (i32.const 1104) (i32.const 2))",
    ),
];

/// A guest under construction.
pub struct Guest {
    kind: PluginKind,
    id: &'static str,
    bodies: Vec<(&'static str, String)>,
    extra: String,
    memory: String,
    wit: String,
    world: String,
}

/// An edit that plans tensor `w`, changes nothing and summarises as `{}`, unless told otherwise.
pub fn edit() -> Guest {
    Guest::new(PluginKind::Edit)
}

/// An injection that does nothing.
pub fn injection() -> Guest {
    Guest::new(PluginKind::Injection)
}

/// A guard that asks for nothing and passes everything.
pub fn guard() -> Guest {
    Guest::new(PluginKind::Guard)
}

impl Guest {
    fn new(kind: PluginKind) -> Self {
        Self {
            kind,
            id: "test-plugin",
            bodies: Vec::new(),
            extra: String::new(),
            memory: "9".into(),
            wit: wit(),
            world: kind.world().into(),
        }
    }

    /// The body of export `name`, in place of the honest one.
    pub fn on(mut self, name: &'static str, body: &str) -> Self {
        self.bodies.push((name, body.into()));
        self
    }

    /// More fields of the module: data, functions, imports.
    pub fn with(mut self, fields: &str) -> Self {
        self.extra.push_str(fields);
        self
    }

    /// Pages of memory to begin with, and anything else that stands there.
    pub fn memory(mut self, memory: &str) -> Self {
        self.memory = memory.into();
        self
    }

    /// Another id than `test-plugin`; it must have as many letters.
    pub fn id(mut self, id: &'static str) -> Self {
        assert_eq!(id.len(), self.id.len());
        self.id = id;
        self
    }

    /// Built against other WIT text.
    pub fn wit(mut self, wit: String) -> Self {
        self.wit = wit;
        self
    }

    /// A world of test WIT that includes the plugin's world.
    pub fn world(mut self, world: &str) -> Self {
        self.world = world.into();
        self
    }

    /// The core module in text form.
    fn text(&self) -> String {
        let version = package_version(&self.wit);
        let (interface, exports) = match self.kind {
            PluginKind::Edit => ("edit", EDIT),
            PluginKind::Injection => ("injection", INJECTION),
            PluginKind::Guard => ("guard", GUARD),
        };
        let mut text = String::from("(module\n");
        // Imports come first in a module, those of the test included.
        for (import, functions) in [("tensors", TENSORS), ("drafts", DRAFTS), ("log", LOG)] {
            if import == "drafts" && self.kind != PluginKind::Injection {
                continue;
            }
            for (name, function, types) in functions {
                text.push_str(&format!(
                    "(import \"packhost:plugin/{import}@{version}\" \"{function}\" (func {name} {types}))\n"
                ));
            }
        }
        text.push_str(&self.extra);
        text.push_str(&format!("(memory (export \"memory\") {})\n", self.memory));
        text.push_str(HELPERS);
        text.push_str(&strings(1024, &[self.id, "0.1.0", "A test plugin", "{}"]));
        // One target: tensor `w`, params `{}`.
        text.push_str(&strings(1088, &["w", "{}"]));
        text.push_str("(data (i32.const 1104) \"{}\")\n");
        for (name, types, honest) in exports {
            let body = self.bodies.iter().rev().find(|(given, _)| given == name);
            let body = body.map_or(*honest, |(_, body)| body);
            // A lent handle must be dropped before the call ends, so the body is a function of its own.
            let handle = ["tensor", "draft"]
                .into_iter()
                .find(|handle| types.contains(&format!("${handle} ")));
            let arguments: String = (0..types.matches("i32").count() - 1)
                .map(|index| format!("(local.get {index}) "))
                .collect();
            let drop = handle
                .map(|handle| format!("(call $drop_{handle} (local.get ${handle}))"))
                .unwrap_or_default();
            text.push_str(&format!(
                "(func ${name} {types} {body})\n\
                 (func (export \"packhost:plugin/{interface}@{version}#{name}\") {types} (call ${name} {arguments}) {drop})\n"
            ));
        }
        for (given, _) in &self.bodies {
            assert!(
                exports.iter().any(|(name, ..)| name == given),
                "{interface} has no export {given}"
            );
        }
        text.push(')');
        text
    }

    /// The component.
    pub fn build(&self) -> Vec<u8> {
        let mut module = wat::parse_str(self.text()).unwrap_or_else(|error| panic!("{error}"));
        let mut resolve = Resolve {
            all_features: true,
            ..Resolve::default()
        };
        let package = resolve
            .push_str("guest.wit", &self.wit)
            .unwrap_or_else(|error| panic!("{error:?}"));
        let world = resolve.select_world(&[package], Some(&self.world)).unwrap();
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
        ComponentEncoder::default()
            .validate(false)
            .module(&module)
            .and_then(|encoder| encoder.encode())
            .unwrap_or_else(|error| panic!("{error:?}"))
    }
}

/// The project's WIT as one document.
pub fn wit() -> String {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
    let mut text = String::new();
    for file in ["types.wit", "tensors.wit", "worlds.wit"] {
        let part = std::fs::read_to_string(dir.join(file)).unwrap();
        let (package, rest) = part.split_once(';').unwrap();
        assert!(package.starts_with("package packhost:plugin@"));
        if text.is_empty() {
            text = format!("{package};");
        }
        text.push_str(rest);
    }
    text
}

/// A message without places in a component's bytes, which move with every change of the interface.
pub fn without_offsets(text: &str) -> String {
    let mut parts = text.split("offset ");
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let number = part.find(|c: char| !c.is_ascii_alphanumeric());
        result.push_str("offset [n]");
        result.push_str(&part[number.unwrap_or(part.len())..]);
    }
    result
}

fn package_version(wit: &str) -> &str {
    let start = wit.find("packhost:plugin@").unwrap() + "packhost:plugin@".len();
    let end = wit[start..].find([';', ' ', '{']).unwrap();
    &wit[start..start + end]
}

/// A record of strings at `at` (pointers and lengths), and their bytes in a place that follows from it.
pub fn strings(at: usize, texts: &[&str]) -> String {
    let mut bytes = at * 16;
    let (mut record, mut data) = (String::new(), String::new());
    for text in texts {
        for word in [bytes, text.len()] {
            for byte in (word as u32).to_le_bytes() {
                record.push_str(&format!("\\{byte:02x}"));
            }
        }
        let escaped: String = text.bytes().map(|byte| format!("\\{byte:02x}")).collect();
        data.push_str(&format!("(data (i32.const {bytes}) \"{escaped}\")\n"));
        bytes += text.len();
    }
    format!("(data (i32.const {at}) \"{record}\")\n{data}")
}

/// Allocation that only grows, and answers at 16.
const HELPERS: &str = r#"
(global $heap (mut i32) (i32.const 524288))
(func $realloc (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
  (local $at i32)
  (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
  (global.set $heap (i32.add (local.get $at) (local.get 3)))
  (block $fits
    (loop $more
      (br_if $fits (i32.le_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536))))
      (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))
      (unreachable)))
  (local.get $at))
;; ok(a tensor with no facts)
(func $ok (param i32) (result i32)
  (i32.store8 (i32.const 16) (i32.const 0))
  (i32.store (i32.const 20) (local.get 0))
  (i64.store (i32.const 24) (i64.const 0))
  (i32.const 16))
;; ok(a string or list)
(func $ok2 (param i32 i32) (result i32)
  (i32.store8 (i32.const 16) (i32.const 0))
  (i32.store (i32.const 20) (local.get 0))
  (i32.store (i32.const 24) (local.get 1))
  (i32.const 16))
;; err(failed(text))
(func $fail (param i32 i32) (result i32)
  (i32.store8 (i32.const 16) (i32.const 1))
  (i32.store8 (i32.const 20) (i32.const 2))
  (i32.store (i32.const 24) (local.get 0))
  (i32.store (i32.const 28) (local.get 1))
  (i32.const 16))
;; ok(verdict): status, findings, details
(func $verdict (param i32 i32 i32 i32 i32) (result i32)
  (i32.store8 (i32.const 16) (i32.const 0))
  (i32.store8 (i32.const 20) (i32.const 0))
  (i32.store8 (i32.const 24) (local.get 0))
  (i32.store (i32.const 28) (local.get 1))
  (i32.store (i32.const 32) (local.get 2))
  (i32.store (i32.const 36) (local.get 3))
  (i32.store (i32.const 40) (local.get 4))
  (i32.const 16))
"#;
