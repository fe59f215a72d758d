//! Studies on a Slurm cluster. Scripts of the test replace Slurm's commands.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// A study, and a folder with the commands that it calls.
struct Cluster(Place);

impl Cluster {
    fn new(study: &str) -> Self {
        let place = Place::new();
        place.write("s.toml", study);
        std::fs::create_dir(place.path("bin")).expect("a folder");
        let cluster = Self(place);
        cluster.script(
            "sbatch",
            "echo \"$@\" >> \"$CLUSTER/sbatch.log\"\n\
             n=$(wc -l < \"$CLUSTER/sbatch.log\")\necho $((4710 + n))",
        );
        cluster.script("srun", "exec \"$@\"");
        cluster.script("squeue", "cat \"$CLUSTER/queue\" 2>/dev/null");
        cluster
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.0.path("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("the file is written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("executable");
    }

    fn environment(&self, mut command: Command) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", self.0.path("bin").display()))
            .env("CLUSTER", self.0.path(""));
        command
    }

    fn sweep(&self, args: &[&str]) -> Output {
        let args = [&["sweep", "s.toml", "--launcher", "slurm"], args].concat();
        self.environment(self.0.command(&args)).output().expect("the command runs")
    }

    /// The arguments of each call of `sbatch`.
    fn submitted(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.path("sbatch.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Runs a job script as Slurm would.
    fn job(&self, script: &str, task: Option<usize>) -> Output {
        let mut command = self.environment(Command::new("bash"));
        command
            .arg(self.0.path("runs/s/slurm").join(script))
            // Slurm starts a job in the folder of its submission. The script must not need that.
            .current_dir("/")
            .env("OMP_NUM_THREADS", "1")
            .env("NO_COLOR", "1")
            .env("REPRPO_CACHE", self.0.path("cache"))
            .env("HF_HOME", self.0.path("hub"))
            .env("SLURM_CPUS_PER_TASK", "1")
            .env("SLURM_ARRAY_JOB_ID", "4711");
        if let Some(task) = task {
            command.env("SLURM_ARRAY_TASK_ID", task.to_string());
        }
        command.output().expect("the script runs")
    }
}

#[test]
fn a_search_on_a_cluster_submits_one_array_for_each_round() {
    let search = "[search]\n[search.fields]\n\"train.lr\" = [1e-3, 2e-2]\n";
    let cluster = Cluster::new(&format!("seeds = [1, 2, 3]\n{BASE}{search}"));
    let output = cluster.sweep(&["--sbatch=--gpus=1", "--jobs", "8", "--threads", "2"]);
    let text = transcript(&output);
    assert!(output.status.success() && text.contains("submitted 2 runs as job 4711"), "{text}");
    let calls = cluster.submitted();
    assert!(
        calls.len() == 2
            && calls[0].starts_with("--parsable --gpus=1 --cpus-per-task=2 ")
            && calls[0].ends_with("/runs/s/slurm/round-1.sh")
            && calls[1].starts_with("--parsable --dependency=afterany:4711 ")
            && calls[1].ends_with("/runs/s/slurm/collect-1.sh"),
        "{calls:?}"
    );
    let script =
        std::fs::read_to_string(cluster.0.path("runs/s/slurm/round-1.sh")).expect("a script");
    for part in [
        "#SBATCH --array=0-1%8\n",
        "#SBATCH --signal=USR1@120\n",
        "runs=(\n    s-lr=0.001-seed=0\n    s-lr=0.02-seed=0\n)\n",
        "run --resume auto --config ",
    ] {
        assert!(script.contains(part), "{part}\n{script}");
    }

    // While the job is in the queue, nothing is submitted a second time.
    cluster.0.write("queue", "4711_0 main\n");
    let output = cluster.sweep(&[]);
    assert!(
        output.status.code() == Some(1) && stderr(&output).contains("job 4711 with runs"),
        "{}",
        stderr(&output)
    );
    std::fs::remove_file(cluster.0.path("queue")).expect("removed");

    for task in 0..2 {
        let output = cluster.job("round-1.sh", Some(task));
        assert!(output.status.success(), "{}", transcript(&output));
    }
    // The last job submits the final runs.
    let output = cluster.job("collect-1.sh", None);
    let text = transcript(&output);
    assert!(output.status.success() && text.contains("submitted 3 runs as job 4713"), "{text}");
    assert_eq!(cluster.submitted().len(), 4);
    for task in 0..3 {
        let output = cluster.job("round-2.sh", Some(task));
        assert!(output.status.success(), "{}", transcript(&output));
    }
    let output = cluster.job("collect-2.sh", None);
    assert!(output.status.success(), "{}", transcript(&output));
    assert_eq!(cluster.submitted().len(), 4, "nothing is left to submit");
    assert!(cluster.0.path("runs/s/summary.md").is_file());

    // The same study on one machine has the same results.
    cluster.0.succeeds(&["sweep", "s.toml", "--out", "local"]);
    assert_same_results(&cluster.0, "local", "runs/s");
    assert_eq!(cluster.0.study("local")["tuned"], cluster.0.study("runs/s")["tuned"]);
}

#[test]
fn runs_that_end_without_a_result_fail_and_can_be_submitted_again() {
    let cluster = Cluster::new(&format!("seeds = [1, 2]\n{BASE}"));
    assert!(cluster.sweep(&[]).status.success());
    let output = cluster.job("round-1.sh", Some(1));
    assert!(output.status.success(), "{}", transcript(&output));
    let output = cluster.job("collect-1.sh", None);
    let text = stderr(&output);
    assert!(
        output.status.code() == Some(1)
            && text.contains("s-seed=1: error: the job ended without a result")
            && text.contains("4711_0.log")
            && text.contains("1 of 2 runs failed"),
        "{text}"
    );
    assert_eq!(cluster.submitted().len(), 2, "a failed run is not submitted again by itself");
    let output = cluster.sweep(&[]);
    assert!(
        transcript(&output).contains("submitted 1 runs as job 4713"),
        "{}",
        transcript(&output)
    );
    cluster.script("sbatch", "echo 'invalid partition' >&2; exit 1");
    let output = cluster.sweep(&[]);
    assert!(
        output.status.code() == Some(1) && stderr(&output).contains("because invalid partition"),
        "{}",
        stderr(&output)
    );
}
