//! Owned bytes with an alignment that vector code likes.
//!
//! Large buffers are mapped memory in huge pages, and the latest few that were dropped are used again: touching fresh pages
//! costs several times as much as writing a tensor into memory that is there already.

use bytes::Bytes;

/// One cache line; the unit of a small buffer.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes whose start is aligned to 64.
pub(crate) struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    Lines(Vec<Line>),
    #[cfg(feature = "cpu")]
    Map(large::Map),
}

impl Buffer {
    /// `len` zero bytes.
    pub(crate) fn zeroed(len: usize) -> Self {
        #[cfg(feature = "cpu")]
        if let Some(map) = large::Map::zeroed(len) {
            return Self {
                memory: Memory::Map(map),
                len,
            };
        }
        Self {
            memory: Memory::Lines(vec![Line([0; 64]); len.div_ceil(64)]),
            len,
        }
    }

    /// `len` bytes that the caller will overwrite; whatever a dropped buffer left in them until then.
    pub(crate) fn for_overwriting(len: usize) -> Self {
        #[cfg(feature = "cpu")]
        if let Some(map) = large::Map::used(len) {
            return Self {
                memory: Memory::Map(map),
                len,
            };
        }
        Self::zeroed(len)
    }

    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Shares the bytes from now on.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        match &self.memory {
            // SAFETY: `lines` owns at least `len` initialised bytes; `Line` is plain bytes without padding.
            Memory::Lines(lines) => unsafe {
                std::slice::from_raw_parts(lines.as_ptr().cast(), self.len)
            },
            #[cfg(feature = "cpu")]
            Memory::Map(map) => &map.bytes()[..self.len],
        }
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            // SAFETY: as above, and `self` is borrowed mutably.
            Memory::Lines(lines) => unsafe {
                std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), self.len)
            },
            #[cfg(feature = "cpu")]
            Memory::Map(map) => &mut map.bytes_mut()[..self.len],
        }
    }
}

/// Mapped memory in huge pages, and the stock of dropped maps.
#[cfg(feature = "cpu")]
mod large {
    use std::sync::{Mutex, PoisonError};

    use memmap2::MmapMut;

    /// Buffers from this size on are mapped.
    const LARGE: usize = 4 << 20;
    /// Maps are multiples of a huge page.
    const PAGE: usize = 2 << 20;
    /// Most bytes that lie in stock.
    const STOCK: usize = 256 << 20;

    /// Dropped maps, latest last.
    static MAPS: Mutex<Vec<MmapMut>> = Mutex::new(Vec::new());

    /// A map that goes into stock when it is dropped.
    pub(super) struct Map(Option<MmapMut>);

    impl Map {
        /// Zero bytes, where `len` is large and the system has the memory.
        pub(super) fn zeroed(len: usize) -> Option<Self> {
            if len < LARGE {
                return None;
            }
            let map = MmapMut::map_anon(len.checked_next_multiple_of(PAGE)?).ok()?;
            // Only advice: without huge pages everything works, slower.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            Some(Self(Some(map)))
        }

        /// A map from stock that fits without waste.
        pub(super) fn used(len: usize) -> Option<Self> {
            let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = |map: &MmapMut| {
                len >= LARGE && map.len() >= len && map.len() - len < PAGE.max(len / 8)
            };
            let at = maps.iter().rposition(fits)?;
            Some(Self(Some(maps.remove(at))))
        }

        pub(super) fn bytes(&self) -> &[u8] {
            self.0.as_deref().unwrap_or_default()
        }

        pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
            self.0.as_deref_mut().unwrap_or_default()
        }
    }

    impl Drop for Map {
        fn drop(&mut self) {
            let Some(map) = self.0.take().filter(|map| map.len() <= STOCK) else {
                return;
            };
            let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
            maps.push(map);
            let mut surplus = maps
                .iter()
                .map(|map| map.len())
                .sum::<usize>()
                .saturating_sub(STOCK);
            while surplus > 0 && !maps.is_empty() {
                surplus = surplus.saturating_sub(maps.remove(0).len());
            }
        }
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_aligned_zero_and_used_again() {
        for len in [0, 1, 63, 64, 4097, (9 << 20) + 5] {
            let mut buffer = Buffer::zeroed(len);
            assert_eq!(buffer.as_ref().len(), len);
            assert_eq!(buffer.as_ref().as_ptr() as usize % 64, 0);
            assert!(buffer.as_ref().iter().all(|&byte| byte == 0));
            buffer.as_mut().fill(7);
            drop(buffer);
            // A used buffer may hold anything, a zeroed one never does.
            assert_eq!(Buffer::for_overwriting(len).len(), len);
            assert!(Buffer::zeroed(len).as_ref().iter().all(|&byte| byte == 0));
        }
    }
}
