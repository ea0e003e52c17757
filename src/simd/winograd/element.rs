//! The types that feature maps and weights come in.

use super::Tile;
use super::weights;
use crate::simd::isa::{Isa, Set};
use half::bf16;

/// f32, or bf16.
pub trait Element: sealed::Kernel {
    /// Elements of four bytes: those that one step of a product multiplies.
    const PAIR: usize = 4 / size_of::<Self>();

    fn round(value: f64) -> Self;

    /// Whether a tile's kernels exist for this type, in instructions that the machine has. In f32 all do.
    fn has(isa: Isa, tile: Tile) -> bool {
        Self::kernels(isa).is_some_and(|kernels| kernels.transforms.len() > tile as usize)
    }
}

impl Element for f32 {
    fn round(value: f64) -> Self {
        value as Self
    }
}

impl Element for bf16 {
    fn round(value: f64) -> Self {
        Self::from_f64(value)
    }
}

mod sealed {
    use super::super::Tile;
    use super::super::kernel::Kernels;
    use super::super::weights::{Block, Columns};
    use crate::simd::isa::Isa;

    pub trait Kernel: bytemuck::Pod + Send + Sync {
        #[allow(private_interfaces, reason = "nobody outside names this trait")]
        fn kernels(isa: Isa) -> Option<&'static Kernels<Self>>;

        /// The weights' transform of a tile that has kernels.
        #[allow(private_interfaces, reason = "nobody outside names this trait")]
        fn transform(isa: Isa, tile: Tile, block: &Block, to: &mut Columns<Self>);
    }
}

/// An `Isa` is proof that the machine has the instructions, which is what calling its kernels asks for.
impl sealed::Kernel for f32 {
    #[allow(private_interfaces, reason = "nobody outside names this trait")]
    fn kernels(isa: Isa) -> Option<&'static super::kernel::Kernels<Self>> {
        Some(match isa.set() {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => &super::avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => &super::avx2::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Set::Neon => &super::neon::KERNELS,
            _ => &super::portable::KERNELS,
        })
    }

    #[allow(private_interfaces, reason = "nobody outside names this trait")]
    fn transform(isa: Isa, tile: Tile, block: &weights::Block, to: &mut weights::Columns<Self>) {
        match tile {
            Tile::F2 => weights::f32_f2(isa, block, to),
            Tile::F4 => weights::f32_f4(isa, block, to),
        }
    }
}

impl sealed::Kernel for bf16 {
    #[allow(private_interfaces, reason = "nobody outside names this trait")]
    fn kernels(isa: Isa) -> Option<&'static super::kernel::Kernels<Self>> {
        match isa.set() {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 if isa.has_bf16() => Some(&super::avx512_bf16::KERNELS),
            _ => None,
        }
    }

    #[allow(private_interfaces, reason = "nobody outside names this trait")]
    fn transform(isa: Isa, tile: Tile, block: &weights::Block, to: &mut weights::Columns<Self>) {
        match tile {
            Tile::F2 => weights::bf16_f2(isa, block, to),
            Tile::F4 => unreachable!("bf16 has no kernels of F(4x4)"),
        }
    }
}
