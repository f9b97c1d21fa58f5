//! One safetensors file, mapped into memory.
//!
//! Tensors borrow the mapping: nothing is read until somebody touches the bytes, and nothing is copied. A mapped file must
//! not be shortened while it is open: touching a page that is no longer there ends the process (SIGBUS), which no library
//! can turn into an error. Checkpoints are written once and renamed into place, so this takes a hand that truncates files
//! in place.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use memmap2::{Advice, Mmap, UncheckedAdvice};
use packhost_tensor::Tensor;

use crate::{
    error::{Error, HeaderProblem, Result},
    header::{Entry, Header},
};

/// A mapped safetensors file with a checked header. Cloning shares the mapping.
#[derive(Clone)]
pub struct Shard {
    name: String,
    path: PathBuf,
    header: Arc<Header>,
    /// The same mapping twice: `Bytes` hands out slices, the other is needed to give advice to the kernel.
    bytes: Bytes,
    map: Arc<Mmap>,
}

/// Keeps a mapping alive for as long as slices of it exist.
struct Mapping(Arc<Mmap>);

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Shard {
    /// Maps `dir/name` and checks its header.
    ///
    /// # Errors
    /// When the file cannot be opened or its header is malformed.
    pub fn open(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let metadata = file.metadata().map_err(Error::io("open", &path))?;
        if !metadata.is_file() {
            return Err(Error::Checkpoint {
                path,
                problem: "this should be a file".into(),
            });
        }
        // An empty file cannot be mapped; it gets the message of every file that is too short.
        if metadata.len() == 0 {
            return Err(Error::Header {
                path,
                problem: HeaderProblem::TooShort { len: 0 },
            });
        }
        // SAFETY: the mapping is read-only and shared. That the bytes do not change underneath is what every user of a
        // mapped file assumes; the module comment says what happens otherwise.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", &path))?;
        let map = Arc::new(map);
        let header = Header::parse(&map).map_err(|problem| Error::Header {
            path: path.clone(),
            problem,
        })?;
        let bytes = Bytes::from_owner(Mapping(Arc::clone(&map)));
        Ok(Self {
            name: name.into(),
            path,
            header: Arc::new(header),
            bytes,
            map,
        })
    }

    /// Path relative to the checkpoint, such as `model-00001-of-00002.safetensors`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The tensor of `entry`, which must come from this shard's header. Shares the mapping.
    ///
    /// # Errors
    /// Never for an entry of this shard; for one of another, when it does not fit.
    pub fn tensor(&self, entry: &Entry) -> Result<Tensor> {
        let start = self.header.data_start.saturating_add(entry.start);
        let end = self.header.data_start.saturating_add(entry.end);
        if start > end || end > self.bytes.len() {
            return Err(Error::NoTensor {
                name: entry.name.clone(),
                path: self.path.clone(),
            });
        }
        Ok(Tensor::new(
            entry.dtype,
            entry.shape.clone(),
            self.bytes.slice(start..end),
        )?)
    }

    /// Tells the kernel that the pages of `entry` are not needed for now, so that they stop counting as resident memory of
    /// this process. Tensors over them stay valid: touching them reads the file again.
    pub fn release(&self, entry: &Entry) {
        self.release_bytes(
            self.header.data_start + entry.start,
            entry.end - entry.start,
        );
    }

    /// [`release`](Self::release) for the whole file.
    pub fn release_all(&self) {
        self.release_bytes(0, self.bytes.len());
    }

    /// Tells the kernel that the bytes of `entry` are needed soon, so that it reads them in large pieces meanwhile.
    /// Touching a mapping cold without this reads it in small ones.
    pub fn prefetch(&self, entry: &Entry) {
        let (start, len) = (
            self.header.data_start + entry.start,
            entry.end - entry.start,
        );
        if len > 0 && start.saturating_add(len) <= self.map.len() {
            // Advice only.
            drop(self.map.advise_range(Advice::WillNeed, start, len));
        }
    }

    fn release_bytes(&self, start: usize, len: usize) {
        if len == 0 || start.saturating_add(len) > self.map.len() {
            return;
        }
        // SAFETY: dropping pages of a read-only shared mapping of a file loses nothing, they are read again on demand.
        let advised = unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, start, len)
        };
        // Advice only: a kernel that refuses it leaves the pages where they are.
        drop(advised);
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Shard({}, {} tensors)",
            self.path.display(),
            self.header.entries.len()
        )
    }
}
