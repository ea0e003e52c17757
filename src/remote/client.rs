//! One request to a bucket: signed (rusty-s3), sent (ureq), and its answer judged. Nothing here tries again.

use super::address::Address;
use super::credentials::{self, Keyring};
use super::region::Place;
use crate::error::{Error, Result};
use rusty_s3::actions::{CreateMultipartUpload, ListObjectsV2};
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use std::fmt;
use std::time::Duration;
use ureq::http::{Request, Response, StatusCode};
use ureq::{Agent, AsSendBody, Body};

/// How long the signature of a request is good; a clock may be wrong by as much.
const SIGNED_FOR: Duration = Duration::from_secs(900);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Of a request, besides the time that its bytes take at [`SLOWEST`] bytes a second.
const LIMIT: Duration = Duration::from_secs(15);
const SLOWEST: u64 = 256 << 10;
/// Of an answer that is XML: a thousand names.
const LONGEST: u64 = 4 << 20;

/// SHA-256 of an object's bytes, in hex, as it lies beside it.
pub const DIGEST_HEADER: &str = "x-amz-meta-sha256";

/// Headers that are signed and sent; names in small letters.
pub type Headers = Vec<(&'static str, String)>;

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// There is no such object.
    Absent,
    /// The request's condition does not hold: somebody else was first.
    Taken,
    /// Another try may do: no answer, a busy server, bytes that changed on the way.
    Passing(String),
    /// It does not: no permission, no such bucket.
    Lasting(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no such object"),
            Self::Taken => f.write_str("somebody else has written it"),
            Self::Passing(reason) | Self::Lasting(reason) => f.write_str(reason),
        }
    }
}

pub type Answer<T> = Result<T, Failure>;

/// A bucket, how it is reached, and in whose name.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    bucket: Bucket,
    keyring: Keyring,
    pub address: Address,
    pub place: Place,
}

impl Client {
    /// Asks the environment, the user's files and the instance where the bucket is; sends nothing to it yet.
    pub fn open(address: Address) -> Result<Self> {
        Self::at(address, Place::find()?, Keyring::default())
    }

    pub fn at(address: Address, place: Place, keyring: Keyring) -> Result<Self> {
        // No certificate of AWS names a host with a bucket's own dots in it.
        let style = if place.is_aws && !address.bucket.contains('.') {
            UrlStyle::VirtualHost
        } else {
            UrlStyle::Path
        };
        let wrong = |reason: String| Error::usage(format!("{address} at {}: {reason}", place.endpoint));
        let endpoint = place.endpoint.parse().map_err(|reason| wrong(format!("{reason}")))?;
        let bucket = Bucket::new(endpoint, style, address.bucket.clone(), place.region.clone())
            .map_err(|reason| wrong(reason.to_string()))?;
        let config = Agent::config_builder()
            .timeout_connect(Some(CONNECT_LIMIT))
            .max_redirects(0)
            .http_status_as_error(false)
            .build();
        Ok(Self { agent: config.into(), bucket, keyring, address, place })
    }

    /// Where the keys come from, for people.
    pub fn keys_source(&self) -> Option<String> {
        Some(self.keyring.get()?.source)
    }

    pub fn put(&self, key: &str, headers: &Headers, bytes: &[u8]) -> Answer<()> {
        self.signed(|bucket, keys| self.call(bucket.put_object(keys, key), headers, Some(bytes), 0))?;
        Ok(())
    }

    /// The object, to be read; `bytes` is what is expected of it.
    pub fn get(&self, key: &str, bytes: u64) -> Answer<Response<Body>> {
        self.signed(|bucket, keys| self.call(bucket.get_object(keys, key), &vec![], None, bytes))
    }

    pub fn head(&self, key: &str) -> Answer<Response<Body>> {
        self.signed(|bucket, keys| self.call(bucket.head_object(keys, key), &vec![], None, 0))
    }

    pub fn delete(&self, key: &str) -> Answer<()> {
        match self.signed(|bucket, keys| self.call(bucket.delete_object(keys, key), &vec![], None, 0)) {
            Ok(_) | Err(Failure::Absent) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Keys that begin with `prefix`, those in deeper folders left out. One page: its keys, and how to ask for the next.
    pub fn list(&self, prefix: &str, next: Option<&str>) -> Answer<(Vec<String>, Option<String>)> {
        let answer = self.signed(|bucket, keys| {
            let mut action = bucket.list_objects_v2(keys);
            action.with_prefix(prefix);
            action.with_delimiter("/");
            if let Some(next) = next {
                action.with_continuation_token(next);
            }
            self.call(action, &vec![], None, 0)
        })?;
        let page = ListObjectsV2::parse_response(&text(answer)?)
            .map_err(|reason| Failure::Passing(format!("its list of objects cannot be read: {reason}")))?;
        Ok((page.contents.into_iter().map(|object| object.key).collect(), page.next_continuation_token))
    }

    /// Begins an object in parts; answers its upload's name.
    pub fn begin_parts(&self, key: &str, headers: &Headers) -> Answer<String> {
        let answer = self
            .signed(|bucket, keys| self.call(bucket.create_multipart_upload(keys, key), headers, None, 0))?;
        let begun = CreateMultipartUpload::parse_response(&text(answer)?)
            .map_err(|reason| Failure::Passing(format!("its answer cannot be read: {reason}")))?;
        Ok(begun.upload_id().to_owned())
    }

    pub fn put_part(
        &self,
        key: &str,
        upload: &str,
        part: u16,
        headers: &Headers,
        bytes: &[u8],
    ) -> Answer<Response<Body>> {
        self.signed(|bucket, keys| {
            self.call(bucket.upload_part(keys, key, part, upload), headers, Some(bytes), 0)
        })
    }

    /// `body` is the list of parts. An answer of 200 may still hold an error (AWS, CompleteMultipartUpload).
    pub fn end_parts(&self, key: &str, upload: &str, body: &str) -> Answer<()> {
        let none = std::iter::empty::<&str>;
        let answer = self.signed(|bucket, keys| {
            let action = bucket.complete_multipart_upload(keys, key, upload, none());
            self.call(action, &vec![], Some(body.as_bytes()), 0)
        })?;
        let text = text(answer)?;
        match between(&text, "<Code>", "</Code>") {
            Some(code) if !text.contains("CompleteMultipartUploadResult") => Err(Failure::Passing(format!(
                "{code}: {}",
                between(&text, "<Message>", "</Message>").unwrap_or("")
            ))),
            _ => Ok(()),
        }
    }

    pub fn abort_parts(&self, key: &str, upload: &str) -> Answer<()> {
        self.signed(|bucket, keys| {
            self.call(bucket.abort_multipart_upload(keys, key, upload), &vec![], None, 0)
        })?;
        Ok(())
    }

    /// Gives `request` keys, and looks for others before the next where these are refused as over.
    fn signed<T>(&self, request: impl FnOnce(&Bucket, Option<&Credentials>) -> Answer<T>) -> Answer<T> {
        let keys = self.keyring.get().ok_or_else(|| Failure::Lasting(credentials::NONE.to_owned()))?;
        let outcome = request(&self.bucket, Some(&keys.credentials));
        if let Err(Failure::Passing(reason)) = &outcome
            && EXPIRED.iter().any(|code| reason.contains(code))
        {
            self.keyring.forget();
        }
        outcome
    }

    /// `expected` is how many bytes the answer may have to bring.
    fn call<'a, A: S3Action<'a>>(
        &self,
        mut action: A,
        headers: &Headers,
        body: Option<&[u8]>,
        expected: u64,
    ) -> Answer<Response<Body>> {
        let mut request = Request::builder().method(A::METHOD.to_str());
        for (name, value) in headers {
            action.headers_mut().insert(*name, value.clone());
            request = request.header(*name, value);
        }
        let url = action.sign(SIGNED_FOR);
        let request = request.uri(url.as_str());
        let bytes = expected + body.map_or(0, <[u8]>::len) as u64;
        let limit = LIMIT + Duration::from_secs(bytes / SLOWEST);
        let answer = match body {
            Some(body) => self.send(request.body(body), limit),
            None => self.send(request.body(()), limit),
        };
        self.judge(answer?)
    }

    fn send(
        &self,
        request: Result<Request<impl AsSendBody>, ureq::http::Error>,
        limit: Duration,
    ) -> Answer<Response<Body>> {
        let request =
            request.map_err(|reason| Failure::Lasting(format!("no such request can be sent: {reason}")))?;
        let request = self.agent.configure_request(request).timeout_global(Some(limit)).build();
        self.agent
            .run(request)
            .map_err(|reason| Failure::Passing(format!("{}: {reason}", self.place.endpoint)))
    }

    fn judge(&self, answer: Response<Body>) -> Answer<Response<Body>> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let region = answer
            .headers()
            .get("x-amz-bucket-region")
            .and_then(|region| region.to_str().ok().map(str::to_owned));
        // The answer to HEAD has no body: the status is all that there is.
        let text = text(answer).unwrap_or_default();
        let code = between(&text, "<Code>", "</Code>").unwrap_or("");
        let said = match between(&text, "<Message>", "</Message>") {
            Some(said) => format!("{status}, {code}: {said}"),
            None => status.to_string(),
        };
        Err(match status {
            StatusCode::NOT_FOUND if code != "NoSuchBucket" => Failure::Absent,
            StatusCode::NOT_FOUND => {
                Failure::Lasting(format!("there is no bucket {} ({said})", self.address.bucket))
            }
            StatusCode::PRECONDITION_FAILED => Failure::Taken,
            StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS => {
                Failure::Passing(said)
            }
            _ if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => Failure::Passing(said),
            _ if PASSING.contains(&code) || EXPIRED.contains(&code) => Failure::Passing(said),
            _ if region.as_deref().is_some_and(|region| region != self.place.region) => {
                let region = region.unwrap_or_default();
                Failure::Lasting(format!(
                    "the bucket is in {region}, not in {}: set AWS_REGION={region}",
                    self.place.region
                ))
            }
            StatusCode::FORBIDDEN => Failure::Lasting(format!(
                "{said}; configs/cloud/README.md has the policy that a run needs, and the keys are from {}",
                self.keys_source().unwrap_or_default()
            )),
            _ => Failure::Lasting(said),
        })
    }
}

/// Codes of answers below 500 that another try may change: what came was not what was sent.
const PASSING: [&str; 8] = [
    "RequestTimeout",
    "BadDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "MalformedXML",
    "InvalidPart",
    "SlowDown",
    "OperationAborted",
];

/// A role's keys are over before their time where the role was changed.
const EXPIRED: [&str; 3] = ["ExpiredToken", "TokenRefreshRequired", "InvalidToken"];

pub fn text(mut answer: Response<Body>) -> Answer<String> {
    answer
        .body_mut()
        .with_config()
        .limit(LONGEST)
        .read_to_string()
        .map_err(|reason| Failure::Passing(format!("its answer was cut off: {reason}")))
}

fn between<'t>(text: &'t str, open: &str, close: &str) -> Option<&'t str> {
    Some(text.split_once(open)?.1.split_once(close)?.0)
}
