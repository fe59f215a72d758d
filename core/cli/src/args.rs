//! The command line: what can be said, and how it is described.
//!
//! Names of plugins are shown here and judged by the registry, whose errors say more than a usage message.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use reprpo_core::config::{Layering, PluginFile, Resolved};
use reprpo_core::registry::{Kind, Registry};
use reprpo_core::{Error, Result};

use crate::App;

/// Align what a language model represents: preference pairs train an adapter through its hidden states and gradients.
#[derive(Parser)]
#[command(
    name = "reprpo",
    version,
    arg_required_else_help = true,
    after_long_help = "\
Exit codes: 0 done, 1 something in what you gave, 2 usage or a defect, 130 interrupted."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
pub struct Global {
    /// Say nothing but results and errors.
    #[arg(long, short, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// Log more; twice for everything. `REPRPO_LOG` takes a filter.
    #[arg(long, short, action = ArgAction::Count, global = true, help_heading = "Output")]
    pub verbose: u8,
    /// A plugin's library to load; may be given again. Those in the plugin folder are there without it.
    #[arg(long, value_name = "FILE", global = true, help_heading = "Plugins")]
    pub plugin: Vec<PathBuf>,
    /// Fetch nothing: models and data of the hub are taken from its cache. `HF_HUB_OFFLINE=1` says the same.
    #[arg(long, global = true, help_heading = "Hub")]
    pub offline: bool,
    /// Colour the output; `NO_COLOR` is respected.
    #[arg(long, value_enum, default_value_t = Color::Auto, global = true, help_heading = "Output")]
    pub color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    Auto,
    Always,
    Never,
}

#[derive(Subcommand)]
pub enum Command {
    Run(Box<RunArgs>),
    Sweep(Box<SweepArgs>),
    Eval(EvalArgs),
    Score(ScoreArgs),
    Export(ExportArgs),
    Generate(GenerateArgs),
    Chat(ChatArgs),
    List(ListArgs),
    Explain(ExplainArgs),
    Config(ConfigArgs),
    Data(DataArgs),
    New(NewArgs),
    Plugin(PluginArgs),
    Doctor(DoctorArgs),
}

impl Cli {
    /// The plugin files that flags, configuration files and the environment name, and those of the runs that are given.
    ///
    /// # Errors
    /// A configuration file that cannot be read.
    pub fn plugins(&self) -> Result<Vec<PluginFile>> {
        let mut files: Vec<PluginFile> = self.global.plugin.iter().map(PluginFile::at).collect();
        if let Ok(text) = std::env::var("REPRPO_PLUGINS") {
            files.extend(PluginFile::in_text(&text));
        }
        let of_run = |folder: &Path| Some(folder.join("config.toml")).filter(|config| config.is_file());
        let (configs, sets): (Vec<PathBuf>, &[String]) = match &self.command {
            Command::Run(args) => (
                args.resume.as_deref().filter(|_| !args.resumes_automatically()).and_then(of_run).into_iter().chain(args.experiment.config.clone()).collect(),
                &args.experiment.set,
            ),
            Command::Sweep(args) => (args.experiment.config.clone(), &args.experiment.set),
            Command::Config(ConfigArgs { command: ConfigCommand::Show(args) }) => (args.experiment.config.clone(), &args.experiment.set),
            Command::Data(DataArgs { command: DataCommand::Inspect(args) }) => (Vec::new(), &args.pairs.set),
            Command::Data(DataArgs { command: DataCommand::Tokens(args) }) => (Vec::new(), &args.pairs.set),
            Command::Score(args) => (Vec::new(), &args.set),
            Command::Generate(args) => (args.speaker.target.as_deref().and_then(of_run).into_iter().collect(), &[]),
            Command::Chat(args) => (args.speaker.target.as_deref().and_then(of_run).into_iter().collect(), &[]),
            Command::Export(args) => (of_run(&args.target).into_iter().collect(), &[]),
            Command::Eval(args) => (args.targets.iter().filter_map(|target| of_run(target)).collect(), &args.set),
            _ => (Vec::new(), &[]),
        };
        for config in configs {
            files.extend(PluginFile::in_file(&config)?);
        }
        files
            .extend(sets.iter().filter_map(|set| set.split_once('=')).filter(|(field, _)| field.trim() == "plugins").flat_map(|(_, v)| PluginFile::in_text(v)));
        Ok(files)
    }
}

/// Train an adapter on preference pairs and judge it against the base model.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo run
  reprpo run --set train.max_pairs=64 --set eval.max_pairs=20
  reprpo run --intervention prefvec --adapter hra --dataset genies:math --data-dir DATA
  reprpo run --dataset pairs.jsonl --model ./my-model --set train.lr=3e-5 --set train.epochs=2
  reprpo run --config experiment.toml --out runs/mine --seed 1
  reprpo run --recipe reprpo_hra --dataset genies:math --data-dir DATA
  reprpo run --resume runs/dpo-lora-synthetic-1
  reprpo run --resume auto --out runs/mine --dataset pairs.jsonl --set train.checkpoint_every=50

`reprpo explain NAME` lists the fields that a name brings to `--set`; `reprpo config show` shows the result.")]
pub struct RunArgs {
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// Resume the run in DIR from its last checkpoint. With `auto`, the same command starts the run in `--out` or resumes
    /// it, so that a requeued job can use the same script.
    #[arg(long, value_name = "DIR|auto", help_heading = "Output")]
    pub resume: Option<PathBuf>,
    /// Resume even if the data, the model, the tokenizer or the configuration changed since the checkpoint. The result may
    /// then differ from that of an uninterrupted run.
    #[arg(long, requires = "resume", help_heading = "Output")]
    pub inexact_resume: bool,
    /// The result as JSON, with the folder of the run.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

impl RunArgs {
    /// True for `--resume auto`. The experiment then comes from the command line, and its progress from the folder.
    pub fn resumes_automatically(&self) -> bool {
        self.resume.as_deref() == Some(Path::new(AUTO))
    }
}

/// The value of `--resume` that stands for the folder in `--out`.
const AUTO: &str = "auto";

/// Run every combination of some values, and compare the results in one table.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo sweep --over intervention=all --adapter lora --set train.max_pairs=64
  reprpo sweep --over intervention=dpo,prefvec --over adapter=lora,hra --over train.seed=0,1,2
  reprpo sweep grid.toml --config experiment.toml --out runs/night

A grid file has a line a field: `adapter = [\"lora\", \"hra\"]`, `\"train.lr\" = [1e-4, 1e-3]`, `intervention = \"all\"`.
Given the `--out` of a sweep that was interrupted, the same command goes on with it. Runs of a sweep make no
completions, unless `--set eval.completions=2` asks for them.")]
pub struct SweepArgs {
    /// A TOML file with a field and its values a line.
    #[arg(value_name = "GRID")]
    pub grid: Option<PathBuf>,
    /// A field and its values, as `adapter=lora,hra`; `all` stands for every name; may be given again.
    #[arg(long, value_name = "FIELD=VALUES")]
    pub over: Vec<String>,
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// As a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// The model, and how it is computed.
#[derive(Args, Clone)]
pub struct ModelArgs {
    /// A known model's name, a folder in Hugging Face's layout, a GGUF file, or a repository of the hub: `org/name`,
    /// `org/name@revision`, `org/name/FILE.gguf`.
    #[arg(long, value_name = "ID|DIR|FILE", help_heading = "Model")]
    pub model: Option<String>,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    #[arg(long, value_name = "DEVICE", help_heading = "Model")]
    pub device: Option<String>,
    /// Precision of the model's own weights: `auto`, `f32` or `bf16`.
    #[arg(long, value_name = "DTYPE", help_heading = "Model")]
    pub dtype: Option<String>,
}

impl ModelArgs {
    /// Adds what was given.
    pub fn apply(&self, layers: &mut Layering<'_>) {
        apply(layers, &[("--model", "model", &self.model), ("--device", "device", &self.device), ("--dtype", "dtype", &self.dtype)]);
    }
}

/// Flags that stand for fields of the experiment.
#[derive(Args, Clone)]
pub struct ExperimentArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Start from a saved adapter in PEFT's format: a folder, or a repository of the hub.
    #[arg(long, value_name = "ID|DIR", help_heading = "Model")]
    pub init_adapter: Option<String>,
    /// Start from the transforms of an earlier run, its `transform` folder.
    #[arg(long, value_name = "DIR", help_heading = "Method")]
    pub init_transform: Option<String>,
    /// The preference pairs: a name, `NAME:PART`, a file, `-` for standard input, or a repository of
    /// the hub, as `org/name`.
    #[arg(long, value_name = "NAME|FILE|ID", help_heading = "Data")]
    pub dataset: Option<String>,
    /// Where the data set's files lie.
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub data_dir: Option<String>,
    /// What of it to train on: `train`, `train[:750]`, `train[10%:20%]`, several with `+`.
    #[arg(long, value_name = "SPLIT", help_heading = "Data")]
    pub split: Option<String>,
    /// Names of a file's columns, as `prompt=question,chosen=best,rejected=worst`.
    #[arg(long, value_name = "PART=COLUMN", help_heading = "Data")]
    pub columns: Option<String>,
    /// Values that belong together, as published: everything else said wins over them.
    #[arg(long, value_name = "NAME", help_heading = "Method")]
    pub recipe: Option<String>,
    /// The training objective.
    #[arg(long, value_name = "NAME", help_heading = "Method")]
    pub intervention: Option<String>,
    /// The trainable change of the model.
    #[arg(long, value_name = "NAME", help_heading = "Method")]
    pub adapter: Option<String>,
    /// The map of the activations before a loss compares them.
    #[arg(long, value_name = "NAME", help_heading = "Method")]
    pub transform: Option<String>,
    /// Where activations are read.
    #[arg(long, value_name = "NAME", help_heading = "Method")]
    pub tap: Option<String>,
    /// Which layers the tap reads: `10,20`, `-2,-1`, `0.33,0.66`, `range(.3,-2)`.
    #[arg(long, value_name = "SPEC", allow_hyphen_values = true, help_heading = "Method")]
    pub layers: Option<String>,
    /// Seed of initial values, order and dropout.
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Training")]
    pub seed: Option<String>,
    /// A TOML file with any fields of the experiment; may be given again, later files win.
    #[arg(long, value_name = "FILE", help_heading = "Training")]
    pub config: Vec<PathBuf>,
    /// Any field of the experiment, as `train.lr=3e-5`; may be given again. `none` clears an optional one.
    #[arg(long, value_name = "FIELD=VALUE", help_heading = "Training")]
    pub set: Vec<String>,
    /// Folder of the run; a new one below `runs/` when not given.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<String>,
    /// Train without judging the result.
    #[arg(long, help_heading = "Output")]
    pub no_eval: bool,
}

impl ExperimentArgs {
    /// The experiment that the binary's defaults, files, environment and these flags describe.
    ///
    /// # Errors
    /// A name, field or value that cannot be.
    pub fn resolve(&self, app: &App<'_>) -> Result<Resolved> {
        let mut layers = Layering::new(app.registry);
        layers.defaults(app.defaults)?;
        for file in &self.config {
            layers.file(file)?;
        }
        environment(&mut layers);
        self.model.apply(&mut layers);
        let flags = [
            ("--recipe", "recipe", &self.recipe),
            ("--init-adapter", "init_adapter", &self.init_adapter),
            ("--init-transform", "init_transform", &self.init_transform),
            ("--dataset", "dataset", &self.dataset),
            ("--data-dir", "dataset.data_dir", &self.data_dir),
            ("--split", "train.split", &self.split),
            ("--intervention", "intervention", &self.intervention),
            ("--adapter", "adapter", &self.adapter),
            ("--transform", "transform", &self.transform),
            ("--tap", "tap", &self.tap),
            ("--layers", "tap.layers", &self.layers),
            ("--seed", "train.seed", &self.seed),
            ("--out", "out", &self.out),
        ];
        apply(&mut layers, &flags);
        columns(&mut layers, self.columns.as_deref())?;
        if self.no_eval {
            layers.flag("--no-eval", "eval.enabled", "false");
        }
        for assignment in &self.set {
            layers.set(assignment)?;
        }
        layers.start_from_adapter();
        layers.resolve()
    }
}

/// Adds the process's environment.
pub fn environment(layers: &mut Layering<'_>) {
    // A variable that is no text is none of ours.
    layers.environment(std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))));
}

/// Adds the flags that were given: flag, field, value.
pub fn apply(layers: &mut Layering<'_>, flags: &[(&str, &str, &Option<String>)]) {
    for (flag, path, value) in flags {
        if let Some(value) = value {
            layers.flag(flag, path, value);
        }
    }
}

/// Adds what `--columns` says.
///
/// # Errors
/// Text that is no list of `PART=COLUMN`, or a part that a pair does not have.
pub fn columns(layers: &mut Layering<'_>, text: Option<&str>) -> Result<()> {
    for named in text.into_iter().flat_map(|text| text.split(',')) {
        let wrong = || Error::new(format!("`--columns {named}` names no column")).hint("write `--columns prompt=question,chosen=best,rejected=worst`");
        let (part, column) = named.split_once('=').map(|(part, column)| (part.trim(), column.trim())).ok_or_else(wrong)?;
        if column.is_empty() {
            return Err(wrong());
        }
        let parts = ["prompt", "chosen", "rejected"];
        if !parts.contains(&part) {
            return Err(Error::unknown("part of a pair", part, parts));
        }
        layers.flag("--columns", &format!("dataset.{part}_column"), column);
    }
    Ok(())
}

/// Adds the splits to score that `--split` names.
pub fn scored(layers: &mut Layering<'_>, split: Option<&str>) {
    if let Some(split) = split {
        layers.flag("--split", "eval.splits", &serde_json::json!([split]).to_string());
    }
}

/// Judge runs, saved adapters or a base model on preference pairs.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo eval runs/dpo-lora-synthetic-1
  reprpo eval runs/a runs/b --dataset genies:math --set eval.max_pairs=none --json
  reprpo eval --model smollm2-135m-instruct --dataset pairs.jsonl")]
pub struct EvalArgs {
    /// Folders of runs or of adapters in PEFT's format, or the hub's repositories of adapters, which know their models; none =
    /// `--model` alone.
    #[arg(value_name = "RUN_OR_ADAPTER", required_unless_present = "model")]
    pub targets: Vec<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    /// The preference pairs: a name, `NAME:PART`, a file, or a repository of the hub, as `org/name`; a run's own when not given.
    #[arg(long, value_name = "NAME|FILE|ID", help_heading = "Data")]
    pub dataset: Option<String>,
    /// Where the data set's files lie.
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub data_dir: Option<String>,
    /// What of it to score, instead of every split: `train`, `train[:750]`, `train[10%:20%]`, several with `+`.
    #[arg(long, value_name = "SPLIT", help_heading = "Data")]
    pub split: Option<String>,
    /// Names of a file's columns, as `prompt=question,chosen=best,rejected=worst`.
    #[arg(long, value_name = "PART=COLUMN", help_heading = "Data")]
    pub columns: Option<String>,
    /// Most tokens of prompt and completion together; a run's own `train.max_length` when not given, or no limit without a
    /// run. Longer completions are cut at their end, and counted under the table.
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_length: Option<String>,
    /// Any field of the experiment, as `eval.max_pairs=none`; may be given again.
    #[arg(long, value_name = "FIELD=VALUE", help_heading = "Data")]
    pub set: Vec<String>,
    /// One JSON list with a table each, and the completions.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Log-probabilities of the completions of each pair in a file.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo score --model smollm2-135m-instruct --data pairs.jsonl
  reprpo score --model ./my-model --load-adapter runs/a/adapter --data pairs.jsonl --json > scores.jsonl")]
pub struct ScoreArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A saved adapter in PEFT's format: a folder, or a repository of the hub.
    #[arg(long, value_name = "ID|DIR", help_heading = "Model")]
    pub load_adapter: Option<String>,
    /// The preference pairs: a file, `-` for standard input, a name, `NAME:PART`, or a repository of
    /// the hub, as `org/name`.
    #[arg(long, alias = "dataset", value_name = "FILE|NAME|ID", help_heading = "Data")]
    pub data: String,
    /// Where the data set's files lie.
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub data_dir: Option<String>,
    /// What of it to score, instead of every split: `train`, `train[:750]`, `train[10%:20%]`, several with `+`.
    #[arg(long, value_name = "SPLIT", help_heading = "Data")]
    pub split: Option<String>,
    /// Names of a file's columns, as `prompt=question,chosen=best,rejected=worst`.
    #[arg(long, value_name = "PART=COLUMN", help_heading = "Data")]
    pub columns: Option<String>,
    /// Most tokens of prompt and completion together; no limit when not given. Longer completions are cut at their end.
    /// The output shows which pairs are cut or dropped, and a warning counts pairs longer than the model's context.
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_length: Option<String>,
    /// Do not score an end-of-sequence token behind a completion.
    #[arg(long, help_heading = "Data")]
    pub no_eos: bool,
    /// Do not add the tokenizer's own special tokens, such as BOS, to plain text.
    #[arg(long, help_heading = "Data")]
    pub no_special_tokens: bool,
    /// Any field of the experiment, as `dataset.bad_rows=skip`; may be given again.
    #[arg(long, value_name = "FIELD=VALUE", help_heading = "Data")]
    pub set: Vec<String>,
    /// Print one JSON object per pair, each on a line: `split`, `index` (the place of its row in the file), the scores of
    /// `chosen` and `rejected`, and `truncated`, with a `reason` if the pair was cut. A dropped pair has `dropped` and a
    /// `reason` instead of scores.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Write a trained model as a Hugging Face folder, its adapter merged into the weights.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo export runs/dpo-lora-synthetic-1 --merge --out my-model
  reprpo export runs/a/adapter --merge --out my-model --dtype bf16

The folder is one that transformers, vLLM and `reprpo --model` load.")]
pub struct ExportArgs {
    /// Folder of a run or of an adapter in PEFT's format, or the hub's repository of an adapter.
    #[arg(value_name = "RUN_OR_ADAPTER")]
    pub target: PathBuf,
    /// Merge the adapter into the weights; what is not merged is in the run's `adapter` folder already.
    #[arg(long, required = true)]
    pub merge: bool,
    /// The new folder.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: PathBuf,
    /// The base model; a run and an adapter know their own.
    #[arg(long, value_name = "ID|DIR|FILE", help_heading = "Model")]
    pub model: Option<String>,
    /// Precision of the weights that are written: `f32` or `bf16`. They are merged in f32.
    #[arg(long, value_enum, default_value_t = Written::F32, help_heading = "Output")]
    pub dtype: Written,
    /// Most gigabytes (10⁹ bytes) in one file.
    #[arg(long, value_name = "GB", default_value_t = 5.0, help_heading = "Output")]
    pub shard: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Written {
    /// 32-bit floats.
    F32,
    /// Brain floats of 16 bits.
    Bf16,
}

/// Who speaks, and how.
#[derive(Args)]
pub struct Speaker {
    /// Folder of a run or of an adapter in PEFT's format, or the hub's repository of an adapter, which knows its model; none =
    /// `--model` alone.
    #[arg(value_name = "RUN_OR_ADAPTER", required_unless_present = "model")]
    pub target: Option<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    /// The base model's answer as well, before the trained one's.
    #[arg(long, requires = "target", help_heading = "Model")]
    pub compare: bool,
    /// What the model is told before anything else, in a chat.
    #[arg(long, value_name = "TEXT", help_heading = "Text")]
    pub system: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Text")]
    pub max_new_tokens: usize,
    /// What logits are divided by before a token is drawn; 0 = the likeliest one, always.
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true, help_heading = "Text")]
    pub temperature: f64,
    /// Draw among the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true, help_heading = "Text")]
    pub top_p: f64,
    /// Seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Text")]
    pub seed: u64,
}

/// Let a model, before or after training, answer prompts.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo generate --model smollm2-135m-instruct --prompt 'Name three rivers.'
  reprpo generate runs/dpo-lora-synthetic-1 --compare --prompt 'Is the earth flat?' --prompt 'What is 2 + 2?'
  reprpo generate --model ./my-model --plain --prompt 'Once upon a time' --temperature 0.8 --top-p 0.9 --seed 1")]
pub struct GenerateArgs {
    #[command(flatten)]
    pub speaker: Speaker,
    /// What is to be answered; may be given again.
    #[arg(long, value_name = "TEXT", required = true, help_heading = "Text")]
    pub prompt: Vec<String>,
    /// Continue the text as it stands, without the model's chat template.
    #[arg(long, conflicts_with = "system", help_heading = "Text")]
    pub plain: bool,
    /// As a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Talk with a model, before or after training: a line is a turn, an empty one or the end of input ends it.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo chat --model smollm2-135m-instruct
  reprpo chat runs/dpo-lora-synthetic-1 --compare
  printf 'Hello\\nWho are you?\\n' | reprpo chat --model smollm2-135m-instruct")]
pub struct ChatArgs {
    #[command(flatten)]
    pub speaker: Speaker,
}

/// What there is: interventions, adapters, transforms, taps, data sets, recipes, models.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo list
  reprpo list adapters
  reprpo list models --json")]
pub struct ListArgs {
    /// Of one kind alone.
    #[arg(value_enum)]
    pub kind: Option<Listed>,
    /// As a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Listed {
    Interventions,
    Adapters,
    Transforms,
    Taps,
    Datasets,
    /// Settings that belong together, for `--recipe`.
    Recipes,
    /// Models with a name of their own, and whether they are on this machine.
    Models,
}

impl Listed {
    /// The kind of plugin; none for what is no plugin.
    pub fn kind(self) -> Option<Kind> {
        match self {
            Listed::Interventions => Some(Kind::Intervention),
            Listed::Adapters => Some(Kind::Adapter),
            Listed::Transforms => Some(Kind::Transform),
            Listed::Taps => Some(Kind::Tap),
            Listed::Datasets => Some(Kind::Dataset),
            Listed::Recipes | Listed::Models => None,
        }
    }
}

/// A method: its formula, what it needs, and every field; or a recipe: what it sets.
#[derive(Args)]
pub struct ExplainArgs {
    /// A name from `reprpo list`.
    pub name: String,
    /// As a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// The resolved configuration, or its schema.
#[derive(Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    Show(Box<ShowArgs>),
    /// The JSON schema of the whole experiment, with the fields of every plugin.
    Schema,
}

/// The experiment that `reprpo run` would run with the same flags, as a configuration file.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo config show --intervention prefvec --origin
  reprpo config show --set train.lr=3e-5 > experiment.toml && reprpo run --config experiment.toml")]
pub struct ShowArgs {
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// Say behind each value where it came from.
    #[arg(long, help_heading = "Output")]
    pub origin: bool,
    /// As JSON.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Preference data before anything is trained on them.
#[derive(Args)]
pub struct DataArgs {
    #[command(subcommand)]
    pub command: DataCommand,
}

#[derive(Subcommand)]
pub enum DataCommand {
    Inspect(Box<InspectArgs>),
    Tokens(Box<TokensArgs>),
}

/// What is in a data set: counts, duplicates, lengths, what a run would cut or drop, and a few pairs as the model gets them.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo data inspect pairs.jsonl
  reprpo data inspect pairs.csv --columns prompt=question,chosen=best,rejected=worst --split 'train[:1000]'
  reprpo data inspect genies:math --data-dir DATA --model ./my-model --max-length 256 --json

Of the model, only the tokenizer is read. Where the default model is not on this machine, lengths are characters.")]
pub struct InspectArgs {
    #[command(flatten)]
    pub pairs: PairsArgs,
    /// Most tokens of prompt and completion together in a run; 512 when not given.
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_length: Option<String>,
    /// Show so many pairs of each split.
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Output")]
    pub examples: usize,
    /// As JSON, the examples with token ids and masks.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// The pairs to read, and how they become tokens.
#[derive(Args)]
pub struct PairsArgs {
    /// The preference pairs: a name, `NAME:PART`, a file, `-` for standard input, or a repository of
    /// the hub, as `org/name`.
    #[arg(value_name = "DATA")]
    pub data: String,
    /// The model whose tokenizer and chat template are used: a known name, a folder, a GGUF file, or a repository of the hub.
    #[arg(long, value_name = "ID|DIR|FILE", help_heading = "Model")]
    pub model: Option<String>,
    /// Do not put an end-of-sequence token behind a completion.
    #[arg(long, help_heading = "Model")]
    pub no_eos: bool,
    /// Do not add the tokenizer's own special tokens, such as BOS, to plain text.
    #[arg(long, help_heading = "Model")]
    pub no_special_tokens: bool,
    /// Where the data set's files lie.
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub data_dir: Option<String>,
    /// What of it to read, instead of every split: `train`, `train[:750]`, `train[10%:20%]`, several with `+`.
    #[arg(long, value_name = "SPLIT", help_heading = "Data")]
    pub split: Option<String>,
    /// Names of a file's columns, as `prompt=question,chosen=best,rejected=worst`.
    #[arg(long, value_name = "PART=COLUMN", help_heading = "Data")]
    pub columns: Option<String>,
    /// Read the first so many pairs of each split.
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_pairs: Option<usize>,
    /// Any field of the experiment, as `dataset.test=FILE`; may be given again.
    #[arg(long, value_name = "FIELD=VALUE", help_heading = "Data")]
    pub set: Vec<String>,
}

/// The token ids of every pair, as a run trains on them: the prompt and both completions, or the reason why a run would
/// drop the pair.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo data tokens pairs.jsonl --model smollm2-135m-instruct
  reprpo data tokens pairs.jsonl --model ./my-model --json > tokens.jsonl
  reprpo data tokens genies:math --data-dir DATA --split 'test[:5]' --max-length 512

Without --json, each line shows a pair: its index, its prompt, and the two completions between ⟨ and ⟩. Of the model,
only the tokenizer is read.")]
pub struct TokensArgs {
    #[command(flatten)]
    pub pairs: PairsArgs,
    /// Most tokens of prompt and completion together, cut as in a run; no limit when not given.
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_length: Option<String>,
    /// Print one JSON object per pair, each on a line: `split`, `index`, `prompt_ids`, `chosen_ids` and `rejected_ids`, or
    /// `dropped` with the `reason`.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Make the crate of a new method: it compiles, passes its tests and does something sensible at once.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo new intervention twist
  reprpo new dataset my-pairs --path ~/plugins/my-pairs

The crate's README says how to test, build and load it.")]
pub struct NewArgs {
    /// What it is.
    #[arg(value_enum)]
    pub kind: NewKind,
    /// Its name on the command line, and that of its crate: a-z, 0-9 and -.
    pub name: String,
    /// Its folder, which does not exist yet; one of its name when not given.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NewKind {
    /// A training objective.
    Intervention,
    /// A trainable change of the model.
    Adapter,
    /// A map of the activations before a loss compares them.
    Transform,
    /// A place where activations are read.
    Tap,
    /// A source of preference pairs.
    Dataset,
}

impl NewKind {
    /// As the registry has it.
    pub fn kind(self) -> Kind {
        match self {
            NewKind::Intervention => Kind::Intervention,
            NewKind::Adapter => Kind::Adapter,
            NewKind::Transform => Kind::Transform,
            NewKind::Tap => Kind::Tap,
            NewKind::Dataset => Kind::Dataset,
        }
    }
}

/// Plugins that were built as libraries.
#[derive(Args)]
pub struct PluginArgs {
    #[command(subcommand)]
    pub command: PluginCommand,
}

#[derive(Subcommand)]
pub enum PluginCommand {
    Check(CheckArgs),
}

/// What a plugin's library registers, whether it fits this build, and whether its methods keep what every method promises.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo plugin check target/release/libtwist.so
  reprpo plugin check libtwist.so --json")]
pub struct CheckArgs {
    /// The library.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// As JSON.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Whether this machine has what reprpo needs, and what would make it faster.
#[derive(Args)]
pub struct DoctorArgs {
    /// As a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// The command, with the names of the registered plugins in its help.
pub fn command(registry: &Registry) -> clap::Command {
    let describe = |command: clap::Command, kinds: &[Kind]| {
        kinds.iter().fold(command, |command, kind| command.mut_arg(kind.name(), |arg| arg.value_parser(Names::of(registry, *kind))))
    };
    let recipes = |command: clap::Command| command.mut_arg("recipe", |arg| arg.value_parser(Names::of_recipes(registry)));
    Cli::command()
        .mut_subcommand("run", |c| recipes(describe(c, &Kind::ALL)))
        .mut_subcommand("sweep", |c| recipes(describe(c, &Kind::ALL)))
        .mut_subcommand("config", |c| c.mut_subcommand("show", |c| recipes(describe(c, &Kind::ALL))))
        .mut_subcommand("eval", |c| describe(c, &[Kind::Dataset]))
}

/// Refuses `--resume DIR` together with flags of the experiment, because the run in the folder has its own configuration.
///
/// # Errors
/// Fails if `--resume DIR` and such a flag are both given.
pub fn check_resume(matches: &clap::ArgMatches, registry: &Registry) -> Result<(), clap::Error> {
    let Some(run) = matches.subcommand_matches("run") else { return Ok(()) };
    if run.get_one::<PathBuf>("resume").is_none_or(|folder| folder == Path::new(AUTO)) {
        return Ok(());
    }
    // clap's own group of these flags leaves out the ones that are flattened into it.
    let experiment = ExperimentArgs::augment_args(clap::Command::new("experiment"));
    let given = |arg: &&clap::Arg| run.value_source(arg.get_id().as_str()) == Some(clap::parser::ValueSource::CommandLine);
    let Some(flag) = experiment.get_arguments().find(given).and_then(clap::Arg::get_long) else { return Ok(()) };
    let text = format!(
        "the argument '--resume <DIR>' cannot be used with '--{flag}': the run in the folder has its own configuration, and only '--resume auto' takes both"
    );
    let mut command = command(registry);
    // The error shows the usage of `run`, as clap's own errors do.
    command.build();
    Err(command.find_subcommand_mut("run").map_or_else(|| clap::Error::new(ErrorKind::ArgumentConflict), |run| run.error(ErrorKind::ArgumentConflict, text)))
}

/// Takes any text and shows the names of a kind of plugin in the help.
#[derive(Clone)]
struct Names(Vec<(String, String)>);

impl Names {
    fn of(registry: &Registry, kind: Kind) -> Self {
        Self(registry.of(kind).map(|e| (e.about().name.to_owned(), e.about().summary.to_owned())).collect())
    }

    fn of_recipes(registry: &Registry) -> Self {
        Self(registry.recipes().map(|r| (r.name.clone(), r.summary.clone())).collect())
    }
}

impl TypedValueParser for Names {
    type Value = String;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&clap::Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().map(|(name, summary)| PossibleValue::new(name.clone()).help(summary.clone()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command(&Registry::builtin().expect("plugins")).debug_assert();
    }
}
