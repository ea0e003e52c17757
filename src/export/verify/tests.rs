//! Rows and promises by hand.

use super::*;

fn reference(labels: Option<Vec<u32>>) -> Reference {
    Reference { classes: 2, logits: vec![1.0, 2.0, 4.0, -1.0, 0.0, 0.5], labels, bad: vec![] }
}

#[test]
fn a_row_counts_images_and_takes_the_worst() {
    let row = reference(Some(vec![1, 0, 0])).compare("x", &[1.0, 2.1, 4.0, -1.0, 0.5, 0.25]);
    assert!((row.same_top1 - 200.0 / 3.0).abs() < 1e-9);
    // The third image is right now, the first and second were; the worst difference is 0.5 of 0.5.
    assert_eq!(row.top1, Some(100.0));
    assert_eq!(row.relative, 1.0);
    let own = reference(None).row();
    assert_eq!((own.same_top1, own.relative, own.top1), (100.0, 0.0, None));
    assert!(own.to_string().contains("unknown"), "{own}");
}

#[test]
fn ties_go_to_the_first() {
    assert_eq!(largest(&[1.0, 3.0, 3.0]), 1);
}

#[test]
fn promises() {
    let reference = reference(Some(vec![1, 0, 0]));
    let before = reference.row();
    let worse = reference.compare("onnx int8", &[3.0, 2.0, 4.0, -1.0, 0.0, 0.5]);
    Promise::Loss(34.0).hold(&worse, &before).unwrap();
    let error = Promise::Loss(33.0).hold(&worse, &before).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    for word in ["onnx int8", "33.33 %", "66.67 %", "33.33 points", "--max-loss", "nothing was written"] {
        assert!(error.message.contains(word), "{word:?} in {}", error.message);
    }
    assert!(Promise::Logits(0.5).hold(&worse, &before).unwrap_err().message.contains("bug"));
    Promise::Logits(0.0).hold(&before, &before).unwrap();
    for promise in [Promise::Logits(1e9), Promise::Loss(100.0), Promise::Nothing] {
        let nan = reference.compare("x", &[f32::NAN, 2.0, 4.0, -1.0, 0.0, 0.5]);
        promise.hold(&nan, &before).unwrap_err();
        let infinite = reference.compare("x", &[f32::INFINITY, 2.0, 4.0, -1.0, 0.0, 0.5]);
        if promise != Promise::Logits(1e9) {
            promise.hold(&infinite, &before).unwrap_err();
        }
    }
}
