//! Simulated studies, which show that the intervals have the coverage that they claim.
//!
//! In every study, the clusters, their sizes, the pairs and the seeds are new random draws. The
//! value of pair p of cluster c under seed s has the latent value m + a_c + b_s + e_cp + g_cs +
//! u_cps, a sum of independent normal variables. The outcome is the latent value itself, or 1 if it
//! is positive and 0 otherwise.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::comparison::compare;
use super::estimate::{Components, Estimate};
use super::power::smallest_detectable_difference;
use super::quantiles::normal_cdf;
use super::table::Table;

/// Number of simulated studies.
const STUDIES: usize = 2000;

/// Sizes of the clusters.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sizes {
    /// One pair per cluster.
    One,
    /// Mostly three pairs per cluster, as in most data sets of GENIES.
    Three,
    /// From 1 to 144 pairs, uniform on a logarithmic scale.
    Mixed,
    /// A few large clusters among clusters of three pairs, as in `code_with_cooking_style`: the
    /// first 6 % have up to 144 pairs.
    Heavy,
}

/// Variance of b_s.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seeds {
    Zero,
    /// The contribution to the variance of the mean is this multiple of the clusters' one.
    Contribution(f64),
    /// The variance of b_s itself, where a_c has a variance of 1.
    Variance(f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Scenario {
    binary: bool,
    clusters: usize,
    seeds: usize,
    sizes: Sizes,
    seed_effect: Seeds,
    /// Standard deviations of e_cp, g_cs and u_cps, where a_c has a standard deviation of 1.
    pair: f64,
    interaction: f64,
    noise: f64,
}

impl Scenario {
    const DEFAULT: Self = Self {
        binary: true,
        clusters: 60,
        seeds: 3,
        sizes: Sizes::Three,
        seed_effect: Seeds::Zero,
        pair: 1.0,
        interaction: 0.5,
        noise: 0.7,
    };

    /// Mean of the latent values.
    const LATENT_MEAN: f64 = 0.5;

    fn size(&self, cluster: usize, rng: &mut impl Rng) -> usize {
        match self.sizes {
            Sizes::One => 1,
            Sizes::Three => match rng.random_range(0..20) {
                0 => 1,
                1 | 2 => 2,
                3 => 6,
                _ => 3,
            },
            Sizes::Mixed => log_uniform(1.0, 145.0, rng),
            Sizes::Heavy if cluster * 16 < self.clusters => log_uniform(30.0, 145.0, rng),
            Sizes::Heavy => 3,
        }
    }

    /// Standard deviation of b_s.
    fn seed_sd(&self) -> f64 {
        // Effective numbers of clusters and of pairs per cluster, for the expected sizes.
        let (effective, size) = match self.sizes {
            Sizes::One => (1.0, 1.0),
            Sizes::Three => (0.9, 3.0),
            Sizes::Mixed => (0.4, 29.0),
            Sizes::Heavy => (0.15, 7.6),
        };
        let c = self.clusters as f64;
        match self.seed_effect {
            Seeds::Zero => 0.0,
            Seeds::Variance(v) => v.sqrt(),
            Seeds::Contribution(share) => {
                let clusters = 1.0 / (c * effective) + self.pair * self.pair / (c * size);
                (share * clusters * self.seeds as f64).sqrt()
            }
        }
    }

    /// The true mean.
    fn truth(&self, extra: f64) -> f64 {
        let b = self.seed_sd();
        let squares = [1.0, b, self.pair, self.interaction, self.noise, extra];
        let sd = squares.iter().map(|s| s * s).sum::<f64>().sqrt();
        if self.binary { normal_cdf(Self::LATENT_MEAN / sd) } else { Self::LATENT_MEAN }
    }
}

fn log_uniform(low: f64, high: f64, rng: &mut impl Rng) -> usize {
    (low * (high / low).powf(rng.random::<f64>())) as usize
}

/// Standard normal variables by the polar method.
struct Normal {
    rng: ChaCha8Rng,
    kept: Option<f64>,
}

impl Normal {
    fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), kept: None }
    }

    fn draw(&mut self) -> f64 {
        if let Some(kept) = self.kept.take() {
            return kept;
        }
        loop {
            let (x, y) =
                (self.rng.random::<f64>() * 2.0 - 1.0, self.rng.random::<f64>() * 2.0 - 1.0);
            let r = x * x + y * y;
            if r > 0.0 && r < 1.0 {
                let factor = (-2.0 * r.ln() / r).sqrt();
                self.kept = Some(y * factor);
                return x * factor;
            }
        }
    }

    fn draws(&mut self, n: usize, sd: f64) -> Vec<f64> {
        (0..n).map(|_| sd * self.draw()).collect()
    }
}

/// A simulated study.
struct Study {
    table: Table,
    /// End points of the usual interval over pairs, which ignores clusters and seeds. An interval
    /// from resampled pairs approaches it as the number of resamples grows.
    over_pairs: (f64, f64),
    /// Mean of each pair over the seeds.
    pair_means: Vec<f64>,
}

impl Study {
    /// The percentile interval from `resamples` resamples of the pairs.
    fn resampled_pairs_interval(&self, resamples: usize, rng: &mut impl Rng) -> (f64, f64) {
        let n = self.pair_means.len();
        let mut means: Vec<f64> = (0..resamples)
            .map(|_| (0..n).map(|_| self.pair_means[rng.random_range(0..n)]).sum::<f64>())
            .map(|sum| sum / n as f64)
            .collect();
        means.sort_by(f64::total_cmp);
        (means[resamples / 40], means[resamples - 1 - resamples / 40])
    }
}

/// Simulates the studies of `methods` methods on the same pairs. If there are several, every method
/// has its own effects of seeds, interactions and noise, and an additional effect of the clusters
/// with standard deviation `extra`.
fn simulate(
    s: &Scenario,
    methods: usize,
    extra: f64,
    shift: f64,
    normal: &mut Normal,
) -> Vec<Study> {
    let sizes: Vec<usize> = (0..s.clusters).map(|c| s.size(c, &mut normal.rng)).collect();
    let shared: Vec<Vec<f64>> = sizes
        .iter()
        .map(|&n| {
            let a = Scenario::LATENT_MEAN + normal.draw();
            (0..n).map(|_| a + s.pair * normal.draw()).collect()
        })
        .collect();
    (0..methods)
        .map(|method| {
            let shift = if method == 0 { shift } else { 0.0 };
            let seeds = normal.draws(s.seeds, s.seed_sd());
            let mut pair_means = Vec::new();
            let mut sums = Vec::with_capacity(s.clusters);
            for latent in &shared {
                let a = shift + if extra > 0.0 { extra * normal.draw() } else { 0.0 };
                let mut cells = normal.draws(s.seeds, s.interaction);
                cells.iter_mut().zip(&seeds).for_each(|(cell, b)| *cell += a + b);
                let mut row = vec![0.0; s.seeds];
                for l in latent {
                    let mut total = 0.0;
                    for (y, cell) in row.iter_mut().zip(&cells) {
                        let value = l + cell + s.noise * normal.draw();
                        let value = if s.binary { f64::from(u8::from(value > 0.0)) } else { value };
                        *y += value;
                        total += value;
                    }
                    pair_means.push(total / s.seeds as f64);
                }
                sums.push(row);
            }
            let pairs = pair_means.len() as f64;
            let mean = pair_means.iter().sum::<f64>() / pairs;
            let squares = pair_means.iter().map(|y| y * y).sum::<f64>();
            let half = 1.96 * ((squares / pairs - mean * mean) / (pairs - 1.0)).sqrt();
            let table = Table::from_sums(&sizes, &sums).expect("complete");
            Study { table, over_pairs: (mean - half, mean + half), pair_means }
        })
        .collect()
}

/// Counts of a simulation.
#[derive(Debug, Default)]
struct Coverage {
    /// Number of studies with an interval.
    intervals: usize,
    covered: usize,
    covered_over_pairs: usize,
    effective: f64,
    width: f64,
}

impl Coverage {
    /// Share of the intervals that contain the true value, in percent.
    fn percent(&self) -> f64 {
        100.0 * self.covered as f64 / self.intervals as f64
    }

    fn percent_over_pairs(&self) -> f64 {
        100.0 * self.covered_over_pairs as f64 / STUDIES as f64
    }
}

fn coverage(s: &Scenario, seed: u64) -> Coverage {
    let mut normal = Normal::new(seed);
    let truth = s.truth(0.0);
    let mut coverage = Coverage::default();
    for _ in 0..STUDIES {
        let study = simulate(s, 1, 0.0, 0.0, &mut normal).remove(0);
        let estimate = match s.binary {
            true => Estimate::of_share(&study.table).expect("shares"),
            false => Estimate::of(&study.table),
        };
        coverage.effective += estimate.effective_clusters / STUDIES as f64;
        let (low, high) = study.over_pairs;
        coverage.covered_over_pairs += usize::from(low <= truth && truth <= high);
        if let Some(b) = estimate.bounds() {
            coverage.intervals += 1;
            coverage.covered += usize::from(b.low <= truth && truth <= b.high);
            coverage.width += b.high - b.low;
        }
    }
    coverage.width /= coverage.intervals as f64;
    coverage
}

/// Standard deviation of the additional effect of the clusters on each of two compared methods.
const EXTRA: f64 = 0.5;

/// Percentage of the studies in which two methods differ significantly. `shift` is added to the
/// latent values of the first method; without it, the methods are equal.
fn rejections(s: &Scenario, shift: f64, seed: u64) -> f64 {
    let mut normal = Normal::new(seed);
    let (mut rejected, mut tested) = (0_usize, 0_usize);
    for _ in 0..STUDIES {
        let studies = simulate(s, 2, EXTRA, shift, &mut normal);
        let result = compare(&studies[0].table, &studies[1].table).expect("same pairs");
        if let Some(bounds) = result.difference.bounds() {
            tested += 1;
            rejected += usize::from(bounds.low > 0.0 || bounds.high < 0.0);
        }
    }
    100.0 * rejected as f64 / tested as f64
}

/// The estimate of a difference in one study, with the mean squares of all studies on average.
fn average_difference(s: &Scenario, seed: u64) -> Estimate {
    let mut normal = Normal::new(seed);
    let estimates: Vec<Estimate> = (0..STUDIES)
        .map(|_| {
            let studies = simulate(s, 2, EXTRA, 0.0, &mut normal);
            compare(&studies[0].table, &studies[1].table).expect("same pairs").difference
        })
        .collect();
    let mean = |of: fn(&Components) -> f64| {
        estimates.iter().filter_map(|e| e.components.as_ref()).map(of).sum::<f64>() / STUDIES as f64
    };
    let components = Components {
        clusters: mean(|c| c.clusters),
        clusters_df: mean(|c| c.clusters_df),
        seeds: mean(|c| c.seeds),
        interaction: mean(|c| c.interaction),
        seed_count: s.seeds,
    };
    Estimate { components: Some(components), ..estimates[0] }
}

fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for binary in [true, false] {
        for sizes in [Sizes::One, Sizes::Three, Sizes::Mixed, Sizes::Heavy] {
            for clusters in [60, 250] {
                for seeds in [3, 5] {
                    for seed_effect in [
                        Seeds::Zero,
                        Seeds::Contribution(0.5),
                        Seeds::Contribution(1.0),
                        Seeds::Contribution(5.0),
                        Seeds::Variance(1.0),
                        Seeds::Variance(4.0),
                    ] {
                        all.push(Scenario {
                            binary,
                            sizes,
                            clusters,
                            seeds,
                            seed_effect,
                            ..Scenario::DEFAULT
                        });
                    }
                }
            }
        }
    }
    all
}

/// Scenarios of the default test.
fn few_scenarios() -> Vec<Scenario> {
    let of = |binary, sizes, seeds, seed_effect| Scenario {
        binary,
        sizes,
        seeds,
        seed_effect,
        ..Scenario::DEFAULT
    };
    vec![
        of(true, Sizes::Three, 3, Seeds::Zero),
        of(true, Sizes::Three, 3, Seeds::Variance(1.0)),
        of(true, Sizes::Three, 3, Seeds::Variance(4.0)),
        of(true, Sizes::Three, 5, Seeds::Contribution(1.0)),
        of(true, Sizes::Mixed, 3, Seeds::Zero),
        of(true, Sizes::Mixed, 3, Seeds::Variance(1.0)),
        of(false, Sizes::One, 3, Seeds::Contribution(5.0)),
        of(false, Sizes::Mixed, 5, Seeds::Variance(4.0)),
        // A single run, whose interval is over clusters only.
        of(true, Sizes::Three, 1, Seeds::Zero),
        of(true, Sizes::Mixed, 1, Seeds::Zero),
    ]
}

#[test]
fn intervals_cover_the_true_mean_in_93_to_97_percent_of_studies() {
    for (i, s) in few_scenarios().iter().enumerate() {
        let c = coverage(s, i as u64);
        assert_eq!(c.intervals, STUDIES, "{s:?}");
        assert!((93.0..=97.0).contains(&c.percent()), "{s:?} {c:?}");
    }
}

#[test]
fn intervals_over_pairs_are_too_short() {
    // Pairs of the same cluster are dependent, and so are all pairs of the same seed.
    for (i, s) in few_scenarios().iter().enumerate() {
        let c = coverage(s, i as u64);
        assert!(c.percent_over_pairs() < 90.0, "{s:?} {c:?}");
    }
}

#[test]
fn resampling_pairs_gives_intervals_that_are_too_short() {
    let scenarios = few_scenarios();
    let (single_run, study) = (&scenarios[8], &scenarios[1]);
    for s in [single_run, study] {
        let (mut normal, truth, studies) = (Normal::new(5), s.truth(0.0), 400);
        let mut covered = 0;
        for _ in 0..studies {
            let study = simulate(s, 1, 0.0, 0.0, &mut normal).remove(0);
            let (low, high) = study.resampled_pairs_interval(400, &mut normal.rng);
            covered += usize::from(low <= truth && truth <= high);
        }
        // The same bound as for intervals over clusters is 93 %.
        let percent = 100.0 * covered as f64 / studies as f64;
        assert!(percent < 90.0, "{s:?} {percent}");
    }
}

#[test]
fn equal_methods_rarely_differ_significantly() {
    for (i, s) in few_scenarios().iter().enumerate() {
        let level = rejections(s, 0.0, 1000 + i as u64);
        assert!((2.5..=7.0).contains(&level), "{s:?} {level}");
    }
}

#[test]
fn the_smallest_detectable_difference_is_found_in_80_percent_of_studies() {
    for seeds in [2, 3, 5] {
        for share in [0.0, 0.5, 5.0] {
            let s = Scenario {
                binary: false,
                seeds,
                seed_effect: Seeds::Contribution(share),
                ..Scenario::DEFAULT
            };
            let difference = average_difference(&s, 1);
            let shift = smallest_detectable_difference(&difference, None).expect("an interval");
            let power = rejections(&s, shift, 2);
            assert!((76.0..=84.0).contains(&power), "{s:?} {power}");
        }
    }
}

#[test]
#[ignore = "takes minutes; prints the coverage of all scenarios"]
fn table_of_all_scenarios() {
    for (i, s) in scenarios().iter().enumerate() {
        // The rule for the width was chosen with other seeds.
        let seed = 1_000_000 + i as u64;
        let c = coverage(s, seed);
        println!(
            "{} {:?} C={} S={} {:?}: {:.1} {} width {:.3} pairs {:.1} level {:.1} eff {:.0}",
            if s.binary { "binary" } else { "continuous" },
            s.sizes,
            s.clusters,
            s.seeds,
            s.seed_effect,
            c.percent(),
            c.intervals,
            c.width,
            c.percent_over_pairs(),
            rejections(s, 0.0, seed + 1_000_000),
            c.effective,
        );
    }
}
