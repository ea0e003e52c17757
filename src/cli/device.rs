//! Which device trains: `--device auto|cpu|cuda[:N]`, and the backend on it.

use crate::backend::Backend;
use crate::backend::cpu::{CpuBackend, CpuOptions};
#[cfg(feature = "cuda")]
use crate::comm;
use crate::comm::{Ranks, World};
use crate::config::{Config, Precision, Workers};
use crate::data::{JPEG_DECODER, available_workers};
use crate::error::{Error, Result};
use crate::model::spec::ResNetSpec;
use crate::simd::isa::Isa;
use crate::terminal::message;
use crate::train::passes::extras;
use crate::train::state::Environment;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A GPU where one is usable, else the CPU.
    Auto,
    Cpu,
    /// The card of this number.
    Cuda(usize),
}

#[cfg(feature = "cuda")]
impl Device {
    /// The card's number, for what runs on a GPU alone; `elsewhere` is what one who wants the CPU is told.
    pub fn ordinal(self, elsewhere: &str) -> Result<usize> {
        match self {
            Self::Auto => Ok(0),
            Self::Cuda(ordinal) => Ok(ordinal),
            Self::Cpu => Err(Error::usage(elsewhere)),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cuda = |number: &str| number.parse().map(Self::Cuda);
        match (text, text.strip_prefix("cuda:").map(cuda)) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(device))) => Ok(device),
            _ => Err("expected auto, cpu, cuda or cuda:N, N counted from 0".to_owned()),
        }
    }
}

/// Fails early, before any data is read or drawn, where the device cannot compute in the configuration's precision, or a
/// card is asked for and its libraries are not here.
pub fn preflight(device: Device, config: &Config) -> Result<()> {
    match device {
        Device::Auto => Ok(()),
        Device::Cpu => check_cpu(config),
        Device::Cuda(_) => find_libraries(),
    }
}

#[cfg(feature = "cuda")]
fn find_libraries() -> Result<()> {
    use crate::backend::cuda::device::libraries::Library;
    [Library::Driver, Library::Cublas, Library::Cudnn].iter().try_for_each(|library| library.find().map(drop))
}

#[cfg(not(feature = "cuda"))]
fn find_libraries() -> Result<()> {
    Ok(())
}

fn check_cpu(config: &Config) -> Result<()> {
    if wants_gpu(config) {
        return Err(Error::usage(
            "device.precision asks for a GPU; the CPU computes in fp32: set device.precision=fp32 or auto",
        ));
    }
    Ok(())
}

/// `--precision`, by the names of `device.precision`.
pub fn precision(text: &str) -> Result<Precision, String> {
    use serde::Deserialize;
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};
    let name: StrDeserializer<'_, Error> = text.into_deserializer();
    Precision::deserialize(name).map_err(|_| "expected auto, fp32, tf32, fp16 or bf16".to_owned())
}

/// Refuses what ranks cannot share, before any data is read.
pub fn check_ranks(config: &Config, device: Device, world: &World) -> Result<()> {
    if world.is_alone() {
        return Ok(());
    }
    check_pieces(config, world.size)?;
    if matches!(device, Device::Cuda(ordinal) if ordinal != 0) {
        return Err(Error::usage(
            "every rank takes the card of its own number on its host (LOCAL_RANK): give --device cuda, without a number",
        ));
    }
    Ok(())
}

/// Refuses a step whose pieces `ranks` cannot share evenly.
pub fn check_pieces(config: &Config, ranks: usize) -> Result<()> {
    let micro_steps = config.micro_steps();
    if micro_steps.is_multiple_of(ranks) {
        return Ok(());
    }
    let (batch, micro) = (config.data.batch, config.micro_batch());
    Err(Error::usage(format!(
        "data.batch = {batch} goes through the device in {micro_steps} pieces of data.micro_batch = {micro}, which {ranks} \
         ranks cannot share evenly: start as many ranks as divide {micro_steps}, or set data.micro_batch (another recipe, since \
         batch norm sees a piece at a time)"
    )))
}

/// The same configuration with this rank's part of the host's cores, where the launcher has not bound it to some.
pub fn share_cores(config: &mut Config, world: &World) {
    let cores = available_workers();
    if world.local_size == 1 || is_bound() {
        return;
    }
    let own = (cores / world.local_size).max(1);
    if config.device.threads == 0 {
        config.device.threads = own;
    }
    if matches!(config.data.workers, Workers::Auto(_)) {
        config.data.workers = Workers::Count(own);
    }
}

/// Whether this process may use only some of the host's processors (proc(5), sysfs-devices-system-cpu).
fn is_bound() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let online = fs::read_to_string("/sys/devices/system/cpu/online").ok();
    match (allowed, online) {
        (Some(allowed), Some(online)) => allowed.trim() != online.trim(),
        _ => false,
    }
}

/// As [`open`], for one of several ranks.
pub fn open_among(
    config: &Config,
    classes: usize,
    device: Device,
    world: &World,
    ranks: &Ranks,
) -> Result<(Box<dyn Backend>, Environment)> {
    if world.is_alone() {
        return open(config, classes, device);
    }
    let (backend, mut environment) = match device {
        Device::Cuda(_) => open_cuda_among(config, classes, world, ranks)?,
        Device::Auto if has_nvidia_card() => open_cuda_among(config, classes, world, ranks)?,
        Device::Auto | Device::Cpu => {
            let (mut backend, environment) = cpu(config, classes)?;
            backend.join(Ranks::clone(ranks), config.model.sync_batch_norm);
            let backend: Box<dyn Backend> = Box::new(backend);
            (backend, environment)
        }
    };
    environment.ranks = world.size;
    Ok((backend, environment))
}

/// A freshly initialised backend for `classes` classes, and what its bits depend on besides the recipe.
pub fn open(config: &Config, classes: usize, device: Device) -> Result<(Box<dyn Backend>, Environment)> {
    match device {
        Device::Cpu => open_cpu(config, classes),
        Device::Cuda(ordinal) => open_cuda(config, classes, ordinal),
        Device::Auto => match open_cuda(config, classes, 0) {
            Err(error) if error.kind == crate::error::Kind::Device => {
                if wants_gpu(config) {
                    return Err(error);
                }
                // Where there is no card, the CPU is no news.
                if has_nvidia_card() {
                    message(format!("training on the CPU: {error}"));
                }
                open_cpu(config, classes)
            }
            opened => opened,
        },
    }
}

/// Whether the PCI bus has a device of NVIDIA's (vendor 10de) that is a display or 3D controller (class 03).
pub fn has_nvidia_card() -> bool {
    let Ok(devices) = fs::read_dir("/sys/bus/pci/devices") else { return false };
    let reads =
        |path: PathBuf, prefix: &str| fs::read_to_string(path).is_ok_and(|text| text.starts_with(prefix));
    devices
        .flatten()
        .map(|device| device.path())
        .any(|device| reads(device.join("vendor"), "0x10de") && reads(device.join("class"), "0x03"))
}

/// Whether the precision is one that the CPU does not compute in.
fn wants_gpu(config: &Config) -> bool {
    !matches!(config.device.precision, Precision::Auto | Precision::Fp32)
}

fn spec(config: &Config, classes: usize) -> ResNetSpec {
    let spec = ResNetSpec::named(&config.model.arch).expect("the configuration is validated");
    spec.with_classes(classes).with_fan(config.model.init)
}

fn environment(device: String) -> Environment {
    Environment {
        engine: env!("CARGO_PKG_VERSION").to_owned(),
        device,
        isa: Isa::current().name().to_owned(),
        decoder: JPEG_DECODER.to_owned(),
        ranks: 1,
    }
}

fn open_cpu(config: &Config, classes: usize) -> Result<(Box<dyn Backend>, Environment)> {
    let (backend, environment) = cpu(config, classes)?;
    Ok((Box::new(backend), environment))
}

fn cpu(config: &Config, classes: usize) -> Result<(CpuBackend, Environment)> {
    check_cpu(config)?;
    let backend = CpuBackend::new(&CpuOptions {
        spec: spec(config, classes),
        resolution: config.data.resolution,
        seed: config.seed,
        zero_gamma: config.model.zero_gamma,
        decay: config.optim.decay,
        extras: extras(config),
        threads: config.device.threads,
        isa: Isa::current(),
    })?;
    Ok((backend, environment("cpu".to_owned())))
}

/// What a card stores, and whether its f32 products may round their operands.
#[cfg(feature = "cuda")]
pub fn storage(precision: Precision) -> (crate::backend::cuda::storage::Storage, bool) {
    use crate::backend::cuda::storage::Storage;
    match precision {
        Precision::Auto | Precision::Fp16 => (Storage::F16, false),
        Precision::Bf16 => (Storage::Bf16, false),
        Precision::Fp32 => (Storage::F32, false),
        Precision::Tf32 => (Storage::F32, true),
    }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: &Config, _: usize, _: usize) -> Result<(Box<dyn Backend>, Environment)> {
    Err(Error::device("this engine was built without the feature cuda"))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda_among(
    config: &Config,
    classes: usize,
    _: &World,
    _: &Ranks,
) -> Result<(Box<dyn Backend>, Environment)> {
    open_cuda(config, classes, 0)
}

#[cfg(feature = "cuda")]
fn open_cuda_among(
    config: &Config,
    classes: usize,
    world: &World,
    ranks: &Ranks,
) -> Result<(Box<dyn Backend>, Environment)> {
    // A launcher may show every rank its own card alone.
    let visible = crate::backend::cuda::device::driver::cards()?;
    let ordinal = if visible == 1 { 0 } else { world.local_rank };
    open_card(config, classes, ordinal, Some(ranks))
}

#[cfg(feature = "cuda")]
fn open_cuda(config: &Config, classes: usize, ordinal: usize) -> Result<(Box<dyn Backend>, Environment)> {
    let alone = exchanges_alone().then(comm::alone);
    open_card(config, classes, ordinal, alone.as_ref())
}

/// Whether a single card makes the exchanges that it would make among several: what they cost is measured so.
#[cfg(feature = "cuda")]
fn exchanges_alone() -> bool {
    std::env::var("ENGINE_NCCL_ALONE").is_ok_and(|value| value == "1")
}

/// With `ranks`, joined with the cards of others.
#[cfg(feature = "cuda")]
fn open_card(
    config: &Config,
    classes: usize,
    ordinal: usize,
    ranks: Option<&Ranks>,
) -> Result<(Box<dyn Backend>, Environment)> {
    use crate::backend::cuda::device::algorithms::File;
    use crate::backend::cuda::device::card::{Card, CardOptions};
    use crate::backend::cuda::plan::{Recipe, ScalePolicy};
    use crate::backend::cuda::storage::Storage;
    use crate::backend::cuda::{CudaBackend, CudaOptions};
    let device = &config.device;
    let (storage, tf32) = storage(device.precision);
    let scale = match storage {
        Storage::F16 => ScalePolicy {
            initial: device.loss_scale as f32,
            interval: device.loss_scale_interval as u32,
            floor: device.loss_scale_floor as f32,
            ..ScalePolicy::FP16
        },
        Storage::Bf16 | Storage::F32 => ScalePolicy::NONE,
    };
    let algorithms = device.algorithms.strip_prefix("file:").map(|path| File(path.into()));
    let mut card = Card::open(CardOptions {
        deterministic: device.deterministic,
        search: device.search,
        algorithms,
        ..CardOptions::new(ordinal, storage, tf32)
    })?;
    if let Some(ranks) = ranks {
        card.join(ranks)?;
    }
    let identity = card.identity().to_owned();
    message(format!("training on {identity}"));
    let options = CudaOptions {
        spec: spec(config, classes),
        resolution: config.data.resolution,
        seed: config.seed,
        zero_gamma: config.model.zero_gamma,
        decay: config.optim.decay,
        recipe: Recipe { ranks: ranks.map(|ranks| ranks.size()), ..recipe(config) },
        storage,
        scale,
        form: device.form,
        keep: false,
    };
    let micro_steps = config.micro_steps() / ranks.map_or(1, |ranks| ranks.size());
    let backend = CudaBackend::new(options, card, config.micro_batch(), micro_steps)?;
    Ok((Box::new(backend), environment(identity)))
}

/// What a card's plans are made for.
#[cfg(feature = "cuda")]
pub fn recipe(config: &Config) -> crate::backend::cuda::plan::Recipe {
    use crate::backend::cuda::plan::{Loss, Recipe, Rule};
    use crate::config::{LossKind, RuleKind};
    Recipe {
        rule: match config.optim.rule {
            RuleKind::Sgd => Rule::Sgd,
            RuleKind::Lamb => Rule::Lamb,
            RuleKind::Lars => Rule::Lars,
        },
        loss: match config.loss.kind {
            LossKind::Softmax => Loss::SoftmaxCrossEntropy,
            LossKind::Bce => Loss::BinaryCrossEntropy,
        },
        averages: config.ema.is_on(),
        clip: config.optim.clip_norm > 0.0,
        drop_path: config.model.drop_path > 0.0,
        erase: config.augment.erase > 0.0,
        freeze: config.freeze(),
        ranks: None,
        sync_norms: config.model.sync_batch_norm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        assert_eq!("auto".parse(), Ok(Device::Auto));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        for bad in ["gpu", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(bad.parse::<Device>().unwrap_err().contains("cpu"), "{bad}");
        }
    }
}
