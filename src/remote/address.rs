//! `s3://BUCKET/PREFIX`.

use crate::error::{Error, Result};
use std::fmt;

/// Where in S3 a run's objects lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub bucket: String,
    /// Empty, or what stands before every name, with its last `/`.
    prefix: String,
}

impl Address {
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |reason: &str| {
            Error::usage(format!("{text}: {reason}, expected s3://BUCKET or s3://BUCKET/PREFIX"))
        };
        let rest = text.strip_prefix("s3://").ok_or_else(|| wrong("no address in S3"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if bucket.len() < 3 || !bucket.chars().all(is_name) {
            return Err(wrong("a bucket's name has three or more letters, digits, dots and hyphens"));
        }
        let prefix = prefix.trim_end_matches('/');
        // A URL takes `.` and `..` away, and signs of its own would need another encoding on the way.
        let is_part = |part: &str| {
            !matches!(part, "" | "." | "..") && part.chars().all(|c| is_name(c) || "=+".contains(c))
        };
        if !prefix.is_empty() && !prefix.split('/').all(is_part) {
            return Err(wrong("a prefix has letters, digits and . - _ = + between single slashes"));
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { bucket: bucket.to_owned(), prefix })
    }

    /// The key of an object of the run.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The name of what has this key, if it lies below the prefix.
    pub fn name<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.prefix)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix.trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_and_prefix() {
        let address = Address::parse("s3://my-bucket/runs/a/").unwrap();
        assert_eq!(
            (address.bucket.as_str(), address.key("logs.md")),
            ("my-bucket", "runs/a/logs.md".to_owned())
        );
        assert_eq!(address.to_string(), "s3://my-bucket/runs/a");
        assert_eq!(address.name("runs/a/x/y"), Some("x/y"));
        assert_eq!(Address::parse("s3://my-bucket").unwrap().key("logs.md"), "logs.md");
        for wrong in [
            "",
            "my-bucket/x",
            "s3://",
            "s3://a",
            "s3:///x",
            "s3://bucket//x",
            "s3://bucket/../x",
            "s3://bucket/a b",
        ] {
            let message = Address::parse(wrong).unwrap_err().message;
            assert!(message.contains("expected s3://BUCKET"), "{wrong}: {message}");
        }
    }
}
