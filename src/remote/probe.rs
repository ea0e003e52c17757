//! Whether a bucket can be written and read, for `engine doctor`.

use super::client::{Client, Failure};
use super::object;
use super::retry::Patience;
use std::time::{Duration, Instant};

/// Writes, lists, reads and removes a small object below the prefix. The error is a reason.
pub fn probe(client: &Client) -> Result<String, String> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let patience = Patience::new(PATIENCE, &|| false);
    let key = client.address.key(&format!(".engine-doctor-{}", std::process::id()));
    let step = |what: &str, failure: Failure| format!("cannot {what}: {failure}");
    let began = Instant::now();
    object::put(client, &key, b"engine doctor\n", &vec![], &patience).map_err(|why| step("write", why))?;
    let took = began.elapsed();
    let checked = object::list(client, &key, &patience)
        .map_err(|why| step("list", why))
        .and_then(|_| object::read(client, &key, &patience).map_err(|why| step("read", why)));
    client.delete(&key).map_err(|why| step("delete", why))?;
    checked?;
    let keys = client.keys_source().unwrap_or_default();
    Ok(format!(
        "written, listed, read and deleted, {} ms a request; {}, keys from {keys}",
        took.as_millis(),
        client.place.endpoint
    ))
}
