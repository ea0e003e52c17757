//! tract and rten as peers of bench/peers/infer.py, which see: a model is loaded once, then timed whenever a line with a
//! number of seconds comes in. One JSON object a line goes out, as from bench/peers/infer_worker.py.

use rten::{ModelOptions, ValueOrView};
use rten_tensor::{AsView, NdTensor};
use std::error::Error;
use std::io::BufRead;
use std::time::{Duration, Instant};
use tract_linalg::multithread::{Executor, set_default_executor};
use tract_onnx::prelude::*;

const RESOLUTION: usize = 224;

/// f32 [n, 3, 224, 224] -> logits.
type Network = Box<dyn Fn(&[f32]) -> Result<Vec<f32>, Box<dyn Error>>>;

fn load_tract(path: &str, batch: usize, threads: usize) -> Result<Network, Box<dyn Error>> {
    if threads > 1 {
        set_default_executor(Executor::multithread(threads));
    }
    let plan = tract_onnx::onnx().model_for_path(path)?.into_optimized()?.into_runnable()?;
    Ok(Box::new(move |x| {
        let x = Tensor::from_shape(&[batch, 3, RESOLUTION, RESOLUTION], x)?;
        let logits = plan.run(tvec!(x.into()))?;
        Ok(logits[0].to_plain_array_view::<f32>()?.iter().copied().collect())
    }))
}

/// Threads come from RTEN_NUM_THREADS.
fn load_rten(path: &str, batch: usize) -> Result<Network, Box<dyn Error>> {
    let mut options = ModelOptions::with_all_ops();
    options.prepack_weights(true);
    let model = options.load_file(path)?;
    Ok(Box::new(move |x| {
        let x = NdTensor::from_data([batch, 3, RESOLUTION, RESOLUTION], x.to_vec());
        let logits: NdTensor<f32, 2> = model.run_one(ValueOrView::from(x.view()), None)?.try_into()?;
        Ok(logits.iter().copied().collect())
    }))
}

/// Seconds that this process had of all cores, in hundredths (proc_pid_stat(5), fields 14 and 15).
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn peak_memory_mb() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap_or(0.0) / 1024.0
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [engine, _precision, model, batch, threads] = &arguments[..] else {
        return Err("usage: infer-peer tract|rten PRECISION MODEL BATCH THREADS".into());
    };
    let (batch, threads): (usize, usize) = (batch.parse()?, threads.parse()?);
    let start = Instant::now();
    let (network, version) = match engine.as_str() {
        "tract" => (load_tract(model, batch, threads)?, "0.23.9"),
        "rten" => (load_rten(model, batch)?, "0.27.0"),
        other => return Err(format!("no peer {other}").into()),
    };
    let pixel = |i: usize| ((i * 7919) % 4096) as f32 / 1024.0 - 2.0;
    let x: Vec<f32> = (0..batch * 3 * RESOLUTION * RESOLUTION).map(pixel).collect();
    let logits = network(&x)?;
    let load_ms = 1e3 * start.elapsed().as_secs_f64();
    let kernels = format!("{{\"{engine}'s own\": 1}}");
    println!(
        "{{\"load_ms\": {load_ms}, \"version\": \"{version}\", \"kernels\": {kernels}, \"logits\": {:?}}}",
        &logits[..8]
    );
    for line in std::io::stdin().lock().lines() {
        let seconds = Duration::from_secs_f64(line?.trim().parse()?);
        let (begin, cpu, mut times) = (Instant::now(), cpu_seconds(), vec![]);
        while begin.elapsed() < seconds || times.len() < 3 {
            let start = Instant::now();
            network(&x)?;
            times.push(1e3 * start.elapsed().as_secs_f64());
        }
        let cpu_ms = 1e3 * (cpu_seconds() - cpu) / times.len() as f64;
        println!("{{\"ms\": {times:?}, \"cpu_ms\": {cpu_ms}}}");
    }
    println!("{{\"peak_memory_mb\": {}}}", peak_memory_mb());
    Ok(())
}
