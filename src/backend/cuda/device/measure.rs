//! How long things take on the card, by its own clock: for choosing routines, and for `engine bench kernels`.

use super::algorithms;
use super::card::Card;
use super::cublas::Layer;
use super::driver::{Context, Event, Memory, Stream};
use crate::backend::cuda::machine::Prepared;
use crate::backend::cuda::network::to_stored;
use crate::backend::cuda::plan::node::{Convolution, NodeId, Pass};
use crate::backend::cuda::storage::Storage;
use crate::error::Result;
use crate::rng::{Purpose, Rng};
use std::rc::Rc;

/// Seconds that the repetitions of one sample take, about: long against the clock's half microsecond.
const SAMPLE: f64 = 2e-3;
/// Samples, of which the median counts.
const SAMPLES: usize = 9;
/// Bytes of the copy that stands for the card's bandwidth: far more than its caches hold.
const COPY: u64 = 1 << 30;
/// Side of the matrices whose product stands for the card's rate of arithmetic.
const SIDE: usize = 8192;

/// Seconds between two events around `run`, which sends work to `stream`: the median of `samples`, after one run that does
/// not count.
pub(super) fn time(
    context: &Rc<Context>,
    stream: &Stream,
    samples: usize,
    run: &dyn Fn() -> Result<()>,
) -> Result<f64> {
    run()?;
    let event = || Event::timed(context);
    let marks = (0..samples).map(|_| Ok((event()?, event()?))).collect::<Result<Vec<_>>>()?;
    for (begin, end) in &marks {
        begin.record(stream)?;
        run()?;
        end.record(stream)?;
    }
    stream.synchronize()?;
    let seconds = marks.iter().map(|(begin, end)| end.seconds_since(begin));
    Ok(median(seconds.collect::<Result<Vec<_>>>()?))
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Work for the card while the host queues what is to be timed: else a mark would wait for the host.
struct Ahead {
    from: Memory,
    to: Memory,
    copies: usize,
}

impl Ahead {
    /// Seconds that it keeps the card: longer than a host takes to queue a step of some hundred nodes.
    const SECONDS: f64 = 30e-3;
    const BYTES: u64 = 64 << 20;

    fn new(context: &Rc<Context>, stream: &Stream) -> Result<Self> {
        let memory =
            || Memory::new(context, "the copies that keep the card while a step is queued", Self::BYTES);
        let (from, to) = (memory()?, memory()?);
        let seconds = time(context, stream, 3, &|| to.copy(&from, Self::BYTES, stream))?;
        let copies = (Self::SECONDS / seconds.max(1e-6)).ceil().clamp(1.0, 2000.0) as usize;
        Ok(Self { from, to, copies })
    }

    fn send(&self, stream: &Stream) -> Result<()> {
        (0..self.copies).try_for_each(|_| self.to.copy(&self.from, Self::BYTES, stream))
    }
}

/// Bytes a second, read and written together, of a copy on the card that is larger than its caches.
pub fn copy_rate(context: &Rc<Context>) -> Result<f64> {
    let (free, _) = context.memory()?;
    let bytes = COPY.min(free / 4);
    let memory = || Memory::new(context, "the copy that is timed", bytes);
    let (from, to, stream) = (memory()?, memory()?, Stream::new(context)?);
    let seconds = time(context, &stream, SAMPLES, &|| to.copy(&from, bytes, &stream))?;
    Ok(2.0 * bytes as f64 / seconds)
}

impl Card {
    pub(super) fn time(&self, stream: &Stream, samples: usize, run: &dyn Fn() -> Result<()>) -> Result<f64> {
        time(&self.context, stream, samples, run)
    }

    /// Seconds of one node of a prepared plan, run again and again with nothing beside it, so that no launch is waited
    /// for. What fits the card's cache is found there from the second time on.
    pub fn time_node(&self, prepared: Prepared, id: NodeId) -> Result<f64> {
        let ready = &self.ready[prepared.0];
        let stream = &self.lanes[ready.plan.nodes[id].stream].stream;
        let once = self.time(stream, 3, &|| self.send(ready, id))?;
        let count = (SAMPLE / once.max(1e-6)).ceil().clamp(2.0, 100.0) as usize;
        let repeated = stream.capture(|| (0..count).try_for_each(|_| self.send(ready, id)))?;
        Ok(self.time(stream, SAMPLES, &|| stream.run(&repeated))? / count as f64)
    }

    /// Seconds of every node within whole passes, median of `passes`, and of nothing at all between two marks. One node at a
    /// time in the plan's order, so that none shares the card with another; the cache holds what the nodes before left there.
    pub fn time_nodes(&self, prepared: Prepared, passes: usize) -> Result<(Vec<f64>, f64)> {
        let ready = &self.ready[prepared.0];
        let nodes = &ready.plan.nodes;
        let event = || Event::timed(&self.context);
        // The last pair has nothing between.
        let marks = (0..=nodes.len()).map(|_| Ok((event()?, event()?))).collect::<Result<Vec<_>>>()?;
        let ahead = Ahead::new(&self.context, &self.lanes[nodes[0].stream].stream)?;
        let mut samples = vec![vec![]; marks.len()];
        for pass in 0..=passes {
            ahead.send(&self.lanes[nodes[0].stream].stream)?;
            for (id, node) in nodes.iter().enumerate() {
                let stream = &self.lanes[node.stream].stream;
                if id > 0 && nodes[id - 1].stream != node.stream {
                    stream.wait(&marks[id - 1].1)?;
                }
                marks[id].0.record(stream)?;
                self.send(ready, id)?;
                marks[id].1.record(stream)?;
            }
            let (stream, (begin, end)) =
                (&self.lanes[nodes[nodes.len() - 1].stream].stream, &marks[nodes.len()]);
            begin.record(stream)?;
            end.record(stream)?;
            self.context.synchronize()?;
            // The first pass does not count.
            for (samples, (begin, end)) in samples.iter_mut().zip(&marks).filter(|_| pass > 0) {
                samples.push(end.seconds_since(begin)?);
            }
        }
        let mut medians: Vec<f64> = samples.into_iter().map(median).collect();
        let nothing = medians.pop().expect("there is one pair more than nodes");
        Ok((medians, nothing))
    }

    /// Runs a training pass on what is staged and waits for it, so that operands hold what they hold in a training.
    pub fn run_pass(&mut self, prepared: Prepared) -> Result<()> {
        self.start(prepared)?;
        self.context.synchronize()
    }

    /// Seconds of a whole pass, as one graph, without uploads.
    pub fn time_pass(&mut self, prepared: Prepared) -> Result<f64> {
        self.capture(prepared)?;
        let (stream, graph) = (&self.lanes[0].stream, self.ready[prepared.0].graph.as_ref());
        let graph = graph.expect("captured above");
        self.time(stream, SAMPLES, &|| stream.run(graph))
    }

    /// As the function of that name.
    pub fn copy_rate(&self) -> Result<f64> {
        copy_rate(&self.context)
    }

    /// Operations a second of a large matrix product in the card's precision, of numbers that are not zero: power, and
    /// with it the clock, depends on how many bits change.
    pub fn product_rate(&self) -> Result<f64> {
        let storage = self.options.storage;
        let bytes = storage.bytes() * (SIDE * SIDE) as u64;
        let filled = |seed| {
            let memory = Memory::new(&self.context, "the matrices that are timed", bytes)?;
            fill(&memory, storage, seed)?;
            Ok(memory)
        };
        let [x, w, y] = [filled(1)?, filled(2)?, filled(3)?];
        let [x, w, y] = [&x, &w, &y].map(|memory| memory.at(0, bytes));
        let layer = Layer { pass: Pass::Forward, rows: SIDE, inputs: SIDE, outputs: SIDE, x, w, y };
        let product = layer.product(storage, false);
        let lane = &self.lanes[0];
        let seconds = self.time(&lane.stream, SAMPLES, &|| lane.cublas.run(&product))?;
        Ok(2.0 * (SIDE as f64).powi(3) / seconds)
    }

    /// The routine that a convolution of a prepared plan runs with, as the run's state names it.
    pub fn routine(&self, conv: &Convolution) -> Option<&str> {
        self.choices.get(&algorithms::key(conv, &self.rule())).map(String::as_str)
    }

    /// The card's compute capability.
    pub fn capability(&self) -> (i32, i32) {
        self.context.capability
    }

    /// Bytes of the card's cache.
    pub fn cache(&self) -> Result<u64> {
        self.context.cache()
    }
}

/// Numbers in [-1, 1), a block of them again and again.
fn fill(memory: &Memory, storage: Storage, seed: u64) -> Result<()> {
    const BLOCK: usize = 1 << 20;
    let mut rng = Rng::new(seed, 0, 0, Purpose::Init);
    let values: Vec<f32> = (0..BLOCK).map(|_| rng.range(-1.0, 1.0) as f32).collect();
    let block = to_stored(storage, &values);
    let mut offset = 0;
    while offset < memory.bytes() {
        let bytes = (memory.bytes() - offset).min(block.len() as u64);
        memory.write(offset, &block[..bytes as usize])?;
        offset += bytes;
    }
    Ok(())
}
