//! What a training takes on a card that is not at hand: the floors of its own launch lists, by what share of them each kind
//! of launch reaches ([`Shares`]). `engine plan` prints it, and says that it is a prediction.

use super::bench::Work;
use super::plan::node::COMPUTING;
use super::plan::region::Arena;
use super::plan::{Plan, PlanOptions, Purpose};
use super::profile::Kind;
use super::shares::Shares;
use super::storage::Storage;
use crate::config::{Chip, Search};
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// A card as its vendor describes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CardModel {
    /// As `--gpu` takes it.
    pub name: &'static str,
    /// Which of its kinds.
    pub kind: &'static str,
    /// What programs can have of its memory.
    pub gibibytes: f64,
    /// Of device memory, bytes a second.
    pub bandwidth: f64,
    /// Of dense matrix products, multiplications and additions a second.
    pub half: f64,
    /// The same from f32 operands rounded to 10 bits; `None` before Ampere, which has no bf16 either.
    pub tf32: Option<f64>,
    pub single: f64,
    pub chip: Chip,
}

/// Figures of NVIDIA's data sheets (V100 SXM2, T4, A100 80GB SXM, H100 SXM, H200 SXM); the H200's bandwidth and rate for
/// half are what a copy and a large product were measured to reach. Shared memory of a block: the CUDA programming guide's
/// technical specifications by compute capability.
pub const CARDS: [CardModel; 5] = [
    CardModel {
        name: "v100",
        kind: "V100 SXM2 16 GB",
        gibibytes: 15.7,
        bandwidth: 900e9,
        half: 125e12,
        tf32: None,
        single: 15.7e12,
        chip: Chip::of(80, 96, 900e9),
    },
    CardModel {
        name: "t4",
        kind: "T4 16 GB",
        gibibytes: 14.7,
        bandwidth: 320e9,
        half: 65e12,
        tf32: None,
        single: 8.1e12,
        chip: Chip::of(40, 64, 320e9),
    },
    CardModel {
        name: "a100",
        kind: "A100 SXM 80 GB",
        gibibytes: 79.0,
        bandwidth: 2039e9,
        half: 312e12,
        tf32: Some(156e12),
        single: 19.5e12,
        chip: Chip::of(108, 163, 2039e9),
    },
    CardModel {
        name: "h100",
        kind: "H100 SXM 80 GB",
        gibibytes: 79.0,
        bandwidth: 3350e9,
        half: 989e12,
        tf32: Some(494e12),
        single: 67e12,
        chip: Chip::of(132, 227, 3350e9),
    },
    CardModel {
        name: "h200",
        kind: "H200 SXM 141 GB",
        gibibytes: 139.0,
        bandwidth: 4300e9,
        half: 790e12,
        tf32: Some(494e12),
        single: 67e12,
        chip: Chip::of(132, 227, 4300e9),
    },
];

/// What is computed, where it does not depend on the card.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// Storage, recipe, resolution; `batch` is the micro-batch. The purpose is chosen here.
    pub options: PlanOptions,
    pub tf32: bool,
    pub micro_steps: usize,
    pub eval_resolution: usize,
    pub eval_batch: usize,
}

/// Seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seconds {
    /// What bytes and operations take at the card's own rates.
    pub floor: f64,
    /// What is expected at the shares of the floor that are expected.
    pub slow: f64,
    pub fast: f64,
}

impl Seconds {
    /// `factor` times as long, and `other`.
    pub fn plus(self, factor: f64, other: Self) -> Self {
        Self {
            floor: self.floor + factor * other.floor,
            slow: self.slow + factor * other.slow,
            fast: self.fast + factor * other.fast,
        }
    }
}

/// Of one card.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// Of an optimiser step.
    pub step: Seconds,
    /// Of a pass over one batch of validation images.
    pub evaluation: Seconds,
    /// Arenas and workspaces of the plans that a training holds; what the driver and the libraries take comes on top.
    pub bytes: u64,
}

impl Training {
    /// Fails where the card cannot compute in this precision, or where no plan exists (a resolution too small, a batch too
    /// large for 32-bit counts).
    pub fn forecast(&self, card: &CardModel, shares: &Shares) -> Result<Forecast> {
        let rate = self.product_rate(card)?;
        let plans = self.on(card).plans(self.options.batch)?;
        let of = |plan: &Plan| seconds(plan, card.bandwidth, rate, shares);
        let accumulate = plans.accumulate.as_ref().map_or(Seconds::default(), of);
        Ok(Forecast {
            step: of(&plans.finish).plus((self.micro_steps - 1) as f64, accumulate),
            evaluation: of(&plans.evaluate),
            bytes: plans.bytes(),
        })
    }

    /// Bytes that one image more takes in activations, gradients, masks and partial sums of a training pass: the slope
    /// between two batches that are multiples of each other, since buffers begin at multiples of 256 bytes.
    pub fn activation_bytes(&self) -> Result<f64> {
        let activations = |batch| -> Result<u64> {
            Ok(self.plans(batch)?.finish.arenas.get(&Arena::Activations).copied().unwrap_or(0))
        };
        let few = self.options.batch.max(8);
        Ok((activations(2 * few)? - activations(few)?) as f64 / few as f64)
    }

    /// The largest micro-batch that fits on the card; `None` where not even one image does. By halving: memory grows with
    /// the batch.
    pub fn largest(&self, card: &CardModel) -> Option<usize> {
        let capacity = card.gibibytes * 2f64.powi(30);
        let own = self.on(card);
        let fits = |batch| own.plans(batch).is_ok_and(|plans| plans.bytes() as f64 <= capacity);
        if !fits(1) {
            return None;
        }
        let (mut low, mut high) = (1, 2);
        while fits(high) {
            (low, high) = (high, 2 * high);
        }
        while high - low > 1 {
            let middle = low.midpoint(high);
            if fits(middle) { low = middle } else { high = middle }
        }
        Some(low)
    }

    /// As the card would be told.
    fn on(&self, card: &CardModel) -> Self {
        let form = self.options.form.on(card.chip);
        Self { options: PlanOptions { form, ..self.options.clone() }, ..self.clone() }
    }

    fn product_rate(&self, card: &CardModel) -> Result<f64> {
        let lacks = |what: &str| {
            Error::usage(format!(
                "device.precision asks for {what}, which a {} does not have; take fp16 or fp32",
                card.kind
            ))
        };
        match (self.options.storage, self.tf32) {
            (Storage::F16, _) => Ok(card.half),
            (Storage::Bf16, _) => card.tf32.map(|_| card.half).ok_or_else(|| lacks("bf16")),
            (Storage::F32, true) => card.tf32.ok_or_else(|| lacks("tf32")),
            (Storage::F32, false) => Ok(card.single),
        }
    }

    fn plans(&self, micro_batch: usize) -> Result<Plans> {
        let sum = self.micro_steps > 1;
        let of = |purpose| Plan::new(&PlanOptions { purpose, batch: micro_batch, ..self.options.clone() });
        Ok(Plans {
            finish: of(Purpose::Finish { sum })?,
            accumulate: if sum { Some(of(Purpose::Accumulate)?) } else { None },
            evaluate: Plan::new(&PlanOptions {
                purpose: Purpose::Evaluate,
                batch: self.eval_batch,
                resolution: self.eval_resolution,
                ..self.options.clone()
            })?,
        })
    }
}

/// What a training holds on the card at a time.
struct Plans {
    finish: Plan,
    accumulate: Option<Plan>,
    evaluate: Plan,
}

impl Plans {
    /// Plans share their arenas: each is as large as the largest of them wants it.
    fn bytes(&self) -> u64 {
        let mut arenas: BTreeMap<Arena, u64> = BTreeMap::new();
        for plan in [Some(&self.finish), self.accumulate.as_ref(), Some(&self.evaluate)].into_iter().flatten()
        {
            for (&arena, &bytes) in &plan.arenas {
                let largest = arenas.entry(arena).or_default();
                *largest = bytes.max(*largest);
            }
        }
        arenas.values().sum::<u64>() + COMPUTING as u64 * Search::BASE.workspace_bytes()
    }
}

/// Of all calls one after another, each bound by its bytes or by its operations.
fn seconds(plan: &Plan, bandwidth: f64, product_rate: f64, shares: &Shares) -> Seconds {
    plan.nodes.iter().fold(Seconds::default(), |sum, node| {
        let floor = Work::of(node, &plan.staging).floor(bandwidth, product_rate);
        let [slow, fast] = shares.get(Kind::of(node)).map(|share| floor / share);
        sum.plus(1.0, Seconds { floor, slow, fast })
    })
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Recipe, ScalePolicy};
    use super::*;
    use crate::config::{Decay, Form};
    use crate::model::spec::RESNET50;

    fn training(batch: usize, micro_steps: usize) -> Training {
        Training {
            options: PlanOptions {
                spec: RESNET50,
                resolution: 224,
                batch,
                storage: Storage::F16,
                purpose: Purpose::Evaluate,
                form: Form::BASE,
                decay: Decay::Weights,
                recipe: Recipe::default(),
                scale: ScalePolicy::FP16,
                keep: false,
            },
            tf32: false,
            micro_steps,
            eval_resolution: 224,
            eval_batch: 128,
        }
    }

    fn card(name: &str) -> &'static CardModel {
        CARDS.iter().find(|card| card.name == name).unwrap()
    }

    /// The design's floor model, counted from the network by a program of its own (reference/rn50_floor.py, level L1), says
    /// 2,092 images/s on V100, 4,891 on A100, 9,075 on H100 and 10,806 on H200. The launch list differs from that model in
    /// small things: shortcuts share a pass with the block's sum, and every kernel that the model leaves out counts.
    #[test]
    fn ceilings_are_those_of_the_floor_model() {
        for (name, batch, want) in
            [("v100", 208, 2092.0), ("a100", 408, 4891.0), ("h100", 400, 9075.0), ("h200", 400, 10806.0)]
        {
            let got = batch as f64
                / training(batch, 1).forecast(card(name), &Shares::assumed()).unwrap().step.floor;
            assert!((got / want - 1.0).abs() < 0.08, "{name}: {got:.0} images/s, the floor model has {want}");
        }
    }

    #[test]
    fn more_micro_steps_cost_time_and_an_arena_of_sums() {
        let v100 = card("v100");
        let [one, four] = [training(64, 1), training(64, 4)]
            .map(|training| training.forecast(v100, &Shares::assumed()).unwrap());
        assert!(four.step.floor > 3.9 * one.step.floor && four.step.floor < 4.1 * one.step.floor);
        assert!(four.bytes >= one.bytes + 4 * 25_557_032);
        assert!(training(64, 4).largest(v100).unwrap() <= training(64, 1).largest(v100).unwrap());
    }

    #[test]
    fn the_largest_batch_fits_and_the_next_one_does_not() {
        let training = training(64, 1);
        let largest = training.largest(card("v100")).unwrap();
        let bytes = |batch| training.plans(batch).unwrap().bytes();
        let memory = (card("v100").gibibytes * 2f64.powi(30)) as u64;
        assert!(bytes(largest) <= memory && bytes(largest + 1) > memory, "{largest}");
    }

    /// 53 outputs of convolutions, 11.11 million elements of 2 bytes (reference: the design's floor model), and as many of
    /// batch norms, but for the last of each block where sum and input share; no less, and not twice as much.
    #[test]
    fn an_image_takes_what_the_backward_pass_reads() {
        let image = training(64, 1).activation_bytes().unwrap();
        println!("{:.2} MiB an image", image / 2f64.powi(20));
        assert!(image > 2.0 * 11.11e6 * 1.7 && image < 4.0 * 11.11e6 * 1.3, "{image}");
    }

    #[test]
    fn old_cards_refuse_bf16_and_tf32() {
        let mut wants = training(8, 1);
        wants.options.storage = Storage::Bf16;
        let message = wants.forecast(card("t4"), &Shares::assumed()).unwrap_err().message;
        assert!(message.contains("bf16") && message.contains("T4"), "{message}");
        assert!(wants.forecast(card("a100"), &Shares::assumed()).is_ok());
    }
}
