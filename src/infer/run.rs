//! A compiled program on images.

use super::Precision;
use super::algorithm::{Algorithm, LARGE_MAP};
use super::plan::Placed;
use super::program::{Program, Step, Work};
use crate::error::{Error, Result};
use crate::model::graph::TensorId;
use crate::model::units::ConvUnit;
use crate::simd::direct::conv::{Conv, Operands, Part};
use crate::simd::direct::linear::LANES;
use crate::simd::direct::map::{Format, View};
use crate::simd::direct::pools::{average_pool, max_pool};
use crate::simd::winograd::{self, Element, Images, ImagesMut, Scratch, Winograd};
use crate::tensor::HostTensor;
use half::bf16;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Blocks of rows that a large map is divided into: few enough that weights are read seldom, many enough that a thread
/// which is held up holds a small part, and a number that 2 and 7 divide, as ResNet's maps at 224 pixels.
const ROW_BLOCKS: usize = 14;

/// What a layer of the last run took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerTime {
    /// The tensor that it made.
    pub name: String,
    /// "direct", "pool", ...
    pub algorithm: &'static str,
    /// Multiply-adds of all the run's images.
    pub macs: usize,
    pub nanoseconds: u64,
}

/// Raw access to features or logits for the tasks of one step.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: tasks write disjoint parts; see `Program::step`.
unsafe impl Sync for Shared {}

impl Shared {
    fn at(self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }
}

impl Program {
    /// `images` u8 RGB [n][resolution][resolution][3], n at most the compiled batch -> logits f32 [n][classes].
    pub fn run(&mut self, images: &[u8]) -> Result<&[f32]> {
        let side = self.graph.resolution;
        let pixels = side * side * 3;
        let n = images.len() / pixels;
        if n == 0 || n > self.batch || !images.len().is_multiple_of(pixels) {
            return Err(Error::usage(format!(
                "{} bytes of pixels were given; {side} x {side} RGB images take {pixels} each, and the program 1 to {} images",
                images.len(),
                self.batch
            )));
        }
        self.images = n;
        let start = Instant::now();
        self.load(images, n);
        self.nanoseconds[0] = nanoseconds(start);
        for index in 0..self.chains.len() {
            let chain = self.chains[index].clone();
            let start = Instant::now();
            if chain.len() == 1 {
                self.step(chain.start, n);
                self.nanoseconds[chain.end] = nanoseconds(start);
            } else {
                let spent = self.chain(chain.clone(), n);
                // The time that passed, in the proportion of what the tasks spent in each step.
                let share = nanoseconds(start) as f64 / spent.iter().sum::<u64>().max(1) as f64;
                for (step, spent) in chain.zip(spent) {
                    self.nanoseconds[step + 1] = (share * spent as f64) as u64;
                }
            }
        }
        let classes = self.graph.tensors[self.graph.logits].c;
        let padded = classes.next_multiple_of(LANES);
        for image in 0..n {
            let from = &self.panels[image * padded..image * padded + classes];
            self.logits[image * classes..(image + 1) * classes].copy_from_slice(from);
        }
        Ok(&self.logits[..n * classes])
    }

    fn view(&self, tensor: usize) -> View {
        let placed = self.tensors[tensor].expect("a step's maps are planned");
        // SAFETY: the plan's offsets lie within the arena.
        View { map: placed.map, base: unsafe { self.arena.ptr().add(placed.offset) } }
    }

    fn load(&self, images: &[u8], n: usize) {
        let view = self.view(self.graph.input);
        let blocks = blocks(view.map.h, 32);
        let pixels = images.len() / n;
        self.pool.run(n * blocks.len(), &|task| {
            let (image, block) = (task / blocks.len(), task % blocks.len());
            let from = &images[image * pixels..(image + 1) * pixels];
            // SAFETY: tasks have rows of their own.
            unsafe { self.input.run(from, &view, image, blocks[block].clone()) };
        });
    }

    fn step(&mut self, index: usize, n: usize) {
        let (features, panels) = (Shared(self.features.as_mut_ptr()), Shared(self.panels.as_mut_ptr()));
        // The scratch of the one step, out of the way of those who read the program.
        let mut scratch = std::mem::take(&mut self.scratch);
        let this = &*self;
        let Step { work, .. } = &this.steps[index];
        match work {
            Work::Conv { conv, w, x, y, residual, .. } => {
                let operands = this.operands(*w, *x, *y, *residual);
                let parts = parts(conv, &operands.y, n);
                this.pool.run(parts.len(), &|task| {
                    // SAFETY: compiling checked the maps and chose kernels that the processor has; parts are disjoint,
                    // and the plan keeps `y` apart from what the step reads.
                    unsafe { conv.run(&operands, &parts[task]) };
                });
            }
            Work::Winograd { layer, w, unit } => this.winograd(layer, *w, unit, n, &mut scratch),
            Work::WinogradBf16 { layer, w, unit } => this.winograd(layer, *w, unit, n, &mut scratch),
            Work::MaxPool { x, y } => {
                let (x, y) = (this.view(*x), this.view(*y));
                let blocks = blocks(y.map.h, 8);
                this.pool.run(n * blocks.len(), &|task| {
                    let (image, rows) = (task / blocks.len(), blocks[task % blocks.len()].clone());
                    // SAFETY: tasks have rows of their own.
                    unsafe { max_pool(this.isa, &x, &y, image, rows) };
                });
            }
            Work::AvgPool { x, scale } => {
                let x = this.view(*x);
                this.pool.run(n, &|image| {
                    // SAFETY: `features` has a row of `c` for each image of the batch, each task its own.
                    unsafe {
                        let y = std::slice::from_raw_parts_mut(features.at(image * x.map.c), x.map.c);
                        average_pool(&x, image, *scale, y);
                    }
                });
            }
            Work::Linear(linear) => {
                let width = this.features.len() / this.batch;
                let blocks = blocks(linear.panels(), 4);
                this.pool.run(n * blocks.len(), &|task| {
                    let (block, image) = (task / n, task % n);
                    let range = blocks[block].clone();
                    let x = &this.features[image * width..(image + 1) * width];
                    // SAFETY: `panels` has a row of all classes for each image, and tasks have classes of their own.
                    let y = unsafe {
                        let first = image * linear.panels() + range.start;
                        std::slice::from_raw_parts_mut(panels.at(first * LANES), range.len() * LANES)
                    };
                    linear.run(this.isa, x, range, y);
                });
            }
        }
        self.scratch = scratch;
    }

    fn operands(&self, w: usize, x: usize, y: usize, residual: Option<usize>) -> Operands {
        // SAFETY: the layer's place in the packed weights.
        let w = unsafe { self.weights.ptr().add(w) };
        Operands { x: self.view(x), y: self.view(y), residual: residual.map(|r| self.view(r)), w }
    }

    /// Takes blocks of rows through several steps; what each step took of all threads' time.
    fn chain(&self, chain: Range<usize>, n: usize) -> Vec<u64> {
        let steps = &self.steps[chain];
        let h = match steps[0].work {
            Work::Conv { y, .. } | Work::MaxPool { y, .. } => self.view(y).map.h,
            _ => unreachable!("chains start with a convolution or a max-pool"),
        };
        let blocks = blocks(h, h.div_ceil(ROW_BLOCKS));
        let spent: Vec<AtomicU64> = steps.iter().map(|_| AtomicU64::new(0)).collect();
        self.pool.run(n * blocks.len(), &|task| {
            let (image, rows) = (task / blocks.len(), &blocks[task % blocks.len()]);
            for (step, spent) in steps.iter().zip(&spent) {
                let start = Instant::now();
                match &step.work {
                    Work::Conv { conv, w, x, y, residual } => {
                        let part = Part { image, rows: rows.clone(), panels: 0..conv.packed.panels.len() };
                        // SAFETY: as in `step`; what the chain itself makes is read in the rows of this task alone.
                        unsafe { conv.run(&self.operands(*w, *x, *y, *residual), &part) };
                    }
                    Work::MaxPool { x, y } => {
                        // SAFETY: tasks have rows of their own.
                        unsafe { max_pool(self.isa, &self.view(*x), &self.view(*y), image, rows.clone()) };
                    }
                    _ => unreachable!(
                        "chains are made of direct convolutions after a convolution or a max-pool"
                    ),
                }
                spent.fetch_add(nanoseconds(start), Ordering::Relaxed);
            }
        });
        spent.into_iter().map(AtomicU64::into_inner).collect()
    }

    fn winograd<E: Element>(
        &self,
        layer: &Winograd<E>,
        w: usize,
        unit: &ConvUnit,
        n: usize,
        scratch: &mut Scratch,
    ) {
        let (x, y) = (self.view(unit.x), self.view(unit.y));
        for image in 0..n {
            // SAFETY: rows of `y` that this thread alone writes before the step's tasks start.
            unsafe { y.clear_border(image, 0..y.map.h) };
        }
        // SAFETY: whole tensors of the arena on cache lines, of the precision's elements, which have no invalid bits; the
        // plan keeps `y` apart from what the step reads, and the layer's packed weights were written when the program
        // was compiled.
        unsafe {
            let elements = |view: &View| view.map.bytes() / size_of::<E>();
            let read = |view: View| Images {
                data: std::slice::from_raw_parts(view.base.cast::<E>(), elements(&view)),
                layout: layout(&view),
            };
            let operands = winograd::Operands {
                batch: n,
                weights: std::slice::from_raw_parts(self.weights.ptr().add(w).cast(), layer.packed_len()),
                x: read(x),
                residual: unit.residual.map(|r| read(self.view(r))),
                relu: unit.relu,
                y: ImagesMut {
                    data: std::slice::from_raw_parts_mut(y.base.cast::<E>(), elements(&y)),
                    layout: layout(&y),
                },
            };
            layer.run(&self.pool, scratch, operands);
        }
    }

    /// What the last run took, layer by layer.
    pub fn profile(&self) -> Vec<LayerTime> {
        let layer = |name: &str, algorithm, macs, nanoseconds| LayerTime {
            name: name.to_owned(),
            algorithm,
            macs,
            nanoseconds,
        };
        let mut layers = vec![layer("input", "input", 0, self.nanoseconds[0])];
        for (step, &nanoseconds) in self.steps.iter().zip(&self.nanoseconds[1..]) {
            let algorithm = match &step.work {
                Work::Conv { .. } => Algorithm::Direct.name(),
                Work::Winograd { layer, .. } => Algorithm::Winograd(layer.tile()).name(),
                Work::WinogradBf16 { layer, .. } => Algorithm::Winograd(layer.tile()).name(),
                Work::MaxPool { .. } | Work::AvgPool { .. } => "pool",
                Work::Linear(_) => "linear",
            };
            layers.push(layer(&step.name, algorithm, step.macs * self.images, nanoseconds));
        }
        layers
    }

    /// A tensor of the last run by the graph's name, f32 [n,h,w,c] in real units (the input of int8 in bytes). Fails for
    /// names that were not kept, and for those that fusion leaves unmade.
    pub fn tensor(&self, name: &str) -> Result<HostTensor> {
        let n = self.images;
        let Some(tensor) = self.graph.tensors.iter().position(|tensor| tensor.name == name) else {
            return Err(Error::usage(format!("{} has no tensor {name}", self.graph.spec.name)));
        };
        let info = &self.graph.tensors[tensor];
        let shape = vec![n, info.h, info.w, info.c];
        if tensor == self.graph.logits {
            return HostTensor::new(name, shape, self.logits[..n * info.c].to_vec());
        }
        let Some(placed) = self.tensors[tensor] else {
            if self.steps.iter().any(|step| step.name == name) {
                return HostTensor::new(name, shape, self.features[..n * info.c].to_vec());
            }
            return Err(Error::usage(format!(
                "the program makes no {name}: batch norm, sum and ReLU are fused into the convolution before them; \
                 ask for the output of the block's ReLU or downsample.1"
            )));
        };
        if !self.keep.holds(name) {
            return Err(Error::usage(format!("{name} was not kept; compile with its name in Options::keep")));
        }
        let mut data = Vec::with_capacity(n * info.elements());
        (0..n).for_each(|image| self.read(tensor, placed, image, &mut data));
        if placed.map.format == Format::F32InLanes {
            self.reorder(tensor, &mut data);
        }
        HostTensor::new(name, shape, data)
    }

    /// Appends what the arena holds of an image's `tensor`, f32 [h,w,c] in real units.
    pub(super) fn read(&self, tensor: TensorId, placed: Placed, image: usize, data: &mut Vec<f32>) {
        let map = placed.map;
        let scale = self.scales[tensor];
        for y in 0..map.h {
            let at = placed.offset + map.at(image, y, 0);
            let len = map.w * map.pixel();
            // SAFETY: a row of the map within the arena, which nobody writes while `self` is borrowed.
            let row = unsafe { std::slice::from_raw_parts(self.arena.ptr().add(at), len) };
            data.extend(row.chunks_exact(map.format.bytes()).map(|bytes| scale * real(map.format, bytes)));
        }
    }

    /// From the order of lanes to that of channels.
    fn reorder(&self, tensor: usize, data: &mut [f32]) {
        for step in &self.steps {
            let Work::Conv { conv, y, .. } = &step.work else { continue };
            if *y == tensor {
                let order = conv.packed.channels_in_order();
                for pixel in data.chunks_exact_mut(order.len()) {
                    let lanes = pixel.to_vec();
                    for (channel, value) in order.iter().zip(lanes) {
                        pixel[*channel] = value;
                    }
                }
            }
        }
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Of activations, and of packed convolution weights.
    pub fn memory_bytes(&self) -> (usize, usize) {
        (self.arena.len(), self.weights.len())
    }
}

/// Where a map's pixels lie within its tensor.
fn layout(view: &View) -> winograd::Layout {
    let map = &view.map;
    let size = map.format.bytes();
    winograd::Layout { first: map.at(0, 0, 0) / size, row: map.row() / size, image: map.image() / size }
}

fn real(format: Format, bytes: &[u8]) -> f32 {
    match (format, bytes) {
        (Format::F32 | Format::F32InLanes, &[a, b, c, d]) => f32::from_ne_bytes([a, b, c, d]),
        (Format::Bf16, &[a, b]) => bf16::from_ne_bytes([a, b]).to_f32(),
        (Format::U8In16, &[a, b]) => f32::from(u16::from_ne_bytes([a, b])),
        (Format::U8, &[a]) => f32::from(a),
        _ => unreachable!("chunks have the format's size"),
    }
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// `0..len` in blocks of `block`.
fn blocks(len: usize, block: usize) -> Vec<Range<usize>> {
    (0..len).step_by(block).map(|from| from..(from + block).min(len)).collect()
}

/// How a convolution is divided among tasks: rows where the map is large, panels of channels where the weights are.
fn parts(conv: &Conv, y: &View, n: usize) -> Vec<Part> {
    let (h, panels) = (y.map.h, conv.packed.panels.len());
    let (rows, panel_block) = if h > LARGE_MAP { (h.div_ceil(ROW_BLOCKS), panels) } else { (h, 1) };
    let mut parts = vec![];
    for image in 0..n {
        for panels in blocks(panels, panel_block) {
            for rows in blocks(h, rows) {
                parts.push(Part { image, rows, panels: panels.clone() });
            }
        }
    }
    parts
}
