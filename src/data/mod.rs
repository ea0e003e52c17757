//! From a folder or a tar of images to ordered batches of u8 pixels.
//!
//! | file | gives |
//! |---|---|
//! | [`index`], `listing`, `shard`, [`split`] | what samples there are, their labels, and their bytes |
//! | [`decode`], `jpeg`, `turbo` | bytes -> RGB |
//! | [`resize`], [`augment`] | RGB -> the training or evaluation image, by torchvision's definitions |
//! | [`synth`] | the embedded data set: drawn shapes as JPEGs |
//! | [`loader`], `worker` | samples -> batches, in order, from a pool of threads |
//! | [`check`], [`batches`], [`bench`] | what is odd, the batches as a file, images a second |

pub mod augment;
pub mod batches;
pub mod bench;
pub mod check;
pub mod decode;
pub mod index;
mod jpeg;
mod listing;
pub mod loader;
pub mod resize;
mod shard;
pub mod split;
pub mod synth;
#[cfg(feature = "turbojpeg")]
mod turbo;
mod worker;

#[cfg(test)]
mod tests;

pub use augment::{Crop, EvalTransform, TrainTransform};
pub use decode::{Decoder, Format, Image, JPEG_DECODER, Limits, Rect, decode, decode_region};
pub use index::{Class, Dataset, Splits};
pub use loader::{BadFile, Batch, EvalOptions, Loader, TrainOptions, available_workers};
pub use resize::Interpolation;
pub use split::Split;
