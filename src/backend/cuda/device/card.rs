//! A machine made of one card: memory for the arenas, a stream for each of the plan's, and a CUDA graph for each plan.

use super::algorithms::File;
use super::cublas::{Cublas, Layer};
use super::cublaslt::CublasLt;
use super::cudnn::{Convolution as Descriptors, Cudnn};
use super::driver::{Address, Context, Event, Graph, Memory, Pinned, Stream};
use super::exchanges::Exchanges;
use super::libraries::{Library, check_card, dotted};
use super::module::{Function, Module};
use super::search::{Planned, Routine};
use super::trace::{Class, SUBMIT, traced};
use super::watchdog::{SETUP, watched_for};
use crate::backend::cuda::abi::Outcome;
use crate::backend::cuda::machine::{Machine, Prepared, room, too_large};
use crate::backend::cuda::plan::node::{Arg, COMPUTING, Call, Launch, Linear, Pass, Pattern};
use crate::backend::cuda::plan::region::{Arena, Region};
use crate::backend::cuda::plan::{OUTCOME_RING, Plan, STAGING_SLOTS};
use crate::backend::cuda::ptx::MODULES;
use crate::backend::cuda::storage::Storage;
use crate::config::{Chip, Norm, Routines, Search};
use crate::error::{Error, Kind, Result};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::c_void;
use std::rc::Rc;

/// Left free for what driver and libraries take on their own.
const SPARE: u64 = 384 << 20;

/// Kernels that are compiled for the card only where the form asks for them: they take it a while.
const ASKED_FOR: [&str; 2] = ["batch_norm_one_pass", "batch_norm_backward_one_pass"];

/// How a card is used.
#[derive(Debug, Clone)]
pub struct CardOptions {
    pub ordinal: usize,
    pub storage: Storage,
    /// f32 products may round their operands to 10 bits.
    pub tf32: bool,
    pub deterministic: bool,
    pub search: Search,
    pub algorithms: Option<File>,
    /// Routines by shape, as an earlier run chose them; a file's stand above them.
    pub known: BTreeMap<String, String>,
}

impl CardOptions {
    /// Deterministic, with the usual search.
    pub fn new(ordinal: usize, storage: Storage, tf32: bool) -> Self {
        let known = BTreeMap::new();
        Self { ordinal, storage, tf32, deterministic: true, search: Search::BASE, algorithms: None, known }
    }
}

/// One stream with its library handles and workspace.
pub(super) struct Lane {
    pub(super) cudnn: Cudnn,
    pub(super) cublas: Cublas,
    pub(super) lt: Option<CublasLt>,
    pub(super) workspace: Memory,
    pub(super) stream: Stream,
}

/// A plan, and what it needs to run.
pub(super) struct Ready {
    /// Captured at its first run, and again when memory has moved. Dropped before the routines, whose kernels it names.
    pub(super) graph: Option<Graph>,
    pub(super) plan: Rc<Plan>,
    /// By node.
    convolutions: HashMap<usize, (Descriptors, Routine)>,
    /// By node that another stream waits for.
    events: HashMap<usize, Event>,
}

/// One card. When its work has ended, fields are dropped in this order: graphs before the exchanges, the memory and the
/// kernels that they name, handles before the context.
pub struct Card {
    pub(super) ready: Vec<Ready>,
    /// Engines by stream and shape, while a plan is made ready.
    pub(super) planned: HashMap<(usize, String), Vec<Planned>>,
    pub(super) exchanges: Option<Exchanges>,
    pub(super) functions: HashMap<String, Function>,
    pub(super) lanes: Vec<Lane>,
    copies: Stream,
    uploaded: Vec<Event>,
    staging: Vec<Pinned>,
    outcomes: Pinned,
    /// Passes whose outcome has not been taken: the ring's slot, and the event behind its copy.
    underway: VecDeque<(usize, Event)>,
    memory: BTreeMap<Arena, Memory>,
    modules: Vec<Module>,
    pub(super) choices: BTreeMap<String, String>,
    /// As the card counts them.
    passes: usize,
    /// The plan that was started last.
    pub(super) running: Option<usize>,
    pub(super) options: CardOptions,
    identity: String,
    pub(super) context: Rc<Context>,
}

impl Card {
    /// Finds the libraries, opens the card and compiles the kernels for it.
    pub fn open(options: CardOptions) -> Result<Self> {
        watched_for("open the card", SETUP, || Self::begin(options))
    }

    fn begin(options: CardOptions) -> Result<Self> {
        let driver = Library::Driver.find()?;
        let (cublas, cudnn) = (Library::Cublas.find()?, Library::Cudnn.find()?);
        if options.search.routines == Routines::CublasLt {
            Library::CublasLt.find()?;
        }
        let context = Context::open(options.ordinal)?;
        check_card(context.capability, cudnn.version)?;
        check_precision(&context, &options)?;
        let identity = format!(
            "{} (compute capability {}.{}), CUDA driver {}.{}, cuDNN {}, cuBLAS {}",
            context.name,
            context.capability.0,
            context.capability.1,
            driver.version / 1000,
            driver.version % 1000 / 10,
            dotted(cudnn.version),
            dotted(cublas.version)
        );
        let mut choices = options.known.clone();
        if let Some(file) = &options.algorithms {
            choices.extend(file.read(&identity)?);
        }
        let load = |(name, text): &(&str, &str)| Module::load(&context, name, text);
        let at_once = MODULES.iter().filter(|(name, _)| !ASKED_FOR.contains(name));
        let modules = at_once.map(load).collect::<Result<Vec<_>>>()?;
        let lanes = (0..COMPUTING).map(|_| lane(&context, &options)).collect::<Result<Vec<_>>>()?;
        let events = |count: usize| (0..count).map(|_| Event::new(&context)).collect::<Result<Vec<_>>>();
        Ok(Self {
            ready: vec![],
            planned: HashMap::new(),
            exchanges: None,
            functions: HashMap::new(),
            lanes,
            copies: Stream::new(&context)?,
            uploaded: events(STAGING_SLOTS)?,
            staging: vec![],
            outcomes: Pinned::new(&context, OUTCOME_RING * size_of::<Outcome>())?,
            underway: VecDeque::new(),
            memory: BTreeMap::new(),
            modules,
            choices,
            passes: 0,
            running: None,
            options,
            identity,
            context,
        })
    }

    /// Card, driver and libraries: where the same recipe gives the same bits.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    pub(super) fn at(&self, region: Region) -> Address {
        self.memory[&region.arena].at(region.offset, region.bytes)
    }

    /// Makes the arenas large enough. Those that outlive a pass always have the same size; the others hold nothing
    /// between passes.
    fn reserve(&mut self, plan: &Plan) -> Result<()> {
        for (&arena, &bytes) in &plan.arenas {
            if self.memory.get(&arena).is_some_and(|memory| memory.bytes() >= bytes) {
                continue;
            }
            self.context.synchronize()?;
            // Graphs name the old addresses.
            self.ready.iter_mut().for_each(|ready| ready.graph = None);
            self.memory.remove(&arena);
            let memory = Memory::new(&self.context, &format!("{arena:?}"), bytes);
            // What is free can shrink after it was asked for: another process, or fragments.
            let memory = memory.map_err(|error| match error.kind {
                Kind::Usage => {
                    too_large(plan, &|plan| Ok(self.capacity(plan)?.saturating_sub(SPARE))).within(error)
                }
                _ => error,
            })?;
            self.memory.insert(arena, memory);
        }
        let slot = plan.staging.slot_bytes as usize;
        if self.staging.first_mut().is_none_or(|pinned| pinned.slice().len() < slot) {
            self.context.synchronize()?;
            self.staging =
                (0..STAGING_SLOTS).map(|_| Pinned::new(&self.context, slot)).collect::<Result<Vec<_>>>()?;
        }
        Ok(())
    }

    fn find_functions(&mut self, plan: &Plan) -> Result<()> {
        if plan.options.form.norm == Norm::OnePass && self.modules.len() < MODULES.len() {
            for (name, text) in MODULES.iter().filter(|(name, _)| ASKED_FOR.contains(name)) {
                self.modules.push(Module::load(&self.context, name, text)?);
            }
        }
        for node in &plan.nodes {
            if let Call::Kernel(Launch { kernel, .. }) = &node.call
                && !self.functions.contains_key(kernel)
            {
                let function = self.modules.iter().find_map(|module| module.function(kernel));
                let function = function
                    .ok_or_else(|| Error::failed(format!("no kernel {kernel}; this is a bug in engine")))?;
                self.functions.insert(kernel.clone(), function);
            }
        }
        Ok(())
    }

    /// Sends one node to its stream.
    pub(super) fn send(&self, ready: &Ready, id: usize) -> Result<()> {
        let node = &ready.plan.nodes[id];
        let lane = || &self.lanes[node.stream];
        match &node.call {
            Call::Kernel(launch) => self.launch(lane(), launch),
            Call::Linear(linear) => self.linear(lane(), linear),
            Call::Convolution(conv) => {
                let (descriptors, routine) = &ready.convolutions[&id];
                self.convolve(lane(), conv, descriptors, routine)
            }
            Call::Collective(collective) => self.collect(&ready.plan, id, collective),
        }
        .map_err(|error| error.within(&node.name))
    }

    fn launch(&self, lane: &Lane, launch: &Launch) -> Result<()> {
        let mut values: Vec<u64> = launch
            .args
            .iter()
            .map(|arg| match *arg {
                Arg::Region(region, _) | Arg::Part(region, ..) => self.at(region),
                Arg::Null => 0,
                Arg::U32(value) => u64::from(value),
                Arg::U64(value) => value,
                Arg::F32(value) => u64::from(value.to_bits()),
            })
            .collect();
        let mut args: Vec<*mut c_void> = values.iter_mut().map(|value| (&raw mut *value).cast()).collect();
        // SAFETY: the tests run this very list of arguments through the kernel's declaration, and `at` has checked that
        // every region is inside its arena; a word holds each value in its low bytes, where the driver reads it.
        unsafe { lane.stream.launch(self.functions[&launch.kernel], launch.geometry, &mut args) }
    }

    /// Logits are f32, everything else is of the storage type.
    fn linear(&self, lane: &Lane, linear: &Linear) -> Result<()> {
        let Linear { pass, n: rows, features: inputs, classes: outputs, .. } = *linear;
        let [x, w, y] = [linear.x, linear.w, linear.y].map(|region| self.at(region));
        let result = if pass == Pass::Forward { Storage::F32 } else { self.options.storage };
        lane.cublas.run(&Layer { pass, rows, inputs, outputs, x, w, y }.product(result, false))
    }

    /// Sends all nodes; streams wait for each other where the plan says so.
    fn send_all(&self, ready: &Ready) -> Result<()> {
        for (id, node) in ready.plan.nodes.iter().enumerate() {
            let stream = self.stream_of(node);
            node.waits.iter().try_for_each(|wait| stream.wait(&ready.events[wait]))?;
            self.send(ready, id)?;
            if let Some(event) = ready.events.get(&id) {
                event.record(stream)?;
            }
        }
        Ok(())
    }

    /// Library calls once, outside any graph: a library may set itself up at its first call. They write to what lives
    /// for one pass only.
    fn warm_up(&self, ready: &Ready) -> Result<()> {
        for (id, node) in ready.plan.nodes.iter().enumerate() {
            // The first of NCCL's calls may set up links, which graphs may not.
            if !matches!(node.call, Call::Kernel(_)) {
                self.send(ready, id)?;
            }
        }
        self.context.synchronize()
    }

    /// Waits for all that was sent off. The driver's own waiting has no end where a card has none.
    fn drain(&self) -> Result<()> {
        let exchanges = self.exchanges.iter().map(|exchanges| &exchanges.stream);
        let streams = self.lanes.iter().map(|lane| &lane.stream).chain([&self.copies]).chain(exchanges);
        for stream in streams {
            let event = Event::new(&self.context)?;
            event.record(stream)?;
            self.wait_for(&event)?;
        }
        Ok(())
    }

    /// Records a plan as a graph, unless it is one.
    pub(super) fn capture(&mut self, prepared: Prepared) -> Result<()> {
        if self.ready[prepared.0].graph.is_none() {
            let ready = &self.ready[prepared.0];
            let graph = self.lanes[0].stream.capture(|| self.send_all(ready))?;
            self.ready[prepared.0].graph = Some(graph);
        }
        Ok(())
    }

    pub(super) fn start(&mut self, prepared: Prepared) -> Result<()> {
        self.capture(prepared)?;
        self.running = Some(prepared.0);
        let graph = self.ready[prepared.0].graph.as_ref().expect("captured above");
        self.lanes[0].stream.run(graph)
    }

    /// Everything that a training pass asks of the driver.
    fn pass(&mut self, prepared: Prepared, slot: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        let bytes = self.ready[prepared.0].plan.staging.slot_bytes;
        fill(&mut self.staging[slot].slice()[..bytes as usize]);
        self.upload(slot, bytes as usize, Region::new(Arena::Staging, slot as u64 * bytes, bytes))?;
        self.start(prepared)?;
        let (at, size) = (self.passes % OUTCOME_RING, size_of::<Outcome>());
        let from = self.at(Region::new(Arena::Outcomes, (at * size) as u64, size as u64));
        self.outcomes.download(at * size, size, from, &self.lanes[0].stream)?;
        let event = Event::new(&self.context)?;
        event.record(&self.lanes[0].stream)?;
        self.underway.push_back((at, event));
        self.passes += 1;
        Ok(())
    }

    /// Copies a filled slot to the card, beside its work, and makes the next pass wait for it.
    fn upload(&mut self, slot: usize, bytes: usize, to: Region) -> Result<()> {
        let to = self.at(to);
        self.staging[slot].upload(bytes, to, &self.copies)?;
        self.uploaded[slot].record(&self.copies)?;
        self.lanes[0].stream.wait(&self.uploaded[slot])
    }
}

impl Drop for Card {
    /// Nothing may be under way when graphs, page-locked memory and kernels go.
    fn drop(&mut self) {
        // Where it fails the card is gone, and with it what was under way.
        let _ = self.context.synchronize();
    }
}

/// Whether the card has the arithmetic that is asked for.
fn check_precision(context: &Context, options: &CardOptions) -> Result<()> {
    let (asked, instead) = match (options.storage, options.tf32) {
        (Storage::Bf16, _) => ("bf16", "fp16"),
        (Storage::F32, true) => ("tf32", "fp32"),
        _ => return Ok(()),
    };
    let (major, minor) = context.capability;
    if context.capability < (8, 0) {
        return Err(Error::usage(format!(
            "device.precision is \"{asked}\"; {} (compute capability {major}.{minor}) does not have it: choose \"{instead}\"",
            context.name
        )));
    }
    Ok(())
}

fn lane(context: &Rc<Context>, options: &CardOptions) -> Result<Lane> {
    let stream = Stream::new(context)?;
    let bytes = options.search.workspace_bytes();
    let workspace = Memory::new(context, "the workspace of convolutions", bytes)?;
    let at = workspace.at(0, bytes);
    let cublas = Cublas::new(&stream, at, bytes as usize, options.storage, options.tf32)?;
    let wanted = options.search.routines == Routines::CublasLt;
    let lt = if wanted { Some(CublasLt::new(options.storage, options.tf32)?) } else { None };
    Ok(Lane { cudnn: Cudnn::new(&stream)?, cublas, lt, workspace, stream })
}

impl Card {
    fn make_ready(&mut self, plan: Plan) -> Result<Prepared> {
        // The search and the first calls write to what passes under way still use.
        self.context.synchronize()?;
        self.reserve(&plan)?;
        self.find_functions(&plan)?;
        self.make_room(&plan)?;
        let plan = Rc::new(plan);
        let known = self.choices.len();
        let (mut convolutions, mut events) = (HashMap::new(), HashMap::new());
        for (id, node) in plan.nodes.iter().enumerate() {
            for &wait in &node.waits {
                if let std::collections::hash_map::Entry::Vacant(entry) = events.entry(wait) {
                    entry.insert(Event::new(&self.context)?);
                }
            }
            if let Call::Convolution(conv) = &node.call {
                let descriptors =
                    Descriptors::new(&conv.shape, conv.n, self.options.storage, self.options.tf32)?;
                let routine =
                    self.choose(node, conv, &descriptors).map_err(|error| error.within(&node.name))?;
                convolutions.insert(id, (descriptors, routine));
            }
        }
        self.planned.clear();
        if let Some(file) = self.options.algorithms.as_ref().filter(|_| self.choices.len() > known) {
            file.write(&self.identity, &self.choices)?;
        }
        let ready = Ready { graph: None, plan, convolutions, events };
        self.warm_up(&ready)?;
        self.ready.push(ready);
        Ok(Prepared(self.ready.len() - 1))
    }
}

impl Machine for Card {
    fn prepare(&mut self, plan: Plan) -> Result<Prepared> {
        watched_for("make a pass ready", SETUP, || self.make_ready(plan))
    }

    fn without_engine(&mut self, plan: &Plan) -> Result<Vec<Pattern>> {
        watched_for("ask for engines", SETUP, || Self::without_engine(self, plan))
    }

    fn plan(&self, prepared: Prepared) -> &Plan {
        &self.ready[prepared.0].plan
    }

    fn submit(&mut self, prepared: Prepared, slot: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        traced(SUBMIT, Class::Spans, 0, || self.pass(prepared, slot, fill))
    }

    fn outcome(&mut self, wait: bool) -> Result<Option<Outcome>> {
        let Some((slot, event)) = self.underway.front() else { return Ok(None) };
        if !wait && !event.has_ended()? {
            return Ok(None);
        }
        self.wait_for(event)?;
        let at = slot * size_of::<Outcome>();
        let outcome = bytemuck::pod_read_unaligned(&self.outcomes.slice()[at..at + size_of::<Outcome>()]);
        self.underway.pop_front();
        Ok(Some(outcome))
    }

    fn evaluate(
        &mut self,
        prepared: Prepared,
        fill: &mut dyn FnMut(&mut [u8]),
        logits: &mut [f32],
    ) -> Result<()> {
        let bytes = self.ready[prepared.0].plan.staging.slot_bytes;
        // Training passes that still read a slot have to end first.
        self.drain()?;
        fill(&mut self.staging[0].slice()[..bytes as usize]);
        self.upload(0, bytes as usize, Region::new(Arena::EvalStaging, 0, bytes))?;
        self.start(prepared)?;
        self.read(Region::new(Arena::Logits, 0, 4 * logits.len() as u64), bytemuck::cast_slice_mut(logits))
    }

    fn write(&mut self, region: Region, bytes: &[u8]) -> Result<()> {
        self.drain()?;
        if region.arena == Arena::State {
            self.passes = 0;
        }
        self.memory[&region.arena].write(region.offset, bytes)
    }

    fn read(&self, region: Region, bytes: &mut [u8]) -> Result<()> {
        self.drain()?;
        self.memory[&region.arena].read(region.offset, bytes)
    }

    fn capacity(&self, plan: &Plan) -> Result<u64> {
        let (free, _) = self.context.memory()?;
        let held = |arena| self.memory.get(&arena).map_or(0, Memory::bytes);
        Ok(room(plan, free, held).saturating_sub(SPARE))
    }

    fn chip(&self) -> Result<Chip> {
        self.context.chip()
    }

    fn choices(&self) -> BTreeMap<String, String> {
        self.choices.clone()
    }

    fn set_choices(&mut self, choices: &BTreeMap<String, String>) {
        self.choices.extend(choices.clone());
        self.ready.clear();
    }
}
