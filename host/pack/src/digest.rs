//! SHA-256 in the two notations of the format: bare hex, and prefixed `sha256:` + hex. Files are streamed.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// Bytes read at a time: large enough to keep the hash busy, small enough to stay in the cache.
const BLOCK: usize = 1 << 17;

/// SHA-256 of `bytes`, 64 lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    to_hex(&Sha256::digest(bytes))
}

/// `sha256:` and [`hex`].
pub fn prefixed(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

/// SHA-256 of a file as 64 lower-case hex digits, and its length in bytes; the file is never in memory as a whole.
pub fn hex_of_file(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).map_err(|source| Error::io("read", path, source))?;
    let mut hasher = Hasher::default();
    // One block per thread: of many small files, a new block for each would cost more than its hash.
    thread_local! {
        static SPARE: RefCell<Vec<u8>> = RefCell::new(vec![0; BLOCK]);
    }
    SPARE.with_borrow_mut(|block| {
        loop {
            let count = file
                .read(block)
                .map_err(|source| Error::io("read", path, source))?;
            if count == 0 {
                return Ok(());
            }
            hasher.update(&block[..count]);
        }
    })?;
    Ok(hasher.finish())
}

/// Whether `text` is 64 lower-case hex digits.
pub fn is_hex(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `text` is `sha256:` and 64 lower-case hex digits.
pub fn is_prefixed(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex)
}

/// A digest being computed piece by piece, together with the length.
#[derive(Default)]
pub(crate) struct Hasher {
    state: Sha256,
    length: u64,
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.length += bytes.len() as u64;
    }

    pub(crate) fn finish(self) -> (String, u64) {
        (to_hex(&self.state.finalize()), self.length)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_of_the_standard_example() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(b"abc"), expected);
        assert_eq!(prefixed(b"abc"), format!("sha256:{expected}"));
        assert!(is_hex(expected) && is_prefixed(&prefixed(b"abc")));
        assert!(
            !is_hex(&expected.to_uppercase()) && !is_hex(&expected[1..]) && !is_prefixed(expected)
        );
    }
}
