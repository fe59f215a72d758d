//! Directions at the outputs of blocks, for methods that edit the residual stream.

use reprpo_plugin::prelude::*;

/// The outputs of some blocks, pooled over the tokens of a sequence.
pub struct BlockOutputs {
    /// The blocks, counted from 0.
    pub layers: Layers,
    /// How the states of a sequence's tokens are pooled into one vector.
    pub pooling: Pooling,
}

impl Tap for BlockOutputs {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        Ok(self.layers.resolve(model.layers)?.into_iter().map(Site::Block).collect())
    }

    fn pooling(&self) -> Pooling {
        self.pooling
    }
}

/// The mean of the differences d `[pairs w]`, in float64. The result has the shape `[w]`.
pub fn mean_difference(d: &Tensor) -> Result<Tensor> {
    Ok(d.f_to_kind(Kind::Double)?.f_mean_dim(0, false, Kind::Double)?)
}

/// The first principal component of the differences d `[pairs w]` around their mean, as in
/// scikit-learn's PCA and in repeng. Its sign is such that most differences have a positive
/// projection, and its length is the root mean square of the projections of the differences. The
/// result has the shape `[w]` and is float64.
///
/// # Errors
/// Fails if there are fewer than two differences, or if they are all equal.
pub fn first_component(d: &Tensor) -> Result<Tensor> {
    let d = d.f_to_kind(Kind::Double)?;
    let (pairs, width) = (d.size()[0], d.size()[1]);
    let centred = &d - d.f_mean_dim(0, true, Kind::Double)?;
    let spread = f64::try_from(centred.f_norm()?)?;
    if pairs < 2 || !(spread.is_finite() && spread > 0.0) {
        return Err(Error::new(format!(
            "the differences of {pairs} pairs have no principal component, because they do not \
                vary"
        ))
        .hint("use `direction=mean`, or more training pairs"));
    }
    // Decompose the smaller of the two Gram matrices.
    let last = |vectors: Tensor| -> Result<Tensor> { Ok(vectors.f_select(1, -1)?) };
    let u = if pairs < width {
        let (_, vectors) = centred.f_matmul(&centred.tr())?.f_linalg_eigh("L")?;
        centred.tr().f_mv(&last(vectors)?)?
    } else {
        last(centred.tr().f_matmul(&centred)?.f_linalg_eigh("L")?.1)?
    };
    let u = &u / u.f_norm()?;
    let projections = d.f_mv(&u)?;
    let sign =
        if f64::try_from(projections.f_sign()?.f_sum(Kind::Double)?)? < 0.0 { -1.0 } else { 1.0 };
    Ok(u * (sign * f64::try_from(projections.f_square()?.f_mean(Kind::Double)?.f_sqrt()?)?))
}

/// Computes the statistics of a method: one direction for each site.
///
/// # Errors
/// Fails if `direction` does. The error then names the site.
pub fn statistics(
    states: &PairStates,
    direction: impl Fn(&SiteStates) -> Result<Tensor>,
) -> Result<Statistics> {
    let named = |at: &SiteStates| {
        let v =
            direction(at).within(|| format!("cannot compute the direction at `{}`", at.site))?;
        Ok((format!("direction.{}", at.site), v))
    };
    Ok(Statistics::new(states.sites.iter().map(named).collect::<Result<_>>()?))
}

/// Reads the directions from the [`statistics`]. Returns the index of each
/// block, with its direction `[hidden]`.
pub fn directions(statistics: &Statistics) -> Result<Vec<(usize, Tensor)>> {
    statistics
        .iter()
        .map(|(name, v)| {
            let block = name.strip_prefix("direction.blocks.").and_then(|k| k.parse().ok());
            let block = block.ok_or_else(|| {
                Error::new(format!("the statistic `{name}` is not the direction of a block"))
            })?;
            Ok((block, v.shallow_clone()))
        })
        .collect()
}
