//! A data set -> tar shards in WebDataset's form: `key.jpg` with the picture, `key.cls` with its class as an integer.
//!
//! ```text
//! train-000000.tar, ..  val-000000.tar, ..    what the loader, and Python's `webdataset`, read
//! classes.txt                                 `id TAB label`, in the order of the numbers
//! pack.json                                   what was asked for and of which samples: written first
//! packed.json                                 what came of it: written last, after the shards were read back
//! ```
//!
//! The order of the samples stays, so that a packed set gives the batches that its source gives. A shard is a function of
//! its samples and of the options: neither of the number of workers, nor of when a run was cut. It is written under a
//! temporary name, so that what stands under its own is whole; a run that was killed at any moment goes on with the
//! first shard that is missing.
//!
//! Pictures that need no shrinking are copied byte for byte, under the extension of what they are and not of what they are
//! called; those that cannot be decoded are left out and named.

mod convert;
mod manifest;
mod ordered;
mod verify;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Splits;
use super::loader::epoch_order;
use super::resize::Interpolation;
use super::split::Split;
use crate::error::{Error, Kind, Result};
use crate::files::{self, FolderLock};
use convert::{Converter, Packed};
use manifest::Request;
use ordered::in_order;
use write::{Closer, ShardFile, finished_samples};

/// Failpoints of a shard's file.
const SCOPE: &str = "shard";

#[derive(Debug, Clone)]
pub struct PackOptions {
    pub output: PathBuf,
    /// Pictures whose shorter side is longer are shrunk to it (torchvision's `Resize`) and become JPEGs.
    pub shorter_side: Option<usize>,
    /// Of those JPEGs, 1 to 100.
    pub quality: u8,
    pub interpolation: Interpolation,
    pub per_shard: usize,
    /// In an order drawn once, for programs that read shards from one end to the other.
    pub shuffle: bool,
    /// What a source that is not divided becomes: `train` or `val`.
    pub undivided: String,
    pub workers: usize,
    /// Read and decode everything again at the end.
    pub verify: bool,
    /// Share of pictures that may be left out.
    pub bad_share: f64,
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub verifying: bool,
    pub done: usize,
    pub of: usize,
    /// Written by this run.
    pub bytes: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    pub splits: Vec<PackedSplit>,
    /// Read back and decoded; 0 where that was not asked for.
    pub verified: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PackedSplit {
    pub name: String,
    pub images: usize,
    pub left_out: usize,
    pub shards: usize,
    pub bytes: u64,
}

/// What a run tells its caller while it works. `Err` from `progress` stops it.
pub trait Observer {
    fn progress(&mut self, progress: Progress) -> Result<()>;
    fn warn(&mut self, sentence: &str);
}

/// One split of the source in the order in which it is packed.
struct Source {
    name: String,
    split: Arc<Split>,
    order: Vec<u32>,
}

impl Source {
    fn shards(&self, per_shard: usize) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let len = self.order.len();
        (0..len).step_by(per_shard).map(move |begin| begin..(begin + per_shard).min(len))
    }
}

/// A shard of a source: samples `range` of its order.
struct Shard<'a> {
    source: &'a Source,
    range: std::ops::Range<usize>,
    path: PathBuf,
}

/// Packs `data`, or goes on where an earlier run with the same options stopped.
pub fn pack(data: Splits, options: &PackOptions, observer: &mut dyn Observer) -> Result<Summary> {
    let Splits { splits, classes } = data;
    let sources: Vec<Source> = splits
        .into_iter()
        .map(|(name, split)| {
            let name = if name == "all" { options.undivided.clone() } else { name };
            let order = match options.shuffle {
                true => epoch_order(split.len(), 0, 0, 0),
                false => (0..split.len() as u32).collect(),
            };
            Source { name, split, order }
        })
        .collect();
    let _lock = FolderLock::take(&options.output)?;
    files::remove_temporaries(&options.output, |name| name.ends_with(".tar") || name.ends_with(".json"))?;
    Request::new(&sources, &classes, options).agree_with(&options.output)?;
    if let Some(summary) = manifest::read_summary(&options.output)
        && (summary.verified > 0 || !options.verify)
    {
        return Ok(summary);
    }
    manifest::write_classes(&options.output, &classes)?;
    let shards = shards(&sources, options);
    let finished: Vec<Option<usize>> = shards.iter().map(|shard| finished_samples(shard)).collect();
    check_space(&shards, &finished, options)?;
    let mut tally = Tally::new(&shards, &finished, options);
    write_missing(&shards, &finished, options, &mut tally, observer)?;
    let mut summary = summary_of(&sources, &shards, &tally, options)?;
    if options.verify {
        summary.verified = verify::verify(&sources, &summary, options, observer)?;
    }
    manifest::write_summary(&options.output, &summary)?;
    Ok(summary)
}

fn shards<'a>(sources: &'a [Source], options: &PackOptions) -> Vec<Shard<'a>> {
    let of = |source: &'a Source| {
        source.shards(options.per_shard).enumerate().map(move |(number, range)| {
            let path = options.output.join(format!("{}-{number:06}.tar", source.name));
            Shard { source, range, path }
        })
    };
    sources.iter().flat_map(of).collect()
}

/// Counts over all shards, those of earlier runs included.
struct Tally {
    /// Samples in each shard.
    packed: Vec<usize>,
    left_out: usize,
    allowed: usize,
    done: usize,
    of: usize,
    bytes: u64,
}

impl Tally {
    fn new(shards: &[Shard<'_>], finished: &[Option<usize>], options: &PackOptions) -> Self {
        let of: usize = shards.iter().map(|shard| shard.range.len()).sum();
        let whole = || shards.iter().zip(finished).filter_map(|(shard, count)| Some((shard, (*count)?)));
        Self {
            packed: finished.iter().map(|count| count.unwrap_or(0)).collect(),
            left_out: whole().map(|(shard, count)| shard.range.len() - count).sum(),
            allowed: ((options.bad_share * of as f64) as usize).max(1),
            done: whole().map(|(shard, _)| shard.range.len()).sum(),
            of,
            bytes: 0,
        }
    }

    fn progress(&self) -> Progress {
        Progress { verifying: false, done: self.done, of: self.of, bytes: self.bytes }
    }
}

/// Writes the shards that are not there, one after another; pictures are made by all workers, and reach the file in order.
fn write_missing(
    shards: &[Shard<'_>],
    finished: &[Option<usize>],
    options: &PackOptions,
    tally: &mut Tally,
    observer: &mut dyn Observer,
) -> Result<()> {
    let missing: Vec<usize> = (0..shards.len()).filter(|&i| finished[i].is_none()).collect();
    let jobs: Vec<(usize, usize)> =
        missing.iter().flat_map(|&i| shards[i].range.clone().map(move |position| (i, position))).collect();
    let make = |converter: &mut Converter, job: usize| -> Result<Packed, String> {
        let (shard, position) = jobs[job];
        let Shard { source, .. } = &shards[shard];
        converter.convert(&source.split, source.order[position] as usize, options)
    };
    Closer::run(|closer| {
        let mut current: Option<ShardFile> = None;
        in_order(jobs.len(), options.workers, make, |job, made| {
            let (shard, position) = jobs[job];
            let Shard { source, range, path } = &shards[shard];
            if position == range.start {
                current = Some(ShardFile::create(path)?);
            }
            let file = current.as_mut().expect("a shard begins with its first position");
            let sample = source.order[position] as usize;
            match made {
                Ok(packed) => {
                    tally.bytes += file.add(position, &source.split, sample, &packed)?;
                    tally.packed[shard] += 1;
                }
                Err(reason) => {
                    tally.left_out += 1;
                    observer.warn(&format!("left out: {reason}"));
                    too_many(tally)?;
                }
            }
            tally.done += 1;
            if position + 1 == range.end {
                closer.close(current.take().expect("it was made above"))?;
            }
            observer.progress(tally.progress()).map_err(|error| stopped(error, &options.output))
        })
    })
}

fn too_many(tally: &Tally) -> Result<()> {
    if tally.left_out <= tally.allowed {
        return Ok(());
    }
    Err(Error::input(format!(
        "{} of {} pictures cannot be used, more than the {} that are let pass; list them with `engine data check`",
        tally.left_out, tally.of, tally.allowed
    )))
}

fn stopped(error: Error, output: &Path) -> Error {
    if error.kind != Kind::Stopped {
        return error;
    }
    let folder = output.display();
    Error::stopped(format!(
        "stopped on request; the shards in {folder} are whole: run the same command again to go on"
    ))
}

/// Refuses to begin what the disk cannot hold. What shrunk pictures will take is learnt from a few of them.
fn check_space(shards: &[Shard<'_>], finished: &[Option<usize>], options: &PackOptions) -> Result<()> {
    let missing = || shards.iter().zip(finished).filter(|(_, count)| count.is_none()).map(|(shard, _)| shard);
    let samples: Vec<(&Split, usize)> = missing()
        .flat_map(|shard| {
            let Source { split, order, .. } = shard.source;
            shard.range.clone().map(move |position| (split.as_ref(), order[position] as usize))
        })
        .collect();
    let payload = match options.shorter_side {
        None => samples.iter().map(|&(split, sample)| split.bytes(sample).unwrap_or(0)).sum(),
        Some(_) => estimate(&samples, options),
    };
    // Two headers, the class, and on average half a block of padding.
    const AROUND: u64 = 3 * 512 + 256;
    let needed = payload + AROUND * samples.len() as u64;
    let disk = rustix::fs::statvfs(&options.output);
    // A file system that does not tell is found out by writing.
    let Ok(free) = disk.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)) else { return Ok(()) };
    if needed <= free {
        return Ok(());
    }
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    Err(Error::failed(format!(
        "the shards need about {:.1} GB and {} has {:.1} GB free; free some, give another --output, or shrink the pictures \
         with --shorter-side",
        gigabytes(needed),
        options.output.display(),
        gigabytes(free)
    )))
}

/// Bytes of all samples once packed, from 64 of them and a tenth for what those do not show.
fn estimate(samples: &[(&Split, usize)], options: &PackOptions) -> u64 {
    const PROBES: usize = 64;
    let mut converter = Converter::default();
    let step = samples.len().div_ceil(PROBES).max(1);
    let probes = samples.iter().step_by(step);
    let sizes: Vec<u64> = probes
        .filter_map(|&(split, sample)| converter.convert(split, sample, options).ok())
        .map(|packed| packed.bytes.len() as u64)
        .collect();
    let mean = sizes.iter().sum::<u64>() as f64 / sizes.len().max(1) as f64;
    (mean * samples.len() as f64 * 1.1) as u64
}

fn summary_of(
    sources: &[Source],
    shards: &[Shard<'_>],
    tally: &Tally,
    options: &PackOptions,
) -> Result<Summary> {
    let splits = sources.iter().map(|source| {
        let own = || shards.iter().zip(&tally.packed).filter(|(shard, _)| shard.source.name == source.name);
        let images = own().map(|(_, count)| count).sum();
        let sizes = own().map(|(shard, _)| {
            let metadata = shard.path.metadata();
            metadata.map(|m| m.len()).map_err(|e| Error::output_file(&shard.path, "find", &e))
        });
        Ok(PackedSplit {
            name: source.name.clone(),
            images,
            left_out: source.order.len() - images,
            shards: source.shards(options.per_shard).count(),
            bytes: sizes.sum::<Result<u64>>()?,
        })
    });
    Ok(Summary { splits: splits.collect::<Result<_>>()?, verified: 0 })
}
