//! Arguments of `reprpo generate` and `reprpo chat`.

use std::path::PathBuf;

use clap::Args;

use super::coefficient::coefficient;
use super::fields::{FieldFlags, ModelFlags};

/// Flags that choose the model, and that control how it samples tokens.
#[derive(Args)]
pub struct GenerationArgs {
    /// Folder of a run, or an adapter in PEFT format (a folder or a Hugging Face repository).
    /// If omitted, use the base model given by `--model`.
    #[arg(value_name = "RUN_OR_ADAPTER", required_unless_present = "model")]
    pub target: Option<PathBuf>,
    #[command(flatten)]
    pub model: FieldFlags<ModelFlags>,
    /// Multiply the change that the adapter makes by C: 0 is off, 1 is as trained, -1 is the
    /// opposite. Adapters for which a multiple has no meaning are refused.
    #[arg(
        long,
        value_name = "C",
        value_parser = coefficient,
        allow_hyphen_values = true,
        requires = "target",
        help_heading = "Model"
    )]
    pub coefficient: Option<f64>,
    /// Also print the base model's answer, before the trained model's.
    #[arg(long, requires = "target", help_heading = "Model")]
    pub compare: bool,
    /// System message at the start of the conversation.
    #[arg(long, value_name = "TEXT", help_heading = "Generation")]
    pub system: Option<String>,
    /// Maximum number of tokens in an answer.
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Generation")]
    pub max_new_tokens: usize,
    /// Sampling temperature. 0 always takes the most likely token.
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Generation"
    )]
    pub temperature: f64,
    /// Sample only from the smallest set of most likely tokens whose probabilities add up to P.
    #[arg(
        long,
        value_name = "P",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        help_heading = "Generation"
    )]
    pub top_p: f64,
    /// Random seed for sampling.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Generation")]
    pub seed: u64,
}

/// Generate answers to prompts, before or after training.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo generate --model smollm2-135m-instruct --prompt 'Name three rivers.'
  reprpo generate runs/dpo-lora-synthetic-1 --compare --prompt 'Is the earth flat?' --prompt \
  'What is 2 + 2?'
  reprpo generate runs/dpo-lora-synthetic-1 --coefficient -1 --prompt 'Is the earth flat?'
  reprpo generate --model ./my-model --plain --prompt 'Once upon a time' --temperature 0.8 \
  --top-p 0.9 --seed 1")]
pub struct GenerateArgs {
    #[command(flatten)]
    pub generation: GenerationArgs,
    /// Prompt to answer; may be repeated.
    #[arg(long, value_name = "TEXT", required = true, help_heading = "Generation")]
    pub prompt: Vec<String>,
    /// Continue the prompt as plain text, without the model's chat template.
    #[arg(long, conflicts_with = "system", help_heading = "Generation")]
    pub plain: bool,
    /// Print a JSON list.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Chat with a model, before or after training.
///
/// Each line is a turn. An empty line or the end of the input ends the chat.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo chat --model smollm2-135m-instruct
  reprpo chat runs/dpo-lora-synthetic-1 --compare
  printf 'Hello\\nWho are you?\\n' | reprpo chat --model smollm2-135m-instruct")]
pub struct ChatArgs {
    #[command(flatten)]
    pub generation: GenerationArgs,
}
