//! What makes a recipe besides network and images: mixing, loss, rule, schedule, averages.

use crate::data::{MixForm, MixOptions};
use crate::model::params::Role;
use serde::{Deserialize, Serialize};

/// Images of a batch mixed with each other (arXiv:1710.09412, arXiv:1905.04899), a draw for each pass: of a micro-batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mixing {
    /// Whose partners and boxes: `torchvision` or `timm`.
    pub form: MixForm,
    /// The alpha of mixup's Beta(alpha, alpha); 0 turns it off.
    pub mixup: f64,
    /// The alpha of cutmix; 0 turns it off.
    pub cutmix: f64,
    /// Share of the batches that are mixed.
    pub probability: f64,
    /// Where both are on: share of the mixed batches that cutmix takes.
    pub switch: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Loss {
    pub kind: LossKind,
    /// Share of the target spread evenly over all classes (arXiv:1512.00567).
    pub label_smoothing: f64,
    /// `bce` only: targets above it become 1 and all others 0 (timm's `--bce-target-thresh`); 0 takes them as they are.
    pub target_threshold: f64,
    /// `bce` only: what is done over the classes of an image.
    pub reduction: Reduction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// Softmax cross-entropy.
    Softmax,
    /// Binary cross-entropy of a sigmoid for each class (arXiv:2110.00476).
    Bce,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// timm's; a thousand times smaller than the sum, which LAMB does not notice and SGD does.
    Mean,
    Sum,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optim {
    pub rule: RuleKind,
    /// Learning rate of a batch of `lr_per` images.
    pub lr: f64,
    /// The rate in use is `lr * data.batch / lr_per` (linear scaling, arXiv:1706.02677); 0 takes `lr` as it is.
    pub lr_per: usize,
    /// `sgd` and `lars`.
    pub momentum: f64,
    /// `sgd` and `lars`.
    pub nesterov: bool,
    pub weight_decay: f64,
    pub decay: Decay,
    /// `lamb`: how slowly the gradient's mean and square follow it.
    pub betas: [f64; 2],
    /// `lamb`: added to the root of the square; `lars`: to the length that the weights' own is divided by.
    pub epsilon: f64,
    /// `lars`: the trust ratio's coefficient.
    pub trust: f64,
    /// The length that the gradient of all parameters together is cut to; 0: no limit.
    pub clip_norm: f64,
    /// Parts that stay as they are, running statistics included: `stem`, `layer1` .. `layer4`, `fc`, ranges of them (`stem..layer3`),
    /// several with commas; empty: none.
    pub freeze: String,
}

/// How gradients move the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleKind {
    #[default]
    Sgd,
    /// arXiv:1904.00962
    Lamb,
    /// arXiv:1708.03888
    Lars,
}

/// What weight decay applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Convolution and classifier weights (timm).
    Weights,
    /// Weights and the classifier's bias, not batch norm (torchvision V2's `--norm-weight-decay 0`, NVIDIA).
    Unnormalised,
    /// Everything (torchvision V1).
    All,
}

impl Decay {
    pub fn applies_to(self, role: Role) -> bool {
        match (self, role) {
            (_, Role::ConvWeight | Role::LinearWeight) | (Self::All, _) => true,
            (Self::Unnormalised, Role::LinearBias) => true,
            (Self::Weights | Self::Unnormalised, _) => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    pub kind: ScheduleKind,
    pub warmup_epochs: f64,
    /// The rate at the first step, as a share of the full rate.
    pub warmup_start: f64,
    /// Epochs at the full rate between warm-up and decay.
    pub hold_epochs: f64,
    /// Whether the decay begins after warm-up and hold (torchvision, NVIDIA). If not, it begins with the run, and warm-up
    /// replaces its first epochs (timm without `--warmup-prefix`).
    pub after_warmup: bool,
    /// Where the rate ends, as a share of the full rate (cosine and linear).
    pub end: f64,
    /// The power of time that cosine follows (timm's `--lr-k-decay`, arXiv:2004.05909).
    pub k_decay: f64,
    /// Epochs at which `step` multiplies the rate by `factor`.
    pub milestones: Vec<f64>,
    pub factor: f64,
    /// Whether the rate changes at every step or at the beginning of an epoch.
    pub per: Per,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    Cosine,
    Step,
    Linear,
    Constant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    Step,
    Epoch,
}

/// Moving averages of weights and running statistics, which then evaluate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ema {
    /// How slowly averages follow; 0 keeps none.
    pub decay: f64,
    /// They follow with the first optimiser step of an epoch and every this many after it.
    pub every: usize,
    pub form: EmaForm,
}

/// What becomes of `ema.decay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmaForm {
    /// It is used as it is, from the first update on.
    Plain,
    /// pytorch/vision, references/classification/train.py: `1 - decay` is multiplied by data.batch * every / epochs, and until
    /// the warm-up is over averages are copies.
    Torchvision,
}

impl Default for Mixing {
    fn default() -> Self {
        Self { form: MixForm::Torchvision, mixup: 0.0, cutmix: 0.0, probability: 1.0, switch: 0.5 }
    }
}

impl Default for Loss {
    fn default() -> Self {
        Self {
            kind: LossKind::Softmax,
            label_smoothing: 0.0,
            target_threshold: 0.0,
            reduction: Reduction::Mean,
        }
    }
}

impl Default for Optim {
    fn default() -> Self {
        Self {
            rule: RuleKind::Sgd,
            lr: 0.1,
            lr_per: 256,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 1e-4,
            decay: Decay::Weights,
            betas: [0.9, 0.999],
            epsilon: 1e-6,
            trust: 0.001,
            clip_norm: 0.0,
            freeze: String::new(),
        }
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            warmup_epochs: 5.0,
            warmup_start: 0.01,
            hold_epochs: 0.0,
            after_warmup: true,
            end: 0.0,
            k_decay: 1.0,
            milestones: vec![30.0, 60.0, 80.0],
            factor: 0.1,
            per: Per::Step,
        }
    }
}

impl Default for Ema {
    fn default() -> Self {
        Self { decay: 0.0, every: 1, form: EmaForm::Plain }
    }
}

impl Mixing {
    /// What the loader draws; `None` where nothing is mixed.
    pub fn options(&self) -> Option<MixOptions> {
        let Self { form, mixup, cutmix, probability, switch } = *self;
        let mixes = (mixup > 0.0 || cutmix > 0.0) && probability > 0.0;
        mixes.then_some(MixOptions { form, mixup, cutmix, probability, switch })
    }
}

impl Ema {
    pub fn is_on(&self) -> bool {
        self.decay > 0.0
    }
}
