//! Starting ranks, and what became of them.

use crate::common::{temporary, wait_until};
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Who starts the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// This program, with torchrun's variables.
    Variables,
    /// OpenMPI.
    Mpirun,
}

impl Launcher {
    /// Those that there are; what is missing is said.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Variables];
        let has_mpirun = Command::new("mpirun").arg("--version").output().is_ok();
        match (cfg!(feature = "mpi"), has_mpirun) {
            (true, true) => all.push(Self::Mpirun),
            (true, false) => eprintln!("skipped under mpirun: OpenMPI is not installed"),
            (false, _) => eprintln!("skipped under mpirun: built without the feature mpi"),
        }
        all
    }
}

/// A whole run, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs a rank and keeps its number, code and words. `mpirun` ends all ranks as soon as one of them has ended, so each
/// waits for the others.
const SCRIPT: &str = r#"
rank=${RANK:-$OMPI_COMM_WORLD_RANK}
eval "extra=\${EXTRA_$rank:-}"
for arg do
    shift
    case $arg in */RANK.toml) arg=${arg%RANK.toml}$rank.toml ;; esac
    set -- "$@" "$arg"
done
env $extra "$ENGINE" "$@" >"$FOLDER/out.$rank" 2>"$FOLDER/err.$rank" &
pid=$!
echo $pid >"$FOLDER/pid.$rank.new" && mv "$FOLDER/pid.$rank.new" "$FOLDER/pid.$rank"
wait $pid
echo $? >"$FOLDER/code.$rank.new" && mv "$FOLDER/code.$rank.new" "$FOLDER/code.$rank"
while [ "$(ls "$FOLDER"/code.? | wc -l)" -lt "$SIZE" ]; do sleep 0.05; done
"#;

/// Ranks that run.
pub struct Ranks {
    size: usize,
    folder: TempDir,
    starters: Vec<Child>,
}

impl Ranks {
    /// `extra`: variables of single ranks.
    pub fn start(launcher: Launcher, size: usize, args: &[String], extra: &[(usize, &str)]) -> Self {
        let folder = temporary();
        let command = |program: &str| {
            let mut command = Command::new(program);
            for (name, _) in std::env::vars_os() {
                let name = name.to_string_lossy().into_owned();
                let is_told =
                    ["ENGINE_", "OMPI_", "PMIX_", "SLURM_"].iter().any(|prefix| name.starts_with(prefix));
                if is_told || ["DATA_DIR", "OUTPUT_DIR", "RANK", "WORLD_SIZE"].contains(&name.as_str()) {
                    command.env_remove(name);
                }
            }
            command
                .env("ENGINE", env!("CARGO_BIN_EXE_engine"))
                .env("FOLDER", folder.path())
                .env("SIZE", size.to_string())
                .env("ENGINE_RANK_PATIENCE", "4")
                .stdin(Stdio::null());
            for (rank, variable) in extra {
                command.env(format!("EXTRA_{rank}"), variable);
            }
            command
        };
        let run =
            |command: &mut Command| command.args(["sh", "-c", SCRIPT, "sh"]).args(args).spawn().unwrap();
        let starters = match launcher {
            Launcher::Mpirun => {
                let mut mpirun = command("mpirun");
                mpirun.args([
                    "--allow-run-as-root",
                    "--oversubscribe",
                    "--bind-to",
                    "none",
                    "-np",
                    &size.to_string(),
                ]);
                vec![run(mpirun.stderr(Stdio::null()))]
            }
            Launcher::Variables => {
                let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
                let place = |rank: usize| {
                    [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", size), ("LOCAL_WORLD_SIZE", size)]
                        .map(|(name, value)| (name, value.to_string()))
                };
                let start = |rank: usize| {
                    let mut env = command("env");
                    env.envs(place(rank))
                        .env("MASTER_ADDR", "127.0.0.1")
                        .env("MASTER_PORT", free.to_string());
                    run(&mut env)
                };
                (0..size).map(start).collect()
            }
        };
        Self { size, folder, starters }
    }

    fn file(&self, what: &str, rank: usize) -> PathBuf {
        self.folder.path().join(format!("{what}.{rank}"))
    }

    fn read(&self, what: &str, rank: usize) -> String {
        fs::read_to_string(self.file(what, rank)).unwrap_or_default()
    }

    /// Sends a signal to one rank.
    pub fn signal(&self, rank: usize, name: &str) {
        wait_until("a rank to start", || self.file("pid", rank).exists());
        let pid = self.read("pid", rank);
        assert!(Command::new("kill").args([&format!("-{name}"), pid.trim()]).status().unwrap().success());
    }

    /// The exit code of one rank, once it has ended.
    pub fn code(&self, rank: usize) -> i32 {
        let began = Instant::now();
        while !self.file("code", rank).exists() {
            assert!(began.elapsed() < PATIENCE, "rank {rank} does not end\n{}", self.messages());
            sleep(Duration::from_millis(20));
        }
        self.read("code", rank).trim().parse().unwrap()
    }

    /// Those of all, once they have ended.
    pub fn codes(&mut self) -> Vec<i32> {
        let codes = (0..self.size).map(|rank| self.code(rank)).collect();
        self.starters.drain(..).for_each(|mut starter| assert!(starter.wait().is_ok()));
        codes
    }

    /// What a rank said on stderr.
    pub fn said(&self, rank: usize) -> String {
        self.read("err", rank)
    }

    /// The same of all, for messages.
    pub fn messages(&self) -> String {
        (0..self.size).map(|rank| format!("rank {rank}:\n{}\n", self.said(rank))).collect()
    }
}

impl Drop for Ranks {
    /// A test that failed leaves nothing running.
    fn drop(&mut self) {
        if self.starters.is_empty() {
            return;
        }
        for rank in 0..self.size {
            let pid = self.read("pid", rank);
            if !pid.is_empty() && !self.file("code", rank).exists() {
                let _ = Command::new("kill").args(["-KILL", pid.trim()]).status();
            }
        }
        self.starters.iter_mut().for_each(|starter| drop(starter.wait()));
    }
}
