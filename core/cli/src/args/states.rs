//! Arguments of `reprpo states`.

use std::path::PathBuf;

use clap::Args;

use super::data_flags::{DataFlags, StatesData};
use super::fields::{FieldFlags, ModelFlags, TapFlags};

/// Write the activations of a model or a run for use in a notebook.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo states --model smollm2-135m-instruct --dataset pairs.jsonl --layers 10,20 --out states
  reprpo states runs/dpo-lora-synthetic-1 --split test --out trained
  reprpo states runs/dpo-lora-synthetic-1 --base --split test --out base
  reprpo states --model ./my-model --dataset pairs.jsonl --tap side-in --per-token --out tokens

The folder has an `index.json` and safetensors files. In Python:
  index = json.load(open(\"states/index.json\"))
  states = safetensors.torch.load_file(\"states/\" + index[\"pairs\"][0][\"file\"])
  chosen = states[index[\"taps\"][0][\"name\"] + \".chosen\"]     # one row for each pair
With --per-token, each row is a token, `ids.chosen` has the token ids, and the index lists the rows
that belong to each pair.")]
pub struct StatesArgs {
    /// Folder of a run, or an adapter in PEFT format (a folder or a Hugging Face repository).
    /// If omitted, use the base model given by `--model`.
    #[arg(value_name = "RUN_OR_ADAPTER", required_unless_present = "model")]
    pub target: Option<PathBuf>,
    #[command(flatten)]
    pub model: FieldFlags<ModelFlags>,
    /// Use the base model of the run or adapter, without the adapter.
    #[arg(long, requires = "target", help_heading = "Model")]
    pub base: bool,
    #[command(flatten)]
    pub tap: FieldFlags<TapFlags>,
    #[command(flatten)]
    pub data: DataFlags<StatesData>,
    /// Write only the first N pairs of each split.
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_pairs: Option<usize>,
    /// Write the states of every token, including the prompt, instead of one vector per completion.
    #[arg(long, help_heading = "Output")]
    pub per_token: bool,
    /// Start a new file when the current one has reached this size in gigabytes (10⁹ bytes).
    #[arg(long, value_name = "GB", default_value_t = 2.0, help_heading = "Output")]
    pub shard: f64,
    /// Folder to create, which must not exist yet.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: PathBuf,
    /// Print a JSON object with the taps, the files, and the number of pairs and bytes.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
