#[derive(Clone)]
pub struct Batch {
    pub images: Vec<u8>,
    pub labels: Vec<u32>,
    pub samples: Vec<u32>,
    pub resolution: usize,
}
