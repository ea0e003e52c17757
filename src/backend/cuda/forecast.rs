//! What a training takes on a card that is not at hand: the floors of its own launch lists, by what share of them each kind
//! of launch reaches ([`Shares`]). `engine plan` prints it, and says that it is a prediction.

use super::bench::Work;
use super::cards::{CardModel, Instance, Link};
use super::plan::node::{COMPUTING, Call, Collective, Exchange, Node};
use super::plan::region::Arena;
use super::plan::{Plan, PlanOptions, Purpose};
use super::profile::Kind;
use super::shares::Shares;
use super::storage::Storage;
use crate::config::Search;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// What is computed, where it does not depend on the card.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// Storage, recipe, resolution; `batch` is the micro-batch. The purpose is chosen here.
    pub options: PlanOptions,
    pub tf32: bool,
    /// Of a card.
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
    /// What it exchanges with other cards in a step.
    pub exchanges: Exchanges,
    /// Of a pass over one batch of validation images.
    pub evaluation: Seconds,
    /// Arenas and workspaces of the plans that a training holds; what the driver and the libraries take comes on top.
    pub bytes: u64,
}

/// What the ranks of a run exchange in a step; nothing where there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Exchanges {
    /// That each card has of sums, averages and lists.
    pub bytes: u64,
    /// Of all of them on the link.
    pub link: Seconds,
    /// By which they lengthen the step: what does not hide behind the backward pass.
    pub exposed: Seconds,
}

impl Training {
    /// On one card, or on one of `options.recipe.ranks` cards of `instance`. Fails where the card cannot compute in this precision, or where no plan exists (a resolution too small, a batch too
    /// large for 32-bit counts).
    pub fn forecast(
        &self,
        card: &CardModel,
        instance: Option<&Instance>,
        shares: &Shares,
    ) -> Result<Forecast> {
        let (product_rate, ranks) = (self.product_rate(card)?, self.options.recipe.ranks.unwrap_or(1));
        let link = instance.map(|instance| (instance.link, ranks));
        let rates = Rates { bandwidth: card.bandwidth, product_rate, shares, link };
        let plans = self.on(card).plans(self.options.batch)?;
        let mut sum = Pass::of(&plans.finish, &rates);
        if let Some(plan) = &plans.accumulate {
            sum.add((self.micro_steps - 1) as f64, &Pass::of(plan, &rates));
        }
        Ok(Forecast {
            step: sum.length,
            exchanges: sum.exchanges,
            evaluation: length(&plans.evaluate, &rates),
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

/// What calls are bound by.
#[derive(Clone, Copy)]
struct Rates<'s> {
    bandwidth: f64,
    product_rate: f64,
    shares: &'s Shares,
    /// To the other cards, with the number of all of them.
    link: Option<(Link, usize)>,
}

impl Rates<'_> {
    fn of(&self, node: &Node, plan: &Plan) -> Seconds {
        if let Some(exchange) = collective(node) {
            return self.exchange(exchange);
        }
        let floor = Work::of(node, &plan.staging).floor(self.bandwidth, self.product_rate);
        let [slow, fast] = self.shares.get(Kind::of(node)).map(|share| floor / share);
        Seconds { floor, slow, fast }
    }

    /// By a ring: each card sends and receives a sum twice, but for its own part of it, and a list once.
    fn exchange(&self, exchange: &Collective) -> Seconds {
        let Some((link, ranks)) = self.link.filter(|(_, ranks)| *ranks > 1) else {
            return Seconds::default();
        };
        let others = (ranks - 1) as f64;
        let sent = exchange.from.bytes as f64
            * match exchange.kind {
                Exchange::Sum(_) | Exchange::Max => 2.0 * others / ranks as f64,
                Exchange::Gather => others,
            };
        let floor = sent / link.bandwidth;
        let [slow, fast] = Link::SHARE.map(|share| floor / share);
        let [late, soon] = Link::LATENCY;
        Seconds { floor, slow: slow + late, fast: fast + soon }
    }
}

/// A pass, or several.
struct Pass {
    length: Seconds,
    exchanges: Exchanges,
}

impl Pass {
    fn of(plan: &Plan, rates: &Rates) -> Self {
        let (length, computed) =
            (self::length(plan, rates), self::length(plan, &Rates { link: None, ..*rates }));
        let mut exchanges = Exchanges { exposed: length.plus(-1.0, computed), ..Exchanges::default() };
        for exchange in plan.nodes.iter().filter_map(collective) {
            exchanges.bytes += exchange.from.bytes;
            exchanges.link = exchanges.link.plus(1.0, rates.exchange(exchange));
        }
        Self { length, exchanges }
    }

    fn add(&mut self, times: f64, other: &Self) {
        self.length = self.length.plus(times, other.length);
        let exchanges = &mut self.exchanges;
        exchanges.bytes += (times * other.exchanges.bytes as f64) as u64;
        exchanges.link = exchanges.link.plus(times, other.exchanges.link);
        exchanges.exposed = exchanges.exposed.plus(times, other.exchanges.exposed);
    }
}

fn collective(node: &Node) -> Option<&Collective> {
    match &node.call {
        Call::Collective(collective) => Some(collective),
        _ => None,
    }
}

/// Of a pass: the card does one call after another, each bound by its bytes or by its operations, whichever stream it is on;
/// exchanges run one after another beside them, as soon as what they wait for is there, and whatever waits for them waits.
fn length(plan: &Plan, rates: &Rates) -> Seconds {
    let of: Vec<Seconds> = plan.nodes.iter().map(|node| rates.of(node, plan)).collect();
    let end = |time: fn(&Seconds) -> f64| {
        let (mut card, mut link) = (0.0_f64, 0.0_f64);
        let mut ends: Vec<f64> = vec![];
        for (node, seconds) in plan.nodes.iter().zip(&of) {
            let lane = if collective(node).is_some() { &mut link } else { &mut card };
            let ready = node.waits.iter().map(|&id| ends[id]).fold(*lane, f64::max);
            *lane = ready + time(seconds);
            ends.push(*lane);
        }
        card.max(link)
    };
    Seconds { floor: end(|of| of.floor), slow: end(|of| of.slow), fast: end(|of| of.fast) }
}

#[cfg(test)]
mod tests {
    use super::super::cards::CARDS;
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
                without: vec![],
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
                / training(batch, 1).forecast(card(name), None, &Shares::assumed()).unwrap().step.floor;
            assert!((got / want - 1.0).abs() < 0.08, "{name}: {got:.0} images/s, the floor model has {want}");
        }
    }

    #[test]
    fn more_micro_steps_cost_time_and_an_arena_of_sums() {
        let v100 = card("v100");
        let [one, four] = [training(64, 1), training(64, 4)]
            .map(|training| training.forecast(v100, None, &Shares::assumed()).unwrap());
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
        let message = wants.forecast(card("t4"), None, &Shares::assumed()).unwrap_err().message;
        assert!(message.contains("bf16") && message.contains("T4"), "{message}");
        assert!(wants.forecast(card("a100"), None, &Shares::assumed()).is_ok());
    }

    fn among(ranks: usize, card: &str, link: Option<Link>) -> Forecast {
        let mut training = training(64, 1);
        training.options.recipe.ranks = Some(ranks);
        let model = self::card(card);
        let instance = model.instance(ranks.max(2)).unwrap();
        let instance = Instance { link: link.unwrap_or(instance.link), ..*instance };
        training.forecast(model, Some(&instance), &Shares::assumed()).unwrap()
    }

    /// 25.56 million gradients, fp16 but for the vectors; beside them each rank's statistics and a word.
    #[test]
    fn all_gradients_are_exchanged_and_mostly_behind_the_backward_pass() {
        let eight = among(8, "v100", None);
        let gradients = 2.0 * 25_557_032.0;
        let bytes = eight.exchanges.bytes as f64;
        assert!(bytes > gradients && bytes < 1.02 * gradients, "{bytes}");
        let (link, exposed) = (eight.exchanges.link, eight.exchanges.exposed);
        println!("link {link:?}, exposed {exposed:?}, step {:?}", eight.step);
        // 2 (8 - 1) / 8 of that at 150 GB/s.
        assert!((link.floor / (bytes * 1.75 / 150e9) - 1.0).abs() < 0.02, "{link:?}");
        assert!(exposed.slow > 0.0 && exposed.slow < 0.5 * link.slow, "{exposed:?} of {link:?}");
    }

    /// One rank has nobody to exchange with; a link of no speed hides nothing; a fast one hides all but the last exchanges.
    #[test]
    fn what_cannot_hide_lengthens_the_step() {
        let one = among(1, "v100", None);
        assert_eq!((one.exchanges.link, one.exchanges.exposed), Default::default());
        let at = |bandwidth| among(4, "v100", Some(Link { kind: "", bandwidth })).exchanges;
        let (slow, fast) = (at(1e9), at(1e12));
        let hidden = slow.link.slow - slow.exposed.slow;
        let backward = one.step.slow;
        assert!(hidden < backward && slow.exposed.slow > 0.8 * slow.link.slow, "{slow:?}, step {backward}");
        assert!(fast.exposed.floor < 0.1 * fast.link.floor, "{fast:?}");
    }
}
