//! Completions, token by token: to hear whether a model still speaks.

use std::cell::RefCell;
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

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Most tokens of a completion.
    pub max_new_tokens: usize,
    /// What logits are divided by before one is drawn; 0: the likeliest token, always.
    pub temperature: f64,
    /// Draws among the likeliest tokens that together have this probability, above 0 and at most 1
    /// (Holtzman et al. 2020).
    pub top_p: f64,
    /// Of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { max_new_tokens: 128, temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Holds every value to its range.
    ///
    /// # Errors
    /// The first that is outside.
    pub fn check(&self) -> Result<()> {
        let rules = [
            (self.max_new_tokens >= 1, "max-new-tokens", self.max_new_tokens as f64, "1 or more"),
            (
                self.temperature >= 0.0 && self.temperature.is_finite(),
                "temperature",
                self.temperature,
                "0 or more",
            ),
            (self.top_p > 0.0 && self.top_p <= 1.0, "top-p", self.top_p, "above 0 and at most 1"),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, name, value, must)) => {
                Err(Error::new(format!("`{name}` is {value}, but has to be {must}")))
            }
            None => Ok(()),
        }
    }
}

/// Tokens that chat models use to end a turn. The configurations of fine-tuned models often omit
/// them.
const TURN_ENDS: [&str; 5] =
    ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>"];

/// Ids of the tokens that end a completion, sorted: `named`, which come from the model's files, the
/// tokenizer's EOS token, and the tokens by which chat models end a turn.
pub fn stops(tokenizer: &Tokenizer, named: &[i64]) -> Vec<i64> {
    let own = tokenizer
        .eos()
        .map(|s| s.id)
        .into_iter()
        .chain(TURN_ENDS.iter().filter_map(|t| tokenizer.token_id(t)));
    let mut stops: Vec<i64> = own.chain(named.iter().copied()).collect();
    stops.sort_unstable();
    stops.dedup();
    stops
}

/// The warning for a model that has no token to end a completion; `most` is the limit on new
/// tokens.
pub fn endless(most: usize) -> String {
    format!(
        "warning: neither the model nor its tokenizer names a token that ends a completion, so \
            each one has all of its {most} tokens"
    )
}

/// A model that continues text: alone, or with an adapter.
#[derive(Clone, Copy, Debug)]
pub struct Voice<'a> {
    /// The model.
    pub model: &'a Model,
    /// What turns its tokens into text.
    pub tokenizer: &'a Tokenizer,
    /// Ids of the tokens that end a completion, from [`stops`].
    pub stops: &'a [i64],
    /// The adapter; `None`: the base model.
    pub adapted: Option<&'a Adapted>,
}

/// What was said, and how fast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The text, without the token that ends it.
    pub text: String,
    /// Tokens, with it.
    pub tokens: usize,
    /// Whether it came to its end, rather than to the most tokens that were asked for.
    pub ended: bool,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Until the first token: the whole prompt is read for it.
    pub read: Duration,
    /// From the first token to the last.
    pub spoke: Duration,
}

impl Answer {
    /// Tokens of the prompt that were read in a second.
    pub fn read_per_second(&self) -> f64 {
        self.prompt as f64 / self.read.as_secs_f64()
    }

    /// Tokens that were made in a second, the first left out, which reading makes; none where there
    /// is no other.
    pub fn made_per_second(&self) -> Option<f64> {
        (self.tokens > 1).then(|| (self.tokens - 1) as f64 / self.spoke.as_secs_f64())
    }
}

impl Voice<'_> {
    /// What follows `prompt`. `heard` gets the text that each token adds, which may be none, and
    /// says whether to go on.
    ///
    /// # Errors
    /// Fails as [`generate`] does, and also if the model does not have a token of the prompt, or if
    /// the new tokens cannot be decoded as text.
    pub fn answer(
        &self,
        prompt: &[i64],
        sampling: Sampling,
        heard: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Answer> {
        self.tokenizer.check(prompt).map_err(|e| e.within("cannot use the prompt"))?;
        let (mut ids, mut said, mut failed, mut first) = (Vec::new(), String::new(), None, None);
        let begin = Instant::now();
        let new = generate(self.model, self.adapted, prompt, self.stops, sampling, &mut |id| {
            first.get_or_insert_with(Instant::now);
            ids.push(id);
            match self.tokenizer.decode(&ids) {
                // A character may take more than one token; until it is whole, nothing is said of
                // it.
                Ok(text) if text.ends_with(char::REPLACEMENT_CHARACTER) => heard(""),
                Ok(text) => {
                    let more = heard(text.strip_prefix(said.as_str()).unwrap_or_default());
                    said = text;
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
            return Err(e.within("what the model said is no text"));
        }
        let ended = new.last().is_some_and(|id| self.stops.contains(id));
        let text = self.tokenizer.decode(&new[..new.len() - usize::from(ended)])?;
        if let Some(rest) = text.strip_prefix(said.as_str()).filter(|rest| !rest.is_empty()) {
            heard(rest);
        }
        let first = first.unwrap_or(end);
        Ok(Answer {
            text,
            tokens: new.len(),
            ended,
            prompt: prompt.len(),
            read: first - begin,
            spoke: end - first,
        })
    }
}

/// Continues `prompt` until one of `stops`, which is the last token then, or until there are enough
/// or the model has no position for more. `heard` gets each token as it comes and says whether to
/// go on.
///
/// # Errors
/// A prompt without a token, a value out of range, or what libtorch says.
pub fn generate(
    model: &Model,
    adapted: Option<&Adapted>,
    prompt: &[i64],
    stops: &[i64],
    sampling: Sampling,
    heard: &mut dyn FnMut(i64) -> bool,
) -> Result<Vec<i64>> {
    sampling.check()?;
    if prompt.is_empty() {
        return Err(Error::new("there is nothing to continue: the prompt has no token"));
    }
    let _guard = tch::no_grad_guard();
    let cache = RefCell::new(Cache::default());
    let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
    let (mut new, mut next) = (Vec::new(), prompt.to_vec());
    // The last token is not read again, so it needs no position.
    let room = model
        .most_tokens()
        .map_or(usize::MAX, |most| (most + 1).saturating_sub(prompt.len()).max(1));
    while new.len() < sampling.max_new_tokens.min(room) {
        let past = cache.borrow().tokens();
        if model.outgrows_cache(past, past + next.len()) {
            cache.replace(Cache::default());
        }
        let past = cache.borrow().tokens();
        let mut builder = StreamBuilder::behind(past);
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
        let logits =
            model.logits(&hidden.f_narrow(0, -1, 1)?)?.f_squeeze_dim(0)?.f_to_kind(Kind::Float)?;
        let id = choose(&logits, sampling, &mut rng)?;
        new.push(id);
        if stops.contains(&id) || !heard(id) {
            break;
        }
        next = vec![id];
    }
    Ok(new)
}

/// The next token, from its logits `[vocab]`.
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
        return Err(Error::new("the model's logits are not numbers")
            .hint("compute in float32 with `--dtype f32`"));
    }
    // As many as are needed for the share, the one that reaches it included.
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

    /// Greedy without a cache: the whole sequence anew for every token.
    fn plainly(model: &Model, prompt: &[i64], n: usize) -> Vec<i64> {
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
                    .logits(&hidden.narrow(0, -1, 1))
                    .unwrap()
                    .squeeze()
                    .argmax(0, false)
                    .int64_value(&[]),
            );
        }
        ids.split_off(prompt.len())
    }

    #[test]
    fn a_cache_changes_no_token() {
        let model = conformance::model(Kind::Double).unwrap();
        let prompt = [3, 14, 15, 9, 2];
        let sampling = Sampling { max_new_tokens: 90, ..Sampling::default() };
        let mut heard = Vec::new();
        let all = generate(&model, None, &prompt, &[], sampling, &mut |id| {
            heard.push(id);
            true
        });
        assert_eq!(all.as_ref().unwrap(), &plainly(&model, &prompt, 90));
        assert_eq!(all.unwrap(), heard);
    }

    #[test]
    fn it_ends_at_a_stop_or_when_nobody_listens() {
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
    fn draws_follow_the_probabilities_and_the_seed() {
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
        // 0.5 + 0.3 reach 0.7, so the two likeliest are left.
        let nucleus = counts(1.0, 0.7);
        assert!(nucleus[2] == 0 && nucleus[3] == 0 && nucleus[1] > 1300, "{nucleus:?}");
        assert_eq!(counts(1.0, 0.01)[0], 4000);
        assert!(counts(0.1, 1.0)[0] > 3900);
        assert_eq!(counts(1.0, 1.0), all);
    }
}
