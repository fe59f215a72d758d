//! Models: frozen tensors and the architectures that compute with them.
//!
//! An architecture is one file that reads like its paper's block: the fields of its configuration,
//! and the blocks that it is put together from, each in the file that is called after it. What
//! comes out is a [`Decoder`].

mod activation;
pub mod adapted;
pub mod attach;
pub mod attention;
mod block;
pub mod cache;
#[cfg(test)]
mod checkpoint_tests;
mod decoder;
pub mod export;
mod gemma2;
mod gemma3;
#[cfg(test)]
mod golden_tests;
mod gpt2;
mod gpt_neox;
mod granite;
mod head;
#[cfg(test)]
mod invariance_tests;
mod layer_kind;
mod linear;
mod llama;
mod mistral;
mod mlp;
mod norm;
mod olmo2;
mod olmo3;
pub mod pass;
pub mod peft;
mod phi3;
mod prelude;
mod qwen2;
mod qwen3;
mod rope;
mod self_attention;
mod settings;
mod smollm3;
pub mod stream;
pub mod tiny;
mod vocabulary;
mod weights;

use tch::{Device, Kind, Tensor};

pub use adapted::Adapted;
use attention::{How, Kernel, Strategy};
use decoder::Decoder;
pub use head::{Detail, Predicted, TokenStats};
use linear::{Linear, Stored};
use pass::{Pass, Reached, Request};
use stream::Stream;

use crate::api::{Frozen, ModelInfo, Site};
use crate::error::{Context, Error, Result};
use crate::weights::ModelFiles;

/// The weights that a merged adapter stands in place of. To keep the merge, drop it.
#[derive(Debug)]
pub struct Merged {
    originals: Vec<(String, Frozen)>,
}

type Build = fn(&serde_json::Value, &weights::Weights<'_>) -> Result<Decoder>;

/// Architectures by Hugging Face's `model_type`, with transformers' `base_model_prefix`.
const ARCHITECTURES: [(&str, &str, Build); 14] = [
    ("gemma2", "model", gemma2::build),
    ("gemma3", "model", gemma3::of_both),
    ("gemma3_text", "model", gemma3::of_text),
    ("gpt2", "transformer", gpt2::build),
    ("gpt_neox", "gpt_neox", gpt_neox::build),
    ("granite", "model", granite::build),
    ("llama", "model", llama::build),
    ("mistral", "model", mistral::build),
    ("olmo2", "model", olmo2::build),
    ("olmo3", "model", olmo3::build),
    ("phi3", "model", phi3::build),
    ("qwen2", "model", qwen2::build),
    ("qwen3", "model", qwen3::build),
    ("smollm3", "model", smollm3::build),
];

/// The function that builds the architecture which a configuration names, and its
/// `base_model_prefix`.
fn architecture(config: &serde_json::Value) -> Result<(Build, &'static str)> {
    let name = config
        .get("model_type")
        .and_then(|v| v.as_str())
        .ok_or_else(|| Error::new("the model's config.json has no `model_type`"))?;
    let known = ARCHITECTURES
        .iter()
        .find(|(known, ..)| *known == name)
        .map(|(_, base, build)| (*build, *base));
    known.ok_or_else(|| {
        let class = config
            .get("architectures")
            .and_then(|list| list.get(0))
            .and_then(|class| class.as_str());
        let class = class.map_or_else(String::new, |class| format!(", its class is `{class}`"));
        Error::unknown("architecture", name, ARCHITECTURES.map(|(n, ..)| n))
            .hint(format!("that is the `model_type` of the model's config.json{class}"))
    })
}

/// A model in memory.
#[derive(Debug)]
pub struct Model {
    decoder: Decoder,
    /// transformers' `base_model_prefix` of the architecture.
    base: &'static str,
    attention: How,
    kind: Kind,
    device: Device,
}

impl Model {
    /// Loads a model's weights.
    ///
    /// # Errors
    /// An architecture that is not known, a tensor that is missing, left over or of another shape.
    pub fn load(files: &ModelFiles, kind: Kind, device: Device) -> Result<Self> {
        let within = || format!("`{}` is not a model that can be used", files.path().display());
        Self::accepts(files.config()).within(within)?;
        Self::from_tensors(files.config(), files.load(kind, device)?, kind, device).within(within)
    }

    /// Checks that the architecture of a configuration is supported, before any weights are there.
    ///
    /// # Errors
    /// Fails if it is not; the error lists the supported ones.
    pub fn accepts(config: &serde_json::Value) -> Result<()> {
        architecture(config).map(drop)
    }

    /// A model of tensors with PyTorch's names.
    ///
    /// # Errors
    /// Fails as [`load`](Self::load) does.
    pub fn from_tensors(
        config: &serde_json::Value,
        tensors: indexmap::IndexMap<String, Tensor>,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let (build, base) = architecture(config)?;
        let checkpoint = weights::Checkpoint::new(tensors, base);
        let decoder = build(config, &checkpoint.weights())?;
        checkpoint.finish()?;
        let attention = How {
            strategy: Strategy::for_device(device),
            kernel: Kernel::default(),
            deterministic: true,
        };
        Ok(Self { decoder, base, attention, kind, device })
    }

    /// Its shape.
    pub fn info(&self) -> &ModelInfo {
        self.decoder.info()
    }

    /// The kind of its weights and activations.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The device of its weights.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Takes another way of computing attention than the device's usual one.
    pub fn set_attention(&mut self, strategy: Strategy) {
        self.attention.strategy = strategy;
    }

    /// Takes another kernel of attention than libtorch's fused one.
    pub fn set_attention_kernel(&mut self, kernel: Kernel) {
        self.attention.kernel = kernel;
    }

    /// Restricts attention on a card to deterministic kernels, which is the default, or allows all.
    pub fn set_deterministic(&mut self, on: bool) {
        self.attention.deterministic = on;
    }

    /// The frozen weights of the linear module of that name, in its memory, or of the part of one.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn frozen(&self, name: &str) -> Result<Frozen> {
        let found = self.decoder.linears().into_iter().find_map(|linear| linear.weights(name));
        found.unwrap_or_else(|| {
            Err(Error::unknown("module", name, self.info().linears.iter().map(|l| &l.name)))
        })
    }

    /// The most tokens that a sequence can have, prompt and completion together; `None` if the
    /// model does not learn positions, so that there is no such limit.
    pub fn most_tokens(&self) -> Option<usize> {
        self.decoder.most_tokens()
    }

    /// True if the embedding serves as the output head.
    pub fn is_tied(&self) -> bool {
        self.decoder.is_tied()
    }

    /// The name that the tensor `name` has in a checkpoint. It is the same name, or one with the
    /// architecture's prefix removed or added. `None` if the checkpoint has none of these names.
    pub fn stored_name(&self, name: &str, has: impl Fn(&str) -> bool) -> Option<String> {
        weights::stored_name(name, self.base, has)
    }

    /// The embedding matrix and the output head's, each `[vocab hidden]`; the same one where they
    /// are tied.
    pub fn embeddings(&self) -> (&Tensor, &Tensor) {
        self.decoder.embeddings()
    }

    /// Puts `adapted` into the frozen weights: the model then computes without it what it computed
    /// with it, to rounding.
    ///
    /// # Errors
    /// An adapter that cannot be expressed as frozen weights; nothing is changed then.
    pub fn merge(&mut self, adapted: &Adapted) -> Result<Merged> {
        let _guard = tch::no_grad_guard();
        if adapted.changes_blocks() {
            return Err(Error::new(
                "the adapter changes the residual stream between blocks, which \
                no frozen weight can stand for",
            )
            .hint("use it unmerged, from its own folder"));
        }
        let merged = adapted.merged(self)?;
        let originals = merged.into_iter().map(|(name, frozen)| {
            let linear = self
                .linear(&name)
                .ok_or_else(|| Error::internal(format!("no module `{name}` to merge into")))?;
            let original = linear.replace(frozen);
            Ok((name, original))
        });
        Ok(Merged { originals: originals.collect::<Result<_>>()? })
    }

    /// Takes the adapter out again: the weights are the very ones from before.
    pub fn unmerge(&mut self, merged: Merged) {
        for (name, frozen) in merged.originals {
            if let Some(linear) = self.linear(&name) {
                linear.replace(frozen);
            }
        }
    }

    /// The linear module of that name.
    fn linear(&self, name: &str) -> Option<&Linear> {
        self.decoder.linears().into_iter().find(|linear| linear.place.name == name)
    }

    /// True if checkpoints store the weight of that module as `[in out]`, like `Conv1D` of
    /// transformers.
    pub fn is_conv1d(&self, module: &str) -> bool {
        self.linear(module).is_some_and(|linear| linear.stored == Stored::InOut)
    }

    /// Identifies the rotary frequencies of a sequence of `tokens` tokens. Two sequences may share
    /// the states of a common prefix only if their values are equal.
    pub fn rotation_of(&self, tokens: usize) -> Vec<usize> {
        self.decoder.rotation_of(tokens)
    }

    /// True if a cache of `past` tokens must be recomputed once the sequence has grown to `tokens`.
    pub fn outgrows_cache(&self, past: usize, tokens: usize) -> bool {
        self.decoder.outgrows_cache(past, tokens)
    }

    /// How many blocks a pass has to run for `sites`, and for log-probabilities where `hidden`.
    ///
    /// # Errors
    /// A site that the model does not have.
    pub fn depth(&self, sites: &[Site], hidden: bool) -> Result<usize> {
        let mut blocks = if hidden { self.info().layers } else { 0 };
        for site in sites {
            blocks = blocks.max(self.info().block(site)?.map_or(0, |k| k + 1));
        }
        Ok(blocks)
    }

    /// Runs the blocks that the request needs, and no more.
    ///
    /// # Errors
    /// Fails if the model does not have a site, if a token has no embedding, or if memory runs out.
    pub fn forward(&self, stream: &Stream, request: Request<'_>) -> Result<Reached> {
        stream.check_ids(self.info().vocab)?;
        let blocks = self.depth(request.sites, request.hidden)?;
        self.decoder.forward(
            stream,
            self.attention,
            Pass::new(request, stream, blocks, self.info())?,
        )
    }

    /// Logits `[m vocab]` of last hidden states `[m hidden]`.
    ///
    /// # Errors
    /// Fails if shapes do not fit, or if memory runs out.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.decoder.logits(hidden)
    }
}
