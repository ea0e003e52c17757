//! A machine that runs plans on the host: our kernels through the shim, library calls through the CPU's convolutions on
//! values rounded as the card stores them, every pass in another of the orders that the plan allows, and memory that
//! is done with poisoned with NaN.

use crate::harness::{Arg as HostArg, Host, Order};
use engine::backend::cuda::abi::Outcome;
use engine::backend::cuda::machine::{Machine, Prepared};
use engine::backend::cuda::network::{from_stored, to_stored};
use engine::backend::cuda::plan::node::{
    Arg, Call, Collective, Convolution, Exchange, Launch, Linear, Node, NodeId, Pass, STREAMS,
};
use engine::backend::cuda::plan::region::{Access, Arena, Region};
use engine::backend::cuda::plan::{OUTCOME_RING, Plan};
use engine::backend::cuda::storage::Storage;
use engine::comm::{Occasion, Ranks, alone};
use engine::error::Result;
use engine::model::graph::ConvShape;
use engine::rng::{Purpose, Rng};
use engine::simd::conv::{self, Scratch};
use engine::simd::isa::Isa;
use engine::simd::pool::Pool;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// All bits set is NaN in every storage type, and an index far outside for integers.
const POISON: u8 = 0xff;

#[derive(Clone, Copy)]
#[repr(C, align(256))]
struct Line([u8; 256]);

/// Memory of one arena, aligned as the card's.
struct Memory(Vec<Line>);

impl Memory {
    fn bytes(&mut self) -> &mut [u8] {
        let bytes = self.0.len() * 256;
        // SAFETY: `Line` is 256 plain bytes without padding, and the borrow is this one's.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), bytes) }
    }
}

pub struct HostMachine {
    host: &'static Host,
    pool: Pool,
    scratch: Scratch,
    memory: BTreeMap<Arena, Memory>,
    plans: Vec<Rc<Plan>>,
    outcomes: VecDeque<Outcome>,
    passes: u32,
    /// Chooses the order of nodes and of threads.
    seed: u64,
    /// What `capacity` answers.
    pub capacity: u64,
    /// Changes plans before they run: for planted faults.
    pub tamper: Option<fn(&mut Plan)>,
    /// Spoils one element of what a node has written: likewise.
    pub plant: Option<Plant>,
    /// Who else runs the same plans.
    pub ranks: Ranks,
}

/// A wrong element.
#[derive(Debug, Clone)]
pub struct Plant {
    /// The node's name.
    pub node: String,
    /// Which of the regions that it writes.
    pub region: usize,
    /// What is done to the region's bytes.
    pub spoil: fn(Storage, &mut [u8]),
}

impl HostMachine {
    pub fn new(host: &'static Host, seed: u64) -> Self {
        Self {
            host,
            pool: Pool::new(0),
            scratch: Scratch::default(),
            memory: BTreeMap::new(),
            plans: vec![],
            outcomes: VecDeque::new(),
            passes: 0,
            seed,
            capacity: u64::MAX,
            tamper: None,
            plant: None,
            ranks: alone(),
        }
    }

    fn region(&mut self, region: Region) -> &mut [u8] {
        let memory =
            self.memory.get_mut(&region.arena).unwrap_or_else(|| panic!("{region:?}: no such arena"));
        &mut memory.bytes()[region.offset as usize..(region.offset + region.bytes) as usize]
    }

    fn pointer(&mut self, region: Region) -> *mut u8 {
        self.region(region).as_mut_ptr()
    }

    fn poison(&mut self, region: Region) {
        self.region(region).fill(POISON);
    }

    fn run(&mut self, index: usize) {
        self.seed += 1;
        let plan = Rc::clone(&self.plans[index]);
        let activations = plan.arenas[&Arena::Activations];
        self.poison(Region::new(Arena::Activations, 0, activations));
        let mut rng = Rng::new(self.seed, 0, 0, Purpose::Init);
        let mut touches: Vec<usize> = plan.buffers.iter().map(|buffer| buffer.nodes.len()).collect();
        for id in legal_order(&plan, &mut rng) {
            self.call(&plan.nodes[id].call, plan.options.storage);
            self.spoil(&plan.nodes[id], plan.options.storage);
            for (buffer, left) in plan.buffers.iter().zip(&mut touches) {
                if buffer.nodes.contains(&id) {
                    *left -= 1;
                    if *left == 0 && !plan.options.keep {
                        self.poison(buffer.region);
                    }
                }
            }
        }
    }

    fn spoil(&mut self, node: &Node, storage: Storage) {
        let Some(plant) = self.plant.clone().filter(|plant| plant.node == node.name) else { return };
        // Another pass's node of the same name may write less.
        let Some(&region) = written(&node.call).get(plant.region) else { return };
        (plant.spoil)(storage, self.region(region));
    }

    fn call(&mut self, call: &Call, storage: Storage) {
        match call {
            Call::Kernel(launch) => self.kernel(launch),
            Call::Convolution(conv) => self.convolution(conv, storage),
            Call::Linear(linear) => self.linear(linear, storage),
            Call::Collective(collective) => self.collective(collective),
        }
    }

    fn collective(&mut self, collective: &Collective) {
        let ranks = Ranks::clone(&self.ranks);
        let occasion = Occasion { name: "exchange", limit: Duration::from_secs(100) };
        let Collective { kind, from, to } = *collective;
        match kind {
            Exchange::Sum(element) => ranks.all_reduce(occasion, element, self.region(to)).unwrap(),
            Exchange::Max => {
                let all = ranks.all_gather(occasion, self.region(from)).unwrap();
                let largest = all.iter().max_by_key(|word| u32::from_le_bytes(word[..].try_into().unwrap()));
                self.region(to).copy_from_slice(largest.unwrap());
            }
            Exchange::Gather => {
                let all = ranks.all_gather(occasion, self.region(from)).unwrap();
                self.region(to).copy_from_slice(&all.concat());
            }
        }
    }

    fn kernel(&mut self, launch: &Launch) {
        let args: Vec<HostArg> = launch
            .args
            .iter()
            .map(|arg| match *arg {
                Arg::Region(region, _) | Arg::Part(region, ..) => HostArg::Pointer(self.pointer(region)),
                Arg::Null => HostArg::Pointer(std::ptr::null_mut()),
                Arg::U32(value) => HostArg::U32(value),
                Arg::U64(value) => HostArg::U64(value),
                Arg::F32(value) => HostArg::F32(value),
            })
            .collect();
        let order =
            [Order::Ascending, Order::Descending, Order::Shuffled(self.seed as u32)][self.seed as usize % 3];
        // SAFETY: the plan's regions lie within the arenas, which `region` checks, and the kernel stays within them:
        // its own tests run under the address sanitizer.
        unsafe { self.host.run(&launch.kernel, launch.geometry, &args, order) }
            .unwrap_or_else(|error| panic!("{}: {error}", launch.kernel));
    }

    fn load(&mut self, storage: Storage, region: Region) -> Vec<f32> {
        from_stored(storage, self.region(region))
    }

    fn store(&mut self, storage: Storage, region: Region, values: &[f32]) {
        let bytes = to_stored(storage, values);
        self.region(region).copy_from_slice(&bytes);
    }

    fn convolution(&mut self, call: &Convolution, storage: Storage) {
        let Convolution { pass, shape, n, x, w, y, accumulate, fused } = *call;
        match pass {
            Pass::Forward => {
                let x = self.normalised(storage, x, fused.norm);
                let out = self.forward(&shape, n, storage, &x, w);
                self.store(storage, y, &out);
                if let Some(sums) = fused.sums {
                    self.sums(storage, y, sums);
                }
            }
            Pass::Dgrad => {
                let before = if accumulate { Some(self.load(storage, x)) } else { None };
                let dx = self.dgrad(&shape, n, storage, w, y, before);
                self.store(storage, x, &dx);
            }
            Pass::Wgrad => {
                let x = self.normalised(storage, x, fused.norm);
                let dw = self.wgrad(&shape, n, storage, &x, y);
                self.store(storage, w, &dw);
            }
        }
    }

    /// What a convolution reads: the values themselves, or through scale, bias and ReLU, rounded as operands are.
    fn normalised(&mut self, storage: Storage, x: Region, map: Option<Region>) -> Vec<f32> {
        let values = self.load(storage, x);
        let Some(map) = map else { return values };
        let map = self.load(storage, map);
        let (scale, bias) = map.split_at(map.len() / 2);
        let channels = scale.len();
        let of = |(e, x): (usize, &f32)| (x * scale[e % channels] + bias[e % channels]).max(0.0);
        let mapped: Vec<f32> = values.iter().enumerate().map(of).collect();
        from_stored(storage, &to_stored(storage, &mapped))
    }

    /// Sums of a tensor and of its squares, by channel.
    fn sums(&mut self, storage: Storage, y: Region, to: Region) {
        let channels = to.bytes as usize / 8;
        let mut sums = vec![0.0f64; 2 * channels];
        for (e, value) in self.load(storage, y).into_iter().map(f64::from).enumerate() {
            sums[e % channels] += value;
            sums[channels + e % channels] += value * value;
        }
        let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
        self.store(Storage::F32, to, &sums);
    }

    /// The classifier is a 1x1 convolution over one row of n pixels.
    fn linear(&mut self, call: &Linear, storage: Storage) {
        let Linear { pass, n, features, classes, x, w, y } = *call;
        let shape = ConvShape { h: 1, w: n, c: features, k: classes, r: 1, s: 1, stride: 1, pad: 0 };
        match pass {
            Pass::Forward => {
                let x = self.load(storage, x);
                let out = self.forward(&shape, 1, storage, &x, w);
                self.store(Storage::F32, y, &out);
            }
            Pass::Dgrad => {
                let dx = self.dgrad(&shape, 1, storage, w, y, None);
                self.store(storage, x, &dx);
            }
            Pass::Wgrad => {
                let x = self.load(storage, x);
                let dw = self.wgrad(&shape, 1, storage, &x, y);
                self.store(storage, w, &dw);
            }
        }
    }

    fn forward(&mut self, shape: &ConvShape, n: usize, storage: Storage, x: &[f32], w: Region) -> Vec<f32> {
        let w = rsck_from_krsc(shape, &self.load(storage, w));
        let mut y = vec![0.0; n * shape.p() * shape.q() * shape.k];
        conv::forward(&self.pool, Isa::current(), shape, n, x, &w, &mut y, &mut self.scratch);
        y
    }

    fn dgrad(
        &mut self,
        shape: &ConvShape,
        n: usize,
        storage: Storage,
        w: Region,
        dy: Region,
        before: Option<Vec<f32>>,
    ) -> Vec<f32> {
        let (dy, w) = (self.load(storage, dy), rsck_from_krsc(shape, &self.load(storage, w)));
        let accumulate = before.is_some();
        let mut dx = before.unwrap_or_else(|| vec![0.0; n * shape.h * shape.w * shape.c]);
        conv::dgrad(&self.pool, Isa::current(), shape, n, &dy, &w, &mut dx, accumulate, &mut self.scratch);
        dx
    }

    fn wgrad(&mut self, shape: &ConvShape, n: usize, storage: Storage, x: &[f32], dy: Region) -> Vec<f32> {
        let dy = self.load(storage, dy);
        let mut dw = vec![0.0; shape.weights()];
        conv::wgrad(&self.pool, Isa::current(), shape, n, x, &dy, &mut dw, false, &mut self.scratch);
        krsc_from_rsck(shape, &dw)
    }
}

impl Machine for HostMachine {
    fn prepare(&mut self, mut plan: Plan) -> Result<Prepared> {
        if let Some(tamper) = self.tamper {
            tamper(&mut plan);
        }
        for (&arena, &bytes) in &plan.arenas {
            let lines = bytes.div_ceil(256) as usize;
            let memory = self.memory.entry(arena).or_insert(Memory(vec![]));
            if memory.0.len() < lines {
                memory.0.resize(lines, Line([0; 256]));
            }
        }
        self.plans.push(Rc::new(plan));
        Ok(Prepared(self.plans.len() - 1))
    }

    fn plan(&self, prepared: Prepared) -> &Plan {
        &self.plans[prepared.0]
    }

    fn submit(&mut self, prepared: Prepared, slot: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        let bytes = self.plans[prepared.0].staging.slot_bytes;
        fill(self.region(Region::new(Arena::Staging, slot as u64 * bytes, bytes)));
        self.run(prepared.0);
        let size = size_of::<Outcome>() as u64;
        let at = u64::from(self.passes % OUTCOME_RING as u32) * size;
        let outcome = bytemuck::pod_read_unaligned(self.region(Region::new(Arena::Outcomes, at, size)));
        self.outcomes.push_back(outcome);
        self.passes += 1;
        Ok(())
    }

    fn outcome(&mut self, wait: bool) -> Result<Option<Outcome>> {
        // One pass lags, as on a card.
        let lag = usize::from(!wait);
        Ok(if self.outcomes.len() > lag { self.outcomes.pop_front() } else { None })
    }

    fn evaluate(
        &mut self,
        prepared: Prepared,
        fill: &mut dyn FnMut(&mut [u8]),
        logits: &mut [f32],
    ) -> Result<()> {
        let bytes = self.plans[prepared.0].staging.slot_bytes;
        fill(self.region(Region::new(Arena::EvalStaging, 0, bytes)));
        self.run(prepared.0);
        let region = Region::new(Arena::Logits, 0, 4 * logits.len() as u64);
        bytemuck::cast_slice_mut(logits).copy_from_slice(self.region(region));
        Ok(())
    }

    fn write(&mut self, region: Region, bytes: &[u8]) -> Result<()> {
        self.region(region).copy_from_slice(bytes);
        if region.arena == Arena::State {
            self.passes = 0;
        }
        Ok(())
    }

    fn read(&self, region: Region, bytes: &mut [u8]) -> Result<()> {
        let lines = &self.memory[&region.arena].0;
        let all: &[u8] =
            // SAFETY: `Line` is 256 plain bytes without padding, and the borrow is `self`'s.
            unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 256) };
        bytes.copy_from_slice(&all[region.offset as usize..(region.offset + region.bytes) as usize]);
        Ok(())
    }

    fn capacity(&self, _: &Plan) -> Result<u64> {
        Ok(self.capacity)
    }

    fn choices(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn set_choices(&mut self, _: &BTreeMap<String, String>) {}
}

/// Regions that a call leaves results in, in their order.
pub fn written(call: &Call) -> Vec<Region> {
    let results = |access: Access| access.writes() && access != Access::Scratch;
    call.accesses().into_iter().filter(|(_, access)| results(*access)).map(|(region, _)| region).collect()
}

/// One of the orders that streams and waits allow, by chance.
fn legal_order(plan: &Plan, rng: &mut Rng) -> Vec<NodeId> {
    let mut queues: [VecDeque<NodeId>; STREAMS] = std::array::from_fn(|stream| {
        (0..plan.nodes.len()).filter(|&id| plan.nodes[id].stream == stream).collect()
    });
    let mut done = vec![false; plan.nodes.len()];
    let mut order = vec![];
    while order.len() < plan.nodes.len() {
        let ready: Vec<usize> = (0..STREAMS)
            .filter(|&stream| {
                queues[stream].front().is_some_and(|&id| plan.nodes[id].waits.iter().all(|&wait| done[wait]))
            })
            .collect();
        assert!(!ready.is_empty(), "the plan's streams wait for each other");
        let stream = ready[(rng.range(0.0, ready.len() as f64) as usize).min(ready.len() - 1)];
        let id = queues[stream].pop_front().expect("ready");
        done[id] = true;
        order.push(id);
    }
    order
}

/// Filters as the card keeps them, to the order that the CPU's convolutions take.
pub fn rsck_from_krsc(shape: &ConvShape, krsc: &[f32]) -> Vec<f32> {
    let (taps, c) = (shape.r * shape.s, shape.c);
    let mut rsck = vec![0.0; krsc.len()];
    for (index, &value) in krsc.iter().enumerate() {
        let (k, tap, channel) = (index / (taps * c), index / c % taps, index % c);
        rsck[(tap * c + channel) * shape.k + k] = value;
    }
    rsck
}

fn krsc_from_rsck(shape: &ConvShape, rsck: &[f32]) -> Vec<f32> {
    let (taps, c) = (shape.r * shape.s, shape.c);
    let index = |k: usize, tap: usize, channel: usize| rsck[(tap * c + channel) * shape.k + k];
    let filters = (0..shape.k).flat_map(|k| (0..taps).map(move |tap| (k, tap)));
    filters.flat_map(|(k, tap)| (0..c).map(move |channel| index(k, tap, channel))).collect()
}
