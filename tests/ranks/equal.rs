//! What several ranks make is what one makes.

use crate::common::{assert_same, checkpoints, contents, epoch_lines, path, temporary};
use crate::launch::{Launcher, Ranks};
use crate::{arguments, train_alone, train_among};
use engine::checkpoint::{Found, Values};
use engine::tensor::Difference;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The f32 tensors of the newest checkpoint.
fn tensors(output: &Path) -> BTreeMap<String, Vec<f32>> {
    let newest = checkpoints(output).pop().unwrap();
    let found = Found::read(&newest).unwrap();
    let floats = found.checkpoint.tensors.into_iter().filter_map(|(name, tensor)| match tensor.values {
        Values::F32(values) => Some((name, values)),
        _ => None,
    });
    floats.collect()
}

/// The largest difference of a tensor in norm, with the tensor's name.
fn apart(got: &Path, want: &Path) -> (f64, String) {
    let (got, want) = (tensors(got), tensors(want));
    assert!(got.keys().eq(want.keys()));
    let norms =
        got.iter().map(|(name, values)| (Difference::between(values, &want[name]).norm, name.clone()));
    norms.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

/// Losses of steps and epochs, and hits, as they are in metrics.jsonl.
fn figures(output: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// One optimiser step, so that nothing but the order of sums differs: a gradient is a sum over four passes, which adds a
/// few roundings of 2^-24 to what each pass has, and its terms may be larger than itself: 64 of them are allowed.
#[test]
fn one_step_of_two_or_four_ranks_is_that_of_one() {
    let settings = ["epochs=1", "data.limit=8", "schedule.warmup_epochs=0"];
    let alone = temporary();
    train_alone(alone.path(), &settings);
    for launcher in Launcher::all() {
        for size in [2, 4] {
            let among = temporary();
            train_among(launcher, size, among.path(), &settings);
            let (apart, name) = apart(among.path(), alone.path());
            println!("{launcher:?}, {size} ranks, one step: {apart:.1e} apart in norm, {name}");
            assert!(apart < 64.0 * 2f64.powi(-24), "{name}: {apart}");
            let (got, want) = (&figures(among.path())[1], &figures(alone.path())[1]);
            // The forward passes are the same, and their losses are added in the same order.
            for key in ["loss", "top1", "top5", "lr", "images"] {
                assert_eq!(got[key], want[key], "{key}");
            }
        }
    }
}

/// Over two epochs roundings grow. How much a network makes of them shows a run of one rank whose rate is two roundings
/// larger.
#[test]
fn a_run_of_several_ranks_goes_where_that_of_one_goes() {
    let (alone, nudged) = (temporary(), temporary());
    train_alone(alone.path(), &[]);
    train_alone(nudged.path(), &["optim.lr=0.50000006"]);
    let (moved, _) = apart(nudged.path(), alone.path());
    for launcher in Launcher::all() {
        let among = temporary();
        train_among(launcher, 2, among.path(), &[]);
        let (apart, name) = apart(among.path(), alone.path());
        println!(
            "{launcher:?}, 2 ranks, 14 steps: {apart:.1e} apart in norm ({name}); two roundings of the rate: {moved:.1e}"
        );
        assert!(apart < 10.0 * moved + 1e-5, "{name}: {apart}, {moved}");
        assert_eq!(epoch_lines(among.path()).len(), 2);
        // Every image once.
        let numbers = |output: &Path| {
            let steps = figures(output).into_iter().filter(|line| line["kind"] == "step");
            steps.map(|step| (step["step"].clone(), step["images"].clone())).collect::<Vec<_>>()
        };
        assert_eq!(numbers(among.path()), numbers(alone.path()));
    }
}

/// With synchronised statistics a pass of two ranks is one of twice the images.
#[test]
fn synchronised_batch_norm_is_that_of_the_full_batch() {
    let settings = ["epochs=1", "data.limit=8", "schedule.warmup_epochs=0", "mix.mixup=0"];
    let alone = temporary();
    train_alone(alone.path(), &[&settings[..], &["data.micro_batch=8"]].concat());
    for launcher in Launcher::all() {
        for (size, micro) in [(2, "data.micro_batch=4"), (4, "data.micro_batch=2")] {
            let among = temporary();
            let more = ["model.sync_batch_norm=true", micro];
            train_among(launcher, size, among.path(), &[&settings[..], &more].concat());
            let (apart, name) = apart(among.path(), alone.path());
            println!("{launcher:?}, {size} ranks, synchronised: {apart:.1e} apart in norm, {name}");
            // Statistics are rounded to f32 before they are joined, and every layer hands that on.
            assert!(apart < 1024.0 * 2f64.powi(-24), "{name}: {apart}");
            let local = temporary();
            train_among(launcher, size, local.path(), &[&settings[..], &[micro]].concat());
            let (local, _) = self::apart(local.path(), alone.path());
            assert!(local > 100.0 * apart, "by themselves they do not: {local}");
        }
    }
}

#[test]
fn the_same_ranks_make_the_same_bytes_whoever_starts_them() {
    let first = temporary();
    train_among(Launcher::Variables, 2, first.path(), &[]);
    for launcher in Launcher::all() {
        let again = temporary();
        train_among(launcher, 2, again.path(), &[]);
        assert_same(&contents(again.path()), &contents(first.path()), &format!("{launcher:?}"));
    }
}

#[test]
fn ranks_that_do_not_fit_are_refused() {
    let output = temporary();
    let mut ranks = Ranks::start(Launcher::Variables, 3, &arguments(output.path(), &[]), &[]);
    assert_eq!(ranks.codes(), [2; 3], "{}", ranks.messages());
    assert!(
        ranks.said(1).contains("4 pieces of data.micro_batch = 2, which 3 ranks cannot share"),
        "{}",
        ranks.said(1)
    );
}

/// Every rank says what it trains: the script puts its number into the file's name.
#[test]
fn ranks_of_different_recipes_are_refused() {
    let output = temporary();
    for (rank, momentum) in [(0, "0.9"), (1, "0.5")] {
        let text = format!("[optim]\nmomentum = {momentum}\n");
        fs::write(output.path().join(format!("{rank}.toml")), text).unwrap();
    }
    let mut args = arguments(&output.path().join("run"), &[]);
    args.extend(["--config".to_owned(), format!("{}/RANK.toml", path(output.path()))]);
    let mut ranks = Ranks::start(Launcher::Variables, 2, &args, &[]);
    assert_eq!(ranks.codes(), [2, 2], "{}", ranks.messages());
    assert!(ranks.said(0).contains("optim.momentum: 0.9 there, 0.5 here"), "{}", ranks.said(0));
}
