//! Which rank this process is, from what launchers put into the environment.
//!
//! | launcher | rank, number of ranks | where rank 0 is |
//! |---|---|---|
//! | `torchrun --no-python`, or by hand | `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE` | `MASTER_ADDR`, `MASTER_PORT` |
//! | `mpirun` (OpenMPI) | `OMPI_COMM_WORLD_RANK`, `.._SIZE`, `.._LOCAL_RANK`, `.._LOCAL_SIZE` | this host, or `MASTER_ADDR` |
//! | `srun` (SLURM) | `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` (or `SLURM_NTASKS`), `SLURM_LOCALID` | the first host of the step |
//! | SkyPilot's `run` | `SKYPILOT_NODE_RANK`, `SKYPILOT_NUM_NODES`, with `SKYPILOT_NUM_GPUS_PER_NODE` and `LOCAL_RANK` | the first of `SKYPILOT_NODE_IPS` |
//! | Kubernetes Indexed Job | `JOB_COMPLETION_INDEX` in place of `RANK`, `WORLD_SIZE` from the manifest | `MASTER_ADDR` from the manifest |
//!
//! The first launcher of this order that is there counts. Where none is, the process is alone.

use super::digest;
use crate::error::{Error, Result};

/// A rank among those that train together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// From 0.
    pub rank: usize,
    pub size: usize,
    /// Rank among those of this host, from 0: the number of its card.
    pub local_rank: usize,
    /// Ranks of this host.
    pub local_size: usize,
    /// Where rank 0 listens; none where the launcher does not say.
    pub master: Option<Master>,
    /// What tells this start of this job from others: of the launcher's numbers, never of hosts or times.
    pub job: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Master {
    pub host: String,
    pub port: u16,
}

/// Where rank 0 listens if nobody names a port: torchrun's own default.
const PORT: u16 = 29500;

/// Ports from here on are derived from a job's number where its launcher gives none.
const FIRST_PORT: u64 = 20_000;
const PORTS: u64 = 10_000;

impl World {
    pub const ALONE: Self = Self { rank: 0, size: 1, local_rank: 0, local_size: 1, master: None, job: 0 };

    pub fn is_alone(&self) -> bool {
        self.size == 1
    }

    /// From this process's environment.
    pub fn from_environment() -> Result<Self> {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    /// `get` gives the value of a variable.
    pub fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let variables = Variables { get };
        let found = match () {
            () if variables.any(&["RANK", "WORLD_SIZE"]) => by_rank(&variables),
            () if variables.any(&["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"]) => by_openmpi(&variables),
            // In a batch script outside srun there are numbers of tasks, and no tasks.
            () if variables.has("SLURM_STEP_ID") && variables.has("SLURM_PROCID") => by_slurm(&variables),
            () if variables.has("SKYPILOT_NUM_NODES") => by_skypilot(&variables),
            () => by_index(&variables),
        }?;
        found.check()
    }

    fn check(self) -> Result<Self> {
        let Self { rank, size, local_rank, local_size, .. } = self;
        let wrong = |text: String| {
            Err(Error::usage(format!("{text}; the launcher's variables contradict each other")))
        };
        if size == 0 || rank >= size {
            return wrong(format!(
                "this is rank {rank} of {size}, ranks count from 0 to {}",
                size.max(1) - 1
            ));
        }
        if local_size == 0 || local_rank >= local_size {
            return wrong(format!("this is rank {local_rank} of {local_size} on its host"));
        }
        if local_size > size {
            return wrong(format!("{local_size} ranks on this host, {size} in all"));
        }
        Ok(self)
    }
}

struct Variables<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
}

impl Variables<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.get)(name).filter(|value| !value.trim().is_empty())
    }

    fn has(&self, name: &str) -> bool {
        self.text(name).is_some()
    }

    fn any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.has(name))
    }

    fn number(&self, name: &str) -> Result<Option<usize>> {
        self.text(name)
            .map(|text| {
                text.trim()
                    .parse()
                    .map_err(|_| Error::usage(format!("{name}={text} is no number, as a launcher sets it")))
            })
            .transpose()
    }

    /// One that must be there because `beside` is.
    fn needed(&self, name: &str, beside: &str) -> Result<usize> {
        self.number(name)?.ok_or_else(|| {
            Error::usage(format!(
                "{beside} is set and {name} is not: a launcher sets both; set {name}, or unset {beside} to train alone"
            ))
        })
    }

    fn master(&self, host: Option<String>, port: Option<u16>) -> Result<Option<Master>> {
        let Some(host) = self.text("MASTER_ADDR").or(host) else { return Ok(None) };
        let given = self.number("MASTER_PORT")?;
        let given = given
            .map(|port| {
                u16::try_from(port)
                    .ok()
                    .filter(|&port| port > 0)
                    .ok_or_else(|| Error::usage(format!("MASTER_PORT={port}, expected 1 to 65535")))
            })
            .transpose()?;
        let mut port = given.or(port).unwrap_or(PORT);
        // torchrun's agent listens on the port itself.
        if self.text("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            port = port.checked_add(1).unwrap_or(PORT);
        }
        Ok(Some(Master { host: host.trim().to_owned(), port }))
    }

    /// A number of what identifies a start of a job.
    fn job(&self, names: &[&str]) -> u64 {
        let values: Vec<String> = names.iter().map(|name| self.text(name).unwrap_or_default()).collect();
        digest(&values.join("\n"))
    }
}

fn by_rank(variables: &Variables) -> Result<World> {
    let size = variables.needed("WORLD_SIZE", "RANK")?;
    let rank = match (variables.number("RANK")?, variables.number("JOB_COMPLETION_INDEX")?) {
        (Some(rank), _) | (None, Some(rank)) => rank,
        (None, None) => variables.needed("RANK", "WORLD_SIZE")?,
    };
    let local_rank = variables.number("LOCAL_RANK")?;
    // By hand on one host, or one rank a host.
    let local_size = variables.number("LOCAL_WORLD_SIZE")?.unwrap_or(match local_rank {
        Some(_) if variables.text("MASTER_ADDR").is_none_or(|host| is_this_host(&host)) => size,
        Some(local) => local + 1,
        None => 1,
    });
    let master = variables.master(None, None)?;
    if size > 1 && master.is_none() {
        return Err(Error::usage(
            "WORLD_SIZE is above 1 and MASTER_ADDR is not set: it names the host of rank 0",
        ));
    }
    let job = variables.job(&["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID"]);
    Ok(World { rank, size, local_rank: local_rank.unwrap_or(0), local_size, master, job })
}

fn is_this_host(host: &str) -> bool {
    matches!(host.trim(), "127.0.0.1" | "localhost" | "::1")
}

fn by_openmpi(variables: &Variables) -> Result<World> {
    let rank = variables.needed("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")?;
    let size = variables.needed("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")?;
    let local_rank = variables.number("OMPI_COMM_WORLD_LOCAL_RANK")?.unwrap_or(0);
    let local_size = variables.number("OMPI_COMM_WORLD_LOCAL_SIZE")?.unwrap_or(size);
    let job = variables.job(&["OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE"]);
    let here = (local_size == size).then(|| "127.0.0.1".to_owned());
    let master = variables.master(here, Some(derived_port(job)))?;
    Ok(World { rank, size, local_rank, local_size, master, job })
}

fn by_slurm(variables: &Variables) -> Result<World> {
    let rank = variables.needed("SLURM_PROCID", "SLURM_STEP_ID")?;
    let size = match variables.number("SLURM_STEP_NUM_TASKS")? {
        Some(size) => size,
        None => variables.needed("SLURM_NTASKS", "SLURM_PROCID")?,
    };
    let local_rank = variables.number("SLURM_LOCALID")?.unwrap_or(0);
    // `2(x3),1` is one number for each node; this node's own is at its place.
    let node = variables.number("SLURM_NODEID")?.unwrap_or(0);
    let per_node =
        variables.text("SLURM_STEP_TASKS_PER_NODE").or_else(|| variables.text("SLURM_TASKS_PER_NODE"));
    let local_size = per_node.and_then(|text| tasks_of(&text, node)).unwrap_or(size.min(local_rank + 1));
    let hosts = variables.text("SLURM_STEP_NODELIST").or_else(|| variables.text("SLURM_JOB_NODELIST"));
    let job = variables.job(&["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"]);
    let number = variables.number("SLURM_JOB_ID")?.unwrap_or(0) as u64;
    let port = FIRST_PORT + number % PORTS;
    let master = variables.master(hosts.as_deref().and_then(first_host), Some(port as u16))?;
    if size > 1 && master.is_none() {
        return Err(Error::usage(
            "SLURM runs several tasks and names no hosts (SLURM_STEP_NODELIST): set MASTER_ADDR to the host of task 0",
        ));
    }
    Ok(World { rank, size, local_rank, local_size, master, job })
}

/// The `node`-th number of `2(x3),1`.
fn tasks_of(text: &str, node: usize) -> Option<usize> {
    let mut left = node;
    for part in text.split(',') {
        let (tasks, times) = match part.split_once("(x") {
            Some((tasks, times)) => (tasks, times.trim_end_matches(')').parse().ok()?),
            None => (part, 1),
        };
        if left < times {
            return tasks.trim().parse().ok();
        }
        left -= times;
    }
    None
}

/// The first host of `gpu[03-07,12],login`.
fn first_host(list: &str) -> Option<String> {
    let list = list.trim();
    let end = list.find([',', '[']).unwrap_or(list.len());
    let name = &list[..end];
    if !list[end..].starts_with('[') {
        return (!name.is_empty()).then(|| name.to_owned());
    }
    let (inside, rest) = list[end + 1..].split_once(']')?;
    let first = inside.split([',', '-']).next()?;
    let suffix = rest.split(',').next().unwrap_or("");
    Some(format!("{name}{first}{suffix}"))
}

fn by_skypilot(variables: &Variables) -> Result<World> {
    let nodes = variables.needed("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK")?;
    let gpus = variables.number("SKYPILOT_NUM_GPUS_PER_NODE")?.unwrap_or(0).max(1);
    let node = match nodes {
        1 => variables.number("SKYPILOT_NODE_RANK")?.unwrap_or(0),
        _ => variables.needed("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES")?,
    };
    let local_rank = match gpus {
        1 => 0,
        _ => variables.number("LOCAL_RANK")?.ok_or_else(|| {
            Error::usage(format!(
                "SkyPilot starts one command a node, and a node has {gpus} GPUs: start engine {gpus} times, with LOCAL_RANK=0 to {} \
                 (configs/cloud/skypilot.yaml has the loop), or through torchrun",
                gpus - 1
            ))
        })?,
    };
    let first = variables.text("SKYPILOT_NODE_IPS").and_then(|ips| ips.lines().next().map(str::to_owned));
    let job = variables.job(&["SKYPILOT_TASK_ID", "SKYPILOT_INTERNAL_JOB_ID"]);
    let master = variables.master(first, None)?;
    let (rank, size) = (node * gpus + local_rank, nodes * gpus);
    if size > 1 && master.is_none() {
        return Err(Error::usage("SKYPILOT_NODE_IPS is empty: set MASTER_ADDR to the address of node 0"));
    }
    Ok(World { rank, size, local_rank, local_size: gpus, master, job })
}

/// An Indexed Job of one pod has an index too.
fn by_index(variables: &Variables) -> Result<World> {
    match variables.number("JOB_COMPLETION_INDEX")? {
        None | Some(0) => Ok(World::ALONE),
        Some(index) => Err(Error::usage(format!(
            "JOB_COMPLETION_INDEX is {index} and WORLD_SIZE is not set: give the pods WORLD_SIZE (the Job's completions) and \
             MASTER_ADDR (the host name of pod 0), as configs/cloud/kubernetes.yaml does"
        ))),
    }
}

fn derived_port(job: u64) -> u16 {
    (FIRST_PORT + job % PORTS) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn world(variables: &[(&str, &str)]) -> Result<World> {
        let map: BTreeMap<&str, &str> = variables.iter().copied().collect();
        World::from_variables(&|name| map.get(name).map(|value| (*value).to_owned()))
    }

    fn place(world: &World) -> (usize, usize, usize, usize) {
        (world.rank, world.size, world.local_rank, world.local_size)
    }

    fn at(world: &World) -> (String, u16) {
        let master = world.master.clone().expect("there is a master");
        (master.host, master.port)
    }

    #[test]
    fn nobody_else() {
        assert_eq!(world(&[]).unwrap(), World::ALONE);
        // A batch script without srun, an Indexed Job of one pod, a SkyPilot task of one GPU.
        assert!(world(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]).unwrap().is_alone());
        assert!(world(&[("JOB_COMPLETION_INDEX", "0")]).unwrap().is_alone());
        let sky =
            [("SKYPILOT_NUM_NODES", "1"), ("SKYPILOT_NODE_RANK", "0"), ("SKYPILOT_NUM_GPUS_PER_NODE", "1")];
        assert!(world(&sky).unwrap().is_alone());
    }

    #[test]
    fn torchrun() {
        let variables = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", "10.0.0.7"),
            ("MASTER_PORT", "1234"),
        ];
        let found = world(&variables).unwrap();
        assert_eq!((place(&found), at(&found)), ((5, 8, 1, 4), ("10.0.0.7".into(), 1234)));
        let agent = [&variables[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(at(&world(&agent).unwrap()).1, 1235, "the agent has the port itself");
        let restarted = [&variables[..], &[("TORCHELASTIC_RESTART_COUNT", "1")]].concat();
        assert_ne!(world(&restarted).unwrap().job, found.job);
    }

    #[test]
    fn mpirun_srun_skypilot_and_kubernetes() {
        let found = world(&[
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ])
        .unwrap();
        assert_eq!((place(&found), at(&found).0.as_str()), ((1, 2, 1, 2), "127.0.0.1"));
        let found = world(&[
            ("SLURM_PROCID", "6"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_LOCALID", "2"),
            ("SLURM_NODEID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
            ("SLURM_STEP_NODELIST", "gpu[03-04]"),
            ("SLURM_JOB_ID", "4711"),
        ])
        .unwrap();
        assert_eq!((place(&found), at(&found)), ((6, 8, 2, 4), ("gpu03".into(), 24_711)));
        let found = world(&[
            ("SKYPILOT_NUM_NODES", "2"),
            ("SKYPILOT_NODE_RANK", "1"),
            ("SKYPILOT_NUM_GPUS_PER_NODE", "4"),
            ("SKYPILOT_NODE_IPS", "10.1.0.1\n10.1.0.2"),
            ("LOCAL_RANK", "3"),
        ])
        .unwrap();
        assert_eq!((place(&found), at(&found)), ((7, 8, 3, 4), ("10.1.0.1".into(), 29_500)));
        let found = world(&[
            ("JOB_COMPLETION_INDEX", "3"),
            ("WORLD_SIZE", "4"),
            ("MASTER_ADDR", "resnet50-0.resnet50"),
        ])
        .unwrap();
        assert_eq!((place(&found), at(&found).0.as_str()), ((3, 4, 0, 1), "resnet50-0.resnet50"));
    }

    #[test]
    fn lists_of_slurm() {
        let hosts = ["a", "a,b", "gpu[03-07,12]", "n[1,3]-ib,m", "rack2-gpu[001-128],x"];
        assert_eq!(hosts.map(|list| first_host(list).unwrap()), ["a", "a", "gpu03", "n1-ib", "rack2-gpu001"]);
        assert_eq!([0, 1, 2, 3].map(|node| tasks_of("2(x2),1", node)), [Some(2), Some(2), Some(1), None]);
    }

    #[test]
    fn contradictions_are_sentences() {
        let refused = |variables: &[(&str, &str)]| world(variables).unwrap_err();
        for (variables, parts) in [
            (&[("RANK", "0")][..], ["RANK is set and WORLD_SIZE is not", "unset RANK"]),
            (&[("WORLD_SIZE", "2")], ["WORLD_SIZE is set and RANK is not", "set RANK"]),
            (&[("RANK", "2"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "x")], ["rank 2 of 2", "contradict"]),
            (&[("RANK", "x"), ("WORLD_SIZE", "2")], ["RANK=x is no number", "launcher"]),
            (&[("RANK", "-1"), ("WORLD_SIZE", "2")], ["RANK=-1 is no number", "launcher"]),
            (&[("RANK", "0"), ("WORLD_SIZE", "0")], ["rank 0 of 0", "contradict"]),
            (&[("RANK", "0"), ("WORLD_SIZE", "2")], ["MASTER_ADDR is not set", "rank 0"]),
            (
                &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "70000")],
                ["MASTER_PORT=70000", "65535"],
            ),
            (&[("OMPI_COMM_WORLD_RANK", "1")], ["OMPI_COMM_WORLD_SIZE is not", "alone"]),
            (&[("JOB_COMPLETION_INDEX", "1")], ["WORLD_SIZE is not set", "MASTER_ADDR"]),
            (
                &[
                    ("SKYPILOT_NUM_NODES", "1"),
                    ("SKYPILOT_NUM_GPUS_PER_NODE", "4"),
                    ("SKYPILOT_NODE_IPS", "x"),
                ],
                ["4 GPUs", "LOCAL_RANK=0 to 3"],
            ),
        ] {
            let error = refused(variables);
            assert_eq!(error.exit_code(), 2, "{error}");
            for part in parts {
                assert!(error.message.contains(part), "{part:?} in {error}");
            }
        }
    }
}
