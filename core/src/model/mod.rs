//! Language models with frozen weights, and the supported architectures.
//!
//! Each architecture is one file. It declares the fields of its configuration and assembles a
//! `Decoder` from shared building blocks, such as attention, MLP and norms. Each building block has
//! its own file.

mod activation;
pub mod adapted;
pub mod attach;
pub mod attention;
mod block;
pub mod cache;
#[cfg(test)]
mod checkpoint_tests;
mod checkpointing;
#[cfg(test)]
mod checkpointing_tests;
#[cfg(test)]
mod coefficient_tests;
pub mod control_vector;
mod decoder;
pub mod edits;
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
mod pass_seed;
pub mod peft;
mod phi3;
mod prelude;
mod qwen2;
mod qwen3;
pub mod replacements;
mod rope;
mod self_attention;
mod settings;
mod smollm3;
#[cfg(test)]
mod stored_tests;
pub mod stream;
pub mod tiny;
mod vocabulary;
mod weights;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indexmap::IndexMap;
use tch::{Device, Kind, Tensor};

pub use adapted::{Adapted, check_coefficient};
use attention::{AttentionOptions, Kernel, Strategy};
pub use checkpointing::SavedBlocks;
use decoder::Decoder;
pub use head::{Detail, FinalStates, PredictedTokens, TokenScores, TokenStats, logits_at_once};
use linear::{Linear, Stored};
use pass::{Pass, PassOutput, Request};
pub use pass_seed::PassSeed;
use stream::Stream;

use crate::api::{Frozen, ModelInfo, Site, Weight};
use crate::error::{Context, Error, Result};
use crate::weights::{Loaded, ModelFiles, Shards};
use crate::world::{self, World};

/// The weights that [`Model::merge`] replaced. [`Model::unmerge`] restores these weights. Dropping
/// this value makes the merge permanent.
#[derive(Debug)]
pub struct ReplacedWeights {
    originals: Vec<(String, Frozen)>,
}

/// The matrices of a model that it keeps in another form than as a tensor: the embedding, the head
/// and the weights of linear modules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredMatrices {
    /// Number of these matrices.
    pub matrices: usize,
    /// The bytes that this process keeps of them.
    pub bytes: usize,
    /// Their size in bytes as tensors in the dtype of the model.
    pub decoded: usize,
    /// Number of the other matrices.
    pub dense: usize,
}

impl StoredMatrices {
    /// Number of matrices in all.
    pub fn all(&self) -> usize {
        self.matrices + self.dense
    }

    /// The memory that this process keeps, compared with tensors.
    pub fn memory(&self) -> String {
        let mb = |bytes: usize| bytes as f64 / 1e6;
        format!("{:.0} MB instead of {:.0} MB", mb(self.bytes), mb(self.decoded))
    }
}

type Build = fn(&serde_json::Value, &weights::Weights<'_>) -> Result<Decoder>;

/// The supported architectures. Each entry contains Hugging Face's `model_type`, transformers'
/// `base_model_prefix`, and the function that builds the decoder.
const ARCHITECTURES: [(&str, &str, Build); 14] = [
    ("gemma2", "model", gemma2::build),
    ("gemma3", "model", gemma3::build_multimodal),
    ("gemma3_text", "model", gemma3::build_text),
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

/// Looks up the architecture in a configuration. Returns its build function and its
/// `base_model_prefix`.
fn architecture(config: &serde_json::Value) -> Result<(Build, &'static str)> {
    let name = config
        .get("model_type")
        .and_then(|v| v.as_str())
        .ok_or_else(|| Error::new("the model's config.json must set `model_type`"))?;
    let known = ARCHITECTURES
        .iter()
        .find(|(known, ..)| *known == name)
        .map(|(_, base, build)| (*build, *base));
    known.ok_or_else(|| {
        let class = config
            .get("architectures")
            .and_then(|list| list.get(0))
            .and_then(|class| class.as_str());
        let class =
            class.map_or_else(String::new, |class| format!(", which names the class `{class}`"));
        Error::unknown("architecture", name, ARCHITECTURES.map(|(n, ..)| n))
            .hint(format!("`{name}` is the `model_type` in the model's config.json{class}"))
    })
}

/// A model in memory, with frozen weights.
#[derive(Debug)]
pub struct Model {
    decoder: Decoder,
    /// The shapes of the tensors in a checkpoint that the model consists of, by their names in
    /// PyTorch's state dict.
    shapes: IndexMap<String, Vec<i64>>,
    /// The `base_model_prefix` of the architecture in transformers.
    base: &'static str,
    attention: AttentionOptions,
    kind: Kind,
    device: Device,
    /// The ranks that compute with this model.
    world: Arc<World>,
    /// True if the matrices are divided among the ranks.
    sharded: bool,
}

impl Model {
    /// The ranks that compute with this model.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// True if the matrices are divided among the ranks. All ranks must then run the same passes in
    /// the same order.
    pub fn is_sharded(&self) -> bool {
        self.sharded
    }

    /// True if this rank should stop before its next pass. If the model is sharded, all ranks get
    /// the same answer: true if `stop` is true on one of them.
    ///
    /// # Errors
    /// Fails if another rank has ended.
    pub fn stops(&self, stop: &AtomicBool) -> Result<bool> {
        let stop = stop.load(Ordering::Relaxed);
        if self.sharded { self.world.any(stop) } else { Ok(stop) }
    }

    /// Loads a model onto `device`, with its weights converted to `kind`.
    ///
    /// # Errors
    /// Fails if the architecture is not supported, or if a tensor is missing, is unexpected or has
    /// the wrong shape.
    pub fn load(files: &ModelFiles, kind: Kind, device: Device) -> Result<Self> {
        let within = || format!("cannot use the model in `{}`", files.path().display());
        Self::accepts(files.config()).within(within)?;
        Self::from_tensors(files.config(), files.load(kind, device)?, kind, device).within(within)
    }

    /// Loads a GGUF model onto the CPU, and keeps its matrices as the file stores them. Each use of
    /// a matrix decodes it into `kind`, so that all values are those of [`load`](Self::load).
    ///
    /// # Errors
    /// Fails if the model is not a GGUF file, and in the same cases as [`load`](Self::load).
    pub fn load_as_stored(files: &ModelFiles, kind: Kind) -> Result<Self> {
        let within = || format!("cannot use the model in `{}`", files.path().display());
        Self::accepts(files.config()).within(within)?;
        let loaded = files.load_as_stored(kind).within(within)?;
        Self::from_loaded(files.config(), loaded, kind, Device::Cpu, None).within(within)
    }

    /// Loads a model onto `device`, and divides its matrices among the ranks. All ranks must run
    /// the same passes in the same order from now on, because each use of a matrix gathers it. All
    /// values are those of [`load`](Self::load). On a single rank, this is the same as `load`.
    ///
    /// # Errors
    /// Fails if another rank has ended, and in the same cases as [`load`](Self::load).
    pub fn load_sharded(files: &ModelFiles, kind: Kind, device: Device) -> Result<Self> {
        let world = world::current();
        if world.size() == 1 {
            return Self::load(files, kind, device);
        }
        let within = || format!("cannot use the model in `{}`", files.path().display());
        Self::accepts(files.config()).within(within)?;
        let shards = Shards::new(world);
        let loaded = files.load_sharded(kind, device, &shards).within(within)?;
        Self::from_loaded(files.config(), loaded, kind, device, Some(shards)).within(within)
    }

    /// Checks that the architecture of a configuration is supported, without loading any weights.
    ///
    /// # Errors
    /// Fails if the architecture is not supported; the error lists the supported ones.
    pub fn accepts(config: &serde_json::Value) -> Result<()> {
        architecture(config).map(drop)
    }

    /// Builds a model from tensors that are named as in PyTorch's state dict.
    ///
    /// # Errors
    /// Fails in the same cases as [`load`](Self::load).
    pub fn from_tensors(
        config: &serde_json::Value,
        tensors: IndexMap<String, Tensor>,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let dense = tensors.into_iter().map(|(name, t)| (name, Loaded::Dense(t))).collect();
        Self::from_loaded(config, dense, kind, device, None)
    }

    fn from_loaded(
        config: &serde_json::Value,
        tensors: IndexMap<String, Loaded>,
        kind: Kind,
        device: Device,
        shards: Option<Arc<Shards>>,
    ) -> Result<Self> {
        let (build, base) = architecture(config)?;
        let sharded = shards.is_some();
        let checkpoint = weights::Checkpoint::new(tensors, base, shards);
        let decoder = build(config, &checkpoint.weights())?;
        let shapes = checkpoint.finish()?;
        let attention = AttentionOptions {
            strategy: Strategy::for_device(device),
            kernel: Kernel::default(),
            deterministic: true,
        };
        let world = world::current();
        Ok(Self { decoder, shapes, base, attention, kind, device, world, sharded })
    }

    /// The sizes of the model, and the names and shapes of its linear modules.
    pub fn info(&self) -> &ModelInfo {
        self.decoder.info()
    }

    /// The tensor kind (dtype) of the weights and activations.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Sets the attention strategy. The default depends on the device.
    pub fn set_attention(&mut self, strategy: Strategy) {
        self.attention.strategy = strategy;
    }

    /// Sets the attention kernel. The default is libtorch's fused kernel.
    pub fn set_attention_kernel(&mut self, kernel: Kernel) {
        self.attention.kernel = kernel;
    }

    /// If `on` is true (the default), attention on a CUDA device only uses deterministic kernels.
    pub fn set_deterministic(&mut self, on: bool) {
        self.attention.deterministic = on;
    }

    /// Returns the frozen weights of `name`. `name` is a linear module or a part of a fused module.
    /// The weights share the model's memory if possible.
    ///
    /// # Errors
    /// Fails if there is no such module or part.
    pub fn frozen(&self, name: &str) -> Result<Frozen> {
        let found = self.decoder.linears().into_iter().find_map(|linear| linear.weights(name));
        found.unwrap_or_else(|| {
            Err(Error::unknown("module", name, self.info().linears.iter().map(|l| &l.name)))
        })
    }

    /// Counts the matrices that are not kept as tensors.
    pub fn stored_matrices(&self) -> StoredMatrices {
        let mut kept = StoredMatrices::default();
        let mut count = |weight: &Weight| match weight {
            Weight::Dense(_) => kept.dense += 1,
            Weight::Stored(matrix) => {
                let [rows, columns] = matrix.size();
                kept.matrices += 1;
                kept.bytes += matrix.kept();
                kept.decoded += (rows * columns) as usize * matrix.kind().elt_size_in_bytes();
            }
        };
        let (embedding, head) = self.decoder.vocabulary().weights();
        count(embedding);
        head.into_iter().for_each(&mut count);
        self.decoder.linears().into_iter().for_each(|linear| count(linear.frozen().weight()));
        kept
    }

    /// The maximum length of a prompt and its completion together, in tokens. `None` for models
    /// without learned positions, because they have no limit.
    pub fn max_tokens(&self) -> Option<usize> {
        self.decoder.max_tokens()
    }

    /// True if the embedding matrix is also the output head.
    pub fn is_tied(&self) -> bool {
        self.decoder.is_tied()
    }

    /// The name under which a checkpoint stores the tensor `name`: either `name` itself, or `name`
    /// with the architecture's prefix removed or added. `has` returns true for the names of the
    /// checkpoint's tensors. The result is `None` if the checkpoint has none of these names.
    pub fn stored_name(&self, name: &str, has: impl Fn(&str) -> bool) -> Option<String> {
        weights::stored_name(name, self.base, has)
    }

    /// The shapes of the tensors that the model consists of, as a checkpoint stores them, by their
    /// names in PyTorch's state dict. A tied head is not a tensor of its own.
    pub fn shapes(&self) -> &IndexMap<String, Vec<i64>> {
        &self.shapes
    }

    /// The names of the modules of the embedding and of the output head in PyTorch's state dict.
    pub fn vocabulary_modules(&self) -> &[String; 2] {
        self.decoder.vocabulary().names()
    }

    /// The embedding matrix and the output head's matrix, each of shape `[vocab hidden]`. In a tied
    /// model, the two matrices are the same tensor.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn embeddings(&self) -> Result<[Tensor; 2]> {
        self.decoder.vocabulary().matrices()
    }

    /// Merges `adapted` into the frozen weights. The outputs of the merged model equal the outputs
    /// with the adapter, up to rounding.
    ///
    /// # Errors
    /// Fails if the adapter cannot be expressed as frozen weights; the model is then unchanged.
    pub fn merge(&mut self, adapted: &Adapted) -> Result<ReplacedWeights> {
        let _guard = tch::no_grad_guard();
        if adapted.changes_blocks() {
            return Err(Error::new(
                "the adapter changes the residual stream between blocks, which \
                frozen weights cannot express",
            )
            .hint("use the adapter without merging it"));
        }
        if adapted.edits().act_afterwards() {
            return Err(export::edits());
        }
        if let Some(name) = adapted.replacements.names().find(|name| self.is_outside_linears(name))
        {
            return Err(Error::new(format!(
                "the adapter replaces `{name}`, which is not a tensor of a linear module"
            ))
            .hint("use the adapter without merging it"));
        }
        let merged = adapted.merged(self)?;
        let originals = merged.into_iter().map(|(name, frozen)| {
            let linear = self.linear(&name).ok_or_else(|| {
                Error::internal(format!("cannot merge into `{name}`: no such module"))
            })?;
            let original = linear.replace(frozen);
            Ok((name, original))
        });
        Ok(ReplacedWeights { originals: originals.collect::<Result<_>>()? })
    }

    /// Removes a merged adapter by restoring the exact tensors that [`merge`](Self::merge)
    /// replaced.
    pub fn unmerge(&mut self, merged: ReplacedWeights) {
        for (name, frozen) in merged.originals {
            if let Some(linear) = self.linear(&name) {
                linear.replace(frozen);
            }
        }
    }

    /// True if the tensor `name`, such as `model.norm.weight`, does not belong to a linear module
    /// of a block.
    fn is_outside_linears(&self, name: &str) -> bool {
        name.rsplit_once('.').is_none_or(|(module, _)| self.linear(module).is_none())
    }

    fn linear(&self, name: &str) -> Option<&Linear> {
        self.decoder.linears().into_iter().find(|linear| linear.place.name == name)
    }

    /// True if checkpoints store the weight of this module as `[in out]`, as in transformers'
    /// `Conv1D`.
    pub fn is_conv1d(&self, module: &str) -> bool {
        self.linear(module).is_some_and(|linear| linear.stored == Stored::InOut)
    }

    /// Returns one number for each type of layer with rotary positions. The number identifies the
    /// layers' frequencies for a sequence of `tokens` tokens. Two sequences may share the states of
    /// a common prefix only if all their numbers are equal.
    pub fn rotation_of(&self, tokens: usize) -> Vec<usize> {
        self.decoder.rotation_of(tokens)
    }

    /// True if a cache with `past` tokens must be recomputed when the sequence has grown to
    /// `tokens` tokens.
    pub fn outgrows_cache(&self, past: usize, tokens: usize) -> bool {
        self.decoder.outgrows_cache(past, tokens)
    }

    /// The number of blocks that a pass must run to reach all `sites`. If `hidden` is true, the
    /// pass must also reach the final hidden state. Log-probabilities are computed from this state.
    ///
    /// # Errors
    /// Fails if the model does not have one of the sites.
    pub fn depth(&self, sites: &[Site], hidden: bool) -> Result<usize> {
        let mut blocks = if hidden { self.info().layers } else { 0 };
        for site in sites {
            blocks = blocks.max(self.info().block(site)?.map_or(0, |k| k + 1));
        }
        Ok(blocks)
    }

    /// Runs a forward pass over `stream`, through only as many blocks as the request needs.
    ///
    /// # Errors
    /// Fails if the model does not have a site, if a token id is not in the embedding, or if memory
    /// runs out.
    pub fn forward(&self, stream: &Stream, request: Request<'_>) -> Result<PassOutput> {
        stream.check_ids(self.info().vocab)?;
        let blocks = self.depth(request.sites, request.hidden)?;
        self.decoder.forward(
            stream,
            self.attention,
            Pass::new(request, stream, blocks, self.info())?,
        )
    }

    /// Continues the backward pass of a loss through the blocks of a pass with
    /// [`Request::checkpointing`]. `stream` and `request` must be those of that pass. Call this
    /// after the backward pass of the loss.
    ///
    /// # Errors
    /// Fails if an adapter fails, or if memory runs out.
    pub fn backward(
        &self,
        saved: SavedBlocks,
        stream: &Stream,
        request: Request<'_>,
    ) -> Result<()> {
        let blocks = self.depth(request.sites, request.hidden)?;
        self.decoder.backward(saved, &Pass::new(request, stream, blocks, self.info())?)
    }

    /// Computes the logits, of shape `[m vocab]`, for final hidden states of shape `[m hidden]`,
    /// with the output head that belongs to these states.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn logits(&self, hidden: &FinalStates) -> Result<Tensor> {
        self.decoder.vocabulary().logits(hidden)
    }
}
