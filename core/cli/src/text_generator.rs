//! Text generation for `reprpo generate` and `reprpo chat`, with or without an adapter.

use reprpo_core::api::Message;
use reprpo_core::generate::{Answer, Generator, Sampling, endless};
use reprpo_core::model::{Adapted, Model, check_coefficient};
use reprpo_core::run::{AdapterChoice, attach_saved};
use reprpo_core::session::LoadedModel;
use reprpo_core::text::Tokenizer;
use reprpo_core::{Error, Result};

use crate::App;
use crate::args::{GenerationArgs, layers};
use crate::trained::TrainedAdapter;

/// A loaded model with an optional adapter and sampling settings.
pub struct TextGenerator {
    model: Model,
    tokenizer: Tokenizer,
    stops: Vec<i64>,
    adapted: Option<Adapted>,
    sampling: Sampling,
    system: Option<String>,
    context: Option<usize>,
}

impl TextGenerator {
    /// Loads the model and the adapter given on the command line.
    ///
    /// # Errors
    /// Fails if the model or the adapter cannot be used, or if a sampling setting is out of range.
    pub fn load(args: &GenerationArgs, app: &App<'_>) -> Result<Self> {
        let sampling = Sampling {
            max_new_tokens: args.max_new_tokens,
            temperature: args.temperature,
            top_p: args.top_p,
            seed: args.seed,
        };
        sampling.check()?;
        let trained = args
            .target
            .as_deref()
            .map(|folder| TrainedAdapter::find(folder, args.model.get("model")))
            .transpose()?;
        let mut layers = layers::defaults(app)?;
        if let Some(trained) = &trained {
            trained.apply(&mut layers)?;
        }
        layers::environment(&mut layers);
        args.model.apply(&mut layers);
        let experiment = layers.resolve()?.experiment;
        let saved = trained
            .as_ref()
            .map(|trained| AdapterChoice::saved(&trained.adapter, &experiment, app.registry))
            .transpose()?;
        let coefficient = args.coefficient.unwrap_or(1.0);
        if let Some(saved) = &saved {
            check_coefficient(saved.adapter.as_ref(), coefficient)?;
        }
        let LoadedModel {
            model, tokenizer, stops, describes, context, source, fingerprint, ..
        } = LoadedModel::open(&experiment)?;
        app.printer.note(&describes);
        if stops.is_empty() {
            app.printer.note(&endless(sampling.max_new_tokens));
        }
        if let Some(trained) = &trained {
            trained.warn(&experiment, &source, &fingerprint, app)?;
        }
        let adapted = saved
            .map(|saved| {
                attach_saved(&saved, &model)?.with_coefficient(saved.adapter.as_ref(), coefficient)
            })
            .transpose()?;
        Ok(Self {
            model,
            tokenizer,
            stops,
            adapted,
            sampling,
            system: args.system.clone(),
            context,
        })
    }

    /// Returns a warning if the prompt of `answer` is longer than the model's context.
    pub fn too_long(&self, answer: &Answer) -> Option<String> {
        let context = self.context.filter(|context| answer.prompt > *context)?;
        Some(format!(
            "warning: the prompt has {} tokens, more than the model's context of {context}",
            answer.prompt
        ))
    }

    /// True if the tokenizer has a chat template.
    pub fn chats(&self) -> bool {
        self.tokenizer.has_chat_template()
    }

    /// A new conversation, which contains the system message if one was given.
    pub fn conversation(&self) -> Vec<Message> {
        self.system.iter().map(|text| Message::new("system", text)).collect()
    }

    /// Generates the answer to a conversation, with the adapter if `trained` is true. `out`
    /// receives each piece of text as soon as it is generated.
    ///
    /// # Errors
    /// Fails if the model has no chat template, or if libtorch fails.
    pub fn answer(
        &self,
        conversation: &[Message],
        trained: bool,
        out: &mut dyn FnMut(&str),
    ) -> Result<Answer> {
        let text = self.tokenizer.render_chat(conversation, true).map_err(|e| {
            e.hint("use `reprpo generate --plain` to generate text without a chat template")
        })?;
        self.generate(&self.tokenizer.encode(&text)?, trained, out)
    }

    /// Continues plain text, with the adapter if `trained` is true. `out` receives each piece of
    /// text as soon as it is generated.
    ///
    /// # Errors
    /// Fails if the text is empty, or if libtorch fails.
    pub fn continuation(
        &self,
        text: &str,
        trained: bool,
        out: &mut dyn FnMut(&str),
    ) -> Result<Answer> {
        self.generate(&self.tokenizer.encode_alone(text)?, trained, out)
    }

    fn generate(&self, prompt: &[i64], trained: bool, out: &mut dyn FnMut(&str)) -> Result<Answer> {
        let adapted = self.adapted.as_ref().filter(|_| trained);
        let generator = Generator {
            model: &self.model,
            tokenizer: &self.tokenizer,
            stops: &self.stops,
            adapted,
        };
        generator.answer(prompt, self.sampling, &mut |piece| {
            out(piece);
            true
        })
    }
}

/// Returns the line prefix that shows which variant of the model answers, e.g. `base: `. `variant`
/// is one of [`variants`].
pub fn label(args: &GenerationArgs, (name, trained): (&str, bool)) -> String {
    match args.coefficient.filter(|_| trained) {
        Some(coefficient) => format!("{name} (coefficient {coefficient}): "),
        None => format!("{name}: "),
    }
}

/// Returns the variants of the model that answer each prompt, in order. A variant consists of a
/// name and a flag. The flag is true if the adapter is used. With `--compare`, the base model
/// answers first.
pub fn variants(args: &GenerationArgs) -> Vec<(&'static str, bool)> {
    match (args.compare, args.target.is_some()) {
        (true, _) => vec![("base", false), ("trained", true)],
        (false, trained) => vec![(if trained { "trained" } else { "base" }, trained)],
    }
}

/// The error for a model whose tokenizer has no chat template.
pub fn no_chat() -> Error {
    Error::new("the model's tokenizer has no chat template").hint(
        "use `reprpo generate --plain --prompt TEXT` to generate text without a chat template",
    )
}
