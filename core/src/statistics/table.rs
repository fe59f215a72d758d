//! Values of all clusters under all seeds.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// The value of one pair under one seed, for example 1 if the model ranks the pair correctly.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// Row number of the pair in its split.
    pub pair: usize,
    /// Name of the pair's cluster, for example the prompt.
    pub cluster: String,
    /// Seed of the training.
    pub seed: u64,
    /// The value; must be finite.
    pub value: f64,
}

/// The values of a study, summed over the pairs of each cluster: one cell per cluster and seed.
///
/// Every cluster has a cell for every seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    clusters: Vec<Cluster>,
    /// Sorted.
    seeds: Vec<u64>,
    /// `[clusters seeds]`
    sums: Vec<f64>,
}

#[derive(Clone, Debug, PartialEq)]
struct Cluster {
    name: String,
    /// Sorted row numbers.
    pairs: Vec<usize>,
}

/// A reason why values do not form a table, or why two tables do not match.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TableError {
    /// There are no clusters or no seeds.
    #[error("a table needs at least one pair and one seed")]
    Empty,
    /// A cluster without pairs.
    #[error("cluster `{cluster}` has no pairs")]
    EmptyCluster {
        /// Name of the cluster.
        cluster: String,
    },
    /// A value is infinite or NaN.
    #[error("the value of cluster `{cluster}` with seed {seed} is not finite")]
    NotFinite {
        /// Name of the cluster.
        cluster: String,
        /// Seed of the value.
        seed: u64,
    },
    /// A pair has two values for the same seed.
    #[error("pair {pair} has two values for seed {seed}")]
    Duplicate {
        /// Row number of the pair.
        pair: usize,
        /// Seed of both values.
        seed: u64,
    },
    /// A pair has no value for a seed of the study.
    #[error("pair {pair} has no value for seed {seed}")]
    MissingPair {
        /// Row number of the pair.
        pair: usize,
        /// Seed without a value.
        seed: u64,
    },
    /// A cluster has no value for a seed of the study.
    #[error("cluster `{cluster}` has no value for seed {seed}")]
    MissingCell {
        /// Name of the cluster.
        cluster: String,
        /// Seed without a value.
        seed: u64,
    },
    /// A pair is in two clusters.
    #[error("pair {pair} is in the clusters `{first}` and `{second}`")]
    TwoClusters {
        /// Row number of the pair.
        pair: usize,
        /// Name of one cluster.
        first: String,
        /// Name of the other cluster.
        second: String,
    },
    /// A pair occurs in one of two compared tables only.
    #[error("pair {pair} of cluster `{cluster}` only has values in the {table} table")]
    UnmatchedPair {
        /// Row number of the pair.
        pair: usize,
        /// Name of its cluster.
        cluster: String,
        /// The table that contains the pair.
        table: &'static str,
    },
    /// A seed occurs in one of two compared tables only.
    #[error("seed {seed} only has values in the {table} table")]
    UnmatchedSeed {
        /// The seed.
        seed: u64,
        /// The table that contains the seed.
        table: &'static str,
    },
}

impl Table {
    /// Builds a table from the values of single pairs, in any order.
    ///
    /// # Errors
    /// Fails if there are no observations, if a value is not finite, if a pair has no value or two
    /// values for a seed, or if a pair is in two clusters.
    pub fn from_pairs(
        observations: impl IntoIterator<Item = Observation>,
    ) -> Result<Self, TableError> {
        let mut cluster_of: BTreeMap<usize, String> = BTreeMap::new();
        let mut values: BTreeMap<(u64, usize), f64> = BTreeMap::new();
        for Observation { pair, cluster, seed, value } in observations {
            if !value.is_finite() {
                return Err(TableError::NotFinite { cluster, seed });
            }
            match cluster_of.entry(pair) {
                Entry::Occupied(known) if *known.get() != cluster => {
                    let first = known.get().clone();
                    return Err(TableError::TwoClusters { pair, first, second: cluster });
                }
                Entry::Occupied(_) => {}
                Entry::Vacant(entry) => {
                    entry.insert(cluster);
                }
            }
            if values.insert((seed, pair), value).is_some() {
                return Err(TableError::Duplicate { pair, seed });
            }
        }
        let mut seeds: Vec<u64> = values.keys().map(|(seed, _)| *seed).collect();
        seeds.dedup();
        let mut pairs_of: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (pair, cluster) in cluster_of {
            pairs_of.entry(cluster).or_default().push(pair);
        }
        let mut sums = Vec::with_capacity(pairs_of.len() * seeds.len());
        for pairs in pairs_of.values() {
            for &seed in &seeds {
                let mut sum = 0.0;
                for &pair in pairs {
                    sum +=
                        values.get(&(seed, pair)).ok_or(TableError::MissingPair { pair, seed })?;
                }
                sums.push(sum);
            }
        }
        let clusters = pairs_of.into_iter().map(|(name, pairs)| Cluster { name, pairs }).collect();
        Self::checked(clusters, seeds, sums)
    }

    /// Builds a table from sums over the pairs of each cluster.
    ///
    /// `sizes[c]` is the number of pairs of cluster c, and `sums[c][s]` is the sum of their values
    /// under seed s. Clusters, pairs and seeds are named by their number, from 0.
    ///
    /// # Errors
    /// Fails if there are no clusters or no seeds, if a size is 0, if a cell is missing, or if a
    /// sum is not finite.
    pub fn from_sums(sizes: &[usize], sums: &[Vec<f64>]) -> Result<Self, TableError> {
        let seeds = sums.iter().map(Vec::len).max().unwrap_or(0);
        let missing = |cluster: usize, seed: usize| TableError::MissingCell {
            cluster: cluster.to_string(),
            seed: seed as u64,
        };
        if sizes.len() != sums.len() {
            return Err(missing(sizes.len().min(sums.len()), 0));
        }
        let mut first = 0;
        let mut clusters = Vec::with_capacity(sizes.len());
        for (c, (&size, row)) in sizes.iter().zip(sums).enumerate() {
            if row.len() < seeds {
                return Err(missing(c, row.len()));
            }
            clusters.push(Cluster { name: c.to_string(), pairs: (first..first + size).collect() });
            first += size;
        }
        Self::checked(clusters, (0..seeds as u64).collect(), sums.concat())
    }

    fn checked(
        clusters: Vec<Cluster>,
        seeds: Vec<u64>,
        sums: Vec<f64>,
    ) -> Result<Self, TableError> {
        if clusters.is_empty() || seeds.is_empty() {
            return Err(TableError::Empty);
        }
        if let Some(empty) = clusters.iter().find(|c| c.pairs.is_empty()) {
            return Err(TableError::EmptyCluster { cluster: empty.name.clone() });
        }
        if let Some(cell) = sums.iter().position(|sum| !sum.is_finite()) {
            return Err(TableError::NotFinite {
                cluster: clusters[cell / seeds.len()].name.clone(),
                seed: seeds[cell % seeds.len()],
            });
        }
        Ok(Self { clusters, seeds, sums })
    }

    /// Subtracts the values of `other` from the values of this table, pair by pair and seed by
    /// seed.
    ///
    /// # Errors
    /// Fails if a pair or a seed only occurs in one table (this one is the first, `other` is the
    /// second), or if a pair is in different clusters. The error names the pair or the seed.
    pub fn minus(&self, other: &Self) -> Result<Self, TableError> {
        if self.seeds != other.seeds {
            let only = |a: &Self, b: &Self| a.seeds.iter().copied().find(|s| !b.seeds.contains(s));
            let (seed, table) = match only(self, other) {
                Some(seed) => (seed, "first"),
                None => (only(other, self).unwrap_or_default(), "second"),
            };
            return Err(TableError::UnmatchedSeed { seed, table });
        }
        self.check_pairs(other)?;
        let sums = self.sums.iter().zip(&other.sums).map(|(a, b)| a - b).collect();
        Self::checked(self.clusters.clone(), self.seeds.clone(), sums)
    }

    fn check_pairs(&self, other: &Self) -> Result<(), TableError> {
        let cluster_of = |table: &Self| -> BTreeMap<usize, String> {
            table
                .clusters
                .iter()
                .flat_map(|c| c.pairs.iter().map(|&pair| (pair, c.name.clone())))
                .collect()
        };
        if self.clusters == other.clusters {
            return Ok(());
        }
        let (first, second) = (cluster_of(self), cluster_of(other));
        for (&pair, cluster) in &first {
            match second.get(&pair) {
                None => {
                    let cluster = cluster.clone();
                    return Err(TableError::UnmatchedPair { pair, cluster, table: "first" });
                }
                Some(found) if found != cluster => {
                    let (first, second) = (cluster.clone(), found.clone());
                    return Err(TableError::TwoClusters { pair, first, second });
                }
                Some(_) => {}
            }
        }
        match second.into_iter().find(|(pair, _)| !first.contains_key(pair)) {
            Some((pair, cluster)) => {
                Err(TableError::UnmatchedPair { pair, cluster, table: "second" })
            }
            None => Ok(()),
        }
    }

    /// Number of clusters C.
    pub fn clusters(&self) -> usize {
        self.clusters.len()
    }

    /// Number of pairs, the sum of n_c over the clusters.
    pub fn pairs(&self) -> usize {
        self.clusters.iter().map(|c| c.pairs.len()).sum()
    }

    /// The seeds, sorted.
    pub fn seeds(&self) -> &[u64] {
        &self.seeds
    }

    /// Share of the pairs that are in each cluster, w_c = n_c / Σ n. `[clusters]`
    pub(super) fn weights(&self) -> Vec<f64> {
        let total = self.pairs() as f64;
        self.clusters.iter().map(|c| c.pairs.len() as f64 / total).collect()
    }

    /// Mean value of the pairs of cluster c under each seed. `[seeds]`
    pub(super) fn cell_means(&self, c: usize) -> impl Iterator<Item = f64> {
        let size = self.clusters[c].pairs.len() as f64;
        let first = c * self.seeds.len();
        self.sums[first..first + self.seeds.len()].iter().map(move |sum| sum / size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(pair: usize, cluster: &str, seed: u64, value: f64) -> Observation {
        Observation { pair, cluster: cluster.to_owned(), seed, value }
    }

    /// Pairs 0 and 1 in cluster `a`, pair 2 in cluster `b`, seeds 3 and 7.
    fn study() -> Vec<Observation> {
        vec![
            observation(2, "b", 7, 0.5),
            observation(0, "a", 3, 1.0),
            observation(1, "a", 3, 0.0),
            observation(2, "b", 3, 1.0),
            observation(0, "a", 7, 1.0),
            observation(1, "a", 7, 1.0),
        ]
    }

    fn error(observations: Vec<Observation>) -> TableError {
        Table::from_pairs(observations).expect_err("an error")
    }

    #[test]
    fn pairs_are_summed_within_their_cluster() {
        let table = Table::from_pairs(study()).expect("complete");
        assert_eq!((table.clusters(), table.pairs(), table.seeds()), (2, 3, &[3, 7][..]));
        assert_eq!(table.cell_means(0).collect::<Vec<_>>(), [0.5, 1.0]);
        assert_eq!(table.cell_means(1).collect::<Vec<_>>(), [1.0, 0.5]);
        assert_eq!(table.weights(), [2.0 / 3.0, 1.0 / 3.0]);
    }

    #[test]
    fn a_missing_value_is_named() {
        let mut incomplete = study();
        incomplete.remove(0);
        assert_eq!(error(incomplete), TableError::MissingPair { pair: 2, seed: 7 });
        let ragged = Table::from_sums(&[1, 2], &[vec![1.0, 2.0], vec![1.0]]);
        assert_eq!(ragged, Err(TableError::MissingCell { cluster: "1".to_owned(), seed: 1 }));
        let short = Table::from_sums(&[1, 2], &[vec![1.0, 2.0]]);
        assert_eq!(short, Err(TableError::MissingCell { cluster: "1".to_owned(), seed: 0 }));
    }

    #[test]
    fn inconsistent_values_are_refused() {
        let with = |o| error(study().into_iter().chain([o]).collect());
        assert_eq!(with(observation(2, "b", 7, 0.5)), TableError::Duplicate { pair: 2, seed: 7 });
        assert_eq!(
            with(observation(0, "c", 9, 0.5)).to_string(),
            "pair 0 is in the clusters `a` and `c`"
        );
        assert_eq!(
            with(observation(0, "a", 9, f64::NAN)),
            TableError::NotFinite { cluster: "a".to_owned(), seed: 9 }
        );
        assert_eq!(error(vec![]), TableError::Empty);
        assert_eq!(Table::from_sums(&[], &[]), Err(TableError::Empty));
        assert_eq!(Table::from_sums(&[1], &[vec![]]), Err(TableError::Empty));
        assert_eq!(
            Table::from_sums(&[0], &[vec![1.0]]),
            Err(TableError::EmptyCluster { cluster: "0".to_owned() })
        );
    }

    #[test]
    fn a_difference_is_taken_pair_by_pair() {
        let first = Table::from_pairs(study()).expect("complete");
        let other = study().into_iter().map(|o| Observation { value: 0.25, ..o });
        let difference = first.minus(&Table::from_pairs(other).expect("complete")).expect("match");
        assert_eq!(difference.cell_means(0).collect::<Vec<_>>(), [0.25, 0.75]);
    }

    #[test]
    fn a_pair_or_seed_without_a_match_is_named() {
        let table = |o: Vec<Observation>| Table::from_pairs(o).expect("complete");
        let all = table(study());
        let without = |drop: fn(&Observation) -> bool| {
            table(study().into_iter().filter(|o| !drop(o)).collect())
        };
        let less = without(|o| o.pair == 1);
        let cluster = "a".to_owned();
        assert_eq!(
            all.minus(&less),
            Err(TableError::UnmatchedPair { pair: 1, cluster: cluster.clone(), table: "first" })
        );
        assert_eq!(
            less.minus(&all),
            Err(TableError::UnmatchedPair { pair: 1, cluster, table: "second" })
        );
        assert_eq!(
            all.minus(&without(|o| o.seed == 3)),
            Err(TableError::UnmatchedSeed { seed: 3, table: "first" })
        );
        let moved = study().into_iter().map(|mut o| {
            if o.pair == 1 {
                o.cluster = "b".to_owned();
            }
            o
        });
        assert_eq!(
            all.minus(&table(moved.collect())),
            Err(TableError::TwoClusters { pair: 1, first: "a".to_owned(), second: "b".to_owned() })
        );
    }
}
