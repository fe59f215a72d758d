//! A transformer decoder with frozen weights: the embedding, blocks that update the residual
//! stream, the final norm and the output head.
//!
//! Each architecture file builds a decoder. The decoder itself only runs its blocks over a stream
//! of tokens. The [`Pass`] wraps each block. It handles adapters, taps, caches and the number of
//! blocks to run.

use std::rc::Rc;

use tch::Kind;

use super::attention::{Attention, AttentionOptions};
use super::block::Layer;
use super::checkpointing::SavedBlocks;
use super::layer_kind::{LayerKind, View};
use super::linear::Linear;
use super::norm::Norm;
use super::pass::{Pass, PassOutput};
use super::rope::Rope;
use super::settings::Sizes;
use super::stream::Stream;
use super::vocabulary::Vocabulary;
use crate::api::ModelInfo;
use crate::error::Result;

impl Sizes {
    /// Builds all blocks by calling `layer` with the index of each block, in order.
    ///
    /// # Errors
    /// Fails if `layer` fails.
    pub fn layers(&self, layer: impl FnMut(usize) -> Result<Layer>) -> Result<Vec<Layer>> {
        (0..self.num_hidden_layers).map(layer).collect()
    }
}

/// A transformer decoder with frozen weights.
#[derive(Debug)]
pub struct Decoder {
    info: ModelInfo,
    vocabulary: Vocabulary,
    kinds: Vec<LayerKind>,
    layers: Vec<Layer>,
    norm: Norm,
}

impl Decoder {
    /// Assembles a decoder from its components. Each layer refers to its kind by an index into
    /// `kinds`.
    pub fn new(
        model_type: &str,
        sizes: &Sizes,
        vocabulary: Vocabulary,
        kinds: Vec<LayerKind>,
        layers: Vec<Layer>,
        norm: Norm,
    ) -> Self {
        let (mut linears, mut parts) = (Vec::new(), Vec::new());
        for (i, (_, block)) in layers.iter().enumerate() {
            block.visit(&mut |linear| {
                let (info, of_parts) = linear.info(i);
                linears.push(info);
                parts.extend(of_parts);
            });
        }
        let info = ModelInfo {
            architecture: model_type.to_owned(),
            layers: layers.len(),
            hidden: sizes.hidden_size,
            heads: sizes.num_attention_heads,
            head_dim: sizes.head_dim(),
            vocab: sizes.vocab_size,
            linears,
            parts,
        };
        Self { info, vocabulary, kinds, layers, norm }
    }

    /// The sizes of the model, and the names and shapes of its linear modules.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Runs `pass` over `stream`: the embedding, the blocks that `pass` requires, and the final
    /// norm if required.
    ///
    /// # Errors
    /// Fails if an adapter fails, if a requested site is not reached, or if memory runs out.
    pub fn forward(
        &self,
        stream: &Stream,
        options: AttentionOptions,
        mut pass: Pass<'_>,
    ) -> Result<PassOutput> {
        let replaced = pass.replacements();
        let mut h = self.vocabulary.embed(stream, replaced)?;
        let views = self.views(stream, options, h.kind())?;
        for (k, (kind, block)) in self.layers.iter().take(pass.blocks()).enumerate() {
            h = pass.block(k, block.as_ref(), &h, &views[*kind])?;
        }
        pass.after_blocks(&h)?;
        if pass.blocks() == self.layers.len() && pass.wants_norm() {
            h = self.norm.forward(&h, replaced.and_then(|r| r.module(self.norm.name())))?;
        }
        let mut output = pass.finish(&h)?;
        if let Some(head) = self.vocabulary.replaced_head(replaced) {
            output.hidden = output.hidden.map(|hidden| hidden.with_head(head));
        }
        if let Some(saved) = &mut output.saved {
            saved.views = views;
        }
        Ok(output)
    }

    /// Runs the blocks of a pass again, from the last to the first, and passes the gradients of
    /// their outputs on. `pass` must have the same request as the first pass.
    ///
    /// # Errors
    /// Fails if an adapter fails, or if memory runs out.
    pub fn backward(&self, saved: SavedBlocks, pass: &Pass<'_>) -> Result<()> {
        let SavedBlocks { blocks, views } = saved;
        let mut gradient = None;
        for saved in blocks.into_iter().rev() {
            let (kind, block) = &self.layers[saved.block];
            gradient = pass.backward(&saved, gradient, block.as_ref(), &views[*kind])?;
        }
        Ok(())
    }

    /// Returns a number for each kind of layer with rotary positions. The number identifies the
    /// rotary frequencies of a sequence of `tokens` tokens. Two sequences may only share the states
    /// of a common prefix if all their numbers are equal.
    pub fn rotation_of(&self, tokens: usize) -> Vec<usize> {
        self.ropes().map(|rope| rope.representative_length(tokens)).collect()
    }

    /// True if the cached keys of `past` tokens must be recomputed for a sequence of `tokens`
    /// tokens.
    pub fn outgrows_cache(&self, past: usize, tokens: usize) -> bool {
        let changes =
            |rope: &Rope| rope.representative_length(past) != rope.representative_length(tokens);
        past > 0 && self.ropes().any(|rope| rope.recomputes() && changes(rope))
    }

    fn ropes(&self) -> impl Iterator<Item = &Rope> {
        self.kinds.iter().filter_map(|kind| kind.rope.as_ref())
    }

    /// Prepares masks and rotary tables for each kind of layer. Kinds with the same window share
    /// their masks.
    fn views(&self, stream: &Stream, options: AttentionOptions, kind: Kind) -> Result<Vec<View>> {
        let longest = stream.layout.longest() as i64;
        let mut built: Vec<(Option<i64>, Rc<Attention>)> = Vec::new();
        let view = |layer: &LayerKind| {
            // A window that is at least as long as the longest sequence does not mask any tokens.
            let window = layer.window.filter(|w| *w < longest);
            let attention = match built.iter().find(|(w, _)| *w == window) {
                Some((_, attention)) => Rc::clone(attention),
                None => {
                    let attention = Rc::new(Attention::new(
                        &stream.layout,
                        options,
                        window,
                        stream.ids.device(),
                    )?);
                    built.push((window, Rc::clone(&attention)));
                    attention
                }
            };
            Ok(View {
                attention,
                tables: layer.rope.as_ref().map(|rope| rope.tables(stream, kind)).transpose()?,
            })
        };
        self.kinds.iter().map(view).collect()
    }

    /// The embedding and the output head.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The model's linear modules, in the order in which they run.
    pub fn linears(&self) -> Vec<&Linear> {
        let mut linears = Vec::with_capacity(self.info.linears.len());
        for (_, block) in &self.layers {
            block.visit(&mut |linear| linears.push(linear));
        }
        linears
    }

    /// The maximum sequence length in tokens. `None` for models without learned positions, which do
    /// not have a limit.
    pub fn max_tokens(&self) -> Option<usize> {
        self.vocabulary.max_tokens()
    }

    /// True if the embedding matrix is also the output head.
    pub fn is_tied(&self) -> bool {
        self.vocabulary.is_tied()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tch::Device;

    use super::*;
    use crate::api::Site;
    use crate::model::cache::Cache;
    use crate::model::pass::Request;
    use crate::model::stream::StreamBuilder;
    use crate::model::tiny::Fixture;

    #[test]
    fn running_a_block_twice_gives_the_same_states_and_caches_each_token_once() {
        let fixture = Fixture::read().unwrap();
        let model = fixture
            .model(fixture.case("gemma2", "default").unwrap(), Kind::Float, Device::Cpu)
            .unwrap();
        let (decoder, _guard) = (&model.decoder, tch::no_grad_guard());
        let linears = decoder.info.linears.iter().map(|l| Site::Output(l.name.clone()));
        let sites: Vec<Site> =
            linears.chain([Site::Residual(1), Site::Block(1), Site::Residual(3)]).collect();
        let run = |times: usize| {
            let cache = RefCell::new(Cache::default());
            let mut states = Vec::new();
            for ids in [&[3, 1, 4][..], &[1, 5], &[9]] {
                let mut builder = StreamBuilder::continuing(cache.borrow().tokens());
                builder.push(ids, None).unwrap();
                let stream = builder.finish(Device::Cpu).unwrap();
                let request = Request {
                    sites: &sites,
                    hidden: true,
                    cache: Some(&cache),
                    ..Request::default()
                };
                let mut pass =
                    Pass::new(request, &stream, decoder.layers.len(), &decoder.info).unwrap();
                let mut h = decoder.vocabulary.embed(&stream, None).unwrap();
                let views = decoder.views(&stream, model.attention, Kind::Float).unwrap();
                for (k, (kind, block)) in decoder.layers.iter().enumerate() {
                    let before = h;
                    let runs = (0..times)
                        .map(|_| pass.block(k, block.as_ref(), &before, &views[*kind]).unwrap());
                    h = runs.last().unwrap();
                }
                let reached = pass.finish(&decoder.norm.forward(&h, None).unwrap()).unwrap();
                let hidden = reached.hidden.map(|hidden| hidden.states().shallow_clone());
                states.extend(reached.states.into_iter().chain(hidden));
            }
            assert_eq!(cache.borrow().tokens(), 6);
            states
        };
        let (once, twice) = (run(1), run(2));
        assert!(
            once.len() == 3 * (sites.len() + 1) && once.iter().zip(&twice).all(|(a, b)| a.equal(b))
        );
    }
}
