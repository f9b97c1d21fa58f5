//! Writing a subject to disk as an ordinary checkpoint.
//!
//! The new checkpoint has the baseline's layout: the same shards under the same names. Shards in which nothing changes are
//! copied or linked; the others are written anew, header first and then one tensor after the other, so that a writer holds
//! one tensor at a time however large the model is. Everything goes to a hidden sibling of the target that is renamed into
//! place when it is complete and has been opened once (module `staging`); a failure leaves nothing behind. The same input gives
//! the same bytes.

mod layout;
mod staging;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use packhost_tensor::{DType, Tensor};
use serde_json::Value;

use self::{
    layout::{NewShard, Source},
    staging::Staging,
};
use crate::{
    checkpoint::{CONFIG_FILE, Checkpoint, INDEX_FILE},
    error::{Error, Result},
    overlay::Overlay,
    weights::{TensorMeta, Weights},
};

/// Files beside weights and configuration that belong to a checkpoint.
const COMPANIONS: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// How many bytes are handed to the system at once.
const CHUNK: usize = 16 << 20;

/// How an untouched shard gets into the new checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LinkMode {
    /// Its bytes are copied (shared by the file system where that can).
    #[default]
    Copy,
    /// It becomes another name of the same file. Where that is impossible, as across file systems, it is copied.
    Hardlink,
    /// It points to the baseline, which must then stay where it is.
    Symlink,
}

/// Choices for writing.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// What to do with untouched shards.
    pub link: LinkMode,
    /// Whether a folder that is there already may be replaced.
    pub replace: bool,
    /// Further files, by plain name, such as `edit_metadata.json`.
    pub extra_files: BTreeMap<String, Vec<u8>>,
}

/// What happens to one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// New values in the same shape and dtype.
    Values,
    /// Another shape or dtype, or a tensor that the baseline does not have.
    Form {
        /// Element type to come.
        dtype: DType,
        /// Shape to come.
        shape: Vec<usize>,
    },
    /// The tensor goes.
    Remove,
}

/// What is going to differ from the baseline, known before any value is computed: headers come first in the file.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// By tensor name.
    pub tensors: BTreeMap<String, Change>,
    /// A new `config.json`; `None` keeps the baseline's file byte for byte.
    pub config: Option<Value>,
}

impl Changes {
    /// New values for the tensors called `names`, nothing else.
    pub fn values<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Self {
        let tensors = names
            .into_iter()
            .map(|name| (name.into(), Change::Values))
            .collect();
        Self {
            tensors,
            config: None,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteReport {
    /// The finished checkpoint.
    pub dir: PathBuf,
    /// Shards written anew.
    pub rewritten: Vec<String>,
    /// Shards that share the baseline's file.
    pub linked: Vec<String>,
    /// Shards whose bytes were copied.
    pub copied: Vec<String>,
    /// Bytes of the shards written anew.
    pub bytes_written: u64,
}

/// Whether the baseline's values of changed tensors will be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ahead {
    /// Yes: the next one's may be fetched while this one is computed.
    Read,
    /// No.
    Keep,
}

/// A checkpoint in the making. Dropping it unfinished removes what was written.
#[derive(Debug)]
pub struct CheckpointWriter {
    base: Arc<Checkpoint>,
    staging: Staging,
    /// Shards still to be written.
    pending: Vec<NewShard>,
    report: WriteReport,
}

impl CheckpointWriter {
    /// Starts a checkpoint at `dir`: makes the staging folder, writes everything but the changed shards.
    ///
    /// # Errors
    /// When `dir` exists and may not be replaced, when `changes` name tensors that are not there or leave none, or when
    /// the system refuses.
    pub fn begin(
        base: &Arc<Checkpoint>,
        dir: &Path,
        changes: &Changes,
        options: &WriteOptions,
    ) -> Result<Self> {
        let shards = layout::plan(base, dir, changes)?;
        let staging = Staging::create(dir, base.dir(), options.replace)?;
        let mut writer = Self {
            base: Arc::clone(base),
            staging,
            pending: Vec::new(),
            report: WriteReport {
                dir: dir.into(),
                rewritten: Vec::new(),
                linked: Vec::new(),
                copied: Vec::new(),
                bytes_written: 0,
            },
        };
        if base.is_sharded() {
            writer.put_file(INDEX_FILE, &layout::index_json(base, &shards))?;
        }
        match &changes.config {
            Some(config) => writer.put_file(CONFIG_FILE, &layout::pretty(config))?,
            None => writer.copy_companion(CONFIG_FILE)?,
        }
        for name in COMPANIONS {
            if base.dir().join(name).exists() {
                writer.copy_companion(name)?;
            }
        }
        for (name, contents) in &options.extra_files {
            writer.add_file(name, contents)?;
        }
        for shard in shards {
            match shard {
                layout::Plan::Keep(name) => writer.keep_shard(&name, options.link)?,
                layout::Plan::Write(shard) => writer.pending.push(shard),
            }
        }
        Ok(writer)
    }

    /// Writes the changed shards and gives the writer back; after a failure there is none to give. `produce` is asked for each changed tensor exactly once, in the order of the files; what
    /// it returns is written and dropped before it is asked again. The baseline's values of the tensor to come are read
    /// ahead meanwhile, and let go after their turn.
    ///
    /// # Errors
    /// What `produce` says; when it returns another shape or dtype than announced; when the system refuses.
    pub fn write<E: From<Error>>(
        self,
        produce: impl FnMut(&TensorMeta) -> Result<Tensor, E>,
    ) -> Result<Self, E> {
        self.write_all(Ahead::Read, produce)
    }

    fn write_all<E: From<Error>>(
        mut self,
        ahead: Ahead,
        mut produce: impl FnMut(&TensorMeta) -> Result<Tensor, E>,
    ) -> Result<Self, E> {
        for shard in std::mem::take(&mut self.pending) {
            self.write_shard(&shard, ahead, &mut produce)?;
            self.report.rewritten.push(shard.name);
        }
        Ok(self)
    }

    /// Adds a file of the caller's, such as `edit_metadata.json`, under a plain name.
    ///
    /// # Errors
    /// When the name is not plain or taken, or when the system refuses.
    pub fn add_file(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        let mut parts = Path::new(name).components();
        if !matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(_)), None)
        ) {
            let problem = format!("`{name}` is no plain file name");
            return Err(Error::Write {
                path: self.staging.target().into(),
                problem,
            });
        }
        self.put_file(name, contents)
    }

    /// Makes the checkpoint durable, opens it once to prove that it is whole, and renames it into place.
    ///
    /// # Errors
    /// When shards are missing because [`write`](Self::write) was not called, or when the system refuses.
    pub fn finish(self) -> Result<WriteReport> {
        if let Some(shard) = self.pending.first() {
            let problem = format!("shard {} has not been written", shard.name);
            return Err(Error::Write {
                path: self.staging.target().into(),
                problem,
            });
        }
        Checkpoint::open(self.staging.dir())?;
        self.staging.commit()?;
        Ok(self.report)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.staging.dir().join(name)
    }

    fn put_file(&self, name: &str, contents: &[u8]) -> Result<()> {
        let path = self.path(name);
        let failed = |error| write_error(error, &path, contents.len() as u64);
        let mut file = File::create_new(&path).map_err(failed)?;
        file.write_all(contents)
            .and_then(|()| file.sync_all())
            .map_err(failed)
    }

    /// Copies a small file of the baseline.
    fn copy_companion(&self, name: &str) -> Result<()> {
        let from = self.base.dir().join(name);
        let contents = fs::read(&from).map_err(Error::io("read", &from))?;
        self.put_file(name, &contents)
    }

    /// Takes over an untouched shard. The baseline's own name for it may be a link, so the file behind it is what counts.
    fn keep_shard(&mut self, name: &str, link: LinkMode) -> Result<()> {
        let listed = self.base.dir().join(name);
        let from = fs::canonicalize(&listed).map_err(Error::io("open", &listed))?;
        let to = self.path(name);
        make_parent(&to)?;
        let linked = match link {
            LinkMode::Copy => false,
            LinkMode::Hardlink => fs::hard_link(&from, &to).is_ok(),
            LinkMode::Symlink => symlink(&from, &to).is_ok(),
        };
        if linked {
            self.report.linked.push(name.into());
            return Ok(());
        }
        let mut source = File::open(&from).map_err(Error::io("open", &from))?;
        let len = source.metadata().map_err(Error::io("open", &from))?.len();
        let failed = |error| write_error(error, &to, len);
        let mut target = File::create_new(&to).map_err(failed)?;
        io::copy(&mut source, &mut target)
            .and_then(|_| target.sync_all())
            .map_err(failed)?;
        self.report.copied.push(name.into());
        Ok(())
    }

    fn write_shard<E: From<Error>>(
        &mut self,
        shard: &NewShard,
        ahead: Ahead,
        produce: &mut impl FnMut(&TensorMeta) -> Result<Tensor, E>,
    ) -> Result<(), E> {
        let path = self.path(&shard.name);
        make_parent(&path)?;
        let mut output = Output::create(path, shard.file_len())?;
        output.write(&shard.header.to_bytes())?;
        // Every rewritten shard replaces one of the same name, even if all its tensors are new.
        let source_path = self.base.dir().join(&shard.name);
        let mut source = File::open(&source_path).map_err(Error::io("open", &source_path))?;
        let mut items = shard.header.entries.iter().zip(&shard.sources).peekable();
        while let Some((entry, origin)) = items.next() {
            if let Some((next, Source::Produced)) = items.peek()
                && ahead == Ahead::Read
            {
                self.base.prefetch(&next.name);
            }
            match origin {
                Source::File { offset } => {
                    output.copy(
                        &mut source,
                        &source_path,
                        *offset,
                        (entry.end - entry.start) as u64,
                    )?;
                }
                Source::Produced => {
                    let meta = TensorMeta::new(&entry.name, entry.dtype, &entry.shape);
                    let tensor = produce(&meta)?;
                    if tensor.dtype() != entry.dtype || tensor.shape() != entry.shape {
                        let problem = format!(
                            "{} {:?} was announced, {} {:?} came",
                            entry.dtype,
                            entry.shape,
                            tensor.dtype(),
                            tensor.shape()
                        );
                        return Err(Error::Tensor {
                            name: meta.name,
                            problem,
                        }
                        .into());
                    }
                    output.write(tensor.bytes())?;
                    self.base.release(&entry.name);
                }
            }
        }
        self.report.bytes_written += output.finish()?;
        Ok(())
    }
}

/// Writes `overlay` as a checkpoint at `dir`.
///
/// # Errors
/// See [`CheckpointWriter`].
pub fn write_checkpoint(
    overlay: &Overlay,
    dir: &Path,
    options: &WriteOptions,
) -> Result<WriteReport> {
    let change = |tensor: &Option<Tensor>| match tensor {
        Some(tensor) => Change::Form {
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
        },
        None => Change::Remove,
    };
    let changes = Changes {
        tensors: overlay
            .changed()
            .iter()
            .map(|(name, tensor)| (name.clone(), change(tensor)))
            .collect(),
        config: overlay
            .config_changed()
            .then(|| overlay.config_json().clone()),
    };
    let writer = CheckpointWriter::begin(overlay.base(), dir, &changes, options)?;
    // The new values are in memory already: the old ones need not be read.
    writer
        .write_all(Ahead::Keep, |meta| overlay.tensor(&meta.name))?
        .finish()
}

/// A shard being written. `needed` is its full size, for the message when the device is full.
struct Output {
    file: File,
    path: PathBuf,
    needed: u64,
}

impl Output {
    fn create(path: PathBuf, needed: u64) -> Result<Self> {
        let file = File::create_new(&path).map_err(|error| write_error(error, &path, needed))?;
        Ok(Self { file, path, needed })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(CHUNK) {
            self.file
                .write_all(chunk)
                .map_err(|error| write_error(error, &self.path, self.needed))?;
        }
        Ok(())
    }

    /// Appends `len` bytes of `source` from `offset` on, inside the kernel where the system can.
    fn copy(&mut self, source: &mut File, source_path: &Path, offset: u64, len: u64) -> Result<()> {
        source
            .seek(SeekFrom::Start(offset))
            .map_err(Error::io("read", source_path))?;
        let copied = io::copy(&mut source.take(len), &mut self.file)
            .map_err(|error| write_error(error, &self.path, self.needed))?;
        if copied != len {
            return Err(Error::io("read", source_path)(
                io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        Ok(())
    }

    /// Makes the file durable; its size.
    fn finish(self) -> Result<u64> {
        self.file
            .sync_all()
            .map_err(|error| write_error(error, &self.path, self.needed))?;
        Ok(self.needed)
    }
}

/// A failed write of a file of `needed` bytes: a full device gets a message of its own.
fn write_error(source: io::Error, path: &Path, needed: u64) -> Error {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::DiskFull {
            path: path.into(),
            needed,
        },
        _ => Error::Io {
            action: "write",
            path: path.into(),
            source,
        },
    }
}

/// Makes the folder of a shard whose name has one.
fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(Error::io("make the folder", parent)),
        None => Ok(()),
    }
}

#[cfg(unix)]
fn symlink(from: &Path, to: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(from, to)
}

#[cfg(not(unix))]
fn symlink(_from: &Path, _to: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn a_full_device_names_the_file_and_what_it_needs() {
        let path = PathBuf::from("/dev/full");
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let mut output = Output {
            file,
            path,
            needed: 123_456,
        };
        let message = output.write(&[0; 64]).unwrap_err().to_string();
        assert_eq!(
            message,
            "write /dev/full: no space left on the device, this file needs 123456 bytes; free some or choose another folder"
        );
    }
}
