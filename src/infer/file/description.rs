//! What a model file says of its network besides numbers.

use super::super::weights::Normalisation;
use crate::data::{EvalTransform, Interpolation};
use crate::model::graph::{MAX_RESOLUTION, MIN_RESOLUTION};
use crate::model::spec::{ALL, ResNetSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The JSON of a model file, and of every other export. The first five fields are those of a checkpoint's description.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// A name of `model::spec::ALL`.
    pub arch: String,
    /// (id, label) in the order of the logits.
    pub classes: Vec<(String, String)>,
    /// Side of the network's input in pixels.
    pub resolution: usize,
    /// Centre crop as a share of the resized shorter side.
    pub crop_ratio: f64,
    pub interpolation: Interpolation,
    pub mean: [f32; 3],
    pub std: [f32; 3],
    pub source: Source,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub int8: Option<Calibration>,
    /// The CRC-32C of each tensor's bytes, 8 hex digits; in model files for the CPU alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub crc32c: BTreeMap<String, String>,
}

/// Where the weights come from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// SHA-256 of the checkpoint file, 64 hex digits.
    pub sha256: String,
    /// The program that wrote the model: `engine 0.1.0`.
    pub written_by: String,
    /// Completed epochs of training, and the steps to there; none for weights from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Keys of the recipe with their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub recipe: BTreeMap<String, String>,
    /// Of the last validation in training: `val_loss`, `val_top1`, `val_top5`; percentages.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, f64>,
}

/// How the 8-bit numbers were found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// `mse` or `percentile`.
    pub method: String,
    /// Images that the activations were taken from.
    pub images: usize,
    /// The step of each ReLU's u8 values, by the graph's name of the tensor.
    pub scales: BTreeMap<String, f32>,
}

impl Description {
    /// Reads and checks the JSON; the error is a reason, without the file's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let description: Self = serde_json::from_str(text)
            .map_err(|error| format!("its description cannot be read: {error}; export it again"))?;
        description.check()?;
        Ok(description)
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain fields")
    }

    /// The file may be anybody's: what a picture would be resized to, and divided by, must make sense.
    fn check(&self) -> Result<(), String> {
        let Self { resolution, crop_ratio, mean, std, .. } = self;
        if !(MIN_RESOLUTION..=MAX_RESOLUTION).contains(resolution) || !(0.05..=1.0).contains(crop_ratio) {
            return Err(format!(
                "its description has resolution {resolution} and crop_ratio {crop_ratio}; export it again"
            ));
        }
        let is_sound = mean.iter().all(|mean| mean.is_finite()) && std.iter().all(|std| *std > 1e-6);
        if !is_sound || !std.iter().all(|std| std.is_finite()) {
            return Err(format!("its description has mean {mean:?} and std {std:?}; export it again"));
        }
        if self.classes.is_empty() {
            return Err("its description names no classes; export it again".into());
        }
        Ok(())
    }

    /// The network; the error says which ones there are.
    pub fn spec(&self) -> Result<ResNetSpec, String> {
        let spec = ResNetSpec::named(&self.arch).ok_or_else(|| {
            let known = ALL.map(|spec| spec.name).join(", ");
            format!("is a {}, this program knows {known}: take a newer program", self.arch)
        })?;
        Ok(spec.with_classes(self.classes.len()))
    }

    /// How a picture is prepared.
    pub fn transform(&self) -> EvalTransform {
        EvalTransform::new(self.resolution, self.crop_ratio, self.interpolation)
    }

    pub fn normalisation(&self) -> Normalisation {
        Normalisation { mean: self.mean, std: self.std }
    }
}
