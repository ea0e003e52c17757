//! The harness itself: what it must notice, and what its arithmetic rests on.

use crate::harness::{Arg, Host, ORDERS, Order, compiler};
use engine::backend::cuda::plan::geometry::{Geometry, bn_one_pass};
use engine::rng::{Purpose, Rng};
use half::{bf16, f16};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

const BLOCK: [u32; 3] = [64, 1, 1];
const ONE: [u32; 3] = [1, 1, 1];

fn planted() -> Option<&'static Host> {
    static HOST: OnceLock<Option<Host>> = OnceLock::new();
    HOST.get_or_init(|| Host::compile("tests/cuda_host/planted.cpp")).as_ref()
}

fn block_sum(host: &Host, kernel: &str, order: Order) -> f32 {
    let mut x: Vec<f32> = (0..64).map(|i| i as f32).collect();
    let mut sum = f32::NAN;
    let args = [Arg::Pointer(x.as_mut_ptr().cast()), Arg::Pointer((&raw mut sum).cast())];
    // SAFETY: the kernel reads 64 floats and writes one.
    unsafe { host.launch(kernel, ONE, BLOCK, &args, order) }.unwrap();
    sum
}

#[test]
fn a_missing_barrier_gives_other_results_in_other_orders() {
    let Some(host) = planted() else { return };
    let sums = |kernel| ORDERS.map(|order| block_sum(host, kernel, order));
    assert_eq!(sums("with_barrier"), [2016.0; 3]);
    let wrong = sums("without_barrier");
    assert!(wrong.iter().any(|&sum| sum != wrong[0]), "{wrong:?}: not noticed");
}

#[test]
fn a_block_that_relies_on_another_gives_other_results_in_other_orders() {
    let Some(host) = planted() else { return };
    let counts = ORDERS.map(|order| {
        let mut counts = [0u32; 9];
        let args = [Arg::Pointer(counts.as_mut_ptr().cast())];
        // SAFETY: eight blocks read the first eight counts and write the last eight.
        unsafe { host.launch("relies_on_the_block_before", [8, 1, 1], ONE, &args, order) }.unwrap();
        counts
    });
    assert_eq!(counts[0], [0, 1, 2, 3, 4, 5, 6, 7, 8], "right by chance, in one order");
    assert!(counts[1] != counts[0] && counts[2] != counts[0], "{counts:?}: not noticed");
    assert_ne!(counts[1], counts[2], "the shuffled order is one of its own");
}

#[test]
fn who_adds_up_before_all_have_come_gives_other_results_in_other_orders() {
    let Some(host) = planted() else { return };
    let sums = |kernel: &str, counts: bool| {
        ORDERS.map(|order| {
            let (mut left, mut sum, mut counter) = ([0u32; 8], 0u32, 0u32);
            let mut args = vec![Arg::Pointer(left.as_mut_ptr().cast()), Arg::Pointer((&raw mut sum).cast())];
            if counts {
                args.push(Arg::Pointer((&raw mut counter).cast()));
            }
            // SAFETY: eight blocks write a word each, one of them the sum; the counter is a word.
            unsafe { host.launch(kernel, [8, 1, 1], ONE, &args, order) }.unwrap();
            assert_eq!(counter, 0, "ready for the next launch");
            sum
        })
    };
    assert_eq!(sums("added_by_the_last_to_come", true), [36; 3]);
    let wrong = sums("added_by_the_highest", false);
    assert!(wrong[0] == 36 && wrong[1..].iter().any(|&sum| sum != 36), "{wrong:?}: not noticed");
}

/// What the blocks of a launch add up, and the counter after it.
fn met(kernel: &str, order: Order, cooperative: bool, counter: &mut u32) -> Result<[u32; 8], String> {
    let host = planted().expect("the caller has asked");
    let (mut left, mut sums) = ([0u32; 8], [0u32; 8]);
    let args = [left.as_mut_ptr(), sums.as_mut_ptr(), counter].map(|at: *mut u32| Arg::Pointer(at.cast()));
    let geometry = Geometry { cooperative, ..Geometry::plain([8, 1, 1], 64) };
    // SAFETY: eight words each, and a counter.
    unsafe { host.run(kernel, geometry, &args, order) }.map(|()| sums)
}

#[test]
fn blocks_of_a_cooperative_launch_meet_and_of_no_other() {
    if planted().is_none() {
        return;
    }
    for order in ORDERS {
        let mut counter = 0;
        for _ in 0..2 {
            assert_eq!(met("added_by_all_that_met", order, true, &mut counter).unwrap(), [36; 8]);
            assert_eq!(counter, 0);
        }
        let error = met("added_by_all_that_met", order, false, &mut 0).unwrap_err();
        assert!(error.contains("not cooperative"), "{error}");
        let error = met("waits_for_nobody", order, true, &mut 0).unwrap_err();
        assert!(error.contains("all blocks wait for others"), "{error}");
    }
}

#[test]
fn blocks_that_do_not_meet_and_counters_that_are_not_cleared_give_other_results() {
    if planted().is_none() {
        return;
    }
    let alone = ORDERS.map(|order| met("added_by_all_without_meeting", order, true, &mut 0).unwrap());
    assert!(alone.iter().all(|sums| *sums != [36; 8]) && alone[0] != alone[1], "{alone:?}: not noticed");
    for order in ORDERS {
        let mut counter = 0;
        assert_eq!(met("met_and_not_cleared", order, true, &mut counter).unwrap(), [36; 8], "the first time");
        assert_ne!(met("met_and_not_cleared", order, true, &mut counter).unwrap(), [36; 8], "not noticed");
    }
}

/// The kernel itself, two blocks of 100 rows each, with and without its barrier.
#[test]
fn batch_norm_whose_blocks_do_not_wait_for_sums_gives_other_results() {
    let (Some(right), Some(wrong)) = (Host::kernels(), planted()) else { return };
    let mean = |host: &Host, order| {
        let mut x: Vec<f16> = (0..200 * 32).map(|i| f16::from_f32((i % 97) as f32)).collect();
        let mut f32s = vec![[1.0f32; 32]; 6];
        let (mut partials, mut counter) = (vec![[f32::NAN; 64]; 2], 0u32);
        let mut y = x.clone();
        let mut args = vec![Arg::Pointer(x.as_mut_ptr().cast())];
        args.extend(f32s.iter_mut().map(|of| Arg::Pointer(of.as_mut_ptr().cast())));
        args.extend([Arg::F32(1e-5), Arg::Pointer(partials.as_mut_ptr().cast())]);
        args.push(Arg::Pointer((&raw mut counter).cast()));
        args.extend([Arg::Pointer(std::ptr::null_mut()); 4]);
        args.extend([Arg::Pointer(y.as_mut_ptr().cast()), Arg::Pointer(std::ptr::null_mut())]);
        args.extend([0, 0, 2, 0, 200, 32].map(Arg::U32));
        // SAFETY: 200 rows of 32 channels, vectors of 32, partials of two blocks.
        unsafe { host.run("bn_one_pass_f16", bn_one_pass(1, 2, 0, 1), &args, order) }.unwrap();
        f32s[2].map(f32::to_bits)
    };
    let means = |host: &Host| ORDERS.map(|order| mean(host, order));
    assert!(means(right).iter().all(|mean| *mean == means(right)[0]));
    let alone = means(wrong);
    assert!(alone.iter().any(|mean| *mean != alone[0]), "not noticed");
}

#[test]
fn a_divergent_barrier_is_an_error_and_the_next_launch_works() {
    let Some(host) = planted() else { return };
    let mut x = [0.0f32; 64];
    for order in ORDERS {
        // SAFETY: the kernel writes 64 floats.
        let launched = unsafe {
            host.launch("divergent_barrier", ONE, BLOCK, &[Arg::Pointer(x.as_mut_ptr().cast())], order)
        };
        assert!(launched.unwrap_err().contains("ended while others wait"));
        assert_eq!(block_sum(host, "with_barrier", order), 2016.0);
    }
    // SAFETY: no such kernel runs.
    assert!(
        unsafe { host.launch("nonesuch", ONE, BLOCK, &[], Order::Ascending) }
            .unwrap_err()
            .contains("no such")
    );
}

#[test]
fn shuffles_move_values_between_lanes() {
    let Some(host) = planted() else { return };
    let mut x: Vec<f32> = (0..64).map(|i| i as f32).collect();
    for order in ORDERS {
        let mut sums = [0.0f32; 2];
        let args = [Arg::Pointer(x.as_mut_ptr().cast()), Arg::Pointer(sums.as_mut_ptr().cast())];
        // SAFETY: the kernel reads 64 floats and writes two.
        unsafe { host.launch("warp_sum", ONE, BLOCK, &args, order) }.unwrap();
        assert_eq!(sums, [496.0, 1520.0]);
    }
}

/// Every half, what lies between and around them, and the ends of the range.
#[test]
fn conversions_are_ieees() {
    let Some(host) = planted() else { return };
    let mut x: Vec<f32> = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32()).collect();
    let mut rng = Rng::new(1, 0, 0, Purpose::Init);
    x.extend((0..200_000).map(|_| f32::from_bits(rng.next_u64() as u32)));
    let halfway: Vec<f32> = (0..0x7bff)
        .map(|bits| 0.5 * (f16::from_bits(bits).to_f32() + f16::from_bits(bits + 1).to_f32()))
        .collect();
    x.extend(halfway.iter().flat_map(|&value| [value, value.next_up(), value.next_down(), -value]));
    let n = x.len();
    let (mut halves, mut bf16s, mut back) = (vec![0u16; n], vec![0u16; n], vec![0f32; n]);
    let args = [
        Arg::Pointer(x.as_mut_ptr().cast()),
        Arg::Pointer(halves.as_mut_ptr().cast()),
        Arg::Pointer(bf16s.as_mut_ptr().cast()),
        Arg::Pointer(back.as_mut_ptr().cast()),
        Arg::U32(n as u32),
    ];
    // SAFETY: all four arrays have n elements.
    unsafe { host.launch("round_trip", [n.div_ceil(64) as u32, 1, 1], BLOCK, &args, Order::Ascending) }
        .unwrap();
    for i in 0..n {
        let (want, wide) = (f16::from_f32(x[i]), bf16::from_f32(x[i]));
        if x[i].is_nan() {
            assert!(
                f16::from_bits(halves[i]).is_nan() && bf16::from_bits(bf16s[i]).is_nan() && back[i].is_nan()
            );
            continue;
        }
        assert_eq!(halves[i], want.to_bits(), "half of {:e}", x[i]);
        assert_eq!(bf16s[i], wide.to_bits(), "bf16 of {:e}", x[i]);
        assert_eq!(back[i].to_bits(), want.to_f32().to_bits(), "half of {:e}, read back", x[i]);
    }
}

/// In a process of its own, which the sanitizer ends.
#[test]
fn an_off_by_one_is_caught_by_the_address_sanitizer() {
    let Some(compiler) = compiler() else { return eprintln!("skipped: no C++ compiler") };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("planted");
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-g1", "-fsanitize=address", "-DPLANTED_MAIN", "-Wno-unknown-pragmas", "-I"])
        .arg(root.join("kernels/host"))
        .arg(root.join("tests/cuda_host/planted.cpp"))
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    if !output.status.success() {
        return eprintln!("skipped: {compiler} has no address sanitizer");
    }
    let output = Command::new(&program).env("ASAN_OPTIONS", "detect_leaks=0").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("heap-buffer-overflow"), "{errors}");
    assert!(errors.contains("off_by_one"), "the kernel is named:\n{errors}");
}
