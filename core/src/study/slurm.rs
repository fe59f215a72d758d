//! Submits runs as an array of Slurm jobs, and a last job that continues the study.
//!
//! Every round of the study is one array. The last job depends on it, and repeats the command of
//! the study: it reads the results, and either submits the next round or writes the summary.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::runner::{Board, Event, Job, Runner};
use super::workers::write_plan;
use crate::error::{Context, Error, Result, quoted};
use crate::files::write_whole;

/// How jobs are submitted.
pub struct SlurmSettings {
    /// The program.
    pub program: PathBuf,
    /// Further arguments of `run`.
    pub arguments: Vec<String>,
    /// The arguments with which the last job continues the study, beginning with `sweep`.
    pub continuation: Vec<String>,
    /// Options of `sbatch` for the runs, e.g. `--gpus=1`.
    pub options: Vec<String>,
    /// Number of cores of each run; `None` for Slurm's default.
    pub threads: Option<usize>,
    /// The largest number of runs at the same time; `None` for no limit.
    pub jobs: Option<usize>,
    /// True in the last job of a round: the runs of the round that have no result have failed.
    pub after_array: bool,
}

/// Submits runs to Slurm.
pub struct Slurm {
    settings: SlurmSettings,
    name: String,
    folder: PathBuf,
    queue: Vec<Job>,
    rounds: Rounds,
    /// Runs of the last round without a result.
    lost: VecDeque<String>,
}

/// The rounds that have been submitted, as kept in `slurm/rounds.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Rounds {
    /// Number of rounds.
    count: usize,
    /// The job of the last round; empty before the first round.
    job: String,
    /// The runs of the last round, with their numbers in the array.
    runs: BTreeMap<String, usize>,
}

impl Slurm {
    /// Creates the runner of the study `name` in `folder`.
    ///
    /// # Errors
    /// Fails if the record of earlier rounds is damaged, or if the last round is still in Slurm's
    /// queue.
    pub fn new(settings: SlurmSettings, name: &str, folder: &Path) -> Result<Self> {
        let path = folder.join("slurm/rounds.json");
        let rounds: Rounds = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map_err(|e| Error::new(format!("`{}` is damaged", path.display())).because(e))?,
            Err(_) => Rounds::default(),
        };
        if !settings.after_array && !rounds.job.is_empty() && is_queued(&rounds.job) {
            return Err(Error::new(format!(
                "job {} with runs of this study is still in Slurm's queue",
                rounds.job
            ))
            .hint("wait until it has ended; its last job continues the study"));
        }
        let (queue, lost) = (Vec::new(), VecDeque::new());
        let (name, folder) = (name.to_owned(), folder.to_owned());
        Ok(Self { settings, name, folder, queue, rounds, lost })
    }

    /// Writes the scripts of a round and submits them.
    fn submit_round(&mut self) -> Result<String> {
        let folder = self.folder.join("slurm");
        std::fs::create_dir_all(&folder)
            .within(|| format!("cannot create the folder `{}`", folder.display()))?;
        for job in &self.queue {
            write_plan(&self.folder, job)?;
        }
        let round = self.rounds.count + 1;
        let here =
            std::env::current_dir().within(|| "cannot read the current folder".to_owned())?;
        let array = folder.join(format!("round-{round}.sh"));
        write_whole(&array, self.array(&here).as_bytes())?;
        let collect = folder.join(format!("collect-{round}.sh"));
        write_whole(&collect, self.collect(&here).as_bytes())?;
        let mut options = self.settings.options.clone();
        if let Some(threads) = self.settings.threads {
            options.push(format!("--cpus-per-task={threads}"));
        }
        let job = sbatch(&options, &array)?;
        let runs = self.queue.drain(..).enumerate().map(|(i, job)| (job.name, i)).collect();
        self.rounds = Rounds { count: round, job: job.clone(), runs };
        let text = serde_json::to_string_pretty(&self.rounds)
            .map_err(|e| Error::internal(e.to_string()))?;
        write_whole(&folder.join("rounds.json"), text.as_bytes())?;
        let last = sbatch(&[format!("--dependency=afterany:{job}")], &collect).map_err(|e| {
            e.hint(format!("when job {job} has ended, repeat the command to continue the study"))
        })?;
        Ok(format!(
            "submitted {} runs as job {job} (`{}`), and job {last}, which continues the study",
            self.rounds.runs.len(),
            quoted(&array)
        ))
    }

    fn array(&self, here: &Path) -> String {
        let names: Vec<String> =
            self.queue.iter().map(|job| format!("    {}", quoted(&job.name))).collect();
        let limit = self.settings.jobs.map_or_else(String::new, |jobs| format!("%{jobs}"));
        let arguments: String =
            self.settings.arguments.iter().map(|a| format!(" {}", quoted(a))).collect();
        let runs = self.queue.first().and_then(|job| job.folder.parent()).unwrap_or(&self.folder);
        format!(
            "#!/bin/bash
# Computes runs of the study `{name}`, one in each task of the array. Written by `reprpo sweep`.
#
# Two minutes before the time limit Slurm sends USR1 to reprpo, which writes a checkpoint and exits
# with 130. The task then goes back into the queue, and continues from the checkpoint.
#
#SBATCH --job-name={name}
#SBATCH --array=0-{last}{limit}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={log}

set -u
cd {here} || exit 1

runs=(
{names}
)
run=${{runs[$SLURM_ARRAY_TASK_ID]}}
task=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID

# srun does not inherit --cpus-per-task from sbatch.
export SRUN_CPUS_PER_TASK=${{SLURM_CPUS_PER_TASK:-1}}
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}}

echo \"$(date): $run, task $task, restart ${{SLURM_RESTART_COUNT:-0}}, on $(hostname)\"
srun {program} run --resume auto --config {plan}/\"$run\".toml --out {runs}/\"$run\"{arguments}
code=$?

if [ \"$code\" -eq 130 ]; then
    # A task that never gets as far as its first step would otherwise be requeued forever.
    if [ \"${{SLURM_RESTART_COUNT:-0}}\" -ge 100 ]; then
        echo \"not requeued: the task has been restarted 100 times\" >&2
        exit \"$code\"
    fi
    # On success, Slurm ends this script.
    scontrol requeue \"$task\" || echo \"not requeued: repeat the sweep to continue the run\" >&2
fi
exit \"$code\"
",
            name = self.name,
            last = self.queue.len().saturating_sub(1),
            log = self.log("%A_%a").display(),
            here = quoted(here),
            names = names.join("\n"),
            program = quoted(&self.settings.program),
            plan = quoted(self.folder.join("plan")),
            runs = quoted(runs),
        )
    }

    fn collect(&self, here: &Path) -> String {
        let arguments: Vec<String> = self.settings.continuation.iter().map(quoted).collect();
        format!(
            "#!/bin/bash
# Reads the results of the runs of the study `{name}`. Then submits the next runs, if there are any,
# and otherwise writes the summary. Written by `reprpo sweep`.
#
#SBATCH --job-name={name}-collect
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --output={log}

cd {here} || exit 1
exec {program} {arguments}
",
            name = self.name,
            log = self.log("collect-%j").display(),
            here = quoted(here),
            program = quoted(&self.settings.program),
            arguments = arguments.join(" "),
        )
    }

    fn log(&self, part: &str) -> PathBuf {
        self.folder.join("slurm").join(format!("{part}.log"))
    }
}

/// Submits a script and returns the id of its job.
fn sbatch(options: &[String], script: &Path) -> Result<String> {
    let failed = || Error::new(format!("`sbatch` did not accept `{}`", script.display()));
    let output =
        Command::new("sbatch").arg("--parsable").args(options).arg(script).output().map_err(
            |e| {
                Error::new("cannot run `sbatch`")
                    .because(e)
                    .hint("`--launcher slurm` needs Slurm's commands on the `PATH`")
            },
        )?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(failed().because(Error::new(text.trim().to_owned())));
    }
    // The output is the id, or `id;cluster`.
    let text = String::from_utf8_lossy(&output.stdout);
    let id = text.trim().split(';').next().unwrap_or_default();
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_digit()) {
        let wrong = format!("it printed `{}` instead of the id of a job", text.trim());
        return Err(failed().because(Error::new(wrong)));
    }
    Ok(id.to_owned())
}

/// True if the job is in the queue. If Slurm does not answer, it is not.
fn is_queued(job: &str) -> bool {
    let output = Command::new("squeue").args(["--noheader", "--jobs", job]).output();
    output.is_ok_and(|output| output.status.success() && !output.stdout.trim_ascii().is_empty())
}

impl Runner for Slurm {
    fn submit(&mut self, job: Job) -> Result<()> {
        match self.settings.after_array && self.rounds.runs.contains_key(&job.name) {
            true => self.lost.push_back(job.name),
            false => self.queue.push(job),
        }
        Ok(())
    }

    fn wait(&mut self, board: &mut Board<'_>) -> Result<Event> {
        if let Some(name) = self.lost.pop_front() {
            let number = self.rounds.runs.get(&name).copied().unwrap_or_default();
            let log = self.log(&format!("{}_{number}", self.rounds.job));
            let error = Error::new("the job ended without a result")
                .hint(format!("see `{}`", quoted(&log)));
            return Ok(Event::Completed { name, error: Some(error) });
        }
        let line = self.submit_round()?;
        board.message(&line);
        Ok(Event::Submitted)
    }

    fn threads(&self) -> Option<usize> {
        self.settings.threads
    }
}
