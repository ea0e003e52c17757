//! The register tile of a convolution, written once over [`Dot`]; each instruction set stamps out its functions with
//! `kernels!`.
//!
//! A tile of `MR` output pixels by `NV` vectors of output channels keeps `MR NV` vectors of sums. Each step loads `NV`
//! vectors of weights and spreads 4 bytes of each pixel against them. Steps run along filter rows, whose taps and
//! channels are contiguous in NHWC.

use super::Precision;
use crate::error::{Error, Result};
use crate::simd::isa::{Isa, Set};

/// What is added before the ReLU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    None,
    /// A map of the activations' own format.
    Same,
    /// A map of f32 in the order of the panel's lanes; of int8, in real units.
    F32,
}

/// `lines` rows of `tiles` tiles each, against one panel of weights. Distances in bytes.
pub struct Strip {
    /// The first tap of the first pixel.
    pub x: *const u8,
    pub x_pixel: usize,
    pub x_line: usize,
    /// Between filter rows.
    pub x_tap_row: usize,
    /// Filter rows.
    pub rows: usize,
    /// Units of 4 bytes in a filter row: a multiple of [`Kernels::units`].
    pub run: usize,
    /// [rows][run][vectors][lanes] units.
    pub w: *const u8,
    /// [vectors][lanes] f32.
    pub bias: *const f32,
    /// [vectors][lanes] f32, of int8 alone.
    pub scale: *const f32,
    /// [vectors][lanes] i32, of int8 where sums start from something ([`Kernels::offset`]).
    pub starts: *const i32,
    pub y: *mut u8,
    pub y_pixel: usize,
    pub y_line: usize,
    pub residual: Residual,
    pub r: *const u8,
    pub r_pixel: usize,
    pub r_line: usize,
    /// What a residual of int8 is multiplied with.
    pub r_scale: f32,
    /// Results are f32 in the order of the panel's lanes, not of the activations' format.
    pub is_f32: bool,
    pub relu: bool,
    pub lines: usize,
    pub tiles: usize,
}

/// # Safety
/// The processor has the set that the function is compiled for. For every pixel that the strip names: `rows` runs of
/// `4 run` bytes at `x`, readable; `NV` vectors of results at `y`, writable by this thread alone, and of the residual
/// at `r`, readable; `rows run` steps of weights at `w`; `NV` vectors at `bias`, in int8 at `scale`, and at `starts` where
/// the kernels have an offset.
pub type StripFn = unsafe fn(&Strip);

/// Panels of one width.
pub struct Width {
    /// Vectors of output channels.
    pub vectors: usize,
    /// By pixels of a tile, less one.
    pub strips: &'static [StripFn],
    /// (vector, lane) -> output channel of the panel: the order in which results are packed without moving between lanes.
    pub channel: fn(usize, usize) -> usize,
}

/// What one instruction set has for one arithmetic.
pub struct Kernels {
    /// Of activations.
    pub format: super::map::Format,
    /// Output channels of a vector.
    pub lanes: usize,
    /// Units of a filter row that are multiplied in one step: rows of weights are filled up to whole steps.
    pub units: usize,
    /// What the instructions multiply is an activation of int8 less this: sums start from as many times the weights' sum.
    pub offset: i32,
    /// Where sums of some 8-bit weights would saturate: the kernels for those ([`super::quads`]), which read the same
    /// maps and the same packed weights.
    pub widened: Option<&'static Kernels>,
    /// Widest first; the last one divides every number of channels.
    pub widths: &'static [Width],
}

/// Channels of every convolution are a multiple of this: the narrowest panel of any set.
pub const CHANNELS: usize = 16;

impl Kernels {
    /// An error where the set has no instruction for the arithmetic.
    pub fn of(precision: Precision, isa: Isa) -> Result<&'static Self> {
        match (isa.set(), precision) {
            #[cfg(target_arch = "x86_64")]
            (Set::Avx512, Precision::Fp32) => Ok(&super::avx512::FP32),
            #[cfg(target_arch = "x86_64")]
            (Set::Avx512, Precision::Bf16) if isa.has_bf16() => Ok(&super::avx512::BF16),
            #[cfg(target_arch = "x86_64")]
            (Set::Avx512, Precision::Int8) if isa.has_dots() => Ok(&super::avx512::INT8),
            #[cfg(target_arch = "x86_64")]
            (Set::Avx2, Precision::Fp32) => Ok(&super::avx2::FP32),
            #[cfg(target_arch = "x86_64")]
            (Set::Avx2, Precision::Int8) if isa.has_dots() => Ok(&super::avx2_int8::VNNI),
            #[cfg(target_arch = "x86_64")]
            (Set::Avx2 | Set::Avx512, Precision::Int8) => Ok(&super::avx2_int8::INT8),
            #[cfg(target_arch = "aarch64")]
            (Set::Neon, Precision::Fp32) => Ok(&super::neon::FP32),
            #[cfg(target_arch = "aarch64")]
            (Set::Neon, Precision::Int8) if isa.has_dots() => Ok(&super::neon_int8::INT8),
            (Set::Portable, Precision::Fp32) => Ok(&super::portable::FP32),
            (Set::Portable, Precision::Bf16) => Ok(&super::portable::BF16),
            (Set::Portable | Set::Neon, Precision::Int8) => Ok(&super::portable::INT8),
            _ => Err(Error::usage(format!(
                "precision bf16 needs a processor with AVX512-BF16, and the kernels run on {}: take fp32 or int8",
                isa.name()
            ))),
        }
    }
}

/// A vector of sums, one an output channel, and how 4-byte units are multiplied into it.
///
/// # Safety
/// The methods run inside functions that enable the set's features; pointers are the strip's.
pub(super) trait Dot: Copy {
    const LANES: usize;
    /// Of an activation.
    const BYTES: usize;
    /// Units that a step multiplies.
    const UNITS: usize = 1;
    /// See [`Kernels::offset`].
    const OFFSET: i32 = 0;
    /// A vector of weights for each unit of a step, `4 LANES` bytes each.
    type Weights: Copy;

    /// What the panel's sums from lane `first` on start from: of f32 its bias, of integers 0 or the strip's `starts`.
    unsafe fn start(strip: &Strip, first: usize) -> Self;
    /// The first unit's weights lie at `from`, each further one's `unit` bytes on.
    unsafe fn weights(from: *const u8, unit: usize) -> Self::Weights;
    /// Adds the products of one pixel's `4 UNITS` bytes at `x` with each vector of weights; these also lie at `w`.
    unsafe fn dots<const NV: usize>(
        sums: [Self; NV],
        x: *const u8,
        weights: [Self::Weights; NV],
        w: *const u8,
    ) -> [Self; NV];
    /// Brings the line at `at` near, to be read and to be written.
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8, _is_written: bool) {}
    /// Residual, ReLU and rounding of a pixel whose results lie at `y`, its residual at `r`.
    unsafe fn finish<const NV: usize>(sums: [Self; NV], strip: &Strip, r: *const u8, y: *mut u8);
}

// SAFETY: as `StripFn`.
#[inline(always)]
pub(super) unsafe fn strip<V: Dot, const MR: usize, const NV: usize>(strip: &Strip) {
    let step = 4 * V::LANES * NV;
    let tap_row = strip.x_tap_row;
    for line in 0..strip.lines {
        for tile in 0..strip.tiles {
            // SAFETY: the pixels of this tile lie within the strip.
            unsafe {
                let x = strip.x.add(line * strip.x_line + tile * MR * strip.x_pixel);
                let y = strip.y.add(line * strip.y_line + tile * MR * strip.y_pixel);
                let r = strip.r.wrapping_add(line * strip.r_line + tile * MR * strip.r_pixel);
                let mut sums = [[V::start(strip, 0); NV]; MR];
                for j in 1..NV {
                    let start = V::start(strip, j * V::LANES);
                    for sums in &mut sums {
                        sums[j] = start;
                    }
                }
                // Results and residual are needed in hundreds of cycles, and lie in L2 or beyond.
                for m in 0..MR {
                    for line in 0..(NV * V::LANES * V::BYTES).div_ceil(64) {
                        V::prefetch(y.add(m * strip.y_pixel + 64 * line), true);
                    }
                }
                if strip.residual != Residual::None {
                    for m in 0..MR {
                        for line in 0..(NV * V::LANES * V::BYTES).div_ceil(64) {
                            V::prefetch(r.wrapping_add(m * strip.r_pixel + 64 * line), false);
                        }
                    }
                }
                let mut w = strip.w;
                for row in 0..strip.rows {
                    let x = x.add(row * tap_row);
                    for unit in (0..strip.run).step_by(V::UNITS) {
                        let mut weights = [V::weights(w, step); NV];
                        for j in 1..NV {
                            weights[j] = V::weights(w.add(4 * V::LANES * j), step);
                        }
                        for m in 0..MR {
                            sums[m] = V::dots(sums[m], x.add(m * strip.x_pixel + 4 * unit), weights, w);
                        }
                        w = w.add(V::UNITS * step);
                    }
                }
                // Spelt out: where the compiler keeps this a loop, sums live in memory from the first step on.
                macro_rules! finish {
                    ($($m:literal)*) => {$(
                        if $m < MR {
                            let (r, y) = (r.wrapping_add($m * strip.r_pixel), y.add($m * strip.y_pixel));
                            V::finish(sums[$m % MR], strip, r, y);
                        }
                    )*};
                }
                const { assert!(MR <= 8, "pixels of a tile") };
                finish!(0 1 2 3 4 5 6 7);
            }
        }
    }
}

/// `NAME: format, lanes, [vectors (channel order) pixels: 1 2 3; ...]` as a `Kernels` of functions with `$features`;
/// `widened` where the sums can saturate.
macro_rules! kernels {
    (@option) => {
        None
    };
    (@option $kernels:path) => {
        Some(&$kernels)
    };
    ($(#[$meta:meta])* $name:ident, $features:tt, $vector:ty, $format:expr,
     [$($vectors:literal $channel:path: [$($pixels:literal)*]),*] $(, widened: $widened:path)?) => {
        $(#[$meta])*
        pub(super) static $name: $crate::simd::direct::kernel::Kernels = $crate::simd::direct::kernel::Kernels {
            format: $format,
            lanes: <$vector as $crate::simd::direct::kernel::Dot>::LANES,
            units: <$vector as $crate::simd::direct::kernel::Dot>::UNITS,
            offset: <$vector as $crate::simd::direct::kernel::Dot>::OFFSET,
            widened: $crate::simd::direct::kernel::kernels!(@option $($widened)?),
            widths: &[$($crate::simd::direct::kernel::Width {
                vectors: $vectors,
                channel: $channel,
                strips: &[$({
                    $crate::simd::direct::kernel::featured! { $features
                        unsafe fn entry(strip: &$crate::simd::direct::kernel::Strip) {
                            // SAFETY: the caller's promise is this function's own.
                            unsafe { $crate::simd::direct::kernel::strip::<$vector, $pixels, $vectors>(strip) }
                        }
                    }
                    entry
                }),*],
            }),*],
        };
    };
}

/// A function with target features, or without where the set is the baseline.
macro_rules! featured {
    (baseline $function:item) => {
        $function
    };
    ($features:literal $function:item) => {
        #[target_feature(enable = $features)]
        $function
    };
}

pub(super) use {featured, kernels};

/// Results lie as the channels do.
pub(super) fn in_order<const LANES: usize>(vector: usize, lane: usize) -> usize {
    vector * LANES + lane
}
