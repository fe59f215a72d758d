//! A model that answers, with or without an adapter.

use reprpo_core::api::Message;
use reprpo_core::generate::{Answer, Sampling, Voice, endless};
use reprpo_core::model::{Adapted, Model};
use reprpo_core::run::{AdapterChoice, attach_saved};
use reprpo_core::session::LoadedModel;
use reprpo_core::text::Tokenizer;
use reprpo_core::{Error, Result};

use crate::App;
use crate::args::{SpeakerArgs, layers};
use crate::trained::Trained;

/// A loaded model with its way of speaking.
pub struct Speaker {
    model: Model,
    tokenizer: Tokenizer,
    stops: Vec<i64>,
    adapted: Option<Adapted>,
    sampling: Sampling,
    system: Option<String>,
    context: Option<usize>,
}

impl Speaker {
    /// Loads what the flags name.
    ///
    /// # Errors
    /// A model or an adapter that cannot be used, or a value out of range.
    pub fn load(args: &SpeakerArgs, app: &App<'_>) -> Result<Self> {
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
            .map(|folder| Trained::find(folder, args.model.get("model")))
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
        let LoadedModel { model, tokenizer, stops, describes, context, source, fingerprint } =
            LoadedModel::open(&experiment)?;
        app.printer.note(&describes);
        if stops.is_empty() {
            app.printer.note(&endless(sampling.max_new_tokens));
        }
        if let Some(trained) = &trained {
            trained.warn(&experiment, &source, &fingerprint, app)?;
        }
        let adapted = saved.map(|saved| attach_saved(&saved, &model)).transpose()?;
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

    /// A warning if the prompt was longer than the model's context.
    pub fn too_long(&self, answer: &Answer) -> Option<String> {
        let context = self.context.filter(|context| answer.prompt > *context)?;
        Some(format!(
            "warning: the prompt has {} tokens, more than the model's context of {context}",
            answer.prompt
        ))
    }

    /// True if its tokenizer has a chat template.
    pub fn chats(&self) -> bool {
        self.tokenizer.has_chat_template()
    }

    /// A conversation that begins with this message of the user's.
    pub fn conversation(&self) -> Vec<Message> {
        self.system.iter().map(|text| Message::new("system", text)).collect()
    }

    /// The answer to a conversation, with the adapter or without. `out` gets each piece of text as
    /// it comes.
    ///
    /// # Errors
    /// Fails if the model has no chat template, or if libtorch fails.
    pub fn answer(
        &self,
        conversation: &[Message],
        trained: bool,
        out: &mut dyn FnMut(&str),
    ) -> Result<Answer> {
        let text = self
            .tokenizer
            .render_chat(conversation, true)
            .map_err(|e| e.hint("`reprpo generate --plain` continues a text as it stands"))?;
        self.speak(&self.tokenizer.encode(&text)?, trained, out)
    }

    /// What follows a text, with the adapter or without.
    ///
    /// # Errors
    /// Fails if the text is empty, or if libtorch fails.
    pub fn continuation(
        &self,
        text: &str,
        trained: bool,
        out: &mut dyn FnMut(&str),
    ) -> Result<Answer> {
        self.speak(&self.tokenizer.encode_alone(text)?, trained, out)
    }

    fn speak(&self, prompt: &[i64], trained: bool, out: &mut dyn FnMut(&str)) -> Result<Answer> {
        let adapted = self.adapted.as_ref().filter(|_| trained);
        let voice =
            Voice { model: &self.model, tokenizer: &self.tokenizer, stops: &self.stops, adapted };
        voice.answer(prompt, self.sampling, &mut |piece| {
            out(piece);
            true
        })
    }
}

/// The voices that answer, in order: the base model if both are compared, and the one that was
/// asked for.
pub fn voices(args: &SpeakerArgs) -> Vec<(&'static str, bool)> {
    match (args.compare, args.target.is_some()) {
        (true, _) => vec![("base", false), ("trained", true)],
        (false, trained) => vec![(if trained { "trained" } else { "base" }, trained)],
    }
}

/// The error of a model that has no way of writing a conversation.
pub fn no_chat() -> Error {
    Error::new("the model's tokenizer has no chat template")
        .hint("`reprpo generate --plain --prompt TEXT` continues a text as it stands")
}
