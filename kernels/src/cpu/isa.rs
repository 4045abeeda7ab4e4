//! Run-time choice of the instruction set.

use std::cell::Cell;
use std::sync::OnceLock;

/// The instruction sets that kernels exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, no intrinsics: any CPU.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
    /// AVX-512 with products of bf16 pairs (`vdpbf16ps`): Zen 4, Cooper Lake, Sapphire Rapids and later. Where they are slower than products
    /// of f32, as on Intel's, this is not chosen by itself.
    Avx512Bf16,
}

thread_local! {
    static OVERRIDE: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// The best instruction set that this CPU has; every feature that a kernel uses is tested.
fn detected() -> Isa {
    static DETECTED: OnceLock<Isa> = OnceLock::new();
    *DETECTED.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq") {
                return if has!("avx512bf16") { Isa::Avx512Bf16 } else { Isa::Avx512 };
            }
            if avx2 {
                return Isa::Avx2;
            }
        }
        Isa::Portable
    })
}

/// Whether products of bf16 pairs are faster than those of f32: torch's are 2.2 times as fast on an AMD EPYC, and half as fast on an Intel
/// Xeon (benches/README.md, "Sound").
#[cfg(target_arch = "x86_64")]
fn pairs_pay() -> bool {
    // Safe to call only since later versions of Rust than the oldest that this is for.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 processor has the instruction, and leaf 0 of it.
    let leaf = unsafe { std::arch::x86_64::__cpuid(0) };
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

/// The fastest instruction set that this CPU has.
fn fastest() -> Isa {
    #[cfg(target_arch = "x86_64")]
    if detected() == Isa::Avx512Bf16 {
        static PAIRS: OnceLock<bool> = OnceLock::new();
        return if *PAIRS.get_or_init(pairs_pay) { Isa::Avx512Bf16 } else { Isa::Avx512 };
    }
    detected()
}

/// The instruction set that kernels called from this thread use.
pub(crate) fn isa() -> Isa {
    OVERRIDE.get().unwrap_or_else(fastest)
}

/// Runs `f` with kernels limited to `isa` (or to what the CPU has, if that is less): for tests and benches.
pub fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Isa>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OVERRIDE.set(self.0);
        }
    }
    let _restore = Restore(OVERRIDE.replace(Some(isa.min(detected()))));
    f()
}
