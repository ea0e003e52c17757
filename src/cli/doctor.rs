//! `engine doctor`: what this machine has, what it lacks, and the sentence that mends it.

use super::args::DoctorArgs;
use super::device::has_nvidia_card;
use crate::data::JPEG_DECODER;
use crate::error::Result;
use crate::remote::probe::probe;
use crate::remote::{Address, Client};
use crate::simd::isa::Isa;
use crate::terminal::answer;
use serde::Serialize;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// One line of the report. Scripts read these fields: none is renamed or taken away.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    /// Whether `engine train` can use it.
    good: bool,
    /// Nothing that engine does now fails without it.
    optional: bool,
    found: String,
}

impl Finding {
    fn state(&self) -> &'static str {
        match (self.good, self.optional) {
            (true, _) => "ok",
            (false, true) => "optional",
            (false, false) => "missing",
        }
    }
}

fn finding(what: &str, good: bool, found: impl Into<String>) -> Finding {
    Finding { what: what.to_owned(), good, optional: false, found: found.into() }
}

#[derive(Serialize)]
struct Report {
    findings: Vec<Finding>,
    /// What `engine train` would compute on.
    trains_on: String,
}

const CPU: &str = "the CPU";

pub fn run(args: &DoctorArgs) -> Result<()> {
    let mut findings = vec![processor(), memory(), decoder(), disk(&args.output)];
    findings.extend(args.remote.as_deref().filter(|remote| !remote.is_empty()).map(bucket));
    let (gpu, trains_on) = gpu();
    findings.extend(gpu);
    let report = Report { findings, trains_on };
    if args.json {
        return answer(serde_json::to_string(&report).expect("plain strings"));
    }
    for finding in &report.findings {
        answer(format!("{:<8} {:<14} {}", finding.state(), finding.what, finding.found))?;
    }
    answer(format!("engine train would use: {}{}", report.trains_on, advice(&report)))
}

/// What a person without a usable card should know.
fn advice(report: &Report) -> &'static str {
    match (report.trains_on == CPU, has_nvidia_card()) {
        (false, _) => "",
        (true, true) => "; this machine has an NVIDIA card: see to what is missing above, from the top",
        (true, false) => {
            "; no NVIDIA card is seen here, and without one nothing above is amiss: small networks train on the CPU, \
             ResNet-50 on ImageNet wants a card"
        }
    }
}

fn processor() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let model = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split(": ").nth(1)?.to_owned())
    });
    let model = model.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let isa = Isa::current().name();
    let asked = std::env::var("ENGINE_ISA").ok().filter(|asked| asked != isa);
    let note =
        asked.map_or(String::new(), |asked| format!("; ENGINE_ISA={asked} is not one that this CPU has"));
    finding("CPU", note.is_empty(), format!("{model}, {cores} cores, computing with {isa}{note}"))
}

fn memory() -> Finding {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let gib = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / f64::from(1 << 20))
    };
    match (gib("MemTotal:"), gib("MemAvailable:")) {
        (Some(total), Some(free)) => finding("memory", true, format!("{total:.1} GiB, {free:.1} available")),
        _ => finding("memory", true, "unknown on this system"),
    }
}

fn decoder() -> Finding {
    let note =
        if cfg!(feature = "turbojpeg") { "" } else { "; cargo build --features turbojpeg has a faster one" };
    finding("JPEG decoder", true, format!("{JPEG_DECODER}{note}"))
}

/// Writes 64 MiB to the output folder, and forgets them.
fn disk(folder: &Path) -> Finding {
    const BYTES: usize = 64 << 20;
    let path = folder.join(format!(".engine-doctor-{}", std::process::id()));
    let write = || -> std::io::Result<f64> {
        let block = vec![0x5a; 1 << 20];
        let began = Instant::now();
        let mut file = fs::File::create(&path)?;
        for _ in 0..BYTES / block.len() {
            file.write_all(&block)?;
        }
        file.sync_all()?;
        Ok(BYTES as f64 / 1e6 / began.elapsed().as_secs_f64())
    };
    let written = write();
    let _ = fs::remove_file(&path);
    let folder = folder.display();
    match written {
        Ok(speed) => finding("disk", true, format!("{folder}: {speed:.0} MB/s written and synced")),
        Err(error) => {
            finding("disk", false, format!("{folder} cannot be written: {error}; choose another --output"))
        }
    }
}

/// Writes a small object, reads it, and removes it.
fn bucket(remote: &str) -> Finding {
    let client = Address::parse(remote).and_then(Client::open).map_err(|error| error.message);
    match client.and_then(|client| probe(&client)) {
        Ok(found) => finding("bucket", true, format!("{remote}: {found}")),
        Err(reason) => finding("bucket", false, format!("{remote}: {reason}")),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> (Vec<Finding>, String) {
    (vec![finding("GPU", false, "this engine was built without the feature cuda")], CPU.to_owned())
}

#[cfg(feature = "cuda")]
fn gpu() -> (Vec<Finding>, String) {
    use crate::backend::cuda::device::driver::{Context, cards};
    use crate::backend::cuda::device::libraries::{Found, Library, check_card, dotted};
    let found: Vec<(Library, Result<Found>)> = Library::ALL.map(|library| (library, library.find())).into();
    let version = |library: Library, found: &Found| match library {
        Library::Driver => format!("CUDA {}.{}", found.version / 1000, found.version % 1000 / 10),
        Library::Nccl | Library::Cublas | Library::CublasLt | Library::Cudnn => dotted(found.version),
    };
    let mut findings: Vec<Finding> = found
        .iter()
        .map(|(library, found)| match found {
            Ok(found) => {
                let path = found.path.as_ref().map_or(String::new(), |path| format!(", {}", path.display()));
                finding(library.name(), true, format!("{}{path}", version(*library, found)))
            }
            Err(error) => {
                // The line begins with the name.
                let advice = error.message.split_once(" is missing: ");
                let found =
                    advice.map_or(error.message.clone(), |(_, advice)| format!("not found: {advice}"));
                let optional = *library == Library::Nccl;
                Finding { optional, ..finding(library.name(), false, found) }
            }
        })
        .collect();
    let usable = found.iter().all(|(library, found)| *library == Library::Nccl || found.is_ok());
    let cudnn = found
        .iter()
        .find_map(|(library, found)| (*library == Library::Cudnn).then_some(found.as_ref().ok()?.version));
    let driver = found.iter().any(|(library, found)| *library == Library::Driver && found.is_ok());
    let count = if driver { cards() } else { Ok(0) };
    let mut first = None;
    match count {
        Err(error) => findings.push(finding("GPU", false, error.message)),
        Ok(count) => {
            for ordinal in 0..count {
                let card = Context::open(ordinal).and_then(|card| {
                    check_card(card.capability, cudnn.unwrap_or(0))?;
                    let (free, total) = card.memory()?;
                    let gib = |bytes: u64| bytes as f64 / 2f64.powi(30);
                    let (major, minor) = card.capability;
                    let memory = format!("{:.1} GiB, {:.1} free", gib(total), gib(free));
                    Ok(format!("{}, compute capability {major}.{minor}, {memory}", card.name))
                });
                match card {
                    Ok(card) => {
                        first.get_or_insert_with(|| card.clone());
                        findings.push(finding(&format!("GPU {ordinal}"), true, card));
                    }
                    Err(error) => findings.push(finding(&format!("GPU {ordinal}"), false, error.message)),
                }
            }
        }
    }
    let trains_on = match first.filter(|_| usable) {
        Some(card) => card,
        None => CPU.to_owned(),
    };
    (findings, trains_on)
}
