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
        (Set::Avx512, Precision::Int8) if isa.has_dots() => (avx512_vnni, 64),
        #[cfg(target_arch = "x86_64")]
        (Set::Avx2, Precision::Int8) if isa.has_dots() => (avx_vnni, 32),
        #[cfg(target_arch = "x86_64")]
        (Set::Avx512 | Set::Avx2, Precision::Int8) => (avx2_quads, 64),
        #[cfg(target_arch = "x86_64")]
        (Set::Avx512, _) => (avx512, 16),
        #[cfg(target_arch = "x86_64")]
        (Set::Avx2, _) => (avx2, 8),
        #[cfg(target_arch = "aarch64")]
        (Set::Neon, Precision::Int8) if isa.has_dots() => (neon_dots, 16),
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
    __m512bh, _mm256_add_epi16, _mm256_add_epi32, _mm256_dpbusd_avx_epi32, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_setzero_si256, _mm512_dpbf16_ps,
    _mm512_dpbusd_epi32, _mm512_set1_epi8, _mm512_set1_epi16, _mm512_setzero_ps, _mm512_setzero_si512,
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
#[cfg(target_arch = "x86_64")]
chains!(
    avx_vnni,
    "avx2,avxvnni",
    _mm256_setzero_si256(),
    _mm256_set1_epi8(3),
    _mm256_set1_epi8(-5),
    |sum, a, b| _mm256_dpbusd_avx_epi32(sum, a, b)
);
// Where there is no dot product of bytes, kernels add two sums of pairs before they widen them. One factor is the sum, so
// that the products cannot be taken out of the loop.
#[cfg(target_arch = "x86_64")]
chains!(avx2_quads, "avx2", _mm256_set1_epi8(1), _mm256_set1_epi8(3), _mm256_set1_epi16(1), |sum, a, b| {
    let quads = _mm256_add_epi16(_mm256_maddubs_epi16(sum, a), _mm256_maddubs_epi16(a, sum));
    _mm256_add_epi32(sum, _mm256_madd_epi16(quads, b))
});

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
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::{int8x16_t, vdupq_n_s8, vdupq_n_s32};
#[cfg(target_arch = "aarch64")]
chains!(
    neon_dots,
    "neon,dotprod",
    vdupq_n_s32(0),
    vdupq_n_s8(3),
    vdupq_n_s8(-5),
    |mut sum, a: int8x16_t, b: int8x16_t| {
        // SAFETY: registers alone; the function has the feature.
        unsafe {
            std::arch::asm!("sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }
);

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
