//! Smallest difference that a study can detect.

use serde::{Deserialize, Serialize};

use super::estimate::{Components, Estimate, Interval, LEVEL};
use super::quantiles::{normal_cdf, scaled_chi_squared};

/// Probability of detecting the difference.
const POWER: f64 = 0.8;

/// Number of quadrature points for the seed and for the cluster mean square.
const SEED_NODES: usize = 100;
const CLUSTER_NODES: usize = 40;

/// The size of a planned study.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Number of clusters, with the same distribution of sizes as in the study at hand.
    pub clusters: usize,
    /// Number of seeds.
    pub seeds: usize,
}

/// A reason why the smallest detectable difference is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotPlan {
    /// The study at hand has no interval, so its variance is unknown.
    #[error("the study has no interval, so its variance is unknown")]
    NoInterval,
    /// The plan needs at least 2 clusters and 1 seed.
    #[error("a plan needs at least 2 clusters and 1 seed")]
    TooSmall,
    /// The study at hand has one seed and the plan has several, or the other way round.
    #[error("studies with one seed and studies with several seeds cannot be planned by each other")]
    OtherScope,
}

/// Computes the true difference for which the test of [`super::compare`] is significant with a
/// probability of 80 %, at a two-sided level of 5 %.
///
/// `difference` is the estimate of a difference. Its variance components are taken as the true
/// ones. The plan scales the contribution of the clusters with 1/C, of the seeds with 1/S, and of
/// the interaction with 1/(CS). Without a plan, the result is for a repetition of the same study.
///
/// # Errors
/// Fails if the estimate has no interval, if the plan has less than 2 clusters or no seeds, or if
/// only one of the study and the plan has several seeds.
pub fn smallest_detectable_difference(
    difference: &Estimate,
    plan: Option<Plan>,
) -> Result<f64, CannotPlan> {
    let (Some(found), Interval::Given { .. }) = (difference.components, difference.interval) else {
        return Err(CannotPlan::NoInterval);
    };
    let now = Plan { clusters: difference.clusters, seeds: difference.seeds };
    let plan = plan.unwrap_or(now);
    if plan.clusters < 2 || plan.seeds < 1 {
        return Err(CannotPlan::TooSmall);
    }
    if (now.seeds > 1) != (plan.seeds > 1) {
        return Err(CannotPlan::OtherScope);
    }
    let expected = scaled(&found, now, plan);
    let sd = expected.variance().sqrt();
    let widths = half_widths(&expected);
    let power = |delta: f64| {
        let detected: f64 = widths
            .iter()
            .map(|h| normal_cdf((delta - h) / sd) + normal_cdf((-delta - h) / sd))
            .sum();
        detected / widths.len() as f64
    };
    let (mut low, mut high) = (0.0, sd);
    while power(high) < POWER {
        high *= 2.0;
    }
    for _ in 0..50 {
        let centre = 0.5 * (low + high);
        if power(centre) < POWER {
            low = centre;
        } else {
            high = centre;
        }
    }
    Ok(0.5 * (low + high))
}

/// The expected mean squares of the planned study.
fn scaled(found: &Components, now: Plan, plan: Plan) -> Components {
    let clusters = now.clusters as f64 / plan.clusters as f64;
    let seeds = now.seeds as f64 / plan.seeds as f64;
    let interaction = found.interaction * clusters * seeds;
    let cluster_part = (found.clusters - found.interaction).max(0.0) * clusters;
    let seed_part = (found.seeds - found.interaction).max(0.0) * seeds;
    Components {
        clusters: cluster_part + interaction,
        clusters_df: found.clusters_df / clusters,
        seeds: seed_part + interaction,
        interaction,
        seed_count: plan.seeds,
    }
}

/// Half-widths of the interval for mean squares with the given expected values, at nodes of equal
/// probability. The mean squares have scaled χ² distributions. The interaction has many degrees of
/// freedom, and is held at its expected value.
fn half_widths(expected: &Components) -> Vec<f64> {
    let seed_nodes = match expected.seed_count {
        1 => vec![1.0],
        s => scaled_chi_squared(s as f64 - 1.0, SEED_NODES),
    };
    scaled_chi_squared(expected.clusters_df, CLUSTER_NODES)
        .into_iter()
        .flat_map(|a| seed_nodes.iter().map(move |b| (a, b)))
        .map(|(a, b)| Components {
            clusters: expected.clusters * a,
            seeds: expected.seeds * b,
            ..*expected
        })
        .map(|c| c.half_width(LEVEL))
        .collect()
}
