//! `engine eval` in several ways, and the search for a learning rate.

use crate::common::{
    checkpoints, data, engine, epoch_lines, finish, lasting, path, run, set, temporary, tiny,
};
use engine::checkpoint::{Checkpoint, Tensor, Values};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The last checkpoint of a finished run.
fn checkpoint() -> &'static Path {
    static TRAINED: OnceLock<PathBuf> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let folder = lasting("evaluated");
        finish(&mut tiny(&folder)).expect(0);
        folder.join("checkpoints/last.safetensors")
    })
}

fn eval(checkpoint: &Path, data: &Path, more: &[&str]) -> Vec<Value> {
    let mut command = engine(["eval", "--checkpoint", path(checkpoint), "--data", path(data), "--json"]);
    let answer: Value = serde_json::from_str(&finish(command.args(more)).expect(0).out).unwrap();
    answer.get("rows").map_or(vec![answer.clone()], |rows| rows.as_array().unwrap().clone())
}

#[test]
fn a_sweep_is_its_single_evaluations_in_one_table() {
    let sweep = ["--sweep", "32,40", "--crop-ratio", "0.875,1", "--flip"];
    let rows = eval(checkpoint(), data(), &sweep);
    assert_eq!(rows.len(), 2 * 2 * 2);
    for row in &rows {
        let [resolution, ratio] = ["resolution", "crop_ratio"].map(|key| row[key].to_string());
        let mut args = vec!["--resolution", &resolution, "--crop-ratio", &ratio];
        if row["flip"] == true {
            args.push("--flip");
        }
        assert_eq!(eval(checkpoint(), data(), &args), std::slice::from_ref(row));
    }
    let table =
        run(&[&["eval", "--checkpoint", path(checkpoint()), "--data", path(data())], &sweep[..]].concat());
    let table = table.expect(0).out;
    assert_eq!(table.lines().count(), 2 + 8 + 1, "{table}");
    assert!(table.lines().next().unwrap().contains("| weights | mirrored | val_loss |"), "{table}");
    assert!(
        table.lines().last().unwrap().starts_with("best: ") && table.contains("| plain   | mean     |"),
        "{table}"
    );
}

#[test]
fn averages_are_evaluated_beside_the_weights() {
    let folder = temporary();
    let refused = run(&["eval", "--checkpoint", path(checkpoint()), "--data", path(data()), "--ema"]);
    refused.fails(2, &["no moving averages", "--ema"]);
    // Averages that answer the same class whatever they see: all weight on one bias.
    let mut weights = Checkpoint::read(checkpoint()).unwrap();
    let (Values::F32(live), shape) =
        (&weights.tensors["fc.bias"].values, weights.tensors["fc.bias"].shape.clone())
    else {
        panic!("a bias is f32")
    };
    let bias: Vec<f32> = (0..live.len()).map(|class| if class == 3 { 1e6 } else { 0.0 }).collect();
    weights.tensors.insert("ema.fc.bias".into(), Tensor::f32(&shape, bias));
    weights.metadata.retain(|key, _| key == "engine.model");
    let averaged = folder.path().join("averaged.safetensors");
    weights.write(&averaged, &[]).unwrap();
    let rows = eval(&averaged, data(), &["--sweep", "32"]);
    assert_eq!(rows[0]["weights"], "plain");
    assert_eq!(rows[0]["val_loss"], eval(checkpoint(), data(), &[])[0]["val_loss"]);
    assert_eq!((&rows[1]["weights"], &rows[1]["val_top1"]), (&"ema".into(), &10.0.into()));
    assert_eq!(eval(&averaged, data(), &["--ema"])[0]["val_top1"], rows[1]["val_top1"]);
}

/// The same pictures under ImageNet-V2's names: the folder is the output's number, and "10" is sorted before "2".
#[test]
fn folders_of_numbers_are_outputs_by_number() {
    let folder = temporary();
    let more_classes = temporary();
    // Twelve classes, so that the order of strings is not that of numbers.
    let set12 = more_classes.path().join("set");
    let classes: Vec<PathBuf> = sorted(&data().join("train"));
    for split in ["train", "val"] {
        for number in 0..12 {
            let to = set12.join(split).join(format!("c{number:02}"));
            fs::create_dir_all(&to).unwrap();
            let from = data().join(split).join(classes[number % 10].file_name().unwrap());
            for file in sorted(&from) {
                fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
            }
        }
    }
    let output = folder.path().join("run");
    let mut command = engine(["train", "--data", path(&set12), "--output", path(&output)]);
    let keys = ["model.arch=resnet-tiny", "data.resolution=32", "data.batch=8", "epochs=1", "optim.lr=0.5"];
    finish(set(&mut command, &keys)).expect(0);
    let checkpoint = output.join("checkpoints/last.safetensors");
    let v2 = folder.path().join("imagenetv2");
    for (number, class) in sorted(&set12.join("val")).iter().enumerate() {
        let to = v2.join(number.to_string());
        fs::create_dir_all(&to).unwrap();
        for file in sorted(class) {
            fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
    }
    let want = eval(&checkpoint, &set12, &[]);
    let got = eval(&checkpoint, &v2, &[]);
    assert_eq!((&got[0]["val_top1"], &got[0]["val_top5"]), (&want[0]["val_top1"], &want[0]["val_top5"]));
    let near = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-9;
    assert!(near(&got[0]["val_loss"], &want[0]["val_loss"]), "{got:?} {want:?}");
    fs::create_dir_all(v2.join("12")).unwrap();
    fs::copy(sorted(&v2.join("0"))[0].clone(), v2.join("12/x.jpg")).unwrap();
    run(&["eval", "--checkpoint", path(&checkpoint), "--data", path(&v2)])
        .fails(3, &["the data have class 12, the network 12 outputs"]);
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn real_labels_go_by_the_numbers_in_the_names() {
    let folder = temporary();
    // Numbers against the order of classes, as in ImageNet.
    let mut labels = vec![vec![]; 20];
    let mut number = 20;
    for (class, from) in sorted(&data().join("val")).iter().enumerate() {
        let to = folder.path().join("val").join(from.file_name().unwrap());
        fs::create_dir_all(&to).unwrap();
        for file in sorted(from) {
            fs::copy(&file, to.join(format!("ILSVRC2012_val_{number:08}.JPEG"))).unwrap();
            labels[number - 1] = vec![class as u32];
            number -= 1;
        }
    }
    let real = folder.path().join("real.json");
    let write = |labels: &Vec<Vec<u32>>| fs::write(&real, serde_json::to_string(labels).unwrap()).unwrap();
    let score = || {
        let row = &eval(checkpoint(), folder.path(), &["--real", path(&real)])[0];
        (
            row["real_top1"].as_f64().unwrap(),
            row["real_images"].as_u64().unwrap(),
            row["val_top1"].as_f64().unwrap(),
        )
    };
    write(&labels);
    let (real_top1, images, top1) = score();
    assert_eq!((real_top1, images), (top1, 20), "the same labels give the same figure");
    // Every class for the first, none for the second.
    (labels[0], labels[1]) = ((0..10).collect(), vec![]);
    write(&labels);
    let (with_all, images, _) = score();
    assert_eq!(images, 19);
    assert!(with_all >= real_top1 * 20.0 / 19.0 - 100.0 / 19.0, "{with_all}");
    labels.truncate(19);
    write(&labels);
    run(&["eval", "--checkpoint", path(checkpoint()), "--data", path(folder.path()), "--real", path(&real)])
        .fails(3, &["are for 19 images", "ILSVRC2012_val_00000020"]);
}

#[test]
fn a_search_for_a_rate_leaves_a_run_alone() {
    let folder = temporary();
    finish(set(&mut tiny(folder.path()), &["epochs=1"])).expect(0);
    let (before, lines) = (checkpoints(folder.path()), epoch_lines(folder.path()));
    let search = || {
        let mut search = tiny(folder.path());
        // Batches of some size, or the losses' noise is larger than their fall.
        set(&mut search, &["data.batch=20"]).args(["--lr-find", "40", "--lr-range", "1e-4", "100"]);
        finish(&mut search)
    };
    let done = search().expect(0);
    assert!(done.out.starts_with("suggested rate of the whole batch: "), "{}", done.out);
    assert!(done.out.contains("which is optim.lr = ") && done.out.contains("lr_find.svg"), "{}", done.out);
    let picture = fs::read_to_string(folder.path().join("lr_find.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("learning rate of the whole batch"));
    assert_eq!((checkpoints(folder.path()), epoch_lines(folder.path())), (before, lines));
    // The same twice.
    assert_eq!(search().expect(0).out, done.out);
    finish(tiny(folder.path()).args(["--lr-find", "--lr-range", "1", "0.1"])).fails(2, &["--lr-range 1 0.1"]);
}
