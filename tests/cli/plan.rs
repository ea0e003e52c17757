//! `engine plan`: what a training is expected to take.

use crate::common::{run, temporary};

#[test]
fn the_default_recipe_on_every_card_with_what_it_is_predicted_from() {
    let text = run(&["plan"]).expect(0).out;
    for card in ["v100 ", "t4 ", "a100 ", "a100-40 ", "h100 ", "h200 "] {
        assert_eq!(text.lines().filter(|line| line.starts_with(card)).count(), 1, "{card} in\n{text}");
    }
    assert!(
        text.contains("90 epochs at 224 px, batch 256, f16") && text.contains("1281167 training"),
        "{text}"
    );
    assert!(text.contains("A prediction: engine has not been measured"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 125), "{text}");
}

#[test]
fn one_object_a_card_and_dollars_follow_the_price() {
    let text = run(&["plan", "--gpu", "V100", "--price", "2", "--budget", "25", "--json"]).expect(0).out;
    let object: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    let number = |path: &str| object.pointer(path).and_then(serde_json::Value::as_f64).unwrap();
    assert!((number("/dollars/high") - 2.0 * number("/hours/high")).abs() < 1e-9, "{object}");
    assert!((number("/budget_covers/low") - 25.0 / number("/dollars/high")).abs() < 1e-9, "{object}");
    // NVIDIA's PyTorch example takes 29 hours at 1,200 images/s (reference: gpu.md); the floor of fused kernels is lower.
    assert!((15.0..30.0).contains(&number("/hours/low")), "{object}");
}

/// Eight cards are less than eight times one; the instance is the smallest that has so many, and its price counts.
#[test]
fn several_cards_are_an_instance_with_a_link() {
    let recipe = ["--config", "configs/resnet50-90-nvidia.toml"];
    let object = |more: &[&str]| -> serde_json::Value {
        let text = run(&[&["plan", "--gpu", "v100", "--json"], &recipe[..], more].concat()).expect(0).out;
        serde_json::from_str(text.trim()).unwrap()
    };
    let of = |object: &serde_json::Value, path: &str| {
        object.pointer(path).and_then(serde_json::Value::as_f64).unwrap()
    };
    let (one, four, eight) = (object(&[]), object(&["--gpus", "4"]), object(&["--gpus", "8"]));
    assert_eq!((&four["instance"], &eight["instance"]), (&"p3.8xlarge".into(), &"p3.16xlarge".into()));
    for end in ["low", "high"] {
        let times =
            of(&eight, &format!("/images_per_second/{end}")) / of(&one, &format!("/images_per_second/{end}"));
        println!("8 cards: {times:.2} times one, {end}");
        assert!((7.0..8.0).contains(&times), "{times}");
    }
    assert!((of(&eight, "/dollars/low") - 24.48 * of(&eight, "/hours/low")).abs() < 1e-9, "{eight}");
    // 25.56 million gradients of four bytes: two passes a card are added up in f32 first.
    let megabytes = of(&four, "/exchanged/megabytes");
    assert!((102.0..104.0).contains(&megabytes), "{megabytes}");
    let table = run(&[&["plan", "--gpus", "8"], &recipe[..]].concat()).expect(0).out;
    for part in [
        "8 of p3.16xlarge: ",
        "8 of p5.48xlarge: ",
        "behind the backward pass",
        "A prediction",
        "No NCCL has run",
    ] {
        assert!(table.contains(part), "{part} in\n{table}");
    }
    assert!(!table.contains("t4 "), "no instance has eight:\n{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 125), "{table}");
}

/// Every kind of launch at its floor, and the step as its launches: what is predicted of our own kernels is the ceiling, and
/// of convolutions what is assumed beside what was measured.
#[test]
fn measured_shares_take_the_place_of_the_assumption() {
    let kinds: Vec<serde_json::Value> = [
        "input",
        "conv-forward",
        "conv-dgrad",
        "conv-wgrad",
        "norm-forward",
        "norm-backward",
        "pool",
        "loss",
        "update",
    ]
    .map(|kind| {
        serde_json::json!({
            "kind": kind, "launches": 1, "milliseconds": 1.0, "floor_milliseconds": 1.0, "megabytes": 1.0,
        })
    })
    .to_vec();
    let profile = serde_json::json!({
        "what": "resnet50 at 224 px", "device": "Some Card", "mark_microseconds": 0.0, "step_milliseconds": 9.0, "kinds": kinds,
    });
    let folder = temporary();
    let path = folder.path().join("profile.json");
    std::fs::write(&path, format!("a line before\n{profile}\n")).unwrap();
    let args = ["plan", "--gpu", "v100", "--shares", path.to_str().unwrap()];
    let text = run(&args).expect(0).out;
    assert!(text.contains("A prediction") && text.contains("Some Card, resnet50 at 224 px"), "{text}");
    let object: serde_json::Value =
        serde_json::from_str(run(&[&args[..], &["--json"]].concat()).expect(0).out.trim()).unwrap();
    let number = |path: &str| object.pointer(path).and_then(serde_json::Value::as_f64).unwrap();
    let ceiling = number("/ceiling_images_per_second");
    assert!((number("/images_per_second/high") / ceiling - 1.0).abs() < 1e-9, "{object}");
    let low = number("/images_per_second/low") / ceiling;
    assert!((0.64..0.95).contains(&low), "{object}");
    assert!(number("/activation_mebibytes_an_image") > 30.0, "{object}");
    run(&["plan", "--shares", "/nowhere"]).fails(3, &["/nowhere"]);
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    run(&["plan", "--gpu", "k80"]).fails(2, &["known are v100, t4, a100, a100-40, h100, h200"]);
    for args in [["plan", "--price=-1"], ["plan", "--loader-rate=nan"]] {
        let done = run(&args).expect(2);
        assert!(done.err.contains("expected a number above 0"), "{}", done.err);
    }
    run(&["plan", "--gpu", "t4", "--set", "device.precision=bf16"])
        .fails(2, &["bf16, which a T4 16 GB does not have"]);
    let none = run(&["plan", "--gpus", "0"]).expect(2);
    assert!(none.err.contains("expected a number from 1"), "{}", none.err);
    run(&["plan", "--gpus", "2"]).fails(2, &["2 ranks cannot share evenly", "data.micro_batch"]);
    let pieces = ["plan", "--set", "data.micro_batch=16", "--gpus"];
    run(&[&pieces[..], &["8", "--gpu", "t4"]].concat())
        .fails(2, &["no instance has so many t4", "g4dn.12xlarge (4 t4)"]);
    run(&[&pieces[..], &["16"]].concat())
        .fails(2, &["no instance has so many cards", "p5.48xlarge (8 h100)"]);
    run(&["plan", "--data", "/nowhere"]).fails(3, &["/nowhere"]);
}
