//! Runs that are cut short, files that people edit.

use std::fs;

use super::*;

fn header() -> RunHeader {
    let configuration = "batch 256, SGD, lr 0.1".into();
    RunHeader { id: "3f2a91c0".into(), name: "resnet50-90".into(), configuration }
}

fn scores(epoch: u32) -> EpochScores {
    let at = f64::from(epoch);
    let train = Scores { loss: 7.0 / at, top1: 2.0 * at, top5: 5.0 * at };
    let val = Scores { loss: 6.5 / at, top1: 2.5 * at, top5: 6.0 * at };
    EpochScores { epoch, step: u64::from(epoch) * 2, train, val }
}

fn history(epochs: u32) -> Vec<EpochScores> {
    (1..=epochs).map(scores).collect()
}

fn record(step: u64) -> StepRecord {
    let clock = StepClock { images_per_second: 1234.5, wait: 0.25 };
    let scores = Scores { loss: 1.0 / step as f64, top1: 1.5, top5: 6.25 };
    StepRecord {
        epoch: (step as u32).div_ceil(2),
        step,
        scores,
        lr: 0.1,
        images: step * 256,
        loss_scale: 1.0,
        skipped: false,
        clock,
    }
}

/// Trains epochs `from..=to` of two steps each.
fn train(log: &mut RunLog, from: u32, to: u32) {
    for epoch in from..=to {
        for step in [2 * epoch - 1, 2 * epoch] {
            log.step(&record(u64::from(step))).unwrap();
        }
        log.epoch(&scores(epoch)).unwrap();
    }
}

/// Both texts, with timestamps and clocks taken out.
fn texts(output: &Path) -> (String, String) {
    let logs = fs::read_to_string(output.join("logs.md")).unwrap();
    let mut lines = Vec::new();
    for line in logs.lines() {
        let is_epoch = line.starts_with("epoch:");
        assert!(!is_epoch || scores::is_timestamp(line.rsplit("  timestamp: ").next().unwrap()), "{line}");
        lines.push(line.split("  timestamp: ").next().unwrap());
    }
    let metrics = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let without_clock = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().remove("clock");
        value.to_string()
    };
    (lines.join("\n"), metrics.lines().map(without_clock).collect::<Vec<_>>().join("\n"))
}

fn uninterrupted(epochs: u32) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut log = RunLog::open(folder.path(), &header(), &[], 0).unwrap();
    train(&mut log, 1, epochs);
    texts(folder.path())
}

#[test]
fn a_new_file_is_header_section_lines() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = RunLog::open(folder.path(), &header(), &[], 0).unwrap();
    train(&mut log, 1, 2);
    log.note("stopped at step 4").unwrap();
    // A kill in the middle of the note, then the note again, and again.
    let path = folder.path().join("logs.md");
    fs::write(&path, fs::read_to_string(&path).unwrap().trim_end_matches("at step 4\n")).unwrap();
    log.note("stopped at step 4").unwrap();
    log.note("stopped at step 4").unwrap();
    log.finish().unwrap();
    let logs = fs::read_to_string(folder.path().join("logs.md")).unwrap();
    let body = logs.strip_prefix(markdown::HEADER).unwrap();
    let lines: Vec<&str> = body.lines().collect();
    assert!(lines[0].starts_with("## resnet50-90, 20"), "{body}");
    let fixed = ["<!-- run: 3f2a91c0 -->", "", "batch 256, SGD, lr 0.1", "", "```text"];
    assert_eq!(lines[1..6], fixed, "{body}");
    assert!(lines[6].starts_with("epoch: 1  train_loss: 7.000  train_top1: 2.00%"), "{body}");
    assert!(lines[7].starts_with("epoch: 2  "), "{body}");
    assert_eq!(lines[8..], ["note: stopped at step 4", "```"], "{body}");
    let metrics = fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
    let second = metrics.lines().nth(1).unwrap();
    assert_eq!(
        second,
        r#"{"kind":"step","epoch":1,"step":1,"loss":1.0,"lr":0.1,"top1":1.5,"top5":6.25,"images":256,"loss_scale":1.0,"skipped":false,"clock":{"images_per_second":1234.5,"wait":0.25}}"#
    );
    assert!(fs::read_to_string(folder.path().join("curve.svg")).unwrap().contains("<polyline"));
}

/// A kill at any byte of either file: whatever is left, the resumed run's files are the uninterrupted run's.
#[test]
fn a_resume_after_any_cut_equals_the_uninterrupted_run() {
    // Hundreds of resumes: in memory where the machine has such a folder, fsync would take most of the time.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let output = folder.path();
    let mut log = RunLog::open(output, &header(), &[], 0).unwrap();
    train(&mut log, 1, 3);
    drop(log);
    let (logs, metrics) =
        (fs::read(output.join("logs.md")).unwrap(), fs::read(output.join("metrics.jsonl")).unwrap());
    let whole = uninterrupted(4);
    // The section is opened in one rename; only lines can be torn.
    let opened = logs.windows(7).position(|bytes| bytes == b"epoch: ").unwrap();
    for cut in (0..170).chain((170..logs.len().max(metrics.len())).step_by(7)) {
        fs::write(output.join("logs.md"), &logs[..logs.len().saturating_sub(cut).max(opened)]).unwrap();
        // The checkpoint is at step 2, so that everything up to there was made durable before it.
        let durable = metrics.split_inclusive(|&b| b == b'\n').take(4).map(<[u8]>::len).sum();
        fs::write(output.join("metrics.jsonl"), &metrics[..metrics.len().saturating_sub(cut).max(durable)])
            .unwrap();
        let mut log = RunLog::open(output, &header(), &history(1), 2).unwrap();
        assert!(log.warnings().is_empty());
        train(&mut log, 2, 4);
        drop(log);
        assert_eq!(texts(output), whole, "cut {cut} bytes");
    }
}

#[test]
fn lines_that_agree_keep_their_timestamps_and_lost_ones_get_theirs_from_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path();
    let mut log = RunLog::open(output, &header(), &[], 0).unwrap();
    train(&mut log, 1, 3);
    drop(log);
    for name in ["logs.md", "metrics.jsonl"] {
        let text = fs::read_to_string(output.join(name)).unwrap();
        let today = &timestamp(SystemTime::now())[..10];
        fs::write(output.join(name), text.replace(&format!("{today}T"), "2001-02-03T")).unwrap();
    }
    let before = fs::read_to_string(output.join("logs.md")).unwrap();
    let without_first: Vec<&str> = before.lines().filter(|line| !line.starts_with("epoch: 2")).collect();
    fs::write(output.join("logs.md"), without_first.join("\n")).unwrap();
    drop(RunLog::open(output, &header(), &history(3), 6).unwrap());
    assert_eq!(fs::read_to_string(output.join("logs.md")).unwrap(), before);
}

#[test]
fn text_that_people_wrote_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("logs.md");
    let mut log = RunLog::open(folder.path(), &header(), &[], 0).unwrap();
    train(&mut log, 1, 1);
    let text = fs::read_to_string(&path).unwrap();
    let edited = format!("{text}```\n\nWe saw a plateau here.\n\n## Notes\n\nepoch: 7 was odd\n")
        .replace('\n', "\r\n");
    fs::write(&path, &edited).unwrap();
    train(&mut log, 2, 2);
    let got = fs::read_to_string(&path).unwrap();
    let line = format!("{}\r\n", scores(2).line(&timestamp(SystemTime::now())));
    let place = edited.find("```\r\n\r\nWe saw").unwrap();
    assert!(got.starts_with(&edited[..place]) && got.ends_with(&edited[place..]), "{got}");
    assert_eq!(got.len(), edited.len() + line.len(), "{got}");
}

#[test]
fn several_runs_in_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path();
    let other = RunHeader { id: "other".into(), name: "second".into(), ..header() };
    train(&mut RunLog::open(output, &header(), &[], 0).unwrap(), 1, 2);
    train(&mut RunLog::open(output, &other, &[], 0).unwrap(), 1, 3);
    // The first run goes on from its first epoch: its own lines alone are cut and written again.
    train(&mut RunLog::open(output, &header(), &history(1), 2).unwrap(), 2, 4);
    let logs = fs::read_to_string(output.join("logs.md")).unwrap();
    let runs = parse_logs_md(&logs);
    assert_eq!(runs.iter().map(|run| run.lines.len()).collect::<Vec<_>>(), [4, 3], "{logs}");
    assert_eq!(logs.matches("```").count(), 3, "the first fence was closed: {logs}");
    let metrics = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let count = |kind: &str| metrics.matches(&format!("\"kind\":\"{kind}\"")).count();
    assert_eq!((count("run"), count("epoch"), count("step")), (3, 7, 14), "{metrics}");
    // And once more: the run's lines stand in two places of the file.
    train(&mut RunLog::open(output, &header(), &history(3), 6).unwrap(), 4, 4);
    let again = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    assert_eq!(again.matches("\"kind\":\"step\"").count(), 14, "{again}");
}

#[test]
fn a_section_that_was_moved_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("logs.md");
    let mut log = RunLog::open(folder.path(), &header(), &[], 0).unwrap();
    train(&mut log, 1, 2);
    let text = fs::read_to_string(&path).unwrap();
    let section = text.strip_prefix(markdown::HEADER).unwrap();
    let line = scores(9).line("2024-01-01T00:00:00Z");
    let moved = format!("{section}```\n\n# Older\n\n{line}\n");
    fs::write(&path, &moved).unwrap();
    train(&mut log, 3, 3);
    let runs = parse_logs_md(&fs::read_to_string(&path).unwrap());
    let epochs = |i: usize| runs[i].lines.iter().map(|line| line.epoch).collect::<Vec<_>>();
    assert_eq!((epochs(0), epochs(1)), (vec![1, 2, 3], vec![9]));
}

#[test]
fn lines_that_were_changed_or_shuffled_are_put_right() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("logs.md");
    let mut log = RunLog::open(folder.path(), &header(), &[], 0).unwrap();
    train(&mut log, 1, 3);
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let first = lines.iter().position(|line| line.starts_with("epoch: 1")).unwrap();
    lines.swap(first, first + 2);
    lines[first + 1] = lines[first + 1].replace("4.00%", "99.00%");
    let duplicate = lines[first].clone();
    lines.push(duplicate);
    lines.push("epoch: torn".into());
    fs::write(&path, lines.join("\n")).unwrap();
    train(&mut log, 4, 4);
    assert_eq!(texts(folder.path()).0, uninterrupted(4).0);
}

#[test]
fn files_that_cannot_be_written_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("logs.md");
    let mut log = RunLog::open(folder.path(), &header(), &[], 0).unwrap();
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    let message = log.epoch(&scores(1)).unwrap_err().message;
    assert!(message.contains("logs.md") && message.contains("--output"), "{message}");
    fs::remove_file(&path).unwrap();
    fs::write(&path, [0xff, 0xfe]).unwrap();
    let message = RunLog::open(folder.path(), &header(), &[], 0).unwrap_err().message;
    assert!(message.contains("not UTF-8"), "{message}");
}

#[test]
fn lost_metrics_are_reported_and_a_lost_log_is_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    train(&mut RunLog::open(folder.path(), &header(), &[], 0).unwrap(), 1, 3);
    fs::remove_file(folder.path().join("logs.md")).unwrap();
    fs::remove_file(folder.path().join("metrics.jsonl")).unwrap();
    let log = RunLog::open(folder.path(), &header(), &history(3), 6).unwrap();
    assert!(log.warnings()[0].contains("the steps 1 to 6"), "{:?}", log.warnings());
    assert_eq!(texts(folder.path()).0, uninterrupted(3).0);
}

#[test]
fn a_plot_needs_a_line() {
    let message = plot_logs_md(markdown::HEADER, Which::Last).unwrap_err().message;
    assert!(message.contains("no epoch line"), "{message}");
    let text = history(3).iter().map(|scores| scores.fields() + "\n").collect::<String>();
    let svg = plot_logs_md(&format!("## a < b\n{text}## c\n{text}"), Which::All).unwrap();
    assert_eq!(svg.matches("<polyline").count(), 4);
    assert!(svg.contains("a &lt; b") && svg.contains("2 runs"), "{svg}");
}
