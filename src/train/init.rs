//! First weights that are somebody else's.

use super::model_file::Model;
use crate::backend::{Backend, OPTIMISER_PREFIX};
use crate::error::Result;
use std::path::PathBuf;

/// Where a run's first weights come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init {
    /// An engine checkpoint, or a safetensors or .pth state dict with torchvision's names.
    pub path: PathBuf,
    /// The classifier begins anew, so that the file may know other classes than the data have.
    pub reset_head: bool,
}

impl Init {
    /// Into a freshly initialised backend: the file's weights, its moving averages where it has them; velocities and moments
    /// start at zero.
    pub fn load(&self, backend: &mut dyn Backend) -> Result<()> {
        let mut tensors = Model::read(&self.path)?.tensors;
        tensors.retain(|name, _| !name.starts_with(OPTIMISER_PREFIX));
        if self.reset_head {
            for name in ["fc.weight", "fc.bias"] {
                tensors.insert(name.to_owned(), backend.read(name)?);
            }
        }
        backend.load_state(&tensors).map_err(|error| error.within(self.path.display()))
    }
}
