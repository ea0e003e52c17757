//! Pillow's operations on RGB pictures of u8, bit for bit: what torchvision's and timm's policies are made of.
//!
//! | file | gives |
//! |---|---|
//! | [`point`] | invert, posterize, solarize, autocontrast, equalize: each value by itself |
//! | [`enhance`] | brightness, contrast, colour, sharpness: a step away from a degenerate picture |
//! | [`hue`] | a turn in HSV |
//! | [`affine`] | shear, translate, rotate |
//!
//! `tests/golden/augment.json` has digests of what Pillow made of the same pictures. Loops over bytes are plain Rust,
//! compiled for each instruction set without fused multiply-add, so the pixels are the same on all of them.

pub mod affine;
pub mod enhance;
pub mod hue;
pub mod point;

use crate::simd::isa::Isa;
use affine::{Lines, Matrix, Sampling, Source};

/// One operation with its argument.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    AutoContrast,
    Equalize,
    Invert,
    /// Bits that stay, 0 to 8.
    Posterize(u32),
    /// The value, 0 to 256, from which on values are inverted.
    Solarize(f64),
    /// What is added to values below 128, 0 to 255.
    SolarizeAdd(u8),
    /// `ImageEnhance` with this factor; 1 leaves the picture as it is.
    Brightness(f32),
    Contrast(f32),
    Color(f32),
    Sharpness(f32),
    /// torchvision's `adjust_hue`, -0.5 to 0.5.
    Hue(f64),
    Affine {
        matrix: Matrix,
        sampling: Sampling,
        /// The colour of what lies outside the picture.
        fill: [u8; 3],
    },
}

/// Applies operations; keeps its buffers.
pub struct Ops {
    isa: Isa,
    lines: Lines,
    /// A second picture.
    other: Vec<u8>,
}

impl Default for Ops {
    fn default() -> Self {
        Self::new(Isa::current())
    }
}

impl Ops {
    pub fn new(isa: Isa) -> Self {
        Self { isa, lines: Lines::default(), other: Vec::new() }
    }

    /// `op` on `pixels` [height, width, 3], in place.
    pub fn apply(&mut self, op: &Op, height: usize, width: usize, pixels: &mut [u8]) {
        assert_eq!(pixels.len(), height * width * 3, "the pixels of {height} x {width}");
        let isa = self.isa;
        match *op {
            Op::Invert => point::invert(isa, pixels),
            Op::Posterize(bits) => point::keep(isa, point::posterize_mask(bits), pixels),
            // A whole number is below a threshold where it is below the next whole one.
            Op::Solarize(threshold) => {
                point::solarize(isa, threshold.clamp(0.0, 256.0).ceil() as u16, pixels)
            }
            Op::SolarizeAdd(add) => point::solarize_add(isa, add, pixels),
            Op::AutoContrast => by_histogram(point::autocontrast_table, pixels),
            Op::Equalize => by_histogram(point::equalize_table, pixels),
            Op::Brightness(factor) => enhance::from_level(isa, 0, factor, pixels),
            Op::Contrast(factor) => enhance::from_level(isa, enhance::contrast_level(pixels), factor, pixels),
            Op::Color(factor) => {
                let grey = self.other(pixels.len());
                enhance::grey(isa, pixels, grey);
                enhance::from_picture(isa, grey, factor, pixels);
            }
            Op::Sharpness(factor) => {
                let smooth = self.other(pixels.len());
                enhance::smooth(isa, width, pixels, smooth);
                enhance::from_picture(isa, smooth, factor, pixels);
            }
            Op::Hue(factor) => hue::turn(hue::shift(factor), pixels),
            Op::Affine { matrix, sampling, fill } => {
                let Self { lines, other, .. } = self;
                other.clear();
                other.extend_from_slice(pixels);
                let source = Source { pixels: bytemuck::cast_slice(other), height, width };
                let out: &mut [[u8; 3]] = bytemuck::cast_slice_mut(pixels);
                out.fill(fill);
                affine::transform(isa, source, &matrix, sampling, lines, out);
            }
        }
    }

    fn other(&mut self, len: usize) -> &mut [u8] {
        self.other.resize(len, 0);
        &mut self.other
    }
}

fn by_histogram(table: fn(&[u32; 256]) -> point::Table, pixels: &mut [u8]) {
    let tables = point::histograms(pixels).each_ref().map(table);
    point::look_up(&tables, pixels);
}
