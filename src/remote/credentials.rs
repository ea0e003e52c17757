//! Whose requests these are: environment, `~/.aws/credentials`, or the instance's role.

use super::metadata::Metadata;
use rusty_s3::Credentials;
use serde::Deserialize;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

const ROLE: &str = "/latest/meta-data/iam/security-credentials/";

/// A role's keys are asked for again this long before they end; AWS has the next ones ready by then.
const BEFORE_END: Duration = Duration::from_secs(300);

/// Keys, where they come from, and until when they are good.
#[derive(Debug, Clone)]
pub struct Keys {
    pub credentials: Arc<Credentials>,
    pub source: String,
    /// None: as long as nobody takes them back.
    until: Option<SystemTime>,
}

/// Finds keys, and keeps them until they end or are refused.
#[derive(Debug, Default)]
pub struct Keyring {
    keys: Mutex<Option<Keys>>,
}

impl Keyring {
    /// These, whatever the environment says.
    pub fn of(id: &str, secret: &str) -> Self {
        let keys = keys(id.to_owned(), secret.to_owned(), None, "the caller".to_owned(), None);
        Self { keys: Mutex::new(Some(keys)) }
    }

    /// None where there are none, with [`NONE`] as what to do.
    pub fn get(&self) -> Option<Keys> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = |keys: &Keys| keys.until.is_some_and(|until| until < SystemTime::now() + BEFORE_END);
        if keys.as_ref().is_none_or(ends) {
            // Keys that are about to end are better than none.
            *keys = find().or(keys.take());
        }
        keys.clone()
    }

    /// After a refusal: the next request looks for others.
    pub fn forget(&self) {
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What to do where no keys are found.
pub const NONE: &str = "no credentials: give the instance a role (configs/cloud/README.md has its policy), set AWS_ACCESS_KEY_ID and \
                        AWS_SECRET_ACCESS_KEY, or put them into ~/.aws/credentials";

fn find() -> Option<Keys> {
    from_environment().or_else(from_file).or_else(from_role)
}

fn from_environment() -> Option<Keys> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let (id, secret) = (variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?);
    Some(keys(id, secret, variable("AWS_SESSION_TOKEN"), "the environment".to_owned(), None))
}

fn keys(
    id: String,
    secret: String,
    token: Option<String>,
    source: String,
    until: Option<SystemTime>,
) -> Keys {
    let credentials = match token {
        Some(token) => Credentials::new_with_token(id, secret, token),
        None => Credentials::new(id, secret),
    };
    Keys { credentials: Arc::new(credentials), source, until }
}

fn from_file() -> Option<Keys> {
    let path = shared_file("AWS_SHARED_CREDENTIALS_FILE", "credentials")?;
    let text = fs::read_to_string(&path).ok()?;
    let profile = profile();
    let value = |key: &str| ini_value(&text, &[&profile], key);
    let (id, secret) = (value("aws_access_key_id")?, value("aws_secret_access_key")?);
    let source = format!("{} [{profile}]", path.display());
    Some(keys(id, secret, value("aws_session_token"), source, None))
}

fn profile() -> String {
    env::var("AWS_PROFILE").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned())
}

fn shared_file(variable: &str, name: &str) -> Option<PathBuf> {
    match env::var_os(variable).filter(|path| !path.is_empty()) {
        Some(path) => Some(path.into()),
        None => Some(env::home_dir()?.join(".aws").join(name)),
    }
}

/// A key of the profile in `~/.aws/config` or `~/.aws/credentials`.
pub fn profile_value(key: &str) -> Option<String> {
    let profile = profile();
    // Sections of `config` have a word before the name, but for `default`.
    let in_config = format!("profile {profile}");
    [("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")].into_iter().find_map(
        |(variable, name)| {
            let text = fs::read_to_string(shared_file(variable, name)?).ok()?;
            ini_value(&text, &[&profile, &in_config], key)
        },
    )
}

/// `key = value` below `[section]`, of the first section that has it.
fn ini_value(text: &str, sections: &[&str], key: &str) -> Option<String> {
    let mut is_here = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            is_here = sections.contains(&name.trim());
        } else if is_here
            && let Some((name, value)) = line.split_once('=')
            && name.trim() == key
        {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    None
}

/// AWS, "Retrieve security credentials from instance metadata".
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RoleKeys {
    access_key_id: String,
    secret_access_key: String,
    token: String,
    /// RFC 3339.
    expiration: String,
}

fn from_role() -> Option<Keys> {
    let metadata = Metadata::here()?;
    let role = metadata.says(ROLE)?.lines().next()?.trim().to_owned();
    role_keys(&role, &metadata.says(&format!("{ROLE}{role}"))?)
}

fn role_keys(role: &str, json: &str) -> Option<Keys> {
    let found: RoleKeys = serde_json::from_str(json).ok()?;
    let until = humantime::parse_rfc3339_weak(&found.expiration).ok();
    let source = format!("the instance's role {role}");
    Some(keys(found.access_key_id, found.secret_access_key, Some(found.token), source, until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_from_its_section() {
        let text = "[default]\naws_access_key_id = A\n\n# note = x\n[profile other]\nregion=eu-west-1\n[other]\naws_access_key_id=B\nempty =\n";
        assert_eq!(ini_value(text, &["default"], "aws_access_key_id").as_deref(), Some("A"));
        assert_eq!(ini_value(text, &["other", "profile other"], "region").as_deref(), Some("eu-west-1"));
        assert_eq!(ini_value(text, &["other"], "aws_access_key_id").as_deref(), Some("B"));
        assert_eq!(ini_value(text, &["other"], "empty"), None);
        assert_eq!(ini_value(text, &["nobody"], "region"), None);
    }

    #[test]
    fn a_roles_keys_have_an_end() {
        let json = r#"{"Code": "Success", "LastUpdated": "2026-11-01T08:00:00Z", "Type": "AWS-HMAC", "AccessKeyId": "ASIA",
                       "SecretAccessKey": "s", "Token": "t", "Expiration": "2026-11-01T14:00:00Z"}"#;
        let found = role_keys("trainer", json).unwrap();
        assert_eq!((found.credentials.key(), found.credentials.token()), ("ASIA", Some("t")));
        assert_eq!(found.until, humantime::parse_rfc3339("2026-11-01T14:00:00Z").ok());
        assert!(role_keys("trainer", r#"{"Code": "Failed"}"#).is_none());
    }
}
