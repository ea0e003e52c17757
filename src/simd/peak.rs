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
    let start = Instant::now();
    run(pool, isa) / start.elapsed().as_secs_f64()
}

/// Keeps the pool's multiply-add units busy for some milliseconds, and returns how many operations that were.
pub fn run(pool: &Pool, isa: Isa) -> f64 {
    let tasks = pool.threads() * 4;
    pool.run(tasks, &|_| {
        chains(isa);
    });
    let lanes = match isa.set() {
        Set::Avx512 => 16,
        Set::Avx2 => 8,
        Set::Neon | Set::Portable => 4,
    };
    (2 * lanes * CHAINS * STEPS * tasks) as f64
}

/// As `run`, by the instruction that a precision's products are made of; in f32 where the set has none of its own.
pub fn dots(pool: &Pool, isa: Isa, precision: Precision) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        let (products, chains): (usize, unsafe fn()) = match precision {
            Precision::Bf16 if isa.has_bf16() => (32, bf16),
            Precision::Int8 if isa.has_vnni() => (64, vnni),
            Precision::Int8 if isa.set() >= Set::Avx2 => (16, pairs),
            _ => return run(pool, isa),
        };
        let tasks = pool.threads() * 4;
        // SAFETY: the arms above checked for the instructions.
        pool.run(tasks, &|_| unsafe { chains() });
        (2 * products * CHAINS * STEPS * tasks) as f64
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = precision;
        run(pool, isa)
    }
}

fn chains(isa: Isa) {
    // SAFETY: an `Isa` of a set is made only where the machine has its instructions.
    unsafe {
        match isa.set() {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => avx512(),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => avx2(),
            #[cfg(target_arch = "aarch64")]
            Set::Neon => neon(),
            _ => portable(),
        }
    }
}

macro_rules! chains {
    ($name:ident, $features:literal, $splat:path, $mul_add:path) => {
        #[target_feature(enable = $features)]
        unsafe fn $name() {
            let (a, b) = (black_box($splat(0.999)), black_box($splat(1e-3)));
            let mut sums = [b; CHAINS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = $mul_add(*sum, a, b);
                }
            }
            black_box(sums);
        }
    };
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps};
#[cfg(target_arch = "x86_64")]
chains!(avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps);
#[cfg(target_arch = "x86_64")]
chains!(avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps);
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::{vdupq_n_f32, vfmaq_f32};
#[cfg(target_arch = "aarch64")]
chains!(neon, "neon", vdupq_n_f32, vfmaq_f32);

#[cfg(target_arch = "x86_64")]
macro_rules! dots {
    ($name:ident, $features:literal, $sum:path, $operand:expr, $dot:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name() {
            let (a, b) = (black_box($operand), black_box($operand));
            let mut sums = [$sum(); CHAINS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = $dot(*sum, a, b);
                }
            }
            black_box(sums);
        }
    };
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    _mm256_add_epi32, _mm256_madd_epi16, _mm256_set1_epi16, _mm256_setzero_si256, _mm512_cvtne2ps_pbh,
    _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_set1_epi8, _mm512_setzero_ps, _mm512_setzero_si512,
};
#[cfg(target_arch = "x86_64")]
dots!(
    bf16,
    "avx512f,avx512bf16",
    _mm512_setzero_ps,
    _mm512_cvtne2ps_pbh(_mm512_set1_ps(1e-3), _mm512_set1_ps(1e-3)),
    |sum, a, b| _mm512_dpbf16_ps(sum, a, b)
);
#[cfg(target_arch = "x86_64")]
dots!(vnni, "avx512f,avx512vnni", _mm512_setzero_si512, _mm512_set1_epi8(1), |sum, a, b| {
    _mm512_dpbusd_epi32(sum, a, b)
});
#[cfg(target_arch = "x86_64")]
dots!(pairs, "avx2", _mm256_setzero_si256, _mm256_set1_epi16(1), |sum, a, _| {
    // Of the sum itself, or the compiler would multiply once for all steps.
    _mm256_add_epi32(sum, _mm256_madd_epi16(sum, a))
});

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
