//! Cards as their vendor describes them, and the EC2 instances that have several: what `engine plan` predicts from.

use crate::config::Chip;

/// A card as its vendor describes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CardModel {
    /// As `--gpu` takes it.
    pub name: &'static str,
    /// Which of its kinds.
    pub kind: &'static str,
    /// Its compute capability.
    pub capability: (i32, i32),
    /// What programs can have of its memory.
    pub gibibytes: f64,
    /// Of device memory, bytes a second.
    pub bandwidth: f64,
    /// Of dense matrix products, multiplications and additions a second.
    pub half: f64,
    /// The same from f32 operands rounded to 10 bits; `None` before Ampere, which has no bf16 either.
    pub tf32: Option<f64>,
    pub single: f64,
    pub chip: Chip,
}

/// Figures of NVIDIA's data sheets (V100 SXM2, T4, A100 SXM of 80 and 40 GB, H100 SXM, H200 SXM); the H200's bandwidth and rate for
/// half are what a copy and a large product were measured to reach. Shared memory of a block: the CUDA programming guide's
/// technical specifications by compute capability.
pub const CARDS: [CardModel; 6] = [
    CardModel {
        name: "v100",
        kind: "V100 SXM2 16 GB",
        capability: (7, 0),
        gibibytes: 15.7,
        bandwidth: 900e9,
        half: 125e12,
        tf32: None,
        single: 15.7e12,
        chip: Chip::of(80, 96, 900e9),
    },
    CardModel {
        name: "t4",
        kind: "T4 16 GB",
        capability: (7, 5),
        gibibytes: 14.7,
        bandwidth: 320e9,
        half: 65e12,
        tf32: None,
        single: 8.1e12,
        chip: Chip::of(40, 64, 320e9),
    },
    CardModel {
        name: "a100",
        kind: "A100 SXM 80 GB",
        capability: (8, 0),
        gibibytes: 79.0,
        bandwidth: 2039e9,
        half: 312e12,
        tf32: Some(156e12),
        single: 19.5e12,
        chip: Chip::of(108, 163, 2039e9),
    },
    CardModel {
        name: "a100-40",
        kind: "A100 SXM 40 GB",
        capability: (8, 0),
        gibibytes: 39.0,
        bandwidth: 1555e9,
        half: 312e12,
        tf32: Some(156e12),
        single: 19.5e12,
        chip: Chip::of(108, 163, 1555e9),
    },
    CardModel {
        name: "h100",
        kind: "H100 SXM 80 GB",
        capability: (9, 0),
        gibibytes: 79.0,
        bandwidth: 3350e9,
        half: 989e12,
        tf32: Some(494e12),
        single: 67e12,
        chip: Chip::of(132, 227, 3350e9),
    },
    CardModel {
        name: "h200",
        kind: "H200 SXM 141 GB",
        capability: (9, 0),
        gibibytes: 139.0,
        bandwidth: 4300e9,
        half: 790e12,
        tf32: Some(494e12),
        single: 67e12,
        chip: Chip::of(132, 227, 4300e9),
    },
];

/// How the cards of a machine reach each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    pub kind: &'static str,
    /// Of one card in one direction, bytes a second.
    pub bandwidth: f64,
}

impl Link {
    /// Of that, what exchanges of the size of our buckets reach, from the least to the best: NVIDIA's nccl-tests at 16 to 64 MB
    /// (threads NVIDIA/nccl-tests 68, 149, 178 and NVIDIA/nccl 583; large messages reach 0.7 on A100, buckets of 25 MB less).
    pub const SHARE: [f64; 2] = [0.3, 0.7];

    /// Seconds of the smallest exchange, slow and fast: the same tests at a few kB.
    pub const LATENCY: [f64; 2] = [40e-6, 15e-6];
}

/// A machine with several cards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Instance {
    pub name: &'static str,
    /// A [`CardModel::name`].
    pub card: &'static str,
    pub cards: usize,
    pub vcpus: usize,
    pub link: Link,
    /// An hour on demand.
    pub dollars: f64,
}

const NVLINK2: &str = "NVLink 2";
const NVLINK3: Link = Link { kind: "NVLink 3", bandwidth: 300e9 };
const NVLINK4: Link = Link { kind: "NVLink 4", bandwidth: 450e9 };

/// The smallest of a card first. Links: half of what AWS's instance pages give for both directions (p3.8xlarge 200 GB/s,
/// p3.16xlarge 300, p4d and p4de 600, p5 and p5en 900); PCI Express 3.0 x16 by its standard. Dollars: us-east-1, generated
/// on 2026-02-09 (karpenter-provider-aws, pkg/providers/pricing).
pub const INSTANCES: [Instance; 7] = [
    Instance {
        name: "g4dn.12xlarge",
        card: "t4",
        cards: 4,
        vcpus: 48,
        link: Link { kind: "PCI Express 3.0 x16", bandwidth: 15.75e9 },
        dollars: 3.912,
    },
    Instance {
        name: "p3.8xlarge",
        card: "v100",
        cards: 4,
        vcpus: 32,
        link: Link { kind: NVLINK2, bandwidth: 100e9 },
        dollars: 12.24,
    },
    Instance {
        name: "p3.16xlarge",
        card: "v100",
        cards: 8,
        vcpus: 64,
        link: Link { kind: NVLINK2, bandwidth: 150e9 },
        dollars: 24.48,
    },
    Instance { name: "p4d.24xlarge", card: "a100-40", cards: 8, vcpus: 96, link: NVLINK3, dollars: 21.958 },
    Instance { name: "p4de.24xlarge", card: "a100", cards: 8, vcpus: 96, link: NVLINK3, dollars: 27.447 },
    Instance { name: "p5.48xlarge", card: "h100", cards: 8, vcpus: 192, link: NVLINK4, dollars: 55.04 },
    Instance { name: "p5en.48xlarge", card: "h200", cards: 8, vcpus: 192, link: NVLINK4, dollars: 63.296 },
];

impl CardModel {
    /// The smallest machine that has so many.
    pub fn instance(&self, cards: usize) -> Option<&'static Instance> {
        INSTANCES.iter().find(|instance| instance.card == self.name && instance.cards >= cards)
    }
}
