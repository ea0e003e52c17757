//! The S3 server, a bucket in it, and runs that use it.

use crate::common::{assert_same, contents, engine, path, set, temporary, tiny};
use engine::remote::credentials::Keyring;
use engine::remote::object::{download, list};
use engine::remote::region::Place;
use engine::remote::{Address, Client, Manifest, Patience, manifest};
use rusty_s3::S3Action;
use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};
use tempfile::TempDir;

pub const KEY: &str = "AKIDENGINE";
pub const SECRET: &str = "a-secret-of-the-tests";
const BUCKET: &str = "engine-tests";

/// A server with an empty bucket; it ends with this.
pub struct Server {
    child: Child,
    /// `HOST:PORT`.
    pub host: String,
    _folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Option<PathBuf> {
    if let Some(named) = env::var_os("ENGINE_S3_SERVER") {
        return Some(named.into());
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin");
    let folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH")?).chain([tools]).collect();
    folders.iter().map(|folder| folder.join("s3s-fs")).find(|program| program.is_file())
}

impl Server {
    /// None, with a word about it, where this machine has no such program.
    pub fn start() -> Option<Self> {
        let Some(program) = program() else {
            println!(
                "skipped: no S3 server here; cargo install s3s-fs --version 0.14.1 --locked --features binary --root target/tools"
            );
            return None;
        };
        let folder = temporary();
        // Free a moment ago; nobody else on this machine asks for it by number.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let mut command = Command::new(&program);
        command.args(["--host", &ip, "--port", &port, "--access-key", KEY, "--secret-key", SECRET]);
        let child = command.arg(folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { child, host: address.to_string(), _folder: folder };
        let began = Instant::now();
        while TcpStream::connect(&server.host).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "{} does not listen", program.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        server.create_bucket();
        Some(server)
    }

    fn create_bucket(&self) {
        let endpoint = format!("http://{}", self.host).parse().unwrap();
        let bucket = rusty_s3::Bucket::new(endpoint, rusty_s3::UrlStyle::Path, BUCKET, "us-east-1").unwrap();
        let keys = rusty_s3::Credentials::new(KEY, SECRET);
        let url = bucket.create_bucket(&keys).sign(Duration::from_secs(60));
        ureq::put(url.as_str()).send_empty().unwrap();
    }
}

/// What `--remote` is told of a prefix.
pub fn address(prefix: &str) -> String {
    format!("s3://{BUCKET}/{prefix}")
}

/// A client of the tests' own, past the proxy.
pub fn client(host: &str, prefix: &str) -> Client {
    let (endpoint, region) = (format!("http://{host}"), "us-east-1".to_owned());
    let place = Place { endpoint, region, is_aws: false };
    Client::at(Address::parse(&address(prefix)).unwrap(), place, Keyring::of(KEY, SECRET)).unwrap()
}

pub fn patience() -> Patience<'static> {
    Patience::new(Duration::from_secs(30), &|| false)
}

/// Lets a command use the server at `host`.
pub fn with_keys<'c>(command: &'c mut Command, host: &str) -> &'c mut Command {
    command
        .env("AWS_ENDPOINT_URL", format!("http://{host}"))
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
}

/// [`tiny`] with its checkpoints in the bucket too.
pub fn run(output: &Path, host: &str, prefix: &str) -> Command {
    let mut command = tiny(output);
    with_keys(&mut command, host).args(["--remote", &address(prefix)]);
    command
}

/// [`run`] of a thousand epochs, to be met in the middle.
pub fn long(output: &Path, host: &str, prefix: &str) -> Command {
    let mut command = run(output, host, prefix);
    set(&mut command, &["epochs=1000"]);
    command
}

pub fn doctor(host: &str, prefix: &str) -> Command {
    let mut command = engine(["doctor", "--output", path(&env::temp_dir()), "--remote", &address(prefix)]);
    with_keys(&mut command, host);
    command
}

pub fn stored(host: &str, prefix: &str) -> Option<Manifest> {
    let stored = manifest::read(&client(host, prefix), &patience()).unwrap();
    stored.map(|stored| stored.manifest)
}

/// Every object below a prefix.
pub fn objects(host: &str, prefix: &str) -> Vec<String> {
    let client = client(host, prefix);
    let mut names = vec![];
    for folder in ["", "checkpoints/"] {
        let keys = list(&client, &client.address.key(folder), &patience()).unwrap();
        names.extend(keys.iter().map(|key| client.address.name(key).unwrap().to_owned()));
    }
    names.sort();
    names
}

/// The bucket holds what its manifest names, the manifest, and nothing else; and these are the bytes of `output`.
#[track_caller]
pub fn assert_mirrors(host: &str, prefix: &str, output: &Path) {
    let manifest = stored(host, prefix).expect("a manifest");
    let steps = manifest.checkpoints.iter().map(|step| step.object.clone());
    let mut promised: Vec<String> =
        steps.chain(manifest.files.keys().cloned()).chain(["manifest.json".into()]).collect();
    promised.sort();
    assert_eq!(objects(host, prefix), promised);
    let client = client(host, prefix);
    let mut there = BTreeMap::new();
    for step in &manifest.checkpoints {
        there.insert(
            format!("checkpoints/{}", step.at.file_name()),
            (step.object.clone(), step.content.clone()),
        );
    }
    for (name, content) in &manifest.files {
        there.insert(name.clone(), (name.clone(), content.clone()));
    }
    for (local, (object, content)) in there {
        let mut file = tempfile::tempfile().unwrap();
        download(&client, &client.address.key(&object), &content, &mut file, &patience()).unwrap();
        assert_eq!(
            engine::remote::object::Content::of(&fs::read(output.join(&local)).unwrap()),
            content,
            "{local}"
        );
    }
}

/// Checkpoints in the bucket, by their names in a folder.
fn checkpoints_in_the_bucket(host: &str, prefix: &str) -> BTreeMap<String, Vec<u8>> {
    let client = client(host, prefix);
    let mut found = BTreeMap::new();
    for step in stored(host, prefix).expect("a manifest").checkpoints {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let key = client.address.key(&step.object);
        download(&client, &key, &step.content, file.as_file_mut(), &patience()).unwrap();
        found.insert(step.at.file_name(), fs::read(file.path()).unwrap());
    }
    found
}

/// Folder and bucket together have what an undisturbed run has: what is kept for good and went with a disk is in the bucket.
#[track_caller]
pub fn assert_same_with_lost_disks(
    host: &str,
    prefix: &str,
    output: &Path,
    want: &BTreeMap<String, Vec<u8>>,
) {
    let mut got = contents(output);
    got.insert("config.toml".into(), want["config.toml"].clone());
    for (name, bytes) in checkpoints_in_the_bucket(host, prefix) {
        let path = output.join("checkpoints").join(&name);
        if !path.exists() {
            fs::write(path, &bytes).unwrap();
        }
        got.entry(name).or_insert(bytes);
    }
    assert_same(&got, want, prefix);
    assert_mirrors(host, prefix, output);
}
