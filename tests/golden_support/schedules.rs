//! Learning rates of `torch.optim.lr_scheduler`.

use super::record;
use engine::config::{Config, Overrides, Per, ScheduleKind, load};
use engine::optim::schedule::LearningRate;
use serde::Deserialize;
use std::collections::BTreeMap;

const STEPS_PER_EPOCH: usize = 50;

#[derive(Deserialize)]
struct Recorded {
    unit: String,
    peak: f64,
    n: usize,
    w: usize,
    t: Vec<usize>,
    lr: Vec<f64>,
}

/// Where a warm-up of `w` reaches the full rate.
#[derive(Clone, Copy, PartialEq)]
enum Warmup {
    /// At t = w, from this share of the full rate: the engine's own definition.
    From(f64),
    /// (t + 1) / w: at t = w - 1.
    OneBased,
}

impl Recorded {
    fn rate(&self, kind: ScheduleKind, warmup: f64, start: f64, milestones: &[f64]) -> LearningRate {
        let mut config = Config::default();
        (config.optim.lr, config.optim.lr_per) = (self.peak, 0);
        let per_epoch = self.unit == "epoch";
        config.epochs = if per_epoch { self.n } else { self.n / STEPS_PER_EPOCH };
        let schedule = &mut config.schedule;
        schedule.kind = kind;
        schedule.per = if per_epoch { Per::Epoch } else { Per::Step };
        schedule.warmup_epochs = if per_epoch { warmup } else { warmup / STEPS_PER_EPOCH as f64 };
        (schedule.warmup_start, schedule.milestones) = (start, milestones.to_vec());
        LearningRate::new(&config, STEPS_PER_EPOCH)
    }

    /// Panics where the engine's rate differs by more than the recursions of PyTorch drift; returns the worst.
    fn check(&self, name: &str, rate: &LearningRate, holds: impl Fn(usize) -> bool) -> f64 {
        let mut worst = 0.0f64;
        for (&t, &want) in self.t.iter().zip(&self.lr).filter(|(t, _)| holds(**t)) {
            let step = if self.unit == "epoch" { t * STEPS_PER_EPOCH } else { t };
            let error = (rate.at(step) - want).abs() / self.peak;
            assert!(error <= 1e-12, "{name}, t = {t}: {} against {want}", rate.at(step));
            if self.unit == "epoch" {
                assert_eq!(rate.at(step), rate.at(step + STEPS_PER_EPOCH - 1), "constant in epoch {t}");
            }
            worst = worst.max(error);
        }
        worst
    }
}

/// A rate that differs by more than the recursions of PyTorch drift.
fn compare(name: &str, config: &Config, want: &[f64]) {
    let rate = LearningRate::new(config, STEPS_PER_EPOCH);
    for (epoch, &want) in want.iter().enumerate() {
        for step in [epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH - 1] {
            let error = (rate.at(step) - want).abs() / config.full_lr();
            assert!(error <= 1e-12, "{name}, epoch {epoch}: {} against {want}", rate.at(step));
        }
    }
}

/// The recipes' schedules, epoch by epoch over their whole length, are torchvision's, timm's and NVIDIA's.
#[test]
fn recipes_follow_their_originals_to_the_end() {
    let mut recorded: BTreeMap<String, serde_json::Value> = record::read("recipe_schedules");
    recorded.remove("versions");
    for (name, rates) in recorded {
        let want: Vec<f64> = serde_json::from_value(rates).unwrap();
        let config = if name == "timm_k_decay" {
            let mut config = recipe("resnet50-a3");
            config.schedule.k_decay = 1.5;
            config
        } else {
            recipe(&name)
        };
        assert_eq!(config.epochs, want.len(), "{name}");
        compare(&name, &config, &want);
    }
}

fn recipe(name: &str) -> Config {
    let path = format!("{}/configs/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    load(Some(path.as_ref()), &Overrides::default()).unwrap()
}

#[test]
fn rates_are_pytorchs() {
    let mut recorded: BTreeMap<String, serde_json::Value> = record::read("schedules");
    recorded.remove("versions");
    let mut take = |name: &str| -> Recorded {
        serde_json::from_value(recorded.remove(name).unwrap_or_else(|| panic!("no schedule {name}"))).unwrap()
    };
    println!("\nschedules: largest error by the full rate");
    for (name, milestones) in [("step_epoch", [30.0, 60.0, 80.0]), ("steplr30_epoch", [30.0, 60.0, 90.0])] {
        let record = take(name);
        let rate = record.rate(ScheduleKind::Step, 0.0, 0.0, &milestones);
        println!("  {name}: {:.1e}", record.check(name, &rate, |_| true));
    }
    let cases = [
        ("warmup_cosine_epoch", ScheduleKind::Cosine, Warmup::OneBased),
        ("warmup_cosine_epoch_from_0.01", ScheduleKind::Cosine, Warmup::From(0.01)),
        ("warmup_cosine_step", ScheduleKind::Cosine, Warmup::OneBased),
        ("warmup_cosine_step_from_0", ScheduleKind::Cosine, Warmup::From(0.0)),
        ("warmup_linear_step", ScheduleKind::Linear, Warmup::OneBased),
        ("warmup_linear_step_from_0", ScheduleKind::Linear, Warmup::From(0.0)),
    ];
    for (name, kind, warmup) in cases {
        let record = take(name);
        let w = record.w as f64;
        match warmup {
            Warmup::From(start) => {
                let rate = record.rate(kind, w, start, &[]);
                println!("  {name}: {:.1e}", record.check(name, &rate, |_| true));
            }
            // The engine's warm-up ends where the decay begins; here it ends a step earlier. No one setting gives
            // both halves, so each is checked with its own: a warm-up of w - 1 from 1 / w, and a decay after w.
            Warmup::OneBased => {
                let rising = record.rate(kind, w - 1.0, 1.0 / w, &[]);
                let falling = record.rate(kind, w, 1.0 / w, &[]);
                let up = record.check(name, &rising, |t| t < record.w);
                let down = record.check(name, &falling, |t| t >= record.w);
                println!("  {name}: {up:.1e} up, {down:.1e} down, in two settings");
            }
        }
    }
    assert!(recorded.is_empty(), "not compared: {:?}", recorded.keys());
}
