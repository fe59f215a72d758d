//! The mean over pairs, with an interval over clusters and seeds.
//!
//! Notation: w_c = n_c/Σn is the share of the pairs that are in cluster c, y_cs is the mean value
//! of these pairs under seed s, and a dot is a mean over seeds. There are C clusters and S seeds.
//! The estimate is μ̂ = Σ_c w_c y_c·.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::quantiles::{two_sided_p, two_sided_t};
use super::table::Table;

/// Effective number of clusters below which there is no interval. In simulations with fewer
/// clusters, the intervals of an accuracy contain the true value in 98 to 100 % of studies, but
/// they are longer than 0.5, so they say little.
pub const MIN_EFFECTIVE_CLUSTERS: f64 = 8.0;

/// Ratios of the seed to the interaction mean square, between which the effect of the seeds enters
/// the width of the interval. Without an effect of the seeds, the expected ratio is 1. The width
/// changes gradually, so that a small change of the data has a small effect.
const RAMP_START: f64 = 0.9;
const RAMP_END: f64 = 1.4;

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
    /// B, the variance of μ̂ over seeds, with the clusters held fixed, with S − 1 degrees of
    /// freedom. It is the sample variance of the seeds' means, divided by S. 0 for a single seed.
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

impl fmt::Display for NoInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoInterval::OneCluster => f.write_str("all pairs are in one cluster"),
            NoInterval::FewClusters => {
                write!(f, "fewer than {MIN_EFFECTIVE_CLUSTERS} effective clusters")
            }
            NoInterval::NoVariation => f.write_str("all clusters have the same value"),
        }
    }
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

    /// Satterthwaite's degrees of freedom of [`Components::variance`], but at least the smaller
    /// degrees of freedom of A and B. The formula can be smaller because I is subtracted in the
    /// variance, and the quantile would then be huge.
    pub fn df(&self) -> f64 {
        if self.seeds <= self.interaction {
            return self.clusters_df;
        }
        let v = self.variance();
        let (a, b) = (self.clusters, self.seeds);
        let i = self.interaction;
        let interaction_df = self.clusters_df * self.seeds_df();
        let df =
            v * v / (a * a / self.clusters_df + b * b / self.seeds_df() + i * i / interaction_df);
        df.max(self.clusters_df.min(self.seeds_df()))
    }

    /// Position of B between [`RAMP_START`]·I and [`RAMP_END`]·I, from 0 to 1.
    fn seed_share(&self) -> f64 {
        if self.seeds <= RAMP_START * self.interaction {
            return 0.0;
        }
        let ratio = self.seeds / self.interaction;
        ((ratio - RAMP_START) / (RAMP_END - RAMP_START)).min(1.0)
    }

    /// Half the width of the interval with the error rate `p`.
    pub(super) fn half_width(&self, p: f64) -> f64 {
        let t_clusters = two_sided_t(p, self.clusters_df).powi(2);
        let without_seeds = t_clusters * self.clusters;
        let share = self.seed_share();
        if share == 0.0 {
            return without_seeds.sqrt();
        }
        let satterthwaite = two_sided_t(p, self.df()).powi(2) * self.variance();
        let banerjee = t_clusters * (self.clusters - self.interaction).max(0.0)
            + two_sided_t(p, self.seeds_df()).powi(2) * self.seeds;
        let with_seeds = without_seeds.max(0.5 * (satterthwaite + banerjee));
        (without_seeds + share * (with_seeds - without_seeds)).sqrt()
    }

    /// The smallest error rate for which the interval around `mean` does not contain 0.
    pub(super) fn p_value(&self, mean: f64) -> f64 {
        let distance = mean.abs();
        if self.seed_share() == 0.0 {
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
    // Clusters of the same size have equal terms, so sum over sizes. There are few sizes.
    let mut sizes: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
    for &w in weights {
        sizes.entry(w.to_bits()).or_insert((w, 0.0)).1 += 1.0;
    }
    let mut trace = 0.0;
    for &(a, count) in sizes.values() {
        let product = |b: f64| q(a) * q(b) * (squares - a - b).powi(2);
        let all: f64 = sizes.values().map(|&(b, count)| count * product(b)).sum();
        trace += count * ((a * a) * (a * a) + all - product(a));
    }
    squares * squares / trace
}

impl Estimate {
    /// Computes the mean over the pairs of a table, and its 95 % confidence interval. The interval
    /// is symmetric.
    pub fn of(table: &Table) -> Self {
        Self::with(table, Bounds::around)
    }

    /// Computes the mean of values between 0 and 1, for example an accuracy. The interval is
    /// symmetric on the logit scale, so it lies between 0 and 1. Returns `None` if the mean of a
    /// cell is not between 0 and 1.
    pub fn of_share(table: &Table) -> Option<Self> {
        let is_share = |c| table.cell_means(c).all(|y| (0.0..=1.0).contains(&y));
        (0..table.clusters()).all(is_share).then(|| Self::with(table, Bounds::around_share))
    }

    fn with(table: &Table, bounds: fn(f64, &Components) -> Bounds) -> Self {
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
                bounds: bounds(mean, &c),
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

    /// The interval of [`Bounds::around`], symmetric on the logit scale instead: its half-width
    /// there is divided by m(1 − m), the inverse of the derivative of the logit.
    fn around_share(mean: f64, components: &Components) -> Self {
        let spread = mean * (1.0 - mean);
        let half = components.half_width(LEVEL) / spread;
        let logit = (mean / (1.0 - mean)).ln();
        let share = |x: f64| 1.0 / (1.0 + (-x).exp());
        Self {
            low: share(logit - half),
            high: share(logit + half),
            ..Self::around(mean, components)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::comparison::compare;
    use super::super::power::{CannotPlan, Plan, smallest_detectable_difference};
    use super::*;

    /// Ten clusters of five pairs, three seeds.
    const EQUAL: [[f64; 3]; 10] = [
        [1.0, 2.0, 3.0],
        [0.0, 1.0, 1.0],
        [2.0, 2.0, 4.0],
        [1.0, 0.0, 2.0],
        [3.0, 3.0, 3.0],
        [0.0, 0.0, 2.0],
        [2.0, 1.0, 3.0],
        [1.0, 2.0, 2.0],
        [0.0, 1.0, 0.0],
        [2.0, 3.0, 4.0],
    ];

    fn table(sizes: &[usize], sums: &[[f64; 3]]) -> Table {
        let sums: Vec<Vec<f64>> = sums.iter().map(|row| row.to_vec()).collect();
        Table::from_sums(sizes, &sums).expect("complete")
    }

    /// The first seed of [`EQUAL`].
    fn one_seed() -> Table {
        let sums: Vec<Vec<f64>> = EQUAL.iter().map(|row| vec![row[0]]).collect();
        Table::from_sums(&[5; 10], &sums).expect("complete")
    }

    fn close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-7, "{found} {expected}");
    }

    fn p_value(table: &Table) -> f64 {
        let sums = vec![vec![0.0; table.seeds().len()]; table.clusters()];
        let sizes: Vec<usize> = vec![5; table.clusters()];
        let zero = Table::from_sums(&sizes, &sums).expect("complete");
        compare(table, &zero).expect("same pairs").p.expect("a p value")
    }

    // The expected values of these tests come from matrix formulas in numpy: with M = 1 − 1wᵀ, d =
    // diag(MMᵀ) and Q = Mᵀ diag(w²/d) M, the cluster mean square is ȳᵀQȳ with (tr Q)²/tr(Q²)
    // degrees of freedom. The quantiles are scipy.stats.t.isf, and the p value is the root of
    // half_width(p) = |mean| by scipy.optimize.brentq.

    #[test]
    fn mean_squares_of_equal_clusters_are_those_of_an_analysis_of_variance() {
        let estimate = Estimate::of(&table(&[5; 10], &EQUAL));
        let c = estimate.components.expect("two clusters");
        // MS/(CS) of the two-way analysis of variance without replication.
        close(c.clusters, 0.003995061728395062);
        close(c.seeds, 0.0052);
        close(c.interaction, 0.0005580246913580247);
        close(c.clusters_df, 9.0);
        close(c.variance(), c.clusters + c.seeds - c.interaction);
        close(estimate.mean, 0.34);
        close(estimate.effective_clusters, 10.0);
        let Interval::Given { scope, bounds } = estimate.interval else { panic!("no interval") };
        assert_eq!(scope, Scope::ClustersAndSeeds);
        close(bounds.standard_error, 0.09293566073922883);
        close(bounds.df, 4.872308603866628);
        close(bounds.low, 0.04688137320411262);
        close(bounds.high, 0.6331186267958873);
        close(p_value(&table(&[5; 10], &EQUAL)), 0.035559578177710834);
    }

    #[test]
    fn the_interval_of_a_share_is_symmetric_on_the_logit_scale() {
        let bounds = Estimate::of_share(&table(&[5; 10], &EQUAL)).and_then(|e| e.bounds());
        let bounds = bounds.expect("an interval");
        close(bounds.low, 0.12243970536068376);
        close(bounds.high, 0.6554174151836756);
        let too_large = table(&[1; 10], &EQUAL);
        assert_eq!(Estimate::of_share(&too_large), None);
    }

    #[test]
    fn clusters_weigh_by_their_number_of_pairs() {
        let sizes = [1, 3, 3, 2, 6, 1, 3, 4, 3, 9, 2, 3];
        let sums = [
            [1.0, 0.0, 1.0],
            [2.0, 3.0, 3.0],
            [1.0, 1.0, 2.0],
            [0.0, 1.0, 0.0],
            [4.0, 5.0, 6.0],
            [1.0, 1.0, 1.0],
            [0.0, 0.0, 1.0],
            [3.0, 2.0, 4.0],
            [3.0, 3.0, 3.0],
            [5.0, 7.0, 8.0],
            [1.0, 1.0, 2.0],
            [2.0, 1.0, 2.0],
        ];
        let estimate = Estimate::of(&table(&sizes, &sums));
        let c = estimate.components.expect("two clusters");
        close(estimate.mean, 0.675);
        close(estimate.effective_clusters, 8.51063829787234);
        close(c.clusters, 0.0048967600969207345);
        close(c.clusters_df, 3.5481036418511698);
        close(c.seeds, 0.005833333333333327);
        close(c.interaction, 0.0006819731452247197);
        let bounds = estimate.bounds().expect("an interval");
        close(bounds.df, 4.2355453528059845);
        close(bounds.low, 0.3447557065717185);
        close(bounds.high, 1.0052442934282815);
    }

    #[test]
    fn without_an_effect_of_the_seeds_the_interval_is_over_clusters() {
        let sums = [
            [1.0, 2.0, 1.0],
            [2.0, 0.0, 2.0],
            [3.0, 3.0, 2.0],
            [1.0, 1.0, 1.0],
            [2.0, 3.0, 4.0],
            [0.0, 1.0, 0.0],
            [3.0, 2.0, 3.0],
            [2.0, 2.0, 1.0],
            [0.0, 0.0, 1.0],
            [4.0, 4.0, 4.0],
        ];
        let estimate = Estimate::of(&table(&[5; 10], &sums));
        let c = estimate.components.expect("two clusters");
        assert!(c.seeds < c.interaction);
        assert_eq!(c.variance(), c.clusters);
        let bounds = estimate.bounds().expect("an interval");
        close(bounds.df, 9.0);
        close(bounds.low, 0.19361753056884362);
        close(bounds.high, 0.5397158027644897);
        close(p_value(&table(&[5; 10], &sums)), 0.000983008092620768);
    }

    #[test]
    fn with_one_seed_the_interval_is_the_t_interval_over_clusters() {
        let estimate = Estimate::of(&one_seed());
        let Interval::Given { scope, bounds } = estimate.interval else { panic!("no interval") };
        assert_eq!(scope, Scope::ClustersOnly);
        // scipy.stats.t.interval and scipy.stats.ttest_1samp of the cluster means.
        close(bounds.low, 0.09223651288432805);
        close(bounds.high, 0.38776348711567193);
        close(p_value(&one_seed()), 0.0051210727642726425);
    }

    #[test]
    fn the_p_value_agrees_with_the_interval() {
        let c = Estimate::of(&table(&[5; 10], &EQUAL)).components.expect("two clusters");
        close(c.p_value(c.half_width(LEVEL)), LEVEL);
        close(c.p_value(c.half_width(1e-4)), 1e-4);
        assert!(c.p_value(0.0) > 0.999);
    }

    #[test]
    fn the_degrees_of_freedom_are_bounded_if_the_interaction_is_large() {
        let c = Components {
            clusters: 0.01,
            clusters_df: 9.0,
            seeds: 1.001,
            interaction: 1.0,
            seed_count: 3,
        };
        assert_eq!(c.df(), 2.0);
    }

    #[test]
    fn an_interval_that_cannot_be_computed_is_absent_with_its_reason() {
        let absent = |t: Table| match Estimate::of(&t).interval {
            Interval::Absent(reason) => reason,
            Interval::Given { .. } => panic!("an interval"),
        };
        assert_eq!(absent(table(&[5], &EQUAL[..1])), NoInterval::OneCluster);
        assert_eq!(absent(table(&[5; 4], &EQUAL[..4])), NoInterval::FewClusters);
        // Four of the ten clusters contain nearly all pairs.
        let large = [100, 100, 100, 100, 5, 5, 5, 5, 5, 5];
        assert_eq!(absent(table(&large, &EQUAL)), NoInterval::FewClusters);
        let correct = table(&[3; 20], &[[3.0; 3]; 20]);
        assert_eq!(absent(correct.clone()), NoInterval::NoVariation);
        let same = compare(&correct, &correct).expect("same pairs");
        assert_eq!((same.difference.mean, same.p), (0.0, None));
        // The mean of 0.1 over three pairs is rounded.
        assert_eq!(absent(table(&[3; 20], &[[0.1; 3]; 20])), NoInterval::NoVariation);
    }

    #[test]
    fn the_detectable_difference_of_one_seed_is_that_of_a_t_test() {
        let estimate = Estimate::of(&one_seed());
        let repeated = smallest_detectable_difference(&estimate, None).expect("an interval");
        // The root of P(|T'| > t) = 0.8, where T' is scipy.stats.nct with 9 degrees of freedom.
        assert!((repeated / 0.20573315863715633 - 1.0).abs() < 0.005, "{repeated}");
        let plan = Some(Plan { clusters: 40, seeds: 1 });
        let larger = smallest_detectable_difference(&estimate, plan).expect("an interval");
        // The same with 36 degrees of freedom and half the standard error.
        assert!((larger / 0.09403248979576853 - 1.0).abs() < 0.005, "{larger}");
    }

    #[test]
    fn more_seeds_and_more_clusters_detect_smaller_differences() {
        let estimate = Estimate::of(&table(&[5; 10], &EQUAL));
        let of = |clusters, seeds| {
            smallest_detectable_difference(&estimate, Some(Plan { clusters, seeds }))
                .expect("an interval")
        };
        assert!(of(10, 5) < of(10, 3) && of(40, 3) < of(10, 3) && of(10, 3) < of(10, 2));
        assert_eq!(smallest_detectable_difference(&estimate, None), Ok(of(10, 3)));
    }

    #[test]
    fn a_plan_without_known_variances_is_refused() {
        let plan = |clusters, seeds| Some(Plan { clusters, seeds });
        let three = Estimate::of(&table(&[5; 10], &EQUAL));
        let one = Estimate::of(&one_seed());
        let none = Estimate::of(&table(&[5], &EQUAL[..1]));
        let of = |e: &Estimate, p| smallest_detectable_difference(e, p);
        assert_eq!(of(&three, plan(10, 1)), Err(CannotPlan::OtherScope));
        assert_eq!(of(&one, plan(10, 3)), Err(CannotPlan::OtherScope));
        assert_eq!(of(&one, plan(1, 1)), Err(CannotPlan::TooSmall));
        assert_eq!(of(&one, plan(5, 0)), Err(CannotPlan::TooSmall));
        assert_eq!(of(&none, None), Err(CannotPlan::NoInterval));
    }
}
