//! A pass's batch and constants as the kernels read them.

use crate::backend::cuda::abi::{self, Hyper, Item};
use crate::backend::cuda::plan::{Loss, Recipe, Rule, StagingLayout};
use crate::backend::{DropPath, Objective, Step};
use crate::config::Reduction;
use crate::data::{Batch, Blend, Erase, Fill, Mix, Rect};
use crate::error::{Error, Result};
use crate::optim;
use crate::optim::lamb::Lamb;
use crate::optim::lars::Lars;
use crate::optim::sgd::Sgd;

/// Refuses what a step or batch asks for and the recipe, for which the plans are made, has not.
pub(super) fn supported(recipe: &Recipe, batch: &Batch, step: &Step) -> Result<()> {
    let rule = match step.rule {
        optim::Rule::Sgd(_) => Rule::Sgd,
        optim::Rule::Lamb(_) => Rule::Lamb,
        optim::Rule::Lars(_) => Rule::Lars,
    };
    let loss = match step.loss.objective {
        Objective::SoftmaxCrossEntropy => Loss::SoftmaxCrossEntropy,
        Objective::BinaryCrossEntropy { .. } => Loss::BinaryCrossEntropy,
    };
    let has = [
        step.ema_decay.is_none() || recipe.averages,
        step.clip_norm == 0.0 || recipe.needs_norm(),
        step.drop_path == DropPath::OFF || recipe.drop_path,
        batch.erased.is_empty() || recipe.erase,
    ];
    if rule != recipe.rule || loss != recipe.loss || has.contains(&false) {
        let erased = batch.erased.len();
        return Err(Error::failed(format!(
            "a step of {step:?} with {erased} images to erase, for a network opened for {recipe:?}; this is a bug in engine"
        )));
    }
    Ok(())
}

pub(super) fn hyper(batch: &Batch, step: &Step) -> Hyper {
    let images = batch.labels.len();
    let rule = match step.rule {
        optim::Rule::Sgd(Sgd { momentum, nesterov, .. }) => {
            Hyper { momentum, nesterov: u32::from(nesterov), ..Hyper::default() }
        }
        optim::Rule::Lamb(Lamb { beta1, beta2, epsilon, .. }) => {
            Hyper { beta1, beta2, epsilon, ..Hyper::default() }
        }
        optim::Rule::Lars(Lars { momentum, nesterov, trust, epsilon, .. }) => {
            Hyper { momentum, nesterov: u32::from(nesterov), trust, epsilon, ..Hyper::default() }
        }
    };
    let (threshold, sum_classes) = match step.loss.objective {
        Objective::SoftmaxCrossEntropy => (0.0, false),
        Objective::BinaryCrossEntropy { threshold, reduction } => {
            (threshold.unwrap_or(0.0), reduction == Reduction::Sum)
        }
    };
    Hyper {
        lr: step.rule.lr(),
        weight_decay: step.rule.weight_decay(),
        label_smoothing: step.loss.label_smoothing,
        gradient_scale: 1.0 / (images * step.passes()) as f32,
        images: images as u32,
        first: u32::from(step.index == 0),
        // An average that is all of itself stays to the bit.
        ema_decay: step.ema_decay.unwrap_or(1.0),
        max_norm: step.clip_norm,
        threshold,
        sum_classes: u32::from(sum_classes),
        ..rule
    }
}

/// How image `index` enters the batch.
pub fn item(batch: &Batch, index: usize) -> Item {
    let mut item = Item { label: batch.labels[index], lambda: 1.0, ..Item::default() };
    if let Some(&Mix { partner, lambda, region }) = batch.mixes.get(index) {
        (item.partner, item.lambda) = (partner, lambda);
        item.mix = match (region, batch.blend) {
            (Some(_), _) => abi::CUTMIX,
            (None, Blend::Values) => abi::MIXUP,
            (None, Blend::Bytes) => abi::MIXUP_BYTES,
        };
        if let Some(rect) = region {
            [item.x0, item.y0, item.x1, item.y1] = edges(rect);
        }
    }
    if let Some(Some(Erase { rect, fill })) = batch.erased.get(index) {
        [item.ex0, item.ey0, item.ex1, item.ey1] = edges(*rect);
        (item.erase, item.fill) = match *fill {
            Fill::Colour(colour) => (abi::COLOUR, colour.map(f32::to_bits)),
            Fill::Noise(key) => (abi::NOISE, [key as u32, (key >> 32) as u32, 0]),
        };
        if batch.blend == Blend::Bytes {
            item.erase |= abi::ERASE_LAST;
        }
    }
    item
}

/// Left, top, right, bottom. Sides are at most `MAX_RESOLUTION`, below 2^16.
fn edges(rect: Rect) -> [u16; 4] {
    [rect.left, rect.top, rect.left + rect.width, rect.top + rect.height].map(|edge| edge as u16)
}

/// Images, items, constants, and what each image's branches are multiplied by.
pub(super) fn fill_slot(
    bytes: &mut [u8],
    staging: &StagingLayout,
    batch: &Batch,
    hyper: Hyper,
    drop: DropPath,
) {
    bytes[..batch.images.len()].copy_from_slice(&batch.images);
    let items = &mut bytes[staging.items_offset as usize..][..batch.labels.len() * size_of::<Item>()];
    for (index, bytes) in items.chunks_exact_mut(size_of::<Item>()).enumerate() {
        bytes.copy_from_slice(bytemuck::bytes_of(&item(batch, index)));
    }
    bytes[staging.hyper_offset as usize..][..size_of::<Hyper>()].copy_from_slice(bytemuck::bytes_of(&hyper));
    let (images, bytes) = (batch.labels.len(), &mut bytes[staging.factors_offset as usize..]);
    for (index, bytes) in bytes.chunks_exact_mut(4).take(staging.factors).enumerate() {
        let factor = drop.factor(index % images, index / images, staging.factors / images);
        bytes.copy_from_slice(&factor.to_le_bytes());
    }
}
