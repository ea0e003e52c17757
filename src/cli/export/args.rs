//! The flags of `engine export`. Doc comments are the help texts.

use crate::cli::args::{EXIT_CODES, ThreadArgs};
use crate::cli::weights::WeightsArgs;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Write a checkpoint's weights in formats that others load. Each file is run again, beside the checkpoint, before it gets
/// its name
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct ExportArgs {
    #[arg(long, value_name = "PATH")]
    pub checkpoint: PathBuf,

    #[command(flatten)]
    pub weights: WeightsArgs,

    #[arg(long, value_enum, required_unless_present = "card", requires = "output")]
    pub format: Option<ExportFormat>,

    /// The file to write; with --format all, a folder
    #[arg(long, value_name = "PATH", requires = "format")]
    pub output: Option<PathBuf>,

    /// 8-bit weights, and a table of what they cost each layer. In --format cpu beside the f32 ones; in onnx as QuantizeLinear
    /// and DequantizeLinear around each operation, weights s8 by channel; in all, both
    #[arg(long, requires = "calibrate", requires = "format")]
    pub int8: bool,

    /// Photographs like those that the network will see, for --int8: a folder of images or of class folders, or a tar;
    /// train/ of a data set
    #[arg(long, value_name = "DIR|TAR", requires = "int8")]
    pub calibrate: Option<PathBuf>,

    /// How many of them are used
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pub calibration_images: u32,

    /// How the range of an activation is chosen
    #[arg(long, value_enum, default_value_t = Range::Mse)]
    pub calibration: Range,

    /// Type of 8-bit activations in ONNX. The levels are the same: some runtimes are faster with one, and some saturate sums
    /// of u8 times s8 on processors without VNNI
    #[arg(long, value_enum, default_value_t = ActivationType::S8, requires = "int8")]
    pub activations: ActivationType,

    /// ONNX in f32 with batch norms as nodes of their own: all constants are tensors of the state dict as they are
    #[arg(long)]
    pub unfolded: bool,

    /// Pictures to compare the written file with the checkpoint on: a folder or tar; val/ of a data set. Without it, what
    /// the checkpoint's run was validated on where that is still there, else the embedded synthetic set
    #[arg(long, value_name = "DIR|TAR", requires = "format")]
    pub verify: Option<PathBuf>,

    /// How many of them are used, of a fixed shuffle; 0: all
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub verify_images: u32,

    /// Points of top-1 that 8 bits may cost on these pictures; a file that costs more is not written (exit code 1)
    #[arg(long, value_name = "POINTS", default_value_t = 0.5)]
    pub max_loss: f64,

    /// Write a model card for the Hugging Face Hub (README.md), of the checkpoint's own figures and of what is exported with it
    #[arg(long, value_name = "PATH")]
    pub card: Option<PathBuf>,

    /// The card's licence of the weights, as the Hub names it
    #[arg(long, value_name = "ID", default_value = "apache-2.0", requires = "card")]
    pub license: String,

    /// The training data's name on the Hub, for the card: ILSVRC/imagenet-1k
    #[arg(long, value_name = "ID", requires = "card")]
    pub dataset: Option<String>,

    /// The table of agreement on standard output, one JSON object a line
    #[arg(long, requires = "format")]
    pub json: bool,

    #[command(flatten)]
    pub threads: ThreadArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Range {
    /// Least mean square error
    Mse,
    /// 99.99 % of all values lie within it
    Percentile,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ActivationType {
    S8,
    U8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// A state dict that load_state_dict takes strictly
    Safetensors,
    /// The same for torch.load(weights_only=True)
    Pth,
    /// The network for other runtimes: opset 17, any batch, batch norm folded
    Onnx,
    /// A model file for `classify`: weights, class names and the preparation of pictures
    Cpu,
    /// All of them in one folder
    All,
}
