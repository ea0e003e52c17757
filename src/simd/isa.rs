//! Which instructions the kernels may use: detected once, or lowered by the user for comparison.

use std::sync::OnceLock;

/// Instruction sets that the kernels come in, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    Portable,
    /// aarch64, always there.
    Neon,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// A set that this machine was found to have. Nothing but this module makes one, so whoever holds an `Isa` may run the
/// set's instructions: the kernels' `unsafe` rests on that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Set);

impl Isa {
    /// Every machine has it.
    pub const PORTABLE: Self = Self(Set::Portable);

    pub fn set(self) -> Set {
        self.0
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            Set::Neon => "neon",
            Set::Avx2 => "avx2",
            Set::Avx512 => "avx512",
        }
    }

    /// Dot products of bfloat16 pairs (AVX512-BF16).
    pub fn has_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let has = self.0 == Set::Avx512 && std::is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        let has = false;
        has
    }

    /// Dot products of four bytes in 512 bits (AVX512-VNNI).
    pub fn has_vnni(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let has = self.0 == Set::Avx512 && std::is_x86_feature_detected!("avx512vnni");
        #[cfg(not(target_arch = "x86_64"))]
        let has = false;
        has
    }

    /// Everything that this machine can run, strongest first; always ends with `PORTABLE`.
    pub fn available() -> Vec<Self> {
        let mut found = vec![];
        #[cfg(target_arch = "x86_64")]
        {
            use std::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma");
            if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                found.push(Self(Set::Avx512));
            }
            if avx2 {
                found.push(Self(Set::Avx2));
            }
        }
        if cfg!(target_arch = "aarch64") {
            found.push(Self(Set::Neon));
        }
        found.push(Self::PORTABLE);
        found
    }

    /// The set in use: the strongest available, or the one that `ENGINE_ISA` names (an unknown or unavailable name
    /// falls back to the strongest; `engine bench train` prints what runs).
    pub fn current() -> Self {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let available = Self::available();
            let wanted = std::env::var("ENGINE_ISA").ok();
            let found = wanted.and_then(|name| available.iter().copied().find(|isa| isa.name() == name));
            found.unwrap_or(available[0])
        })
    }
}
