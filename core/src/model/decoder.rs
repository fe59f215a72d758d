//! A transformer with frozen weights: blocks over a residual stream, between the two ends of a vocabulary.
//!
//! What an architecture file makes is one of these. It knows token streams, linear modules and the residual stream;
//! adapters, taps and depth are the [`Pass`]'s business, which everything is sent through.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::attention::{Attention, How};
use super::module::Module;
use super::norm::Norm;
use super::pass::Pass;
use super::rope::{Rope, Tables};
use super::settings::Sizes;
use super::stream::Stream;
use super::vocabulary::Vocabulary;
use crate::api::{Frozen, ModelInfo};
use crate::error::Result;

/// How a kind of layer sees a sequence.
#[derive(Debug)]
pub struct Sight {
    /// How many tokens back it sees, itself included; `None`: all.
    pub window: Option<i64>,
    /// How it tells positions apart.
    pub rope: Rope,
}

/// A kind of layer's sight of one stream.
#[derive(Debug)]
pub struct View {
    /// Who may look at whom.
    pub attention: Rc<Attention>,
    /// The rotation of every position.
    pub tables: Tables,
}

/// A block and which of the decoder's sights it has.
pub type Layer = (usize, Box<dyn Module>);

/// A transformer with frozen weights.
#[derive(Debug)]
pub struct Decoder {
    info: ModelInfo,
    vocabulary: Vocabulary,
    sights: Vec<Sight>,
    layers: Vec<Layer>,
    norm: Box<dyn Norm>,
}

impl Decoder {
    /// Puts a model of that `model_type` together.
    pub fn new(model_type: &str, sizes: &Sizes, vocabulary: Vocabulary, sights: Vec<Sight>, layers: Vec<Layer>, norm: impl Norm + 'static) -> Self {
        let (linears, parts): (Vec<_>, Vec<_>) =
            layers.iter().enumerate().flat_map(|(i, (_, block))| block.linears().into_iter().map(move |l| l.info(i))).unzip();
        let info = ModelInfo {
            architecture: model_type.to_owned(),
            layers: layers.len(),
            hidden: sizes.hidden_size,
            heads: sizes.num_attention_heads,
            head_dim: sizes.head_dim(),
            vocab: sizes.vocab_size,
            linears,
            parts: parts.concat(),
        };
        Self { info, vocabulary, sights, layers, norm: Box::new(norm) }
    }

    /// Its shape.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Sends `stream` through the blocks that the pass wants.
    ///
    /// # Errors
    /// What libtorch or an adapter says.
    pub fn forward(&self, stream: &Stream, how: How, pass: &mut Pass<'_>) -> Result<()> {
        let mut h = self.vocabulary.embed(&stream.ids)?;
        let views = self.views(stream, how, h.kind())?;
        for (i, (sight, block)) in self.layers.iter().take(pass.blocks()).enumerate() {
            pass.residual(i, &h);
            let out = block.forward(&h, &views[*sight], pass)?;
            h = pass.block(i, out)?;
        }
        if pass.blocks() < self.layers.len() {
            pass.residual(pass.blocks(), &h);
        } else if pass.wants_norm() {
            pass.finish(&self.norm.forward(&h)?);
        }
        Ok(())
    }

    /// One number for each kind of layer, which identifies the rotary frequencies of a sequence of
    /// `tokens` tokens. Two sequences may share the states of a common prefix only if all are
    /// equal.
    pub fn rotation_of(&self, tokens: usize) -> Vec<usize> {
        self.sights.iter().map(|sight| sight.rope.representative_length(tokens)).collect()
    }

    /// True if the cached keys of `past` tokens must be recomputed for a sequence of `tokens`
    /// tokens.
    pub fn outgrows_cache(&self, past: usize, tokens: usize) -> bool {
        let changes = |rope: &Rope| rope.representative_length(past) != rope.representative_length(tokens);
        past > 0 && self.sights.iter().any(|sight| sight.rope.recomputes() && changes(&sight.rope))
    }

    /// One a sight. Those that see equally far share their masks.
    fn views(&self, stream: &Stream, how: How, kind: Kind) -> Result<Vec<View>> {
        let longest = stream.layout.longest() as i64;
        let mut made: Vec<(Option<i64>, Rc<Attention>)> = Vec::new();
        let view = |sight: &Sight| {
            // A window that holds the longest sequence is none.
            let window = sight.window.filter(|w| *w < longest);
            let attention = match made.iter().find(|(w, _)| *w == window) {
                Some((_, attention)) => Rc::clone(attention),
                None => {
                    let attention = Rc::new(Attention::new(&stream.layout, how, window, stream.ids.device())?);
                    made.push((window, Rc::clone(&attention)));
                    attention
                }
            };
            Ok(View { attention, tables: sight.rope.tables(stream, kind)? })
        };
        self.sights.iter().map(view).collect()
    }

    /// Logits `[m vocab]` of last hidden states `[m hidden]`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.vocabulary.logits(hidden)
    }

    /// The frozen weights of the linear module of that name, in its memory, or of the part of one.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn frozen(&self, name: &str) -> Result<Option<Frozen>> {
        self.layers.iter().flat_map(|(_, block)| block.linears()).find_map(|l| l.weights(name)).transpose()
    }

    /// Those of the linear module of that name, to exchange them.
    pub fn frozen_mut(&mut self, name: &str) -> Option<&mut Frozen> {
        self.layers.iter_mut().flat_map(|(_, block)| block.linears_mut()).find(|l| l.place.name == name).map(|l| &mut l.frozen)
    }

    /// True if the embedding serves as the output head.
    pub fn is_tied(&self) -> bool {
        self.vocabulary.is_tied()
    }

    /// The embedding matrix and the head's `[vocab hidden]`, the same one where they are tied.
    pub fn embeddings(&self) -> (&Tensor, &Tensor) {
        self.vocabulary.matrices()
    }
}
