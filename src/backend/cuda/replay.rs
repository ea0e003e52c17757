//! Which layer a loss that is not finite comes from. The update of such a pass is skipped, so the machine still has the
//! weights that the pass read; its batch is run forward once more by a plan in which no two buffers share bytes
//! ([`Purpose::Replay`] with `keep`), and every output is looked at in the order in which it was made.

use super::machine::Machine;
use super::plan::region::Region;
use super::plan::{Plan, PlanOptions, Purpose};
use super::storage::Storage;
use crate::backend::fault::BadOutput;
use crate::error::Result;
use crate::tensor::first_non_finite;

/// Bytes that are copied from the machine at a time.
const PIECE: u64 = 16 << 20;

/// The plan that runs the forward pass of a training plan by itself and keeps what it makes. Its activations are those that
/// the training pass keeps for its way back, so that where the one fits the other does.
pub fn plan(training: &PlanOptions) -> Result<Plan> {
    Plan::new(&PlanOptions { purpose: Purpose::Replay, keep: true, ..training.clone() })
}

/// Runs the batch of a training slot, `staged` as the slot holds it; the first output that is not finite.
pub fn first_bad_output(machine: &mut dyn Machine, plan: Plan, staged: &[u8]) -> Result<Option<BadOutput>> {
    let (n, classes) = (plan.options.batch, plan.options.spec.classes);
    let prepared = machine.prepare(plan)?;
    let mut logits = vec![0.0; n * classes];
    machine.evaluate(prepared, &mut |slot: &mut [u8]| slot.copy_from_slice(staged), &mut logits)?;
    let plan = machine.plan(prepared);
    for buffer in &plan.buffers {
        // Others are indices and partial sums.
        let Some(info) = plan.graph.tensors.iter().find(|info| info.name == buffer.name) else { continue };
        let scan = scan(machine, plan.options.storage, buffer.region)?;
        if let Some(first) = scan.first {
            let Scan { count, of, .. } = scan;
            let (h, w) = (info.h, info.w);
            let (layer, c) = (info.name.clone(), of / (n * h * w));
            return Ok(Some(BadOutput { layer, count, of, first, h, w, c }));
        }
    }
    let layer = plan.graph.tensors[plan.graph.logits].name.clone();
    Ok(first_non_finite(&logits).map(|first| {
        let count = logits.iter().filter(|logit| !logit.is_finite()).count();
        BadOutput { layer, count, of: logits.len(), first, h: 1, w: 1, c: classes }
    }))
}

/// What a look at a tensor found.
struct Scan {
    first: Option<usize>,
    count: usize,
    /// Elements.
    of: usize,
}

fn scan(machine: &dyn Machine, storage: Storage, region: Region) -> Result<Scan> {
    let mut scan = Scan { first: None, count: 0, of: (region.bytes / storage.bytes()) as usize };
    let mut bytes = vec![0; PIECE.min(region.bytes) as usize];
    for from in (0..region.bytes).step_by(PIECE as usize) {
        let piece = Region { offset: region.offset + from, bytes: PIECE.min(region.bytes - from), ..region };
        let bytes = &mut bytes[..piece.bytes as usize];
        machine.read(piece, bytes)?;
        let (first, count) = non_finite(storage, bytes);
        scan.first = scan.first.or(first.map(|first| (from / storage.bytes()) as usize + first));
        scan.count += count;
    }
    Ok(scan)
}

/// The first element that is NaN or infinite, all bits of whose exponent are set, and how many are.
fn non_finite(storage: Storage, bytes: &[u8]) -> (Option<usize>, usize) {
    fn of<const N: usize>(bytes: &[u8], is_bad: impl Fn([u8; N]) -> bool) -> (Option<usize>, usize) {
        let elements = || bytes.as_chunks::<N>().0.iter().map(|&element| is_bad(element));
        match elements().filter(|&bad| bad).count() {
            0 => (None, 0),
            count => (elements().position(|bad| bad), count),
        }
    }
    let all_set = |bits: u16, exponent: u16| bits & exponent == exponent;
    match storage {
        Storage::F16 => of(bytes, |element| all_set(u16::from_le_bytes(element), 0x7c00)),
        Storage::Bf16 => of(bytes, |element| all_set(u16::from_le_bytes(element), 0x7f80)),
        Storage::F32 => of(bytes, |element| !f32::from_le_bytes(element).is_finite()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::network::to_stored;

    #[test]
    fn nan_and_infinity_are_found_in_every_type() {
        for storage in Storage::ALL {
            let largest = if storage == Storage::F16 { 65504.0 } else { 1e38 };
            let fine = to_stored(storage, &[0.0, -largest, 1e-40, largest]);
            assert_eq!(non_finite(storage, &fine), (None, 0), "{storage:?}");
            let bad = to_stored(storage, &[1.0, largest, f32::NEG_INFINITY, 0.0, f32::NAN]);
            assert_eq!(non_finite(storage, &bad), (Some(2), 2), "{storage:?}");
        }
    }
}
