//! What a pass begins with: the images, and what their branches are multiplied by.

use super::compare::{Allowed, UNIT, Want, rounding, to_f64};
use super::layers::{Layers, Sent};
use super::oracle::Bounded;
use crate::backend::STD;
use crate::backend::cpu::input::{mixed_bytes, normalise};
use crate::backend::cuda::machine::Machine;
use crate::data::{Batch, Blend, Erase, Fill};
use crate::error::Result;
use crate::model::units::{ConvUnit, Unit};
use crate::rng::nth;

/// A value of an image before it is mixed. A pixel and a mean of at most 1 are divided by std.
fn own(batch: &Batch, normalised: &[f32], image: usize, at: usize) -> Bounded {
    let (pixel, c, side) = (at / 3, at % 3, batch.resolution);
    let inside = |erase: &&Erase| {
        let (row, column, rect) = (pixel / side, pixel % side, erase.rect);
        (rect.top..rect.top + rect.height).contains(&row)
            && (rect.left..rect.left + rect.width).contains(&column)
    };
    match batch.erased.get(image).and_then(Option::as_ref).filter(inside).map(|erase| erase.fill) {
        None => {
            let value = f64::from(normalised[image * side * side * 3 + at]);
            Bounded { value, bound: 4.0 * UNIT * 2.0 / f64::from(STD[c]) }
        }
        Some(Fill::Colour(colour)) => Bounded { value: f64::from(colour[c]), bound: 0.0 },
        Some(Fill::Noise(key)) => noise(nth(key, at as u64)),
    }
}

/// A value of an image of the batch: its own and its partner's.
fn mixed(batch: &Batch, normalised: &[f32], image: usize, at: usize) -> Bounded {
    let (mix, pixel, side) = (batch.mix(image), at / 3, batch.resolution);
    let of_partner = mix.region.is_some_and(|rect| {
        (rect.top..rect.top + rect.height).contains(&(pixel / side))
            && (rect.left..rect.left + rect.width).contains(&(pixel % side))
    });
    let share = match mix.region {
        None => f64::from(mix.lambda),
        Some(_) => f64::from(u8::from(!of_partner)),
    };
    let a = own(batch, normalised, image, at);
    let b = own(batch, normalised, mix.partner as usize, at);
    let (a_part, b_part) = (share * a.value, (1.0 - share) * b.value);
    let roundings = 4.0 * UNIT * (a_part.abs() + b_part.abs());
    Bounded { value: a_part + b_part, bound: share * a.bound + (1.0 - share) * b.bound + roundings }
}

/// Box-Muller in f64, from the 48 bits that the rule takes. In f32 root and logarithm are a few units off, and the angle is
/// rounded twice, in units of a full turn.
fn noise(bits: u64) -> Bounded {
    const UNIT24: f64 = 1.0 / (1u32 << 24) as f64;
    let (u, v) = (((bits >> 40) + 1) as f64 * UNIT24, (bits >> 16 & 0xff_ffff) as f64 * UNIT24);
    let radius = (-2.0 * u.ln()).sqrt();
    Bounded { value: radius * (std::f64::consts::TAU * v).cos(), bound: 24.0 * UNIT * radius }
}

impl<M: Machine> Layers<'_, M> {
    /// u8 pixels to normalised values, erased and mixed, with zeros where the stem reads what is no pixel's.
    pub fn input(&mut self, batch: &Batch) -> Result<()> {
        if batch.blend == Blend::Bytes && !batch.mixes.is_empty() {
            // What is left to do then is done to each image by itself.
            let images = mixed_bytes(self.oracle.cpu(), batch);
            let (labels, erased) = (batch.labels.clone(), batch.erased.clone());
            let samples = batch.samples.clone();
            let resolution = batch.resolution;
            return self.input(&Batch { images, labels, samples, resolution, erased, ..Batch::default() });
        }
        let tensor = self.seen.plan.graph.input;
        let mut normalised = vec![0.0f32; batch.images.len()];
        normalise(self.oracle.cpu(), &batch.images, &mut normalised);
        let storage = self.seen.storage();
        let (mut values, mut allowed) = (vec![], vec![]);
        for (image, place) in (0..batch.labels.len()).flat_map(|i| self.places(batch).map(move |p| (i, p))) {
            let value =
                place.map_or(Bounded { value: 0.0, bound: 0.0 }, |at| mixed(batch, &normalised, image, at));
            values.push(value.value);
            allowed.push(rounding(storage, value.value) + value.bound);
        }
        let got = to_f64(&self.seen.activation(tensor)?);
        let want = Want { values, allowed: Allowed::Each(allowed) };
        self.note("input", &["input".to_owned()], "images", &got, &want);
        Ok(())
    }

    /// What each element of an image in memory is: an element of [side][side][3], or none.
    fn places(&self, batch: &Batch) -> impl Iterator<Item = Option<usize>> + use<M> {
        let side = batch.resolution;
        let at = move |row: usize, column: usize, c: usize| {
            (row < side && column < side && c < 3).then_some(3 * (row * side + column) + c)
        };
        let blocking = self.units.iter().find_map(|unit| match unit {
            Unit::Conv(unit) => self.blocking(unit),
            _ => None,
        });
        let pixel = self.seen.plan.options.form.stem.pixel();
        // Rows and columns of pixels in memory, those of the margin before the image, and how many lie in one block.
        let (height, width, before, block) =
            blocking.map_or((side, side, 0, 1), |by| (by.height, by.width, 2 * by.before, 2));
        (0..height * width * block * block * pixel).map(move |element| {
            let (place, c) = (element / pixel, element % pixel);
            let (at_block, inner) = (place / (block * block), place % (block * block));
            let row = block * (at_block / width) + inner / block;
            let column = block * (at_block % width) + inner % block;
            at(row.checked_sub(before)?, column.checked_sub(before)?, c)
        })
    }

    /// What the branches of blocks are multiplied by.
    pub fn drop_path(&mut self, sent: &Sent) -> Result<()> {
        let options = &self.seen.plan.options;
        if !options.drops() {
            return Ok(());
        }
        let (n, blocks) = (options.batch, options.blocks());
        let factor = |at: usize| sent.step.drop_path.factor(at % n, at / n, blocks);
        let want: Vec<f32> = (0..n * blocks).map(factor).collect();
        let got = to_f64(&self.seen.f32s(self.seen.buffer("drop_path")?)?);
        self.note("drop path", &["drop_path".to_owned()], "drop_path", &got, &Want::exactly(&want));
        Ok(())
    }

    /// Those of a block by image, at the unit of its sum.
    pub fn factors(&self, unit: &ConvUnit) -> Result<Option<Vec<f32>>> {
        if !self.seen.plan.options.drops() || unit.residual.is_none() {
            return Ok(None);
        }
        let mut sums = self.units.iter().filter_map(|unit| match unit {
            Unit::Conv(unit) if unit.residual.is_some() => Some(unit.y),
            _ => None,
        });
        let block = sums.position(|sum| sum == unit.y).expect("it is one of them");
        let n = self.seen.n();
        let all = self.seen.f32s(self.seen.buffer("drop_path")?)?;
        Ok(Some(all[block * n..][..n].to_vec()))
    }
}
