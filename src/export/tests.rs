//! Round trips, PyTorch's own files, hostile files. The files under `golden/` are what `golden/make.py` writes with
//! PyTorch 2.15.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;
use crate::checkpoint::weights::pickle as pickle_reader;
use crate::checkpoint::{Checkpoint, StateDict, Tensor, Values};
use crate::error::Result;
use crate::model::graph::{Graph, lower};
use crate::model::spec::{RESNET_TINY, RESNET50};

/// The tensors of a weights file.
fn read_weights(path: &Path) -> Result<StateDict> {
    crate::checkpoint::read_weights(path).map(|weights| weights.tensors)
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/export/golden").join(name)
}

/// A checkpoint as the trainer makes it, every element different from its neighbours.
fn checkpoint(graph: &Graph) -> Checkpoint {
    let mut checkpoint = Checkpoint::default();
    let names = graph.params.iter().map(|param| (param.name.clone(), param.shape.clone()));
    let buffers = graph.buffers.iter().map(|buffer| (buffer.name.clone(), vec![buffer.channels]));
    for (i, (name, shape)) in names.chain(buffers).enumerate() {
        let n = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..n).map(|j| ((i * 31 + j) % 1009) as f32 / 1009.0 + 0.001).collect();
        checkpoint.tensors.insert(format!("optim.momentum.{name}"), Tensor::f32(&shape, values.clone()));
        checkpoint.tensors.insert(name, Tensor::f32(&shape, values));
    }
    checkpoint.tensors.insert("bn1.num_batches_tracked".into(), Tensor::i64_scalar(5004));
    checkpoint
}

#[test]
fn a_resnet50_has_torchvisions_320_entries_in_its_order() {
    let graph = lower(&RESNET50, 224).unwrap();
    let state = state_dict(&checkpoint(&graph), &graph).unwrap();
    assert_eq!(state.len(), 320);
    assert_eq!(state["bn1.num_batches_tracked"], Tensor::i64_scalar(5004));
    let order: Vec<&str> = state::in_module_order(&state).into_iter().map(|(name, _)| name).collect();
    let block = "layer1.0.";
    let want = [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.num_batches_tracked",
        "layer1.0.conv1.weight",
    ];
    assert_eq!(order[..7], want);
    let place = |name: &str| order.iter().position(|other| *other == format!("{block}{name}")).unwrap();
    assert!(place("bn3.num_batches_tracked") < place("downsample.0.weight"));
    assert!(order.iter().position(|n| n.starts_with("layer3.10.")).is_none() && order[319] == "fc.bias");
}

#[test]
fn another_spec_is_a_sentence() {
    let checkpoint = checkpoint(&lower(&RESNET_TINY, 32).unwrap());
    let message = state_dict(&checkpoint, &lower(&RESNET50, 32).unwrap()).unwrap_err().message;
    assert!(
        message.contains("conv1.weight is F32 [16, 3, 7, 7], resnet50 wants F32 [64, 3, 7, 7]"),
        "{message}"
    );
}

#[test]
fn both_formats_come_back_and_bytes_repeat() {
    let graph = lower(&RESNET_TINY, 32).unwrap();
    let state = state_dict(&checkpoint(&graph), &graph).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let metadata = BTreeMap::from([("engine.model".to_owned(), "{\"arch\":\"tiny\"}".to_owned())]);
    let write = |name: &str| {
        let path = folder.path().join(name);
        match name.ends_with("pth") {
            true => export_pth(&state, &metadata, &path, |_| Ok(())).unwrap(),
            false => export_safetensors(&state, &metadata, &path, |_| Ok(())).unwrap(),
        }
        let found = crate::checkpoint::read_weights(&path).unwrap();
        assert_eq!(found.tensors, state, "{name}");
        assert_eq!(found.metadata.get("engine.model"), metadata.get("engine.model"), "{name}");
        fs::read(path).unwrap()
    };
    assert_eq!(write("a.pth"), write("b.pth"));
    let bytes = write("a.safetensors");
    assert_eq!(bytes, write("b.safetensors"));
    let (_, found) = SafeTensors::read_metadata(&bytes).unwrap();
    let found: BTreeMap<_, _> = found.metadata().clone().unwrap().into_iter().collect();
    assert_eq!(found["format"], "pt");
    // Storages begin at multiples of 64 bytes.
    let file = fs::File::open(folder.path().join("a.pth")).unwrap();
    let mut zip = zip::ZipArchive::new(file).unwrap();
    for i in 0..zip.len() {
        assert_eq!(zip.by_index(i).unwrap().data_start().unwrap() % 64, 0);
    }
}

#[test]
fn a_checkpoint_gives_its_weights_and_is_verified() {
    let graph = lower(&RESNET_TINY, 32).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("e.safetensors");
    checkpoint(&graph).write(&path, &[]).unwrap();
    let state = read_weights(&path).unwrap();
    assert!(state.contains_key("fc.bias") && !state.keys().any(|name| name.starts_with("optim.")));
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let message = read_weights(&path).unwrap_err().message;
    assert!(message.ends_with("the file is damaged"), "{message}");
}

#[test]
fn pytorchs_files_are_read_with_strides_offsets_and_halves() {
    let state = read_weights(&golden("state.zip")).unwrap();
    let f32s = |name: &str| match &state[name].values {
        Values::F32(values) => values.iter().map(|value| value * 8.0).collect::<Vec<f32>>(),
        other => panic!("{other:?}"),
    };
    let plain: Vec<f32> = (0..24u8).map(f32::from).collect();
    assert_eq!((state["plain"].shape.as_slice(), f32s("plain")), ([4, 6].as_slice(), plain.clone()));
    assert_eq!((f32s("half"), f32s("bfloat16")), (plain.clone(), plain.clone()));
    let transposed: Vec<f32> = (0..24).map(|i| plain[i % 4 * 6 + i / 4]).collect();
    assert_eq!((state["transposed"].shape.as_slice(), f32s("transposed")), ([6, 4].as_slice(), transposed));
    assert_eq!(f32s("sliced"), [6.0, 8.0, 10.0, 12.0, 14.0, 16.0]);
    assert_eq!(f32s("nhwc"), plain.iter().map(|value| value * 8.0).collect::<Vec<f32>>());
    assert_eq!(state["counter"], Tensor::i64_scalar(1_234_567_890_123));
}

#[test]
fn wrappers_and_parameters_are_seen_through() {
    for name in ["wrapped.zip", "parameters.zip"] {
        let state = read_weights(&golden(name)).unwrap();
        assert_eq!(state["0.weight"].shape, [2, 3], "{name}");
        assert_eq!(state.contains_key("1.running_var"), name == "wrapped.zip");
    }
}

#[test]
fn what_would_be_executed_is_refused_by_name() {
    let message = read_weights(&golden("namespace.zip")).unwrap_err().message;
    assert!(message.contains("argparse.Namespace") && message.contains("namespace.zip"), "{message}");
    let message = read_weights(&golden("legacy.bin")).unwrap_err().message;
    assert!(message.contains("before 1.6"), "{message}");
    // cos\nsystem\n(X...tR. is what an attack looks like.
    let error = pickle_reader::read(b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.").unwrap_err();
    assert!(error.contains("os.system"), "{error}");
}

#[test]
fn malformed_pickles_are_sentences() {
    let deep = [b"\x80\x02)".as_slice(), &b"\x85".repeat(1 << 20), b"."].concat();
    assert!(pickle_reader::read(&deep).is_ok(), "nesting costs no stack");
    for bytes in [
        &b""[..],
        b".",
        b"(.",
        b"\x85.",
        b"h\x01.",
        b"}K\x01s.",
        b"(K\x01u.",
        b"X\xff\xff\xff\xff.",
        b"\x8a\xff.",
    ] {
        pickle_reader::read(bytes).unwrap_err();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Flipped, cut, or both: an error or weights, never a panic.
    #[test]
    fn damaged_files_never_panic(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..6),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
        which in 0usize..4,
    ) {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = folder.path().join("a");
        if which == 3 {
            let state = BTreeMap::from([("a".to_owned(), Tensor::f32(&[2, 2], vec![1.0; 4]))]);
            export_safetensors(&state, &BTreeMap::new(), &path, |_| Ok(())).unwrap();
        } else {
            fs::copy(golden(["state.zip", "wrapped.zip", "parameters.zip"][which]), &path).unwrap();
        }
        let mut bytes = fs::read(&path).unwrap();
        for (at, flip) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&path, &bytes).unwrap();
        let _ = read_weights(&path);
        // Past the ZIP's checksums, too.
        let _ = pickle_reader::read(&bytes);
    }

    #[test]
    fn damaged_pickles_never_panic(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
    ) {
        let state = BTreeMap::from([
            ("fc.weight".to_owned(), Tensor::f32(&[2, 300], vec![1.0; 600])),
            ("n".to_owned(), Tensor::i64_scalar(3)),
        ]);
        let mut bytes = pickle::state_dict(&state::in_module_order(&state));
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = pickle_reader::read(&bytes);
        let _ = pickle_reader::read(&bytes[..length.index(bytes.len())]);
    }
}

/// What `torch` says, with ENGINE_PYTHON naming a Python that has torch and torchvision:
/// `ENGINE_PYTHON=python3 cargo test --release -- --ignored torch`.
#[test]
#[ignore = "needs PyTorch"]
fn torch_loads_our_files_strictly_and_we_load_torchs() {
    let python =
        std::env::var("ENGINE_PYTHON").expect("ENGINE_PYTHON names a Python with torch and torchvision");
    let graph = lower(&RESNET50, 224).unwrap();
    let state = state_dict(&checkpoint(&graph), &graph).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let time = std::time::Instant::now();
    export_pth(&state, &BTreeMap::new(), &path("ours.pth"), |_| Ok(())).unwrap();
    println!(".pth written in {:?}", time.elapsed());
    export_safetensors(&state, &BTreeMap::new(), &path("ours.safetensors"), |_| Ok(())).unwrap();
    let status =
        std::process::Command::new(python).arg(golden("check.py")).arg(folder.path()).status().unwrap();
    assert!(status.success());
    let reference = read_weights(&path("theirs.safetensors")).unwrap();
    assert_eq!(reference.len(), 320);
    for name in ["theirs.pth", "theirs_nhwc.pth"] {
        let time = std::time::Instant::now();
        assert!(read_weights(&path(name)).unwrap() == reference, "{name}");
        println!("{name} read in {:?}", time.elapsed());
    }
    assert!(
        read_weights(&path("theirs_half.pth")).unwrap()
            == read_weights(&path("theirs_half.safetensors")).unwrap()
    );
}
