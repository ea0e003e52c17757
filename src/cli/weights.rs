//! `--ema` and `--plain`: which weights of a checkpoint are meant.

use crate::train::model_file::Take;
use clap::Args;

#[derive(Debug, Clone, Copy, Args)]
pub struct WeightsArgs {
    /// The moving averages of the weights; without it, they are taken where the checkpoint has them
    #[arg(long, conflicts_with = "plain")]
    pub ema: bool,

    /// The weights themselves, also where the checkpoint has moving averages of them
    #[arg(long)]
    pub plain: bool,
}

impl WeightsArgs {
    pub fn take(self) -> Take {
        match (self.ema, self.plain) {
            (true, _) => Take::Averages,
            (_, true) => Take::Plain,
            _ => Take::Best,
        }
    }
}
