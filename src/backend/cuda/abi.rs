//! What host and card exchange; the same structs stand in `kernels/abi.cuh`, which says what each field is.

use bytemuck::{Pod, Zeroable};

/// How one image enters a batch, and its targets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Item {
    pub label: u32,
    pub partner: u32,
    pub lambda: f32,
    pub mix: u32,
    pub flip: u32,
    pub x0: u16,
    pub y0: u16,
    pub x1: u16,
    pub y1: u16,
    pub ex0: u16,
    pub ey0: u16,
    pub ex1: u16,
    pub ey1: u16,
    pub erase: u32,
    pub fill: [u32; 3],
}

/// Kinds of [`Item::mix`].
pub const NO_MIX: u32 = 0;
pub const MIXUP: u32 = 1;
pub const CUTMIX: u32 = 2;
/// Mixup of bytes, to the nearest.
pub const MIXUP_BYTES: u32 = 3;

/// Kinds of [`Item::erase`].
pub const NO_ERASE: u32 = 0;
pub const COLOUR: u32 = 1;
pub const NOISE: u32 = 2;
/// Beside either: after images are mixed, not before.
pub const ERASE_LAST: u32 = 4;

/// Constants of one pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Hyper {
    pub lr: f32,
    pub momentum: f32,
    pub weight_decay: f32,
    pub label_smoothing: f32,
    pub gradient_scale: f32,
    pub nesterov: u32,
    pub images: u32,
    pub first: u32,
    pub ema_decay: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    pub max_norm: f32,
    pub trust: f32,
    pub threshold: f32,
    pub sum_classes: u32,
}

/// What steps hand to each other without the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct State {
    pub pass: u32,
    pub clean: u32,
    pub scale: f32,
    pub unscale: f32,
    pub skip: u32,
    pub bad: u32,
    pub halted: u32,
    pub updates: u32,
    pub skipped: u32,
    pub loss_bad: u32,
    pub reserved: [u32; 6],
}

/// What a pass tells the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Outcome {
    pub loss: f64,
    pub top1: u32,
    pub top5: u32,
    pub count: u32,
    pub scale: f32,
    pub bad: u32,
    pub flags: u32,
    pub pass: u32,
    pub reserved: [u32; 7],
}

/// Flags of an [`Outcome`].
pub const SKIPPED: u32 = 1;
pub const HALTED: u32 = 2;
pub const LOSS_NOT_FINITE: u32 = 4;

/// The loss of one image, and whether its label is the best, among the best five.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct RowScore {
    pub loss: f32,
    pub top1: u32,
    pub top5: u32,
}

/// A piece of one parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Chunk {
    pub first: u32,
    pub count: u32,
    pub parameter: u32,
    pub decays: u32,
}

/// The chunks of one parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ChunkRange {
    pub first: u32,
    pub count: u32,
}

// The other side asserts the same sizes.
const _: () = assert!(size_of::<Item>() == 52 && size_of::<Hyper>() == 64 && size_of::<State>() == 64);
const _: () = assert!(size_of::<Outcome>() == 64 && size_of::<RowScore>() == 12);
const _: () = assert!(size_of::<Chunk>() == 16 && size_of::<ChunkRange>() == 8);
