//! `engine bench infer`.

use super::args::InferArgs;
use super::bench::{Latency, latency, peak_memory_mb};
use crate::cpu_time::thread_time;
use crate::error::{Error, Result};
use crate::infer::file::ModelFile;
use crate::infer::profile::{Profile, Profiler};
use crate::infer::random::RandomWeights;
use crate::infer::weights::Weights;
use crate::infer::{Options, Precision, Program};
use crate::model::cost::cost;
use crate::model::graph::{Graph, lower};
use crate::model::spec::{MEAN, ResNetSpec, STD};
use crate::rng::{Purpose, Rng};
use crate::simd::isa::Isa;
use crate::simd::peak;
use crate::simd::pool::Pool;
use crate::terminal::answer;
use std::path::Path;
use std::time::Instant;

/// Runs before the clock counts.
const WARM_UP: usize = 3;

/// What `--json` answers.
#[derive(serde::Serialize)]
struct Report {
    what: String,
    images_per_second: f64,
    /// Of a run of the whole batch.
    latency_ms: Latency,
    peak_memory_mb: f64,
    /// The fastest run, of this machine's measured multiply-add peak in this precision; operations are counted as a direct
    /// convolution does them.
    share_of_peak: f64,
    device: String,
    precision: &'static str,
    threads: usize,
    /// From the model's name to its first answer; random weights have no file to load.
    #[serde(skip_serializing_if = "Option::is_none")]
    load_ms: Option<f64>,
    /// What a run takes of a core on average, on one thread: other programs on the machine do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ms: Option<f64>,
    runs: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Profile>,
}

pub fn run(args: &InferArgs) -> Result<()> {
    let report = Job::new(args)?.measure(args)?;
    if args.json {
        return answer(serde_json::to_string(&report).expect("plain fields"));
    }
    if let Some(profile) = &report.profile {
        answer(profile)?;
    }
    let load = report.load_ms.map_or(String::new(), |ms| format!("first answer after {ms:.0} ms, "));
    answer(format!(
        "{}: {:.2} images/s, median {:.2} ms a run (fastest {:.2}), {:.0} % of the multiply-add peak, {load}{:.0} MB, {} {} \
         ({} threads)",
        report.what,
        report.images_per_second,
        report.latency_ms.median,
        report.latency_ms.min,
        100.0 * report.share_of_peak,
        report.peak_memory_mb,
        report.device,
        report.precision,
        report.threads,
    ))
}

/// A compiled network and pictures for it.
struct Job {
    program: Program,
    isa: Isa,
    /// u8 RGB [batch, resolution, resolution, 3].
    images: Vec<u8>,
    what: String,
    macs: usize,
    load_ms: Option<f64>,
}

impl Job {
    fn new(args: &InferArgs) -> Result<Self> {
        if args.batch == 0 {
            return Err(Error::usage("--batch 0: a run needs an image"));
        }
        if let Some(rest) = args.model.strip_prefix("random") {
            let arch = rest.strip_prefix(':').unwrap_or("resnet50");
            let spec = ResNetSpec::named(arch).ok_or_else(|| {
                Error::usage(format!("--model {}: no such network; random:resnet50 is one", args.model))
            })?;
            let graph = lower(&spec, args.resolution.unwrap_or(224))?;
            let precision = args.precision.unwrap_or_else(|| Precision::fastest(args.isa, true));
            let weights = RandomWeights { graph: &graph, seed: 0 };
            return Self::compile(args, &graph, &weights, Options::new(precision, MEAN, STD), None);
        }
        let start = Instant::now();
        let model = ModelFile::open(Path::new(&args.model))?;
        let resolution = args.resolution.unwrap_or(model.graph().resolution);
        let graph = lower(&model.graph().spec, resolution)?;
        let precision = args.precision.unwrap_or_else(|| Precision::fastest(args.isa, model.has_int8()));
        let description = model.description();
        let options = Options::new(precision, description.mean, description.std);
        Self::compile(args, &graph, &model, options, Some(start))
    }

    /// `start` is when loading a file began.
    fn compile(
        args: &InferArgs,
        graph: &Graph,
        weights: &dyn Weights,
        options: Options,
        start: Option<Instant>,
    ) -> Result<Self> {
        let mut rng = Rng::new(0, 0, 0, Purpose::Synth);
        let side = graph.resolution;
        let images: Vec<u8> = (0..args.batch * side * side * 3).map(|_| rng.next_u64() as u8).collect();
        let threads = args.threads.threads;
        let options = Options { isa: args.isa, threads, batch: args.batch, ..options };
        let mut program = Program::compile(graph, weights, &options)?;
        program.run(&images)?;
        Ok(Self {
            program,
            isa: args.isa,
            images,
            what: format!("{} at {side} px, batch {}", graph.spec.name, args.batch),
            macs: cost(graph).macs * args.batch,
            load_ms: start.map(|start| 1e3 * start.elapsed().as_secs_f64()),
        })
    }

    fn measure(mut self, args: &InferArgs) -> Result<Report> {
        for _ in 0..WARM_UP {
            self.program.run(&self.images)?;
        }
        let (mut times, begin, cpu) = (vec![], Instant::now(), thread_time());
        let is_enough = |runs: usize| match args.iterations {
            Some(count) => runs >= count.max(1),
            None => runs >= 3 && begin.elapsed().as_secs_f64() >= args.seconds,
        };
        while !is_enough(times.len()) {
            let start = Instant::now();
            self.program.run(&self.images)?;
            times.push(start.elapsed().as_secs_f64());
        }
        let cpu = 1e3 * (thread_time() - cpu).as_secs_f64() / times.len() as f64;
        let (runs, total) = (times.len(), times.iter().sum::<f64>());
        let images = args.batch * runs;
        let memory = peak_memory_mb();
        let latency_ms = latency(times);
        let pool = Pool::new(self.program.threads());
        let precision = self.program.precision();
        let peak = (0..10).map(|_| peak::measure_in(&pool, self.isa, precision)).fold(0.0, f64::max);
        Ok(Report {
            what: self.what.clone(),
            images_per_second: images as f64 / total,
            share_of_peak: 2.0 * self.macs as f64 / (1e-3 * latency_ms.min) / peak,
            latency_ms,
            peak_memory_mb: memory,
            device: format!("cpu, {}", self.isa.name()),
            precision: precision.name(),
            threads: self.program.threads(),
            load_ms: self.load_ms,
            cpu_ms: (self.program.threads() == 1).then_some(cpu),
            runs,
            profile: args.layers.then(|| self.profile(runs)).transpose()?,
        })
    }

    /// The fastest of `runs` runs of each layer, and no fewer than 20.
    fn profile(&mut self, runs: usize) -> Result<Profile> {
        let mut profiler = Profiler::new(self.isa, &self.program);
        for run in 0..runs.max(20) {
            if run % 4 == 0 {
                profiler.measure_peak();
            }
            self.program.run(&self.images)?;
            profiler.add(&self.program);
        }
        Ok(profiler.finish())
    }
}
