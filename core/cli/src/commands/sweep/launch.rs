//! Chooses where the runs of a study are computed.

use std::path::Path;
use std::thread::available_parallelism;

use reprpo_core::config::{CacheMode, Experiment, is_setting};
use reprpo_core::error::Context;
use reprpo_core::study::runner::Runner;
use reprpo_core::study::sampler;
use reprpo_core::study::{Local, Plan, Slurm, SlurmSettings, WorkerSettings, Workers};
use reprpo_core::{Error, Result};

use crate::App;
use crate::args::{Launcher, SweepArgs};
use crate::interrupt;

/// The way in which the runs are computed.
pub struct Launch<'a> {
    args: &'a SweepArgs,
    /// `None` if the runs are computed in this process.
    jobs: Option<usize>,
    threads: usize,
}

impl<'a> Launch<'a> {
    /// Checks that the flags fit together.
    pub fn new(args: &'a SweepArgs, plan: &Plan) -> Result<Self> {
        if args.launcher == Launcher::Local {
            if !args.sbatch.is_empty() || args.after_array {
                return Err(Error::new("`--sbatch` needs `--launcher slurm`"));
            }
        } else if plan.search.as_ref().is_some_and(|s| s.sampler == sampler::Kind::External) {
            return Err(Error::new("an external sampler cannot be used with `--launcher slurm`")
                .hint("the sampler must run as long as the search; use `--launcher local`"));
        } else if plan.file.is_none() && args.experiment.output.get("out").is_none() {
            return Err(Error::new("`--launcher slurm` needs the folder of the sweep")
                .hint("give `--out DIR`"));
        }
        let jobs = (args.jobs.is_some_and(|jobs| jobs > 1) || args.threads.is_some())
            .then(|| args.jobs.unwrap_or(1));
        let cores = available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = args.threads.unwrap_or_else(|| (cores / jobs.unwrap_or(1)).max(1));
        Ok(Self { args, jobs, threads })
    }

    /// Keeps the values of the reference in the study's folder if the runs are computed in several
    /// processes. Each value is then computed once.
    pub fn share_values(&self, experiment: &mut Experiment, out: &Path) {
        let several = self.jobs.is_some() || self.args.launcher == Launcher::Slurm;
        if several && experiment.cache.reference == CacheMode::Memory {
            experiment.cache.reference = CacheMode::Disk;
            let folder = std::path::absolute(out.join("reference"));
            experiment.cache.folder.get_or_insert(folder.unwrap_or_else(|_| out.join("reference")));
        }
    }

    /// Creates the runner.
    pub fn runner<'r>(
        &self,
        plan: &Plan,
        out: &Path,
        experiments: &[Experiment],
        app: &App<'r>,
    ) -> Result<Box<dyn Runner + 'r>> {
        let stop = interrupt::watch()?;
        let arguments: Vec<String> =
            if app.offline { vec!["--offline".to_owned()] } else { Vec::new() };
        let program = || {
            std::env::current_exe().map_err(|e| Error::internal("cannot find reprpo").because(e))
        };
        if self.args.launcher == Launcher::Slurm {
            let out =
                std::path::absolute(out).within(|| format!("cannot find `{}`", out.display()))?;
            let settings = SlurmSettings {
                program: program()?,
                arguments,
                continuation: continuation(&out),
                options: self.args.sbatch.clone(),
                threads: self.args.threads,
                jobs: self.args.jobs,
                after_array: self.args.after_array,
            };
            return Ok(Box::new(Slurm::new(settings, &plan.name, &out)?));
        }
        let Some(jobs) = self.jobs else {
            return Ok(Box::new(Local::new(app.registry, stop, plan.file.is_none())));
        };
        let settings = WorkerSettings {
            program: program()?,
            arguments,
            // The configuration of a run already contains these settings.
            hidden: std::env::vars_os()
                .filter_map(|(name, _)| name.into_string().ok())
                .filter(|name| is_setting(name))
                .collect(),
            jobs,
            threads: self.threads,
            cards: match experiments.iter().all(|e| e.device == "cpu") {
                true => Vec::new(),
                false => cards(),
            },
        };
        Ok(Box::new(Workers::new(settings, out.to_owned(), stop)))
    }
}

/// The arguments that continue this study in another process.
fn continuation(out: &Path) -> Vec<String> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--after-array") {
        arguments.push("--after-array".to_owned());
    }
    let names_out = |argument: &String| argument == "--out" || argument.starts_with("--out=");
    if !arguments.iter().any(names_out) {
        arguments.extend(["--out".to_owned(), out.display().to_string()]);
    }
    arguments
}

/// The cards that this process may use: those in `CUDA_VISIBLE_DEVICES`, or all cards of the
/// machine.
fn cards() -> Vec<String> {
    if let Ok(visible) = std::env::var("CUDA_VISIBLE_DEVICES") {
        let names = visible.split(',').map(str::trim).filter(|name| !name.is_empty());
        return names.map(str::to_owned).collect();
    }
    // The driver has one folder for each card.
    let count = std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, Iterator::count);
    (0..count).map(|i| i.to_string()).collect()
}
