//! Every constant of `configs/resnet50-*.toml`, typed out again from where it was published.

use engine::config::{
    Config, Decay, EmaForm, EraseFill, Fan, Interpolation, LossKind, MixForm, Overrides, Per, Reduction,
    RuleKind, ScheduleKind, load,
};
use engine::data::augment::auto::Timm;
use engine::data::augment::{Auto, Sampling};
use std::fs;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

/// The recipe of a name, as its file alone says.
pub fn recipe(name: &str) -> Config {
    load(Some(&folder().join(format!("{name}.toml"))), &Overrides::default()).unwrap()
}

/// What of a recipe is not a mode: (epochs, training px, batch, micro-batch, validation px, px it is cut from).
fn sizes(config: &Config) -> [usize; 6] {
    let (data, resolution) = (&config.data, config.eval_resolution());
    let from = (resolution as f64 / config.eval.crop_ratio).round() as usize;
    [config.epochs, data.resolution, data.batch, config.micro_batch(), resolution, from]
}

/// Within a rounding of the product of a share and a rate.
#[track_caller]
fn close(got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-12 * want.abs(), "{got}, wanted {want}");
}

/// [full rate, first rate, last rate of the schedule's formula].
#[track_caller]
fn rates(config: &Config, [full, first, last]: [f64; 3]) {
    close(config.full_lr(), full);
    close(config.full_lr() * config.schedule.warmup_start, first);
    close(config.full_lr() * config.schedule.end, last);
}

#[test]
fn every_file_loads_and_says_what_to_expect() {
    let mut names = vec![];
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert_eq!(recipe(&name).name, name);
        let text = fs::read_to_string(&path).unwrap();
        let head: String = text.lines().take_while(|line| line.starts_with('#')).collect();
        if name.starts_with("resnet50-") {
            assert!(head.contains("Expected top-1: "), "{name}: no accuracy to expect");
            let source = head.contains("Source: ") || head.contains("nobody has published the accuracy");
            assert!(source, "{name}: no source");
            // Batch norm and mixing see the micro-batch: it belongs to a recipe.
            assert!(text.contains("\nmicro_batch = "), "{name}: no micro_batch");
        }
        names.push(name);
    }
    names.sort();
    let recipes: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("resnet50-")).collect();
    assert_eq!(recipes, ["90", "90-nvidia", "a1", "a3", "budget", "v2"]);
}

/// The project's requirements, step 13.
#[test]
fn the_requirements() {
    let config = recipe("resnet50-90");
    assert_eq!(sizes(&config), [90, 224, 256, 256, 224, 256]);
    let (optim, schedule, mix) = (&config.optim, &config.schedule, &config.mix);
    assert_eq!((optim.rule, optim.momentum, optim.weight_decay), (RuleKind::Sgd, 0.9, 1e-4));
    assert_eq!((optim.lr, optim.lr_per), (0.1, 256));
    assert_eq!((schedule.kind, schedule.warmup_epochs), (ScheduleKind::Cosine, 5.0));
    assert_eq!((mix.mixup, mix.cutmix, mix.form), (0.2, 1.0, MixForm::Torchvision));
    assert!((1..=5).contains(&config.checkpoint.every_epochs));
}

/// NVIDIA/DeepLearningExamples @729963dd, PyTorch/Classification/ConvNets/resnet50v1.5.
#[test]
fn nvidia() {
    let config = recipe("resnet50-90-nvidia");
    assert_eq!(sizes(&config), [90, 224, 8 * 256, 256, 224, 256]);
    rates(&config, [2.048, 2.048 / 8.0, 0.0]);
    let optim = &config.optim;
    assert_eq!((optim.rule, optim.momentum, optim.nesterov), (RuleKind::Sgd, 0.875, false));
    assert_eq!((optim.weight_decay, optim.decay), (1.0 / 32768.0, Decay::Unnormalised));
    assert_eq!((config.loss.kind, config.loss.label_smoothing), (LossKind::Softmax, 0.1));
    assert_eq!((config.schedule.kind, config.schedule.per), (ScheduleKind::Cosine, Per::Epoch));
    assert_eq!((config.model.zero_gamma, config.model.init), (false, Fan::FanIn));
    assert_eq!((config.mix.mixup, config.mix.cutmix, config.ema.decay), (0.0, 0.0, 0.0));
    assert_eq!(config.augment.interpolation, Interpolation::Bilinear);
}

/// pytorch/vision, references/classification, and the blog's command.
#[test]
fn torchvision_v2() {
    let config = recipe("resnet50-v2");
    assert_eq!(sizes(&config), [600, 176, 8 * 128, 128, 224, 232]);
    rates(&config, [0.5, 0.005, 0.0]);
    let (optim, ema) = (&config.optim, &config.ema);
    assert_eq!((optim.rule, optim.momentum, optim.nesterov), (RuleKind::Sgd, 0.9, false));
    // `--norm-weight-decay 0` leaves the classifier's bias its decay.
    assert_eq!((optim.weight_decay, optim.decay), (0.00002, Decay::Unnormalised));
    assert_eq!((config.loss.kind, config.loss.label_smoothing), (LossKind::Softmax, 0.1));
    let mix = &config.mix;
    assert_eq!((mix.form, mix.mixup, mix.cutmix), (MixForm::Torchvision, 0.2, 1.0));
    assert_eq!((mix.probability, mix.switch), (1.0, 0.5));
    assert_eq!((ema.decay, ema.every, ema.form), (0.99998, 32, EmaForm::Torchvision));
    let schedule = &config.schedule;
    assert_eq!((schedule.kind, schedule.warmup_epochs), (ScheduleKind::Cosine, 5.0));
    assert_eq!((schedule.per, schedule.after_warmup), (Per::Epoch, true));
    assert_eq!((config.model.zero_gamma, config.model.init), (false, Fan::FanOut));
    let (augment, data) = (&config.augment, &config.data);
    assert_eq!(
        (augment.interpolation, config.auto_sampling()),
        (Interpolation::Bilinear, Sampling::Bilinear)
    );
    assert_eq!(augment.auto, Auto::TrivialAugment);
    // transforms.RandomErasing's defaults.
    assert_eq!((augment.erase, augment.erase_fill), (0.1, EraseFill::Zero));
    assert_eq!((augment.erase_area, augment.erase_ratio), ([0.02, 0.33], [0.3, 3.3]));
    assert_eq!((data.repeats, data.repeat_ranks), (4, 8));
}

/// What A1 and A3 share: mmpretrain's re-implementation and timm's flags.
#[track_caller]
fn strikes_back(config: &Config) {
    let optim = &config.optim;
    assert_eq!((optim.rule, optim.decay), (RuleKind::Lamb, Decay::Weights));
    // timm/optim/lamb.py
    assert_eq!((optim.betas, optim.epsilon, optim.clip_norm), ([0.9, 0.999], 1e-6, 1.0));
    let loss = &config.loss;
    assert_eq!((loss.kind, loss.reduction, loss.target_threshold), (LossKind::Bce, Reduction::Mean, 0.2));
    let (mix, schedule) = (&config.mix, &config.schedule);
    assert_eq!((mix.form, mix.cutmix, mix.probability, mix.switch), (MixForm::Timm, 1.0, 1.0, 0.5));
    assert_eq!((schedule.kind, schedule.warmup_epochs), (ScheduleKind::Cosine, 5.0));
    assert_eq!((schedule.per, schedule.after_warmup, schedule.k_decay), (Per::Epoch, false, 1.0));
    assert_eq!((config.model.zero_gamma, config.model.init), (true, Fan::FanOut));
    assert_eq!((config.ema.decay, config.augment.interpolation), (0.0, Interpolation::Bicubic));
    assert_eq!((config.auto_sampling(), config.augment.erase), (Sampling::Bicubic, 0.0));
}

#[test]
fn a1() {
    let config = recipe("resnet50-a1");
    assert_eq!(sizes(&config), [600, 224, 2048, 256, 224, 235]);
    rates(&config, [5e-3, 1e-4, 1e-6]);
    assert_eq!((config.optim.weight_decay, config.loss.label_smoothing), (0.01, 0.1));
    assert_eq!((config.mix.mixup, config.model.drop_path), (0.2, 0.05));
    let timm = Timm { magnitude: 7, deviation: 0.5, layers: 2, probability: 0.5, increasing: true };
    assert_eq!(config.augment.auto, Auto::Timm(timm));
    // mmpretrain: 8xb256.
    assert_eq!((config.data.repeats, config.data.repeat_ranks), (3, 8));
    strikes_back(&config);
}

#[test]
fn a3() {
    let config = recipe("resnet50-a3");
    assert_eq!(sizes(&config), [100, 160, 2048, 256, 224, 235]);
    rates(&config, [8e-3, 1e-4, 1e-6]);
    assert_eq!((config.optim.weight_decay, config.loss.label_smoothing), (0.02, 0.0));
    assert_eq!((config.mix.mixup, config.model.drop_path), (0.1, 0.0));
    let timm = Timm { magnitude: 6, deviation: 0.5, layers: 2, probability: 0.5, increasing: true };
    assert_eq!((config.augment.auto, config.data.repeats), (Auto::Timm(timm), 1));
    strikes_back(&config);
}

/// libffcv/ffcv-imagenet, rn50_configs/rn50_32_epochs.yaml: 512 images on each of 8 cards.
#[test]
fn budget() {
    let config = recipe("resnet50-budget");
    assert_eq!(sizes(&config), [32, 192, 8 * 512, 256, 256, 293]);
    rates(&config, [1.7, 1.7e-4, 0.0]);
    let (optim, schedule) = (&config.optim, &config.schedule);
    assert_eq!((optim.rule, optim.momentum, optim.nesterov), (RuleKind::Sgd, 0.9, false));
    assert_eq!((optim.weight_decay, optim.decay), (1e-4, Decay::Unnormalised));
    assert_eq!((config.loss.kind, config.loss.label_smoothing), (LossKind::Softmax, 0.1));
    assert_eq!((schedule.kind, schedule.warmup_epochs, schedule.per), (ScheduleKind::Linear, 2.0, Per::Step));
    // min_res 160, max_res 192, start_ramp 23, end_ramp 27; 176 px, half of the way, round to 192.
    let sides: Vec<usize> = (22..28).map(|epoch| config.resolution_at(epoch)).collect();
    assert_eq!(sides, [160, 160, 160, 192, 192, 192]);
    assert_eq!((config.model.zero_gamma, config.model.init), (false, Fan::FanOut));
}
