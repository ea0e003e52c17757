//! What the kernels that do a whole batch norm, statistics included, are compared with: memory in one order for all of them, and
//! the CPU backend.

use super::{Bytes, Oracle, SUMS, values};
use crate::compare::close;
use engine::backend::cpu::batch_norm::{self, Affine, BackwardApply, Epilogue, Gate, Statistics};
use engine::backend::cuda::storage::Storage;

/// The second operand of a block's sum.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Addend {
    Nothing,
    Plain,
    Normalised,
}

impl Addend {
    pub const ALL: [Self; 3] = [Self::Nothing, Self::Plain, Self::Normalised];
}

/// A layer with its values.
#[derive(Clone, Copy)]
pub struct Layer {
    pub storage: Storage,
    pub rows: usize,
    pub channels: usize,
}

/// A bit an element, 8 of a row's in a byte.
pub fn bits(values: &[f32]) -> Vec<u8> {
    let byte = |y: &[f32]| y.iter().enumerate().fold(0, |bits, (i, y)| bits | u8::from(*y > 0.0) << i);
    values.chunks(8).map(byte).collect()
}

/// Memory 0 to 14 of a forward pass: x, gamma, beta; mean, rstd, scale, variance; what the blocks share, two of it; z with its
/// mean, scale and beta; y and its mask.
pub struct Forward {
    layer: Layer,
    name: String,
    x: Vec<f32>,
    z: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    /// Mean, scale and beta of z.
    norm: [Vec<f32>; 3],
}

impl Forward {
    pub fn new(layer: Layer, name: String) -> Self {
        let Layer { storage, rows, channels } = layer;
        let of = |seed| values(seed, channels, 0.6, 0.3, Storage::F32);
        let elements = rows * channels;
        Self {
            layer,
            name,
            x: values(1, elements, 3.0, 2.0, storage),
            z: values(2, elements, 0.0, 1.0, storage),
            gamma: of(3),
            beta: of(4),
            norm: [5, 6, 7].map(of),
        }
    }

    pub fn memory(&self, shared: [Bytes; 2]) -> Vec<Bytes> {
        let Layer { storage, channels, .. } = self.layer;
        let mut memory =
            vec![Bytes::stored(storage, &self.x), Bytes::f32(&self.gamma), Bytes::f32(&self.beta)];
        memory.extend([(); 4].map(|()| Bytes::out(4 * channels)));
        memory.extend(shared);
        memory.push(Bytes::stored(storage, &self.z));
        memory.extend(self.norm.each_ref().map(|values| Bytes::f32(values)));
        let elements = self.x.len();
        memory.extend([Bytes::out(elements * storage.bytes() as usize), Bytes::out(elements / 8)]);
        memory
    }

    /// Compares all but the mask; gives y as it is stored.
    pub fn compare(&self, oracle: &Oracle, addend: Addend, memory: &[Bytes]) -> Vec<f32> {
        let Layer { storage, rows, channels } = self.layer;
        let name = &self.name;
        assert!(memory[8].get().iter().all(|&byte| byte == 0), "{name}: counters");
        let got = |index: usize| memory[index].values(Storage::F32);
        let want = batch_norm::statistics(oracle.cpu(), &self.x, channels);
        let unbias = rows as f64 / (rows as f64 - 1.0).max(1.0);
        let variance: Vec<f32> = want.var.iter().map(|var| (var * unbias) as f32).collect();
        let adding = (rows as f64).sqrt() * 2.0 * Storage::F32.roundoff();
        close(&format!("{name}: mean"), &got(3), &want.mean, 1e-6 + adding);
        close(&format!("{name}: rstd"), &got(4), &want.rstd, SUMS);
        close(&format!("{name}: scale"), &got(5), &want.scale(&self.gamma), SUMS);
        close(&format!("{name}: variance"), &got(6), &variance, SUMS);

        // With the kernel's own statistics, so that only the map itself is compared.
        let (mean, scale, residual) = (got(3), got(5), self.residual(addend));
        let affine = Affine { mean: &mean, scale: &scale, shift: &self.beta };
        let mut y = vec![0.0; self.x.len()];
        let epilogue = Epilogue { residual: residual.as_deref(), relu: true };
        batch_norm::apply(oracle.cpu(), affine, epilogue, &self.x, &mut y);
        let stored = memory[13].values(storage);
        close(&format!("{name}: y"), &stored, &y, 2.0 * storage.roundoff() + 4e-6);
        stored
    }

    fn residual(&self, addend: Addend) -> Option<Vec<f32>> {
        let [mean, scale, beta] = &self.norm;
        let normalised = |(e, z): (usize, &f32)| {
            let c = e % self.layer.channels;
            (z - mean[c]) * scale[c] + beta[c]
        };
        match addend {
            Addend::Nothing => None,
            Addend::Plain => Some(self.z.clone()),
            Addend::Normalised => Some(self.z.iter().enumerate().map(normalised).collect()),
        }
    }
}

/// Memory 0 to 14 of a way back: dy, x, mask; mean, scale, beta, rstd; dgamma, dbeta and the factors of dx, two of them; what the
/// blocks share, two of it; dx, and dz, which is dy behind the gate.
pub struct Backward {
    layer: Layer,
    name: String,
    x: Vec<f32>,
    dy: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    statistics: Statistics,
    /// What the batch norm left behind its ReLU.
    pub y: Vec<f32>,
}

impl Backward {
    pub fn new(oracle: &Oracle, layer: Layer, name: String) -> Self {
        let Layer { storage, rows, channels } = layer;
        let elements = rows * channels;
        let (x, dy) = (values(1, elements, 0.5, 1.0, storage), values(2, elements, 0.1, 1.0, storage));
        let [gamma, beta] = [3, 4].map(|seed| values(seed, channels, 0.6, 0.3, Storage::F32));
        let statistics = batch_norm::statistics(oracle.cpu(), &x, channels);
        let scale = statistics.scale(&gamma);
        let affine = Affine { mean: &statistics.mean, scale: &scale, shift: &beta };
        let mut y = vec![0.0; elements];
        batch_norm::apply(oracle.cpu(), affine, Epilogue { residual: None, relu: true }, &x, &mut y);
        Self { layer, name, x, dy, gamma, beta, statistics, y }
    }

    pub fn memory(&self, mask: &[u8], shared: [Bytes; 2]) -> Vec<Bytes> {
        let Layer { storage, channels, .. } = self.layer;
        let mut memory =
            vec![Bytes::stored(storage, &self.dy), Bytes::stored(storage, &self.x), Bytes::new(mask)];
        let (Statistics { mean, rstd, .. }, scale) = (&self.statistics, self.statistics.scale(&self.gamma));
        memory.extend([mean, &scale, &self.beta, rstd].map(|values| Bytes::f32(values)));
        memory.extend([(); 4].map(|()| Bytes::out(4 * channels)));
        memory.extend(shared);
        memory.extend([(); 2].map(|()| Bytes::out(self.x.len() * storage.bytes() as usize)));
        memory
    }

    /// `open`: no gate stands before it.
    pub fn compare(&self, oracle: &Oracle, open: bool, memory: &[Bytes]) {
        let (storage, name) = (self.layer.storage, &self.name);
        let mut gated = self.dy.clone();
        let gate = if open { Gate::Open } else { Gate::Output(&self.y) };
        let gradients =
            batch_norm::backward_reduce(oracle.cpu(), &self.statistics, &self.x, gate, &mut gated);
        let mut want = vec![0.0; self.x.len()];
        let apply = BackwardApply::new(&self.statistics, &self.gamma, &gradients);
        apply.run(oracle.cpu(), &self.x, &gated, &mut want);
        assert!(memory[12].get().iter().all(|&byte| byte == 0), "{name}: counters");
        close(&format!("{name}: dgamma"), &memory[7].values(Storage::F32), &gradients.gamma, SUMS);
        close(&format!("{name}: dbeta"), &memory[8].values(Storage::F32), &gradients.beta, SUMS);
        // Of three rows dx is what cancelling leaves.
        if self.layer.rows > 3 {
            close(
                &format!("{name}: dx"),
                &memory[13].values(storage),
                &want,
                2.0 * storage.roundoff() + SUMS,
            );
        }
        assert_eq!(memory[14].values(storage), gated, "{name}: dz");
    }
}
