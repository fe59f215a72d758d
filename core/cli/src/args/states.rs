//! Arguments of `reprpo states`.

use std::path::PathBuf;

use clap::Args;

use super::data_flags::{DataFlags, Probed};
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
With --per-token a row is a token, `ids.chosen` has the token ids, and the index says which rows \
belong to a pair.")]
pub struct StatesArgs {
    /// A run, or an adapter in PEFT's format; none = the model of `--model`.
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
    pub data: DataFlags<Probed>,
    /// Write only the first so many pairs of each split.
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_pairs: Option<usize>,
    /// Write the states of every token, prompt included, instead of one vector for each completion.
    #[arg(long, help_heading = "Output")]
    pub per_token: bool,
    /// Begin another file when one has so many gigabytes.
    #[arg(long, value_name = "GB", default_value_t = 2.0, help_heading = "Output")]
    pub shard: f64,
    /// Folder to write, which must not exist.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: PathBuf,
    /// Print the taps, the files, and the number of pairs and bytes as JSON.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
