//! The mean over pairs, with an interval over clusters and seeds.
//!
//! Notation: w_c = n_c/Σn is the share of the pairs that are in cluster c, y_cs is the mean value of
//! these pairs under seed s, and a dot is a mean over seeds. There are C clusters and S seeds. The
//! estimate is μ̂ = Σ_c w_c y_c·.

use serde::{Deserialize, Serialize};

use super::quantiles::{two_sided_p, two_sided_t};
use super::table::Table;

/// Effective number of clusters below which there is no interval. With fewer clusters, the
/// coverage of the intervals depends on the distribution of the values; see `docs/statistics.md`.
pub const MIN_EFFECTIVE_CLUSTERS: f64 = 8.0;

/// Error rate of the intervals.
pub(super) const LEVEL: f64 = 0.05;

/// Contributions to the variance of the mean, as mean squares.
///
/// Every mean square is already divided so that it estimates a variance of μ̂. The cluster and the
/// seed mean square both contain the contribution of the interaction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Components {
    /// A, the variance of μ̂ over clusters, with the seeds held fixed. It is
    /// Σ_c w_c² (y_c· − μ̂)² / d_c with d_c = 1 − 2w_c + Σw².
    pub clusters: f64,
    /// Degrees of freedom of A; C − 1 if all clusters have the same size.
    pub clusters_df: f64,
    /// B, the variance of μ̂ over seeds, with the clusters held fixed, with S − 1 degrees of freedom.
    /// It is the sample variance of the seeds' means, divided by S. 0 for a single seed.
    pub seeds: f64,
    /// I, the interaction: the part that A and B have in common. 0 for a single seed.
    pub interaction: f64,
    /// Number of seeds S.
    pub seed_count: usize,
}

/// The end points of an interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    /// Estimated standard deviation of the mean.
    pub standard_error: f64,
    /// Satterthwaite's approximate degrees of freedom of the squared standard error.
    pub df: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end of the 95 % interval.
    pub high: f64,
}

/// The population that an interval covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Other clusters and other seeds.
    ClustersAndSeeds,
    /// Other clusters, but only the seed of the study. The table has one seed, so the variance over
    /// seeds is unknown.
    ClustersOnly,
}

/// A reason why there is no interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoInterval {
    /// All pairs are in one cluster, so the variance over clusters is unknown.
    OneCluster,
    /// The effective number of clusters is below [`MIN_EFFECTIVE_CLUSTERS`].
    FewClusters,
    /// All clusters have the same mean under all seeds, for example an accuracy of 1. The variance
    /// cannot be estimated from such values.
    NoVariation,
}

/// A 95 % confidence interval, or the reason why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interval {
    /// The interval.
    Given {
        /// The population that the interval covers.
        scope: Scope,
        /// Its end points.
        bounds: Bounds,
    },
    /// There is no interval.
    Absent(NoInterval),
}

/// The mean over pairs with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// μ̂, the mean over pairs and seeds.
    pub mean: f64,
    /// Number of pairs.
    pub pairs: usize,
    /// Number of clusters.
    pub clusters: usize,
    /// Effective number of clusters, (Σn)²/Σn². It equals the number of clusters if all have the
    /// same size.
    pub effective_clusters: f64,
    /// Number of seeds.
    pub seeds: usize,
    /// Contributions to the variance of the mean. `None` if there is only one cluster.
    pub components: Option<Components>,
    /// The interval for the mean.
    pub interval: Interval,
}

impl Components {
    /// Returns `None` if there is only one cluster.
    fn of(table: &Table, mean: f64) -> Option<Self> {
        if table.clusters() < 2 {
            return None;
        }
        let weights = table.weights();
        let seeds = table.seeds().len() as f64;
        let squares: f64 = weights.iter().map(|w| w * w).sum();
        let mut seed_means = vec![0.0; table.seeds().len()];
        for (c, w) in weights.iter().enumerate() {
            for (sum, y) in seed_means.iter_mut().zip(table.cell_means(c)) {
                *sum += w * y;
            }
        }
        let (mut between, mut within) = (0.0, 0.0);
        for (c, w) in weights.iter().enumerate() {
            let d = 1.0 - 2.0 * w + squares;
            let cluster = table.cell_means(c).sum::<f64>() / seeds - mean;
            between += w * w / d * cluster * cluster;
            let residuals = table.cell_means(c).zip(&seed_means).map(|(y, m)| y - m - cluster);
            within += w * w / d * residuals.map(|r| r * r).sum::<f64>();
        }
        let seed_squares: f64 = seed_means.iter().map(|m| (m - mean) * (m - mean)).sum();
        let divisor = seeds * (seeds - 1.0);
        let per_seed = |sum: f64| if seeds > 1.0 { sum / divisor } else { 0.0 };
        Some(Self {
            clusters: between,
            clusters_df: cluster_df(&weights, squares),
            seeds: per_seed(seed_squares),
            interaction: per_seed(within),
            seed_count: table.seeds().len(),
        })
    }

    /// V̂ = A + max(B − I, 0), the estimated variance of the mean.
    pub fn variance(&self) -> f64 {
        self.clusters + (self.seeds - self.interaction).max(0.0)
    }

    /// Degrees of freedom of B.
    fn seeds_df(&self) -> f64 {
        self.seed_count as f64 - 1.0
    }

    /// Satterthwaite's degrees of freedom of [`Components::variance`].
    pub fn df(&self) -> f64 {
        if self.seeds <= self.interaction {
            return self.clusters_df;
        }
        let v = self.variance();
        let (a, b) = (self.clusters, self.seeds);
        let i = self.interaction;
        let interaction_df = self.clusters_df * self.seeds_df();
        v * v / (a * a / self.clusters_df + b * b / self.seeds_df() + i * i / interaction_df)
    }

    /// Half the width of the interval with the error rate `p`.
    pub(super) fn half_width(&self, p: f64) -> f64 {
        let t_clusters = two_sided_t(p, self.clusters_df).powi(2);
        let without_seeds = t_clusters * self.clusters;
        if self.seeds <= self.interaction {
            return without_seeds.sqrt();
        }
        let satterthwaite = two_sided_t(p, self.df()).powi(2) * self.variance();
        let banerjee = t_clusters * (self.clusters - self.interaction).max(0.0)
            + two_sided_t(p, self.seeds_df()).powi(2) * self.seeds;
        let with_seeds = without_seeds.max(0.5 * (satterthwaite + banerjee));
        // Between B = I and B = 2I, the squared width changes linearly, so that a small change of
        // the data has a small effect.
        let ramp = ((self.seeds - self.interaction) / self.interaction).min(1.0);
        (without_seeds + ramp * (with_seeds - without_seeds)).sqrt()
    }

    /// The smallest error rate for which the interval around `mean` does not contain 0.
    pub(super) fn p_value(&self, mean: f64) -> f64 {
        let distance = mean.abs();
        if self.seeds <= self.interaction {
            return two_sided_p(distance / self.clusters.sqrt(), self.clusters_df);
        }
        // The half-width decreases as the error rate increases. Bisect the logarithm of the rate.
        let (mut low, mut high) = (f64::MIN_POSITIVE.ln(), 0.0_f64);
        while high - low > 1e-10 {
            let centre = 0.5 * (low + high);
            if self.half_width(centre.exp()) > distance {
                low = centre;
            } else {
                high = centre;
            }
        }
        high.exp()
    }
}

/// Degrees of freedom of the cluster mean square by Satterthwaite's method, if all cluster means
/// have the same variance: (tr Q)²/tr(Q²) for the matrix Q of the quadratic form A.
fn cluster_df(weights: &[f64], squares: f64) -> f64 {
    // With q_c = w_c²/d_c, tr Q = Σ q_c d_c = Σ w². The off-diagonal elements of the covariance
    // matrix of the residuals are Σw² − w_c − w_d.
    let q = |w: f64| w * w / (1.0 - 2.0 * w + squares);
    let mut trace = 0.0;
    for (c, &a) in weights.iter().enumerate() {
        trace += (a * a) * (a * a);
        let others: f64 = weights[..c].iter().map(|&b| q(b) * (squares - a - b).powi(2)).sum();
        trace += 2.0 * q(a) * others;
    }
    squares * squares / trace
}

impl Estimate {
    /// Computes the mean over the pairs of a table, and its 95 % confidence interval.
    pub fn of(table: &Table) -> Self {
        let weights = table.weights();
        let seeds = table.seeds().len();
        let cluster_mean = |c| table.cell_means(c).sum::<f64>() / seeds as f64;
        let mean = weights.iter().enumerate().map(|(c, w)| w * cluster_mean(c)).sum();
        let effective_clusters = 1.0 / weights.iter().map(|w| w * w).sum::<f64>();
        let components = Components::of(table, mean);
        // Rounding can make variances of equal values slightly positive.
        let scale = (0..table.clusters())
            .flat_map(|c| table.cell_means(c))
            .fold(0.0, |max: f64, y| max.max(y.abs()));
        let interval = match components {
            None => Interval::Absent(NoInterval::OneCluster),
            Some(c) if c.variance().sqrt() <= 1e-13 * scale => {
                Interval::Absent(NoInterval::NoVariation)
            }
            Some(_) if effective_clusters < MIN_EFFECTIVE_CLUSTERS => {
                Interval::Absent(NoInterval::FewClusters)
            }
            Some(c) => Interval::Given {
                scope: if seeds > 1 { Scope::ClustersAndSeeds } else { Scope::ClustersOnly },
                bounds: Bounds::around(mean, &c),
            },
        };
        Self {
            mean,
            pairs: table.pairs(),
            clusters: table.clusters(),
            effective_clusters,
            seeds,
            components,
            interval,
        }
    }

    /// The end points of the interval, if there is one.
    pub fn bounds(&self) -> Option<Bounds> {
        match self.interval {
            Interval::Given { bounds, .. } => Some(bounds),
            Interval::Absent(_) => None,
        }
    }
}

impl Bounds {
    fn around(mean: f64, components: &Components) -> Self {
        let half = components.half_width(LEVEL);
        Self {
            standard_error: components.variance().sqrt(),
            df: components.df(),
            low: mean - half,
            high: mean + half,
        }
    }
}
