//! The CUDA backend: everything between the convolutions is our own kernels (`kernels/`), the convolutions are cuDNN's,
//! or cuBLAS's where they are matrix products.
//!
//! | file | says |
//! |---|---|
//! | [`storage`] | f16, bf16 or f32 |
//! | [`plan`] | a pass as data: calls, memory, streams |
//! | [`machine`], [`guarded`] | what runs plans; left alone once it has failed |
//! | [`network`] | the backend: batches in, outcomes and tensors out |
//! | [`replay`] | which layer a bad loss comes from |
//! | [`abi`] | structs that host and card exchange |
//! | [`ptx`] | the compiled kernels |
//! | [`bench`] | every call of a step against its floor |
//! | [`profile`] | every launch of the real step, by kind |
//! | [`variants`] | what a card should try, and what each is expected to gain |
//! | [`shares`] | what share of its floor each kind reaches |
//! | [`cards`] | cards and instances that are not at hand |
//! | [`forecast`] | what a training takes on a card that is not at hand |
//! | [`patience`] | waiting, but not for ever |
//! | [`device`] | NVIDIA's libraries, and the card as a machine |

pub mod abi;
pub mod bench;
pub mod device;
pub mod cards;
pub mod forecast;
pub mod guarded;
pub mod machine;
pub mod network;
pub mod patience;
pub mod plan;
pub mod profile;
pub mod ptx;
pub mod replay;
pub mod shares;
pub mod storage;
pub mod variants;

pub use network::{CudaBackend, CudaOptions};
