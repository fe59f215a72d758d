//! Arguments of `reprpo bench`.

use clap::Args;
use clap::builder::RangedU64ValueParser;
use reprpo_core::Result;
use reprpo_core::config::Resolved;
use reprpo_core::run::bench::Options;

use super::data_flags::{DataFlags, RunData};
use super::experiment::ConfigurationFlags;
use super::fields::{FieldFlags, MethodFlags, ModelFlags, StartFlags, TrainingFlags};
use crate::App;

/// Help heading of the flags that only this command has.
const MEASUREMENT: &str = "Measurement";

fn positive() -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(1..)
}

/// Measure the speed of training on your own model, method and pairs.
///
/// Takes the steps of `reprpo run` without writing a run. Each repetition has two passes over the
/// same pairs. The first pass computes the outputs of the reference. The second pass reads these
/// outputs from the cache, as in all epochs after the first. For both passes, the table shows pairs
/// and tokens per second, the time of each phase, and the number of operations. The table also
/// compares the rate of these operations with the machine's rate for products of the same shapes.
/// docs/benchmarks.md explains every number.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo bench
  reprpo bench --pairs 16 --repeat 3 --set train.batch=2
  reprpo bench --intervention prefvec --adapter hra --dataset pairs.jsonl --distinct-prompts
  reprpo bench --model ./my-model --dtype bf16 --device cuda --json

Close other programs first, and set `OMP_NUM_THREADS` to the number of free cores. The fields
`train.max_pairs`, `train.epochs` and `eval.*` have no effect.")]
pub struct BenchArgs {
    #[command(flatten)]
    model: FieldFlags<ModelFlags>,
    #[command(flatten)]
    method: FieldFlags<MethodFlags>,
    #[command(flatten)]
    start: FieldFlags<StartFlags>,
    #[command(flatten)]
    data: DataFlags<RunData>,
    #[command(flatten)]
    training: FieldFlags<TrainingFlags>,
    /// Number of pairs to measure, from the start of the split.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive(),
        help_heading = MEASUREMENT)]
    pub pairs: u64,
    /// Skip pairs with the same prompt as an earlier pair.
    #[arg(long, help_heading = MEASUREMENT)]
    distinct_prompts: bool,
    /// Number of repetitions. The table shows the repetition with the median duration.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive(),
        help_heading = MEASUREMENT)]
    repeat: u64,
    /// Number of optimiser steps to take before the measurement.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = MEASUREMENT)]
    warmup: u64,
    /// Print the result as a JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub fields: ConfigurationFlags,
}

impl BenchArgs {
    /// Resolves the experiment like `reprpo run`.
    ///
    /// # Errors
    /// Fails if a configuration file cannot be read, or if a name, field or value is not valid.
    pub fn resolve(&self, app: &App<'_>) -> Result<Resolved> {
        self.fields.resolve(app, |layers| {
            self.model.apply(layers);
            self.start.apply(layers);
            self.data.apply(layers)?;
            self.method.apply(layers);
            self.training.apply(layers);
            Ok(())
        })
    }

    /// Converts the flags to the options of the measurement.
    pub fn options(&self) -> Options {
        let [pairs, repeat, warmup] = [self.pairs, self.repeat, self.warmup]
            .map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        Options { pairs, repeat, warmup, distinct_prompts: self.distinct_prompts }
    }
}
