//! Where in a picture a class's logit comes from: class activation maps (arXiv:1512.04150).
//!
//! The network ends in a global average pool and one linear layer, so that a logit is a sum over the positions of the
//! last feature map `a` [h][w][c], with no approximation:
//!
//! ```text
//! logit[k] = bias[k] + sum over (y, x) of  values[y][x],    values[y][x] = sum over c of w[k][c] a[y][x][c] / (h w)
//! ```

use super::program::{Program, Work};
use crate::error::{Error, Result};

/// What each position of the last feature map adds to one class's logit.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivationMap {
    pub height: usize,
    pub width: usize,
    /// f32 [height][width], in units of the logit; negative where a position speaks against the class.
    pub values: Vec<f32>,
    pub bias: f32,
}

impl ActivationMap {
    /// The class's logit: what the program computed, but for the order of additions.
    pub fn logit(&self) -> f64 {
        f64::from(self.bias) + self.values.iter().copied().map(f64::from).sum::<f64>()
    }
}

impl Program {
    /// The maps of `classes`, in their order, for an image of the last run. They are made of the numbers that the run
    /// multiplied, whatever its precision.
    pub fn activation_maps(&self, image: usize, classes: &[usize]) -> Result<Vec<ActivationMap>> {
        let count = self.graph.tensors[self.graph.logits].c;
        if image >= self.images {
            let images = self.images;
            return Err(Error::usage(format!("image {image} is asked about, the last run had {images}")));
        }
        if let Some(class) = classes.iter().find(|class| **class >= count) {
            return Err(Error::usage(format!("class {class} is asked about, the network has {count}")));
        }
        let pooled = self.steps.iter().find_map(|step| match step.work {
            Work::AvgPool { x, .. } => Some(x),
            _ => None,
        });
        let linear = self.steps.iter().find_map(|step| match &step.work {
            Work::Linear(linear) => Some(linear),
            _ => None,
        });
        let (Some(tensor), Some(linear)) = (pooled, linear) else {
            unreachable!("every network pools before its classifier");
        };
        // It needs no `Keep`: its pool is the last step that touches the arena, so nothing has taken its place.
        let placed = self.tensors[tensor].expect("the pool's input is planned");
        let (height, width, channels) = (placed.map.h, placed.map.w, placed.map.c);
        let mut activations = Vec::with_capacity(height * width * channels);
        self.read(tensor, placed, image, &mut activations);
        let map = |&class: &usize| {
            let (row, bias) = linear.row(class);
            let value = |a: &[f32]| {
                let sum: f64 = a.iter().zip(&row).map(|(a, w)| f64::from(*a) * f64::from(*w)).sum();
                (sum / (height * width) as f64) as f32
            };
            ActivationMap {
                height,
                width,
                values: activations.chunks_exact(channels).map(value).collect(),
                bias,
            }
        };
        Ok(classes.iter().map(map).collect())
    }
}
