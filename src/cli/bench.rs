//! `engine bench`.

use super::args::BenchCommand;
use super::device::{self, Device};
#[cfg(feature = "cuda")]
use crate::backend::cuda::device::trace;
use crate::backend::{Backend, Outcome, Step};
use crate::config::{self, Config, Precision};
use crate::data::{self, Batch, Splits, TrainTransform, available_workers};
use crate::error::{Error, Kind, Result};
use crate::model::cost::cost;
use crate::model::graph::lower;
#[cfg(feature = "cuda")]
use crate::model::spec::RESNET50;
use crate::model::spec::ResNetSpec;
use crate::optim::sgd::Sgd;
use crate::rng::{Purpose, Rng};
use crate::simd::isa::Isa;
use crate::simd::pool::Pool;
use crate::simd::{copy, peak};
use crate::terminal::answer;
#[cfg(feature = "cuda")]
use crate::terminal::message;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub fn run(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Infer(args) => super::bench_infer::run(args)?,
        BenchCommand::Train {
            arch,
            batch,
            resolution,
            steps,
            threads,
            device,
            precision,
            algorithms,
            trace,
            json,
        } => {
            let spec = ResNetSpec::named(arch)
                .ok_or_else(|| Error::usage(format!("--arch {arch}: no such network; resnet50 is one")))?;
            if *batch == 0 {
                return Err(Error::usage("--batch 0: a step needs an image"));
            }
            let mut config = config::Device {
                threads: threads.threads,
                precision: *precision,
                ..config::Device::default()
            };
            if let Some(file) = algorithms {
                config.algorithms = format!("file:{}", file.display());
            }
            let (batch, resolution, steps, device) = (*batch, *resolution, *steps, *device);
            let trace = trace.clone();
            print(&TrainJob { spec, batch, resolution, steps, device, config, trace }.run()?, *json)?;
        }
        #[cfg(feature = "cuda")]
        BenchCommand::Step(args) => super::bench_step::run(args)?,
        BenchCommand::Kernels { batch, resolution, device, precision, json } => {
            bench_kernels(*batch, *resolution, *device, *precision, *json)?;
        }
        BenchCommand::Copy { device, threads, json } => bench_copy(*device, threads.threads, *json)?,
        BenchCommand::Loader { data, resolution, auto, seconds, workers, json } => {
            let transform = TrainTransform { auto: *auto, ..TrainTransform::new(*resolution) };
            bench_loader(data, transform, *seconds, *workers, *json)?;
        }
    }
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn bench_kernels(_: usize, _: usize, _: Device, _: Precision, _: bool) -> Result<()> {
    Err(Error::device("this engine was built without the feature cuda"))
}

#[cfg(feature = "cuda")]
fn bench_kernels(
    batch: usize,
    resolution: usize,
    device: Device,
    precision: Precision,
    json: bool,
) -> Result<()> {
    use crate::backend::cuda::bench::{Job, kernels};
    let ordinal = device.ordinal(
        "engine bench kernels measures a GPU; cargo bench --bench conv measures the CPU's convolutions",
    )?;
    let (storage, tf32) = device::storage(precision);
    let report = kernels(&Job {
        spec: RESNET50,
        ordinal,
        storage,
        tf32,
        batch,
        resolution,
        form: config::Form::BASE,
    })?;
    if json { answer(serde_json::to_string(&report).expect("plain fields")) } else { answer(report) }
}

/// Of the card, or of main memory where there is none.
fn bench_copy(device: Device, threads: usize, json: bool) -> Result<()> {
    let main_memory = || {
        let pool = Pool::new(threads);
        (format!("main memory, {} threads", pool.threads()), copy::measure(&pool))
    };
    let (device, rate) = match device {
        Device::Cpu => main_memory(),
        Device::Cuda(ordinal) => copy_on_card(ordinal)?,
        Device::Auto => match copy_on_card(0) {
            Err(error) if error.kind == Kind::Device => main_memory(),
            measured => measured?,
        },
    };
    if json {
        return answer(serde_json::json!({"gigabytes_per_second": rate / 1e9, "device": device}));
    }
    answer(format!("copy: {:.1} GB/s read and written, {device}", rate / 1e9))
}

#[cfg(feature = "cuda")]
fn copy_on_card(ordinal: usize) -> Result<(String, f64)> {
    crate::backend::cuda::bench::copy(ordinal)
}

#[cfg(not(feature = "cuda"))]
fn copy_on_card(_: usize) -> Result<(String, f64)> {
    Err(Error::device("this engine was built without the feature cuda"))
}

/// Speeds of the loader alone, one line for each number of workers up to `workers`.
fn bench_loader(
    data: &Path,
    transform: TrainTransform,
    seconds: f64,
    workers: usize,
    json: bool,
) -> Result<()> {
    let splits = Splits::open(data)?;
    let (_, split) = splits.splits.first().ok_or_else(|| Error::input_file(data, "holds no images"))?;
    let workers = if workers == 0 { available_workers() } else { workers };
    for workers in 1..=workers {
        let speed = data::bench::loader(split, transform, workers, seconds)?;
        if json {
            let stages = &speed.stages;
            let figures = serde_json::json!({
                "images_per_second": speed.images_per_second(),
                "images_per_cpu_second": speed.images_per_cpu_second(),
                "best_images_per_cpu_second": speed.best,
                "latency_ms": latency(speed.batch_seconds.clone()),
                "peak_memory_mb": peak_memory_mb(),
                "microseconds_per_image": {
                    "read": stages.read, "disk": stages.disk, "decode": stages.decode, "resize": stages.resize,
                    "augment": stages.augment, "copy": speed.copy,
                },
                "waited_share": speed.waited, "images": speed.images, "bytes_per_image": stages.bytes,
                "workers": workers, "resolution": transform.resolution, "auto": transform.auto, "decoder": speed.decoder, "bad": speed.bad,
            });
            answer(figures)?;
        } else {
            answer(speed)?;
        }
    }
    Ok(())
}

/// A measurement, as every `engine bench` answers it.
#[derive(serde::Serialize)]
struct Report {
    what: String,
    images_per_second: f64,
    latency_ms: Latency,
    peak_memory_mb: f64,
    /// Of this machine's measured multiply-add peak; on the CPU only.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_peak: Option<f64>,
    device: String,
    threads: usize,
}

#[derive(serde::Serialize)]
pub struct Latency {
    pub median: f64,
    pub p95: f64,
    pub min: f64,
}

struct TrainJob {
    spec: ResNetSpec,
    batch: usize,
    resolution: usize,
    steps: usize,
    device: Device,
    config: config::Device,
    /// Where a trace of the driver's calls goes.
    trace: Option<PathBuf>,
}

impl TrainJob {
    fn run(&self) -> Result<Report> {
        let mut config = Config::default();
        config.model.arch = self.spec.name.to_owned();
        config.data.resolution = self.resolution;
        config.data.batch = self.batch;
        config.device = self.config.clone();
        let (mut backend, environment) = device::open(&config, self.spec.classes, self.device)?;
        let on_cpu = environment.device == "cpu";
        if on_cpu && self.trace.is_some() {
            return Err(Error::usage("--trace shows what is asked of a GPU's driver: give --device cuda"));
        }
        let (times, seconds) = self.time(backend.as_mut())?;
        drop(backend);
        let flops = cost(&lower(&self.spec, self.resolution)?).training_flops() * self.batch;
        let (isa, pool) = (Isa::current(), Pool::new(config.device.threads));
        let share = |seconds: f64| flops as f64 / seconds / fma_peak(&pool, isa);
        Ok(Report {
            what: format!("training {} at {} px, batch {}", self.spec.name, self.resolution, self.batch),
            images_per_second: self.batch as f64 / seconds,
            latency_ms: latency(times),
            peak_memory_mb: peak_memory_mb(),
            share_of_peak: on_cpu.then(|| share(seconds)),
            device: if on_cpu { format!("cpu, {}", isa.name()) } else { environment.device },
            threads: pool.threads(),
        })
    }

    /// Seconds of every step, and of a step on average. A GPU runs behind: the clock stops when the last step has ended.
    fn time(&self, backend: &mut dyn Backend) -> Result<(Vec<f64>, f64)> {
        const WARM_UP: usize = 2;
        let batch = self.synthetic_batch();
        let sgd = Sgd { lr: 0.01, momentum: 0.9, nesterov: false, weight_decay: 1e-4 };
        let step = Step::plain(0, 1, sgd, 0.1);
        let fine = |outcome: Outcome| outcome.fault.map_or(Ok(()), |fault| Err(Error::failed(fault)));
        for _ in 0..WARM_UP {
            backend.submit(&batch, &step)?;
            while let Some(outcome) = backend.wait()? {
                fine(outcome)?;
            }
        }
        self.begin_trace();
        let (began, mut times) = (Instant::now(), vec![]);
        for _ in 0..self.steps.max(1) {
            let start = Instant::now();
            backend.submit(&batch, &step)?;
            while let Some(outcome) = backend.poll()? {
                fine(outcome)?;
            }
            times.push(start.elapsed().as_secs_f64());
        }
        while let Some(outcome) = backend.wait()? {
            fine(outcome)?;
        }
        let seconds = began.elapsed().as_secs_f64() / times.len() as f64;
        self.end_trace()?;
        Ok((times, seconds))
    }

    #[cfg(not(feature = "cuda"))]
    fn begin_trace(&self) {}

    #[cfg(not(feature = "cuda"))]
    fn end_trace(&self) -> Result<()> {
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn begin_trace(&self) {
        if self.trace.is_some() {
            trace::begin();
        }
    }

    /// Writes the trace, and says in a line whether the host waited for the card inside a step.
    #[cfg(feature = "cuda")]
    fn end_trace(&self) -> Result<()> {
        let (Some(path), Some(trace)) = (&self.trace, trace::end()) else { return Ok(()) };
        std::fs::write(path, trace.to_json()).map_err(|error| Error::output_file(path, "write", &error))?;
        let (steps, blocks) = trace.summary();
        let found = match &blocks[..] {
            [] => "nothing between the first and the last waits for the card".to_owned(),
            [first, ..] => format!("{} calls between them wait for the card, first: {first}", blocks.len()),
        };
        message(format!("{}: {steps} steps; {found}", path.display()));
        Ok(())
    }

    fn synthetic_batch(&self) -> Batch {
        let mut rng = Rng::new(0, 0, 0, Purpose::Synth);
        let bytes = self.batch * self.resolution * self.resolution * 3;
        Batch {
            images: (0..bytes).map(|_| rng.next_u64() as u8).collect(),
            labels: (0..self.batch).map(|_| rng.below(self.spec.classes as u64) as u32).collect(),
            samples: (0..self.batch as u32).collect(),
            resolution: self.resolution,
            ..Batch::default()
        }
    }
}

/// Multiply-add peak in operations per second: the best of several short measurements.
fn fma_peak(pool: &Pool, isa: Isa) -> f64 {
    (0..10).map(|_| peak::measure(pool, isa)).fold(0.0, f64::max)
}

/// In milliseconds.
pub fn latency(mut seconds: Vec<f64>) -> Latency {
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| 1e3 * seconds[((seconds.len() - 1) as f64 * share).round() as usize];
    Latency { median: at(0.5), p95: at(0.95), min: at(0.0) }
}

/// Largest resident size so far, from Linux's /proc; 0 where there is none.
pub fn peak_memory_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) / 1024.0
}

fn print(report: &Report, json: bool) -> Result<()> {
    if json {
        return answer(serde_json::to_string(report).expect("plain fields"));
    }
    let share = report
        .share_of_peak
        .map_or(String::new(), |share| format!("{:.0} % of the multiply-add peak, ", 100.0 * share));
    answer(format!(
        "{}: {:.2} images/s, median {:.1} ms a step, {share}{:.0} MB, {} ({} threads)",
        report.what,
        report.images_per_second,
        report.latency_ms.median,
        report.peak_memory_mb,
        report.device,
        report.threads,
    ))
}
