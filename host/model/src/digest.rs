//! SHA-256 of files and tensors.

use std::{fs::File, io::Read, path::Path};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Files are read in pieces of this size.
const CHUNK: usize = 8 << 20;

/// SHA-256 of `bytes`, hexadecimal.
pub fn bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of the file at `path`, hexadecimal, read in pieces.
///
/// # Errors
/// When the file cannot be read.
pub fn file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let len = file.metadata().map_err(Error::io("open", path))?.len();
    let mut buffer = vec![0; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK).max(1))];
    let mut hasher = Sha256::new();
    loop {
        let read = file.read(&mut buffer).map_err(Error::io("read", path))?;
        match buffer.get(..read) {
            Some(piece) if read > 0 => hasher.update(piece),
            _ => return Ok(hex(&hasher.finalize())),
        }
    }
}

/// One digest for all weights: SHA-256 over a line per tensor, in the order given, of its name, dtype, shape and digest. The
/// order of names makes it a digest of the weights alone, however they are spread over files.
pub fn of_weights<'a, A: std::fmt::Debug + 'a>(
    tensors: impl Iterator<Item = (&'a str, &'a str, &'a [A], &'a str)>,
) -> String {
    let lines =
        tensors.map(|(name, dtype, shape, sha256)| format!("{name} {dtype} {shape:?} {sha256}\n"));
    bytes(lines.collect::<String>().as_bytes())
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
