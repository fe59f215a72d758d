//! Generates text token by token.

use std::cell::RefCell;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::model::cache::Cache;
use crate::model::pass::Request;
use crate::model::stream::StreamBuilder;
use crate::model::{Adapted, Model};
use crate::text::Tokenizer;

/// Settings for sampling tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Maximum number of tokens in a completion. Must be at least 1.
    pub max_new_tokens: usize,
    /// The logits are divided by this value before sampling. With 0, the most likely token is
    /// always chosen.
    pub temperature: f64,
    /// Nucleus sampling (Holtzman et al. 2020): only sample from the smallest set of most likely
    /// tokens whose probabilities add up to at least this value. Must be greater than 0 and at most
    /// 1.
    pub top_p: f64,
    /// Seed of the random number generator.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { max_new_tokens: 128, temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Checks that all settings are in their valid ranges.
    ///
    /// # Errors
    /// Fails if a setting is out of range.
    pub fn check(&self) -> Result<()> {
        let rules = [
            (self.max_new_tokens >= 1, "max-new-tokens", self.max_new_tokens as f64, "at least 1"),
            (
                self.temperature >= 0.0 && self.temperature.is_finite(),
                "temperature",
                self.temperature,
                "finite and at least 0",
            ),
            (
                self.top_p > 0.0 && self.top_p <= 1.0,
                "top-p",
                self.top_p,
                "greater than 0 and at most 1",
            ),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, name, value, must)) => {
                Err(Error::new(format!("`{name}` is {value}, but must be {must}")))
            }
            None => Ok(()),
        }
    }
}

/// Tokens that chat models use to end a turn. They are hard-coded because the configurations of
/// fine-tuned models often omit them.
const TURN_ENDS: [&str; 5] =
    ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>"];

/// Returns the sorted ids of all stop tokens: the tokenizer's EOS token, the tokens that end a turn
/// in a chat, and `configured`. The ids in `configured` come from the model's configuration files.
pub fn stops(tokenizer: &Tokenizer, configured: &[i64]) -> Vec<i64> {
    let own = tokenizer
        .eos()
        .map(|s| s.id)
        .into_iter()
        .chain(TURN_ENDS.iter().filter_map(|t| tokenizer.token_id(t)));
    let mut stops: Vec<i64> = own.chain(configured.iter().copied()).collect();
    stops.sort_unstable();
    stops.dedup();
    stops
}

/// Returns the warning for a model without stop tokens. Its completions always have the maximum
/// number of tokens, `most`.
pub fn endless(most: usize) -> String {
    format!(
        "warning: neither the model nor its tokenizer defines a stop token, so \
            every completion has {most} tokens"
    )
}

/// A model that generates text, with or without an adapter.
#[derive(Clone, Copy, Debug)]
pub struct Generator<'a> {
    /// The model.
    pub model: &'a Model,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Ids of the stop tokens, from [`stops`].
    pub stops: &'a [i64],
    /// The adapter; `None` for the base model.
    pub adapted: Option<&'a Adapted>,
}

/// Generated text, with token counts and timings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The text, without the stop token.
    pub text: String,
    /// Number of generated tokens, including the stop token.
    pub tokens: usize,
    /// True if generation ended with a stop token. False if the caller stopped it, or if it reached
    /// the maximum number of tokens.
    pub ended: bool,
    /// Number of tokens in the prompt.
    pub prompt: usize,
    /// Time until the first token was generated, including the forward pass over the prompt.
    pub read: Duration,
    /// Time from the first token to the last one.
    pub generated: Duration,
}

impl Answer {
    /// Speed of the forward pass over the prompt, in tokens per second.
    pub fn read_per_second(&self) -> f64 {
        self.prompt as f64 / self.read.as_secs_f64()
    }

    /// Speed of generation, in tokens per second. The first token is not counted, because the
    /// forward pass over the prompt produces it. `None` if only one token was generated.
    pub fn generated_per_second(&self) -> Option<f64> {
        (self.tokens > 1).then(|| (self.tokens - 1) as f64 / self.generated.as_secs_f64())
    }
}

impl Generator<'_> {
    /// Generates a completion of `prompt`. Calls `on_text` with the text of each new token. The
    /// text may be empty. Generation stops if `on_text` returns false.
    ///
    /// # Errors
    /// Fails in the same cases as [`generate`]. Also fails if a prompt token is not in the
    /// vocabulary, or if the new tokens cannot be decoded.
    pub fn answer(
        &self,
        prompt: &[i64],
        sampling: Sampling,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Answer> {
        self.tokenizer.check(prompt).map_err(|e| e.within("cannot use the prompt"))?;
        let (mut ids, mut sent, mut failed, mut first) = (Vec::new(), String::new(), None, None);
        let begin = Instant::now();
        let new = generate(self.model, self.adapted, prompt, self.stops, sampling, &mut |id| {
            first.get_or_insert_with(Instant::now);
            ids.push(id);
            match self.tokenizer.decode(&ids) {
                // A character may consist of several tokens. Wait until the character is complete.
                Ok(text) if text.ends_with(char::REPLACEMENT_CHARACTER) => on_text(""),
                Ok(text) => {
                    let more = on_text(text.strip_prefix(sent.as_str()).unwrap_or_default());
                    sent = text;
                    more
                }
                Err(e) => {
                    failed = Some(e);
                    false
                }
            }
        })?;
        let end = Instant::now();
        if let Some(e) = failed {
            return Err(e.within("cannot decode the generated tokens"));
        }
        let ended = new.last().is_some_and(|id| self.stops.contains(id));
        let text = self.tokenizer.decode(&new[..new.len() - usize::from(ended)])?;
        if let Some(rest) = text.strip_prefix(sent.as_str()).filter(|rest| !rest.is_empty()) {
            on_text(rest);
        }
        let first = first.unwrap_or(end);
        Ok(Answer {
            text,
            tokens: new.len(),
            ended,
            prompt: prompt.len(),
            read: first - begin,
            generated: end - first,
        })
    }
}

/// Continues `prompt` and returns the new tokens, including the stop token. Generation ends at a
/// token in `stops`, at the maximum number of new tokens, or at the model's maximum length.
///
/// Calls `on_token` with each new token except the stop token. Generation also ends if `on_token`
/// returns false.
///
/// # Errors
/// Fails if the prompt is empty, if a sampling setting is out of range, if the logits are NaN, or
/// if libtorch fails.
pub fn generate(
    model: &Model,
    adapted: Option<&Adapted>,
    prompt: &[i64],
    stops: &[i64],
    sampling: Sampling,
    on_token: &mut dyn FnMut(i64) -> bool,
) -> Result<Vec<i64>> {
    sampling.check()?;
    if prompt.is_empty() {
        return Err(Error::new("the prompt has no tokens"));
    }
    let _guard = tch::no_grad_guard();
    let cache = RefCell::new(Cache::default());
    let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
    let (mut new, mut next) = (Vec::new(), prompt.to_vec());
    // The last token does not need a position, because it is not fed back into the model.
    let room = model
        .max_tokens()
        .map_or(usize::MAX, |most| (most + 1).saturating_sub(prompt.len()).max(1));
    while new.len() < sampling.max_new_tokens.min(room) {
        let past = cache.borrow().tokens();
        if model.outgrows_cache(past, past + next.len()) {
            cache.replace(Cache::default());
        }
        let past = cache.borrow().tokens();
        let mut builder = StreamBuilder::continuing(past);
        if past > 0 {
            builder.push(&next, None)?;
        } else {
            let root = builder.push_prompt(prompt, None)?;
            if !new.is_empty() {
                builder.push(&new, Some(root))?;
            }
        }
        let stream = builder.finish(model.device())?;
        let reached = model.forward(
            &stream,
            Request { adapted, hidden: true, cache: Some(&cache), ..Request::default() },
        )?;
        let hidden = reached.hidden.ok_or_else(|| Error::internal("no last hidden state"))?;
        let logits = model.logits(&hidden.last()?)?.f_squeeze_dim(0)?.f_to_kind(Kind::Float)?;
        let id = choose(&logits, sampling, &mut rng)?;
        new.push(id);
        let stopped = AtomicBool::new(stops.contains(&id) || !on_token(id));
        if model.stops(&stopped)? {
            break;
        }
        next = vec![id];
    }
    Ok(new)
}

/// Chooses the next token from the logits, which have the shape `[vocab]`.
fn choose(logits: &Tensor, sampling: Sampling, rng: &mut ChaCha8Rng) -> Result<i64> {
    if sampling.temperature == 0.0 {
        return Ok(logits.f_argmax(0, false)?.f_int64_value(&[])?);
    }
    let scaled = logits.f_to_kind(Kind::Double)?.f_div_scalar(sampling.temperature)?;
    let (likely, ids) = scaled.f_softmax(0, Kind::Double)?.f_sort(0, true)?;
    let (likely, ids) = (
        Vec::<f64>::try_from(likely.f_to_device(tch::Device::Cpu)?)?,
        Vec::<i64>::try_from(ids.f_to_device(tch::Device::Cpu)?)?,
    );
    if likely.iter().any(|p| p.is_nan()) {
        return Err(
            Error::new("the model's logits are NaN").hint("compute in float32 with `--dtype f32`")
        );
    }
    // Keep the smallest set of tokens whose probabilities add up to at least `top_p`.
    let before = likely.iter().scan(0.0, |sum, p| {
        let before = *sum;
        *sum += p;
        Some(before)
    });
    let kept = before.take_while(|before| *before < sampling.top_p).count().max(1);
    let mass: f64 = likely[..kept].iter().sum();
    let mut left = rng.random::<f64>() * mass;
    let drawn = likely[..kept].iter().position(|p| {
        left -= p;
        left < 0.0
    });
    Ok(ids[drawn.unwrap_or(kept - 1)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;
    use crate::model::stream::StreamBuilder;

    /// Greedy generation without a cache. Each token takes a forward pass over the whole sequence.
    fn greedy_without_cache(model: &Model, prompt: &[i64], n: usize) -> Vec<i64> {
        let _guard = tch::no_grad_guard();
        let mut ids = prompt.to_vec();
        for _ in 0..n {
            let mut builder = StreamBuilder::default();
            builder.push(&ids, None).unwrap();
            let hidden = model
                .forward(
                    &builder.finish(model.device()).unwrap(),
                    Request { hidden: true, ..Request::default() },
                )
                .unwrap()
                .hidden
                .unwrap();
            ids.push(
                model
                    .logits(&hidden.last().unwrap())
                    .unwrap()
                    .squeeze()
                    .argmax(0, false)
                    .int64_value(&[]),
            );
        }
        ids.split_off(prompt.len())
    }

    #[test]
    fn the_cache_does_not_change_any_token() {
        let model = conformance::model(Kind::Double).unwrap();
        let prompt = [3, 14, 15, 9, 2];
        let sampling = Sampling { max_new_tokens: 90, ..Sampling::default() };
        let mut received = Vec::new();
        let all = generate(&model, None, &prompt, &[], sampling, &mut |id| {
            received.push(id);
            true
        });
        assert_eq!(all.as_ref().unwrap(), &greedy_without_cache(&model, &prompt, 90));
        assert_eq!(all.unwrap(), received);
    }

    #[test]
    fn generation_ends_at_a_stop_token_or_when_the_callback_returns_false() {
        let model = conformance::model(Kind::Double).unwrap();
        let all = generate(
            &model,
            None,
            &[1, 2],
            &[],
            Sampling { max_new_tokens: 8, ..Sampling::default() },
            &mut |_| true,
        )
        .unwrap();
        let stop = all[2];
        let until = all.iter().position(|id| *id == stop).unwrap();
        assert_eq!(
            generate(&model, None, &[1, 2], &[stop], Sampling::default(), &mut |_| true).unwrap(),
            all[..=until]
        );
        assert_eq!(
            generate(&model, None, &[1, 2], &[], Sampling::default(), &mut |_| false).unwrap(),
            all[..1]
        );
        assert!(generate(&model, None, &[], &[], Sampling::default(), &mut |_| true).is_err());
        assert!(
            generate(
                &model,
                None,
                &[1],
                &[],
                Sampling { top_p: 0.0, ..Sampling::default() },
                &mut |_| true
            )
            .is_err()
        );
    }

    #[test]
    fn samples_follow_the_probabilities_and_the_seed() {
        let logits = Tensor::from_slice(&[0.5f64, 0.3, 0.15, 0.05]).log();
        let counts = |temperature: f64, top_p: f64| {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let mut counts = [0; 4];
            (0..4000).for_each(|_| {
                counts[choose(
                    &logits,
                    Sampling { temperature, top_p, ..Sampling::default() },
                    &mut rng,
                )
                .unwrap() as usize] += 1
            });
            counts
        };
        let all = counts(1.0, 1.0);
        assert!(
            [2000, 1200, 600, 200]
                .iter()
                .zip(all)
                .all(|(expected, found): (&i32, i32)| (expected - found).abs() < 130),
            "{all:?}"
        );
        // 0.5 + 0.3 exceeds 0.7, so only the two most likely tokens are kept.
        let nucleus = counts(1.0, 0.7);
        assert!(nucleus[2] == 0 && nucleus[3] == 0 && nucleus[1] > 1300, "{nucleus:?}");
        assert_eq!(counts(1.0, 0.01)[0], 4000);
        assert!(counts(0.1, 1.0)[0] > 3900);
        assert_eq!(counts(1.0, 1.0), all);
    }
}
