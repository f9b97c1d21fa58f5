//! The toolchain for WebAssembly guests, set up on a machine that may have none.
//!
//! First choice: the target `wasm32-unknown-unknown` of the running rustup toolchain, added if need be. Where rustup cannot add
//! it (a machine that does not reach the target's download), the distribution's packages `rustc-web`, `cargo-web` and
//! `rust-web-src` are installed and the guest's standard library is built from their sources, once, into
//! `plugins/target/toolchain`. Either way the linker is `wasm-component-ld`, which rustup's toolchains bundle: it links a
//! core module and turns it into a component in one step.
//!
//! `PACKHOST_GUEST_TOOLCHAIN` chooses: `auto` (default), `rustup` or `distribution`.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The guests' target: components import what their world says and nothing else.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// The distribution's compiler and cargo.
const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";
const DISTRIBUTION_CARGO: &str = "/usr/bin/cargo";
const DISTRIBUTION_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// Raise when the layout of the toolchain folder changes.
const LAYOUT: &str = "1";

/// What a build of guests needs.
pub struct Toolchain {
    /// The cargo to call.
    pub cargo: PathBuf,
    /// The linker that makes components.
    pub linker: PathBuf,
    /// A compiler other than cargo's own.
    rustc: Option<PathBuf>,
    /// Folder with `wasm-ld`, which the linker starts.
    bin: PathBuf,
    /// The program that cargo starts in place of the compiler, see [`WRAPPER`].
    pub wrapper: PathBuf,
}

/// Gives the project's own crates an identity that does not depend on where the project lies. Cargo derives a crate's
/// identity from its absolute path when it lies outside the workspace, as the SDK does, and the identity decides the order
/// of functions in a component.
const WRAPPER: &str = r#"#!/bin/sh
# Starts the compiler for `cargo xtask components` with identities that do not depend on where the project lies.
compiler=$1; shift
name= previous=
for argument do
  if [ "$previous" = --crate-name ]; then name=$argument; fi
  previous=$argument
done
case "$CARGO_MANIFEST_DIR/" in "$PACKHOST_ROOT"/*) own=1 ;; *) own=0 ;; esac
for argument do
  shift
  case "$own$argument" in 1metadata=*) argument="metadata=$name-$CARGO_PKG_VERSION" ;; esac
  set -- "$@" "$argument"
done
exec "$compiler" "$@"
"#;

impl Toolchain {
    /// Sets what a command needs to use this toolchain.
    pub fn apply(&self, command: &mut Command) {
        if let Some(rustc) = &self.rustc {
            command.env("RUSTC", rustc).env_remove("RUSTUP_TOOLCHAIN");
        }
        command.env("PATH", path_with(&self.bin));
    }
}

/// Makes sure that guests can be built in `plugins`.
///
/// # Errors
/// A sentence that tells what is missing and how to get it.
pub fn ready(plugins: &Path) -> Result<Toolchain, String> {
    let folder = plugins.join("target").join("toolchain");
    let bin = folder.join("bin");
    fs::create_dir_all(&bin)
        .map_err(|error| format!("cannot create {}: {error}", bin.display()))?;
    let host = Host::find(plugins)?;

    let choice = env::var("PACKHOST_GUEST_TOOLCHAIN").unwrap_or_else(|_| "auto".into());
    let rustup = match choice.as_str() {
        "distribution" => false,
        "auto" | "rustup" => host.has_target() || host.add_target(),
        other => {
            return Err(format!(
                "PACKHOST_GUEST_TOOLCHAIN is `{other}`; use auto, rustup or distribution"
            ));
        }
    };
    if !rustup && choice == "rustup" {
        return Err(format!(
            "`rustup target add {TARGET}` failed, and PACKHOST_GUEST_TOOLCHAIN=rustup allows nothing else"
        ));
    }
    let linker = linkers(&host, &bin)?;
    let wrapper = bin.join("stable-rustc");
    script(&wrapper, WRAPPER)?;
    if rustup {
        let cargo = env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from);
        return Ok(Toolchain {
            cargo,
            linker,
            rustc: None,
            bin,
            wrapper,
        });
    }
    println!(
        "components: rustup cannot add {TARGET} here, so the distribution's toolchain is used"
    );
    let rustc = distribution(&folder, &bin, &host)?;
    Ok(Toolchain {
        cargo: DISTRIBUTION_CARGO.into(),
        linker,
        rustc: Some(rustc),
        bin,
        wrapper,
    })
}

/// The running Rust toolchain.
struct Host {
    /// Such as `x86_64-unknown-linux-gnu`.
    triple: String,
    sysroot: PathBuf,
    plugins: PathBuf,
}

impl Host {
    fn find(plugins: &Path) -> Result<Self, String> {
        let rustc = |arguments: &[&str]| {
            output(Command::new("rustc").args(arguments).current_dir(plugins)).map_err(|error| {
                format!("the Rust compiler does not run ({error}); install Rust with rustup")
            })
        };
        let version = rustc(&["-vV"])?;
        let triple = version.lines().find_map(|line| line.strip_prefix("host: "));
        Ok(Self {
            triple: triple.ok_or("`rustc -vV` names no host")?.to_owned(),
            sysroot: rustc(&["--print", "sysroot"])?.trim().into(),
            plugins: plugins.to_owned(),
        })
    }

    /// Where rustup's toolchains bundle their linkers.
    fn bundled(&self) -> PathBuf {
        self.sysroot
            .join("lib/rustlib")
            .join(&self.triple)
            .join("bin")
    }

    /// Whether the guest's standard library is there.
    fn has_target(&self) -> bool {
        let folder = self.sysroot.join("lib/rustlib").join(TARGET).join("lib");
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
    }

    /// Has rustup add it.
    fn add_target(&self) -> bool {
        println!("components: rustup target add {TARGET}");
        let status = Command::new("rustup")
            .args(["target", "add", TARGET])
            .current_dir(&self.plugins)
            .status();
        status.is_ok_and(|status| status.success()) && self.has_target()
    }
}

/// Lays `wasm-ld` into `bin` and returns the linker that makes components.
fn linkers(host: &Host, bin: &Path) -> Result<PathBuf, String> {
    let bundled = host.bundled();
    let (component_ld, lld) = (bundled.join("wasm-component-ld"), bundled.join("rust-lld"));
    if component_ld.is_file() && lld.is_file() {
        // rust-lld acts as the WebAssembly linker when it is called by that name.
        link(&lld, &bin.join("wasm-ld"))?;
        return Ok(component_ld);
    }
    // A toolchain that is not rustup's: take LLVM's linker from the distribution and build the other from the registry.
    let installed = bin.join("wasm-component-ld");
    if !installed.is_file() {
        install_packages(&["lld"])?;
        println!("components: cargo install wasm-component-ld");
        let folder = bin.parent().unwrap_or(bin);
        run(Command::new("cargo")
            .args(["install", "--locked", "--root"])
            .arg(folder)
            .arg("wasm-component-ld"))
        .map_err(|error| {
            format!(
                "wasm-component-ld is needed to link components, and it did not install: {error}"
            )
        })?;
    }
    let wasm_ld = find_program("wasm-ld")
        .ok_or("wasm-ld is needed to link components: install LLVM's lld")?;
    link(&wasm_ld, &bin.join("wasm-ld"))?;
    Ok(installed)
}

/// Installs the distribution's compiler and builds the guest's standard library; returns a launcher of the compiler.
fn distribution(folder: &Path, bin: &Path, host: &Host) -> Result<PathBuf, String> {
    install_packages(&DISTRIBUTION_PACKAGES)?;
    recent_enough(&host.plugins)?;
    let launcher = bin.join("guest-rustc");
    let sysroot = folder.join("sysroot");
    let version = output(Command::new(DISTRIBUTION_RUSTC).arg("-vV"))?;
    let stamp_text = format!("{LAYOUT}\n{version}");
    let stamp = folder.join("stamp");
    if fs::read_to_string(&stamp).is_ok_and(|text| text == stamp_text) && launcher.is_file() {
        return Ok(launcher);
    }

    let own = PathBuf::from(
        output(Command::new(DISTRIBUTION_RUSTC).args(["--print", "sysroot"]))?.trim(),
    );
    let library = own.join("lib/rustlib/src/rust/library/std/Cargo.toml");
    if !library.is_file() {
        return Err(format!(
            "{} is missing: install the package rust-web-src",
            library.display()
        ));
    }
    // The compiler's own libraries for build scripts and macros, beside the guest's.
    let host_libraries = sysroot.join("lib/rustlib").join(&host.triple);
    create(&host_libraries)?;
    link(
        &own.join("lib/rustlib").join(&host.triple).join("lib"),
        &host_libraries.join("lib"),
    )?;
    build_std(
        folder,
        &sysroot.join("lib/rustlib").join(TARGET).join("lib"),
    )?;

    let text = format!(
        "#!/bin/sh\n# The distribution's compiler with the standard library that `cargo xtask components` built.\n\
         exec {DISTRIBUTION_RUSTC} --sysroot '{}' \"$@\"\n",
        sysroot.display()
    );
    script(&launcher, &text)?;
    write(&stamp, &stamp_text)?;
    Ok(launcher)
}

/// Makes sure that the distribution's compiler is as recent as the plugins ask for; package lists may be older than the packages.
fn recent_enough(plugins: &Path) -> Result<(), String> {
    let manifest = plugins.join("Cargo.toml");
    let text = fs::read_to_string(&manifest)
        .map_err(|error| format!("{}: {error}", manifest.display()))?;
    let least = text
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "))
        .map(|version| version.trim_matches('"').to_owned())
        .ok_or_else(|| format!("{} names no rust-version", manifest.display()))?;
    let release = || {
        let text = output(Command::new(DISTRIBUTION_RUSTC).arg("-vV"))?;
        let release = text.lines().find_map(|line| line.strip_prefix("release: "));
        release
            .map(str::to_owned)
            .ok_or_else(|| format!("`{DISTRIBUTION_RUSTC} -vV` names no release"))
    };
    if numbers(&release()?) < numbers(&least) {
        println!("components: the distribution's compiler is too old, looking for a newer one");
        run(as_root("apt-get").arg("update"))?;
        run(as_root("apt-get")
            .args(["install", "-y", "--no-install-recommends"])
            .args(DISTRIBUTION_PACKAGES))?;
    }
    match release()? {
        found if numbers(&found) < numbers(&least) => Err(format!(
            "components need Rust {least} for {TARGET}; the distribution's newest is {found}, \
             and rustup could not add the target: run `rustup target add {TARGET}` where the download works"
        )),
        _ => Ok(()),
    }
}

/// Major and minor number of a version.
fn numbers(version: &str) -> (u32, u32) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// Builds the guest's standard library into `libraries`.
fn build_std(folder: &Path, libraries: &Path) -> Result<(), String> {
    println!(
        "components: building the guests' standard library, once (about a minute of processor time)"
    );
    let work = folder.join("std");
    create(&work.join("src"))?;
    let manifest = "[package]\nname = \"guest-std\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[lib]\ncrate-type = [\"rlib\"]\n\
                    [workspace]\n[profile.release]\ndebug = false\npanic = \"abort\"\n";
    write(&work.join("Cargo.toml"), manifest)?;
    write(&work.join("src/lib.rs"), "")?;
    let target = work.join("target");
    run(Command::new(DISTRIBUTION_CARGO)
        .current_dir(&work)
        .args([
            "build",
            "--release",
            "--target",
            TARGET,
            "-Zbuild-std=core,alloc,std,panic_abort",
        ])
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env("RUSTC", DISTRIBUTION_RUSTC)
        // The switch that lets a released compiler build its own library.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &target)
        // Bitcode, so that guests may use link-time optimisation.
        .env("RUSTFLAGS", "-Cembed-bitcode=yes -Cdebuginfo=0"))
    .map_err(|error| format!("the guests' standard library did not build: {error}"))?;

    let fresh = libraries.with_extension("new");
    let _ = fs::remove_dir_all(&fresh);
    create(&fresh)?;
    let built = target.join(TARGET).join("release/deps");
    let entries = fs::read_dir(&built).map_err(|error| format!("{}: {error}", built.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text.ends_with(".rlib") && !text.starts_with("libguest_std") {
            fs::copy(entry.path(), fresh.join(&name))
                .map_err(|error| format!("{text}: {error}"))?;
        }
    }
    let _ = fs::remove_dir_all(libraries);
    fs::rename(&fresh, libraries).map_err(|error| format!("{}: {error}", libraries.display()))?;
    let _ = fs::remove_dir_all(&work);
    Ok(())
}

/// Installs packages of the distribution that are not there yet.
fn install_packages(packages: &[&str]) -> Result<(), String> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if find_program("apt-get").is_none() {
        return Err(format!(
            "components need a Rust toolchain with the target {TARGET}: run `rustup target add {TARGET}`; \
             this machine has no apt-get to install {list} instead"
        ));
    }
    println!("components: apt-get install {list}");
    let install = || {
        run(as_root("apt-get")
            .args(["install", "-y", "--no-install-recommends"])
            .args(&missing))
    };
    let update_and_install = |_| run(as_root("apt-get").arg("update")).and_then(|()| install());
    install().or_else(update_and_install).map_err(|error| {
        format!("components need the packages {list} (or `rustup target add {TARGET}`), and they did not install: {error}")
    })
}

/// Whether dpkg knows a package as installed.
fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// A command with the rights to install packages.
fn as_root(program: &str) -> Command {
    let is_root = output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let mut command = if is_root {
        Command::new(program)
    } else {
        Command::new("sudo")
    };
    if !is_root {
        command.arg(program);
    }
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Runs a command; its output goes to the terminal.
fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{name} ended with {status}")),
        Err(error) => Err(format!("cannot start {name}: {error}")),
    }
}

/// Runs a command and returns what it printed.
fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => Err(format!("{name} ended with {}", output.status)),
        Err(error) => Err(format!("cannot start {name}: {error}")),
    }
}

/// The first program of this name on the path.
fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// The search path with `bin` in front.
fn path_with(bin: &Path) -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(std::iter::once(bin.to_owned()).chain(env::split_paths(&path))).unwrap_or(path)
}

/// A symbolic link from `name` to `target`, replacing what was there.
fn link(target: &Path, name: &Path) -> Result<(), String> {
    if fs::read_link(name).is_ok_and(|present| present == target) {
        return Ok(());
    }
    let _ = fs::remove_file(name);
    std::os::unix::fs::symlink(target, name)
        .map_err(|error| format!("cannot link {}: {error}", name.display()))
}

/// Creates a folder and those above it.
fn create(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder)
        .map_err(|error| format!("cannot create {}: {error}", folder.display()))
}

/// Writes a file.
fn write(path: &Path, text: impl AsRef<OsStr>) -> Result<(), String> {
    fs::write(path, text.as_ref().as_encoded_bytes())
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// Writes a program for the shell, unless it is there already.
fn script(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    write(path, text)?;
    run(Command::new("chmod").arg("755").arg(path))
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_compare_as_numbers() {
        assert!(super::numbers("1.85.0") < super::numbers("1.95"));
        assert!(super::numbers("1.100.0") > super::numbers("1.95"));
        assert_eq!(super::numbers("1.95.2"), super::numbers("1.95"));
    }
}
