//! A model file, its programs, and pictures through both.

use crate::data::{Preprocessor, Reading};
use crate::error::{Error, Result};
use crate::infer::file::ModelFile;
use crate::infer::top::{Prediction, top};
use crate::infer::{Keep, Options, Precision, Program};
use crate::model::params::Param;
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

/// What is said of a picture.
#[derive(Debug, Serialize)]
pub struct Answer<'a> {
    pub predictions: Vec<Prediction<'a>>,
    pub milliseconds: Milliseconds,
    /// Instruction set and precision: "avx512 int8".
    pub path: String,
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
    /// Reads no weights yet: [`Self::program`] does.
    pub fn new(model: ModelFile, isa: Isa, threads: usize) -> Self {
        let transform = model.description().transform();
        let pixels = vec![0; transform.crop * transform.crop * 3];
        let preprocessor = Preprocessor::new(transform, Reading::Photograph);
        Self { model, isa, threads, programs: vec![], preprocessor, pixels }
    }

    pub fn fastest(&self) -> Precision {
        Precision::fastest(self.isa, self.model.has_int8())
    }

    pub fn isa(&self) -> Isa {
        self.isa
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

    /// The `count` likeliest classes of a picture file. An error of kind `Input` has no name in front: the caller knows
    /// it.
    pub fn classify(&mut self, bytes: &mut [u8], precision: Precision, count: usize) -> Result<Answer<'_>> {
        // Before the clock starts: the first use of a precision packs its weights.
        self.program(precision)?;
        let start = Instant::now();
        self.preprocessor.run(bytes, &mut self.pixels).map_err(Error::input)?;
        let decode = start.elapsed();
        let start = Instant::now();
        let program = self.programs.iter_mut().find(|program| program.precision() == precision);
        let logits = program.expect("compiled above").run(&self.pixels)?;
        let run = start.elapsed();
        let classes = &self.model.description().classes;
        Ok(Answer {
            predictions: top(logits, |index| &classes[index].1, count),
            milliseconds: Milliseconds { decode, run },
            path: format!("{} {}", self.isa.name(), precision.name()),
        })
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
