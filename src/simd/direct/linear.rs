//! The classifier: one row of weights a class, read once an image and so bound by memory; its features stay f32.

use super::Precision;
use crate::simd::dispatch::multiversion;
use crate::simd::isa::Isa;
use half::bf16;
use std::ops::Range;

/// Classes of a panel.
pub const LANES: usize = 16;

/// Weights as [panel][features][16 classes], zeros after the last class.
enum Panels {
    F32(Vec<[f32; LANES]>),
    Bf16(Vec<[bf16; LANES]>),
    I8(Vec<[i8; LANES]>),
}

/// y = scale (w x) + bias.
pub struct Linear {
    features: usize,
    panels: Panels,
    /// By class, zeros after the last.
    bias: Vec<f32>,
    scale: Vec<f32>,
}

/// Calls `set` with (place in the panels, lane, index of the weight).
fn places(classes: usize, features: usize, mut set: impl FnMut(usize, usize, usize)) {
    for class in 0..classes {
        for feature in 0..features {
            set(class / LANES * features + feature, class % LANES, class * features + feature);
        }
    }
}

impl Linear {
    /// `weight` f32 [classes][features], rounded to `precision` (not to 8 bits: see `quantised`).
    pub fn new(precision: Precision, weight: &[f32], bias: &[f32]) -> Self {
        let (classes, features) = (bias.len(), weight.len() / bias.len());
        let len = classes.div_ceil(LANES) * features;
        let panels = if precision == Precision::Bf16 {
            let mut panels = vec![[bf16::ZERO; LANES]; len];
            places(classes, features, |at, lane, from| panels[at][lane] = bf16::from_f32(weight[from]));
            Panels::Bf16(panels)
        } else {
            let mut panels = vec![[0.0; LANES]; len];
            places(classes, features, |at, lane, from| panels[at][lane] = weight[from]);
            Panels::F32(panels)
        };
        Self { features, panels, bias: padded(bias), scale: padded(&vec![1.0; classes]) }
    }

    /// `weight` i8 [classes][features], `scale` by class.
    pub fn quantised(weight: &[i8], scale: &[f32], bias: &[f32]) -> Self {
        let (classes, features) = (bias.len(), weight.len() / bias.len());
        let mut panels = vec![[0; LANES]; classes.div_ceil(LANES) * features];
        places(classes, features, |at, lane, from| panels[at][lane] = weight[from]);
        Self { features, panels: Panels::I8(panels), bias: padded(bias), scale: padded(scale) }
    }

    /// Panels of 16 classes.
    pub fn panels(&self) -> usize {
        self.bias.len() / LANES
    }

    /// The row of `class` as it is multiplied, f32 [features], and its bias: y = row x + bias.
    pub fn row(&self, class: usize) -> (Vec<f32>, f32) {
        let (panel, lane) = (class / LANES, class % LANES);
        let range = panel * self.features..(panel + 1) * self.features;
        let scale = self.scale[class];
        let row = match &self.panels {
            Panels::F32(w) => w[range].iter().map(|w| scale * w[lane]).collect(),
            Panels::Bf16(w) => w[range].iter().map(|w| scale * w[lane].to_f32()).collect(),
            Panels::I8(w) => w[range].iter().map(|w| scale * f32::from(w[lane])).collect(),
        };
        (row, self.bias[class])
    }

    /// `x` f32 [features] -> `y` f32 [16 panels], the classes of `panels`.
    pub fn run(&self, isa: Isa, x: &[f32], panels: Range<usize>, y: &mut [f32]) {
        assert_eq!(x.len(), self.features, "features of the classifier");
        assert_eq!(y.len(), panels.len() * LANES, "classes of the classifier");
        for (panel, y) in panels.zip(y.chunks_exact_mut(LANES)) {
            let range = panel * self.features..(panel + 1) * self.features;
            let mut sums = [0.0; LANES];
            match &self.panels {
                Panels::F32(w) => dot_f32(isa, x, &w[range], &mut sums),
                Panels::Bf16(w) => dot_bf16(isa, x, &w[range], &mut sums),
                Panels::I8(w) => dot_i8(isa, x, &w[range], &mut sums),
            }
            for (lane, y) in y.iter_mut().enumerate() {
                let class = panel * LANES + lane;
                *y = sums[lane] * self.scale[class] + self.bias[class];
            }
        }
    }
}

fn padded(values: &[f32]) -> Vec<f32> {
    let mut padded = values.to_vec();
    padded.resize(values.len().next_multiple_of(LANES), 0.0);
    padded
}

macro_rules! dots {
    ($($name:ident $type:ty, $widen:expr);* $(;)?) => {$(
        multiversion! {
            fn $name(x: &[f32], w: &[[$type; LANES]], sums: &mut [f32; LANES]) {
                // Four chains hide the latency of the additions. Arrays apart: of one array of arrays the compiler
                // makes gathers.
                let (mut a, mut b, mut c, mut d) = ([0.0f32; LANES], [0.0; LANES], [0.0; LANES], [0.0; LANES]);
                let (groups, rest) = w.as_chunks::<4>();
                let (xs, x_rest) = x.as_chunks::<4>();
                for (w, x) in groups.iter().zip(xs) {
                    for lane in 0..LANES {
                        a[lane] += $widen(w[0][lane]) * x[0];
                    }
                    for lane in 0..LANES {
                        b[lane] += $widen(w[1][lane]) * x[1];
                    }
                    for lane in 0..LANES {
                        c[lane] += $widen(w[2][lane]) * x[2];
                    }
                    for lane in 0..LANES {
                        d[lane] += $widen(w[3][lane]) * x[3];
                    }
                }
                for (w, x) in rest.iter().zip(x_rest) {
                    for lane in 0..LANES {
                        a[lane] += $widen(w[lane]) * x;
                    }
                }
                for lane in 0..LANES {
                    sums[lane] = (a[lane] + b[lane]) + (c[lane] + d[lane]);
                }
            }
        }
    )*};
}

dots! {
    dot_f32 f32, |w: f32| w;
    dot_bf16 bf16, |w: bf16| f32::from_bits(u32::from(w.to_bits()) << 16);
    dot_i8 i8, f32::from;
}
