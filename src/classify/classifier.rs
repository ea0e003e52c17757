//! A model file, its programs, and pictures through both.

use crate::base64;
use crate::data::{Limits, Preprocessor, Reading};
use crate::error::{Error, Result};
use crate::infer::file::ModelFile;
use crate::infer::top::{Prediction, top};
use crate::infer::{Keep, Options, Precision, Program};
use crate::model::params::Param;
use crate::simd::direct::kernel::Kernels;
use crate::simd::isa::Isa;
use serde::{Serialize, Serializer};
use std::time::{Duration, Instant};

pub struct Classifier {
    model: ModelFile,
    isa: Isa,
    threads: usize,
    /// Compiled when they are first asked for.
    programs: Vec<Program>,
    preprocessor: Preprocessor,
    /// u8 RGB [resolution, resolution, 3].
    pixels: Vec<u8>,
}

/// What is asked of a picture.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    pub precision: Precision,
    /// Classes to name.
    pub top: usize,
    /// Whether to say where in the picture their logits come from.
    pub explain: bool,
}

/// What is said of a picture.
#[derive(Debug, Serialize)]
pub struct Answer<'a> {
    pub predictions: Vec<Prediction<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
    pub milliseconds: Milliseconds,
    /// Instruction set and precision: "avx512 int8".
    pub path: String,
}

/// Where in the picture the logits of the named classes come from.
#[derive(Debug, Serialize)]
pub struct Explanation {
    pub seen: Seen,
    /// A map's value in row y and column x is centred on the pixel (step y, step x) of what was seen.
    pub step: usize,
    /// By prediction.
    pub maps: Vec<EvidenceMap>,
}

/// What of the picture went into the network.
#[derive(Debug, Serialize)]
pub struct Seen {
    pub width: usize,
    pub height: usize,
    /// u8 [height][width][3] in base64.
    pub rgb: String,
}

/// `bias` and all `values` add up to `logit`; see [`crate::infer::explain`].
#[derive(Debug, Serialize)]
pub struct EvidenceMap {
    pub index: usize,
    pub logit: f32,
    pub bias: f32,
    /// f32 [rows][columns], from the top left.
    pub values: Vec<Vec<f32>>,
}

#[derive(Debug, Serialize)]
pub struct Milliseconds {
    #[serde(serialize_with = "in_milliseconds")]
    pub decode: Duration,
    #[serde(serialize_with = "in_milliseconds")]
    pub run: Duration,
}

/// To the microsecond.
fn in_milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_micros() as f64 / 1e3)
}

impl Classifier {
    /// Reads no weights yet: [`Self::program`] does. Pictures beyond `limits` are refused.
    pub fn new(model: ModelFile, limits: Limits, isa: Isa, threads: usize) -> Self {
        let transform = model.description().transform();
        let pixels = vec![0; transform.crop * transform.crop * 3];
        let mut preprocessor = Preprocessor::new(transform, Reading::Photograph);
        preprocessor.limits = limits;
        Self { model, isa, threads, programs: vec![], preprocessor, pixels }
    }

    pub fn fastest(&self) -> Precision {
        Precision::fastest(self.isa, self.model.has_int8())
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What model and machine can, fastest kernels aside.
    pub fn precisions(&self) -> Vec<Precision> {
        let has_numbers = |precision| precision != Precision::Int8 || self.model.has_int8();
        let is_possible =
            |&precision: &Precision| has_numbers(precision) && Kernels::of(precision, self.isa).is_ok();
        Precision::ALL.into_iter().filter(is_possible).collect()
    }

    pub fn model(&self) -> &ModelFile {
        &self.model
    }

    /// The program of `precision`, compiled unless it was before; the model's or the machine's fault where it cannot be.
    pub fn program(&mut self, precision: Precision) -> Result<&mut Program> {
        let found = self.programs.iter().position(|program| program.precision() == precision);
        let index = match found {
            Some(index) => index,
            None => {
                self.programs.push(self.compile(precision)?);
                self.programs.len() - 1
            }
        };
        Ok(&mut self.programs[index])
    }

    fn compile(&self, precision: Precision) -> Result<Program> {
        let description = self.model.description();
        let options = Options {
            precision,
            isa: self.isa,
            threads: self.threads,
            batch: 1,
            mean: description.mean,
            std: description.std,
            keep: Keep::None,
            direct: false,
        };
        self.check_memory(precision)?;
        Program::compile(self.model.graph(), &self.model, &options)
    }

    /// Whether there is room for a program: an allocation that fails in the middle of compiling would end the process
    /// without a sentence.
    fn check_memory(&self, precision: Precision) -> Result<()> {
        let bytes = match precision {
            Precision::Fp32 => 4,
            Precision::Bf16 => 2,
            Precision::Int8 => 1,
        };
        // One layer at a time is there a second and a third time in f32, beside the activations.
        let params = self.model.graph().params.iter().map(Param::elements);
        let (all, largest) = params.fold((0, 0), |(all, largest), n| (all + n, largest.max(n)));
        let wanted = all * bytes + largest * 8 + (16 << 20);
        Vec::<u8>::new().try_reserve_exact(wanted).map_err(|_| {
            let megabytes = wanted >> 20;
            Error::failed(format!(
                "there is no memory for the network in {}, about {megabytes} MB: close other programs, or take int8",
                precision.name()
            ))
        })
    }

    /// The likeliest classes of a picture file. An error of kind `Input` has no name in front: the caller knows it.
    pub fn classify(&mut self, bytes: &mut [u8], question: Question) -> Result<Answer<'_>> {
        let Question { precision, top: count, explain } = question;
        // Before the clock starts: the first use of a precision packs its weights.
        self.program(precision)?;
        let start = Instant::now();
        self.preprocessor.run(bytes, &mut self.pixels).map_err(Error::input)?;
        let decode = start.elapsed();
        let start = Instant::now();
        let program = self.programs.iter_mut().find(|program| program.precision() == precision);
        let program = program.expect("compiled above");
        let logits = program.run(&self.pixels)?.to_vec();
        let run = start.elapsed();
        let classes = &self.model.description().classes;
        let predictions = top(&logits, |index| &classes[index].1, count);
        let explanation = match explain {
            true => Some(explain_by(program, &self.pixels, &predictions, &logits)?),
            false => None,
        };
        let path = format!("{} {}", self.isa.name(), precision.name());
        Ok(Answer { predictions, explanation, milliseconds: Milliseconds { decode, run }, path })
    }

    /// Runs the last picture once more.
    pub fn again(&mut self, precision: Precision) -> Result<&Program> {
        let program = self.programs.iter_mut().find(|program| program.precision() == precision);
        let program =
            program.ok_or_else(|| Error::failed(format!("nothing was run in {}", precision.name())))?;
        program.run(&self.pixels)?;
        Ok(program)
    }
}

/// `program` has run `pixels` and made `logits` of them.
fn explain_by(
    program: &Program,
    pixels: &[u8],
    predictions: &[Prediction],
    logits: &[f32],
) -> Result<Explanation> {
    let classes: Vec<usize> = predictions.iter().map(|prediction| prediction.index).collect();
    let maps = program.activation_maps(0, &classes)?;
    // No class, no map: nothing is centred anywhere.
    let step = maps.first().map_or(0, |map| map.step);
    let maps = maps.into_iter().zip(&classes).map(|(map, &index)| EvidenceMap {
        index,
        logit: logits[index],
        bias: map.bias,
        values: map.values.chunks_exact(map.width).map(<[f32]>::to_vec).collect(),
    });
    let side = (pixels.len() / 3).isqrt();
    let seen = Seen { width: side, height: side, rgb: base64::encode(pixels) };
    Ok(Explanation { seen, step, maps: maps.collect() })
}
