//! `engine check`: whole steps on the card against the CPU backend, and a resume on the card, bit for bit.

use super::args::CheckArgs;
use super::device::Device;
use crate::backend::Backend;
use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::device::card::{Card, CardOptions};
use crate::backend::cuda::storage::Storage;
use crate::check::{Case, pass, step};
use crate::error::{Error, Kind, Result};
use crate::model::spec::{RESNET_TINY, RESNET50};
use crate::terminal::{answer, message};

const TINY: Case =
    Case { spec: RESNET_TINY, resolution: 32, batch: 16, storage: Storage::F32, steps: 1, of: 1 };

fn cases(storage: Storage) -> Vec<Case> {
    let real = Case { spec: RESNET50, resolution: 64, batch: 8, ..TINY };
    [TINY, Case { of: 2, ..TINY }, Case { resolution: 37, batch: 5, ..TINY }, real]
        .map(|case| Case { storage, ..case })
        .to_vec()
}

pub fn run(args: &CheckArgs) -> Result<()> {
    let ordinal = match args.device {
        Device::Auto => 0,
        Device::Cuda(ordinal) => ordinal,
        Device::Cpu => {
            return Err(Error::usage(
                "engine check compares a card with the CPU: give --device cuda or cuda:N",
            ));
        }
    };
    let mut failed = 0;
    for storage in [Storage::F32, Storage::F16, Storage::Bf16] {
        for case in cases(storage) {
            let open = || open(ordinal, storage);
            match check(&case, open) {
                Err(error) if error.kind == Kind::Usage && storage == Storage::Bf16 => {
                    message(format!("bf16 is left out: {error}"));
                    break;
                }
                passed => failed += usize::from(!passed?),
            }
        }
    }
    match failed {
        0 => answer("the card computes what the CPU computes"),
        failed => Err(Error::failed(format!("{failed} comparisons failed: see the lines above"))),
    }
}

fn open(ordinal: usize, storage: Storage) -> Result<Card> {
    Card::open(CardOptions { ordinal, storage, tf32: false, deterministic: true, algorithms: None })
}

/// Compares and prints one line; true when all is within what is allowed.
fn check(case: &Case, open: impl Fn() -> Result<Card>) -> Result<bool> {
    let report = case.compare(&mut case.cuda(open()?)?)?;
    let resumes = resumes(case, case.cuda(open()?)?, case.cuda(open()?)?)?;
    let good = report.passes() && resumes;
    let Case { spec, resolution, batch, storage, of, .. } = case;
    answer(format!(
        "{} {:<11} {resolution:>3} px, {batch:>2} images x {of}, {:<4}  worst {:.1e} of {:.1e} allowed ({}); resume {}",
        if good { "ok    " } else { "FAILED" },
        spec.name,
        storage.suffix(),
        report.apart,
        report.allowed,
        report.name,
        if resumes { "has the same bits" } else { "has OTHER bits" },
    ))?;
    Ok(good)
}

/// Whether a run that is cut after a step goes on as one that is not.
fn resumes(case: &Case, mut whole: CudaBackend<Card>, mut cut: CudaBackend<Card>) -> Result<bool> {
    let last = |index: u64| (case.images(index), step(0, 1));
    let (batch, first) = last(1);
    pass(&mut whole, &batch, &first)?;
    cut.set_choices(&whole.choices());
    cut.load_state(&whole.state()?)?;
    for index in 2..5 {
        let (batch, step) = last(index);
        pass(&mut whole, &batch, &step)?;
        pass(&mut cut, &batch, &step)?;
    }
    Ok(whole.state()? == cut.state()?)
}
