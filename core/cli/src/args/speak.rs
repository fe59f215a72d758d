//! Arguments of `reprpo generate` and `reprpo chat`.

use std::path::PathBuf;

use clap::Args;

use super::fields::{FieldFlags, ModelFlags};

/// The model that speaks, and how it draws its tokens.
#[derive(Args)]
pub struct SpeakerArgs {
    /// Folder of a run or of an adapter in PEFT's format, or the hub's repository of an adapter,
    /// which knows its model; none = `--model` alone.
    #[arg(value_name = "RUN_OR_ADAPTER", required_unless_present = "model")]
    pub target: Option<PathBuf>,
    #[command(flatten)]
    pub model: FieldFlags<ModelFlags>,
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
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Text"
    )]
    pub temperature: f64,
    /// Draw among the likeliest tokens that together have this probability.
    #[arg(
        long,
        value_name = "P",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        help_heading = "Text"
    )]
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
  reprpo generate runs/dpo-lora-synthetic-1 --compare --prompt 'Is the earth flat?' --prompt \
  'What is 2 + 2?'
  reprpo generate --model ./my-model --plain --prompt 'Once upon a time' --temperature 0.8 \
  --top-p 0.9 --seed 1")]
pub struct GenerateArgs {
    #[command(flatten)]
    pub speaker: SpeakerArgs,
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

/// Talk with a model, before or after training: a line is a turn, an empty one or the end of input
/// ends it.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo chat --model smollm2-135m-instruct
  reprpo chat runs/dpo-lora-synthetic-1 --compare
  printf 'Hello\\nWho are you?\\n' | reprpo chat --model smollm2-135m-instruct")]
pub struct ChatArgs {
    #[command(flatten)]
    pub speaker: SpeakerArgs,
}
