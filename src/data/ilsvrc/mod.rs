//! ILSVRC2012 as image-net.org gives it, read in place: the training archive is a tar of one tar a class, the validation
//! archive a flat tar whose labels are in the development kit.
//!
//! The kit's ground truth counts in ILSVRC ids, which are not in the order of the wnids; its `meta.mat` says which wnid
//! each one is. `datasets/prepare_imagenet.sh` unpacks by the same rules.

mod meta;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::listing::{Entry, Listing};
use super::shard::{Member, Shard, is_image};
use crate::error::{Error, Result};

const TRAIN: &str = "ILSVRC2012_img_train.tar";
const VAL: &str = "ILSVRC2012_img_val.tar";
const DEVKIT: &str = "ILSVRC2012_devkit_t12.tar.gz";
/// Lines of `ILSVRC id TAB wnid TAB words`, taken instead of the kit's meta.mat where it is there.
const SYNSETS: &str = "synsets.tsv";

pub(super) struct Synset {
    /// From 1.
    pub id: usize,
    pub wnid: String,
    pub words: String,
}

/// Whether a folder holds one of the archives.
pub(super) fn is_in(folder: &Path) -> bool {
    [TRAIN, VAL].iter().any(|name| folder.join(name).is_file())
}

/// Train and val as far as their archives are there, and `wnid TAB words` lines where the kit is.
pub(super) fn list(folder: &Path) -> Result<([Option<Listing>; 2], Option<String>)> {
    let kit = folder.join(DEVKIT);
    let kit = if kit.is_file() { Some(Kit::read(&kit, folder)?) } else { None };
    let train = folder.join(TRAIN);
    let train = if train.is_file() { Some(list_train(&train)?) } else { None };
    let val = folder.join(VAL);
    let val = match (&kit, val.is_file()) {
        (Some(kit), true) => Some(list_val(&val, kit)?),
        (None, true) => {
            let reason = format!("{DEVKIT} is not beside it, and holds its labels; download it as well");
            return Err(Error::input_file(val, reason));
        }
        (_, false) => None,
    };
    let names = kit.map(|kit| kit.synsets.iter().map(|s| format!("{}\t{}\n", s.wnid, s.words)).collect());
    Ok(([train, val], names))
}

/// The inner tars are listed by several threads: there are 1.3 million headers, each a read of its own.
fn list_train(path: &Path) -> Result<Listing> {
    let outer = Shard::open(path)?;
    let classes: Vec<(&str, &Member)> = outer
        .members
        .iter()
        .map(|member| match member.name.strip_suffix(".tar") {
            Some(wnid) => Ok((wnid.rsplit('/').next().unwrap_or(wnid), member)),
            None => {
                let reason = format!("holds '{}', wanted one <wnid>.tar a class", member.name);
                Err(Error::input_file(path, reason))
            }
        })
        .collect::<Result<_>>()?;
    let next = AtomicUsize::new(0);
    let work = || {
        let mut listed = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some((_, member)) = classes.get(i) else { return listed };
            listed.push((i, outer.inner(member)));
        }
    };
    let inner: Vec<(usize, Result<Vec<Member>>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..super::available_workers()).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("listing does not panic")).collect()
    });
    let mut by_class: Vec<(&str, Vec<Member>)> =
        inner.into_iter().map(|(i, members)| Ok((classes[i].0, members?))).collect::<Result<_>>()?;
    by_class.sort_by(|a, b| a.0.cmp(b.0));
    let mut listing = Listing { places: vec![(path.into(), true)], ..Listing::default() };
    for ((wnid, mut members), class) in by_class.into_iter().zip(0..) {
        members.retain(|member| !member.folder && is_image(&member.name));
        members.sort_by(|a, b| a.name.cmp(&b.name));
        if members.is_empty() {
            return Err(Error::input_file(path, format!("its member {wnid}.tar holds no images")));
        }
        listing.classes.push(wnid.to_owned());
        listing.entries.extend(members.into_iter().map(|member| Entry {
            class,
            place: 0,
            name: format!("{wnid}.tar/{}", member.name),
            offset: member.offset,
            len: member.len,
        }));
    }
    Ok(listing)
}

fn list_val(path: &Path, kit: &Kit) -> Result<Listing> {
    let shard = Shard::open(path)?;
    let bad = |reason: String| Error::input_file(path, reason);
    let mut entries = Vec::new();
    for member in shard.members.iter().filter(|member| !member.folder && is_image(&member.name)) {
        let number = val_number(&member.name).ok_or_else(|| {
            bad(format!("holds '{}', wanted ILSVRC2012_val_00000001.JPEG and so on", member.name))
        })?;
        let wnid = kit.val.get(number - 1).ok_or_else(|| {
            bad(format!(
                "holds '{}', and the ground truth in {DEVKIT} has {} lines",
                member.name,
                kit.val.len()
            ))
        })?;
        entries.push((wnid.as_str(), member));
    }
    if entries.len() != kit.val.len() {
        let (images, lines) = (entries.len(), kit.val.len());
        return Err(bad(format!(
            "holds {images} images, and the ground truth in {DEVKIT} has {lines} lines"
        )));
    }
    entries.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    let mut listing = Listing { places: vec![(path.into(), true)], ..Listing::default() };
    for (wnid, member) in entries {
        if listing.classes.last().is_none_or(|last| last != wnid) {
            listing.classes.push(wnid.to_owned());
        }
        listing.entries.push(Entry {
            class: listing.classes.len() as u32 - 1,
            place: 0,
            name: member.name.clone(),
            offset: member.offset,
            len: member.len,
        });
    }
    Ok(listing)
}

/// The number in a name that holds `ILSVRC2012_val_00000001`, from 1: also in a packed one.
pub fn val_number(name: &str) -> Option<usize> {
    let (_, rest) = name.rsplit_once("ILSVRC2012_val_")?;
    rest.get(..8)?.parse().ok().filter(|&number| number > 0)
}

/// What the development kit says.
struct Kit {
    synsets: Vec<Synset>,
    /// The wnid of each validation image, in the order of their numbers.
    val: Vec<String>,
}

impl Kit {
    fn read(path: &Path, folder: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::input_file(path, format!("cannot read it: {e}")))?;
        let bad = |reason: String| Error::input_file(path, reason);
        let damaged = |e: std::io::Error| bad(format!("cannot be unpacked: {e}; fetch it again"));
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
        let (mut truth, mut mat) = (None, None);
        for entry in archive.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let wanted = match name.rsplit('/').next() {
                Some("ILSVRC2012_validation_ground_truth.txt") => &mut truth,
                Some("meta.mat") => &mut mat,
                _ => continue,
            };
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(damaged)?;
            *wanted = Some(bytes);
        }
        let lacks = |what: &str| bad(format!("holds no {what}; this is not the devkit of tasks 1 and 2"));
        let truth = truth.ok_or_else(|| lacks("ILSVRC2012_validation_ground_truth.txt"))?;
        let list = folder.join(SYNSETS);
        let synsets = if list.is_file() {
            read_synsets(&list)?
        } else {
            let mat = mat.ok_or_else(|| lacks("meta.mat"))?;
            let reason =
                |reason| bad(format!("its meta.mat cannot be read: {reason}; put {SYNSETS} beside it"));
            meta::synsets(&mat).map_err(reason)?
        };
        let by_id: HashMap<usize, &str> = synsets.iter().map(|s| (s.id, s.wnid.as_str())).collect();
        let wnid = |(line, text): (usize, &str)| {
            let wnid = text.trim().parse().ok().and_then(|id: usize| by_id.get(&id));
            wnid.map(|wnid| (*wnid).to_owned()).ok_or_else(|| {
                bad(format!(
                    "line {} of its ground truth is '{text}', which is no class of meta.mat",
                    line + 1
                ))
            })
        };
        let text = String::from_utf8_lossy(&truth).into_owned();
        let val = text.lines().enumerate().map(wnid).collect::<Result<_>>()?;
        Ok(Self { synsets, val })
    }
}

fn read_synsets(path: &Path) -> Result<Vec<Synset>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::unreadable(path, &e, "lines of `ILSVRC id TAB wnid TAB words`"))?;
    let line = |(number, line): (usize, &str)| {
        let mut parts = line.split('\t');
        let (id, wnid, words) = (parts.next(), parts.next(), parts.next());
        match (id.and_then(|id| id.parse().ok()), wnid, words, parts.next()) {
            (Some(id), Some(wnid), Some(words), None) => {
                Ok(Synset { id, wnid: wnid.to_owned(), words: words.to_owned() })
            }
            _ => {
                let reason = format!("line {} is not 'ILSVRC id TAB wnid TAB words'", number + 1);
                Err(Error::input_file(path, reason))
            }
        }
    };
    text.lines().enumerate().map(line).collect()
}
