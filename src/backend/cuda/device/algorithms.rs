//! Which routine each convolution runs with: found by timing once, then kept in the run's state and, where asked, in a
//! file.

use super::cublaslt;
use super::cudnn::{Algorithm, DEFAULT_MATH, FMA_MATH, TENSOR_OP_MATH};
use super::cudnn_engine::{Engine, Notes};
use crate::backend::cuda::plan::node::{Convolution, Fused};
use crate::backend::cuda::storage::Storage;
use crate::config::Routines;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

/// One way to compute a convolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Candidate {
    Cudnn(Algorithm),
    /// By cuDNN's graph API, which alone knows what is fused with a convolution.
    Graph(Engine),
    /// As a matrix product: for what [`is_product`] says.
    Cublas,
    /// The same by one of cuBLASLt's algorithms.
    CublasLt(cublaslt::Algorithm),
}

/// Whether a convolution multiplies every pixel by the same matrix: in NHWC one row-major product in each direction.
pub fn is_product(conv: &Convolution) -> bool {
    let shape = conv.shape;
    (shape.r, shape.s, shape.stride, shape.pad) == (1, 1, 1, 0)
}

const NONDETERMINISTIC: &str = "nondeterministic";

/// As the run's state and the file of algorithms have it: `cudnn algorithm 1 math 1 workspace 0`, `cublas`.
impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cublas => f.write_str("cublas"),
            Self::CublasLt(algorithm) => algorithm.fmt(f),
            Self::Graph(engine) => engine.fmt(f),
            Self::Cudnn(Algorithm { number, math, memory, deterministic }) => {
                write!(f, "cudnn algorithm {number} math {math} workspace {memory}")?;
                if *deterministic { Ok(()) } else { write!(f, " {NONDETERMINISTIC}") }
            }
        }
    }
}

/// What does not parse is searched anew.
impl FromStr for Candidate {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        fn number<T: FromStr>(text: &str) -> Result<T, ()> {
            text.parse().map_err(drop)
        }
        if let Ok(engine) = text.parse() {
            return Ok(Self::Graph(engine));
        }
        let words: Vec<&str> = text.split(' ').collect();
        let (words, deterministic) = match words.split_last() {
            Some((&NONDETERMINISTIC, words)) => (words, false),
            _ => (&words[..], true),
        };
        match *words {
            ["cublas"] => Ok(Self::Cublas),
            ["cublaslt", ..] if deterministic => text.parse().map(Self::CublasLt),
            ["cudnn", "algorithm", algorithm, "math", math, "workspace", memory] => {
                let (number, math, memory) = (number(algorithm)?, number(math)?, number(memory)?);
                Ok(Self::Cudnn(Algorithm { number, math, memory, deterministic }))
            }
            _ => Err(()),
        }
    }
}

/// A convolution by what its speed depends on: `forward 56x56x64 k64 3x3 s1 p1 n256 f16`, and ` norm`, ` sums` for what is
/// fused. Whether it adds to its result is part of an operation graph: ` +=` where those are searched.
pub fn key(conv: &Convolution, rule: &Rule) -> String {
    let shape = conv.shape;
    format!(
        "{} {}x{}x{} k{} {}x{} s{} p{} n{} {}{}{}",
        conv.pass.name(),
        shape.h,
        shape.w,
        shape.c,
        shape.k,
        shape.r,
        shape.s,
        shape.stride,
        shape.pad,
        conv.n,
        if rule.tf32 { "tf32" } else { rule.storage.suffix() },
        said(&conv.fused),
        if rule.graph && conv.accumulate { " +=" } else { "" }
    )
}

/// ` norm sums` of a convolution with both.
pub fn said(fused: &Fused) -> &'static str {
    match (fused.norm.is_some(), fused.sums.is_some()) {
        (false, false) => "",
        (true, false) => " norm",
        (false, true) => " sums",
        (true, true) => " norm sums",
    }
}

/// What a run allows.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    pub storage: Storage,
    /// f32 products may round their operands to 10 bits.
    pub tf32: bool,
    /// Whether the card can do that (compute capability 8.0): there, cuDNN's default arithmetic does.
    pub has_tf32: bool,
    /// Only what gives the same bits every time.
    pub deterministic: bool,
    /// Bytes of workspace that there are.
    pub workspace: u64,
    /// Whose are tried.
    pub routines: Routines,
    /// And the engines of cuDNN's graph API.
    pub graph: bool,
}

/// Candidates of cuDNN's that are timed again, as the run will call them.
const SHORTLIST: usize = 3;

impl Rule {
    /// Of 16-bit operands every product is exact in fp32, so any arithmetic does, and the fastest is taken: tensor cores
    /// where they are. f32 without TF32 has its operands whole: never a tensor core. Nothing may convert operands to
    /// another type (`CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION`).
    fn allows_math(&self, math: i32) -> bool {
        match (self.storage, self.tf32) {
            (Storage::F16 | Storage::Bf16, _) | (Storage::F32, true) => {
                [DEFAULT_MATH, TENSOR_OP_MATH, FMA_MATH].contains(&math)
            }
            (Storage::F32, false) => math == FMA_MATH || (math == DEFAULT_MATH && !self.has_tf32),
        }
    }

    fn allows_algorithm(&self, one: &Algorithm) -> bool {
        let fits = one.memory as u64 <= self.workspace;
        fits && self.allows_math(one.math) && (one.deterministic || !self.deterministic)
    }

    /// Whether an engine computes what the run promises, by what cuDNN says of it: f32 sums of products of the operands as they
    /// are. Where no note is, it does nothing special.
    pub fn allows_notes(&self, notes: &Notes) -> bool {
        let whole = self.storage == Storage::F32 && !self.tf32;
        notes.plain_sums()
            && (notes.deterministic() || !self.deterministic)
            && !(whole && notes.tensor_cores())
    }

    /// Whether a choice of an earlier run may be made again. An engine's notes are looked at when it is planned.
    pub fn allows(&self, candidate: &Candidate, conv: &Convolution) -> bool {
        match candidate {
            Candidate::Cudnn(_) | Candidate::Cublas | Candidate::CublasLt(_) if conv.fused.any() => false,
            Candidate::Graph(engine) => {
                let fits = engine.workspace as u64 <= self.workspace;
                fits && (self.graph || conv.fused.any()) && (engine.deterministic || !self.deterministic)
            }
            Candidate::Cublas => is_product(conv) && self.routines != Routines::Cudnn,
            Candidate::CublasLt(algorithm) => {
                let fits = algorithm.workspace as u64 <= self.workspace;
                is_product(conv) && self.routines == Routines::CublasLt && fits
            }
            Candidate::Cudnn(algorithm) => self.allows_algorithm(algorithm),
        }
    }

    /// The fastest of what cuDNN has found, in its order, that are allowed. Where it reports an algorithm under the
    /// default arithmetic alone, f32 without TF32 tries it under FMA.
    pub fn shortlist(&self, found: &[Algorithm]) -> Vec<Algorithm> {
        let allowed = |one: &Algorithm| self.allows_algorithm(one);
        let first: Vec<Algorithm> = found.iter().copied().filter(allowed).take(SHORTLIST).collect();
        if !first.is_empty() || self.tf32 || self.storage != Storage::F32 {
            return first;
        }
        let without_tf32 = |one: &Algorithm| Algorithm { math: FMA_MATH, ..*one };
        let default = found.iter().filter(|one| one.math == DEFAULT_MATH).map(without_tf32);
        default.filter(allowed).take(SHORTLIST).collect()
    }
}

/// The fastest of what was timed, in seconds; of equals, the first.
pub fn fastest(timed: &[(Candidate, f64)]) -> Option<Candidate> {
    timed.iter().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(candidate, _)| candidate.clone())
}

/// `device.algorithms = "file:PATH"`.
#[derive(Debug, Clone)]
pub struct File(pub PathBuf);

#[derive(Serialize, Deserialize)]
struct Content {
    /// Card, driver and libraries that the choices were made on.
    made_on: String,
    choices: BTreeMap<String, String>,
}

impl File {
    /// What the file has for this card, driver and libraries; nothing where it was made on others or does not exist.
    pub fn read(&self, identity: &str) -> Result<BTreeMap<String, String>> {
        let text = match fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(Error::unreadable(&self.0, &error, "a file of algorithms")),
        };
        let content: Content = serde_json::from_str(&text).map_err(|error| {
            Error::input_file(
                &self.0,
                format!("not a file of algorithms: {error}; delete it, and it is made anew"),
            )
        })?;
        Ok(if content.made_on == identity { content.choices } else { BTreeMap::new() })
    }

    pub fn write(&self, identity: &str, choices: &BTreeMap<String, String>) -> Result<()> {
        let content = Content { made_on: identity.to_owned(), choices: choices.clone() };
        let text = serde_json::to_string_pretty(&content).expect("plain strings");
        fs::write(&self.0, text).map_err(|error| Error::output_file(&self.0, "write", &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::plan::node::Pass;
    use crate::backend::cuda::plan::region::{Arena, Region};
    use crate::model::graph::ConvShape;

    const FP16: Rule = Rule {
        storage: Storage::F16,
        tf32: false,
        has_tf32: true,
        deterministic: true,
        workspace: 8192,
        routines: Routines::Cublas,
        graph: false,
    };
    const FP32: Rule = Rule { storage: Storage::F32, ..FP16 };

    fn algorithm(number: i32, math: i32) -> Algorithm {
        Algorithm { number, math, memory: 4096, deterministic: true }
    }

    fn numbers(rule: &Rule, found: &[Algorithm]) -> Vec<(i32, i32)> {
        rule.shortlist(found).iter().map(|one| (one.number, one.math)).collect()
    }

    fn conv(shape: ConvShape) -> Convolution {
        let nowhere = Region::new(Arena::Activations, 0, 0);
        let (x, w, y) = (nowhere, nowhere, nowhere);
        Convolution { pass: Pass::Dgrad, shape, n: 2, x, w, y, accumulate: true, fused: Fused::NONE }
    }

    const ONE_BY_ONE: ConvShape = ConvShape { h: 8, w: 8, c: 4, k: 6, r: 1, s: 1, stride: 1, pad: 0 };

    #[test]
    fn only_deterministic_ones_that_fit_unless_told_otherwise() {
        let random = Algorithm { deterministic: false, ..algorithm(0, TENSOR_OP_MATH) };
        let large = Algorithm { memory: 8193, ..algorithm(1, TENSOR_OP_MATH) };
        let all = [random, large, algorithm(3, TENSOR_OP_MATH)];
        assert_eq!(numbers(&FP16, &all), [(3, 1)]);
        assert_eq!(numbers(&Rule { deterministic: false, ..FP16 }, &all), [(0, 1), (3, 1)]);
        assert_eq!(numbers(&FP16, &all[..2]), []);
    }

    #[test]
    fn every_precision_has_the_arithmetic_that_it_promises() {
        // CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION is 2.
        let all = [
            algorithm(4, 2),
            algorithm(5, DEFAULT_MATH),
            algorithm(6, FMA_MATH),
            algorithm(7, TENSOR_OP_MATH),
        ];
        for storage in [Storage::F16, Storage::Bf16] {
            assert_eq!(numbers(&Rule { storage, ..FP16 }, &all), [(5, 0), (6, 3), (7, 1)]);
        }
        assert_eq!(numbers(&Rule { tf32: true, ..FP32 }, &all), [(5, 0), (6, 3), (7, 1)]);
        assert_eq!(numbers(&FP32, &all), [(6, 3)]);
        // Before Ampere the default is FMA.
        assert_eq!(numbers(&Rule { has_tf32: false, ..FP32 }, &all), [(5, 0), (6, 3)]);
        // Reported under the default alone: tried under FMA, never as it was timed.
        assert_eq!(numbers(&FP32, &[all[0], all[1], all[3]]), [(5, 3)]);
        assert_eq!(numbers(&FP32, &[all[0], all[3]]), []);
    }

    #[test]
    fn an_earlier_choice_is_held_to_the_rule_of_this_run() {
        let strided = conv(ConvShape { stride: 2, ..ONE_BY_ONE });
        let plain = conv(ONE_BY_ONE);
        assert!(FP16.allows(&Candidate::Cublas, &plain) && !FP16.allows(&Candidate::Cublas, &strided));
        let tensor = Candidate::Cudnn(algorithm(1, TENSOR_OP_MATH));
        assert!(FP16.allows(&tensor, &plain) && !FP32.allows(&tensor, &plain));
        let random = Candidate::Cudnn(Algorithm { deterministic: false, ..algorithm(1, TENSOR_OP_MATH) });
        let read_back: Candidate = random.to_string().parse().unwrap();
        assert!(!FP16.allows(&read_back, &plain));
        let lt = Candidate::CublasLt(cublaslt::Algorithm { data: [1; 8], workspace: 8192 });
        let all = Rule { routines: Routines::CublasLt, ..FP16 };
        assert!(all.allows(&lt, &plain) && !all.allows(&lt, &strided) && !FP16.allows(&lt, &plain));
        assert!(!Rule { workspace: 8191, ..all }.allows(&lt, &plain));
        assert!(!Rule { routines: Routines::Cudnn, ..FP16 }.allows(&Candidate::Cublas, &plain));
        assert!(key(&plain, &Rule { tf32: true, ..FP32 }).ends_with("s1 p0 n2 tf32"));
        assert!(key(&plain, &Rule { graph: true, ..FP16 }).ends_with("s1 p0 n2 f16 +="));
    }

    /// Numbers of `cudnnBackendNumericalNote_t` and `cudnnBackendBehaviorNote_t`.
    #[test]
    fn engines_are_taken_by_their_notes() {
        let notes = |numerical: &[i32], behaviour: &[i32]| Notes {
            numerical: numerical.to_vec(),
            behaviour: behaviour.to_vec(),
        };
        let (tensor, plain, random) = (notes(&[0, 9], &[]), notes(&[], &[]), notes(&[0, 4], &[]));
        assert!(FP16.allows_notes(&tensor) && FP16.allows_notes(&plain) && !FP16.allows_notes(&random));
        assert!(Rule { deterministic: false, ..FP16 }.allows_notes(&random));
        assert!(!FP32.allows_notes(&tensor) && FP32.allows_notes(&plain));
        assert!(Rule { tf32: true, ..FP32 }.allows_notes(&tensor));
        for other in [1, 2, 3, 5, 6, 7, 8] {
            assert!(!Rule { deterministic: false, ..FP16 }.allows_notes(&notes(&[0, other], &[])), "{other}");
        }
        assert!(!FP16.allows_notes(&notes(&[0], &[1])) && FP16.allows_notes(&notes(&[0], &[0, 3, 4])));
        assert!(notes(&[0], &[0]).compiled_late() && !tensor.compiled_late());
    }

    #[test]
    fn what_is_fused_is_an_engines_alone() {
        let nowhere = Region::new(Arena::Activations, 0, 0);
        let fused = Fused { norm: None, sums: Some(nowhere) };
        let (plain, summed) = (conv(ONE_BY_ONE), Convolution { fused, ..conv(ONE_BY_ONE) });
        let engine = Engine { index: 4, knobs: vec![], workspace: 8192, deterministic: true };
        let graph = Candidate::Graph(engine.clone());
        assert!(FP16.allows(&graph, &summed) && !FP16.allows(&graph, &plain));
        assert!(Rule { graph: true, ..FP16 }.allows(&graph, &plain));
        assert!(!FP16.allows(&Candidate::Cublas, &summed));
        assert!(!FP16.allows(&Candidate::Cudnn(algorithm(1, TENSOR_OP_MATH)), &summed));
        assert!(!Rule { workspace: 8191, ..FP16 }.allows(&graph, &summed));
        let random = Candidate::Graph(Engine { deterministic: false, ..engine });
        assert!(!FP16.allows(&random, &summed) && random.to_string().parse() == Ok(random));
        assert_ne!(key(&summed, &FP16), key(&plain, &FP16));
    }

    #[test]
    fn texts_are_read_back() {
        let one = algorithm(5, 1);
        for candidate in [
            Candidate::Cublas,
            Candidate::Cudnn(one),
            Candidate::CublasLt(cublaslt::Algorithm { data: [7; 8], workspace: 1 }),
            Candidate::Cudnn(Algorithm { deterministic: false, ..one }),
        ] {
            assert_eq!(candidate.to_string().parse(), Ok(candidate));
        }
        assert_eq!(Candidate::Cudnn(one).to_string(), "cudnn algorithm 5 math 1 workspace 4096");
        for other in ["", "cublaslt", "cudnn algorithm x math 1 workspace 0", "cudnn algorithm 1"] {
            assert_eq!(other.parse::<Candidate>(), Err(()), "{other}");
        }
    }

    #[test]
    fn the_fastest_is_chosen_and_the_first_of_equals() {
        let cudnn = Candidate::Cudnn(algorithm(1, 1));
        let of = |seconds| fastest(&[(cudnn.clone(), seconds), (Candidate::Cublas, 1e-3)]);
        assert_eq!(of(2e-3), Some(Candidate::Cublas));
        assert_eq!(of(1e-3), Some(cudnn.clone()));
        assert_eq!(fastest(&[]), None);
    }

    #[test]
    fn a_file_of_another_card_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let file = File(folder.path().join("algorithms.json"));
        assert_eq!(file.read("a").unwrap(), BTreeMap::new());
        let choices = BTreeMap::from([("forward".to_owned(), Candidate::Cublas.to_string())]);
        file.write("a", &choices).unwrap();
        assert_eq!(file.read("a").unwrap(), choices);
        assert_eq!(file.read("b").unwrap(), BTreeMap::new());
        fs::write(&file.0, "no json").unwrap();
        assert!(file.read("a").unwrap_err().message.contains("delete it"));
    }
}
