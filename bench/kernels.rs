//! `cargo bench --bench kernels`: every call of ResNet-50's training step on the GPU against its floor, as
//! `engine bench kernels` prints it; on a machine without a GPU the convolutions of the CPU (conv.rs).
//!
//! KERNELS_BATCH: images of a step, 256 by default. KERNELS_RESOLUTION: their side, 224 by default.

#[path = "conv.rs"]
mod conv;

fn main() {
    match gpu() {
        Ok(()) => {}
        Err(error) => {
            println!("no GPU is measured ({error}); the convolutions of the CPU:");
            conv::main();
        }
    }
}

#[cfg(feature = "cuda")]
fn gpu() -> Result<(), engine::error::Error> {
    use engine::backend::cuda::bench::{Job, kernels};
    use engine::backend::cuda::storage::Storage;
    use engine::config::Form;
    use engine::model::spec::RESNET50;
    let number =
        |name: &str, default: usize| std::env::var(name).map_or(default, |text| text.parse().expect(name));
    let (batch, resolution) = (number("KERNELS_BATCH", 256), number("KERNELS_RESOLUTION", 224));
    let report = kernels(&Job {
        spec: RESNET50,
        ordinal: 0,
        storage: Storage::F16,
        tf32: false,
        batch,
        resolution,
        form: Form::BASE,
    })?;
    println!("{report}");
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Result<(), engine::error::Error> {
    Err(engine::error::Error::device("built without the feature cuda"))
}
