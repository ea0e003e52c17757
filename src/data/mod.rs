//! From a folder or a tar of images to ordered batches of u8 pixels.
//!
//! | file | gives |
//! |---|---|
//! | [`index`], `listing`, `shard`, [`ilsvrc`], [`split`] | what samples there are, their labels, and their bytes |
//! | [`picture`] | a path or standard input -> bytes |
//! | [`decode`], `jpeg`, `turbo`, [`exif`] | bytes -> RGB |
//! | [`resize`], [`augment`], [`preprocess`] | RGB -> the training or evaluation image, by torchvision's definitions |
//! | [`synth`] | the embedded data set: drawn shapes as JPEGs |
//! | [`order`], [`loader`], `worker`, `share`, [`batch`], [`stages`] | samples -> batches, in order, from a pool of threads; where their time goes |
//! | [`mix`] | which images of a batch are mixed, and how |
//! | [`check`], [`batches`], [`bench`] | what is odd, the batches as a file, images a second |
//! | [`pack`] | samples -> tar shards that the above reads in place |

#[cfg(feature = "train")]
pub mod augment;
#[cfg(feature = "train")]
pub mod batch;
#[cfg(feature = "train")]
pub mod batches;
#[cfg(feature = "train")]
pub mod bench;
#[cfg(feature = "train")]
pub mod check;
pub mod decode;
pub mod exif;
#[cfg(feature = "train")]
pub mod ilsvrc;
#[cfg(feature = "train")]
pub mod index;
mod jpeg;
#[cfg(feature = "train")]
mod listing;
#[cfg(feature = "train")]
pub mod loader;
#[cfg(feature = "train")]
pub mod mix;
#[cfg(feature = "train")]
pub mod order;
#[cfg(feature = "train")]
pub mod pack;
pub mod picture;
pub mod preprocess;
pub mod resize;
#[cfg(feature = "train")]
mod shard;
#[cfg(feature = "train")]
mod share;
#[cfg(feature = "train")]
pub mod split;
pub mod stages;
#[cfg(feature = "train")]
pub mod synth;
#[cfg(feature = "turbojpeg")]
mod turbo;
#[cfg(feature = "train")]
mod worker;

#[cfg(all(test, feature = "train"))]
mod tests;

#[cfg(feature = "train")]
pub use augment::{Crop, TrainTransform};
#[cfg(feature = "train")]
pub use batch::{Batch, Blend, Erase, Fill, Mix};
pub use decode::{Decoder, Format, Image, JPEG_DECODER, Limits, Reading, Rect, decode, decode_region};
#[cfg(feature = "train")]
pub use index::{Class, Dataset, Splits};
#[cfg(feature = "train")]
pub use loader::{BadFile, EvalOptions, Loader, TrainOptions, available_workers};
#[cfg(feature = "train")]
pub use mix::{MixForm, MixOptions};
pub use preprocess::{EvalTransform, Preprocessor};
pub use resize::Interpolation;
#[cfg(feature = "train")]
pub use share::Share;
#[cfg(feature = "train")]
pub use split::Split;
