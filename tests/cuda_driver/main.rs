//! The device layer against a driver, cuDNN, cuBLAS, cuBLASLt and NCCL that hold it to the rules of NVIDIA's manuals and compute nothing
//! (mock.cpp and mock_graph.h say which): what can be known of it on a machine without a GPU. Skipped without a C++ compiler.

#[path = "../common/mod.rs"]
mod common;
mod graph;
mod real_cudnn;

use common::{Done, engine, finish, temporary};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::OnceLock;

/// The folder of the libraries; none where there is no compiler.
fn libraries() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cuda_driver");
        fs::create_dir_all(&folder).unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cuda_driver/mock.cpp");
        let library = folder.join(format!("libcuda.{}.so", std::process::id()));
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let built = Command::new(&compiler)
            .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(source)
            .output();
        let Ok(built) = built else {
            eprintln!("skipped: no C++ compiler (CXX, c++)");
            return None;
        };
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        // One file under one name and links, so that the loader maps it once.
        fs::rename(&library, folder.join("libcuda.so")).unwrap();
        for name in ["libcublas.so", "libcublasLt.so", "libcudnn.so", "libnccl.so"] {
            let _ = fs::remove_file(folder.join(name));
            fs::hard_link(folder.join("libcuda.so"), folder.join(name)).unwrap();
        }
        Some(folder)
    };
    FOLDER.get_or_init(build).as_deref()
}

/// Runs the binary on the mock; `machine` are its variables.
fn run(args: &[&str], machine: &[(&str, &str)]) -> Option<Done> {
    let mut command = engine(args);
    command.env("LD_LIBRARY_PATH", libraries()?).envs(machine.iter().copied());
    Some(finish(&mut command))
}

const KERNELS: [&str; 7] = ["bench", "kernels", "--batch", "2", "--resolution", "64", "--json"];

/// The routine of the first row whose call begins so.
fn routine<'r>(report: &'r Value, call: &str) -> &'r str {
    let calls = report["rows"].as_array().unwrap().iter().map(|row| row["call"].as_str().unwrap());
    let found = calls.filter(|text| text.starts_with(call)).collect::<Vec<_>>();
    found.first().unwrap_or_else(|| panic!("no {call} in {report}")).split(": ").nth(1).unwrap()
}

#[test]
fn steps_follow_the_rules_and_nothing_inside_one_waits_for_the_card() {
    let folder = temporary();
    for precision in ["fp16", "bf16", "fp32", "tf32"] {
        let trace = folder.path().join("trace.json");
        let args =
            ["bench", "train", "--arch", "resnet-tiny", "--resolution", "32", "--batch", "4", "--steps", "6"];
        let more = ["--device", "cuda", "--precision", precision, "--trace", trace.to_str().unwrap()];
        let Some(done) = run(&[&args[..], &more[..]].concat(), &[]) else { return };
        let done = done.expect(0);
        assert!(done.err.contains("6 steps; nothing between the first and the last waits"), "{}", done.err);
        let events: Vec<Value> = serde_json::from_str(&fs::read_to_string(&trace).unwrap()).unwrap();
        let count = |name: &str| events.iter().filter(|event| event["name"] == name).count();
        // A step: images and constants go up, the graph is launched, its outcome comes down.
        for (name, times) in
            [("submit", 6), ("launch graph", 6), ("upload", 6), ("download", 6), ("record", 12), ("wait", 6)]
        {
            assert_eq!(count(name), times, "{name} in {events:?}");
        }
        assert!(events.iter().all(|event| event["cat"] != "blocks"), "{events:?}");
    }
}

/// The exchanges of several ranks, of one: they are recorded into the graph, and taken apart before the communicator.
#[test]
fn exchanges_are_part_of_the_graph() {
    let args = [
        "bench",
        "train",
        "--arch",
        "resnet-tiny",
        "--resolution",
        "32",
        "--batch",
        "4",
        "--steps",
        "6",
        "--device",
        "cuda",
    ];
    let folder = temporary();
    let trace = folder.path().join("trace.json");
    let args = [&args[..], &["--trace", trace.to_str().unwrap()]].concat();
    let Some(done) = run(&args, &[("ENGINE_NCCL_ALONE", "1")]) else { return };
    let done = done.expect(0);
    assert!(done.err.contains("6 steps; nothing between the first and the last waits"), "{}", done.err);
    let events: Vec<Value> = serde_json::from_str(&fs::read_to_string(&trace).unwrap()).unwrap();
    let count = |name: &str| events.iter().filter(|event| event["name"] == name).count();
    for (name, times) in [("submit", 6), ("launch graph", 6), ("upload", 6), ("download", 6)] {
        assert_eq!(count(name), times, "{name} in {events:?}");
    }
}

#[test]
fn every_call_is_measured_and_the_fastest_that_is_allowed_is_chosen() {
    let Some(done) = run(&KERNELS, &[]) else { return };
    let report: Value = serde_json::from_str(&done.expect(0).out).unwrap();
    // The mock's prices: a product is cheap but for the gradient of the weights; cuDNN's first offer is not deterministic,
    // its second wants too much memory, its third is faster than its fourth only where cuDNN times it.
    assert_eq!(routine(&report, "forward 16x16x64 k256 1x1 s1"), "cublas");
    assert_eq!(routine(&report, "dgrad 16x16x64 k256 1x1 s1"), "cublas");
    assert_eq!(routine(&report, "wgrad 16x16x64 k256 1x1 s1"), "cudnn algorithm 1 math 1 workspace 1048576");
    assert_eq!(
        routine(&report, "forward 16x16x256 k512 1x1 s2"),
        "cudnn algorithm 1 math 1 workspace 1048576"
    );
    assert_eq!(routine(&report, "forward 16x16x64 k64 3x3 s1"), "cudnn algorithm 1 math 1 workspace 1048576");
    let row = |call: &str| {
        let rows = report["rows"].as_array().unwrap();
        rows.iter().find(|row| row["call"].as_str().unwrap().starts_with(call)).unwrap().clone()
    };
    let microseconds = |call: &str| row(call)["microseconds"].as_f64().unwrap();
    assert!((microseconds("forward 16x16x64 k64 3x3") - 1000.0).abs() < 1.0, "{report}");
    assert!((microseconds("bn_apply_f16") - 20.0).abs() < 0.1, "{report}");
    assert!((report["copy_gigabytes_per_second"].as_f64().unwrap() - 1000.0).abs() < 1.0, "{report}");
    let times: u64 =
        report["rows"].as_array().unwrap().iter().map(|row| row["count"].as_u64().unwrap()).sum();
    assert!(times > 400, "{times} calls a step");
}

#[test]
fn fp32_never_meets_a_tensor_core() {
    let args = [&KERNELS[..], &["--precision", "fp32"]].concat();
    let Some(done) = run(&args, &[("MOCK_NO_TF32", "1")]) else { return };
    let report: Value = serde_json::from_str(&done.expect(0).out).unwrap();
    assert_eq!(routine(&report, "forward 16x16x64 k64 3x3 s1"), "cudnn algorithm 5 math 3 workspace 0");
}

#[test]
fn a_card_without_the_precision_or_with_the_wrong_cudnn_is_refused() {
    let volta = ("MOCK_CAPABILITY", "70");
    for precision in ["bf16", "tf32"] {
        let args = [&KERNELS[..], &["--precision", precision]].concat();
        let Some(done) = run(&args, &[volta]) else { return };
        done.fails(2, &[precision, "7.0", "choose"]);
    }
    let Some(done) = run(&KERNELS, &[volta, ("MOCK_CUDNN", "91100")]) else { return };
    done.fails(70, &["9.11.0", "9.10.2"]);
    let Some(done) = run(&[&KERNELS[..], &["--device", "cuda:1"]].concat(), &[]) else { return };
    done.fails(70, &["cuda:1", "1 cards"]);
}

/// The number behind `at most`.
fn fits(done: &Done) -> usize {
    let rest = done.err.split("at most ").nth(1).unwrap_or_else(|| panic!("{}", done.err));
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn memory_that_does_not_suffice_is_answered_with_what_would() {
    let train = |batch: &str, machine: &[(&str, &str)]| {
        let args =
            ["bench", "train", "--resolution", "64", "--steps", "1", "--device", "cuda", "--batch", batch];
        run(&args, machine)
    };
    let small = ("MOCK_MEMORY", "2500000000");
    let Some(done) = train("1024", &[small]) else { return };
    let done = done.fails(2, &["1024 images of 64 px want", "of activations", "data.micro_batch"]);
    let batch = fits(&done);
    train(&batch.to_string(), &[small]).unwrap().expect(0);
    train(&(batch + 1).to_string(), &[small]).unwrap().fails(2, &["at most"]);
    // Free when it is asked for, and gone when it is taken.
    let hidden = [small, ("MOCK_HIDDEN", "900000000")];
    let done = train(&batch.to_string(), &hidden).unwrap();
    let done = done.fails(2, &["Mock GPU cannot give", "nvidia-smi", "at most"]);
    assert!(fits(&done) < batch, "{}", done.err);
    // Not even the workspaces.
    let tiny = [("MOCK_MEMORY", "300000000")];
    train("1", &tiny).unwrap().fails(2, &["workspace", "0.25 GiB"]);
}

#[test]
fn the_doctor_names_the_card_and_the_copy_is_measured() {
    let Some(done) = run(&["doctor"], &[]) else { return };
    let done = done.expect(0);
    assert!(
        done.out.contains("Mock GPU, compute capability 8.0") && done.out.contains("9.10.2"),
        "{}",
        done.out
    );
    let copied = run(&["bench", "copy"], &[]).unwrap().expect(0);
    assert!(copied.out.contains("1000.0 GB/s") && copied.out.contains("Mock GPU"), "{}", copied.out);
}

// ---- engine bench step ----------------------------------------------------------------------------------------------

const STEP: [&str; 8] = ["bench", "step", "--arch", "resnet-tiny", "--resolution", "32", "--batch", "4"];

fn step(more: &[&str]) -> Option<Done> {
    run(&[&STEP[..], more].concat(), &[])
}

fn report(more: &[&str]) -> Option<Value> {
    Some(serde_json::from_str(&step(&[more, &["--json"]].concat())?.expect(0).out).unwrap())
}

#[test]
fn every_launch_of_a_step_is_timed_between_two_events() {
    let Some(report) = report(&["--profile"]) else { return };
    let launches = report["launches"].as_array().unwrap();
    let find =
        |node: &str| launches.iter().find(|line| line["node"] == node).unwrap_or_else(|| panic!("no {node}"));
    let microseconds = |node: &str| find(node)["microseconds"].as_f64().unwrap();
    // The mock's prices: a kernel of ours, a convolution, a product.
    assert!((microseconds("conv1.bn_apply") - 20.0).abs() < 0.1, "{report}");
    assert!((microseconds("layer1.0.conv2.dgrad") - 1000.0).abs() < 1.0, "{report}");
    assert!((microseconds("layer1.0.conv1.forward") - 400.0).abs() < 1.0, "{report}");
    assert_eq!(find("layer1.0.conv2.dgrad")["kind"], "conv-dgrad");
    assert!(report["mark_microseconds"].as_f64().unwrap().abs() < 0.1);
    let sums = |key: &str| {
        let kinds = report["kinds"].as_array().unwrap().iter();
        kinds.map(|kind| kind[key].as_f64().unwrap()).sum::<f64>()
    };
    assert_eq!(sums("launches") as usize, launches.len());
    let all: f64 = launches.iter().map(|line| line["microseconds"].as_f64().unwrap()).sum();
    assert!((sums("milliseconds") - all / 1e3).abs() < 1e-6 && all > 0.0, "{report}");
    // Nothing runs beside anything on the mock, so that the graph takes what its launches take.
    assert!((report["step_milliseconds"].as_f64().unwrap() - all / 1e3).abs() < 0.1, "{report}");
    let above =
        |line: &Value| line["microseconds"].as_f64().unwrap() - line["floor_microseconds"].as_f64().unwrap();
    assert!(launches.windows(2).all(|pair| above(&pair[0]) >= above(&pair[1])));
    let text = step(&["--profile"]).unwrap().expect(0).out;
    assert!(text.contains("conv-wgrad") && text.contains("launches one after another"), "{text}");
}

#[test]
fn every_variant_runs_in_turn_and_none_follows_other_rules() {
    let args = [&STEP[..], &["--variants", "--predict", "v100", "--json"]].concat();
    let all: Value = serde_json::from_str(&finish(&mut engine(&args)).expect(0).out).unwrap();
    let names: Vec<&str> =
        all["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    let held: Vec<&str> = names.iter().copied().filter(|&name| name != "free").collect();
    let race = |names: &str, machine: &[(&str, &str)]| {
        let args = [&STEP[..], &["--variants", "--steps", "3", "--json", "--only", names]].concat();
        let rows: Value = serde_json::from_str(&run(&args, machine)?.expect(0).out).unwrap();
        Some(rows["rows"].as_array().unwrap().clone())
    };
    let Some(mut rows) = race(&held.join(","), &[]) else { return };
    // Only this one may use what does not give the same bits every time.
    rows.extend(race("free", &[("MOCK_FREE", "1")]).unwrap());
    assert_eq!(rows.len(), names.len());
    for row in &rows {
        let measured = &row["measured"];
        assert!(measured["step_milliseconds"].as_f64() > Some(0.0), "{row}");
        assert!(["faster", "same", "slower"].contains(&measured["verdict"].as_str().unwrap()), "{row}");
        assert!(row["predicted"]["floor_microseconds"].is_f64(), "{row}");
    }
    let measured = |name: &str| &rows.iter().find(|row| row["name"] == name).unwrap()["measured"];
    let verdict = |name: &str| measured(name)["verdict"].clone();
    // By the mock's prices: cuBLASLt has an algorithm cheaper than cuBLAS's, cuDNN none; a launch of ours takes 20 us.
    assert_eq!(verdict("cublaslt"), "faster");
    assert_eq!(verdict("cudnn-alone"), "slower");
    let added = measured("residual-added")["change_microseconds"].as_f64().unwrap();
    assert!((added - 3.0 * 20.0).abs() < 0.5, "{added}");
    assert_eq!(verdict("wgrad-behind"), "same");
}

#[test]
fn variants_that_do_not_fit_the_time_are_left_out_and_said_to_be() {
    let args = ["--variants", "--only", "stem-padded-8,free", "--seconds", "0.001"];
    let Some(report) = report(&args) else { return };
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert!(
            row["measured"].is_null() && row["skipped"].as_str().unwrap().starts_with("not run"),
            "{row}"
        );
    }
    let text = step(&args).unwrap().expect(0).out;
    assert!(text.contains("not run: no time left of 0.001 s"), "{text}");
}

#[test]
fn what_is_expected_of_the_variants_needs_no_card() {
    let args = [&STEP[..], &["--variants", "--predict", "v100"]].concat();
    let done = finish(&mut engine(&args)).expect(0);
    assert!(done.out.contains("stem-space-to-depth") && done.out.contains("data sheet"), "{}", done.out);
    finish(&mut engine([&STEP[..], &["--variants", "--predict", "k80"]].concat())).fails(2, &["k80", "v100"]);
    finish(&mut engine([&STEP[..], &["--variants", "--only", "x"]].concat()))
        .fails(2, &["--only x", "wgrad-behind"]);
    finish(&mut engine([&STEP[..], &["--device", "cpu"]].concat())).fails(2, &["measures a GPU"]);
}

#[test]
fn a_form_is_set_as_in_a_configuration() {
    let Some(done) = step(&["--set", "device.form.stem=space-to-depth", "--set", "device.form.wgrad=inline"])
    else {
        return;
    };
    let done = done.expect(0);
    assert!(done.out.contains("device.form.stem=space-to-depth device.form.wgrad=inline"), "{}", done.out);
    step(&["--set", "device.form.stem=padded-3"]).unwrap().fails(2, &["padded-3", "padded-4"]);
}

/// Launches whose blocks wait for each other are made so that all run at once; where that cannot be it is said, and what to do.
#[test]
fn blocks_that_wait_for_each_other_are_launched_together_or_refused() {
    let one_pass = |more: &[&str], machine: &[(&str, &str)]| {
        let set = ["--set", "device.form.norm=one-pass"];
        run(&[&STEP[..], &set, more].concat(), machine)
    };
    let Some(done) = one_pass(&[], &[]) else { return };
    assert!(done.expect(0).out.contains("device.form.norm=one-pass"));
    let refused = |more: &[&str], machine, words: &[&str]| one_pass(more, machine).unwrap().fails(2, words);
    refused(
        &[],
        &[("MOCK_NO_COOPERATION", "1")],
        &["Mock GPU cannot run all blocks", "device.form.norm=two-pass"],
    );
    refused(&[], &[("MOCK_REFUSES", "1")], &["the driver refuses", "MPS", "device.form.norm=two-pass"]);
    // More blocks than run at once; the tiny network's largest layer has 2 columns, whose groups take what there is.
    let more = ["--set", "device.form.chip.multiprocessors=500"];
    refused(&more, &[], &["500 blocks at once", "runs 108", "device.form.chip.multiprocessors"]);
}

// ---- planted mistakes: the mock catches what it says it does --------------------------------------------------------

const PLANTED: &str = "CUDA_DRIVER_PLANTED";

type Handle = *mut std::ffi::c_void;

/// The mock's functions that the mistakes are made with.
struct Driver(libloading::Library);

impl Driver {
    /// Calls a function whose arguments are all as wide as a pointer.
    fn call<const N: usize>(&self, name: &str, args: [Handle; N]) {
        macro_rules! by_count {
            ($($count:literal: $($index:literal)*;)*) => {
                match N {
                    $($count => {
                        type Function = unsafe extern "C" fn($(by_count!(@ $index)),*) -> i32;
                        // SAFETY: the mock's function takes this many integers or pointers, all passed in registers.
                        unsafe {
                            let function = self.0.get::<Function>(name.as_bytes()).unwrap();
                            function($(args[$index]),*);
                        }
                    })*
                    _ => unreachable!("{name} with {N} arguments"),
                }
            };
            (@ $index:literal) => { Handle };
        }
        by_count! { 0: ; 1: 0; 2: 0 1; 3: 0 1 2; 4: 0 1 2 3; 5: 0 1 2 3 4; }
    }

    fn made<const N: usize>(&self, name: &str, rest: [usize; N]) -> Handle {
        let mut handle: Handle = null_mut();
        let to: Handle = (&raw mut handle).cast();
        match rest[..] {
            [] => self.call(name, [to]),
            [one] => self.call(name, [to, without_provenance_mut(one), null_mut()]),
            _ => unreachable!("{name}"),
        }
        handle
    }
}

/// Not a test by itself: makes the mistake that the environment names, in a process that the mock then ends.
#[test]
fn planted() {
    let Ok(mistake) = std::env::var(PLANTED) else { return };
    // SAFETY: the mock has no initialisers that matter.
    let library = unsafe { libloading::Library::new(libraries().unwrap().join("libcuda.so")) };
    let driver = Driver(library.unwrap());
    let number = without_provenance_mut::<std::ffi::c_void>;
    driver.call("cuCtxSetCurrent", [number(1)]);
    let streams = [(); 2].map(|()| driver.made("cuStreamCreate", [1]));
    let memory = driver.made("cuMemAlloc_v2", [4096]);
    let pinned = driver.made("cuMemHostAlloc", [8192]);
    let event = driver.made("cuEventCreate", [2]);
    let upload = |bytes| driver.call("cuMemcpyHtoDAsync_v2", [memory, pinned, number(bytes), streams[0]]);
    match mistake.as_str() {
        "a copy that the streams do not wait for" => {
            driver.call("cuMemcpyHtoD_v2", [memory, pinned, number(64)]);
            upload(64);
        }
        "a copy that reads what is still written" => {
            upload(64);
            driver.call("cuMemcpyDtoH_v2", [pinned, memory, number(64)]);
        }
        "a byte too much" => upload(4097),
        "memory freed under its work" => {
            upload(64);
            driver.call("cuMemFree_v2", [memory]);
        }
        "waiting inside a capture" => {
            driver.call("cuStreamBeginCapture_v2", [streams[0], number(2)]);
            driver.call("cuCtxSynchronize", []);
        }
        "a fork that does not join" => {
            driver.call("cuStreamBeginCapture_v2", [streams[0], number(2)]);
            driver.call("cuEventRecord", [event, streams[0]]);
            driver.call("cuStreamWaitEvent", [streams[1], event, number(0)]);
            driver.call("cuMemcpyHtoDAsync_v2", [memory, pinned, number(64), streams[1]]);
            let mut graph: Handle = null_mut();
            driver.call("cuStreamEndCapture", [streams[0], (&raw mut graph).cast()]);
        }
        "something left behind" => driver.call("cuDevicePrimaryCtxRelease_v2", [number(0)]),
        other => graph::plant(other, &driver),
    }
}

#[test]
fn planted_mistakes_are_caught() {
    if libraries().is_none() {
        return;
    }
    for (mistake, sentence) in [
        ("a copy that the streams do not wait for", "before a copy or fill in the legacy stream has ended"),
        ("a copy that reads what is still written", "cuMemcpyDtoH while work is under way"),
        ("a byte too much", "4097 bytes at"),
        ("memory freed under its work", "cuMemFree while work is under way"),
        ("waiting inside a capture", "while a stream is captured"),
        ("a fork that does not join", "before a stream that it forked has joined"),
        ("something left behind", "left behind: 1 pieces of memory"),
    ]
    .into_iter()
    .chain(graph::MISTAKES)
    {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["planted", "--exact"]).env(PLANTED, mistake).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(99) && error.contains(sentence), "{mistake}: {error}");
    }
}
