//! `cargo xtask bench-peer`: compares the speed of `reprpo bench` with TRL and PEFT.
//!
//! Both sides train on the same pairs in the same order. They take turns, each in its own process,
//! so that changes in the speed of the machine affect both sides. The peer's script is
//! `tests/python/bench_trl.py`. Its documentation lists its settings.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::failure::failure;
use crate::run::{cargo, finish};
use crate::{Options, libtorch, paths, progress};

/// Flags of `cargo xtask bench-peer`.
#[derive(Args)]
pub struct BenchPeer {
    /// The model: a Hugging Face folder, or a GGUF file, which is converted to such a folder
    #[arg(long, value_name = "DIR|FILE.gguf")]
    model: PathBuf,
    /// Preference pairs: a Parquet or JSON Lines file with `prompt`, `chosen` and `rejected`
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Number of pairs; the first pair of each prompt is taken
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pairs: usize,
    /// Number of pairs in a batch
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = positive)]
    batch: usize,
    /// Maximum number of tokens in prompt and completion together
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive)]
    max_length: usize,
    /// Data type of the frozen weights
    #[arg(long, value_enum, default_value_t = Dtype::Float32)]
    dtype: Dtype,
    /// The adapter that both sides train
    #[arg(long, value_enum, default_value_t = Adapter::Lora)]
    adapter: Adapter,
    /// Rank of the adapter
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = positive)]
    rank: usize,
    /// The adapted modules, separated by commas
    #[arg(long, value_name = "NAMES", default_value = "q_proj,v_proj")]
    targets: String,
    /// Number of runs of each side
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive)]
    runs: usize,
    /// The device of both sides
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
    /// Number of threads of both sides [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// Python with the packages that `tests/python/bench_trl.py` lists
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
    /// A built `reprpo` to measure; by default, a release build of this checkout
    #[arg(long, value_name = "FILE")]
    reprpo: Option<PathBuf>,
    /// Print all measurements as a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: Options,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("must be a whole number greater than 0".to_owned()),
    }
}

/// The data type of the frozen weights, with torch's name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dtype {
    Float32,
    Bfloat16,
}

/// The adapters that both sides have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Adapter {
    Lora,
    Dora,
    Hra,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Device {
    Cpu,
    Cuda,
}

/// The name of a value on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

impl BenchPeer {
    /// Number of threads of both sides.
    fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(cores)
    }

    /// Arguments of `reprpo bench` with the same settings as the peer.
    fn ours(&self, model: &Path, pairs: &Path) -> Vec<String> {
        let dtype = match self.dtype {
            Dtype::Float32 => "f32",
            Dtype::Bfloat16 => "bf16",
        };
        let adapter = if self.adapter == Adapter::Hra { "hra" } else { "lora" };
        let targets: Vec<&str> = self.targets.split(',').collect();
        let mut set = vec![
            format!("train.batch={}", self.batch),
            "train.accumulate=1".to_owned(),
            "train.shuffle=false".to_owned(),
            format!("train.max_length={}", self.max_length),
            "train.lr=1e-5".to_owned(),
            format!("adapter.r={}", self.rank),
            format!("adapter.target_modules={}", json!(targets)),
        ];
        if adapter == "lora" {
            set.push(format!("adapter.lora_alpha={}", 2 * self.rank));
            set.push("adapter.lora_dropout=0".to_owned());
            set.push(format!("adapter.use_dora={}", self.adapter == Adapter::Dora));
        }
        let (model, pairs) = (model.to_string_lossy(), pairs.to_string_lossy());
        let mut args: Vec<String> = [
            "bench",
            "--json",
            "--quiet",
            "--intervention",
            "dpo",
            "--adapter",
            adapter,
            "--model",
            &model,
            "--dataset",
            &pairs,
            "--dtype",
            dtype,
            "--device",
            &name(self.device),
            "--pairs",
            &self.pairs.to_string(),
        ]
        .map(str::to_owned)
        .to_vec();
        args.extend(set.into_iter().flat_map(|assignment| ["--set".to_owned(), assignment]));
        args
    }

    /// Arguments of the peer's script for one run.
    fn peer(&self, model: &Path, pairs: &Path) -> Vec<String> {
        let (model, pairs) = (model.to_string_lossy(), pairs.to_string_lossy());
        [
            "train",
            "--model",
            &model,
            "--data",
            &pairs,
            "--dtype",
            &name(self.dtype),
            "--adapter",
            &name(self.adapter),
            "--device",
            &name(self.device),
            "--targets",
            &self.targets,
            "--rank",
            &self.rank.to_string(),
            "--batch",
            &self.batch.to_string(),
            "--max-length",
            &self.max_length.to_string(),
            "--threads",
            &self.threads().to_string(),
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

/// The measurements of all runs.
#[derive(Default)]
struct Measurements {
    /// The reports of `reprpo bench`.
    ours: Vec<Value>,
    /// The results of the peer when it computes the reference in each step.
    peer: Vec<Value>,
    /// The results of the peer with a precomputed reference.
    precomputed: Vec<Value>,
}

/// Measures both sides in turn and prints a table, or JSON.
pub fn run(args: &BenchPeer) -> Result<ExitCode> {
    let libtorch = libtorch::set_up(&args.options)?;
    let reprpo = match &args.reprpo {
        Some(reprpo) => reprpo.clone(),
        None => {
            if let Some(failed) = finish(cargo(&libtorch).args(["build", "--release"]))? {
                return Ok(failed);
            }
            paths::target().join("release/reprpo")
        }
    };
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let script = paths::checkout().join("tests/python/bench_trl.py");
    let log = folder.path().join("log.txt");
    let process = |program: &Path, arguments: &[String]| {
        let mut command = Command::new(program);
        command.args(arguments).env("OMP_NUM_THREADS", args.threads().to_string());
        output(&mut command, &log, program == args.python)
    };
    let peer = |arguments: Vec<String>| {
        let script = script.to_string_lossy().into_owned();
        process(&args.python, &[vec![script], arguments].concat())
    };

    progress::line("choosing the pairs");
    let prepared = peer(prepare(args, folder.path()))?;
    let model = PathBuf::from(last_line(&prepared));
    let pairs = folder.path().join("pairs.jsonl");
    let parsed = |text: String| {
        serde_json::from_str::<Value>(&text)
            .or_else(|_| serde_json::from_str(last_line(&text)))
            .context("a measured process did not print JSON")
    };
    let mut all = Measurements::default();
    for run in 1..=args.runs {
        progress::line(&format!("run {run} of {}: reprpo", args.runs));
        all.ours.push(parsed(process(&reprpo, &args.ours(&model, &pairs))?)?);
        for (precompute, results) in [(false, &mut all.peer), (true, &mut all.precomputed)] {
            let with = if precompute { ", reference precomputed" } else { "" };
            progress::line(&format!("run {run} of {}: TRL{with}", args.runs));
            let mut arguments = args.peer(&model, &pairs);
            arguments.extend(precompute.then(|| "--precompute".to_owned()));
            // The number of operations is the same in every run.
            arguments.extend((run == 1).then(|| "--count".to_owned()));
            results.push(parsed(peer(arguments)?)?);
        }
        comparable(&all)?;
    }
    if args.json {
        println!("{:#}", all.json(args));
    } else {
        print!("{}", all.plain(args));
    }
    Ok(ExitCode::SUCCESS)
}

/// Arguments of the peer's script that write the pairs, and the model if it must be converted.
fn prepare(args: &BenchPeer, folder: &Path) -> Vec<String> {
    [
        OsStr::new("prepare"),
        OsStr::new("--model"),
        args.model.as_os_str(),
        OsStr::new("--data"),
        args.data.as_os_str(),
        OsStr::new("--out"),
        folder.as_os_str(),
    ]
    .map(|word| word.to_string_lossy().into_owned())
    .into_iter()
    .chain(["--pairs".to_owned(), args.pairs.to_string()])
    .chain(["--max-length".to_owned(), args.max_length.to_string()])
    .collect()
}

/// Runs a command and returns its standard output. Standard error goes to the file `log`. If the
/// command fails, the error contains the last lines of this file.
fn output(command: &mut Command, log: &Path, is_python: bool) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let stderr = File::create(log).with_context(|| format!("cannot write `{}`", log.display()))?;
    let output = command
        .stdin(Stdio::null())
        .stderr(stderr)
        .output()
        .with_context(|| format!("cannot run `{program}`"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(6)..].join("\n  ");
    let what = format!("`{program}` failed: {}\n  {last}", output.status);
    let hint =
        "give a Python with the packages that `tests/python/bench_trl.py` lists as `--python`";
    Err(if is_python { failure(what, hint) } else { anyhow!(what) })
}

fn last_line(text: &str) -> &str {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default()
}

/// Checks that both sides trained the same number of parameters on the same tokens.
fn comparable(all: &Measurements) -> Result<()> {
    let (Some(ours), Some(peer)) = (all.ours.last(), all.peer.last()) else { return Ok(()) };
    for field in ["trained", "pairs", "tokens", "threads"] {
        if ours[field] != peer[field] {
            return Err(failure(
                format!(
                    "the sides cannot be compared: `{field}` is {} in reprpo and {} in TRL",
                    ours[field], peer[field]
                ),
                "choose pairs and settings that both sides support",
            ));
        }
    }
    Ok(())
}

/// A comparison of one of our passes with the peer.
struct Comparison<'a> {
    /// Name of our pass in the report of `reprpo bench`.
    pass: &'static str,
    title: &'static str,
    ours: &'a [Value],
    peer: &'a [Value],
}

/// The phases of a step, in the order of `reprpo bench`. The peer's forward pass includes the head.
const PHASES: [&str; 9] =
    ["data", "reference", "forward", "head", "backward", "hooks", "optimiser", "logging", "other"];

impl Comparison<'_> {
    /// The median of a value of our pass.
    fn of_pass(&self, path: &str) -> Option<f64> {
        median(self.ours.iter().map(|report| report[self.pass].pointer(path)?.as_f64()))
    }

    /// The median of a value of our whole process.
    fn of_ours(&self, field: &str) -> Option<f64> {
        median(self.ours.iter().map(|report| report[field].as_f64()))
    }

    fn of_peer(&self, path: &str) -> Option<f64> {
        median(self.peer.iter().map(|result| result.pointer(path)?.as_f64()))
    }

    /// The rows of the table: a name, our value and the peer's value.
    fn rows(&self) -> Vec<(String, Option<f64>, Option<f64>)> {
        let both = |name: &str, path: &str, unit: f64| {
            let scaled = |value: Option<f64>| value.map(|value| value / unit);
            (name.to_owned(), scaled(self.of_pass(path)), scaled(self.of_peer(path)))
        };
        let whole = |name: &str, field: &str, unit: f64| {
            let scaled = |value: Option<f64>| value.map(|value| value / unit);
            let peer = self.of_peer(&format!("/{field}"));
            (name.to_owned(), scaled(self.of_ours(field)), scaled(peer))
        };
        let operations = [self.of_pass("/operations/total"), self.operations_of_peer()];
        let rate = self.of_pass("/matrix_rate");
        let share = self
            .operations_of_peer()
            .zip(self.of_peer("/seconds"))
            .zip(rate)
            .map(|((operations, seconds), rate)| operations / seconds / rate);
        let [ours, peer] = operations.map(|operations| operations.map(|value| value / 1e9));
        let mut rows = vec![
            both("pairs/s", "/pairs_per_second", 1.0),
            both("tokens/s", "/tokens_per_second", 1.0),
            whole("peak memory, GB", "peak_bytes", 1e9),
            whole("start-up, s", "start_seconds", 1.0),
            whole("rows of a batch", "rows", 1.0),
            ("10⁹ operations".to_owned(), ours, peer),
            ("share of matrix rate".to_owned(), self.of_pass("/share_of_matrix_rate"), share),
        ];
        rows.extend(
            PHASES.map(|phase| both(&format!("{phase}, s"), &format!("/phases/{phase}"), 1.0)),
        );
        rows
    }

    /// The peer's number of operations. Only one run counts them.
    fn operations_of_peer(&self) -> Option<f64> {
        self.peer.iter().find_map(|result| result["operations"].as_f64())
    }

    fn json(&self) -> Value {
        let rows = self.rows().into_iter().map(|(name, ours, peer)| {
            let ratio = ours.zip(peer).map(|(ours, peer)| ours / peer);
            (name, json!({ "ours": ours, "peer": peer, "ratio": ratio }))
        });
        Value::Object(rows.collect())
    }

    fn plain(&self) -> String {
        let mut text = format!("{:<24}{:>12}{:>12}{:>8}\n", self.title, "reprpo", "TRL", "ratio");
        for (name, ours, peer) in self.rows() {
            let ratio = ours.zip(peer).filter(|(_, peer)| *peer > 0.0);
            text += &format!(
                "{name:<24}{:>12}{:>12}{:>8}\n",
                number(ours),
                number(peer),
                number(ratio.map(|(ours, peer)| ours / peer))
            );
        }
        text
    }
}

impl Measurements {
    fn comparisons(&self) -> [Comparison<'_>; 2] {
        let (ours, peer, precomputed) = (&self.ours[..], &self.peer[..], &self.precomputed[..]);
        [
            Comparison { pass: "first", title: "reference computed", ours, peer },
            Comparison { pass: "cached", title: "reference cached", ours, peer: precomputed },
        ]
    }

    fn json(&self, args: &BenchPeer) -> Value {
        let [computed, cached] = self.comparisons().map(|comparison| comparison.json());
        json!({
            "pairs": args.pairs, "batch": args.batch, "max_length": args.max_length,
            "dtype": name(args.dtype), "adapter": name(args.adapter), "rank": args.rank,
            "targets": args.targets, "device": name(args.device), "threads": args.threads(),
            "runs": args.runs,
            "versions": self.peer.first().map(|result| &result["versions"]),
            "reference_computed": computed, "reference_cached": cached,
            "ours": self.ours, "peer": self.peer, "peer_precomputed": self.precomputed,
        })
    }

    fn plain(&self, args: &BenchPeer) -> String {
        let [computed, cached] = self.comparisons().map(|comparison| comparison.plain());
        let threads = args.threads();
        format!(
            "{} pairs, batches of {}, at most {} tokens, {} of rank {} on {}, {}, {}, threads: \
                {threads}, medians of {} runs\n\n{computed}\n{cached}",
            args.pairs,
            args.batch,
            args.max_length,
            name(args.adapter),
            args.rank,
            args.targets,
            name(args.dtype),
            name(args.device),
            args.runs,
        )
    }
}

/// The median of the values that exist.
fn median(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let mut values: Vec<f64> = values.flatten().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A number with about three significant digits; a dash if there is none.
fn number(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: BenchPeer,
    }

    fn args(more: &[&str]) -> BenchPeer {
        let fixed = ["bench-peer", "--model", "m", "--data", "d.parquet"];
        Cli::parse_from(fixed.iter().chain(more)).args
    }

    #[test]
    fn both_sides_receive_the_same_settings() {
        let args = args(&["--adapter", "dora", "--rank", "8", "--batch", "2", "--threads", "1"]);
        let (model, pairs) = (Path::new("m"), Path::new("p"));
        let ours = args.ours(model, pairs).join(" ");
        for part in [
            "--adapter lora",
            "--dtype f32",
            "train.batch=2",
            "adapter.r=8",
            "adapter.lora_alpha=16",
            "adapter.use_dora=true",
            r#"adapter.target_modules=["q_proj","v_proj"]"#,
        ] {
            assert!(ours.contains(part), "{part}: {ours}");
        }
        let peer = args.peer(model, pairs).join(" ");
        for part in ["--adapter dora", "--dtype float32", "--batch 2", "--rank 8", "--threads 1"] {
            assert!(peer.contains(part), "{part}: {peer}");
        }
    }

    #[test]
    fn medians_and_ratios_compare_the_matching_passes() {
        let ours = |first: f64, cached: f64| {
            let pass = |rate: f64| json!({ "pairs_per_second": rate, "matrix_rate": 10.0 });
            json!({ "first": pass(first), "cached": pass(cached), "peak_bytes": 2e9 })
        };
        let peer = |rate: f64, counted: Value| {
            let mut result = json!({ "pairs_per_second": rate, "seconds": 4.0 });
            result["operations"] = counted;
            result
        };
        let all = Measurements {
            ours: vec![ours(2.0, 4.0), ours(3.0, 5.0), ours(9.0, 9.0)],
            peer: vec![peer(1.0, json!(20.0)), peer(1.5, Value::Null), peer(0.1, Value::Null)],
            precomputed: vec![peer(2.5, json!(20.0))],
        };
        let [computed, cached] = all.comparisons().map(|comparison| comparison.json());
        assert_eq!(computed["pairs/s"], json!({ "ours": 3.0, "peer": 1.0, "ratio": 3.0 }));
        assert_eq!(cached["pairs/s"], json!({ "ours": 5.0, "peer": 2.5, "ratio": 2.0 }));
        assert_eq!(computed["share of matrix rate"]["peer"], 0.5);
        assert_eq!(computed["peak memory, GB"]["peer"], Value::Null);
        let table = all.plain(&args(&[]));
        assert!(
            table.contains("pairs/s                         3.00        1.00    3.00"),
            "{table}"
        );
    }

    #[test]
    fn sides_with_different_tokens_are_not_compared() {
        let side = |tokens| json!({ "trained": 1, "pairs": 2, "tokens": tokens, "threads": 1 });
        let of =
            |peer| Measurements { ours: vec![side(7)], peer: vec![peer], ..Default::default() };
        assert!(comparable(&of(side(7))).is_ok());
        let e = comparable(&of(side(8))).unwrap_err().to_string();
        assert!(e.contains("`tokens` is 7 in reprpo and 8 in TRL"), "{e}");
    }

    #[test]
    fn a_number_of_zero_is_refused() {
        let zero = ["bench-peer", "--model", "m", "--data", "d", "--pairs", "0"];
        assert!(Cli::try_parse_from(zero).is_err());
    }
}
