//! Folders that cannot be written, disks that are full, terminals that are none.

use crate::common::{assert_same, contents, data, engine, finish, path, set, temporary, tiny, tiny_whole};
use crate::writers::limited;
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn a_file_in_the_way() {
    let folder = temporary();
    let file = folder.path().join("file");
    fs::write(&file, b"here").unwrap();
    for output in [file.clone(), file.join("below")] {
        finish(&mut tiny(&output)).fails(1, &[path(&output), "cannot create", "--output"]);
    }
    assert_eq!(fs::read(&file).unwrap(), b"here");
}

/// None where this user may not.
pub fn mount(args: &[&str], at: &Path) -> Option<Mounted> {
    let done = Command::new("mount").args(args).arg(at).output().ok()?;
    done.status.success().then(|| Mounted(path(at).to_owned()))
}

pub struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", &self.0]).status();
    }
}

#[test]
fn a_read_only_folder() {
    let folder = temporary();
    if let Some(_mounted) = mount(&["-t", "tmpfs", "-o", "ro", "tmpfs"], folder.path()) {
        finish(&mut tiny(folder.path())).fails(1, &[path(folder.path()), "Read-only", "--output"]);
    }
    // A folder that the user may not write; root may.
    let folder = temporary();
    let mut permissions = fs::metadata(folder.path()).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(folder.path(), permissions).unwrap();
    if fs::write(folder.path().join("x"), b"").is_err() {
        finish(&mut tiny(folder.path())).fails(1, &[path(folder.path()), "--output"]);
    }
}

#[test]
fn no_space_left() {
    let folder = temporary();
    let Some(mounted) = mount(&["-t", "tmpfs", "-o", "size=2600k", "tmpfs"], folder.path()) else { return };
    let output = folder.path().join("run");
    // Filled up in the middle of the run, from outside.
    assert_eq!(finish(tiny(&output).env("ENGINE_FAILPOINT", "train.step:10")).code, None);
    let lines = fs::read_to_string(output.join("logs.md")).unwrap();
    let filler = folder.path().join("filler");
    assert!(fs::write(&filler, vec![0; 4 << 20]).is_err());
    finish(&mut tiny(&output)).fails(1, &[path(&output), "No space left", "free some space"]);
    assert_eq!(fs::read_to_string(output.join("logs.md")).unwrap(), lines, "nothing written is lost");
    fs::remove_file(&filler).unwrap();
    finish(&mut tiny(&output)).expect(0);
    assert_same(&contents(&output), tiny_whole(), "after space was made");
    drop(mounted);
}

/// The limit's signal does not kill: the write fails, and says so.
#[test]
fn a_limit_on_file_sizes() {
    let folder = temporary();
    assert_eq!(finish(tiny(folder.path()).env("ENGINE_FAILPOINT", "train.step:10")).code, None);
    limited(&tiny(folder.path()), 40).fails(1, &["checkpoints", "ulimit -f"]);
    finish(&mut tiny(folder.path())).expect(0);
    assert_same(&contents(folder.path()), tiny_whole(), "after the limit was raised");
}

#[test]
fn streams_and_terminals() {
    let folder = temporary();
    let done = finish(&mut tiny(folder.path())).expect(0);
    assert!(!done.err.contains(['\x1b', '\r']) && !done.out.contains('\x1b'), "{done:?}");
    assert!(done.err.lines().count() == 2, "opening and end: {}", done.err);

    // script(1) gives the program a terminal.
    let on_terminal = |term: &str| {
        let folder = temporary();
        let args = ["train", "--data", path(data()), "--output", path(folder.path())];
        let mut command = engine(args);
        set(&mut command, &["model.arch=resnet-tiny", "data.resolution=32", "data.batch=8", "epochs=1"]);
        let words: Vec<&str> = [command.get_program()]
            .into_iter()
            .chain(command.get_args())
            .map(|w| w.to_str().unwrap())
            .collect();
        let mut script = Command::new("script");
        script.args(["-qec", &words.join(" "), "/dev/null"]).env("TERM", term).env("NO_COLOR", "1");
        let output = script.output().ok()?;
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let Some(dumb) = on_terminal("dumb") else { return };
    if !dumb.contains("finished: 1 epoch;") {
        return; // Another script(1), or none that works here.
    }
    assert!(!dumb.contains('\x1b'), "{dumb:?}");
    let bar = on_terminal("xterm").unwrap();
    assert!(bar.contains("epoch 1/1") && bar.contains("images/s"), "{bar:?}");
    assert!(!bar.contains("\x1b[3") && !bar.contains("\x1b[1m"), "no colours: {bar:?}");
}
