//! The embedding of a model, which converts token ids to the residual stream, and the output head,
//! which converts the residual stream to logits.

use tch::Tensor;

use super::head::FinalStates;
use super::replacements::Replacements;
use super::stream::Stream;
use super::weights::Weights;
use crate::api::{Weight, linear};
use crate::error::{Error, Result};

/// The embedding and the output head, which may share one matrix.
#[derive(Debug)]
pub struct Vocabulary {
    embedding: Weight,
    /// The names of the modules of the embedding and of the head.
    names: [String; 2],
    /// `None` if the embedding matrix is also the head.
    head: Option<Weight>,
    /// Learned position embeddings `[positions hidden]`, and the name of their module.
    positions: Option<(String, Tensor)>,
    /// Factor by which token embeddings are multiplied.
    scale: Option<f64>,
    /// Divisor of the logits.
    divisor: Option<f64>,
    /// Soft cap c in c·tanh(logit / c).
    cap: Option<f64>,
}

impl Vocabulary {
    /// Loads the matrices of the modules `embedding` and `head` from `weights`. Each matrix must
    /// have the shape `shape`, which is `[vocab hidden]`.
    ///
    /// If `tied` is true but the two matrices differ, the head keeps its own values, as in
    /// `tie_weights` of transformers, and a warning is logged. If `tied` is true and `weights` only
    /// has one of the matrices, that matrix is used for both modules.
    ///
    /// # Errors
    /// Fails if a tensor is missing or has the wrong shape.
    pub fn new(
        weights: &Weights<'_>,
        [embedding, head]: [&str; 2],
        shape: [i64; 2],
        tied: bool,
    ) -> Result<Self> {
        let names = [embedding, head].map(|module| weights.name(module));
        let [embedding, head] = [embedding, head].map(|module| format!("{module}.weight"));
        if !tied && !weights.has(&head) && weights.has(&embedding) {
            return Err(weights.missing(&head).hint(format!(
                "if `{embedding}` is also the output head, set \
                    `tie_word_embeddings` to true in the model's config.json"
            )));
        }
        // One of two tied matrices may be missing. As in transformers, the other matrix is then
        // used for both modules.
        let first =
            if tied && !weights.has(&embedding) && weights.has(&head) { &head } else { &embedding };
        let matrix = weights.matrix(first, shape)?;
        let own = if !tied || (first != &head && weights.has(&head)) {
            Some(weights.matrix(&head, shape)?)
        } else {
            None
        };
        let own = match own {
            Some(own) if tied && own.equal(&matrix)? => None,
            own => own,
        };
        if tied && own.is_some() {
            tracing::warn!(
                "`{head}` differs from `{embedding}`, although the model's config.json sets \
                    `tie_word_embeddings`; the head from the file is used, as in transformers; set \
                    `tie_word_embeddings` to false to silence this warning"
            );
        }
        Ok(Self {
            embedding: matrix,
            names,
            head: own,
            positions: None,
            scale: None,
            divisor: None,
            cap: None,
        })
    }

    /// Adds learned position embeddings `[positions hidden]`, the weight of the module `name`, to
    /// the token embeddings.
    #[must_use]
    pub fn with_positions(mut self, name: String, positions: Tensor) -> Self {
        self.positions = Some((name, positions));
        self
    }

    /// Multiplies token embeddings by `scale`.
    #[must_use]
    pub fn scaled(mut self, scale: f64) -> Self {
        self.scale = Some(scale).filter(|s| *s != 1.0);
        self
    }

    /// Rounds `scale` to the dtype of the model, then multiplies token embeddings by it, as in
    /// Gemma.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn scaled_in_kind(self, scale: f64) -> Result<Self> {
        let scale = Tensor::from(scale).f_to_kind(self.embedding.kind())?.f_double_value(&[])?;
        Ok(self.scaled(scale))
    }

    /// Divides logits by `divisor`.
    #[must_use]
    pub fn divided(mut self, divisor: f64) -> Self {
        self.divisor = Some(divisor).filter(|d| *d != 1.0);
        self
    }

    /// Caps the logits with c·tanh(logit / c).
    #[must_use]
    pub fn capped(mut self, cap: Option<f64>) -> Self {
        self.cap = cap;
        self
    }

    /// The names of the modules of the embedding and of the head in PyTorch's state dict.
    pub fn names(&self) -> &[String; 2] {
        &self.names
    }

    /// Returns the residual stream `[n hidden]` before the first block. `replaced` has tensors that
    /// are used instead of the model's own.
    ///
    /// # Errors
    /// Fails if a sequence is longer than the learned positions, or if memory runs out.
    pub fn embed(&self, stream: &Stream, replaced: Option<&Replacements>) -> Result<Tensor> {
        let weight = |name: &str| replaced.and_then(|r| r.module(name)?.weight.as_ref());
        let h = match weight(&self.names[0]) {
            Some(embedding) => Tensor::f_embedding(embedding, &stream.ids, -1, false, false)?,
            None => self.embedding.rows(&stream.ids)?,
        };
        let h = match self.scale {
            Some(scale) => h.f_mul_scalar(scale)?,
            None => h,
        };
        let Some((name, positions)) = &self.positions else { return Ok(h) };
        let positions = weight(name).unwrap_or(positions);
        let (longest, most) = (stream.layout.longest(), positions.size()[0] as usize);
        if longest > most {
            return Err(Error::new(format!(
                "a sequence has {longest} tokens, but the model has positions for {most}"
            ))
            .hint(format!(
                "shorten the sequences to at most {most} tokens, prompt and completion together"
            )));
        }
        let at = Tensor::f_embedding(positions, &stream.positions, -1, false, false)?;
        Ok(h.f_add(&at)?)
    }

    /// The maximum sequence length in tokens. `None` for models without learned positions, which do
    /// not have a limit.
    pub fn max_tokens(&self) -> Option<usize> {
        self.positions.as_ref().map(|(_, positions)| positions.size()[0] as usize)
    }

    /// Logits `[m vocab]` for final hidden states `[m hidden]`.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn logits(&self, hidden: &FinalStates) -> Result<Tensor> {
        self.capped_logits(match hidden.head() {
            Some(head) => linear(hidden.states(), head, None)?,
            None => self.head_weight().forward(hidden.states(), None)?,
        })
    }

    /// The matrix of the head that `replaced` has instead of the model's own; `None` if it has
    /// none.
    pub fn replaced_head(&self, replaced: Option<&Replacements>) -> Option<Tensor> {
        let head = replaced?.module(&self.names[1])?.weight.as_ref()?;
        Some(head.shallow_clone())
    }

    /// Computes the same logits as [`logits`](Self::logits), without a gradient. `head` is the
    /// matrix of the head.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn logits_with(&self, head: &Tensor, hidden: &Tensor) -> Result<Tensor> {
        self.capped_logits(linear(hidden, head, None)?)
    }

    fn capped_logits(&self, logits: Tensor) -> Result<Tensor> {
        let logits = match self.divisor {
            Some(divisor) => logits.f_div_scalar(divisor)?,
            None => logits,
        };
        Ok(match self.cap {
            Some(cap) => logits.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?,
            None => logits,
        })
    }

    /// Turns gradients `[m vocab]` of the final logits into gradients of the hidden states
    /// `[m hidden]`. `gradient` must have the dtype of the model, and must not depend on the
    /// parameters. `head` is the matrix of [`head`](Self::head).
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn back_projected(&self, head: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let hidden = linear(gradient, &head.f_tr()?, None)?;
        Ok(match self.divisor {
            Some(divisor) => hidden.f_div_scalar(divisor)?,
            None => hidden,
        })
    }

    /// The soft cap c of the logits; `None` if they are not capped.
    pub fn cap(&self) -> Option<f64> {
        self.cap
    }

    /// True if the embedding matrix is also the head.
    pub fn is_tied(&self) -> bool {
        self.head.is_none()
    }

    /// The weights of the embedding and of the head, which is `None` if they are tied.
    pub fn weights(&self) -> (&Weight, Option<&Weight>) {
        (&self.embedding, self.head.as_ref())
    }

    fn head_weight(&self) -> &Weight {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// The matrix of the output head, `[vocab hidden]`. It may share the memory of the model.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn head(&self) -> Result<Tensor> {
        self.head_weight().dense()
    }

    /// The matrices of the embedding and of the head, which are the same tensor if they are tied.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn matrices(&self) -> Result<[Tensor; 2]> {
        let embedding = self.embedding.dense()?;
        let head = match &self.head {
            Some(head) => head.dense()?,
            None => embedding.shallow_clone(),
        };
        Ok([embedding, head])
    }
}
