//! Weights as models store them, which every algorithm's packing reads.

/// The filters of a convolution and what batch norm multiplies each with: y = conv(x, factor weight).
#[derive(Debug, Clone, Copy)]
pub struct Filters<'a> {
    /// f32 [k][c][r][s]
    pub weight: &'a [f32],
    /// [k]. Products are taken in f64.
    pub factor: &'a [f64],
}
