//! Reads the environment of a launcher: torchrun, or Slurm's srun.

use std::time::Duration;

use crate::error::{Error, Result};

/// The port of the store if the launcher does not choose one, as in torch.
const PORT: u16 = 29500;

/// The place of this process among the processes of a launcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name of the launcher, for messages.
    pub launcher: &'static str,
    /// Index of this process, counted from 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// Index of this process among those on the same machine.
    pub local_rank: usize,
    /// Name or address of the machine of rank 0.
    pub host: String,
    /// Port of the store on that machine.
    pub port: u16,
    /// True if the launcher hosts the store. Otherwise, rank 0 hosts it.
    pub hosted: bool,
    /// Prefix of all keys in the store. It differs between restarts of the processes.
    pub prefix: String,
}

impl Launch {
    /// Reads the variables of this process. Returns `None` if it was not started by a launcher with
    /// more than one process.
    ///
    /// # Errors
    /// Fails if a variable is missing or is not valid.
    pub fn from_environment() -> Result<Option<Self>> {
        Self::read(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let launch = if variable("RANK").is_some() || variable("WORLD_SIZE").is_some() {
            torchrun(variable)?
        } else if let Some(tasks) = variable("SLURM_STEP_NUM_TASKS") {
            // Only srun sets the variable. A batch script without srun is one rank.
            if tasks == "1" {
                return Ok(None);
            }
            slurm(variable)?
        } else {
            return Ok(None);
        };
        if launch.rank >= launch.size {
            return Err(Error::new(format!(
                "the rank {} is not below the number of ranks, {}",
                launch.rank, launch.size
            ))
            .hint(format!("check the variables that {} sets", launch.launcher)));
        }
        Ok(Some(launch).filter(|launch| launch.size > 1))
    }

    /// How long a rank waits for the others at the start.
    pub fn patience() -> Duration {
        Duration::from_secs(25)
    }
}

fn torchrun(variable: &dyn Fn(&str) -> Option<String>) -> Result<Launch> {
    let run = variable("TORCHELASTIC_RUN_ID").unwrap_or_default();
    let restarts = variable("TORCHELASTIC_RESTART_COUNT").unwrap_or_else(|| "0".to_owned());
    let rank = number(variable, "RANK")?;
    Ok(Launch {
        launcher: "torchrun",
        rank,
        size: number(variable, "WORLD_SIZE")?,
        local_rank: variable("LOCAL_RANK").map_or(Ok(rank), |_| number(variable, "LOCAL_RANK"))?,
        host: required(variable, "MASTER_ADDR")?,
        port: number(variable, "MASTER_PORT")?,
        hosted: variable("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True"),
        prefix: format!("reprpo/{run}/{restarts}/"),
    })
}

fn slurm(variable: &dyn Fn(&str) -> Option<String>) -> Result<Launch> {
    let job = variable("SLURM_JOB_ID").unwrap_or_default();
    let step = variable("SLURM_STEP_ID").unwrap_or_default();
    let host = match variable("MASTER_ADDR") {
        Some(host) => host,
        None => first_host(&required(variable, "SLURM_STEP_NODELIST")?),
    };
    // Jobs on one machine need different ports. They are outside the range that Linux assigns to
    // outgoing connections.
    let by_job = |job: &str| job.parse::<u32>().map_or(PORT, |job| 20_000 + (job % 10_000) as u16);
    Ok(Launch {
        launcher: "srun",
        rank: number(variable, "SLURM_PROCID")?,
        size: number(variable, "SLURM_STEP_NUM_TASKS")?,
        local_rank: number(variable, "SLURM_LOCALID")?,
        host,
        port: match variable("MASTER_PORT") {
            Some(_) => number(variable, "MASTER_PORT")?,
            None => by_job(&job),
        },
        hosted: false,
        prefix: format!(
            "reprpo/{job}.{step}/{}/",
            variable("SLURM_RESTART_COUNT").unwrap_or_default()
        ),
    })
}

/// The first host of Slurm's notation, such as `gpu[03-05,9],cpu1`.
fn first_host(list: &str) -> String {
    let end = list.find(',').filter(|comma| list.find('[').is_none_or(|open| *comma < open));
    let first = &list[..end.unwrap_or(list.len())];
    let Some((name, rest)) = first.split_once('[') else { return first.to_owned() };
    let (numbers, _) = rest.split_once(']').unwrap_or((rest, ""));
    let number = numbers.split([',', '-']).next().unwrap_or_default();
    format!("{name}{number}")
}

fn required(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<String> {
    variable(name).ok_or_else(|| {
        Error::new(format!("the environment variable `{name}` is not set"))
            .hint("start several ranks with `torchrun --no-python` or with `srun`")
            .hint("for a single rank, unset `RANK` and `WORLD_SIZE`")
    })
}

fn number<T: std::str::FromStr>(
    variable: &dyn Fn(&str) -> Option<String>,
    name: &str,
) -> Result<T> {
    let text = required(variable, name)?;
    text.parse().map_err(|_| {
        Error::new(format!("the environment variable `{name}` is `{text}`, not a valid number"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        Launch::read(&|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    const TORCHRUN: [(&str, &str); 8] = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node1"),
        ("MASTER_PORT", "29400"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ("TORCHELASTIC_RUN_ID", "abc"),
        ("TORCHELASTIC_RESTART_COUNT", "2"),
    ];

    #[test]
    fn torchrun_hosts_the_store() {
        let launch = read(&TORCHRUN).expect("valid").expect("four ranks");
        assert_eq!(
            launch,
            Launch {
                launcher: "torchrun",
                rank: 3,
                size: 4,
                local_rank: 1,
                host: "node1".into(),
                port: 29400,
                hosted: true,
                prefix: "reprpo/abc/2/".into(),
            }
        );
    }

    #[test]
    fn srun_starts_several_ranks_and_a_batch_script_one() {
        let step = [
            ("SLURM_JOB_ID", "70012"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_PROCID", "1"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_STEP_NODELIST", "gpu[03-05,9],cpu1"),
        ];
        let launch = read(&step).expect("valid").expect("two ranks");
        assert_eq!((launch.rank, launch.size, launch.hosted), (1, 2, false));
        assert_eq!((launch.host.as_str(), launch.port), ("gpu03", 20_012));
        // A batch script has these variables, although it is one process.
        let batch = [("SLURM_JOB_ID", "7"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2")];
        assert_eq!(read(&batch).expect("valid"), None);
        assert_eq!(read(&[("SLURM_STEP_NUM_TASKS", "1")]).expect("valid"), None);
        assert_eq!(read(&[]).expect("valid"), None);
    }

    #[test]
    fn the_first_host_of_a_list_is_found() {
        for (list, host) in [
            ("a", "a"),
            ("a,b", "a"),
            ("a[1-3]", "a1"),
            ("a,b[2-3]", "a"),
            ("n[007,010-012],x", "n007"),
        ] {
            assert_eq!(first_host(list), host);
        }
    }

    #[test]
    fn missing_and_invalid_variables_are_named() {
        let e = read(&[("RANK", "0")]).expect_err("an error").to_string();
        assert!(e.contains("`WORLD_SIZE` is not set"), "{e}");
        let mut wrong = TORCHRUN;
        wrong[0].1 = "x";
        let e = read(&wrong).expect_err("an error").to_string();
        assert!(e.contains("`RANK` is `x`, not a valid number"), "{e}");
        wrong[0].1 = "4";
        let e = read(&wrong).expect_err("an error").to_string();
        assert!(e.contains("the rank 4 is not below the number of ranks, 4"), "{e}");
    }
}
