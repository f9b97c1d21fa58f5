//! The instructions: whether there are tiles, how they are set up, and the product of two times two of them.

use super::pack::Tile;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod native {
    use std::arch::{asm, x86_64::__cpuid_count};

    /// Whether processor and system have bf16 tiles; asks the system for them.
    pub fn found() -> bool {
        let vectors = std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("xsave");
        if !vectors {
            return false;
        }
        // Leaf 7 exists where there is AVX-512.
        let features = __cpuid_count(7, 0).edx;
        let (tiles, bf16) = (features >> 24 & 1, features >> 22 & 1);
        tiles == 1 && bf16 == 1 && enabled() && permitted()
    }

    /// Whether the system saves the tiles' state when it switches threads.
    fn enabled() -> bool {
        /// Configuration and data of tiles.
        const STATES: u32 = 0b11 << 17;
        let low: u32;
        // SAFETY: reads a register that exists where XSAVE is enabled, which is so where AVX-512 was detected.
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack));
        }
        low & STATES == STATES
    }

    /// Linux grants the state of tiles, which is large, to processes that ask for it.
    fn permitted() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const REQUEST_PERMISSION: i64 = 0x1023;
        const TILE_DATA: i64 = 18;
        let answer: i64;
        // SAFETY: a system call that touches no memory of ours.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => answer,
                in("rdi") REQUEST_PERMISSION,
                in("rsi") TILE_DATA,
                out("rcx") _,
                out("r11") _,
                options(nostack),
            );
        }
        answer == 0
    }

    /// Tiles of 16 rows of 64 bytes, on this thread until dropped.
    pub struct Tiles(());

    /// Layout of the configuration.
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    impl Tiles {
        /// Only where tiles were [`found`].
        pub fn configure() -> Self {
            static CONFIGURATION: Configuration = Configuration {
                palette: 1,
                start_row: 0,
                reserved: [0; 14],
                row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
                rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
            };
            // SAFETY: a valid configuration of 64 bytes; the caller has made sure of tiles.
            unsafe {
                asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly));
            }
            Self(())
        }
    }

    impl Drop for Tiles {
        fn drop(&mut self) {
            // SAFETY: whoever made this has tiles.
            unsafe { asm!("tilerelease", options(nomem, nostack)) };
        }
    }

    /// A product over steps: sums in four tiles, the instructions of one step, and the bytes that a step takes of each factor.
    macro_rules! product {
        ($(#[$doc:meta])* $name:ident, a: $a_bytes:literal, b: $b_bytes:literal, $($step:literal)*) => {
            $(#[$doc])*
            pub unsafe fn $name(
                a: *const super::Tile,
                b: *const super::Tile,
                steps: usize,
                to: *mut f32,
                stride: usize,
                add: bool,
            ) {
                // SAFETY: the caller's promise: all addresses are inside what the arguments describe.
                unsafe {
                    asm!(
                        "test {add}, {add}",
                        "jz 3f",
                        "tileloadd tmm0, [{upper} + {stride}]",
                        "tileloadd tmm1, [{upper} + {stride} + 64]",
                        "tileloadd tmm2, [{lower} + {stride}]",
                        "tileloadd tmm3, [{lower} + {stride} + 64]",
                        "jmp 2f",
                        "3:",
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "2:",
                        $($step,)*
                        concat!("add {a}, ", $a_bytes),
                        concat!("add {b}, ", $b_bytes),
                        "dec {steps}",
                        "jnz 2b",
                        "tilestored [{upper} + {stride}], tmm0",
                        "tilestored [{upper} + {stride} + 64], tmm1",
                        "tilestored [{lower} + {stride}], tmm2",
                        "tilestored [{lower} + {stride} + 64], tmm3",
                        add = in(reg) u64::from(add),
                        upper = in(reg) to,
                        lower = in(reg) to.add(16 * stride),
                        stride = in(reg) stride * 4,
                        row = in(reg) 64usize,
                        a = inout(reg) a => _,
                        b = inout(reg) b => _,
                        steps = inout(reg) steps => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
            }
        };
    }

    product! {
        /// 32 rows of 32 numbers at `to`, `stride` numbers apart: the product of the packed rows `a` and columns `b`, and, when
        /// `add`, what was there before.
        ///
        /// # Safety
        /// Tiles must be configured. `a` must address six tiles per step, `b` two, `steps` of them, at least one.
        multiply, a: 6144, b: 2048,
        "tileloadd tmm4, [{b} + {row}]"
        "tileloadd tmm5, [{b} + {row} + 1024]"
        "tileloadd tmm6, [{a} + {row}]"
        "tdpbf16ps tmm0, tmm6, tmm4"
        "tdpbf16ps tmm1, tmm6, tmm5"
        "tileloadd tmm7, [{a} + {row} + 1024]"
        "tdpbf16ps tmm2, tmm7, tmm4"
        "tdpbf16ps tmm3, tmm7, tmm5"
        "tileloadd tmm6, [{a} + {row} + 2048]"
        "tdpbf16ps tmm0, tmm6, tmm4"
        "tdpbf16ps tmm1, tmm6, tmm5"
        "tileloadd tmm7, [{a} + {row} + 3072]"
        "tdpbf16ps tmm2, tmm7, tmm4"
        "tdpbf16ps tmm3, tmm7, tmm5"
        "tileloadd tmm6, [{a} + {row} + 4096]"
        "tdpbf16ps tmm0, tmm6, tmm4"
        "tdpbf16ps tmm1, tmm6, tmm5"
        "tileloadd tmm7, [{a} + {row} + 5120]"
        "tdpbf16ps tmm2, tmm7, tmm4"
        "tdpbf16ps tmm3, tmm7, tmm5"
    }

    product! {
        /// As [`multiply`], of two split factors: six of the nine products of parts, those above the last place of a product.
        ///
        /// # Safety
        /// As for [`multiply`], but `b` must address six tiles per step too.
        multiply_split, a: 6144, b: 6144,
        // First parts of the rows with all parts of the columns.
        "tileloadd tmm4, [{b} + {row}]"
        "tileloadd tmm6, [{a} + {row}]"
        "tdpbf16ps tmm0, tmm6, tmm4"
        "tileloadd tmm5, [{b} + {row} + 1024]"
        "tdpbf16ps tmm1, tmm6, tmm5"
        "tileloadd tmm7, [{a} + {row} + 1024]"
        "tdpbf16ps tmm2, tmm7, tmm4"
        "tdpbf16ps tmm3, tmm7, tmm5"
        "tileloadd tmm4, [{b} + {row} + 2048]"
        "tdpbf16ps tmm0, tmm6, tmm4"
        "tileloadd tmm5, [{b} + {row} + 3072]"
        "tdpbf16ps tmm1, tmm6, tmm5"
        "tdpbf16ps tmm2, tmm7, tmm4"
        "tdpbf16ps tmm3, tmm7, tmm5"
        "tileloadd tmm4, [{b} + {row} + 4096]"
        "tdpbf16ps tmm0, tmm6, tmm4"
        "tileloadd tmm5, [{b} + {row} + 5120]"
        "tdpbf16ps tmm1, tmm6, tmm5"
        "tdpbf16ps tmm2, tmm7, tmm4"
        "tdpbf16ps tmm3, tmm7, tmm5"
        // Second parts with the first two, third parts with the first.
        "tileloadd tmm4, [{b} + {row} + 2048]"
        "tileloadd tmm6, [{a} + {row} + 2048]"
        "tdpbf16ps tmm0, tmm6, tmm4"
        "tileloadd tmm5, [{b} + {row} + 3072]"
        "tdpbf16ps tmm1, tmm6, tmm5"
        "tileloadd tmm7, [{a} + {row} + 3072]"
        "tdpbf16ps tmm2, tmm7, tmm4"
        "tdpbf16ps tmm3, tmm7, tmm5"
        "tileloadd tmm4, [{b} + {row}]"
        "tdpbf16ps tmm0, tmm6, tmm4"
        "tileloadd tmm5, [{b} + {row} + 1024]"
        "tdpbf16ps tmm1, tmm6, tmm5"
        "tdpbf16ps tmm2, tmm7, tmm4"
        "tdpbf16ps tmm3, tmm7, tmm5"
        "tileloadd tmm6, [{a} + {row} + 4096]"
        "tdpbf16ps tmm0, tmm6, tmm4"
        "tdpbf16ps tmm1, tmm6, tmm5"
        "tileloadd tmm7, [{a} + {row} + 5120]"
        "tdpbf16ps tmm2, tmm7, tmm4"
        "tdpbf16ps tmm3, tmm7, tmm5"
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod native {
    //! Nothing here has tiles.

    pub fn found() -> bool {
        false
    }

    pub struct Tiles(());

    impl Tiles {
        pub fn configure() -> Self {
            Self(())
        }
    }

    /// # Safety
    /// Never called: there are no tiles.
    pub unsafe fn multiply_split(
        _: *const super::Tile,
        _: *const super::Tile,
        _: usize,
        _: *mut f32,
        _: usize,
        _: bool,
    ) {
    }

    /// # Safety
    /// Never called: there are no tiles.
    pub unsafe fn multiply(
        _: *const super::Tile,
        _: *const super::Tile,
        _: usize,
        _: *mut f32,
        _: usize,
        _: bool,
    ) {
    }
}

pub(super) use native::{Tiles, found, multiply, multiply_split};
