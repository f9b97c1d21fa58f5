//! A folder and a command for each test, and the whole output as one text to compare.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A test's own folder with a clean command in it.
pub struct Bench {
    root: PathBuf,
    /// Removes the folder when the test is over; absent for a folder that several tests share.
    _guard: Option<tempfile::TempDir>,
}

impl Bench {
    pub fn new() -> Self {
        let guard = tempfile::Builder::new()
            .prefix("packhost-e2e.")
            .tempdir()
            .unwrap();
        Self {
            root: guard.path().canonicalize().unwrap(),
            _guard: Some(guard),
        }
    }

    /// A folder under the build folder that outlives the test, for what several tests look at. It starts empty.
    pub fn shared(name: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("e2e")
            .join(name);
        if root.exists() {
            fs::remove_dir_all(&root).unwrap();
        }
        fs::create_dir_all(&root).unwrap();
        Self { root, _guard: None }
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes a file in the test's folder, with the folders that it needs.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Copies the tiny Llama of the reference vectors (it has no tokenizer) to the folder `name`.
    pub fn tiny(&self, name: &str) -> PathBuf {
        let from = repository().join("tests/vectors/architectures/llama-yi");
        for file in ["config.json", "model.safetensors"] {
            self.write(
                &format!("{name}/{file}"),
                fs::read(from.join(file)).unwrap(),
            );
        }
        self.path(name)
    }

    /// Copies the demo model, tokenizer included, to the folder `name`.
    pub fn demo(&self, name: &str) -> PathBuf {
        copy(&repository().join("scenarios/demo/model"), &self.path(name));
        self.path(name)
    }

    /// Copies one installed plugin, such as `edits/quant-rtn`, into the test's own plugin folder.
    pub fn plugin(&self, name: &str) -> PathBuf {
        let from = repository().join("plugins").join(name);
        for file in ["plugin.toml", "component.wasm"] {
            self.write(
                &format!("plugins/{name}/{file}"),
                fs::read(from.join(file)).unwrap(),
            );
        }
        self.path("plugins").join(name)
    }

    /// `packhost` with these arguments, in the test's folder, with nothing of this machine's environment.
    pub fn packhost<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_packhost"));
        command.args(arguments).current_dir(&self.root).env_clear();
        command.env("PATH", "/usr/bin:/bin").env("HOME", &self.root);
        // Components are compiled once for all tests.
        command.env(
            "PACKHOST_PLUGIN_CACHE",
            repository().join("target/test-plugin-cache"),
        );
        command
    }

    /// `packhost` with the arguments of a line, in which `[REPO]` and `[DIR]` stand for the repository and the test's folder.
    pub fn line(&self, line: &str) -> Command {
        let line = line
            .replace("[REPO]", text(repository()))
            .replace("[DIR]", text(&self.root));
        self.packhost(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Exit code and both streams of such a line.
    pub fn says(&self, line: &str) -> String {
        self.render(&self.line(line).output().unwrap())
    }

    /// Exit code, standard output and standard error as one text, equal on every machine.
    pub fn render(&self, output: &Output) -> String {
        let mut text = String::new();
        let code = output
            .status
            .code()
            .map_or("killed".into(), |code| code.to_string());
        writeln!(text, "exit: {code}").unwrap();
        for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            if !bytes.is_empty() {
                writeln!(text, "----- {name} -----").unwrap();
                text.push_str(&self.portable(&String::from_utf8_lossy(bytes)));
            }
        }
        text
    }

    fn portable(&self, text: &str) -> String {
        let text = text.replace(&self.root.display().to_string(), "[DIR]");
        let text = text.replace(&repository().display().to_string(), "[REPO]");
        let lines = text.lines().map(|line| durations(&digests(line)) + "\n");
        lines.collect()
    }

    /// What lies beside `name` because a write was left half done: names in the test's folder that begin with a dot.
    pub fn leftovers(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with('.')).collect()
    }
}

/// Replaces every run of 40 or more hexadecimal digits.
fn digests(line: &str) -> String {
    let is_hex = |c: &char| matches!(c, '0'..='9' | 'a'..='f');
    let (mut out, mut rest) = (String::new(), line);
    while !rest.is_empty() {
        let run = rest.chars().take_while(is_hex).count();
        if run >= 40 {
            out.push_str("[digest]");
        } else {
            out.push_str(&rest[..run]);
        }
        rest = &rest[run..];
        if let Some(next) = rest.chars().next() {
            out.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    out
}

/// Replaces every number before the unit `s`, the share of a time, and the figure of a time limit that was exceeded.
fn durations(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let is_number =
        |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    let mut out: Vec<&str> = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let unit = words.get(index + 1).copied().unwrap_or_default();
        let measured = ["s", "s,"].contains(&unit)
            || (unit == "ms," && index > 0 && words[index - 1] == "got");
        if is_number(word) && measured {
            // The padding of a column goes with the number.
            while out.last() == Some(&"") {
                out.pop();
            }
            out.push("[time]");
        } else if is_number(word) && words[index + 1..].starts_with(&["%", "of", "it"]) {
            out.push("[share]");
        } else {
            out.push(word);
        }
    }
    out.join(" ")
}

/// The repository's top folder.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap()
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Copies a folder with everything in it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            // Not fs::copy: a read-only original would give a copy that no test can damage.
            fs::write(target, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

/// Every file under `root`, by its path relative to it.
pub fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, dir: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                let name = text(path.strip_prefix(root).unwrap()).to_string();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

/// A JSON file.
pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Changes the JSON header of a safetensors file and leaves its data alone.
pub fn change_header(path: &Path, change: impl FnOnce(&mut Value)) {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let header = header.to_string().into_bytes();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(&bytes[8 + length..]);
    fs::write(path, out).unwrap();
}

/// Changes a JSON file.
pub fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = json(path);
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Inverts one byte of a file.
pub fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0xff;
    fs::write(path, bytes).unwrap();
}

/// Splits the one file of a checkpoint into two shards with an index: tensors whose name holds `part` go into the second.
pub fn shard(dir: &Path, part: &str) {
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut map = serde_json::Map::new();
    let mut total = 0;
    for (number, wanted) in [(1, false), (2, true)] {
        let file = format!("model-0000{number}-of-00002.safetensors");
        let chosen: Vec<_> = tensors
            .tensors()
            .into_iter()
            .filter(|(name, _)| name.contains(part) == wanted)
            .collect();
        for (name, view) in &chosen {
            map.insert(name.clone(), file.clone().into());
            total += view.data().len();
        }
        let metadata = [("format".to_string(), "pt".to_string())].into();
        fs::write(
            dir.join(&file),
            safetensors::serialize(chosen, Some(metadata)).unwrap(),
        )
        .unwrap();
    }
    let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::remove_file(dir.join("model.safetensors")).unwrap();
}

/// A small file system in memory, unmounted when dropped.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one at `path`, or says on standard error why the test that wanted it shows nothing here.
    pub fn mount(path: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs", text(path)])
            .output();
        match output {
            Ok(output) if output.status.success() => Some(Self { path: path.into() }),
            Ok(output) => {
                let reason = String::from_utf8_lossy(&output.stderr).into_owned();
                eprintln!(
                    "SKIPPED: this test needs the right to mount a small tmpfs: {}",
                    reason.trim()
                );
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: this test needs the program mount: {error}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).status();
    }
}
