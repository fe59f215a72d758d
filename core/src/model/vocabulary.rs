//! Both ends of a model: from token ids into the residual stream, and from it to logits.

use tch::Tensor;

use super::weights::Weights;
use crate::api::linear;
use crate::error::Result;

/// The embedding and the output head, which may be one matrix.
#[derive(Debug)]
pub struct Vocabulary {
    embedding: Tensor,
    /// `None`: the embedding serves as the head.
    head: Option<Tensor>,
    scale: Option<f64>,
    cap: Option<f64>,
}

impl Vocabulary {
    /// Takes the embedding and the head with these names from `weights`, each `[vocab hidden]`.
    ///
    /// If the configuration ties the two but their values differ, the head keeps its own values, as
    /// in `tie_weights` of transformers, and a warning is logged. If they are tied and `weights`
    /// has only one of them, it serves as both.
    ///
    /// # Errors
    /// Fails if a tensor is missing or has another shape.
    pub fn new(weights: &mut Weights, [embedding, head]: [&str; 2], shape: [i64; 2], tied: bool) -> Result<Self> {
        let [embedding, head] = [embedding, head].map(|module| format!("{module}.weight"));
        if !tied && !weights.has(&head) && weights.has(&embedding) {
            return Err(weights
                .missing(&head)
                .hint(format!("if `{embedding}` serves as the output head, set `tie_word_embeddings` to true in the model's config.json")));
        }
        // Either of the two may be missing: transformers ties in both directions.
        let first = if tied && !weights.has(&embedding) && weights.has(&head) { &head } else { &embedding };
        let matrix = weights.take(first, &shape)?;
        let own = if !tied || (first != &head && weights.has(&head)) { Some(weights.take(&head, &shape)?) } else { None };
        let own = own.filter(|own| !tied || !own.equal(&matrix));
        if tied && own.is_some() {
            tracing::warn!(
                "`{head}` differs from `{embedding}`, although the model's config.json sets `tie_word_embeddings`; the file's own head is \
                 used, as in transformers; set `tie_word_embeddings` to false to silence this warning"
            );
        }
        Ok(Self { embedding: matrix, head: own, scale: None, cap: None })
    }

    /// The same with embeddings that are multiplied by `scale`, rounded to the model's kind as Gemma's always was.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn scaled(mut self, scale: f64) -> Result<Self> {
        self.scale = Some(Tensor::from(scale).f_to_kind(self.embedding.kind())?.f_double_value(&[])?);
        Ok(self)
    }

    /// The same with logits that are capped: c·tanh(logit / c).
    #[must_use]
    pub fn capped(mut self, cap: Option<f64>) -> Self {
        self.cap = cap;
        self
    }

    /// The residual stream `[n hidden]` of ids `[n]`.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let h = Tensor::f_embedding(&self.embedding, ids, -1, false, false)?;
        Ok(match self.scale {
            Some(scale) => h.f_mul_scalar(scale)?,
            None => h,
        })
    }

    /// Logits `[m vocab]` of last hidden states `[m hidden]`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = linear(hidden, self.matrices().1, None)?;
        Ok(match self.cap {
            Some(cap) => logits.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?,
            None => logits,
        })
    }

    /// True if one matrix serves as the embedding and the head.
    pub fn is_tied(&self) -> bool {
        self.head.is_none()
    }

    /// The embedding matrix and the head's.
    pub fn matrices(&self) -> (&Tensor, &Tensor) {
        (&self.embedding, self.head.as_ref().unwrap_or(&self.embedding))
    }
}
