//! One object of any size, up and down, with its digest beside it.

use super::client::{Answer, Client, DIGEST_HEADER, Failure, Headers, text};
use super::retry::{Patience, retry};
use crate::base64::{self, hex};
use md5::Md5;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Objects above it go in parts of it. S3 wants at least 5 MiB a part, and 10,000 parts at most.
pub const PART: u64 = 16 << 20;
/// Parts under way at a time: one stream to S3 is slower than the network of an instance.
const STREAMS: usize = 4;

/// So many whole answers with a wrong digest: it is the object that is damaged, and not the way.
const DAMAGED: u32 = 3;

/// The header by which a server refuses bytes that changed on the way.
const CHECKSUM_HEADER: &str = "x-amz-checksum-sha256";

/// What an object holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Content {
    pub bytes: u64,
    /// SHA-256 in hex.
    pub sha256: String,
}

impl Content {
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)) }
    }

    /// Of the file as it is now: what is appended later does not count.
    pub fn of_file(file: &File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        let (mut hash, mut at) = (Sha256::new(), 0);
        let mut buffer = vec![0; 1 << 20];
        while at < bytes {
            let piece = &mut buffer[..(bytes - at).min(1 << 20) as usize];
            file.read_exact_at(piece, at)?;
            hash.update(&piece);
            at += piece.len() as u64;
        }
        Ok(Self { bytes, sha256: hex(&hash.finalize()) })
    }
}

/// Puts `content` of `file` under `key`, whatever was there.
pub fn upload(client: &Client, key: &str, file: &File, content: &Content, patience: &Patience) -> Answer<()> {
    if content.bytes <= PART {
        let bytes = piece(file, 0, content.bytes)?;
        return put(client, key, &bytes, &vec![], patience);
    }
    loop {
        match upload_in_parts(client, key, file, content, patience) {
            // The upload is gone. Perhaps because it ended, and the answer that said so was lost.
            Err(Failure::Absent) if retry(patience, || is_there(client, key, content))? => return Ok(()),
            Err(Failure::Absent) if !patience.is_over() => {}
            outcome => return outcome,
        }
    }
}

/// Puts `bytes` under `key`; `condition` may have an `if-match` or `if-none-match`.
pub fn put(client: &Client, key: &str, bytes: &[u8], condition: &Headers, patience: &Patience) -> Answer<()> {
    let (mut headers, digest) = (condition.clone(), Sha256::digest(bytes));
    headers.push((CHECKSUM_HEADER, base64::encode(&digest)));
    headers.push((DIGEST_HEADER, hex(&digest)));
    retry(patience, || client.put(key, &headers, bytes))
}

fn is_there(client: &Client, key: &str, content: &Content) -> Answer<bool> {
    match client.head(key) {
        Ok(answer) => {
            Ok(answer.headers().get(DIGEST_HEADER).is_some_and(|digest| digest == content.sha256.as_str()))
        }
        Err(Failure::Absent) => Ok(false),
        Err(failure) => Err(failure),
    }
}

fn piece(file: &File, at: u64, bytes: u64) -> Answer<Vec<u8>> {
    let mut piece = vec![0; bytes as usize];
    match file.read_exact_at(&mut piece, at) {
        Ok(()) => Ok(piece),
        Err(reason) => Err(Failure::Lasting(format!("the file on this machine cannot be read: {reason}"))),
    }
}

/// A part as the server has it.
#[derive(Clone, Default)]
struct Part {
    tag: String,
    checksum: String,
}

fn upload_in_parts(
    client: &Client,
    key: &str,
    file: &File,
    content: &Content,
    patience: &Patience,
) -> Answer<()> {
    let headers =
        vec![("x-amz-checksum-algorithm", "SHA256".to_owned()), (DIGEST_HEADER, content.sha256.clone())];
    let upload = retry(patience, || client.begin_parts(key, &headers))?;
    let outcome = put_parts(client, key, &upload, file, content, patience)
        .and_then(|parts| retry(patience, || client.end_parts(key, &upload, &list_of(&parts))));
    if matches!(outcome, Err(Failure::Passing(_) | Failure::Lasting(_))) {
        // Parts of an upload that never ends cost money. Who cannot say so leaves it to the bucket's rule.
        let _ = client.abort_parts(key, &upload);
    }
    outcome
}

fn put_parts(
    client: &Client,
    key: &str,
    upload: &str,
    file: &File,
    content: &Content,
    patience: &Patience,
) -> Answer<Vec<Part>> {
    let count = content.bytes.div_ceil(PART);
    let (next, failure) = (AtomicU64::new(0), Mutex::new(None));
    let parts = Mutex::new(vec![Part::default(); count as usize]);
    let stream = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let at = index * PART;
            let put = piece(file, at, PART.min(content.bytes - at)).and_then(|bytes| {
                retry(patience, || put_part(client, key, upload, index as u16 + 1, &bytes))
            });
            match put {
                Ok(part) => parts.lock().expect("no thread panics here")[index as usize] = part,
                Err(reason) => {
                    failure.lock().expect("no thread panics here").get_or_insert(reason);
                    next.store(count, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..STREAMS.min(count as usize) {
            scope.spawn(stream);
        }
    });
    match failure.into_inner().expect("no thread panics here") {
        Some(failure) => Err(failure),
        None => Ok(parts.into_inner().expect("no thread panics here")),
    }
}

/// A server that checks says so by sending the checksum back. One that does not has the MD5 of what came as the part's tag.
fn put_part(client: &Client, key: &str, upload: &str, number: u16, bytes: &[u8]) -> Answer<Part> {
    let checksum = base64::encode(&Sha256::digest(bytes));
    let answer = client.put_part(key, upload, number, &vec![(CHECKSUM_HEADER, checksum.clone())], bytes)?;
    let header = |name: &str| Some(answer.headers().get(name)?.to_str().ok()?.to_owned());
    let tag =
        header("etag").ok_or_else(|| Failure::Passing("a part was answered without its tag".to_owned()))?;
    let is_checked = header(CHECKSUM_HEADER).is_some_and(|echo| echo == checksum);
    let plain = tag.trim_matches('"');
    let is_md5 = plain.len() == 32 && plain.bytes().all(|digit| digit.is_ascii_hexdigit());
    if !is_checked && is_md5 && !plain.eq_ignore_ascii_case(&hex(&Md5::digest(bytes))) {
        return Err(Failure::Passing(format!(
            "part {number} came with another digest than it was sent with"
        )));
    }
    Ok(Part { tag, checksum })
}

/// The body of CompleteMultipartUpload, with the checksums that S3 then asks for.
fn list_of(parts: &[Part]) -> String {
    let part = |(number, part): (usize, &Part)| {
        let (tag, checksum) = (part.tag.replace('"', "&quot;"), &part.checksum);
        format!(
            "<Part><ETag>{tag}</ETag><PartNumber>{number}</PartNumber><ChecksumSHA256>{checksum}</ChecksumSHA256></Part>"
        )
    };
    let parts: String = (1..).zip(parts).map(part).collect();
    format!(
        r#"<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{parts}</CompleteMultipartUpload>"#
    )
}

/// Reads an object that should hold `content` into `file`, from the beginning of both.
pub fn download(
    client: &Client,
    key: &str,
    content: &Content,
    file: &mut File,
    patience: &Patience,
) -> Answer<()> {
    let mut wrong = 0;
    retry(patience, || {
        let mut answer = client.get(key, content.bytes)?;
        let on_disk =
            |reason: io::Error| Failure::Lasting(format!("cannot write it on this machine: {reason}"));
        file.set_len(0).map_err(on_disk)?;
        let (mut hash, mut at) = (Sha256::new(), 0);
        let mut body = answer.body_mut().with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let cut = |reason| {
                Failure::Passing(format!("it was cut off after {at} of {} bytes: {reason}", content.bytes))
            };
            let count = body.read(&mut buffer).map_err(cut)?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
            file.write_all_at(&buffer[..count], at).map_err(on_disk)?;
            at += count as u64;
        }
        file.flush().map_err(on_disk)?;
        let came = Content { bytes: at, sha256: hex(&hash.finalize()) };
        if came == *content {
            return Ok(());
        }
        wrong += 1;
        let Content { bytes, sha256 } = content;
        let reason = format!(
            "{} bytes with the digest {} came, wanted {bytes} with {sha256}",
            came.bytes, came.sha256
        );
        Err(if wrong < DAMAGED { Failure::Passing(reason) } else { Failure::Lasting(reason) })
    })
}

/// A small object, whole, and its tag. One that has its digest beside it is held to it.
pub fn read(client: &Client, key: &str, patience: &Patience) -> Answer<(String, String)> {
    let mut wrong = 0;
    retry(patience, || {
        let answer = client.get(key, 0)?;
        let header =
            |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (tag, digest) = (header("etag").unwrap_or_default(), header(DIGEST_HEADER));
        let text = text(answer)?;
        if digest.is_none_or(|digest| digest == Content::of(text.as_bytes()).sha256) {
            return Ok((text, tag));
        }
        wrong += 1;
        let reason = "what came has another digest than it was written with".to_owned();
        Err(if wrong < DAMAGED { Failure::Passing(reason) } else { Failure::Lasting(reason) })
    })
}

/// Keys directly below a prefix.
pub fn list(client: &Client, prefix: &str, patience: &Patience) -> Answer<Vec<String>> {
    let (mut keys, mut next) = (vec![], None);
    loop {
        let (page, token) = retry(patience, || client.list(prefix, next.as_deref()))?;
        keys.extend(page);
        next = token;
        if next.is_none() {
            return Ok(keys);
        }
    }
}
