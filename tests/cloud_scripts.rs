//! What `datasets/`, `experiments/` and `configs/cloud/` have for EC2, on a machine that lacks something: one sentence says what.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder with a `bin` that has all programs of this machine but some.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn without(lacking: &[&str]) -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(machine.path("bin")).unwrap();
        for from in ["/usr/bin", "/bin", "/usr/sbin", "/sbin"] {
            for entry in fs::read_dir(from).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if !lacking.iter().any(|lacking| name == *lacking) {
                    // Folders of the search path may have a program twice.
                    let _ = symlink(entry.path(), machine.path("bin").join(&name));
                }
            }
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program of a few lines.
    fn has(&self, name: &str, lines: &str) -> &Self {
        let path = self.path("bin").join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn run(&self, script: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        Command::new("bash")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(script))
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOME", self.folder.path())
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The script ends with `code`, and all that it says is one line with `parts`.
    fn refuses(
        &self,
        (script, arguments): (&str, &[&str]),
        variables: &[(&str, &str)],
        code: i32,
        parts: &[&str],
    ) {
        let output = self.run(script, arguments, variables);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{script}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{script}: {said}");
        for part in parts {
            assert!(said.contains(part), "{script}: {part:?} in {said}");
        }
    }
}

#[test]
fn a_program_that_is_missing_is_named_with_where_it_comes_from() {
    let machine = Machine::without(&["aws", "tmux", "watch", "git", "nvidia-smi", "systemctl"]);
    fs::write(machine.path("logs.md"), "epoch: 1  \n").unwrap();
    let here = [("OUTPUT_DIR", machine.folder.path().to_str().unwrap())];
    machine.refuses(
        ("datasets/sync_to_ec2.sh", &["--from", "s3://bucket/p"]),
        &[],
        1,
        &["'aws' is not installed", "awscli"],
    );
    machine.refuses(("experiments/push_logs.sh", &["--once"]), &here, 1, &["git is not installed"]);
    let screenshot: (&str, &[&str]) = ("experiments/ec2_screenshot.sh", &[]);
    machine.refuses(screenshot, &here, 1, &["tmux is not installed"]);
    machine.has("tmux", "").refuses(screenshot, &here, 1, &["watch is not installed", "procps"]);
    machine.has("watch", "").refuses(screenshot, &here, 1, &["nvidia-smi", "driver"]);
    machine.has("nvidia-smi", "").refuses(screenshot, &here, 1, &["no terminal", "ssh -t"]);
    machine.refuses(("configs/cloud/spot_price.sh", &[]), &[], 1, &["aws is not installed"]);
}

#[test]
fn folders_that_are_missing_are_named() {
    let machine = Machine::without(&[]);
    let lost = [("OUTPUT_DIR", "/nowhere/run"), ("DATA_DIR", "/nowhere/imagenet")];
    machine.refuses(
        ("experiments/push_logs.sh", &["--once"]),
        &lost,
        1,
        &["/nowhere/run/logs.md", "OUTPUT_DIR"],
    );
    let dry: (&str, &[&str]) = ("experiments/ec2_dryrun.sh", &["--engine", "/bin/true"]);
    machine.refuses(dry, &lost, 2, &["/nowhere/imagenet: no such folder", "sync_to_ec2.sh"]);
    machine.refuses(dry, &[], 2, &["DATA_DIR is not set"]);
}

/// A clone by somebody whom git does not know, and one without a remote.
#[test]
fn a_log_that_git_cannot_commit_or_push_is_said_before_anything_is_done() {
    let machine = Machine::without(&[]);
    let repository = machine.path("repository");
    fs::create_dir_all(repository.join("experiments")).unwrap();
    let script = repository.join("experiments/push_logs.sh");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/push_logs.sh"), &script).unwrap();
    fs::write(repository.join("logs.md"), "epoch: 1  \n").unwrap();
    let push = |variables: &[(&str, &str)], parts: &[&str]| {
        let nobody = [("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_SYSTEM", "/dev/null")];
        let script = script.to_str().unwrap();
        machine.refuses((script, &["--once"]), &[&nobody, variables].concat(), 1, parts);
    };
    push(&[], &["no clone", "git -C"]);
    let git = |arguments: &[&str]| {
        let done = Command::new("git").arg("-C").arg(&repository).args(arguments).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    git(&["init", "-q"]);
    git(&["config", "user.useConfigOnly", "true"]);
    push(&[], &["who commits", "user.email"]);
    git(&["config", "user.name", "n"]);
    git(&["config", "user.email", "n@example.org"]);
    push(&[], &["no remote", "--no-push"]);
}

/// As root, as user data is; nothing is installed before all of it can work.
#[test]
fn user_data_say_what_they_lack_before_they_install_anything() {
    let machine = Machine::without(&["systemctl"]);
    machine
        .has("id", "[ \"$1\" = -u ] && echo 0")
        .has("apt-get", "echo installs >&2")
        .has("yum", "echo installs >&2");
    let data: (&str, &[&str]) = ("configs/cloud/ec2_user_data.sh", &[]);
    machine.refuses(data, &[], 2, &["systemd does not run here"]);
    machine.has("systemctl", "echo offline").refuses(data, &[], 2, &["systemd does not run here"]);
    machine.has("systemctl", "echo degraded").refuses(data, &[], 2, &["REPOSITORY is empty"]);
    let from = ("REPOSITORY", "https://example.org/r");
    machine.refuses(data, &[from, ("RUN_AS", "nobody-here")], 2, &["nobody-here: no such user"]);
    machine.refuses(data, &[from, ("DATA_FROM", "s3://bucket/p")], 2, &["DATA_DIR is not"]);
    let lost = [from, ("RUN_AS", "root"), ("DATA_DIR", "/nowhere/imagenet")];
    machine.refuses(data, &lost, 2, &["/nowhere/imagenet: no such folder", "DATA_FROM"]);
    machine.has("id", "[ \"$1\" = -u ] && echo 1000").refuses(data, &[from], 2, &["as root"]);
}

/// What `engine plan` says a card needs, beside what this machine has; in Debian's own awk too, where there is one.
#[test]
fn disk_and_cores_are_compared_with_what_the_card_needs() {
    let plan =
        r#"{"disk_megabytes_per_second":{"low":1.0,"high":1.0},"cpu_cores":{"low":1000.0,"high":2000.5}}"#;
    for awk in
        ["/usr/bin/mawk", "/usr/bin/gawk", "/usr/bin/awk"].map(Path::new).iter().filter(|awk| awk.exists())
    {
        let machine = Machine::without(&["awk", "s5cmd"]);
        symlink(awk, machine.path("bin/awk")).unwrap();
        machine
            .has(
                "aws",
                "[ \"$2\" = ls ] && echo '   Total Size: 2097152' || cp \"$HOME/source.tar\" \"$HOME/here/\"",
            )
            .has("engine", &format!("echo '{plan}'"));
        fs::write(machine.path("source.tar"), vec![7; 2 << 20]).unwrap();
        let engine = machine.path("bin/engine");
        let arguments =
            ["--from", "s3://bucket/p", "--to", "here", "--gpu", "t4", "--engine", engine.to_str().unwrap()];
        let output = machine.run("datasets/sync_to_ec2.sh", &arguments, &[]);
        let said = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes)).concat();
        assert!(output.status.success(), "{}: {said}", awk.display());
        assert!(said.contains("2000.5 cores wanted by a t4: too few"), "{}: {said}", awk.display());
        assert!(said.contains("wanted by a t4: enough") || said.contains("nothing large enough"), "{said}");
    }
}

/// The first try is killed itself, not a shell around it, and the second one goes on alone.
#[test]
fn the_dry_run_kills_the_training_and_goes_on() {
    let machine = Machine::without(&[]);
    machine.has(
        "engine",
        r#"case $1 in
        train)
            if [ -e "$HOME/pid" ]; then
                kill -0 "$(cat "$HOME/pid")" 2>/dev/null && { echo "the first one still runs"; exit 2; }
                echo 'epoch: 1  train_loss: 1.000' >"$OUTPUT_DIR/logs.md"
                exit 0
            fi
            echo $$ >"$HOME/pid"
            exec sleep 30 ;;
        *) echo "fine: $1" ;;
        esac"#,
    );
    let engine = machine.path("bin/engine");
    let output = machine.run(
        "experiments/ec2_dryrun.sh",
        &["--engine", engine.to_str().unwrap(), "--kill-after", "1"],
        &[
            ("DATA_DIR", machine.folder.path().to_str().unwrap()),
            ("OUTPUT_DIR", machine.path("run").to_str().unwrap()),
        ],
    );
    let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat();
    assert!(output.status.success() && said.contains("The dry run worked"), "{said}");
    assert!(said.contains("killed\n") && said.contains("fine: eval"), "{said}");
}
