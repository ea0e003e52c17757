//! cuDNN's graph API through the mock, which computes it: what a plan's operations are, by what comes of them; how a search takes,
//! names and refuses engines; and that the mock catches what it says it does.

use super::{Driver, Handle, libraries, report, run, step};
use engine::backend::cuda::device::algorithms::Rule;
use engine::backend::cuda::device::cudnn::{Cudnn, Operands};
use engine::backend::cuda::device::cudnn_graph::{Graph, Target};
use engine::backend::cuda::device::driver::{Address, Context, Memory, Stream};
use engine::backend::cuda::network::{from_stored, to_stored};
use engine::backend::cuda::plan::node::{Convolution, Fused, Pass};
use engine::backend::cuda::plan::region::{Arena, Region};
use engine::backend::cuda::storage::Storage;
use engine::config::Routines;
use engine::model::graph::ConvShape;
use engine::rng::{Purpose, Rng};
use engine::simd::conv::{self, Scratch};
use engine::simd::isa::Isa;
use engine::simd::pool::Pool;
use serde_json::Value;
use std::process::Command;
use std::ptr::{null_mut, without_provenance_mut};
use std::rc::Rc;

/// Set in the process that loads the mock.
const INSIDE: &str = "CUDA_DRIVER_GRAPH";

// ---- what is computed -----------------------------------------------------------------------------------------------

const SHAPES: [ConvShape; 3] = [
    ConvShape { h: 7, w: 6, c: 8, k: 16, r: 3, s: 3, stride: 2, pad: 1 },
    ConvShape { h: 5, w: 5, c: 16, k: 8, r: 1, s: 1, stride: 1, pad: 0 },
    ConvShape { h: 6, w: 7, c: 8, k: 8, r: 3, s: 3, stride: 1, pad: 1 },
];
const N: usize = 3;

/// One convolution on the mock's memory, and on the CPU.
struct Trial {
    context: Rc<Context>,
    cudnn: Cudnn,
    stream: Stream,
    storage: Storage,
    shape: ConvShape,
}

/// What a convolution reads and leaves.
struct Tensors {
    x: Vec<f32>,
    w: Vec<f32>,
    y: Vec<f32>,
    map: Vec<f32>,
    sums: Vec<f32>,
}

impl Trial {
    fn values(&self, seed: u64, count: usize) -> Vec<f32> {
        let mut rng = Rng::new(seed, 0, 0, Purpose::Init);
        let values: Vec<f32> = (0..count).map(|_| rng.range(-1.0, 1.0) as f32).collect();
        from_stored(self.storage, &to_stored(self.storage, &values))
    }

    fn tensors(&self) -> Tensors {
        let ConvShape { h, w, c, k, r, s, .. } = self.shape;
        let outputs = N * self.shape.p() * self.shape.q() * k;
        Tensors {
            x: self.values(1, N * h * w * c),
            w: self.values(2, k * r * s * c),
            y: self.values(3, outputs),
            map: self.values(4, 2 * c),
            sums: vec![f32::NAN; 2 * k],
        }
    }

    /// By the first engine that a run may use.
    fn run(&self, conv: &Convolution, tensors: &Tensors) -> Tensors {
        let memory = |storage: Storage, values: &[f32]| {
            let bytes = to_stored(storage, values);
            let memory = Memory::new(&self.context, "an operand", bytes.len() as u64).unwrap();
            memory.write(0, &bytes).unwrap();
            memory
        };
        let [x, w, y, map] =
            [&tensors.x, &tensors.w, &tensors.y, &tensors.map].map(|values| memory(self.storage, values));
        let sums = memory(Storage::F32, &tensors.sums);
        let workspace = Memory::new(&self.context, "a workspace", 1 << 20).unwrap();
        let at = |memory: &Memory| -> Address { memory.at(0, memory.bytes()) };
        let operands = Operands {
            x: at(&x),
            w: at(&w),
            y: at(&y),
            norm: conv.fused.norm.map(|_| at(&map)),
            sums: conv.fused.sums.map(|_| at(&sums)),
            workspace: at(&workspace),
            workspace_bytes: 1 << 20,
        };
        let graph = Graph::new(&Target::Card(&self.cudnn), conv, self.storage).unwrap().map(Rc::new).unwrap();
        let rule = Rule {
            storage: self.storage,
            tf32: self.storage == Storage::F32,
            has_tf32: true,
            deterministic: true,
            workspace: 1 << 20,
            routines: Routines::Cublas,
            graph: true,
        };
        let executions = graph.executions(&rule).unwrap();
        let (engine, execution) = executions.first().expect("an engine");
        let again = graph.execution(&engine.to_string().parse().unwrap(), &rule).unwrap();
        assert!(again.is_some(), "{engine} is planned again");
        execution.run(&self.cudnn, &operands).unwrap();
        self.stream.synchronize().unwrap();
        self.context.synchronize().unwrap();
        let read = |storage: Storage, memory: &Memory| {
            let mut bytes = vec![0; memory.bytes() as usize];
            memory.read(0, &mut bytes).unwrap();
            from_stored(storage, &bytes)
        };
        let [x, w, y, map] = [&x, &w, &y, &map].map(|memory| read(self.storage, memory));
        Tensors { x, w, y, map, sums: read(Storage::F32, &sums) }
    }

    /// The same on the CPU.
    fn want(&self, conv: &Convolution, tensors: &Tensors) -> Vec<f32> {
        let (pool, isa, mut scratch) = (Pool::new(1), Isa::current(), Scratch::default());
        let shape = &self.shape;
        let c = shape.c;
        let of = |(e, x): (usize, &f32)| (x * tensors.map[e % c] + tensors.map[c + e % c]).max(0.0);
        let x: Vec<f32> = match conv.fused.norm {
            Some(_) => tensors.x.iter().enumerate().map(of).collect(),
            None => tensors.x.clone(),
        };
        let (taps, k) = (shape.r * shape.s, shape.k);
        let mut w = vec![0.0; tensors.w.len()];
        for (index, &value) in tensors.w.iter().enumerate() {
            w[(index / c % taps * c + index % c) * k + index / (taps * c)] = value;
        }
        match conv.pass {
            Pass::Forward => {
                let mut y = vec![0.0; tensors.y.len()];
                conv::forward(&pool, isa, shape, N, &x, &w, &mut y, &mut scratch);
                y
            }
            Pass::Dgrad => {
                let mut dx = if conv.accumulate { x } else { vec![0.0; tensors.x.len()] };
                conv::dgrad(&pool, isa, shape, N, &tensors.y, &w, &mut dx, conv.accumulate, &mut scratch);
                dx
            }
            Pass::Wgrad => {
                let mut dw = vec![0.0; w.len()];
                conv::wgrad(&pool, isa, shape, N, &x, &tensors.y, &mut dw, false, &mut scratch);
                let at = |index: usize| (index / c % taps * c + index % c) * k + index / (taps * c);
                (0..dw.len()).map(|index| dw[at(index)]).collect()
            }
        }
    }

    fn check(&self, conv: &Convolution) {
        let before = self.tensors();
        let (got, want) = (self.run(conv, &before), self.want(conv, &before));
        let (result, others) = match conv.pass {
            Pass::Forward => (&got.y, [(&got.x, &before.x), (&got.w, &before.w)]),
            Pass::Dgrad => (&got.x, [(&got.w, &before.w), (&got.y, &before.y)]),
            Pass::Wgrad => (&got.w, [(&got.x, &before.x), (&got.y, &before.y)]),
        };
        let name = format!("{:?} {:?} {:?}", self.storage, conv.pass, conv.fused);
        close(&name, result, &want, 2.0 * self.storage.roundoff() + 1e-5);
        assert!(
            others.iter().all(|(got, before)| got == before) && got.map == before.map,
            "{name}: operands"
        );
        if conv.fused.sums.is_some() {
            let k = self.shape.k;
            let of = |channel: usize, power: i32| -> f32 {
                got.y[channel..].iter().step_by(k).map(|y| f64::from(*y).powi(power)).sum::<f64>() as f32
            };
            let want: Vec<f32> = (0..2 * k).map(|index| of(index % k, 1 + (index / k) as i32)).collect();
            close(&format!("{name}: sums"), &got.sums, &want, 1e-6);
        }
    }
}

fn close(name: &str, got: &[f32], want: &[f32], tolerance: f64) {
    let largest = want.iter().fold(0.0f64, |largest, value| largest.max(f64::from(value.abs())));
    let apart = |index: &usize| f64::from((got[*index] - want[*index]).abs());
    let worst = (0..want.len()).max_by(|a, b| apart(a).total_cmp(&apart(b))).unwrap();
    let relative = apart(&worst) / largest;
    println!("{name}: worst {worst}: got {}, want {}, apart {relative:.2e}", got[worst], want[worst]);
    assert!(relative <= tolerance, "{name}: {worst}: got {}, want {}", got[worst], want[worst]);
}

/// Not a test by itself: computes every kind of graph in a process whose loader finds the mock.
#[test]
fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let somewhere = Some(Region::new(Arena::Activations, 0, 0));
    let (norm, sums, both) = (
        Fused { norm: somewhere, sums: None },
        Fused { norm: None, sums: somewhere },
        Fused { norm: somewhere, sums: somewhere },
    );
    let mut kinds = vec![];
    for storage in Storage::ALL {
        kinds.extend(
            [Pass::Forward, Pass::Dgrad, Pass::Wgrad].map(|pass| (storage, pass, Fused::NONE, false)),
        );
        kinds.push((storage, Pass::Dgrad, Fused::NONE, true));
    }
    kinds.push((Storage::F16, Pass::Forward, both, false));
    kinds.push((Storage::F16, Pass::Wgrad, norm, false));
    kinds.extend([Storage::F16, Storage::Bf16].map(|storage| (storage, Pass::Forward, sums, false)));
    for (storage, pass, fused, accumulate) in kinds {
        for shape in SHAPES {
            let context = Context::open(0).unwrap();
            let stream = Stream::new(&context).unwrap();
            let cudnn = Cudnn::new(&stream).unwrap();
            let nowhere = Region::new(Arena::Activations, 0, 0);
            let (x, w, y) = (nowhere, nowhere, nowhere);
            let conv = Convolution { pass, shape, n: N, x, w, y, accumulate, fused };
            Trial { context, cudnn, stream, storage, shape }.check(&conv);
        }
    }
}

#[test]
fn graphs_compute_what_the_cpu_does() {
    let Some(folder) = libraries() else { return };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["graph::inside", "--exact", "--nocapture"]).env(INSIDE, "1").env("MOCK_COMPUTE", "1");
    let done = command.env("LD_LIBRARY_PATH", folder).output().unwrap();
    println!("{}", String::from_utf8_lossy(&done.stdout));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

// ---- the search -----------------------------------------------------------------------------------------------------

const ENGINE: &str = "cudnn-graph engine 4 knobs 2=1 workspace 4096";

fn call<'r>(report: &'r Value, node: &str) -> &'r str {
    let launches = report["launches"].as_array().unwrap();
    let found = launches.iter().find(|line| line["node"] == node).unwrap_or_else(|| panic!("no {node}"));
    found["call"].as_str().unwrap()
}

fn has(report: &Value, node: &str) -> bool {
    report["launches"].as_array().unwrap().iter().any(|line| line["node"] == node)
}

/// By the mock's prices: an engine with a knob is cheaper than the best of the older functions, and dearer than a product. Cheaper
/// ones are not deterministic, transform, want 8 GB, or would have to be compiled.
#[test]
fn engines_are_timed_beside_the_older_functions() {
    let Some(report) = report(&["--profile", "--set", "device.search.cudnn_graph=true"]) else { return };
    let forward = call(&report, "layer1.0.conv2.forward");
    assert!(forward.ends_with(&format!(": {ENGINE}")), "{forward}");
    assert!(call(&report, "layer1.0.conv2.dgrad").ends_with(ENGINE));
    assert!(call(&report, "layer1.0.conv1.forward").ends_with(": cublas"));
    // Off by default.
    let plain = super::report(&["--profile"]).unwrap();
    assert!(!plain.to_string().contains("cudnn-graph"), "{plain}");
}

#[test]
fn what_is_fused_runs_in_one_call() {
    let fusion = |kind: &str| format!("device.form.fusion={kind}");
    let Some(norm) = report(&["--profile", "--set", &fusion("norm")]) else { return };
    let forward = call(&norm, "layer1.0.conv2.forward");
    assert!(forward.contains(&format!(" norm sums: {ENGINE}")), "{forward}");
    assert!(call(&norm, "layer1.0.conv2.wgrad").contains(&format!(" norm: {ENGINE}")));
    assert!(call(&norm, "layer1.0.conv2.dgrad").contains(": cudnn algorithm 1"));
    assert!(!has(&norm, "layer1.0.conv1.bn_apply") && !has(&norm, "layer1.0.conv2.bn_stats"));
    let statistics = report(&["--profile", "--set", &fusion("statistics")]).unwrap();
    assert!(call(&statistics, "layer1.0.conv2.forward").contains(&format!(" sums: {ENGINE}")));
    assert!(has(&statistics, "layer1.0.conv1.bn_apply") && !has(&statistics, "layer1.0.conv2.bn_stats"));
    // Of bf16, engines that are compiled late are all that there are.
    let args = ["--profile", "--precision", "bf16", "--set", &fusion("norm")];
    let late = report(&args).unwrap();
    let forward = call(&late, "layer1.0.conv2.forward");
    assert!(forward.contains(" sums: cudnn-graph engine 3 knobs - workspace 4096"), "{forward}");
}

/// What no engine does is done by itself, and said to be; where nothing is left the step is the base's.
#[test]
fn what_has_no_engine_is_done_by_itself() {
    let args = |kind: &str| {
        let set = format!("device.form.fusion={kind}");
        [&super::STEP[..], &["--profile", "--json", "--set"]]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .chain([set])
            .collect::<Vec<_>>()
    };
    let with = |kind: &str, machine: &[(&str, &str)]| {
        let args = args(kind);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let done = run(&args, machine)?.expect(0);
        let report: Value = serde_json::from_str(&done.out).unwrap();
        Some((report, done.err))
    };
    let Some((report, said)) = with("norm", &[("MOCK_NO_ENGINE", "norm")]) else { return };
    assert!(call(&report, "layer1.0.conv2.forward").contains(&format!(" sums: {ENGINE}")));
    assert!(has(&report, "layer1.0.conv1.bn_apply"));
    assert!(said.contains("no engine for what is fused") && said.contains(" norm sums"), "{said}");
    let base = super::report(&["--profile"]).unwrap();
    let count = |report: &Value| report["launches"].as_array().unwrap().len();
    for machine in [("MOCK_NO_ENGINE", "sums"), ("MOCK_CAPABILITY", "75")] {
        let (report, said) = with("norm", &[machine]).unwrap();
        assert_eq!(count(&report), count(&base), "{machine:?}");
        assert!(has(&report, "layer1.0.conv2.bn_stats") && said.contains("no engine"), "{said}");
    }
}

/// A file of routines names an engine; a run that has it takes it, even if another is faster now.
#[test]
fn a_recorded_engine_is_taken_again() {
    let folder = super::temporary();
    let path = folder.path().join("routines.json");
    let file = format!("device.algorithms=file:{}", path.display());
    let set = [
        "--profile",
        "--set",
        "device.search.cudnn_graph=true",
        "--set",
        "device.form.fusion=norm",
        "--set",
        &file,
    ];
    let Some(first) = report(&set) else { return };
    assert!(call(&first, "layer1.0.conv2.forward").ends_with(ENGINE));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(ENGINE), "{text}");
    let other = "cudnn-graph engine 4 knobs 2=0 workspace 4096";
    std::fs::write(&path, text.replace(ENGINE, other)).unwrap();
    let again = report(&set).unwrap();
    assert!(call(&again, "layer1.0.conv2.forward").ends_with(other));
    // One that there is no longer is searched anew.
    std::fs::write(&path, text.replace("engine 4 knobs 2=1", "engine 9 knobs -")).unwrap();
    assert!(call(&report(&set).unwrap(), "layer1.0.conv2.forward").ends_with(ENGINE));
    let _ = step(&["--set", "device.search.cudnn_graph=2"]).unwrap().fails(2, &["cudnn_graph"]);
}

// ---- planted mistakes -----------------------------------------------------------------------------------------------

const TENSOR: usize = 17;

/// One descriptor of the mock.
struct Part<'d>(&'d Driver, Handle);

fn number(value: usize) -> Handle {
    without_provenance_mut(value)
}

impl<'d> Part<'d> {
    fn new(driver: &'d Driver, kind: usize) -> Self {
        let mut made: Handle = null_mut();
        driver.call("cudnnBackendCreateDescriptor", [number(kind), (&raw mut made).cast()]);
        Self(driver, made)
    }

    fn set<T>(&self, name: usize, kind: usize, values: &[T]) -> &Self {
        let at: Handle = values.as_ptr().cast_mut().cast();
        let args = [self.1, number(name), number(kind), number(values.len()), at];
        self.0.call("cudnnBackendSetAttribute", args);
        self
    }

    fn finish(&self) {
        self.0.call("cudnnBackendFinalize", [self.1]);
    }

    /// Of 2 x 8 channels of 4 x 4.
    fn tensor(driver: &'d Driver, id: i64) -> Self {
        let part = Self::new(driver, TENSOR);
        part.set(906, 3, &[id]).set(901, 1, &[2i32]).set(900, 3, &[16i64]);
        part.set(902, 3, &[2i64, 8, 4, 4]).set(903, 3, &[128i64, 1, 32, 8]);
        part
    }
}

/// Makes one of the mistakes; the mock ends the process.
pub fn plant(mistake: &str, driver: &Driver) {
    let tensor = Part::tensor(driver, 1);
    match mistake {
        "a stride that is not packed" => {
            tensor.set(903, 3, &[128i64, 16, 4, 1]).finish();
        }
        "a tensor without a number" => {
            let other = Part::new(driver, TENSOR);
            other.set(901, 1, &[2i32]).set(900, 3, &[16i64]);
            other.set(902, 3, &[2i64, 8, 4, 4]).set(903, 3, &[128i64, 1, 32, 8]).finish();
        }
        "an attribute of another type" => {
            tensor.set(906, 23, &[1i32]);
        }
        "an attribute that is set too late" => {
            tensor.finish();
            tensor.set(906, 3, &[2i64]);
        }
        "a descriptor that is not finished" => {
            Part::new(driver, 14).set(772, 15, &[tensor.1]);
        }
        "a descriptor that is destroyed in use" => {
            tensor.finish();
            Part::new(driver, 14).set(772, 15, &[tensor.1]);
            driver.call("cudnnBackendDestroyDescriptor", [tensor.1]);
        }
        "a number that two tensors have" => {
            tensor.finish();
            let (same, out) = (Part::tensor(driver, 1), Part::tensor(driver, 2));
            same.finish();
            out.finish();
            let mode = Part::new(driver, 0);
            mode.set(0, 14, &[100i32]).set(1, 1, &[0i32]).finish();
            let operations = [(&tensor, &out), (&same, &tensor)].map(|(x, y)| {
                let operation = Part::new(driver, 13);
                operation.set(750, 15, &[mode.1]).set(751, 15, &[x.1]).set(753, 15, &[y.1]).finish();
                operation.1
            });
            let handle = driver.made("cudnnCreate", []);
            Part::new(driver, 15).set(800, 0, &[handle]).set(801, 15, &operations).finish();
        }
        "a workspace that is too small" => small_workspace(driver, &tensor, 4096 - 256),
        "a pack that lacks a tensor" => small_workspace(driver, &tensor, 0),
        other => panic!("no mistake {other}"),
    }
}

/// A weight gradient, whose plan wants 4096 bytes, with fewer behind its pointer; of `bytes` 0 the pack lacks a tensor instead.
fn small_workspace(driver: &Driver, x: &Part, bytes: usize) {
    x.finish();
    let y = Part::tensor(driver, 3);
    y.finish();
    let w = Part::new(driver, TENSOR);
    w.set(906, 3, &[2i64]).set(901, 1, &[2i32]).set(900, 3, &[16i64]);
    w.set(902, 3, &[8i64, 8, 1, 1]).set(903, 3, &[8i64, 1, 8, 8]).finish();
    let conv = Part::new(driver, 1);
    conv.set(100, 1, &[0i32]).set(101, 7, &[1i32]).set(106, 3, &[2i64]);
    conv.set(102, 3, &[1i64; 2])
        .set(103, 3, &[1i64; 2])
        .set(104, 3, &[0i64; 2])
        .set(105, 3, &[0i64; 2])
        .finish();
    let operation = Part::new(driver, 11);
    operation.set(712, 4, &[1.0f32]).set(713, 4, &[0.0f32]).set(714, 15, &[conv.1]);
    operation.set(715, 15, &[w.1]).set(716, 15, &[x.1]).set(717, 15, &[y.1]).finish();
    let (handle, stream) = (driver.made("cudnnCreate", []), driver.made("cuStreamCreate", [1]));
    driver.call("cudnnSetStream", [handle, stream]);
    let graph = Part::new(driver, 15);
    graph.set(800, 0, &[handle]).set(801, 15, &[operation.1]).finish();
    let (engine, knob, config, plan) =
        (Part::new(driver, 2), Part::new(driver, 7), Part::new(driver, 3), Part::new(driver, 5));
    engine.set(1300, 15, &[graph.1]).set(1301, 3, &[4i64]).finish();
    knob.set(600, 9, &[2i32]).set(601, 3, &[1i64]).finish();
    config.set(300, 15, &[engine.1]).set(302, 15, &[knob.1]).finish();
    plan.set(400, 0, &[handle]).set(401, 15, &[config.1]).finish();
    let memory = driver.made("cuMemAlloc_v2", [8192]);
    let small = driver.made("cuMemAlloc_v2", [bytes.max(4096)]);
    let small = small.wrapping_byte_add(if bytes == 0 { 0 } else { 256 });
    let at = |offset: usize| memory.wrapping_byte_add(offset);
    let pack = Part::new(driver, 16);
    if bytes == 0 {
        pack.set(1000, 3, &[1i64, 2]).set(1001, 6, &[at(0), at(1024)]);
    } else {
        pack.set(1000, 3, &[1i64, 2, 3]).set(1001, 6, &[at(0), at(1024), at(2048)]);
    }
    pack.set(1003, 6, &[small]).finish();
    driver.call("cudnnBackendExecute", [handle, plan.1, pack.1]);
}

/// With what the mock says of them.
pub const MISTAKES: [(&str, &str); 9] = [
    ("a stride that is not packed", "tensor 1 is not packed NHWC"),
    ("a tensor without a number", "a descriptor of kind 17 wants attribute 906"),
    ("an attribute of another type", "attribute 906 is of type 3, not 23"),
    ("an attribute that is set too late", "attribute 906 is set after its descriptor is finished"),
    ("a descriptor that is not finished", "attribute 772 is a descriptor that is not finished"),
    ("a descriptor that is destroyed in use", "is destroyed while one of kind 14 uses it"),
    ("a number that two tensors have", "two tensors of a graph have the number 1"),
    ("a workspace that is too small", "a plan's workspace: 4096 bytes at"),
    ("a pack that lacks a tensor", "a pack without tensor 3"),
];
