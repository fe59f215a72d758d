//! The taps of a run: the sites where states are read, the pooling of the states, and their
//! transforms.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use tch::{Kind, Tensor};

use crate::api::{
    Around, Init, Needs, Pooling, Side, Site, States, Tap, TokenPooling, TokenStates, Transform,
    TransformCx,
};
use crate::batch::PairBatch;
use crate::config::TrainConfig;
use crate::error::Result;
use crate::model::Model;

/// The sites at which states are read, with their pooling and transforms.
#[derive(Default)]
pub struct Taps {
    /// The sites, in the order of the forward pass.
    pub sites: Vec<Site>,
    /// How the states of the tokens of a sequence are pooled into one vector.
    pub pooling: Pooling,
    /// A custom pooling that replaces the mean over tokens. The transform is applied first.
    pub token_pooling: Option<Box<dyn TokenPooling>>,
    /// The transforms. A transform that several sites share is listed once.
    pub transforms: Vec<Box<dyn Transform>>,
    /// For each site, the index of its transform.
    pub transform_of: Vec<usize>,
}

impl Taps {
    /// Builds the taps at the sites that `tap` selects. Calls `build` once for each site, or only
    /// once for each width if `train.share_transform` is true. If the method does not need states,
    /// the result has no sites.
    ///
    /// # Errors
    /// Fails if a site does not exist in the model, or if `build` fails.
    pub fn build(
        tap: &dyn Tap,
        needs: &Needs,
        model: &Model,
        train: &TrainConfig,
        build: impl Fn(&TransformCx<'_>, &mut Init) -> Result<Box<dyn Transform>>,
    ) -> Result<Self> {
        let kind = if model.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let (mut transforms, mut transform_of, mut by_width) =
            (Vec::new(), Vec::new(), HashMap::new());
        let sites =
            if needs.states == States::None { Vec::new() } else { tap.sites(model.info())? };
        // A stored matrix is only decoded if a transform may read it.
        let embeddings = if sites.is_empty() { None } else { Some(model.embeddings()?) };
        let matrices = embeddings.iter().cycle();
        for (site, [embedding, unembedding]) in sites.iter().zip(matrices) {
            let width = model.info().width(site)?;
            if let Some(shared) = by_width.get(&width).filter(|_| train.share_transform) {
                transform_of.push(*shared);
                continue;
            }
            let number = transforms.len();
            let cx = TransformCx { model: model.info(), site, width, embedding, unembedding };
            let mut init =
                Init::new(train.seed, &format!("transform.{number}"), kind, model.device());
            transforms.push(build(&cx, &mut init)?);
            transform_of.push(number);
            by_width.insert(width, number);
        }
        Ok(Self {
            sites,
            pooling: tap.pooling(),
            token_pooling: tap.token_pooling(),
            transforms,
            transform_of,
        })
    }

    /// True if states can be pooled before the transform. Pooling first is cheaper, and only pooled
    /// states of the reference are cached.
    pub fn pool_first(&self) -> bool {
        self.token_pooling.is_none() && self.transforms.iter().all(|t| t.linear())
    }

    fn transform(&self, tap: usize) -> &dyn Transform {
        self.transforms[self.transform_of[tap]].as_ref()
    }

    /// Transforms pooled states.
    pub fn of_pooled(&self, tap: usize, pooled: &Tensor) -> Result<Tensor> {
        self.transform(tap).forward(pooled, &Around::default())
    }

    /// Returns the pooled and transformed states of the chosen or rejected sequences at a tap.
    /// `states` are the states of all tokens in the batch, with shape `[n w]` at each tap.
    pub fn pooled(
        &self,
        tap: usize,
        states: &[Tensor],
        batch: &PairBatch,
        side: Side,
    ) -> Result<Tensor> {
        if self.pool_first() {
            return self.of_pooled(tap, &batch.pool(&states[tap], self.pooling, side)?);
        }
        if let Some(own) = &self.token_pooling {
            return own.pool(&self.tokens(tap, states, batch, side)?);
        }
        let rows = batch.rows(self.pooling, side)?;
        rows.mean(&self.transformed(tap, states, batch, |t| rows.gather(t), &rows.last)?)
    }

    /// Returns the transformed states of all tokens in the chosen or rejected sequences at a tap.
    pub fn tokens(
        &self,
        tap: usize,
        states: &[Tensor],
        batch: &PairBatch,
        side: Side,
    ) -> Result<TokenStates> {
        let rows = batch.rows(Pooling::All, side)?;
        let transformed = self.transformed(tap, states, batch, |t| rows.gather(t), &rows.last)?;
        Ok(TokenStates {
            owner: rows.owner.shallow_clone(),
            completion: rows.completion.shallow_clone(),
            states: transformed,
            sequences: batch.len() as i64,
        })
    }

    fn transformed(
        &self,
        tap: usize,
        states: &[Tensor],
        batch: &PairBatch,
        gather: impl Fn(&Tensor) -> Result<Tensor>,
        last: &Tensor,
    ) -> Result<Tensor> {
        let picked =
            |i: usize| -> Result<Tensor> { Ok(gather(&states[i])?.f_to_kind(batch.kind())?) };
        let h = picked(tap)?;
        let before = tap.checked_sub(1).filter(|i| states[*i].size()[1] == h.size()[1]);
        let around =
            Around { previous: before.map(picked).transpose()?, last: Some(last.shallow_clone()) };
        self.transform(tap).forward(&h, &around)
    }

    /// The trainable tensors of the transforms, named `INDEX.KEY`. INDEX is the position of the
    /// transform in [`transforms`](Self::transforms).
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        self.transforms
            .iter()
            .enumerate()
            .flat_map(|(i, t)| {
                t.parameters().into_iter().map(move |p| (format!("{i}.{}", p.key), p.tensor))
            })
            .collect()
    }
}
