//! Products of bf16 in the matrix unit of newer Xeons (Intel AMX): tiles of 16 rows of 64 bytes, of which
//! one instruction multiplies two and adds the products to a third.

/// Tokens, or outputs, of a tile.
pub const ROWS: usize = 16;
/// Inputs that a tile holds of each token or output.
pub const DEPTH: usize = 32;
/// Tokens, and outputs, that are multiplied together: two tiles of each make four tiles of products, so that
/// each tile that is loaded is used twice.
pub const STRIP: usize = 2 * ROWS;
/// bf16 numbers of a strip for [`DEPTH`] inputs: two tiles.
pub const STEP: usize = STRIP * DEPTH;
/// Numbers that are fetched ahead meanwhile: four cache lines, the most that costs no time.
pub const AHEAD: usize = 128;

/// Whether the CPU has the unit and the system lets this process use it.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub fn available() -> bool {
    use std::sync::LazyLock;
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| x86::has_amx() && x86::may_use_amx());
    *AVAILABLE
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub fn available() -> bool {
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use x86::Unit;

/// There is none.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub enum Unit {}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
impl Unit {
    pub fn new() -> Option<Self> {
        None
    }

    pub fn multiply(&self, _: &[u16], _: &[u16], _: *const u16, _: &mut [[f32; STRIP]; STRIP]) {
        match *self {}
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86 {
    use std::{
        arch::{
            asm,
            x86_64::{__cpuid, __cpuid_count, _xgetbv},
        },
        marker::PhantomData,
    };

    use super::{AHEAD, ROWS, STEP, STRIP};

    /// Bytes of a tile's row.
    const ROW: usize = 64;
    const TILE: usize = ROWS * ROW;

    /// What `ldtilecfg` reads (Intel SDM, volume 1, section 18.2): eight tiles of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    static CONFIGURATION: Configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    /// CPUID's leaf 7 (AMX-BF16, AMX-TILE), and the state that the system saves of a thread.
    pub fn has_amx() -> bool {
        const OSXSAVE: u32 = 1 << 27;
        const BF16: u32 = 1 << 22;
        const TILES: u32 = 1 << 24;
        const TILE_STATE: u64 = 0b11 << 17;
        #[target_feature(enable = "xsave")]
        fn saved_state() -> u64 {
            // SAFETY: the register is there where OSXSAVE is set, which the caller has made sure of.
            unsafe { _xgetbv(0) }
        }
        if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
            return false;
        }
        // SAFETY: OSXSAVE says that there is xsave.
        let saved = unsafe { saved_state() };
        __cpuid_count(7, 0).edx & (BF16 | TILES) == BF16 | TILES && saved & TILE_STATE == TILE_STATE
    }

    /// Linux gives the eight kilobytes of a thread's tiles only to processes that ask
    /// (Documentation/arch/x86/xstate.rst).
    pub fn may_use_amx() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: it takes two numbers and changes nothing but that permission.
        unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_REQ_XCOMP_PERM,
                XFEATURE_XTILEDATA,
            ) == 0
        }
    }

    /// The unit of the core that a thread runs on, as long as this lives.
    pub struct Unit {
        // The configuration is the thread's.
        not_send: PhantomData<*const ()>,
    }

    impl Unit {
        /// `None` if there is none.
        pub fn new() -> Option<Self> {
            if !super::available() {
                return None;
            }
            // SAFETY: the unit may be used; the configuration is one that it takes.
            unsafe {
                asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly));
            }
            Some(Self {
                not_send: PhantomData,
            })
        }

        /// The sums `[tokens, outputs]` of the products of a strip of tokens, `[steps, 2, ROWS tokens,
        /// DEPTH]`, and one of outputs, `[steps, 2, DEPTH / 2, ROWS outputs, 2]`. Meanwhile `[steps,
        /// AHEAD]` numbers from `ahead` on, which may be any address, are fetched into the second cache.
        pub fn multiply(
            &self,
            tokens: &[u16],
            outputs: &[u16],
            ahead: *const u16,
            sums: &mut [[f32; STRIP]; STRIP],
        ) {
            let steps = tokens.len() / STEP;
            assert!(tokens.len() == steps * STEP && outputs.len() == tokens.len());
            if steps == 0 {
                *sums = [[0.0; STRIP]; STRIP];
                return;
            }
            // SAFETY: the tiles are configured. A step reads two tiles of tokens and two of outputs, as
            // many as there are by the assertion; four tiles of sums are written. A prefetch of an address
            // that there is not does nothing.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "tileloadd tmm4, [{tokens} + {row} * 1]",
                    "tileloadd tmm5, [{outputs} + {row} * 1]",
                    "prefetcht1 [{ahead}]",
                    "prefetcht1 [{ahead} + 64]",
                    "tdpbf16ps tmm0, tmm4, tmm5",
                    "tileloadd tmm6, [{outputs} + {row} * 1 + {tile}]",
                    "prefetcht1 [{ahead} + 128]",
                    "prefetcht1 [{ahead} + 192]",
                    "add {ahead}, 2 * {ahead_of_step}",
                    "tdpbf16ps tmm1, tmm4, tmm6",
                    "tileloadd tmm7, [{tokens} + {row} * 1 + {tile}]",
                    "tdpbf16ps tmm2, tmm7, tmm5",
                    "tdpbf16ps tmm3, tmm7, tmm6",
                    "add {tokens}, 2 * {tile}",
                    "add {outputs}, 2 * {tile}",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{sums} + {sums_row} * 1], tmm0",
                    "tilestored [{sums} + {sums_row} * 1 + {row_bytes}], tmm1",
                    "tilestored [{sums} + {sums_row} * 1 + 2 * {tile}], tmm2",
                    "tilestored [{sums} + {sums_row} * 1 + 2 * {tile} + {row_bytes}], tmm3",
                    tile = const TILE,
                    row_bytes = const ROW,
                    ahead_of_step = const AHEAD,
                    row = in(reg) ROW,
                    sums_row = in(reg) 2 * ROW,
                    sums = in(reg) sums.as_mut_ptr(),
                    tokens = inout(reg) tokens.as_ptr() => _,
                    outputs = inout(reg) outputs.as_ptr() => _,
                    steps = inout(reg) steps => _,
                    ahead = inout(reg) ahead => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }

    impl Drop for Unit {
        fn drop(&mut self) {
            // SAFETY: a thread whose tiles are released costs the system less to switch.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}
