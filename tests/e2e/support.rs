//! A folder and a command for each test, and the whole output as one text to compare.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A test's own folder with a clean command in it.
pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            dir: tempfile::Builder::new()
                .prefix("packhost-e2e.")
                .tempdir()
                .unwrap(),
        }
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file in the test's folder, with the folders that it needs.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// `packhost` with these arguments, in the test's folder, with nothing of this machine's environment.
    pub fn packhost(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_packhost"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env_clear();
        command
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path());
        // Components are compiled once for all tests.
        command.env(
            "PACKHOST_PLUGIN_CACHE",
            repository().join("target/test-plugin-cache"),
        );
        command
    }

    /// Runs `packhost` and renders exit code and both streams, with paths made equal on every machine.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.render(&self.packhost(arguments).output().unwrap())
    }

    /// Exit code, standard output and standard error as one text.
    pub fn render(&self, output: &Output) -> String {
        let mut text = String::new();
        let code = output
            .status
            .code()
            .map_or("killed".into(), |code| code.to_string());
        writeln!(text, "exit: {code}").unwrap();
        for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            writeln!(text, "----- {name} -----").unwrap();
            text.push_str(&self.portable(&String::from_utf8_lossy(bytes)));
        }
        text
    }

    fn portable(&self, text: &str) -> String {
        let text = text.replace(&self.dir.path().display().to_string(), "[DIR]");
        text.replace(&repository().display().to_string(), "[REPO]")
    }
}

/// The repository's top folder.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .ancestors()
        .find(|path| path.ends_with("..") || path.join("Cargo.lock").is_file())
        .unwrap()
}

/// A text argument from a path.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
