//! `engine plan`: what a training is expected to take.

use crate::common::run;

#[test]
fn the_default_recipe_on_every_card_with_what_it_is_predicted_from() {
    let text = run(&["plan"]).expect(0).out;
    for card in ["v100 ", "t4 ", "a100 ", "h100 ", "h200 "] {
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

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    run(&["plan", "--gpu", "k80"]).fails(2, &["known are v100, t4, a100, h100, h200"]);
    for args in [["plan", "--price=-1"], ["plan", "--loader-rate=nan"]] {
        let done = run(&args).expect(2);
        assert!(done.err.contains("expected a number above 0"), "{}", done.err);
    }
    run(&["plan", "--gpu", "t4", "--set", "device.precision=bf16"])
        .fails(2, &["bf16, which a T4 16 GB does not have"]);
    run(&["plan", "--data", "/nowhere"]).fails(3, &["/nowhere"]);
}
