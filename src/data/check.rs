//! Decodes everything and lists what is odd, by path; and what a data set holds, without decoding it.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::decode::{Decoder, Format, Header, Limits, Rect, read_header};
use super::{Class, JPEG_DECODER, Split, Splits};
use crate::error::{Error, Result};

/// What can be odd about an image. Only `Unusable` keeps it out of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Oddity {
    Unusable,
    /// The name says another format than the bytes.
    Misnamed,
    Cmyk,
    SixteenBit,
    /// EXIF says that it is turned or mirrored; training and evaluation use it as it is stored.
    Oriented,
    /// A shorter side above [`HUGE`] pixels: decoding it takes many times what others take.
    Huge,
}

/// The shorter side above which a file is worth shrinking once.
pub const HUGE: usize = 2048;

impl Oddity {
    pub fn name(self) -> &'static str {
        match self {
            Self::Unusable => "cannot be used",
            Self::Misnamed => "misnamed",
            Self::Cmyk => "CMYK",
            Self::SixteenBit => "16-bit",
            Self::Oriented => "EXIF orientation",
            Self::Huge => "huge",
        }
    }
}

/// One odd thing about one file; the text begins with its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub oddity: Oddity,
    pub text: String,
}

/// What a check found. `Display` is the report: one line a finding, then the counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// By kind, then by place in the data set.
    pub findings: Vec<Finding>,
    pub images: usize,
    pub grey: usize,
    pub progressive: usize,
}

impl Report {
    pub fn count(&self, oddity: Oddity) -> usize {
        self.findings.iter().filter(|f| f.oddity == oddity).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{}: {}", finding.oddity.name(), finding.text)?;
        }
        let unusable = self.count(Oddity::Unusable);
        write!(f, "{} images, {unusable} cannot be used", self.images)?;
        for oddity in [Oddity::Misnamed, Oddity::Cmyk, Oddity::SixteenBit, Oddity::Oriented, Oddity::Huge] {
            match self.count(oddity) {
                0 => {}
                count => write!(f, ", {count} {}", oddity.name())?,
            }
        }
        write!(f, ", {} grey, {} progressive", self.grey, self.progressive)
    }
}

/// Decodes every image of `split` whole, with `workers` threads.
pub fn check(split: &Split, workers: usize) -> Report {
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut part, mut findings) = (Report::default(), Vec::new());
        let (mut decoder, mut bytes) = (Decoder::default(), Vec::new());
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= split.len() {
                return (part, findings);
            }
            let odd = examine(split, i, &mut decoder, &mut bytes, &mut part);
            findings.extend(odd.into_iter().map(|(oddity, text)| (oddity, i, text)));
        }
    };
    let parts: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|t| t.join().expect("a panic on an image is caught")).collect()
    });
    let mut report = Report { images: split.len(), ..Report::default() };
    let mut findings = Vec::new();
    for (part, found) in parts {
        report.grey += part.grey;
        report.progressive += part.progressive;
        findings.extend(found);
    }
    findings.sort();
    let name = |(oddity, i, text): (Oddity, usize, String)| {
        let text = if oddity == Oddity::Unusable { text } else { format!("{}: {text}", split.name(i)) };
        Finding { oddity, text }
    };
    report.findings = findings.into_iter().map(name).collect();
    report
}

fn examine(
    split: &Split,
    i: usize,
    decoder: &mut Decoder,
    bytes: &mut Vec<u8>,
    counts: &mut Report,
) -> Vec<(Oddity, String)> {
    if let Err(error) = split.read_into(i, bytes) {
        return vec![(Oddity::Unusable, error.message)];
    }
    let unusable = |reason: String| vec![(Oddity::Unusable, format!("{}: {reason}", split.name(i)))];
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        let header = read_header(bytes, Limits::default())?;
        decoder.decode(bytes, &header, Rect::whole(header.height, header.width))?;
        Ok(header)
    }));
    let header = match decoded {
        Ok(Ok(header)) => header,
        Ok(Err(reason)) => return unusable(reason),
        Err(_) => {
            *decoder = Decoder::default();
            return unusable("the decoder panicked on it; move the file away, and report it".into());
        }
    };
    counts.grey += usize::from(header.channels <= 2);
    counts.progressive += usize::from(header.progressive);
    oddities(&header, &split.name(i))
}

fn oddities(header: &Header, name: &str) -> Vec<(Oddity, String)> {
    let mut odd = Vec::new();
    let extension = name.rsplit_once('.').map_or("", |(_, e)| e).to_ascii_lowercase();
    let named = match extension.as_str() {
        "jpg" | "jpeg" => Some(Format::Jpeg),
        "png" => Some(Format::Png),
        "webp" => Some(Format::WebP),
        _ => None,
    };
    let format = header.format.name();
    if named != Some(header.format) {
        odd.push((Oddity::Misnamed, format!("a {format} by its bytes")));
    }
    if header.format == Format::Jpeg && header.channels == 4 {
        odd.push((Oddity::Cmyk, "four inks, converted to RGB as Pillow does".into()));
    }
    if header.bits == 16 {
        odd.push((Oddity::SixteenBit, format!("a {format} of 16 bits a sample, reduced to 8")));
    }
    if let Some(orientation) = header.orientation.filter(|&o| o > 1) {
        odd.push((Oddity::Oriented, format!("orientation {orientation}, which is ignored")));
    }
    if header.width.min(header.height) > HUGE {
        odd.push((Oddity::Huge, format!("{} x {}", header.width, header.height)));
    }
    odd
}

/// Smallest, median and largest of a quantity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    pub min: u64,
    pub median: u64,
    pub max: u64,
}

impl Range {
    fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let at = |i: usize| values.get(i).copied().unwrap_or(0);
        Self { min: at(0), median: at(values.len() / 2), max: at(values.len().saturating_sub(1)) }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} / {} / {}", self.min, self.median, self.max)
    }
}

/// One split by its headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitInfo {
    pub name: String,
    pub images: usize,
    /// Images a class, by label.
    pub per_class: Vec<usize>,
    pub width: Range,
    pub height: Range,
    pub bytes: Range,
    pub total_bytes: u64,
    /// Images of each format.
    pub formats: BTreeMap<Format, usize>,
    /// Headers that could not be read.
    pub unreadable: usize,
}

/// What a data set holds. `Display` is what `engine data info` prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub splits: Vec<SplitInfo>,
    pub classes: Vec<Class>,
    pub decoder: &'static str,
}

/// Reads every header.
pub fn info(data: &Splits) -> Result<Info> {
    let splits = data.splits.iter().map(|(name, split)| split_info(name, split, data.classes.len()));
    Ok(Info { splits: splits.collect::<Result<_>>()?, classes: data.classes.clone(), decoder: JPEG_DECODER })
}

fn split_info(name: &str, split: &Split, classes: usize) -> Result<SplitInfo> {
    let mut per_class = vec![0; classes];
    let (mut widths, mut heights, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    let mut formats = BTreeMap::new();
    let mut bytes = Vec::new();
    for i in 0..split.len() {
        let class = per_class.get_mut(split.label(i) as usize);
        *class.ok_or_else(|| Error::input_file(split.name(i), "its label is beyond the classes"))? += 1;
        if split.read_into(i, &mut bytes).is_err() {
            continue;
        }
        if let Ok(header) = read_header(&bytes, Limits::default()) {
            widths.push(header.width as u64);
            heights.push(header.height as u64);
            sizes.push(bytes.len() as u64);
            *formats.entry(header.format).or_insert(0) += 1;
        }
    }
    Ok(SplitInfo {
        name: name.into(),
        images: split.len(),
        per_class,
        unreadable: split.len() - sizes.len(),
        total_bytes: sizes.iter().sum(),
        width: Range::of(widths),
        height: Range::of(heights),
        bytes: Range::of(sizes),
        formats,
    })
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for split in &self.splits {
            let SplitInfo { name, images, width, height, bytes, total_bytes, unreadable, .. } = split;
            let per_class = Range::of(split.per_class.iter().map(|&n| n as u64).collect());
            let formats: Vec<String> =
                split.formats.iter().map(|(k, n)| format!("{n} {}", k.name())).collect();
            writeln!(
                f,
                "{name}: {images} images ({}), {:.1} MB",
                formats.join(", "),
                *total_bytes as f64 / 1e6
            )?;
            writeln!(f, "  smallest / median / largest: width {width}, height {height}, bytes {bytes}")?;
            writeln!(f, "  images a class: {per_class}")?;
            if *unreadable > 0 {
                writeln!(f, "  {unreadable} headers could not be read: see `engine data check`")?;
            }
        }
        let n = self.classes.len();
        let first: Vec<&str> = self.classes.iter().take(3).map(|c| c.label.as_str()).collect();
        let more = if n > 3 { ", .." } else { "" };
        writeln!(f, "{n} classes: {}{more}", first.join(", "))?;
        write!(f, "JPEG decoder: {}", self.decoder)
    }
}
