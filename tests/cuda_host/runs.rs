//! Whole runs of the trainer on the host machine: from the card's own launch lists to checkpoints and messages.

use crate::common::{assert_same, checkpoints, contents, temporary};
use crate::harness::Host;
use crate::hooked::{Call, Hooked};
use crate::machine::HostMachine;
use crate::training::{config, run, steps};
use engine::backend::cuda::machine::Machine;
use engine::backend::cuda::patience::{Patience, SystemClock};
use engine::backend::cuda::plan::{Recipe, ScalePolicy};
use engine::backend::cuda::storage::Storage;
use engine::backend::cuda::{CudaBackend, CudaOptions};
use engine::config::{Config, Form};
use engine::error::{Error, Kind, Result};
use engine::model::spec::RESNET_TINY;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Four steps of two passes, then validation; a checkpoint after the second step.
fn short() -> Config {
    let mut config = Config { epochs: 1, ..config() };
    config.data.limit = 32;
    config.data.micro_batch = 4;
    config
}

fn options(config: &Config, scale: ScalePolicy) -> CudaOptions {
    CudaOptions {
        spec: RESNET_TINY,
        resolution: config.data.resolution,
        seed: config.seed,
        zero_gamma: config.model.zero_gamma,
        decay: config.optim.decay,
        recipe: Recipe::default(),
        storage: Storage::F16,
        scale,
        form: Form::BASE,
        keep: false,
    }
}

fn backend<M: Machine>(config: &Config, machine: M) -> CudaBackend<M> {
    let options = options(config, ScalePolicy::FP16);
    CudaBackend::new(options, machine, config.micro_batch(), config.micro_steps()).unwrap()
}

/// Fails, or waits for ever, at the `at`-th call of a kind after the state was first loaded; nobody calls afterwards.
fn failing(call: Call, at: u32, how: fn() -> Result<()>) -> impl FnMut(Call) -> Result<()> {
    let (mut seen, mut failed) = (0, false);
    move |now| {
        assert!(!failed, "a card that has failed is asked again: {now:?}");
        seen += u32::from(now == call);
        if seen == at {
            failed = true;
            return how();
        }
        Ok(())
    }
}

#[test]
fn a_run_cut_anywhere_ends_in_the_same_bytes() {
    let Some(host) = Host::kernels() else { return };
    let config = short();
    let whole = temporary();
    run(&config, whole.path(), &mut backend(&config, HostMachine::new(host, 1))).unwrap();
    let (want, recorded) = (contents(whole.path()), steps(whole.path()));
    assert_eq!(recorded.len(), 4);
    assert!(recorded.iter().all(|step| step["skipped"] == false || step["loss_scale"].as_f64() > Some(1.0)));
    let fails = || Err(Error::device("the card failed at a training step: CUDA_ERROR_UNKNOWN"));
    for (call, at) in [(Call::Submit, 6), (Call::Poll, 9), (Call::Wait, 2), (Call::Evaluate, 1)] {
        let folder = temporary();
        let machine = Hooked::new(HostMachine::new(host, 2), failing(call, at, fails));
        let dropped = Rc::clone(&machine.dropped);
        let error =
            run(&config, folder.path(), &mut backend(&config, machine)).expect_err(&format!("{call:?} {at}"));
        assert_eq!((error.kind, error.exit_code()), (Kind::Device, 70), "{error}");
        let newest = checkpoints(folder.path()).pop().unwrap();
        let kept = format!("{} is whole, steps lost since: ", newest.display());
        assert!(error.message.contains("CUDA_ERROR_UNKNOWN") && error.message.contains(&kept), "{error}");
        assert!(!dropped.get(), "{call:?}: what is lost is not taken apart");
        run(&config, folder.path(), &mut backend(&config, HostMachine::new(host, 3))).unwrap();
        assert_same(&contents(folder.path()), &want, &format!("{call:?} {at}, resumed in other orders"));
    }
    let machine = Hooked::new(HostMachine::new(host, 1), |_| Ok(()));
    let dropped = Rc::clone(&machine.dropped);
    drop(backend(&config, machine));
    assert!(dropped.get(), "what works is taken apart");
}

/// Passes that never end: whoever waits for one gives up, and the run ends as with any lost card.
#[test]
fn a_card_that_falls_silent_is_lost() {
    let Some(host) = Host::kernels() else { return };
    let config = short();
    let silent = || {
        let limit = Duration::from_millis(200);
        let patience = Patience { limit, pause: Duration::from_millis(1) };
        patience.wait("Tesla V100", &mut SystemClock::default(), || Ok(false))
    };
    let folder = temporary();
    let machine = Hooked::new(HostMachine::new(host, 2), failing(Call::Wait, 2, silent));
    let began = Instant::now();
    let error = run(&config, folder.path(), &mut backend(&config, machine)).unwrap_err();
    println!("{error}, after {:?}", began.elapsed());
    assert_eq!(error.exit_code(), 70);
    assert!(error.message.contains("Tesla V100 has not answered"), "{error}");
    assert!(error.message.contains("steps lost since: "), "{error}");
}

/// The trainer's own sentence where every step overflows down to the smallest scale.
#[test]
fn overflow_at_the_smallest_scale_stops_with_the_parameters_name() {
    let Some(host) = Host::kernels() else { return };
    let config = short();
    let largest = 16_777_216.0;
    let scale = ScalePolicy { initial: largest, floor: largest / 2.0, ..ScalePolicy::FP16 };
    let folder = temporary();
    let machine = HostMachine::new(host, 1);
    let mut card =
        CudaBackend::new(options(&config, scale), machine, config.micro_batch(), config.micro_steps())
            .unwrap();
    let error = run(&config, folder.path(), &mut card).unwrap_err();
    println!("{error}");
    assert_eq!((error.kind, error.exit_code()), (Kind::Failed, 1));
    for part in ["epoch 1, step 2: the loss is ", "the gradient of ", "at the smallest loss scale 8388608"] {
        assert!(error.message.contains(part), "{part:?} in {error}");
    }
    let recorded = steps(folder.path());
    assert_eq!(recorded.len(), 1, "the first step was skipped at the larger scale");
    assert_eq!((&recorded[0]["skipped"], &recorded[0]["loss_scale"]), (&true.into(), &largest.into()));
}

/// A loss that is not finite, in the trainer's sentence: step, layer and place, and what is left.
#[test]
fn a_bad_loss_names_step_layer_and_checkpoint() {
    let Some(host) = Host::kernels() else { return };
    let mut config = short();
    // The first steps take the classifier's weights beyond anything.
    config.optim.lr = 1e9;
    config.schedule.warmup_epochs = 0.0;
    let folder = temporary();
    let mut card = backend(&config, HostMachine::new(host, 1));
    let error = run(&config, folder.path(), &mut card).unwrap_err();
    println!("{error}");
    assert_eq!(error.exit_code(), 1);
    assert!(error.message.starts_with("epoch 1, step "), "{error}");
    assert!(error.message.contains("checkpoint"), "{error}");
    let named = ["'s output is not finite (", "the weights ", "the gradient of "];
    assert!(named.iter().any(|part| error.message.contains(part)), "{error}");
}
