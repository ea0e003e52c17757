//! `engine export`.

pub(super) mod args;
mod card;
mod tested;

use crate::backend::Weights;
use crate::checkpoint::{StateDict, read_weights};
use crate::data::index::unlabelled;
use crate::error::{Error, Result};
use crate::export::cpu::calibrate::Noise;
use crate::export::cpu::{Method, Photographs, Quantisation, Scheme, calibrate, entries};
use crate::export::onnx::{self, Activations, Norms};
use crate::export::verify::{F32, Promise, Row, Runner, WINOGRAD};
use crate::export::{describe, export_cpu, export_onnx, export_pth, export_safetensors, state_dict};
use crate::files;
use crate::infer::Precision;
use crate::infer::file::{Description, ModelFile};
use crate::model::graph::{Graph, lower};
use crate::simd::isa::Isa;
use crate::terminal::{answer, message};
use crate::train::model_file::{MODEL_KEY, Model};
use args::{ActivationType, ExportArgs, ExportFormat, Range};
use std::path::{Path, PathBuf};
use tested::Tested;

pub fn run(args: &ExportArgs) -> Result<()> {
    check(args)?;
    let path = &args.checkpoint;
    let chosen = read_weights(path)?.choose(args.weights.wanted());
    let chosen = chosen.map_err(|error| error.within(path.display()))?;
    // A copy in memory costs less than reading and verifying the file once more.
    let model = Model::from_chosen(path, chosen.clone())?;
    let checkpoint = chosen.checkpoint;
    let description = describe(&model, &checkpoint, path)?;
    let mut done = vec![];
    let mut tested = None;
    if let (Some(format), Some(output)) = (args.format, &args.output) {
        let graph = lower(&model.spec, model.description.resolution)?;
        let state = state_dict(&checkpoint, &graph)?;
        let export = Export { args, model: &model, graph, state, description: description.clone() };
        let files = files(format, output, args.int8)?;
        let mut pictures = Tested::on(args, &model)?;
        for (part, path) in files {
            export.write(part, &path, &mut pictures)?;
            let (to, classes) = (path.display(), model.spec.classes);
            let of = if model.weights == Weights::Averaged { ", moving averages" } else { "" };
            message(format!("wrote {to}: {} with {classes} classes{of}", model.spec.name));
            done.push(path);
        }
        pictures.show();
        tested = Some(pictures);
    }
    if args.json {
        let rows = tested.iter().flat_map(|tested| &tested.rows);
        rows.map(|row| serde_json::to_string(row).expect("plain fields")).try_for_each(answer)?;
    }
    match &args.card {
        Some(path) => card::write(args, path, &checkpoint, &description, tested.as_ref(), &done),
        None => Ok(()),
    }
}

/// What clap's rules do not say.
fn check(args: &ExportArgs) -> Result<()> {
    // --format all makes a folder, in which the card may be.
    let folder = args.output.as_deref().filter(|_| args.format == Some(ExportFormat::All));
    for target in args.output.iter().chain(&args.card) {
        if let (Ok(from), Ok(to)) = (args.checkpoint.canonicalize(), target.canonicalize())
            && from == to
        {
            let to = target.display();
            return Err(Error::usage(format!(
                "--output {to} is the checkpoint itself, which holds more than an export; choose another name"
            )));
        }
        // Now, and not after minutes of calibration.
        if folder.is_none_or(|folder| folder != target && folder != files::folder_of(target)) {
            files::check_target(target)?;
        }
    }
    let format = args.format;
    if args.int8 && matches!(format, Some(ExportFormat::Safetensors | ExportFormat::Pth)) {
        return Err(Error::usage(
            "--int8 goes with --format cpu, onnx or all; a state dict holds f32 weights",
        ));
    }
    if args.unfolded && (args.int8 || !matches!(format, Some(ExportFormat::Onnx | ExportFormat::All))) {
        return Err(Error::usage(
            "--unfolded goes with --format onnx in f32; 8-bit weights have batch norm in them",
        ));
    }
    Ok(())
}

/// One file of an export.
#[derive(Clone, Copy)]
enum Part {
    Safetensors,
    Pth,
    Onnx,
    OnnxInt8,
    Cpu,
}

/// What is written where.
fn files(format: ExportFormat, output: &Path, int8: bool) -> Result<Vec<(Part, PathBuf)>> {
    let part = match format {
        ExportFormat::Safetensors => Part::Safetensors,
        ExportFormat::Pth => Part::Pth,
        ExportFormat::Onnx if int8 => Part::OnnxInt8,
        ExportFormat::Onnx => Part::Onnx,
        ExportFormat::Cpu => Part::Cpu,
        ExportFormat::All => {
            files::create_folder(output)?;
            let rounded = int8.then_some((Part::OnnxInt8, "model-int8.onnx"));
            let parts = [
                (Part::Safetensors, "model.safetensors"),
                (Part::Pth, "model.pth"),
                (Part::Onnx, "model.onnx"),
                (Part::Cpu, "model.engine"),
            ];
            let parts = parts.into_iter().chain(rounded);
            return Ok(parts.map(|(part, name)| (part, output.join(name))).collect());
        }
    };
    Ok(vec![(part, output.to_owned())])
}

struct Export<'a> {
    args: &'a ExportArgs,
    model: &'a Model,
    graph: Graph,
    state: StateDict,
    description: Description,
}

impl Export<'_> {
    fn write(&self, part: Part, path: &Path, tested: &mut Tested) -> Result<()> {
        let threads = self.args.threads.threads;
        let metadata = || [(MODEL_KEY.to_owned(), self.description.to_json())].into();
        let state_dict = |name: &'static str, tested: &mut Tested, written: &Path| {
            // The same weights on the same backend give the same bits.
            tested.test(name, &mut Runner::state_dict(written, self.model, threads)?, Promise::Logits(0.0))
        };
        match part {
            Part::Safetensors => export_safetensors(&self.state, &metadata(), path, |written| {
                state_dict("safetensors", tested, written)
            }),
            Part::Pth => {
                export_pth(&self.state, &metadata(), path, |written| state_dict("pth", tested, written))
            }
            Part::Onnx => {
                let norms = if self.args.unfolded { Norms::Kept } else { Norms::Folded };
                let graph = onnx::plain(&self.state, &self.graph, norms)?;
                export_onnx(graph, &self.description, path, |written| {
                    tested.test("onnx fp32", &mut Runner::onnx(written, threads)?, Promise::Logits(F32))
                })
            }
            Part::OnnxInt8 => self.onnx_int8(path, tested),
            Part::Cpu => self.cpu(path, tested),
        }
    }

    fn onnx_int8(&self, path: &Path, tested: &mut Tested) -> Result<()> {
        let quantisation = self.calibrated(Scheme::Qdq)?;
        let activations = match self.args.activations {
            ActivationType::S8 => Activations::I8,
            ActivationType::U8 => Activations::U8,
        };
        let normalisation = self.description.normalisation();
        let graph = onnx::quantised(&quantisation, &self.graph, &normalisation, activations)?;
        let description = Description { int8: Some(quantisation.calibration), ..self.description.clone() };
        export_onnx(graph, &description, path, |written| {
            let mut runner = Runner::onnx(written, self.args.threads.threads)?;
            tested.test("onnx int8", &mut runner, Promise::Loss(self.args.max_loss))
        })
    }

    fn cpu(&self, path: &Path, tested: &mut Tested) -> Result<()> {
        let mut description = self.description.clone();
        let mut int8 = vec![];
        if self.args.int8 {
            let quantisation = self.calibrated(Scheme::Bytes)?;
            int8 = entries(&quantisation.layers, &self.graph);
            description.int8 = Some(quantisation.calibration);
        }
        let promises = [
            (Precision::Fp32, "cpu fp32", Promise::Logits(WINOGRAD)),
            (Precision::Bf16, "cpu bf16", Promise::Nothing),
            (Precision::Int8, "cpu int8", Promise::Loss(self.args.max_loss)),
        ];
        export_cpu(&self.state, int8, &description, path, |written| {
            let file = ModelFile::open(written)?;
            for (precision, name, promise) in promises {
                let is_there = match precision {
                    Precision::Fp32 => true,
                    Precision::Bf16 => Isa::current().has_bf16(),
                    Precision::Int8 => file.has_int8(),
                };
                if is_there {
                    let mut runner = Runner::program(&file, precision, self.args.threads.threads)?;
                    tested.test(name, &mut runner, promise)?;
                }
            }
            Ok(())
        })
    }

    /// 8-bit numbers from the images of `--calibrate`.
    fn calibrated(&self, scheme: Scheme) -> Result<Quantisation> {
        let args = self.args;
        let path = args.calibrate.as_ref().expect("clap lets --int8 through with --calibrate alone");
        let photographs = Photographs {
            split: unlabelled(path)?,
            transform: self.description.transform(),
            normalisation: self.description.normalisation(),
            count: args.calibration_images as usize,
        };
        let method = match args.calibration {
            Range::Mse => Method::Mse,
            Range::Percentile => Method::Percentile(0.9999),
        };
        let threads = args.threads.threads;
        let quantisation = calibrate(&self.state, &self.graph, &photographs, method, scheme, threads)?;
        let (images, method) = (quantisation.calibration.images, &quantisation.calibration.method);
        message(format!("calibrated on {images} images of {} ({method})", path.display()));
        report(&quantisation.report);
        Ok(quantisation)
    }
}

/// The table of noise; the five layers that add most are marked.
fn report(noise: &[Noise]) {
    let mut order: Vec<f64> = noise.iter().map(|layer| layer.own).collect();
    order.sort_by(f64::total_cmp);
    let worst = order.get(4).copied().unwrap_or(f64::NEG_INFINITY);
    message("signal to noise in dB: the layer alone in 8 bits, and all layers up to it");
    message(format!("{:<24} {:>10} {:>8} {:>8}", "layer", "step", "alone", "all"));
    for Noise { layer, step, own, accumulated } in noise {
        let step = step.map_or("f32".to_owned(), |step| format!("{step:.3e}"));
        let mark = if *own <= worst { "  <- among the worst" } else { "" };
        message(format!("{layer:<24} {step:>10} {own:>8.1} {accumulated:>8.1}{mark}"));
    }
}
