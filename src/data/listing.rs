//! The images of one split, as found in a folder or in tars, sorted by class and name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::shard::{Member, Shard, is_hidden, is_image, is_webdataset, webdataset};
use crate::error::{Error, Result};

#[derive(Debug)]
pub(crate) struct Entry {
    /// Position in `Listing::classes`, or the number itself.
    pub class: u32,
    pub place: u32,
    pub name: String,
    pub offset: u64,
    pub len: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Folder, or tar (true).
    pub places: Vec<(PathBuf, bool)>,
    /// Sorted; empty where classes are numbers.
    pub classes: Vec<String>,
    pub entries: Vec<Entry>,
    pub numbered: bool,
}

/// Class folders below `root`, each searched to any depth, in the order of torchvision's ImageFolder.
pub(crate) fn list_folder(root: &Path) -> Result<Listing> {
    let mut listing = Listing { places: vec![(root.into(), false)], ..Default::default() };
    let (folders, _) = read_folder(root)?;
    for class in folders {
        let mut found = Vec::new();
        walk(root, &class, &mut found)?;
        if found.is_empty() {
            let reason = "a class folder without images (jpg, jpeg, png, webp); remove it or fill it";
            return Err(Error::input_file(root.join(&class), reason));
        }
        found.sort();
        let number = listing.classes.len() as u32;
        listing.entries.extend(found.into_iter().map(|(folder, file)| {
            let name = format!("{folder}/{file}");
            Entry { class: number, place: 0, name, offset: 0, len: 0 }
        }));
        listing.classes.push(class);
    }
    if listing.classes.is_empty() {
        let reason = "no class folders in it; expected <class>/image.jpg, one folder a class";
        return Err(Error::input_file(root, reason));
    }
    Ok(listing)
}

/// Images that lie in `folder` itself, sorted.
pub(crate) fn loose_images(folder: &Path) -> Result<Vec<PathBuf>> {
    let (_, files) = read_folder(folder)?;
    Ok(files.into_iter().filter(|file| is_image(file)).map(|file| folder.join(file)).collect())
}

/// Adds (folder, file) of each image at or below `root/folder`.
fn walk(root: &Path, folder: &str, found: &mut Vec<(String, String)>) -> Result<()> {
    let (folders, files) = read_folder(&root.join(folder))?;
    found.extend(files.into_iter().filter(|f| is_image(f)).map(|f| (folder.to_string(), f)));
    folders.iter().try_for_each(|inner| walk(root, &format!("{folder}/{inner}"), found))
}

/// Sorted names of the folders and of the files in a folder, links followed, hidden folders left out.
fn read_folder(path: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let bad = |e: std::io::Error| Error::input_file(path, format!("cannot list it: {e}"));
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path).map_err(bad)? {
        let entry = entry.map_err(bad)?;
        let mut kind = entry.file_type().map_err(bad)?;
        if kind.is_symlink() {
            let Ok(target) = entry.path().metadata() else { continue };
            kind = target.file_type();
        }
        let name = entry.file_name().into_string().map_err(|name| {
            let reason = format!("the name {} is not UTF-8; rename the file", name.to_string_lossy());
            Error::input_file(path, reason)
        })?;
        if kind.is_dir() && !is_hidden(&name) {
            folders.push(name);
        } else if kind.is_file() {
            files.push(name);
        }
    }
    folders.sort();
    files.sort();
    Ok((folders, files))
}

/// The part of a tar below a folder of one of these `names`; `None` where it has no such folder.
pub(crate) fn list_tar_part(shard: &Shard, names: &[&str]) -> Result<Option<Listing>> {
    let below = |member: &Member| {
        let mut at = 0;
        for part in member.name.split('/') {
            at += part.len() + 1;
            if names.contains(&part) {
                return member.name.get(at..).map(|_| at);
            }
        }
        None
    };
    let members: Vec<(u32, &Member, usize)> =
        shard.members.iter().filter_map(|m| Some((0, m, below(m)?))).collect();
    if members.is_empty() {
        return Ok(None);
    }
    let part = format!("{} ({})", shard.path.display(), names[0]);
    let places = vec![(shard.path.clone(), true)];
    class_folders(&part, places, members).map(Some)
}

/// Tars of one split: all of class folders, or all WebDataset.
pub(crate) fn list_shards(shards: Vec<Shard>) -> Result<Listing> {
    let places: Vec<(PathBuf, bool)> = shards.iter().map(|s| (s.path.clone(), true)).collect();
    let numbered = shards.iter().filter(|s| is_webdataset(&s.members)).count();
    if numbered > 0 {
        return list_webdataset(&shards, places);
    }
    let part = match &places[..] {
        [] => String::new(),
        [(one, _)] => one.display().to_string(),
        [(first, _), ..] => format!("{} and {} more", first.display(), places.len() - 1),
    };
    let all = || shards.iter().zip(0..).flat_map(|(s, i)| s.members.iter().map(move |m| (i, m)));
    if let Some((_, inner)) = all().find(|(_, m)| m.name.ends_with(".tar")) {
        return Err(Error::input_file(
            part,
            format!(
                "a tar of tars ({}), as ImageNet's training archive is: unpack each into a folder of its name",
                inner.name
            ),
        ));
    }
    let images = || all().filter(|(_, m)| !m.folder && is_image(&m.name) && !in_hidden(&m.name));
    let shared = shared_folders(images().map(|(_, m)| m.name.as_str()));
    let members = all().filter(|(_, m)| m.name.len() > shared).map(|(i, m)| (i, m, shared)).collect();
    class_folders(&part, places, members)
}

fn in_hidden(name: &str) -> bool {
    let folders = name.rsplit_once('/').map_or("", |(folders, _)| folders);
    folders.split('/').any(is_hidden)
}

/// How many bytes of folders stand in front of the class folder: those that all images share, except that the last
/// one is the class where an image lies directly in it (a shard of a single class).
fn shared_folders<'a>(mut names: impl Iterator<Item = &'a str>) -> usize {
    let folders = |name: &'a str| name.rsplit_once('/').map_or("", |(folders, _)| folders).split('/');
    let Some(first) = names.next() else { return 0 };
    let mut shared: Vec<&str> = folders(first).collect();
    let mut shallowest = shared.len();
    for name in names {
        let equal = shared.iter().zip(folders(name)).take_while(|(a, b)| **a == *b).count();
        shared.truncate(equal);
        shallowest = shallowest.min(folders(name).count());
    }
    if shallowest == shared.len() {
        shared.pop();
    }
    shared.iter().map(|part| part.len() + 1).sum()
}

/// Members with the place where `<class>/..` begins in their names.
fn class_folders(
    part: &str,
    places: Vec<(PathBuf, bool)>,
    members: Vec<(u32, &Member, usize)>,
) -> Result<Listing> {
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let mut folders: Vec<&str> = Vec::new();
    let mut entries = Vec::new();
    for (place, member, at) in members {
        let inner = &member.name[at..];
        if member.folder {
            if !inner.contains('/') && !is_hidden(inner) {
                folders.push(inner);
            }
        } else if let (true, Some((class, _))) = (is_image(inner) && !in_hidden(inner), inner.split_once('/'))
        {
            let next = numbers.len() as u32;
            let class = *numbers.entry(class).or_insert(next);
            entries.push(Entry {
                class,
                place,
                name: member.name.clone(),
                offset: member.offset,
                len: member.len,
            });
        }
    }
    if entries.is_empty() {
        let reason =
            "no images in class folders in it; expected <class>/image.jpg, or image.jpg and image.cls";
        return Err(Error::input_file(part, reason));
    }
    if let Some(empty) = folders.iter().find(|f| !numbers.contains_key(*f)) {
        let reason = format!("its class folder {empty} has no images (jpg, jpeg, png, webp)");
        return Err(Error::input_file(part, reason));
    }
    let mut classes: Vec<&str> = numbers.keys().copied().collect();
    classes.sort_unstable();
    let mut rank = vec![0; classes.len()];
    for (class, position) in classes.iter().zip(0..) {
        rank[numbers[class] as usize] = position;
    }
    for entry in &mut entries {
        entry.class = rank[entry.class as usize];
    }
    // Folder before file, as in `list_folder`.
    entries.sort_by(|a, b| (a.class, a.name.rsplit_once('/')).cmp(&(b.class, b.name.rsplit_once('/'))));
    let classes = classes.into_iter().map(String::from).collect();
    Ok(Listing { places, classes, entries, numbered: false })
}

fn list_webdataset(shards: &[Shard], places: Vec<(PathBuf, bool)>) -> Result<Listing> {
    let mut listing = Listing { places, numbered: true, ..Default::default() };
    for (shard, place) in shards.iter().zip(0..) {
        let labelled = webdataset(shard)?;
        if labelled.is_empty() {
            return Err(Error::input_file(&shard.path, "no images in it (jpg, jpeg, png, webp)"));
        }
        listing.entries.extend(labelled.into_iter().map(|l| Entry {
            class: l.label,
            place,
            name: l.member.name.clone(),
            offset: l.member.offset,
            len: l.member.len,
        }));
    }
    Ok(listing)
}
