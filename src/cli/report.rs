//! `engine report`: SUBMISSION.md, the acceptance checklist with each item found, missing, or left to a person.

use super::args::ReportArgs;
use crate::checkpoint::format::Checkpoint;
use crate::error::{Error, Result};
use crate::files;
use crate::log::{LoggedRun, parse_logs_md};
use crate::terminal::message;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The accuracy that the requirements want, in percent.
const TARGET: f64 = 75.0;

pub fn run(args: &ReportArgs) -> Result<()> {
    if !args.root.join("README.md").is_file() {
        return Err(Error::input_file(
            &args.root,
            "holds no README.md; --root names the clone of the repository",
        ));
    }
    let items = checklist(&args.root);
    let count = |state| items.iter().filter(|item| item.state == state).count();
    let (found, missing, person) = (count(State::Found), count(State::Missing), count(State::Person));
    files::write_bytes_atomically("report", &args.output, page(&items).as_bytes())?;
    message(format!(
        "wrote {}: {found} found, {missing} missing, {person} for a person to do",
        args.output.display()
    ));
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Seen in the files.
    Found,
    /// Looked for, and not there.
    Missing,
    /// Nothing here can tell.
    Person,
}

/// One line of the checklist.
#[derive(Debug)]
struct Item {
    what: &'static str,
    state: State,
    /// What was found and where, or what to do.
    says: String,
}

impl Item {
    fn found(what: &'static str, says: impl Into<String>) -> Self {
        Self { what, state: State::Found, says: says.into() }
    }

    fn missing(what: &'static str, says: impl Into<String>) -> Self {
        Self { what, state: State::Missing, says: says.into() }
    }

    fn person(what: &'static str, says: impl Into<String>) -> Self {
        Self { what, state: State::Person, says: says.into() }
    }
}

/// The acceptance checklist of the requirements, in its order.
fn checklist(root: &Path) -> Vec<Item> {
    let runs = parse_logs_md(&fs::read_to_string(root.join("logs.md")).unwrap_or_default());
    let readme = fs::read_to_string(root.join("README.md")).unwrap_or_default();
    let run = submitted(&runs);
    vec![
        files_of_the_card(root),
        repository(root),
        log(run),
        accuracy(run),
        screenshot(root),
        link(root),
        slot(&readme, "YouTube demo", "the demo video"),
        checkpoint(root),
        slot(&readme, "Trained checkpoints", "the trained weights"),
        slot(&readme, "Partner's e-mail", "the partner's e-mail (nothing to do for one person)"),
        authors(root),
        mail(root),
    ]
}

/// The run that is handed in: the longest.
fn submitted(runs: &[LoggedRun]) -> Option<&LoggedRun> {
    runs.iter().max_by_key(|run| run.lines.len())
}

/// What the design card wants at the top level.
fn files_of_the_card(root: &Path) -> Item {
    const WHAT: &str = "Full training code in the layout that was asked for";
    let wanted = [
        "Cargo.toml",
        "build.rs",
        "README.md",
        "LICENSE",
        "src",
        "kernels",
        "configs",
        "datasets",
        "logs.md",
        "ec2_screenshots",
        "hf_space",
        "checkpoints",
        "experiments",
        "bench",
    ];
    let absent: Vec<&str> = wanted.into_iter().filter(|name| !root.join(name).exists()).collect();
    match absent[..] {
        [] => Item::found(WHAT, format!("all {} entries", wanted.len())),
        _ => Item::missing(WHAT, format!("not there: {}", absent.join(", "))),
    }
}

fn repository(root: &Path) -> Item {
    const WHAT: &str = "Public GitHub repository";
    match git(root, &["remote", "get-url", "origin"]) {
        Some(url) if url.contains("github.com") => {
            Item::person(WHAT, format!("the remote is {url}; check in a private window that it is public"))
        }
        _ => Item::person(WHAT, "no remote on github.com; push it there, publicly"),
    }
}

fn log(run: Option<&LoggedRun>) -> Item {
    const WHAT: &str = "logs.md from epoch 1 to the last";
    let Some(run) = run else {
        return Item::missing(WHAT, "logs.md has no epoch line");
    };
    let gap = (1..).zip(&run.lines).find(|(wanted, line)| line.epoch != *wanted);
    let last = run.lines.last().map_or(0, |line| line.epoch);
    let unstamped = run.lines.iter().find(|line| line.timestamp.is_empty());
    match (gap, unstamped) {
        (Some((wanted, line)), _) => Item::missing(
            WHAT,
            format!("{}: epoch {wanted} is missing before epoch {}", run.name, line.epoch),
        ),
        (None, Some(line)) => {
            Item::missing(WHAT, format!("{}: epoch {} has no timestamp", run.name, line.epoch))
        }
        (None, None) => Item::found(WHAT, format!("{}: epochs 1 to {last}, none missing", run.name)),
    }
}

fn accuracy(run: Option<&LoggedRun>) -> Item {
    const WHAT: &str = "At least 75 % top-1 on validation, confirmed by one more validation";
    let reached = run.map_or(0, |run| run.lines.iter().filter(|line| line.val.top1 >= TARGET).count());
    let best = run.and_then(|run| run.lines.iter().max_by(|a, b| a.val.top1.total_cmp(&b.val.top1)));
    let best = best
        .map_or("no epoch".to_owned(), |line| format!("best {:.2} % in epoch {}", line.val.top1, line.epoch));
    let name = run.map_or("", |run| run.name.as_str());
    match reached {
        0 => Item::missing(WHAT, format!("{name}: {best}")),
        1 => Item::missing(WHAT, format!("{name}: {best}, once; validate once more")),
        _ => Item::person(
            WHAT,
            format!(
                "{name}: {best}, {reached} epochs at {TARGET} % or more; that the data are ImageNet's, the section says"
            ),
        ),
    }
}

fn screenshot(root: &Path) -> Item {
    const WHAT: &str = "Screenshot of the training on EC2";
    let path = root.join("ec2_screenshots").join("ec2_training_screenshot.png");
    match fs::read(&path) {
        Ok(bytes) if bytes.starts_with(b"\x89PNG\r\n\x1a\n") => Item::found(
            WHAT,
            format!("ec2_screenshots/ec2_training_screenshot.png, {} kB", bytes.len() / 1000),
        ),
        Ok(_) => Item::missing(WHAT, "ec2_screenshots/ec2_training_screenshot.png is no PNG"),
        Err(_) => Item::missing(
            WHAT,
            "ec2_screenshots/ec2_training_screenshot.png is not there; experiments/ec2_screenshot.sh lays it out",
        ),
    }
}

fn link(root: &Path) -> Item {
    const WHAT: &str = "Live Hugging Face Space";
    let text = fs::read_to_string(root.join("hf_space").join("hf_space_link.txt")).unwrap_or_default();
    match text.split_whitespace().find(|word| word.starts_with("https://huggingface.co/spaces/")) {
        Some(url) => {
            Item::person(WHAT, format!("{url}; open it in a private window and classify a photograph"))
        }
        None => {
            Item::missing(WHAT, "hf_space/hf_space_link.txt has no address; hf_space/deploy.sh writes it")
        }
    }
}

/// A row of README's table of slots: `| name | value |`, where an empty one says *empty*.
fn slot(readme: &str, name: &'static str, what: &'static str) -> Item {
    let row = readme.lines().find(|line| line.trim_start_matches(['|', ' ']).starts_with(name));
    let value = row.and_then(|row| row.split('|').nth(2)).map(str::trim).unwrap_or_default();
    if value.is_empty() || value.contains("*empty*") {
        Item::missing(name, format!("README's slot is empty: {what}"))
    } else {
        Item::found(name, value)
    }
}

fn checkpoint(root: &Path) -> Item {
    const WHAT: &str = "A checkpoint that loads";
    let folder = root.join("checkpoints");
    let path = ["best.safetensors", "last.safetensors"]
        .map(|name| folder.join(name))
        .into_iter()
        .find(|path| path.is_file());
    let Some(path) = path else {
        return Item::missing(WHAT, "checkpoints/ holds neither best.safetensors nor last.safetensors");
    };
    match Checkpoint::read(&path) {
        Ok(checkpoint) => Item::found(
            WHAT,
            format!("{}: {} tensors, every digest right", path.display(), checkpoint.tensors.len()),
        ),
        Err(error) => Item::missing(WHAT, error.to_string()),
    }
}

fn authors(root: &Path) -> Item {
    const WHAT: &str = "Commits of both members, where there are two";
    match git(root, &["shortlog", "-sne", "HEAD"]) {
        Some(list) => Item::person(
            WHAT,
            format!("authors: {}", list.lines().map(str::trim).collect::<Vec<_>>().join("; ")),
        ),
        None => Item::person(WHAT, "git does not say; look at the repository's page"),
    }
}

fn mail(root: &Path) -> Item {
    const WHAT: &str = "E-mail to the admin before 18 October";
    if root.join("experiments").join("email_sent.png").is_file() {
        return Item::found(WHAT, "experiments/email_sent.png");
    }
    let text = fs::read_to_string(root.join("experiments").join("email_admin.md")).unwrap_or_default();
    if text.is_empty() || text.contains("**Empty slot") {
        Item::missing(WHAT, "experiments/email_admin.md has the text; put the sent copy there")
    } else {
        Item::found(WHAT, "experiments/email_admin.md, sent copy filled in")
    }
}

/// What git says, in one string; None where there is no git, no repository, or nothing.
fn git(root: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn page(items: &[Item]) -> String {
    let mut text = "# Submission\n\nThe acceptance checklist, as `engine report` found it in the files. A cross is what was seen; what is left to \
                    a person is said so.\n\n"
        .to_owned();
    for item in items {
        let (mark, note) = match item.state {
            State::Found => ("x", ""),
            State::Missing => (" ", "missing: "),
            State::Person => (" ", "for a person: "),
        };
        writeln!(text, "- [{mark}] {}: {note}{}", item.what, item.says).expect("a string takes all");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(epoch: u32, top1: f64) -> String {
        format!(
            "epoch: {epoch}  train_loss: 1.000  train_top1: 70.00%  train_top5: 90.00%  val_loss: 1.000  val_top1: {top1:.2}%  \
             val_top5: 92.00%  timestamp: 2026-11-01T00:00:00Z\n"
        )
    }

    fn state(log: &str) -> (State, State) {
        let runs = parse_logs_md(log);
        (super::log(submitted(&runs)).state, accuracy(submitted(&runs)).state)
    }

    #[test]
    fn a_log_is_complete_from_epoch_1_and_its_target_confirmed() {
        let begin = "## full\n";
        assert_eq!(state(""), (State::Missing, State::Missing));
        assert_eq!(
            state(&format!("{begin}{}{}", line(1, 60.0), line(3, 76.0))),
            (State::Missing, State::Missing)
        );
        assert_eq!(
            state(&format!("{begin}{}{}", line(1, 60.0), line(2, 75.0))),
            (State::Found, State::Missing)
        );
        let confirmed = format!("{begin}{}{}{}", line(1, 60.0), line(2, 75.0), line(3, 75.2));
        assert_eq!(state(&confirmed), (State::Found, State::Person));
    }

    #[test]
    fn an_empty_clone_has_nothing_and_a_filled_slot_counts() {
        let root = tempfile::tempdir().unwrap();
        let items = checklist(root.path());
        assert!(items.iter().all(|item| item.state != State::Found), "{items:?}");
        let readme = "| YouTube demo | https://youtu.be/x |\n| Partner's e-mail | *empty* |\n";
        assert_eq!(slot(readme, "YouTube demo", "").says, "https://youtu.be/x");
        assert_eq!(slot(readme, "Partner's e-mail", "").state, State::Missing);
        fs::create_dir_all(root.path().join("ec2_screenshots")).unwrap();
        fs::write(root.path().join("ec2_screenshots/ec2_training_screenshot.png"), b"not a picture").unwrap();
        assert!(screenshot(root.path()).says.contains("no PNG"));
    }
}
