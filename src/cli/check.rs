//! `engine check`: every node of a step and whole steps on the card against CPU code, and a resume on the card, bit for
//! bit. With `--dump`, one step for another program to compare with.

use super::args::CheckArgs;
use super::dump;
use crate::backend::Backend;
use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::device::card::{Card, CardOptions};
use crate::backend::cuda::plan::{Loss, Recipe, Rule};
use crate::backend::cuda::storage::Storage;
use crate::check::compare::{Finding, by_kind};
use crate::check::layers::examine;
use crate::check::{Case, EXTRAS, FORMS, pass};
use crate::config::Form;
use crate::error::{Error, Kind, Result};
use crate::model::spec::{RESNET_TINY, RESNET50};
use crate::terminal::{answer, message};
use std::time::Instant;

const TINY: Case = Case {
    spec: RESNET_TINY,
    resolution: 32,
    batch: 16,
    storage: Storage::F32,
    steps: 1,
    of: 1,
    recipe: Recipe::PLAIN,
    form: Form::BASE,
};
const REAL: Case = Case { spec: RESNET50, resolution: 64, batch: 8, ..TINY };

/// Whose nodes are compared one by one.
fn layer_cases(quick: bool) -> Vec<Case> {
    let extras = EXTRAS.map(|recipe| Case { recipe, ..TINY });
    let all = || [TINY].into_iter().chain(extras);
    let forms = FORMS.map(|form| Case { form, ..TINY });
    let mut tiny: Vec<Case> = all().chain(all().map(|case| Case { of: 2, ..case })).chain(forms).collect();
    if !quick {
        tiny.push(REAL);
    }
    tiny
}

/// Whose whole steps are. LAMB divides a gradient by its own size, so that one near zero moves its weight by what rounding is of
/// it: only its nodes are compared. Other recipes are in f32.
fn step_cases(quick: bool, storage: Storage) -> Vec<Case> {
    if quick {
        return vec![];
    }
    let wanted = |recipe: &Recipe| recipe.rule != Rule::Lamb && storage == Storage::F32;
    let extras = EXTRAS.into_iter().filter(wanted).map(|recipe| Case { recipe, ..TINY });
    let plain = [TINY, Case { of: 2, ..TINY }, Case { resolution: 37, batch: 5, ..TINY }, REAL];
    plain.into_iter().chain(extras).collect()
}

pub fn run(args: &CheckArgs) -> Result<()> {
    if let Some(folder) = &args.dump {
        return dump::run(args, folder);
    }
    let ordinal =
        args.device.ordinal("engine check compares a card with the CPU: give --device cuda or cuda:N")?;
    let storages: &[Storage] =
        if args.quick { &[Storage::F16] } else { &[Storage::F32, Storage::F16, Storage::Bf16] };
    let (began, mut failed) = (Instant::now(), 0);
    for &storage in storages {
        match check_storage(args.quick, storage, &|| open(ordinal, storage)) {
            Err(error) if error.kind == Kind::Usage && storage == Storage::Bf16 => {
                message(format!("bf16 is left out: {error}"));
            }
            count => failed += count?,
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    match failed {
        0 => answer(format!("the card computes what the CPU computes ({seconds:.0} s)")),
        failed => Err(Error::failed(format!("{failed} comparisons failed: see the lines above"))),
    }
}

fn open(ordinal: usize, storage: Storage) -> Result<Card> {
    Card::open(CardOptions::new(ordinal, storage, false))
}

/// How many comparisons failed.
fn check_storage(quick: bool, storage: Storage, open: &dyn Fn() -> Result<Card>) -> Result<usize> {
    let mut failed = 0;
    for case in layer_cases(quick) {
        let case = Case { storage, ..case };
        failed += print_layers(&case, &examine(&case, open()?)?)?;
    }
    for case in step_cases(quick, storage) {
        failed += usize::from(!check_steps(&Case { storage, ..case }, open)?);
    }
    Ok(failed)
}

fn verdict(good: bool) -> &'static str {
    if good { "ok    " } else { "FAILED" }
}

fn describe(case: &Case) -> String {
    let Case { spec, resolution, batch, storage, of, recipe, .. } = case;
    let extras = [
        (recipe.rule == Rule::Lamb, "LAMB"),
        (recipe.rule == Rule::Lars, "LARS"),
        (recipe.loss == Loss::BinaryCrossEntropy, "BCE"),
        (recipe.averages, "averages"),
        (recipe.clip, "clip"),
        (recipe.drop_path, "drop path"),
        (recipe.erase, "erasing"),
    ];
    let extras: String = extras.iter().filter(|(has, _)| *has).map(|(_, what)| format!(", {what}")).collect();
    format!("{:<11} {resolution:>3} px, {batch:>2} images x {of}, {:<4}{extras}", spec.name, storage.suffix())
}

/// A line for each kind of node, and one for each comparison that failed; how many did.
fn print_layers(case: &Case, findings: &[Finding]) -> Result<usize> {
    answer(format!("{}  node by node:", describe(case)))?;
    for (count, worst) in by_kind(findings) {
        let Finding { kind, what, apart, allowed, index, .. } = worst;
        answer(format!(
            "{} {kind:<28} {count:>4}  worst {apart:.1e} of {allowed:.1e} allowed ({what}[{index}])",
            verdict(worst.passes())
        ))?;
    }
    let failed: Vec<&Finding> = findings.iter().filter(|finding| !finding.passes()).collect();
    failed.iter().try_for_each(|finding| answer(format!("  failed: {finding}")))?;
    Ok(failed.len())
}

/// Compares whole steps and prints one line; true when all is within what is allowed.
fn check_steps(case: &Case, open: &dyn Fn() -> Result<Card>) -> Result<bool> {
    let report = case.compare(&mut case.cuda(open()?)?)?;
    let resumes = resumes(case, case.cuda(open()?)?, case.cuda(open()?)?)?;
    let good = report.passes() && resumes;
    answer(format!(
        "{} {}  whole step: worst {:.1e} of {:.1e} allowed ({}); resume {}",
        verdict(good),
        describe(case),
        report.apart,
        report.allowed,
        report.name,
        if resumes { "has the same bits" } else { "has OTHER bits" },
    ))?;
    Ok(good)
}

/// Whether a run that is cut after a step goes on as one that is not.
fn resumes(case: &Case, mut whole: CudaBackend<Card>, mut cut: CudaBackend<Card>) -> Result<bool> {
    let last = |index: u64| (case.batch(index), Case { of: 1, ..*case }.step(0));
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
