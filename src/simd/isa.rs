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
pub struct Isa {
    set: Set,
    /// With the set's dot products of four bytes: AVX512-VNNI, AVX-VNNI, NEON's DotProd.
    dots: bool,
}

impl Isa {
    /// Every machine has it.
    pub const PORTABLE: Self = Self { set: Set::Portable, dots: false };

    pub fn set(self) -> Set {
        self.set
    }

    /// AVX-512 goes with or without its dot products of bytes, as the machine does; the others have a name for each, for
    /// these multiply bytes on machines that the plain sets run on too.
    pub fn name(self) -> &'static str {
        match (self.set, self.dots) {
            (Set::Portable, _) => "portable",
            (Set::Neon, false) => "neon",
            (Set::Neon, true) => "dotprod",
            (Set::Avx2, false) => "avx2",
            (Set::Avx2, true) => "avxvnni",
            (Set::Avx512, _) => "avx512",
        }
    }

    /// By its name; `auto` is [`Self::current`]. The error says what this machine has.
    pub fn named(name: &str) -> Result<Self, String> {
        if name == "auto" {
            return Ok(Self::current());
        }
        let available = Self::available();
        available.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<&str> = available.iter().map(|isa| isa.name()).collect();
            if ["avx512", "avxvnni", "avx2", "dotprod", "neon"].contains(&name) {
                return format!("this machine has no {name}; it has {}", names.join(", "));
            }
            format!(
                "expected auto, avx512, avxvnni, avx2, dotprod, neon or portable; this machine has {}",
                names.join(", ")
            )
        })
    }

    /// Dot products of bfloat16 pairs (AVX512-BF16).
    pub fn has_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let has = self.set == Set::Avx512 && std::is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        let has = false;
        has
    }

    /// Dot products of four bytes, in the set's own vectors: AVX512-VNNI, AVX-VNNI, NEON's DotProd.
    pub fn has_dots(self) -> bool {
        self.dots
    }

    /// Everything that this machine can run, strongest first; always ends with `PORTABLE`.
    pub fn available() -> Vec<Self> {
        let mut found = vec![];
        #[cfg(target_arch = "x86_64")]
        {
            use std::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma");
            if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                found.push(Self { set: Set::Avx512, dots: has!("avx512vnni") });
            }
            if avx2 && has!("avxvnni") {
                found.push(Self { set: Set::Avx2, dots: true });
            }
            if avx2 {
                found.push(Self { set: Set::Avx2, dots: false });
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                found.push(Self { set: Set::Neon, dots: true });
            }
            found.push(Self { set: Set::Neon, dots: false });
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
