//! The embedded data set: ten classes of drawn shapes and textures, written as real JPEG files in ImageFolder layout.
//!
//! A newcomer trains on it without a download. A linear classifier on the pixels fails on it (`bench/linear_baseline.rs`
//! measures that) and a convolutional network does not. Validation draws from ranges that training never sees:
//!
//! | | training | validation |
//! |---|---|---|
//! | hue, within each 60 degrees | 0-18 and 42-60 | 21-39 |
//! | rotation, within each third of the figure's symmetry angle | outer 30 % on either side | middle 30 % |
//! | diameter, share of the side | 0.55-0.66 and 0.74-0.85 | 0.67-0.73 |
//! | pixel noise, standard deviation in grey levels | 1.0-6.1 | 6.6-8.7 |
//! | lighting gradient, edge to edge | 0-30 % | 32-40 % |
//! | background | gradient, clouds, blotches | mosaic, marble |
//! | clutter | ellipses, sticks | hooks |
//!
//! A picture is a pure function of (seed, split, index): a set with more pictures begins with those of a smaller one. Sines
//! come from the system's mathematics library, so another processor or library may move a pixel by one grey level.

mod figure;
mod paint;
mod scene;

use crate::error::{Error, Result};
use crate::rng::{Purpose, Rng};
pub use figure::Class;
use jpeg_encoder::{ColorType, Encoder};
use scene::{Scene, Split};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Raised with every change of what is drawn, so that a folder of older pictures is not taken for a current one.
const GENERATOR_VERSION: u32 = 2;
const MARKER: &str = "synth.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SynthOptions {
    pub seed: u64,
    pub train_per_class: usize,
    pub val_per_class: usize,
    /// Side of the square pictures in pixels.
    pub size: usize,
    /// JPEG quality, 1 to 100.
    pub quality: u8,
}

impl Default for SynthOptions {
    fn default() -> Self {
        Self { seed: 0, train_per_class: 200, val_per_class: 40, size: 72, quality: 90 }
    }
}

impl fmt::Display for SynthOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, train_per_class, val_per_class, size, quality } = self;
        write!(
            f,
            "seed {seed}, {train_per_class} training and {val_per_class} validation pictures a class, {size} px, \
             quality {quality}"
        )
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub folder: PathBuf,
    pub train_images: usize,
    pub val_images: usize,
    pub bytes: u64,
    /// The folder held exactly this set already; nothing was written.
    pub reused: bool,
}

/// What a finished folder says about itself; written last, before the folder gets its name.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    generator: u32,
    options: SynthOptions,
    images: usize,
    bytes: u64,
}

/// Writes `{train,val}/<class>/NNNN.jpg` and `classes.txt` under `folder`, or finds them there.
///
/// The pictures are made in a sibling folder that is renamed when it is whole, so `folder` is never half written. A set
/// with other options, or a folder of other files, is refused and left alone; a damaged set with these options is redone.
pub fn write(folder: &Path, options: &SynthOptions) -> Result<Summary> {
    options.check()?;
    if let Some(bytes) = existing_set(folder, options)? {
        return Ok(options.summary(folder, bytes, true));
    }
    let partial = partial_name(folder)?;
    sweep_partials(&partial);
    let written = write_set(&partial, options).and_then(|bytes| {
        put_in_place(&partial, folder)?;
        Ok(options.summary(folder, bytes, false))
    });
    if written.is_err() {
        // The first error is the one to report; what cannot be removed now is swept by a later call.
        let _ = fs::remove_dir_all(&partial);
    }
    written
}

impl SynthOptions {
    fn check(&self) -> Result<()> {
        let require = |holds: bool, name: &str, got: usize, wanted: &str| match holds {
            true => Ok(()),
            false => Err(Error::usage(format!("synthetic data: {name} is {got}, wanted {wanted}"))),
        };
        require((16..=4096).contains(&self.size), "size", self.size, "16 to 4096 pixels")?;
        require((1..=100).contains(&self.quality), "quality", self.quality.into(), "1 to 100")?;
        for (name, count) in
            [("train_per_class", self.train_per_class), ("val_per_class", self.val_per_class)]
        {
            require((1..=100_000).contains(&count), name, count, "1 to 100000 pictures")?;
        }
        Ok(())
    }

    fn images(&self) -> usize {
        Class::ALL.len() * (self.train_per_class + self.val_per_class)
    }

    fn summary(&self, folder: &Path, bytes: u64, reused: bool) -> Summary {
        let classes = Class::ALL.len();
        Summary {
            folder: folder.to_path_buf(),
            train_images: classes * self.train_per_class,
            val_images: classes * self.val_per_class,
            bytes,
            reused,
        }
    }
}

/// The JPEG of picture `index` of a class in a split.
fn encode_picture(options: &SynthOptions, split: Split, class: Class, index: usize) -> Result<Vec<u8>> {
    let sample = (index * Class::ALL.len() + class as usize) as u64;
    let mut rng = Rng::new(options.seed, split as u64, sample, Purpose::Synth);
    let scene = Scene::draw(&mut rng, split, class);
    let pixels = paint::paint(&scene, options.size, &mut rng);
    let mut jpeg = Vec::new();
    let side = options.size as u16;
    Encoder::new(&mut jpeg, options.quality)
        .encode(&pixels, side, side, ColorType::Rgb)
        .map_err(|e| Error::failed(format!("cannot encode picture {index} of {}: {e}", class.id())))?;
    Ok(jpeg)
}

/// Writes the whole set under `folder` and returns its size in bytes.
fn write_set(folder: &Path, options: &SynthOptions) -> Result<u64> {
    let mut bytes = 0;
    for (split, name, count) in
        [(Split::Train, "train", options.train_per_class), (Split::Val, "val", options.val_per_class)]
    {
        for class in Class::ALL {
            let class_folder = folder.join(name).join(class.id());
            fs::create_dir_all(&class_folder).map_err(|e| Error::output_file(&class_folder, "create", &e))?;
            for index in 0..count {
                let jpeg = encode_picture(options, split, class, index)?;
                bytes += jpeg.len() as u64;
                write_file(&class_folder.join(format!("{index:04}.jpg")), &jpeg)?;
            }
        }
    }
    let labels: String = Class::ALL.iter().map(|c| format!("{}\t{}\n", c.id(), c.label())).collect();
    write_file(&folder.join("classes.txt"), labels.as_bytes())?;
    let marker =
        Marker { generator: GENERATOR_VERSION, options: options.clone(), images: options.images(), bytes };
    let text = serde_json::to_string_pretty(&marker).expect("a struct of numbers becomes JSON") + "\n";
    write_file(&folder.join(MARKER), text.as_bytes())?;
    Ok(bytes)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| Error::output_file(path, "write", &e))
}

/// The size of the set that `folder` holds already, `None` where a set is to be written, or a refusal.
fn existing_set(folder: &Path, options: &SynthOptions) -> Result<Option<u64>> {
    let shown = folder.display();
    let is_empty = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => true,
        Err(e) => return Err(Error::output_file(folder, "use", &e)),
    };
    if is_empty {
        return Ok(None);
    }
    let marker = fs::read_to_string(folder.join(MARKER)).ok();
    let Some(marker) = marker.and_then(|text| serde_json::from_str::<Marker>(&text).ok()) else {
        return Err(Error::usage(format!(
            "{shown} is not empty and holds no synthetic data set ({MARKER} is missing or unreadable); \
             choose another folder"
        )));
    };
    if (marker.generator, &marker.options) != (GENERATOR_VERSION, options) {
        return Err(Error::usage(format!(
            "{shown} holds another synthetic data set ({}; generator {}) than the one asked for ({options}; generator \
             {GENERATOR_VERSION}); choose another folder or delete this one",
            marker.options, marker.generator
        )));
    }
    let found = count_images(folder);
    Ok((found == (marker.images, marker.bytes)).then_some(marker.bytes))
}

/// Number and total size of the pictures in their places; what cannot be read counts as missing.
fn count_images(folder: &Path) -> (usize, u64) {
    let mut found = (0, 0);
    for split in ["train", "val"] {
        for class in Class::ALL {
            let entries = fs::read_dir(folder.join(split).join(class.id())).into_iter().flatten().flatten();
            for size in entries.filter_map(|entry| entry.metadata().ok()).map(|data| data.len()) {
                found = (found.0 + 1, found.1 + size);
            }
        }
    }
    found
}

/// `.NAME.partial-PID` beside `folder`: the same file system, and no two processes share it.
fn partial_name(folder: &Path) -> Result<PathBuf> {
    let name = folder.file_name().ok_or_else(|| {
        Error::usage(format!("{}: not the name of a folder to write data to", folder.display()))
    })?;
    Ok(folder.with_file_name(format!(".{}.partial-{}", name.to_string_lossy(), std::process::id())))
}

/// Removes what killed runs left beside the target: partial folders that nobody has touched for ten minutes.
fn sweep_partials(partial: &Path) {
    let _ = fs::remove_dir_all(partial);
    let name = partial.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let parent = partial.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_partial = entry.file_name().to_string_lossy().starts_with(prefix);
        let touched = entry.metadata().and_then(|data| data.modified());
        let age = touched.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        if is_partial && age.is_some_and(|age| age > Duration::from_secs(600)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Gives the finished set its name. A damaged set of the same options is moved aside first.
fn put_in_place(partial: &Path, folder: &Path) -> Result<()> {
    let rename = || fs::rename(partial, folder);
    if rename().is_ok() {
        return Ok(());
    }
    if folder.join(MARKER).exists() {
        let old = partial.with_extension("old");
        fs::rename(folder, &old).map_err(|e| Error::output_file(folder, "replace", &e))?;
        let _ = fs::remove_dir_all(&old);
    }
    rename().map_err(|e| Error::output_file(folder, "create", &e))
}

#[cfg(test)]
mod tests;
