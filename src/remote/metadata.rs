//! EC2's instance metadata service, version 2: a token by PUT, then questions by GET.

use std::env;
use std::time::Duration;
use ureq::Agent;
use ureq::http::StatusCode;

/// The address that AWS's own programs use too, and the variables by which they are told otherwise.
const SERVICE: &str = "http://169.254.169.254";
const SERVICE_VARIABLE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const OFF_VARIABLE: &str = "AWS_EC2_METADATA_DISABLED";

const LIMIT: Duration = Duration::from_secs(2);

/// Of a token, in seconds; the longest that there is.
const TOKEN_LIFE: &str = "21600";

/// Answers are small: credentials are the largest.
const LONGEST: u64 = 16 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// There is no such thing.
    Nothing,
    /// The token is not taken any more.
    NoToken,
    /// Nobody answers, or not like EC2's service.
    Silence,
    Says(String),
}

/// The metadata service of one instance.
#[derive(Debug)]
pub struct Metadata {
    agent: Agent,
    address: String,
}

impl Metadata {
    /// This instance's; None where the environment says that it is not to be asked.
    pub fn here() -> Option<Self> {
        if env::var(OFF_VARIABLE).is_ok_and(|value| value.eq_ignore_ascii_case("true")) {
            return None;
        }
        let address = env::var(SERVICE_VARIABLE).unwrap_or_else(|_| SERVICE.to_owned());
        Some(Self::at(address.trim_end_matches('/').to_owned()))
    }

    pub fn at(address: String) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(LIMIT))
            // A link-local address is behind no proxy.
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .build();
        Self { agent: config.into(), address }
    }

    /// None where nobody answers as EC2 does.
    pub fn token(&self) -> Option<String> {
        let address = format!("{}/latest/api/token", self.address);
        let request = self.agent.put(address).header("X-aws-ec2-metadata-token-ttl-seconds", TOKEN_LIFE);
        let mut response = request.send_empty().ok()?;
        let text = response.body_mut().with_config().limit(1024).read_to_string().ok()?;
        (response.status() == StatusCode::OK && !text.is_empty()).then_some(text)
    }

    /// `path` begins with `/latest/`.
    pub fn ask(&self, path: &str, token: &str) -> Answer {
        let request =
            self.agent.get(format!("{}{path}", self.address)).header("X-aws-ec2-metadata-token", token);
        let Ok(mut response) = request.call() else { return Answer::Silence };
        match response.status() {
            StatusCode::OK => {
                let text = response.body_mut().with_config().limit(LONGEST).read_to_string();
                text.map_or(Answer::Silence, Answer::Says)
            }
            StatusCode::NOT_FOUND => Answer::Nothing,
            StatusCode::UNAUTHORIZED => Answer::NoToken,
            _ => Answer::Silence,
        }
    }

    /// What one question is answered with, where there is such a service and it knows.
    pub fn says(&self, path: &str) -> Option<String> {
        match self.ask(path, &self.token()?) {
            Answer::Says(text) => Some(text),
            Answer::Nothing | Answer::NoToken | Answer::Silence => None,
        }
    }
}
