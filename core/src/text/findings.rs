//! Counts tokenised pairs with unusual properties. Such pairs affect training or scores without
//! causing an error, so the user is warned about them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Prompt, TokenPair, Tokenizer};
use crate::api::{Message, PreferencePair, Text};

/// Counts of pairs with unusual properties. Dropped pairs are not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Pairs whose prompt tokenises differently when it is followed by a completion.
    pub prefix_mismatches: usize,
    /// The part of the prompt that tokenises differently, for the first of these pairs.
    pub left_out: Option<String>,
    /// Pairs whose completions have the same tokens after truncation, so neither is preferred.
    pub identical: usize,
    /// Pairs in which both completions repeat the prompt. The model then reads the prompt twice.
    pub prompt_repeated: usize,
    /// Pairs with an empty completion.
    pub empty_completions: usize,
    /// Pairs with a completion that starts with a role other than `assistant`, counted by role.
    pub roles: BTreeMap<String, usize>,
    /// Context length of the model in tokens, if it is known.
    pub context: Option<usize>,
    /// Pairs that are longer than the context.
    pub over_context: usize,
    /// Pairs whose prompt is already longer than the context.
    pub prompts_over_context: usize,
}

impl Findings {
    /// Updates the counts for one pair. `kept` contains the pair's tokens after truncation.
    /// `prompt` is the pair's prompt, tokenised without a completion. `context` is the context
    /// length of the model in tokens, if it is known.
    pub fn add(
        &mut self,
        tokenizer: &Tokenizer,
        pair: &PreferencePair,
        kept: &TokenPair,
        prompt: &Prompt,
        context: Option<usize>,
    ) {
        let left_out = prompt.left_out();
        if !left_out.is_empty() {
            self.prefix_mismatches += 1;
            self.left_out.get_or_insert_with(|| {
                tokenizer.decode(left_out).unwrap_or_else(|e| format!("({e})"))
            });
        }
        self.identical += usize::from(kept.chosen == kept.rejected);
        let completions = [&pair.chosen, &pair.rejected];
        self.empty_completions += usize::from(
            completions
                .iter()
                .any(|completion| matches!(completion, Text::Plain(text) if text.is_empty())),
        );
        if completions.iter().all(|completion| repeats(completion, &pair.prompt)) {
            self.prompt_repeated += 1;
        } else {
            let mut roles: Vec<&str> = completions
                .iter()
                .filter_map(|completion| role(completion))
                .filter(|role| *role != "assistant")
                .collect();
            roles.dedup();
            roles.into_iter().for_each(|role| *self.roles.entry(role.to_owned()).or_default() += 1);
        }
        self.context = self.context.or(context);
        let over = |tokens: usize| usize::from(context.is_some_and(|context| tokens > context));
        self.over_context += over(kept.longest());
        self.prompts_over_context += over(kept.prompt.len());
    }

    /// Adds the counts in `other`.
    pub fn merge(&mut self, other: &Self) {
        self.prefix_mismatches += other.prefix_mismatches;
        self.left_out = self.left_out.take().or_else(|| other.left_out.clone());
        self.identical += other.identical;
        self.prompt_repeated += other.prompt_repeated;
        self.empty_completions += other.empty_completions;
        other.roles.iter().for_each(|(role, n)| *self.roles.entry(role.clone()).or_default() += n);
        self.context = self.context.or(other.context);
        self.over_context += other.over_context;
        self.prompts_over_context += other.prompts_over_context;
    }

    /// Returns all warnings. Identical completions are not included: training reports them itself.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = self.of_tokens();
        let of_data = [
            (
                "pairs whose completions repeat the prompt, so that the model reads it twice",
                self.prompt_repeated,
            ),
            ("pairs with an empty completion", self.empty_completions),
        ];
        lines.extend(
            of_data
                .into_iter()
                .filter(|(_, n)| *n > 0)
                .map(|(what, n)| format!("warning: {what}: {n}")),
        );
        lines
    }

    /// Returns the warnings about tokens and roles, but not about completions that are empty or
    /// repeat the prompt.
    pub fn of_tokens(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(left_out) = &self.left_out {
            lines.push(format!(
                "warning: pairs whose prompt tokenises differently on its own than before a \
                completion: {}. As in TRL, the prompt ends and the completion begins at the first \
                token that differs. Cut from {} prompt: {left_out:?}",
                self.prefix_mismatches,
                if self.prefix_mismatches > 1 { "the first such" } else { "the" },
            ));
        }
        for (role, n) in &self.roles {
            lines.push(format!(
                "warning: pairs with a completion whose first message has the role `{role}` \
                instead of `assistant`: {n}"
            ));
        }
        if let Some(context) = self.context {
            let over = [
                ("prompts", self.prompts_over_context),
                ("pairs", self.over_context - self.prompts_over_context),
            ];
            let over = over.into_iter().filter(|(_, n)| *n > 0);
            lines.extend(over.map(|(what, n)| {
                format!(
                    "warning: {what} that are longer than the model's context of {context} \
                    tokens: {n}"
                )
            }));
        }
        lines
    }
}

fn role(completion: &Text) -> Option<&str> {
    match completion {
        Text::Plain(_) => None,
        Text::Messages(messages) => messages.first().map(Message::role),
    }
}

/// True if a completion begins with the whole prompt and the prompt is not empty.
pub fn repeats(completion: &Text, prompt: &Text) -> bool {
    match (completion, prompt) {
        (Text::Plain(completion), Text::Plain(prompt)) => {
            !prompt.is_empty() && completion.starts_with(prompt.as_str())
        }
        (Text::Messages(completion), Text::Messages(prompt)) => {
            !prompt.is_empty() && completion.starts_with(prompt)
        }
        _ => false,
    }
}
