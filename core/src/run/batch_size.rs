//! Chooses the number of pairs of a micro-batch, for `train.batch = "auto"`.

use super::adapter::AdapterChoice;
use super::assembled::{Assembled, Parts};
use crate::api::{Intervention, StepInfo};
use crate::config::TrainConfig;
use crate::error::{Context, Error, Result};
use crate::ffi;
use crate::memory;
use crate::model::Model;
use crate::reference::{FitSites, ReferenceCache};
use crate::report::Progress;
use crate::text::TokenPair;
use crate::train::{Taps, accumulate};

/// The largest part of the free memory that a micro-batch may need.
const USABLE: f64 = 0.8;
/// Number of pairs of the larger measurement on the CPU.
const MEASURED: usize = 4;

/// The largest number of pairs that fits, the memory in bytes that they need in addition to the
/// model, and the free memory in bytes, if it is known.
type Largest = (usize, f64, Option<f64>);

/// A choice of the micro-batches of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Number of pairs in a micro-batch.
    pub batch: usize,
    /// Number of micro-batches in a step.
    pub accumulate: usize,
    /// Memory that a micro-batch needs in addition to the model, in GB.
    needed: f64,
    /// Free memory before the first micro-batch, in GB; `None` on a GPU.
    free: Option<f64>,
}

impl Choice {
    /// The choice as a line for the user.
    pub fn describe(&self) -> String {
        let of = |count: usize, what: &str| format!("{count} {what}{}", plural(count));
        format!(
            "`train.batch` is `auto`: a step of {} has {} of up to {}, because a micro-batch of \
                the longest pairs needs about {:.2} GB{}",
            of(self.batch * self.accumulate, "pair"),
            match self.accumulate {
                1 => "1 micro-batch".to_owned(),
                n => format!("{n} micro-batches"),
            },
            of(self.batch, "pair"),
            self.needed,
            self.free
                .map_or_else(String::new, |free| format!(" of the {free:.1} GB that are free"))
        )
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Takes trial steps that leave no trace. Each has its own adapter and optimiser.
pub struct Trial<'a, M> {
    /// The frozen model.
    pub model: &'a Model,
    /// The adapter to train.
    pub adapter: &'a AdapterChoice,
    /// The pairs to train on.
    pub pairs: &'a [TokenPair],
    /// The settings of the training.
    pub train: &'a TrainConfig,
    /// The sites whose states the method sees before the first step; `None` if it needs none.
    pub fit_sites: Option<&'a FitSites>,
    /// Builds another instance of the method and its taps.
    pub method: M,
}

impl<M: Fn() -> Result<(Box<dyn Intervention>, Taps)>> Trial<'_, M> {
    /// Chooses the largest micro-batches that fit into memory and divide a step evenly.
    ///
    /// The sizes are judged by the longest pairs. On a GPU, the sizes are tried from the largest to
    /// the smallest. On the CPU, a size that does not fit could end the process, so the need of
    /// larger micro-batches is extrapolated from small ones.
    ///
    /// # Errors
    /// Fails if the loss of a pair depends on its micro-batch, if the system does not report its
    /// memory, if a single pair does not fit, or if a step fails for another reason.
    pub fn choose(&self, progress: &mut dyn Progress) -> Result<Choice> {
        let (intervention, _) = (self.method)()?;
        if intervention.needs().depends_on_batch {
            return Err(Error::new(
                "`train.batch` is `auto`, but the loss of this method depends on which pairs are \
                    in a micro-batch, so its results would depend on the free memory",
            )
            .hint("set `train.batch` to a number"));
        }
        progress.message("measuring how many pairs fit into memory");
        let mut longest: Vec<&TokenPair> = self.pairs.iter().collect();
        longest.sort_by_key(|pair| std::cmp::Reverse(pair.tokens()));
        let pairs = self.train.step_pairs();
        let sizes: Vec<usize> = (1..=pairs).rev().filter(|n| pairs.is_multiple_of(*n)).collect();
        let (batch, needed, free) = if self.model.device().is_cuda() {
            self.largest_on_gpu(&sizes, &longest)
        } else {
            self.largest_on_cpu(&sizes, &longest)
        }
        .within(|| "cannot choose `train.batch`".to_owned())?;
        Ok(Choice {
            batch,
            accumulate: pairs / batch,
            needed: needed / 1e9,
            free: free.map(|bytes| bytes / 1e9),
        })
    }

    fn largest_on_gpu(&self, sizes: &[usize], longest: &[&TokenPair]) -> Result<Largest> {
        let device = self.model.device();
        let (mut last, before) = (None, ffi::cuda_memory(device)?.allocated as f64);
        for &size in sizes {
            ffi::cuda_reset_peak(device)?;
            match self.step(&longest[..size.min(longest.len())]) {
                Ok(()) => {
                    let peak = ffi::cuda_memory(device)?.peak_allocated as f64;
                    ffi::cuda_empty_cache()?;
                    return Ok((size, peak - before, None));
                }
                Err(e) if e.out_of_memory().is_some() => last = Some(e),
                Err(e) => return Err(e),
            }
            ffi::cuda_empty_cache()?;
        }
        Err(last.unwrap_or_else(|| Error::internal("a step has no pairs")))
    }

    fn largest_on_cpu(&self, sizes: &[usize], longest: &[&TokenPair]) -> Result<Largest> {
        let unknown =
            || Error::new("this system does not report its memory").hint("set a number of pairs");
        let free = memory::free().ok_or_else(unknown)? * 1e9;
        let before = memory::resident().ok_or_else(unknown)?;
        let most = USABLE * free;
        let measured = |pairs: &[&TokenPair]| -> Result<f64> {
            if !memory::reset_process_peak() {
                return Err(unknown());
            }
            self.step(pairs)?;
            Ok((memory::process_peak().ok_or_else(unknown)? - before).max(0.0))
        };
        let tokens =
            |n: usize| longest.iter().take(n).map(|pair| pair.tokens()).sum::<usize>() as f64;
        let one = measured(&longest[..1])?;
        let several = MEASURED.min(longest.len()).min(sizes[0]);
        if several == 1 {
            return Ok((1, one, Some(free)));
        }
        // Memory grows in proportion to the tokens. If even the larger measurement might not fit,
        // assume that nothing is shared by the two.
        let per_token = if one * tokens(several) / tokens(1) < most {
            (measured(&longest[..several])? - one).max(0.0) / (tokens(several) - tokens(1))
        } else {
            one / tokens(1)
        };
        let needed = |n: usize| one + per_token * (tokens(n) - tokens(1));
        let size = sizes.iter().copied().find(|n| needed(*n) < most).unwrap_or(1);
        Ok((size, needed(size), Some(free)))
    }

    /// Takes a step on `pairs` as one micro-batch.
    fn step(&self, pairs: &[&TokenPair]) -> Result<()> {
        let (intervention, taps) = (self.method)()?;
        let parts = Parts {
            intervention,
            taps,
            adapter: self.adapter,
            cache: ReferenceCache::default(),
            leaves_flat_start: true,
        };
        let mut run = Assembled::new(self.model, parts, self.train)?;
        run.install_from(pairs, self.fit_sites, self.model, self.train.seed)?;
        let info = StepInfo { step: 0, steps: 1, seed: self.train.seed };
        run.objective.set_metrics(true);
        accumulate(
            &mut run.objective,
            self.model,
            &run.adapted,
            pairs,
            pairs.len(),
            info,
            self.train.seed as i64,
        )?;
        run.optimiser.step(0.0)
    }
}
