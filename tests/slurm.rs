//! Tests `docs/slurm.sh` without Slurm; scripts of the test replace `srun` and `scontrol`.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::{jsonl, metrics, resume};

/// A folder with a tiny model, pairs, and the commands that the job script calls.
struct Cluster(tempfile::TempDir);

impl Cluster {
    fn new() -> Self {
        let cluster = Self(tempfile::tempdir().expect("a folder"));
        resume::model(&cluster.path("model"), 0, "");
        let pair = |i: i64| {
            json!({ "prompt": format!("w{i} w{} ", i + 1), "chosen": format!("w{}",
            i + 2), "rejected": format!("w{}", i + 3) })
        };
        jsonl(cluster.0.path(), "pairs.jsonl", &(0..8).map(pair).collect::<Vec<_>>());
        std::fs::create_dir(cluster.path("bin")).expect("a folder");
        symlink(assert_cmd::cargo::cargo_bin!("reprpo"), cluster.path("bin/reprpo"))
            .expect("a link");
        // `exec` keeps the process id of srun for the command, so that the test can signal the
        // command as Slurm does.
        cluster.script("srun", "echo $$ > \"$CLUSTER/srun.pid\"\nexec \"$@\"");
        cluster.script(
            "scontrol",
            "echo \"$@\" >> \"$CLUSTER/scontrol.log\"\nexit ${SCONTROL_STATUS:-0}",
        );
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.path("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("the file is written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("executable");
    }

    /// Returns the job script as a command, with the environment that `sbatch` would set.
    fn job(&self, args: &[&str]) -> Command {
        let mut command = Command::new("bash");
        let path =
            format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/slurm.sh"))
            .args(args)
            .current_dir(self.0.path());
        command
            .env("PATH", path)
            .env("CLUSTER", self.0.path())
            .env("SLURM_JOB_ID", "4711")
            .env("SLURM_CPUS_PER_TASK", "1");
        command
            .env("NO_COLOR", "1")
            .env_remove("SLURM_RESTART_COUNT")
            .env_remove("SLURM_ARRAY_TASK_ID")
            .env_remove("SLURM_ARRAY_JOB_ID")
            .env_remove("REPRPO_DATA");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts the job and sends SIGUSR1 after the first training step. Returns the exit code and
    /// the output.
    fn interrupted(&self, mut job: Command, out: &str) -> (Option<i32>, String) {
        let mut child = job.spawn().expect("the command runs");
        while std::fs::read_to_string(self.path(out).join("metrics.jsonl"))
            .unwrap_or_default()
            .is_empty()
        {
            assert!(
                child.try_wait().expect("a state").is_none(),
                "the job ended too early: {:?}",
                child.wait_with_output()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let pid = std::fs::read_to_string(self.path("srun.pid")).expect("an id");
        assert!(Command::new("kill").args(["-USR1", pid.trim()]).status().expect("kill").success());
        let output = child.wait_with_output().expect("the command ends");
        (
            output.status.code(),
            format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
        )
    }

    fn requeues(&self) -> String {
        std::fs::read_to_string(self.path("scontrol.log")).unwrap_or_default()
    }
}

const RUN: [&str; 12] = [
    "--model",
    "./model",
    "--dataset",
    "pairs.jsonl",
    "--device",
    "cpu",
    "--dtype",
    "f32",
    "--no-eval",
    "--set",
    "train.batch=2",
    "--set",
];

fn args<'a>(out: &'a str, epochs: &'a str) -> Vec<&'a str> {
    [&[out], &RUN[..], &[epochs]].concat()
}

#[test]
fn a_job_that_runs_out_of_time_is_requeued_and_resumed() {
    let cluster = Cluster::new();
    let args = args("runs/mine", "train.epochs=300");
    let (code, text) = cluster.interrupted(cluster.job(&args), "runs/mine");
    assert_eq!((code, cluster.requeues().as_str()), (Some(130), "requeue 4711\n"), "{text}");
    assert!(
        text.contains("interrupted after step")
            && cluster.path("runs/mine/checkpoints/latest").is_file(),
        "{text}"
    );
    let steps = metrics(&cluster.path("runs/mine")).len();

    let output =
        cluster.job(&args).env("SLURM_RESTART_COUNT", "1").output().expect("the command runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && text.contains("resuming from the last checkpoint"),
        "{text}"
    );
    assert_eq!(cluster.requeues(), "requeue 4711\n", "a finished run must not be requeued");
    assert!(cluster.path("runs/mine/adapter/adapter_model.safetensors").is_file());
    assert!(metrics(&cluster.path("runs/mine")).len() > steps);
}

#[test]
fn each_task_of_an_array_has_its_own_run_and_seed() {
    let cluster = Cluster::new();
    let args = args("runs/seeds", "train.epochs=1");
    for task in ["3", "4"] {
        let output = cluster
            .job(&args)
            .env("SLURM_ARRAY_JOB_ID", "4700")
            .env("SLURM_ARRAY_TASK_ID", task)
            .output()
            .expect("the command runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let config = std::fs::read_to_string(
            cluster.path("runs/seeds").join(format!("seed-{task}/config.toml")),
        )
        .expect("a configuration");
        assert_eq!(
            toml::from_str::<toml::Table>(&config).expect("TOML")["train"]["seed"].as_integer(),
            task.parse().ok()
        );
    }
}

#[test]
fn a_task_of_an_array_requeues_only_itself() {
    let cluster = Cluster::new();
    let args = args("runs/seeds", "train.epochs=300");
    let mut job = cluster.job(&args);
    // One task of an array has the job id of the whole array.
    job.env("SLURM_JOB_ID", "4700")
        .env("SLURM_ARRAY_JOB_ID", "4700")
        .env("SLURM_ARRAY_TASK_ID", "5");
    let (code, text) = cluster.interrupted(job, "runs/seeds/seed-5");
    assert_eq!((code, cluster.requeues().as_str()), (Some(130), "requeue 4700_5\n"), "{text}");
}

#[test]
fn a_job_is_not_requeued_after_an_error_or_too_many_restarts() {
    let cluster = Cluster::new();
    let output = cluster
        .job(&["runs/a", "--model", "./none", "--dataset", "pairs.jsonl"])
        .output()
        .expect("the command runs");
    assert_eq!((output.status.code(), cluster.requeues().as_str()), (Some(1), ""));
    let output = cluster.job(&[]).output().expect("the command runs");
    assert_eq!(output.status.code(), Some(2));

    let args = args("runs/b", "train.epochs=300");
    let mut job = cluster.job(&args);
    job.env("SLURM_RESTART_COUNT", "100");
    let (code, text) = cluster.interrupted(job, "runs/b");
    assert_eq!((code, cluster.requeues().as_str()), (Some(130), ""), "{text}");
    assert!(text.contains("has been restarted 100 times"), "{text}");

    // If the cluster does not allow requeueing, the message says that the same command can be
    // submitted again.
    std::fs::remove_file(cluster.path("srun.pid")).expect("removed");
    let metrics = cluster.path("runs/b/metrics.jsonl");
    std::fs::remove_dir_all(metrics.parent().expect("a folder")).expect("removed");
    let mut job = cluster.job(&args);
    job.env("SCONTROL_STATUS", "1");
    let (code, text) = cluster.interrupted(job, "runs/b");
    assert!(code == Some(130) && text.contains("submit the same command again"), "{text}");
}
