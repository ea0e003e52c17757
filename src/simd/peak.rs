//! The multiply-add peak of this machine, which benchmarks give shares of.

use super::direct::Precision;
use super::isa::{Isa, Set};
use super::pool::Pool;
use std::hint::black_box;
use std::time::Instant;

/// Independent chains of multiply-adds in registers: more than their latency times the number of units.
const CHAINS: usize = 12;
/// Multiply-adds of a chain.
const STEPS: usize = 1 << 18;

/// f32 operations (two a multiply-add) per second of all the pool's threads together, measured once. Take the largest
/// of several, between the measurements that it is compared with.
pub fn measure(pool: &Pool, isa: Isa) -> f64 {
    measure_in(pool, isa, Precision::Fp32)
}

/// The same of the instructions that a precision's kernels multiply with.
pub fn measure_in(pool: &Pool, isa: Isa, precision: Precision) -> f64 {
    let start = Instant::now();
    dots(pool, isa, precision) / start.elapsed().as_secs_f64()
}

/// Keeps the pool's multiply-add units busy for some milliseconds, and returns how many operations that were.
pub fn run(pool: &Pool, isa: Isa) -> f64 {
    dots(pool, isa, Precision::Fp32)
}

/// As `run`, by the instructions that a precision's kernels multiply with.
pub fn dots(pool: &Pool, isa: Isa, precision: Precision) -> f64 {
    let tasks = pool.threads() * 4;
    let (chains, multiply_adds) = chains(isa, precision);
    // SAFETY: an `Isa` of a set is made only where the machine has its instructions, and `chains` asks for the others.
    pool.run(tasks, &|_| unsafe { chains() });
    (2 * multiply_adds * CHAINS * STEPS * tasks) as f64
}

/// The loop for a machine and a precision, and the multiply-adds of one of its instructions.
fn chains(isa: Isa, precision: Precision) -> (unsafe fn(), usize) {
    match (isa.set(), precision) {
        #[cfg(target_arch = "x86_64")]
        (Set::Avx512, Precision::Bf16) if isa.has_bf16() => (avx512_bf16, 32),
        #[cfg(target_arch = "x86_64")]
        (Set::Avx512, Precision::Int8) if isa.has_vnni() => (avx512_vnni, 64),
        #[cfg(target_arch = "x86_64")]
        (Set::Avx512 | Set::Avx2, Precision::Int8) => (avx2_16_bit, 16),
        #[cfg(target_arch = "x86_64")]
        (Set::Avx512, _) => (avx512, 16),
        #[cfg(target_arch = "x86_64")]
        (Set::Avx2, _) => (avx2, 8),
        #[cfg(target_arch = "aarch64")]
        (Set::Neon, _) => (neon, 4),
        _ => (portable, 4),
    }
}

macro_rules! chains {
    ($name:ident, $features:literal, $first:expr, $a:expr, $b:expr, $mul_add:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name() {
            let (a, b) = (black_box($a), black_box($b));
            let mut sums = [black_box($first); CHAINS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = $mul_add(*sum, a, b);
                }
            }
            black_box(sums);
        }
    };
    ($name:ident, $features:literal, $splat:path, $mul_add:path) => {
        chains!($name, $features, $splat(1e-3), $splat(0.999), $splat(1e-3), $mul_add);
    };
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps};
#[cfg(target_arch = "x86_64")]
chains!(avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps);
#[cfg(target_arch = "x86_64")]
chains!(avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps);
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512bh, _mm256_add_epi32, _mm256_madd_epi16, _mm256_set1_epi16, _mm512_dpbf16_ps, _mm512_dpbusd_epi32,
    _mm512_set1_epi8, _mm512_set1_epi16, _mm512_setzero_ps, _mm512_setzero_si512,
};
#[cfg(target_arch = "x86_64")]
chains!(
    avx512_bf16,
    "avx512f,avx512bw,avx512bf16",
    _mm512_setzero_ps(),
    bf16_splat(),
    bf16_splat(),
    |sum, a, b| _mm512_dpbf16_ps(sum, a, b)
);
#[cfg(target_arch = "x86_64")]
chains!(
    avx512_vnni,
    "avx512f,avx512bw,avx512vnni",
    _mm512_setzero_si512(),
    _mm512_set1_epi8(3),
    _mm512_set1_epi8(-5),
    |sum, a, b| _mm512_dpbusd_epi32(sum, a, b)
);
// Where there is no dot product of bytes, kernels multiply 16-bit numbers in pairs and add. One factor is the sum, so that
// the product cannot be taken out of the loop.
#[cfg(target_arch = "x86_64")]
chains!(
    avx2_16_bit,
    "avx2",
    _mm256_set1_epi16(1),
    _mm256_set1_epi16(3),
    _mm256_set1_epi16(3),
    |sum, a, _b| _mm256_add_epi32(sum, _mm256_madd_epi16(sum, a))
);

/// 0.0078125 in bfloat16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn bf16_splat() -> __m512bh {
    // SAFETY: both are 64 bytes, of which every pattern is a value.
    unsafe { std::mem::transmute(_mm512_set1_epi16(0x3c00)) }
}

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::{vdupq_n_f32, vfmaq_f32};
#[cfg(target_arch = "aarch64")]
chains!(neon, "neon", vdupq_n_f32, vfmaq_f32);

fn portable() {
    let (a, b) = (black_box([0.999f32; 4]), black_box([1e-3f32; 4]));
    let mut sums = [b; CHAINS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            for i in 0..4 {
                sum[i] = sum[i] * a[i] + b[i];
            }
        }
    }
    black_box(sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop that the compiler took apart would run at a speed that no machine has.
    #[test]
    fn every_loop_runs_at_a_speed_that_a_machine_can_have() {
        let pool = Pool::new(1);
        for isa in Isa::available() {
            for precision in Precision::ALL {
                let (_, multiply_adds) = chains(isa, precision);
                let instructions = measure_in(&pool, isa, precision) / (2 * multiply_adds) as f64;
                // From a core of which others take nearly everything to four instructions a cycle at 6 GHz.
                let (isa, precision) = (isa.name(), precision.name());
                assert!(
                    (1e6..2.4e10).contains(&instructions),
                    "{isa} {precision}: {instructions:.3e} a second"
                );
            }
        }
    }
}
