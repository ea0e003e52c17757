//! Where a bucket's server is.

use super::credentials::profile_value;
use super::metadata::Metadata;
use crate::error::{Error, Result};
use std::env;
use ureq::http::Uri;

/// The region where nothing names another, as with AWS's own programs.
const DEFAULT: &str = "us-east-1";

/// A server, as AWS's programs find theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `http://` or `https://`, host and port.
    pub endpoint: String,
    pub region: String,
    /// The server is AWS's own: buckets are host names. Anywhere else they stand in the path.
    pub is_aws: bool,
}

impl Place {
    /// `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, `AWS_REGION` or `AWS_DEFAULT_REGION`, the profile's region, the
    /// instance's.
    pub fn find() -> Result<Self> {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let region = variable("AWS_REGION")
            .or_else(|| variable("AWS_DEFAULT_REGION"))
            .or_else(|| profile_value("region"));
        let named = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
            .into_iter()
            .find_map(|name| Some((name, variable(name)?)));
        if let Some((name, endpoint)) = named {
            return Self::at(name, endpoint, region.unwrap_or_else(|| DEFAULT.to_owned()));
        }
        let of_instance = || Metadata::here()?.says("/latest/meta-data/placement/region");
        let region = region.or_else(of_instance).unwrap_or_else(|| DEFAULT.to_owned());
        Ok(Self { endpoint: format!("https://s3.{region}.amazonaws.com"), region, is_aws: true })
    }

    fn at(variable: &str, endpoint: String, region: String) -> Result<Self> {
        let uri = endpoint.parse::<Uri>().ok();
        let is_url =
            uri.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
        if !is_url {
            return Err(Error::usage(format!(
                "{variable} is {endpoint}, expected an address such as https://minio.example.org:9000"
            )));
        }
        Ok(Self { endpoint: endpoint.trim_end_matches('/').to_owned(), region, is_aws: false })
    }
}
