//! Batch norm's statistics from sums, as a library's convolution leaves them, against those of the values themselves.

use super::By::{F32, Memory, Null, U32};
use super::{Bytes, Oracle, SUMS, run, values};
use crate::compare::close;
use engine::backend::EPS;
use engine::backend::cpu::batch_norm;
use engine::backend::cuda::plan::geometry;
use engine::backend::cuda::storage::Storage;

/// Sums, and sums of squares, rounded to f32 once.
fn sums(x: &[f32], channels: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; 2 * channels];
    for (e, &value) in x.iter().enumerate() {
        sums[e % channels] += f64::from(value);
        sums[channels + e % channels] += f64::from(value).powi(2);
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// With a mean of a few deviations the squares' sum loses that ratio squared of its bits.
#[test]
fn sums_give_the_statistics_and_the_map() {
    let oracle = Oracle::new();
    for (rows, channels, mean) in [(1, 3, 0.5), (700, 64, 0.3), (333, 300, 3.0)] {
        let name = format!("{rows} x {channels}, mean {mean}");
        let x = values(1, rows * channels, mean, 1.0, Storage::F16);
        let [gamma, beta] = [2, 3].map(|seed| values(seed, channels, 0.5, 0.3, Storage::F32));
        let mut memory = vec![Bytes::f32(&sums(&x, channels)), Bytes::f32(&gamma), Bytes::f32(&beta)];
        memory.extend([(); 5].map(|()| Bytes::out(4 * channels)));
        let last = [U32(rows), U32(channels), F32(EPS as f32)];
        let all = [(0..8).map(Memory).collect(), last.to_vec()].concat();
        let Some(got) = run("bn_finalize_sums", geometry::by_channel(channels), &memory, &all) else {
            return;
        };
        let want = batch_norm::statistics(oracle.cpu(), &x, channels);
        let tolerance = SUMS * (1.0 + mean * mean);
        close(&format!("{name}: mean"), &got[3].values(Storage::F32), &want.mean, SUMS);
        if rows > 1 {
            close(&format!("{name}: rstd"), &got[4].values(Storage::F32), &want.rstd, tolerance);
        }
        let scale = got[5].values(Storage::F32);
        let bias: Vec<f32> =
            (0..channels).map(|c| beta[c] - got[3].values(Storage::F32)[c] * scale[c]).collect();
        let map = got[7].values(Storage::F16);
        let roundoff = Storage::F16.roundoff();
        close(&format!("{name}: scales"), &map[..channels], &scale, 2.0 * roundoff);
        close(&format!("{name}: biases"), &map[channels..], &bias, 2.0 * roundoff);
        // Without a map the rest is the same.
        let plain = [(0..7).map(Memory).collect(), vec![Null], last.to_vec()].concat();
        let other = run("bn_finalize_sums", geometry::by_channel(channels), &memory, &plain).unwrap();
        assert_eq!(other[..7], got[..7], "{name}");
        assert!(other[7].get().iter().all(|&byte| byte == 0xff), "{name}: nothing else is written");
    }
}

/// What is not finite stays so, and a channel of one value has no variance less than zero.
#[test]
fn sums_of_what_is_not_finite_are_seen() {
    let memory = [
        Bytes::f32(&[f32::INFINITY, f32::NAN, 3.0e8, f32::INFINITY, f32::NAN, 8.999_999e15]),
        Bytes::f32(&[1.0; 3]),
        Bytes::f32(&[0.0; 3]),
    ];
    let memory = [memory.to_vec(), [(); 4].map(|()| Bytes::out(12)).to_vec()].concat();
    let args = [(0..7).map(Memory).collect(), vec![Null, U32(10), U32(3), F32(EPS as f32)]].concat();
    let Some(got) = run("bn_finalize_sums", geometry::by_channel(3), &memory, &args) else { return };
    let [mean, rstd, variance] = [3, 4, 6].map(|index| got[index].values(Storage::F32));
    assert!(!mean[0].is_finite() && !mean[1].is_finite(), "{mean:?}");
    assert!(rstd[0].is_nan() || variance[0].is_nan(), "{rstd:?} {variance:?}");
    assert!(rstd[1].is_nan() && variance[2] >= 0.0, "{rstd:?} {variance:?}");
}
