//! cuDNN's graph API as the real library has it, without a GPU: its header's values, and the engines that it offers for ResNet-50's
//! convolutions on cards that are described to it (`cards/`; cuDNN 9.11 and later). Skipped where `ENGINE_CUDNN` does not
//! name a folder with `include` and `lib`; `pip download --no-deps nvidia-cudnn-cu12`, unpacked, has one under `nvidia/cudnn`,
//! and `nvidia-cuda-nvrtc-cu12` beside it has what engines are compiled with.

use engine::backend::cuda::device::algorithms::{Rule, key};
use engine::backend::cuda::device::cudnn_engine::Execution;
use engine::backend::cuda::device::cudnn_graph::{Graph, Target};
use engine::backend::cuda::device::graph_api::NAMED;
use engine::backend::cuda::plan::node::{Call, Convolution};
use engine::backend::cuda::plan::{Plan, PlanOptions, Purpose, Recipe, ScalePolicy};
use engine::backend::cuda::storage::Storage;
use engine::config::{Decay, Form, Fusion, Routines};
use engine::model::spec::RESNET50;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

/// Set in the process that loads the library.
const INSIDE: &str = "CUDA_DRIVER_REAL_CUDNN";

fn cudnn() -> Option<PathBuf> {
    let found = std::env::var_os("ENGINE_CUDNN").map(PathBuf::from);
    if found.is_none() {
        eprintln!("skipped: ENGINE_CUDNN does not name cuDNN's folder");
    }
    found
}

fn folder() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("real_cudnn");
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn compile(args: &[&str]) {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let done = Command::new(&compiler).args(args).output().expect("a C compiler (CC, cc)");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Every constant is the header's, in a C program of assertions. Of CUDA's own headers it wants a few names.
#[test]
fn values_are_those_of_the_header() {
    let Some(cudnn) = cudnn() else { return };
    let folder = folder();
    let names = "typedef struct CUstream_st* cudaStream_t; typedef struct CUgraph_st* cudaGraph_t;\n";
    fs::write(folder.join("cuda_runtime_api.h"), format!("#pragma once\n{names}")).unwrap();
    fs::write(folder.join("library_types.h"), "#pragma once\ntypedef int libraryPropertyType;\n").unwrap();
    let mut program = "#include <stddef.h>\n#include <cudnn_graph.h>\n".to_owned();
    for (name, value) in NAMED {
        writeln!(program, "_Static_assert((int){name} == {value}, \"{name} is not {value}\");").unwrap();
    }
    let source = folder.join("values.c");
    fs::write(&source, program).unwrap();
    let include = cudnn.join("include");
    let [own, include, source] = [&folder, &include, &source].map(|path| path.to_str().unwrap());
    compile(&["-std=c11", "-fsyntax-only", "-Wno-deprecated-declarations", "-I", own, "-I", include, source]);
}

fn plan(fusion: Fusion, storage: Storage) -> Plan {
    Plan::new(&PlanOptions {
        spec: RESNET50,
        resolution: 224,
        batch: 64,
        storage,
        purpose: Purpose::Finish { sum: false },
        form: Form { fusion, ..Form::BASE },
        decay: Decay::Weights,
        recipe: Recipe::PLAIN,
        scale: ScalePolicy::FP16,
        keep: false,
        without: vec![],
    })
    .unwrap()
}

fn rule(storage: Storage) -> Rule {
    Rule {
        storage,
        tf32: false,
        has_tf32: true,
        deterministic: true,
        workspace: 256 << 20,
        routines: Routines::Cublas,
        graph: true,
    }
}

/// A step's convolutions that differ, by key, and how often each is there.
fn convolutions(plan: &Plan, rule: &Rule) -> BTreeMap<String, (Convolution, usize)> {
    let mut all = BTreeMap::new();
    for node in &plan.nodes {
        if let Call::Convolution(conv) = &node.call {
            all.entry(key(conv, rule)).or_insert((*conv, 0)).1 += 1;
        }
    }
    all
}

/// A plan as cuDNN writes it down, kernels and all, but for their arguments, in which it leaves addresses of its own.
fn described(plan: &Execution) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, _| name != "rawData");
                fields.values_mut().for_each(strip);
            }
            Value::Array(all) => all.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::from_str(&plan.json().unwrap()).unwrap();
    strip(&mut value);
    value
}

/// How many engines a card has for each; one that is recorded is planned again, to the letter.
fn engines(card: &str, fusion: Fusion, storage: Storage) -> Vec<(String, usize, usize)> {
    let (json, rule) = (fs::read_to_string(cards().join(card)).unwrap(), rule(storage));
    let mut table = vec![];
    for (key, (conv, times)) in convolutions(&plan(fusion, storage), &rule) {
        let graph = Graph::new(&Target::Described(&json), &conv, storage).unwrap();
        let graph = graph.map(Rc::new);
        let found = graph.as_ref().map_or(vec![], |graph| graph.executions(&rule).unwrap());
        if let (Some(graph), Some((engine, execution))) = (&graph, found.first()) {
            let again = engine.to_string().parse().unwrap();
            let again = graph.execution(&again, &rule).unwrap().expect("the same cuDNN has the same engines");
            let [again, execution] = [&again, execution].map(described);
            assert!(again == execution, "{card} {key}: {engine} is another the second time");
        }
        assert!(found.iter().all(|(engine, _)| engine.deterministic && engine.workspace <= 256 << 20));
        let first = found.first().map_or("no engine".to_owned(), |(engine, _)| engine.to_string());
        println!("{card} {key} x{times}: {} engines, first {first}", found.len());
        table.push((key, times, found.len()));
    }
    table
}

fn cards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_driver/cards")
}

/// Of a table: how many convolutions of a step have engines, and how many have not.
fn counts(table: &[(String, usize, usize)], wanted: impl Fn(&str) -> bool) -> (usize, usize) {
    let of = |has: bool| {
        let rows = table.iter().filter(|(key, _, found)| wanted(key) && (*found > 0) == has);
        rows.map(|(_, times, _)| times).sum()
    };
    (of(true), of(false))
}

/// Not a test by itself: asks the library, in a process whose loader finds it.
#[test]
fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    for card in ["a100.json", "h200.json"] {
        let table = engines(card, Fusion::Norm, Storage::F16);
        // 53 forward; 32 batch norms are before convolutions of the same block, forward and for their weights' gradients.
        assert_eq!(counts(&table, |key| key.ends_with(" norm sums")), (32, 0), "{card}");
        assert_eq!(counts(&table, |key| key.ends_with(" sums")), (53, 0), "{card}");
        assert_eq!(counts(&table, |key| key.ends_with(" norm")), (32, 0), "{card}");
        assert_eq!(counts(&table, |key| !key.ends_with("norm") && !key.ends_with("sums")), (73, 0), "{card}");
    }
    let table = engines("t4.json", Fusion::Norm, Storage::F16);
    assert_eq!(counts(&table, |key| key.ends_with("norm") || key.ends_with("sums")), (0, 85));
    assert_eq!(counts(&table, |key| !key.ends_with("norm") && !key.ends_with("sums")), (73, 0));
}

#[test]
fn engines_for_every_convolution_are_planned_and_planned_again() {
    let Some(cudnn) = cudnn() else { return };
    let folder = folder();
    let library = folder.join("libcuda.so.1");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cuda_driver/no_driver.c");
    compile(&["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library.to_str().unwrap(), source]);
    let beside = cudnn.join("../cuda_nvrtc/lib");
    let paths = [folder, cudnn.join("lib"), beside].map(|path| path.to_str().unwrap().to_owned()).join(":");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["real_cudnn::inside", "--exact", "--nocapture"]).env(INSIDE, "1");
    let done = command.env("LD_LIBRARY_PATH", paths).output().unwrap();
    println!("{}", String::from_utf8_lossy(&done.stdout));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
