//! One command on several ranks, as torchrun and srun start it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{isolated_command, json as json_of, jsonl, metrics, reprpo, resume, stderr, stdout};

/// The time within which a failure must end all ranks.
const SOON: Duration = Duration::from_secs(30);

/// A folder with a tiny model and pairs.
struct Place(tempfile::TempDir);

impl Place {
    /// Returns `None`, and the test is skipped, if the command was built without gloo.
    fn new() -> Option<Self> {
        static GLOO: LazyLock<bool> = LazyLock::new(|| {
            let checks = json_of(&reprpo(&["doctor", "--json"]));
            let checks = checks.as_array().expect("checks").clone();
            checks.iter().any(|check| check["name"] == "ranks" && check["state"] == "good")
        });
        if !*GLOO {
            println!("skipped: the command was built without gloo");
            return None;
        }
        let place = Self(tempfile::tempdir().expect("a folder"));
        resume::model(&place.path("model"), 0, "");
        place.pairs("pairs.jsonl", 0);
        Some(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes 22 pairs.
    fn pairs(&self, name: &str, shift: i64) {
        let pair = |i: i64| {
            let word = |n: i64| format!("w{}", (n + shift) % 24);
            json!({
                "prompt": format!("{} {} ", word(i), word(3 * i + 1)),
                "chosen": format!("{} {}", word(i + 2), word(2 * i)),
                "rejected": word(5 * i + 3),
            })
        };
        jsonl(self.0.path(), name, &(0..22).map(pair).collect::<Vec<_>>());
    }

    /// The command of a rank.
    fn rank(&self, rank: usize, size: usize, port: u16, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("reprpo"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("REPRPO_") {
                command.env_remove(name);
            }
        }
        command
            .args(args)
            .current_dir(self.0.path())
            .env("NO_COLOR", "1")
            .env("REPRPO_CACHE", self.path("cache"))
            .env("HF_HOME", self.0.path())
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", size.to_string())
            .env("LOCAL_RANK", rank.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .env("OMP_NUM_THREADS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, size: usize, args: &[&str]) -> Vec<Child> {
        let port = port();
        let start = |rank| self.rank(rank, size, port, args).spawn().expect("a rank starts");
        (0..size).map(start).collect()
    }

    /// Runs the command on several ranks, which must succeed. Returns the output of rank 0.
    fn succeeds(&self, size: usize, args: &[&str]) -> Output {
        let mut outputs = finish(self.start(size, args));
        for (rank, output) in outputs.iter().enumerate() {
            assert!(output.status.success(), "rank {rank}: {}", stderr(output));
        }
        for output in &outputs[1..] {
            assert_eq!((stdout(output), stderr(output)), (String::new(), String::new()));
        }
        outputs.swap_remove(0)
    }

    /// Runs the command on one rank, which must succeed.
    fn alone(&self, args: &[&str]) -> Output {
        let mut command = isolated_command(self.0.path(), args);
        let output = command.env("OMP_NUM_THREADS", "1").output().expect("the command runs");
        assert!(output.status.success(), "{}", stderr(&output));
        output
    }
}

fn finish(ranks: Vec<Child>) -> Vec<Output> {
    ranks.into_iter().map(|rank| rank.wait_with_output().expect("an output")).collect()
}

/// A port for the store, which no other test uses. It is below the range of outgoing connections.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 21_000 + (std::process::id() % 400) as u16 * 20;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn run<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = [
        "run",
        "--model",
        "./model",
        "--dataset",
        "pairs.jsonl",
        "--device",
        "cpu",
        "--dtype",
        "f32",
        "--set",
        "train.batch=2",
        "--set",
        "train.warmup=0",
        "--out",
        out,
    ];
    fixed.into_iter().chain(more.iter().copied()).collect()
}

fn largest_difference(one: &[Value], other: &[Value], name: &str) -> f64 {
    assert_eq!(one.len(), other.len());
    let difference = |(a, b): (&Value, &Value)| {
        let of = |line: &Value| line[name].as_f64().unwrap_or_else(|| panic!("{name} in {line}"));
        (of(a) - of(b)).abs()
    };
    one.iter().zip(other).map(difference).fold(0.0, f64::max)
}

#[test]
fn two_ranks_equal_one_with_twice_the_accumulation() {
    let Some(place) = Place::new() else { return };
    let both = ["dpo", "prefvec", "projgrad", "projbp"]
        .into_iter()
        .flat_map(|intervention| [(intervention, "lora"), (intervention, "hra")]);
    let others = ["cpo", "simpo", "orpo", "innerpo", "preventative"].map(|i| (i, "lora"));
    let adapters = ["delora", "miss", "road", "shira"].map(|adapter| ("dpo", adapter));
    for (intervention, adapter) in both.chain(others).chain(adapters) {
        let (one, two) =
            (format!("one-{intervention}-{adapter}"), format!("two-{intervention}-{adapter}"));
        let method = ["--intervention", intervention, "--adapter", adapter];
        // 22 pairs and 8 pairs per step: the last step of an epoch has three micro-batches.
        let steps = ["--set", "train.epochs=7", "--no-eval"];
        let taps: &[&str] = match intervention {
            "prefvec" | "innerpo" => &["--set", "tap.layers=1"],
            _ => &[],
        };
        // The defaults of these fields are too large for the tiny model.
        let small: &[&str] = match adapter {
            "delora" | "miss" | "shira" => &["--set", "adapter.r=4"],
            "road" => &["--set", "adapter.group_size=4"],
            _ => &[],
        };
        let of = |accumulate| [&method[..], &steps, taps, small, &["--set", accumulate]].concat();
        place.alone(&run(&one, &of("train.accumulate=4")));
        place.succeeds(2, &run(&two, &of("train.accumulate=2")));
        let (one, two) = (metrics(&place.path(&one)), metrics(&place.path(&two)));
        assert_eq!(one.len(), 21);
        for (name, most) in [("loss", 1e-5), ("grad_norm", 1e-4)] {
            // The gradients of delora are large at the start, because its factors have length 0.
            let largest = one.iter().filter_map(|step| step[name].as_f64()).fold(1.0, f64::max);
            let difference = largest_difference(&one, &two, name) / largest;
            assert!(difference < most, "{intervention} × {adapter}: {name} {difference}");
        }
        assert_eq!(one[20]["epoch"], two[20]["epoch"]);
        assert_eq!(one[20]["num_tokens"], two[20]["num_tokens"]);
    }
}

#[test]
fn a_model_whose_weights_are_divided_among_the_ranks_gives_the_same_results() {
    let Some(place) = Place::new() else { return };
    // 3 ranks: some of them have no micro-batch in some steps, and no block in some rounds.
    for (intervention, adapter, more) in [
        ("dpo", "lora", vec![]),
        ("prefvec", "hra", vec!["--set", "tap.layers=1", "--set", "train.checkpointing=true"]),
        ("projgrad", "lora", vec!["--set", "train.validate_every=5"]),
        ("projbp", "hra", vec![]),
    ] {
        let method = ["--intervention", intervention, "--adapter", adapter];
        let steps = ["--set", "train.epochs=4", "--set", "eval.tokens=24"];
        let out = |kind: &str| format!("{kind}-{intervention}");
        let completions = ["--set", "eval.completions=1", "--set", "eval.states=true"];
        let of = |more: &[&'static str], ranks: &'static str| {
            [&method[..], &steps, &completions, more, &["--set", ranks]].concat()
        };
        let (whole, sharded) = (out("whole"), out("sharded"));
        place.succeeds(3, &run(&whole, &of(&more, "train.accumulate=1")));
        let divided = [&more[..], &["--shard-base"]].concat();
        let output = place.succeeds(3, &run(&sharded, &of(&divided, "train.accumulate=1")));
        let text = stderr(&output);
        assert!(text.contains("matrices are divided among 3 ranks"), "{text}");
        let file = |run: &str, name: &str| {
            std::fs::read(place.path(run).join(name))
                .unwrap_or_else(|e| panic!("{run}/{name}: {e}"))
        };
        for name in [
            "metrics.jsonl",
            "adapter/adapter_model.safetensors",
            "eval/pairs.jsonl",
            "eval/states.json",
        ] {
            let same = if name == "metrics.jsonl" {
                let losses = |run: &str| -> Vec<Value> {
                    metrics(&place.path(run)).iter().map(|line| line["loss"].clone()).collect()
                };
                losses(&whole) == losses(&sharded)
            } else {
                file(&whole, name) == file(&sharded, name)
            };
            assert!(same, "{intervention}: {name}");
        }
    }
    let eval = ["eval", "sharded-dpo", "--json", "--set", "eval.tokens=24"];
    let of_one = stdout(&place.alone(&eval));
    assert_eq!(stdout(&place.succeeds(2, &eval)), of_one);
    let differs = finish({
        let port = port();
        let start = |rank: usize, more: &[&str]| {
            let args = [&run("other", &["--no-eval"])[..], more].concat();
            place.rank(rank, 2, port, &args).spawn().expect("a rank")
        };
        vec![start(0, &[]), start(1, &["--shard-base"])]
    });
    for output in differs {
        assert!(stderr(&output).contains("rank 0 in: `shard_base`"), "{}", stderr(&output));
    }
    let single = place.alone(&run("alone", &["--no-eval", "--shard-base"]));
    assert!(stderr(&single).contains("no effect on a single rank"), "{}", stderr(&single));
}

#[test]
fn srun_starts_ranks_with_its_own_variables() {
    let Some(place) = Place::new() else { return };
    place.succeeds(2, &run("torchrun", &["--no-eval"]));
    let job = 70_000 + u32::from(port());
    let step = |rank: usize| {
        let mut command = place.rank(rank, 2, 0, &run("srun", &["--no-eval"]));
        for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"] {
            command.env_remove(name);
        }
        command
            .env("SLURM_JOB_ID", job.to_string())
            .env("SLURM_STEP_ID", "0")
            .env("SLURM_STEP_NUM_TASKS", "2")
            .env("SLURM_PROCID", rank.to_string())
            .env("SLURM_LOCALID", rank.to_string())
            .env("SLURM_STEP_NODELIST", "localhost");
        command.spawn().expect("a rank starts")
    };
    for output in finish((0..2).map(step).collect()) {
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let adapter = |run: &str| {
        std::fs::read(place.path(run).join("adapter/adapter_model.safetensors")).expect("a file")
    };
    assert!(adapter("torchrun") == adapter("srun"));
    // A batch script has these variables too, but it is a single rank.
    let mut batch = isolated_command(place.0.path(), &run("batch", &["--no-eval"]));
    batch.env("SLURM_JOB_ID", "1").env("SLURM_PROCID", "0").env("SLURM_NTASKS", "2");
    let output = batch.output().expect("the command runs");
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn evaluations_and_scores_are_identical_on_any_number_of_ranks() {
    let Some(place) = Place::new() else { return };
    place.succeeds(3, &run("run", &["--set", "train.epochs=1", "--set", "eval.completions=1"]));
    // Small blocks, so that each rank has some.
    let eval = ["eval", "run", "--json", "--set", "eval.tokens=24", "--set", "eval.kl=true"];
    let of_one = stdout(&place.alone(&eval));
    for size in [2, 3] {
        assert_eq!(stdout(&place.succeeds(size, &eval)), of_one);
    }
    let score = ["score", "--model", "./model", "--dataset", "pairs.jsonl", "--json"];
    assert_eq!(stdout(&place.succeeds(2, &score)), stdout(&place.alone(&score)));
}

#[test]
fn an_interrupted_run_continues_on_another_number_of_ranks() {
    let Some(place) = Place::new() else { return };
    let steps = ["--set", "train.epochs=8", "--set", "train.validate_every=4", "--no-eval"];
    let more =
        [&steps[..], &["--set", "train.checkpoint_every=1", "--set", "train.keep_best=true"]]
            .concat();
    place.succeeds(2, &run("whole", &more));
    let ranks = place.start(2, &run("parts", &more));
    while metrics_so_far(&place.path("parts")) < 3 {
        std::thread::sleep(Duration::from_millis(10));
    }
    // A signal that reaches only one rank must stop them all.
    signal(&ranks[1], "USR1");
    for output in finish(ranks) {
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    }
    let resumed = place.alone(&["run", "--resume", "parts"]);
    assert!(stderr(&resumed).contains("1 rank; a step has"), "{}", stderr(&resumed));
    let (whole, parts) = (metrics(&place.path("whole")), metrics(&place.path("parts")));
    let steps = |lines: &[Value]| -> Vec<Value> {
        lines.iter().filter(|line| line.get("loss").is_some()).cloned().collect()
    };
    let difference = largest_difference(&steps(&whole), &steps(&parts), "loss");
    assert!(difference < 1e-5, "{difference}");
    let config = std::fs::read_to_string(place.path("parts/config.toml")).expect("a file");
    assert!(config.contains("ranks = 2"), "{config}");
}

fn metrics_so_far(run: &Path) -> usize {
    std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().lines().count()
}

fn signal(process: &Child, name: &str) {
    let id = process.id().to_string();
    let status = Command::new("kill").args([&format!("-{name}"), &id]).status();
    assert!(status.expect("kill runs").success());
}

/// Sends a signal to one of two ranks while they train. Returns the error of the other one.
fn after_signal(name: &str, victim: usize) -> Option<String> {
    let place = Place::new()?;
    let more = ["--set", "train.epochs=100000", "--no-eval"];
    let mut ranks = place.start(2, &run("run", &more));
    while metrics_so_far(&place.path("run")) < 3 {
        for rank in &mut ranks {
            assert!(rank.try_wait().expect("a state").is_none(), "a rank has ended");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // The heartbeat reports a later step than 0.
    std::thread::sleep(Duration::from_secs(6));
    signal(&ranks[victim], name);
    let begin = Instant::now();
    let mut of_victim = ranks.remove(victim);
    let other = ranks.remove(0).wait_with_output().expect("an output");
    assert!(begin.elapsed() < SOON, "{name} of rank {victim}: {:?}", begin.elapsed());
    let _ = of_victim.kill();
    let _ = of_victim.wait();
    assert_eq!(other.status.code(), Some(1), "{}", stderr(&other));
    Some(stderr(&other))
}

fn has_step(text: &str) -> bool {
    text.split("had finished at least ").nth(1).is_some_and(|rest| {
        rest.split(' ').next().is_some_and(|n| n.parse::<usize>().is_ok_and(|n| n > 0))
    })
}

#[test]
fn a_killed_rank_is_named_with_its_last_step() {
    let Some(text) = after_signal("KILL", 1) else { return };
    assert!(text.contains("rank 1 has not answered") && has_step(&text), "{text}");
}

#[test]
fn a_stopped_rank_is_named_with_its_last_step() {
    let Some(text) = after_signal("STOP", 1) else { return };
    assert!(text.contains("rank 1 has not answered") && has_step(&text), "{text}");
}

#[test]
fn the_loss_of_the_first_rank_is_noticed() {
    for name in ["KILL", "STOP"] {
        let Some(text) = after_signal(name, 0) else { return };
        assert!(text.contains("rank 0") && has_step(&text), "{text}");
    }
}

#[test]
fn a_rank_that_fails_is_named_with_its_error() {
    let Some(place) = Place::new() else { return };
    let port = port();
    let good = run("run", &["--no-eval"]);
    let missing = run("run", &["--no-eval", "--set", "dataset.train=none.jsonl"]);
    let begin = Instant::now();
    let ranks =
        vec![place.rank(0, 2, port, &good).spawn(), place.rank(1, 2, port, &missing).spawn()];
    let outputs = finish(ranks.into_iter().map(|rank| rank.expect("a rank")).collect());
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    let text = stderr(&outputs[0]);
    assert_eq!(outputs[0].status.code(), Some(1), "{text}");
    assert!(text.contains("rank 1 failed after 0 steps") && text.contains("none.jsonl"), "{text}");
}

#[test]
fn ranks_with_other_inputs_are_refused_before_the_first_step() {
    let Some(place) = Place::new() else { return };
    place.pairs("others.jsonl", 1);
    for (other, wanted) in [
        (["--set", "dataset.train=others.jsonl"], "rank 1 differs from rank 0 in: the data"),
        (["--set", "train.lr=0.5"], "`train.lr` is "),
    ] {
        let port = port();
        let start = |rank: usize, args: &[&str]| {
            place.rank(rank, 2, port, &run("run", args)).spawn().expect("a rank")
        };
        let same = ["--no-eval"];
        let differs = [&same[..], &other].concat();
        for output in finish(vec![start(0, &same), start(1, &differs)]) {
            assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
            assert!(stderr(&output).contains(wanted), "{}", stderr(&output));
        }
        assert!(!place.path("run").exists());
    }
}

#[test]
fn ranks_that_cannot_connect_fail_soon_and_say_why() {
    let Some(place) = Place::new() else { return };
    let args = run("run", &["--no-eval"]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let of = |rank: usize| {
        let begin = Instant::now();
        let output = place.rank(rank, 2, port, &args).output().expect("the command runs");
        assert!(begin.elapsed() < SOON, "rank {rank}: {:?}", begin.elapsed());
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    };
    let text = of(0);
    assert!(text.contains(&format!("rank 0 cannot open the port {port}")), "{text}");
    assert!(text.contains("`MASTER_PORT`"), "{text}");
    // The listener never answers.
    let text = of(1);
    assert!(text.contains(&format!("cannot reach rank 0 at `127.0.0.1:{port}`")), "{text}");
    drop(listener);
    let text = of(0);
    assert!(text.contains("rank 1 did not start within 25 s"), "{text}");
}

#[test]
fn commands_that_cannot_use_several_ranks_say_so() {
    let Some(place) = Place::new() else { return };
    let fails = |args: &[&str]| {
        let output = place.rank(0, 2, port(), args).output().expect("the command runs");
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    };
    let text = fails(&["sweep", "--over", "adapter=lora"]);
    assert!(text.contains("`reprpo sweep` does not support several ranks"), "{text}");
    let port = port();
    let auto = run("run", &["--set", "train.batch=auto"]);
    let ranks = (0..2).map(|rank| place.rank(rank, 2, port, &auto).spawn().expect("a rank"));
    for output in finish(ranks.collect()) {
        let text = stderr(&output);
        assert!(text.contains("`train.batch=auto` does not support several ranks"), "{text}");
    }
    let mut unset = place.rank(0, 2, port, &auto);
    let output = unset.env_remove("MASTER_ADDR").output().expect("the command runs");
    assert!(stderr(&output).contains("`MASTER_ADDR` is not set"), "{}", stderr(&output));
}

#[test]
fn statistics_and_scores_of_a_method_do_not_depend_on_the_number_of_ranks() {
    let Some(place) = Place::new() else { return };
    for (intervention, more) in [
        ("steer", ["--set", "intervention.direction=pca"]),
        ("mms", ["--set", "intervention.heads=2"]),
    ] {
        let args = [&["--intervention", intervention][..], &more, &["--set", "eval.tokens=24"]];
        let args = args.concat();
        let (one, two) = (format!("one-{intervention}"), format!("two-{intervention}"));
        place.alone(&run(&one, &args));
        place.succeeds(2, &run(&two, &args));
        let file = |run: &str, name: &str| {
            std::fs::read(place.path(run).join(name))
                .unwrap_or_else(|e| panic!("{run}/{name}: {e}"))
        };
        for name in ["statistics.safetensors", "eval/pairs.jsonl"] {
            assert!(file(&one, name) == file(&two, name), "{intervention}: {name} differs");
        }
    }
}
