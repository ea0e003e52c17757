//! DATA_DIR -> two splits and their classes.
//!
//! | form | example |
//! |---|---|
//! | class folders | `D/train/<class>/x.jpg`, `D/val/<class>/y.jpg` |
//! | shards | `D/train*.tar`, `D/val*.tar`: tars of class folders, or WebDataset |
//! | one tar | `train/<class>/..` and `val/<class>/..` inside, under one folder or none |
//! | image-net.org's archives | `D/ILSVRC2012_img_train.tar`, `_img_val.tar` and `_devkit_t12.tar.gz` (`ilsvrc`) |
//!
//! `validation` stands for `val` everywhere. Classes are numbered in the order of their sorted names, as by
//! torchvision's ImageFolder, and take their labels from `classes.txt` (`id TAB label`) where there is one; in
//! WebDataset the numbers are in the shards and `classes.txt` names them line by line.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ilsvrc;
use super::listing::{Entry, Listing, list_folder, list_shards, list_tar_part, loose_images};
use super::shard::Shard;
use super::split::Split;
use crate::error::{Error, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// The folder's name, `n01440764`; in WebDataset without `classes.txt`, the number.
    pub id: String,
    /// What people read; the id where nothing says more.
    pub label: String,
}

/// Two splits over the same classes.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub train: Arc<Split>,
    pub val: Arc<Split>,
    pub classes: Vec<Class>,
}

/// Every split that a path holds, for tools that only read: one of the name `all` where it is not divided.
#[derive(Debug, Clone)]
pub struct Splits {
    pub splits: Vec<(String, Arc<Split>)>,
    pub classes: Vec<Class>,
}

/// ImageNet-22k has 21,841 classes; a larger number than this is an id in the place of a class.
const LARGEST_CLASS: u32 = 99_999;

const EXPECTED: &str = "expected train/<class>/ and val/<class>/ folders, train*.tar and val*.tar, or one tar with \
                        train/ and val/ inside";

impl Dataset {
    pub fn open(path: &Path) -> Result<Self> {
        let (halves, names) = find(path)?;
        let [Some(train), Some(val)] = halves else {
            return Err(missing_half(path, &halves));
        };
        let classes = classes_of(&[&train, &val], path, names.as_deref())?;
        check_same_classes(path, &train, &val)?;
        Ok(Self {
            train: Arc::new(to_split(train, &classes)?),
            val: Arc::new(to_split(val, &classes)?),
            classes,
        })
    }
}

impl Splits {
    /// Like [`Dataset::open`], and also takes class folders (or a tar of them) that are not divided, or one half.
    pub fn open(path: &Path) -> Result<Self> {
        let (mut halves, names) = find(path)?;
        let mut found: Vec<(String, Listing)> = Vec::new();
        for (half, name) in halves.iter_mut().zip(["train", "val"]) {
            found.extend(half.take().map(|listing| (name.into(), listing)));
        }
        if found.is_empty() {
            let listing =
                if path.is_dir() { list_folder(path)? } else { list_shards(vec![Shard::open(path)?])? };
            found.push(("all".into(), listing));
        }
        let listings: Vec<&Listing> = found.iter().map(|(_, listing)| listing).collect();
        let classes = classes_of(&listings, path, names.as_deref())?;
        let splits = found
            .into_iter()
            .map(|(name, listing)| Ok((name, Arc::new(to_split(listing, &classes)?))))
            .collect::<Result<_>>()?;
        Ok(Self { splits, classes })
    }
}

/// Images for a tool that asks for no labels: the training half of what [`Splits::open`] takes, all of it where it is not
/// divided, or the images that lie in the folder itself.
pub fn unlabelled(path: &Path) -> Result<Arc<Split>> {
    if path.is_dir() {
        let loose = loose_images(path)?;
        if !loose.is_empty() {
            return Ok(Arc::new(Split::from_files(loose.into_iter().map(|file| (file, 0)))));
        }
    }
    let splits = Splits::open(path)?.splits.into_iter();
    // "train" comes first where it is there.
    let first = splits.map(|(_, split)| split).next();
    first.ok_or_else(|| Error::input_file(path, "has no images"))
}

/// Train and val as far as they are there, and the text of `classes.txt`.
fn find(path: &Path) -> Result<([Option<Listing>; 2], Option<String>)> {
    let meta = path.metadata().map_err(|e| {
        Error::input_file(path, format!("cannot read the data: {e}; {EXPECTED} (--data or DATA_DIR)"))
    })?;
    if !meta.is_dir() {
        return find_in_tar(path);
    }
    if ilsvrc::is_in(path) {
        return ilsvrc::list(path);
    }
    let half = |names: [&str; 2]| -> Result<Option<Listing>> {
        if let Some(folder) = names.iter().map(|n| path.join(n)).find(|p| p.is_dir()) {
            return list_folder(&folder).map(Some);
        }
        let tars = tars_named(path, names[0])?;
        if tars.is_empty() {
            return Ok(None);
        }
        list_shards(tars.iter().map(|t| Shard::open(t)).collect::<Result<_>>()?).map(Some)
    };
    let names = std::fs::read_to_string(path.join("classes.txt")).ok();
    Ok(([half(["train", "train"])?, half(["val", "validation"])?], names))
}

fn find_in_tar(path: &Path) -> Result<([Option<Listing>; 2], Option<String>)> {
    let shard = Shard::open(path)?;
    let names = shard.members.iter().find(|m| {
        m.name == "classes.txt" || (m.name.ends_with("/classes.txt") && m.name.matches('/').count() == 1)
    });
    let names = names.map(|m| shard.text(m)).transpose()?;
    Ok(([list_tar_part(&shard, &["train"])?, list_tar_part(&shard, &["val", "validation"])?], names))
}

/// `prefix*.tar` in `path`, sorted. `val` also finds `validation*.tar`; compressed ones are found, to be refused.
fn tars_named(path: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(path).map_err(|e| Error::input_file(path, format!("cannot list it: {e}")))?;
    let mut tars: Vec<PathBuf> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| {
            let name = p.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let tar = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz"].iter().any(|e| name.ends_with(e));
            name.starts_with(prefix) && tar && p.is_file()
        })
        .collect();
    tars.sort();
    Ok(tars)
}

fn missing_half(path: &Path, halves: &[Option<Listing>; 2]) -> Error {
    let found = match halves {
        [Some(_), None] => "train is there, val is not".to_string(),
        [None, Some(_)] => "val is there, train is not".to_string(),
        _ => format!("neither train nor val is in it, {}", what_is_there(path)),
    };
    Error::input_file(path, format!("{found}; {EXPECTED}"))
}

fn what_is_there(path: &Path) -> String {
    let mut names: Vec<String> = if path.is_dir() {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    } else {
        match list_shards(Shard::open(path).into_iter().collect()) {
            Ok(listing) => listing.classes,
            Err(_) => Vec::new(),
        }
    };
    names.sort();
    let more = if names.len() > 3 { ", .." } else { "" };
    match names.len() {
        0 => "it is empty".into(),
        n => format!("but {n} entries ({}{more})", names[..n.min(3)].join(", ")),
    }
}

fn classes_of(listings: &[&Listing], path: &Path, names: Option<&str>) -> Result<Vec<Class>> {
    let named: Vec<(String, String)> = names
        .unwrap_or("")
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let (id, label) = line.split_once('\t').unwrap_or((line, line));
            (id.trim().to_string(), label.trim().to_string())
        })
        .collect();
    if listings.iter().any(|l| l.numbered) {
        return numbered_classes(listings, path, &named);
    }
    let labels: HashMap<&str, &str> = named.iter().map(|(id, label)| (id.as_str(), label.as_str())).collect();
    let ids: BTreeSet<&str> = listings.iter().flat_map(|l| l.classes.iter().map(String::as_str)).collect();
    Ok(ids
        .into_iter()
        .map(|id| Class { id: id.into(), label: labels.get(id).copied().unwrap_or(id).into() })
        .collect())
}

/// Classes 0 to the largest number met; a `classes.txt` names them line by line.
fn numbered_classes(listings: &[&Listing], path: &Path, named: &[(String, String)]) -> Result<Vec<Class>> {
    if !listings.iter().all(|l| l.numbered) {
        let reason = "one of train and val is WebDataset (classes by number), the other has class folders; both \
                      must be of one kind";
        return Err(Error::input_file(path, reason));
    }
    let largest = listings.iter().flat_map(|l| l.entries.iter().map(|e| e.class)).max().unwrap_or(0);
    if largest > LARGEST_CLASS {
        let reason =
            format!("its shards have class {largest}; class numbers count from 0 to {LARGEST_CLASS}");
        return Err(Error::input_file(path, reason));
    }
    let count = largest as usize + 1;
    if named.is_empty() {
        return Ok((0..count).map(|n| Class { id: n.to_string(), label: n.to_string() }).collect());
    }
    if named.len() < count {
        let lines = named.len();
        let reason = format!("classes.txt names {lines} classes, and the shards have class {largest}");
        return Err(Error::input_file(path, reason));
    }
    Ok(named.iter().map(|(id, label)| Class { id: id.clone(), label: label.clone() }).collect())
}

/// ImageFolder numbers each half on its own, so a class that one half lacks would shift the labels unseen.
fn check_same_classes(path: &Path, train: &Listing, val: &Listing) -> Result<()> {
    let set = |l: &Listing| l.classes.iter().cloned().collect::<BTreeSet<_>>();
    let (train_set, val_set) = (set(train), set(val));
    for (only, has, lacks) in [
        (train_set.difference(&val_set).next(), "train", "val"),
        (val_set.difference(&train_set).next(), "val", "train"),
    ] {
        if let Some(class) = only {
            let (t, v) = (train_set.len(), val_set.len());
            return Err(Error::input_file(
                path,
                format!("train has {t} classes and val has {v}: {has} has {class} and {lacks} does not"),
            ));
        }
    }
    let largest = |l: &Listing| l.entries.iter().map(|e| e.class).max();
    if train.numbered && largest(val) > largest(train) {
        let (t, v) = (largest(train).unwrap_or(0), largest(val).unwrap_or(0));
        return Err(Error::input_file(path, format!("val has class {v}, and train's largest is {t}")));
    }
    Ok(())
}

/// Entries in their final order, labelled by the position of their class in `classes`.
fn to_split(listing: Listing, classes: &[Class]) -> Result<Split> {
    let mut split = Split::default();
    for (place, tar) in listing.places {
        if tar {
            split.add_tar(place)?
        } else {
            split.add_folder(place)
        };
    }
    let position: HashMap<&str, u32> = classes.iter().zip(0..).map(|(c, i)| (c.id.as_str(), i)).collect();
    for Entry { class, place, name, offset, len } in listing.entries {
        let label = if listing.numbered { class } else { position[listing.classes[class as usize].as_str()] };
        split.push(place, label, &name, offset, len);
    }
    Ok(split)
}
