//! `bench/gpu_speed.sh` itself, with stand-ins for the card's tools and for the engine, and what its peers sort and search by.
//! Needs bash, and python3 for the peers.

#[path = "common/stand_ins.rs"]
mod stand_ins;

use stand_ins::{StandIns, code, said};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Answers every command as a machine with a good card would. `variants.json` is what the variants answer.
const ENGINE: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$*" >>"$here/asked.txt"
case "$*" in
--version) echo "engine 0.1.0" ;;
*--profile*) echo '{"what": "w", "device": "d", "mark_microseconds": 1.5, "step_milliseconds": 30.0, "images_per_second": 8533.3, "floor_milliseconds": 24.0, "kinds": [{"kind": "pool", "launches": 4, "milliseconds": 2.5, "floor_milliseconds": 2.0, "megabytes": 8.0}], "launches": []}' ;;
*--variants*) cat "$here/variants.json" ;;
plan*) echo '{"card": "v100", "largest_micro_batch": 300, "activation_mebibytes_an_image": 44.5, "disk": 1.0}' ;;
*) echo '{"images_per_second": 1300.5}' ;;
esac
"#;

const PYTHON: &str = r#"#!/bin/sh
case "$*" in
*step_profile*) echo '{"program": "pytorch", "sum_milliseconds": 60.0}' ;;
*step_memory*) echo '{"program": "pytorch", "mebibytes_an_image": 80.25, "largest_batch": 144}' ;;
*train_throughput*) echo '{"program": "pytorch", "images_per_second": 1000.0}' ;;
-) cat >/dev/null ;;
esac
"#;

struct Machine {
    tools: StandIns,
}

impl Machine {
    fn new(tools: &[(&str, &str)]) -> Self {
        Self { tools: StandIns::new(tools) }
    }

    fn good() -> Self {
        let machine = Self::new(&[
            ("nvidia-smi", "#!/bin/sh\necho 'Some Card 16GB'\n"),
            ("engine", ENGINE),
            ("python", PYTHON),
        ]);
        machine.variants(&[measured("wgrad-behind", "faster"), measured("free", "slower")]);
        machine
    }

    fn at(&self, name: &str) -> PathBuf {
        self.tools.at(name)
    }

    fn variants(&self, rows: &[String]) {
        let report = format!("{{\"what\":\"w\",\"device\":\"d\",\"rows\":[{}]}}\n", rows.join(","));
        fs::write(self.at("variants.json"), report).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.tools.bench("gpu_speed.sh", arguments);
        (code(&output), said(&output))
    }
}

/// A row as `engine bench step --variants --json` has it, in its order.
fn row(name: &str, rest: &str) -> String {
    format!(
        r#"{{"name":"{name}","why":"w","set":"device.form.x={name}","predicted":{{"launches":0}},{rest}}}"#
    )
}

fn measured(name: &str, verdict: &str) -> String {
    row(name, &format!(r#""measured":{{"step_milliseconds":1.0,"verdict":"{verdict}"}}"#))
}

fn skipped(name: &str, why: &str) -> String {
    row(name, &format!(r#""measured":null,"skipped":"{why}""#))
}

#[test]
fn a_good_machine_passes_and_what_was_faster_trains_on() {
    let machine = Machine::good();
    let (code, text) = machine.run(&[]);
    assert_eq!(code, Some(0), "{text}");
    let lines = |begin: &str| text.lines().filter(|line| line.starts_with(begin)).count();
    assert_eq!((lines("PASS"), lines("FAIL"), lines("--")), (6, 0, 0), "{text}");
    assert!(text.contains("a step 30.00 ms, floors 24.00 ms (80 %), 8533 images/s"), "{text}");
    assert!(text.contains("faster: wgrad-behind (2 variants, 0 not run)"), "{text}");
    assert!(text.contains("300 images in 16 GB by plan, 44.5 MiB an image; PyTorch 144, 80.25"), "{text}");
    let asked = fs::read_to_string(machine.at("asked.txt")).unwrap();
    assert!(asked.contains("--steps 200 --only wgrad-behind"), "{asked}");
    let profile = fs::read_to_string(machine.at("out/profile.json")).unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(&profile).unwrap()["kinds"].is_array());
}

#[test]
fn a_wrong_variant_fails_and_one_that_was_not_run_is_not_judged() {
    let machine = Machine::good();
    machine.variants(&[
        measured("stem-padded-8", "WRONG"),
        skipped("free", "failed: cuDNN offers none"),
        skipped("cublaslt", "not run: no time left of 200 s"),
    ]);
    let (code, text) = machine.run(&["--parts", "variants,losses"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("stem-padded-8 WRONG; free failed; faster: none (3 variants, 1 not run)"),
        "{text}"
    );
    assert!(text.contains("--    losses") && text.contains("no variant was faster"), "{text}");

    machine.variants(&[skipped("cublaslt", "not run: no time left of 200 s")]);
    let (code, text) = machine.run(&["--parts", "variants"]);
    assert!(code == Some(0) && text.contains("faster: none (1 variants, 1 not run)"), "{text}");
}

#[test]
fn what_is_missing_or_lost_is_said() {
    let machine = Machine::good();
    fs::write(machine.at("python"), "#!/bin/sh\nexit 1\n").unwrap();
    let (code, text) = machine.run(&["--parts", "profile,memory,throughput"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("--")).count(), 3, "{text}");

    fs::write(machine.at("engine"), "#!/bin/sh\necho 'engine: the card is lost' >&2\nexit 70\n").unwrap();
    for part in ["profile", "variants"] {
        let (code, text) = machine.run(&["--parts", part]);
        assert!(code == Some(70) && text.contains("the card is lost"), "{text}");
        assert!(!machine.at("out/profile.json").exists());
    }
    let (code, text) = machine.run(&["--parts", "nonesuch"]);
    assert!(code == Some(2) && text.contains("no such part"), "{text}");
}

/// Runs lines of Python beside the peers; skipped without python3.
fn python(lines: &str) {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/peers");
    let output = Command::new("python3").args(["-B", "-c", lines]).current_dir(peers).output();
    let Ok(output) = output else {
        eprintln!("skipped: no python3");
        return;
    };
    assert!(output.status.success(), "{}", said(&output));
}

/// Names of kernels as PyTorch's profiler gives them, on Volta to Hopper, eager and compiled.
#[test]
fn kernels_of_pytorch_are_sorted_by_name_and_operator() {
    python(
        r#"
from step_profile import KINDS, kind
for want, name, operator, backward in [
    ("conv-forward", "sm80_xmma_fprop_implicit_gemm_indexed_f16f16_f16f32_f32_nhwckrsc_nhwc", "aten::cudnn_convolution", False),
    ("conv-forward", "volta_fp16_s884gemm_fp16_256x64_ldg8_f2f_nn", "aten::cudnn_convolution", False),
    ("conv-dgrad", "sm90_xmma_dgrad_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc", "aten::convolution_backward", True),
    ("conv-dgrad", "volta_fp16_s884gemm_fp16_128x128_ldg8_f2f_nn", "aten::convolution_backward", True),
    ("conv-wgrad", "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_f16_s16816wgrad_optimized_f16>", "aten::convolution_backward", True),
    ("norm-forward", "void cudnn::bn_fw_tr_1C11_singleread<__half, 512, true>", "aten::cudnn_batch_norm", False),
    ("norm-backward", "void cudnn::bn_bw_1C11_singleread<__half>", "aten::cudnn_batch_norm_backward", True),
    ("norm-forward", "void at::native::vectorized_elementwise_kernel<4, clamp_min>", "aten::clamp_min_", False),
    ("norm-forward", "void at::native::vectorized_elementwise_kernel<4, add>", "aten::add_", False),
    ("norm-backward", "void at::native::vectorized_elementwise_kernel<4, x>", "aten::threshold_backward", True),
    ("norm-backward", "void at::native::vectorized_elementwise_kernel<4, y>", "aten::add", True),
    ("norm-forward", "triton_red_fused__native_batch_norm_legit_functional_relu_3", "triton", False),
    ("norm-backward", "triton_red_fused_native_batch_norm_backward_threshold_backward_9", "triton", True),
    ("pool", "void at::native::max_pool_forward_nhwc<c10::Half>", "aten::max_pool2d_with_indices", False),
    ("loss", "void cunn_SoftMaxForward<8, float>", "aten::_log_softmax", False),
    ("loss", "ampere_fp16_s16816gemm_fp16_128x64_ldg8_f2f_tn", "aten::addmm", False),
    ("update", "void at::native::multi_tensor_apply_kernel<FusedSgdMathFunctor>", "aten::_fused_sgd_", False),
    ("update", "void at::native::multi_tensor_apply_kernel<x>", "aten::_amp_foreach_non_finite_check_and_unscale_", False),
    ("other", "void at::native::unrolled_elementwise_kernel<copy>", "aten::copy_", False),
]:
    got = kind(name, operator, backward)
    assert got == want and got in KINDS, (name, operator, got, want)
"#,
    );
}

#[test]
fn the_peers_largest_batch_is_found_by_doubling_and_halving() {
    python(
        r#"
from step_memory import largest
for limit in [0, 7, 8, 9, 100, 143, 144, 1000]:
    for first in [8, 64, 512]:
        got = largest(lambda batch: batch <= limit, first, 8)
        assert got == limit // 8 * 8, (limit, first, got)
"#,
    );
}

/// The engine's kinds are the peer's.
#[cfg(feature = "cuda")]
#[test]
fn the_peer_has_the_engines_kinds() {
    let names: Vec<&str> = engine::backend::cuda::profile::Kind::ALL.iter().map(|kind| kind.name()).collect();
    python(&format!("from step_profile import KINDS\nassert sorted(KINDS) == sorted({names:?}), KINDS"));
}
