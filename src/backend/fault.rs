//! What a fault names: the first unit whose output is not finite, and where.

use std::fmt;

/// An activation, NHWC, that has values that are not finite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadOutput {
    /// The torchvision module that makes it: `layer3.0.conv2`.
    pub layer: String,
    /// Values that are not finite, and how many there are in all.
    pub count: usize,
    pub of: usize,
    /// Index of the first one.
    pub first: usize,
    /// Of one image.
    pub h: usize,
    pub w: usize,
    pub c: usize,
}

impl fmt::Display for BadOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, count, of, first, h, w, c } = self;
        let pixel = first / c;
        let (image, row, column, channel) = (pixel / (h * w), pixel / w % h, pixel % w, first % c);
        write!(f, "{layer}'s output is not finite ({count} of {of} values, first at image {image}, ")?;
        if *h * *w > 1 {
            write!(f, "row {row}, column {column}, ")?;
        }
        write!(f, "channel {channel})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_nhwc() {
        let (h, w, c) = (4, 6, 32);
        let first = ((3 * h + 2) * w + 5) * c + 17;
        let bad = BadOutput { layer: "layer3.0.conv2".into(), count: 2, of: 5 * h * w * c, first, h, w, c };
        let place = "first at image 3, row 2, column 5, channel 17";
        assert_eq!(
            bad.to_string(),
            format!("layer3.0.conv2's output is not finite (2 of 3840 values, {place})")
        );
        let logits = BadOutput { layer: "fc".into(), count: 1, of: 20, first: 13, h: 1, w: 1, c: 10 };
        assert!(logits.to_string().ends_with("(1 of 20 values, first at image 1, channel 3)"), "{logits}");
    }
}
