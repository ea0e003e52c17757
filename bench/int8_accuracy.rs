//! What 8 bits cost: top-1 of a model file on a validation split, in f32 and in exact integers.
//!
//!     cargo run --release --example int8_accuracy -- MODEL DIR|TAR
//!
//! f32 is the CPU backend's evaluation of the same file; integers are `infer::integer`, which 8-bit programs are
//! compared with.

use engine::backend::cpu::CpuBackend;
use engine::backend::{Backend, Weights};
use engine::data::{Dataset, EvalOptions, Loader};
use engine::error::{Error, Result};
use engine::infer::file::ModelFile;
use engine::infer::integer::IntegerNetwork;
use engine::simd::pool::Pool;
use engine::tensor::HostTensor;
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, data] = &args[..] else {
        return Err(Error::usage("expected MODEL and DIR|TAR"));
    };
    let file = ModelFile::open(Path::new(model))?;
    let (graph, description) = (file.graph(), file.description());
    let mut tensors = engine::backend::NamedTensors::new();
    for param in &graph.params {
        let (shape, data) = (param.shape.clone(), file.f32(&param.name)?);
        tensors.insert(param.name.clone(), HostTensor { shape, data });
    }
    for buffer in &graph.buffers {
        let (shape, data) = (vec![buffer.channels], file.f32(&buffer.name)?);
        tensors.insert(buffer.name.clone(), HostTensor { shape, data });
    }
    let mut backend = CpuBackend::for_inference(&graph.spec, &tensors, description.resolution, 0)?;
    let integers = IntegerNetwork::new(graph, &file)?;
    let pool = Pool::new(0);
    let dataset = Dataset::open(Path::new(data))?;
    let loader = Loader::eval(dataset.val, EvalOptions::new(description.transform(), 50))?;
    let (mut images, mut plain, mut rounded, mut same) = (0, 0, 0, 0);
    let (mut signal, mut noise) = (0.0, 0.0);
    for batch in loader {
        let batch = batch?;
        let want = backend.eval_batch(&batch, Weights::Live)?.data;
        let pixels = batch.images.len() / batch.labels.len();
        let runs = pool.map(batch.images.chunks(pixels * 5).collect(), |images| integers.run(images));
        let mut got = vec![];
        for run in runs {
            got.extend(run?.logits);
        }
        let classes = graph.spec.classes;
        for (label, (want, got)) in
            batch.labels.iter().zip(want.chunks_exact(classes).zip(got.chunks_exact(classes)))
        {
            images += 1;
            plain += usize::from(best(want) == *label as usize);
            rounded += usize::from(best(got) == *label as usize);
            same += usize::from(best(want) == best(got));
            signal += want.iter().map(|want| f64::from(*want).powi(2)).sum::<f64>();
            noise += want.iter().zip(got).map(|(want, got)| f64::from(want - got).powi(2)).sum::<f64>();
        }
    }
    let percent = |count: usize| 100.0 * count as f64 / images as f64;
    println!(
        "{images} images: top-1 {:.2}% in f32, {:.2}% in 8 bits; the same class for {:.2}%; logits {:.1} dB",
        percent(plain),
        percent(rounded),
        percent(same),
        10.0 * (signal / noise).log10()
    );
    Ok(())
}

fn best(logits: &[f32]) -> usize {
    let order = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    order.expect("a network has classes").0
}
