//! What a program that shows answers to people may say of the model: nothing but what the model file itself does.

use super::classifier::Classifier;
use crate::error::Result;
use crate::infer::Precision;
use crate::infer::file::Source;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Described<'a> {
    model: Model<'a>,
    machine: Machine,
}

#[derive(Debug, Serialize)]
struct Model<'a> {
    arch: &'a str,
    /// In the order of the logits.
    labels: Vec<&'a str>,
    /// Side of the network's input in pixels, and which share of the resized shorter side it is.
    resolution: usize,
    crop_ratio: f64,
    source: &'a Source,
    #[serde(skip_serializing_if = "Option::is_none")]
    int8: Option<Calibration<'a>>,
}

#[derive(Debug, Serialize)]
struct Calibration<'a> {
    method: &'a str,
    images: usize,
}

#[derive(Debug, Serialize)]
struct Machine {
    program: &'static str,
    isa: &'static str,
    threads: usize,
    /// That can be asked for; `precision` answers where a request names none.
    precisions: Vec<&'static str>,
    precision: &'static str,
}

/// `precision` is what answers where a request names none.
pub fn describe(classifier: &mut Classifier, precision: Precision) -> Result<Described<'_>> {
    let threads = classifier.program(precision)?.threads();
    let precisions = classifier.precisions().into_iter().map(Precision::name).collect();
    let description = classifier.model().description();
    let calibration =
        description.int8.as_ref().map(|int8| Calibration { method: &int8.method, images: int8.images });
    Ok(Described {
        model: Model {
            arch: &description.arch,
            labels: description.classes.iter().map(|(_, label)| label.as_str()).collect(),
            resolution: description.resolution,
            crop_ratio: description.crop_ratio,
            source: &description.source,
            int8: calibration,
        },
        machine: Machine {
            program: concat!("classify ", env!("CARGO_PKG_VERSION")),
            isa: classifier.isa().name(),
            threads,
            precisions,
            precision: precision.name(),
        },
    })
}
