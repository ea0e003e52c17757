//! From a checkpoint, or weights from elsewhere, to a network that can be run: what it is, what its classes are called,
//! how a picture is prepared for it.

use super::state::named_tensors;
use crate::backend::{NamedTensors, Weights};
use crate::checkpoint::{Checkpoint, Chosen, read_weights};
use crate::config::{Config, Interpolation};
use crate::data::{Class, EvalTransform};
use crate::error::{Error, Result};
use crate::model::graph::{Graph, MAX_RESOLUTION, MIN_RESOLUTION, lower};
use crate::model::spec::{ALL, ResNetSpec};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// Metadata key of [`Description`].
pub const MODEL_KEY: &str = "engine.model";

/// What a checkpoint says of its network besides the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    pub arch: String,
    /// (id, label) in the order of the logits.
    pub classes: Vec<(String, String)>,
    /// Side of a validation image.
    pub resolution: usize,
    pub crop_ratio: f64,
    pub interpolation: Interpolation,
}

impl Description {
    pub fn new(config: &Config, classes: &[Class]) -> Self {
        Self {
            arch: config.model.arch.clone(),
            classes: classes.iter().map(|class| (class.id.clone(), class.label.clone())).collect(),
            resolution: config.eval_resolution(),
            crop_ratio: config.eval.crop_ratio,
            interpolation: config.augment.interpolation,
        }
    }

    /// How a picture is prepared at `resolution` pixels.
    pub fn transform(&self, resolution: usize) -> EvalTransform {
        EvalTransform::new(resolution, self.crop_ratio, self.interpolation)
    }

    /// The file may be anybody's: what a picture would be resized to must make sense.
    fn is_sensible(&self) -> bool {
        (MIN_RESOLUTION..=MAX_RESOLUTION).contains(&self.resolution)
            && (0.05..=1.0).contains(&self.crop_ratio)
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain fields")
    }
}

/// A network's weights with its description.
#[derive(Debug)]
pub struct Model {
    pub spec: ResNetSpec,
    pub description: Description,
    pub tensors: NamedTensors,
    /// What the tensors are.
    pub weights: Weights,
}

impl Model {
    /// Reads an engine checkpoint, or any safetensors or .pth state dict with torchvision's names. Weights without a
    /// description get ImageNet's usual preparation (256 to 224) and numbers for labels.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_as(path, None)
    }

    /// The weights that are `wanted`: see [`Checkpoint::choose`].
    pub fn read_as(path: &Path, wanted: Option<Weights>) -> Result<Self> {
        Self::from_checkpoint(path, read_weights(path)?, wanted)
    }

    /// What [`Self::read_as`] makes of the file's content; `path` is for messages.
    pub fn from_checkpoint(path: &Path, checkpoint: Checkpoint, wanted: Option<Weights>) -> Result<Self> {
        let chosen = checkpoint.choose(wanted).map_err(|error| error.within(path.display()))?;
        Self::from_chosen(path, chosen)
    }

    /// `path` is for messages.
    pub fn from_chosen(path: &Path, Chosen { checkpoint, weights }: Chosen) -> Result<Self> {
        let described = checkpoint.metadata.get(MODEL_KEY).map(|text| {
            serde_json::from_str::<Description>(text)
                .map_err(|error| Error::input_file(path, format!("{MODEL_KEY}: {error}")))
        });
        let tensors = named_tensors(checkpoint);
        let spec = identify(&tensors).map_err(|error| error.within(path.display()))?;
        let description = described.transpose()?.unwrap_or_else(|| Description {
            arch: spec.name.to_owned(),
            classes: (0..spec.classes).map(|index| (index.to_string(), index.to_string())).collect(),
            resolution: 224,
            crop_ratio: 0.875,
            interpolation: Interpolation::Bilinear,
        });
        if !description.is_sensible() {
            let Description { resolution, crop_ratio, .. } = description;
            return Err(Error::input_file(
                path,
                format!(
                    "{MODEL_KEY} has resolution {resolution} and crop_ratio {crop_ratio}; the file is damaged"
                ),
            ));
        }
        if description.classes.len() != spec.classes {
            let (named, outputs) = (description.classes.len(), spec.classes);
            return Err(Error::input_file(
                path,
                format!("names {named} classes, its fc.weight has {outputs}"),
            ));
        }
        Ok(Self { spec, description, tensors, weights })
    }
}

/// Which output of the network stands for each class of the data: the one of the same name. Weights without names, such
/// as torchvision's, go by position, and need as many classes as the data have. Data whose classes are all numbers, such
/// as ImageNet-V2's folders 0 to 999, name the outputs themselves: "10" is the eleventh, wherever its folder is sorted.
pub fn outputs_of(classes: &[Class], model: &Model) -> std::result::Result<Vec<u32>, String> {
    let names = &model.description.classes;
    let by_name: HashMap<&str, u32> = (0..).zip(names).map(|(index, (id, _))| (id.as_str(), index)).collect();
    let unknown = classes.iter().find(|class| !by_name.contains_key(class.id.as_str()));
    let Some(unknown) = unknown else {
        return Ok(classes.iter().map(|class| by_name[class.id.as_str()]).collect());
    };
    if let Some(numbers) = numbers(classes) {
        return match numbers.iter().find(|&&number| number as usize >= names.len()) {
            None => Ok(numbers),
            Some(number) => Err(format!("the data have class {number}, the network {} outputs", names.len())),
        };
    }
    let is_unnamed = names.iter().enumerate().all(|(index, (id, _))| *id == index.to_string());
    match (is_unnamed, classes.len() == names.len()) {
        (true, true) => Ok((0..names.len() as u32).collect()),
        (true, false) => Err(format!(
            "{} in the data, {} without names in the weights; give data with all of the weights' classes",
            classes.len(),
            names.len()
        )),
        (false, _) => Err(format!(
            "the network was not trained on {}; remove it from the data, or give the checkpoint that knows it",
            unknown.id
        )),
    }
}

/// The ids as numbers, where all of them are written as numbers are.
fn numbers(classes: &[Class]) -> Option<Vec<u32>> {
    let number = |class: &Class| class.id.parse::<u32>().ok().filter(|number| number.to_string() == class.id);
    classes.iter().map(number).collect()
}

/// The known network whose parameters have these names and shapes.
pub fn identify(tensors: &NamedTensors) -> Result<ResNetSpec> {
    let fc = tensors
        .get("fc.weight")
        .ok_or_else(|| Error::input("no fc.weight: expected a ResNet state dict with torchvision's names"))?;
    let classes = *fc.shape.first().unwrap_or(&0);
    if classes == 0 {
        return Err(Error::input(format!("fc.weight is {:?}: a network without classes", fc.shape)));
    }
    let candidates = ALL.map(|spec| spec.with_classes(classes));
    let missing = |spec: &ResNetSpec| first_mismatch(&lower(spec, 64).expect("64 px is enough"), tensors);
    match candidates.iter().find(|spec| missing(spec).is_none()) {
        Some(spec) => Ok(*spec),
        None => {
            let reason = missing(&candidates[0]).expect("no candidate fits");
            let known = ALL.map(|spec| spec.name).join(", ");
            Err(Error::input(format!("none of {known} has these tensors; against resnet50: {reason}")))
        }
    }
}

/// The first parameter or running statistic of `graph` that `tensors` lacks or has in another shape, or the first
/// weight in `tensors` that the graph has no place for.
fn first_mismatch(graph: &Graph, tensors: &NamedTensors) -> Option<String> {
    let params = graph.params.iter().map(|param| (&param.name, param.shape.clone()));
    let buffers = graph.buffers.iter().map(|buffer| (&buffer.name, vec![buffer.channels]));
    let wanted: Vec<(&String, Vec<usize>)> = params.chain(buffers).collect();
    for (name, shape) in &wanted {
        match tensors.get(*name) {
            None => return Some(format!("{name} is missing")),
            Some(found) if found.shape != *shape => {
                return Some(format!("{name} is {:?}, wanted {shape:?}", found.shape));
            }
            Some(_) => {}
        }
    }
    let known =
        |name: &str| name.contains("num_batches_tracked") || name.contains("optim.") || name.contains("ema.");
    let extra = tensors.keys().find(|name| !known(name) && !wanted.iter().any(|(wanted, _)| wanted == name));
    extra.map(|name| format!("{name} has no place"))
}
