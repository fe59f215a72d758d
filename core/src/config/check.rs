//! Range checks for all settings outside plugins. A plugin checks its own settings in `build`.

use super::{Batch, Experiment, Origins, Schedule};
use crate::error::{Error, Result};

/// The value of a field, and the result of its range check.
struct Rule {
    path: &'static str,
    value: String,
    holds: bool,
    must: &'static str,
}

/// The requirement for optional fields that have no effect without validation.
const UNVALIDATED_NONE: &str = "be `none` unless `train.validate_every` is set";

fn rule(path: &'static str, value: impl ToString, holds: bool, must: &'static str) -> Rule {
    Rule { path, value: value.to_string(), holds, must }
}

/// Checks the ranges of all settings outside plugins.
pub(super) fn check(e: &Experiment, origins: &Origins) -> Result<()> {
    let t = &e.train;
    let positive = |v: f64| v.is_finite() && v > 0.0;
    let not_negative = |v: f64| v.is_finite() && v >= 0.0;
    let is_decay_rate = |v: f64| (0.0..1.0).contains(&v);
    let optional = |v: Option<usize>| v.map_or_else(|| "none".to_owned(), |v| v.to_string());
    let at_least_one = |v: Option<usize>| v != Some(0);
    let validates = t.validate_every.is_some();
    let rules = [
        rule("model", format!("`{}`", e.model), !e.model.trim().is_empty(), "name a model"),
        rule(
            "device",
            format!("`{}`", e.device),
            device(&e.device),
            "be `auto`, `cpu`, `cuda` or `cuda:N`",
        ),
        rule(
            "train.split",
            "empty",
            !t.split.trim().is_empty(),
            "name a split, e.g. `train` or `train[:750]`",
        ),
        rule("train.lr", t.lr, positive(t.lr), "be greater than 0"),
        rule("train.warmup", t.warmup, not_negative(t.warmup), "be 0 or more"),
        rule(
            "train.decay",
            t.decay,
            t.schedule != Schedule::Wsd || (t.decay > 0.0 && t.decay <= 1.0),
            "be a fraction of the steps, greater than 0 and at most 1",
        ),
        rule("train.batch", t.batch, t.batch != Batch::Pairs(0), "be 1 or more, or `auto`"),
        rule("train.accumulate", t.accumulate, t.accumulate >= 1, "be 1 or more"),
        rule("train.ranks", t.ranks, t.ranks >= 1, "be 1 or more"),
        rule("train.epochs", t.epochs, positive(t.epochs), "be greater than 0"),
        rule("train.clip", t.clip, not_negative(t.clip), "be 0 (no clipping) or more"),
        rule("train.weight_decay", t.weight_decay, not_negative(t.weight_decay), "be 0 or more"),
        rule("train.beta1", t.beta1, is_decay_rate(t.beta1), "be at least 0 and less than 1"),
        rule("train.beta2", t.beta2, is_decay_rate(t.beta2), "be at least 0 and less than 1"),
        rule("train.eps", t.eps, positive(t.eps), "be greater than 0"),
        rule("train.max_length", t.max_length, t.max_length >= 2, "be 2 or more"),
        rule(
            "train.max_prompt_length",
            optional(t.max_prompt_length),
            at_least_one(t.max_prompt_length),
            "be 1 or more, or `none`",
        ),
        rule(
            "train.max_pairs",
            optional(t.max_pairs),
            at_least_one(t.max_pairs),
            "be 1 or more, or `none`",
        ),
        rule(
            "train.swap_labels",
            t.swap_labels,
            (0.0..=1.0).contains(&t.swap_labels),
            "be a fraction from 0 to 1",
        ),
        // Runs store their configuration as TOML. TOML integers go up to 2⁶³ − 1.
        rule("train.seed", t.seed, i64::try_from(t.seed).is_ok(), "be at most 9223372036854775807"),
        rule(
            "train.transform_lr",
            t.transform_lr.unwrap_or_default(),
            t.transform_lr.is_none_or(positive),
            "be greater than 0, or `none`",
        ),
        rule("train.metrics_every", t.metrics_every, t.metrics_every >= 1, "be 1 or more"),
        rule(
            "train.checkpoint_every",
            optional(t.checkpoint_every),
            at_least_one(t.checkpoint_every),
            "be 1 or more, or `none`",
        ),
        rule(
            "train.validate_every",
            optional(t.validate_every),
            at_least_one(t.validate_every),
            "be 1 or more, or `none`",
        ),
        rule(
            "train.validation_pairs",
            optional(t.validation_pairs),
            at_least_one(t.validation_pairs),
            "be 1 or more, or `none`",
        ),
        rule(
            "train.patience",
            optional(t.patience),
            at_least_one(t.patience),
            "be 1 or more, or `none`",
        ),
        rule(
            "train.validation_pairs",
            optional(t.validation_pairs),
            validates || t.validation_pairs.is_none(),
            UNVALIDATED_NONE,
        ),
        rule(
            "train.keep_best",
            t.keep_best,
            validates || !t.keep_best,
            "be false unless `train.validate_every` is set",
        ),
        rule(
            "train.patience",
            optional(t.patience),
            validates || t.patience.is_none(),
            UNVALIDATED_NONE,
        ),
        rule(
            "eval.max_pairs",
            optional(e.eval.max_pairs),
            at_least_one(e.eval.max_pairs),
            "be 1 or more, or `none`",
        ),
        rule(
            "eval.splits",
            "empty",
            e.eval.splits.as_ref().is_none_or(|s| !s.is_empty()),
            "name a split, or be `none`",
        ),
        rule(
            "eval.instruction",
            "empty",
            e.eval.instruction.as_ref().is_none_or(|text| !text.trim().is_empty()),
            "contain text, or be `none`",
        ),
        rule("cache.max_gb", e.cache.max_gb, positive(e.cache.max_gb), "be greater than 0"),
        rule("eval.tokens", e.eval.tokens, e.eval.tokens >= 1, "be 1 or more"),
        rule(
            "eval.completion_tokens",
            e.eval.completion_tokens,
            e.eval.completion_tokens >= 1,
            "be 1 or more; set `eval.completions=0` for no completions",
        ),
    ];
    match rules.into_iter().find(|r| !r.holds) {
        None => Ok(()),
        Some(Rule { path, value, must, .. }) => {
            let from = origins.get(path).map_or_else(String::new, |o| format!(" ({o})"));
            Err(Error::new(format!("`{path}` is {value}{from}, but must {must}")))
        }
    }
}

fn device(text: &str) -> bool {
    match text.strip_prefix("cuda") {
        Some("") => true,
        Some(rest) => rest.strip_prefix(':').is_some_and(|n| {
            !n.is_empty() && n.len() <= 3 && n.bytes().all(|b| b.is_ascii_digit())
        }),
        None => matches!(text, "auto" | "cpu"),
    }
}
