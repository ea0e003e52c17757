//! `--ema` and `--plain`: which weights of a checkpoint are meant.

use crate::backend::Weights;
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
    pub fn wanted(self) -> Option<Weights> {
        match (self.ema, self.plain) {
            (true, _) => Some(Weights::Averaged),
            (_, true) => Some(Weights::Live),
            _ => None,
        }
    }
}
