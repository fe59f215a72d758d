//! Measures the wall time of the phases of training. A clock that is off only tests for `None`, and
//! does not synchronise with the GPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tch::{Cuda, Device};

/// A phase of an optimiser step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Selecting the pairs and arranging their tokens as a batch.
    Data,
    /// The reference: its pass over the batch, or reading its cached values.
    Reference,
    /// The policy's pass over the blocks, pooling, transforms and the method's loss.
    Forward,
    /// The log-probabilities of the policy, with the gradient of the output head.
    Head,
    /// The backward pass, without the hooks of the method.
    Backward,
    /// The changes that the method makes to gradients, in the backward pass and after it.
    Hooks,
    /// Clipping and the step of AdamW.
    Optimiser,
    /// Computing the metrics and copying them from the device.
    Logging,
}

impl Phase {
    /// All phases, in the order in which a step first reaches them.
    pub const ALL: [Phase; 8] = [
        Phase::Data,
        Phase::Reference,
        Phase::Forward,
        Phase::Head,
        Phase::Backward,
        Phase::Hooks,
        Phase::Optimiser,
        Phase::Logging,
    ];

    /// The name in tables and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Data => "data",
            Phase::Reference => "reference",
            Phase::Forward => "forward",
            Phase::Head => "head",
            Phase::Backward => "backward",
            Phase::Hooks => "hooks",
            Phase::Optimiser => "optimiser",
            Phase::Logging => "logging",
        }
    }
}

/// The time of each phase, indexed by `Phase as usize`.
pub type PhaseTimes = [Duration; Phase::ALL.len()];

/// A clock that adds up the wall time of each phase. Copies share their times. The default clock is
/// off.
#[derive(Clone, Debug, Default)]
pub struct PhaseClock(Option<Arc<Running>>);

#[derive(Debug)]
struct Running {
    device: Device,
    /// Nanoseconds of each phase.
    times: [AtomicU64; Phase::ALL.len()],
}

impl Running {
    /// Waits until the device is idle, so that the device's work counts for the current phase.
    fn synchronise(&self) {
        if let Device::Cuda(index) = self.device {
            Cuda::synchronize(index as i64);
        }
    }

    /// Total time of all phases in nanoseconds.
    fn total(&self) -> u64 {
        self.times.iter().map(|time| time.load(Ordering::Relaxed)).sum()
    }
}

impl PhaseClock {
    /// Creates a clock that is on, for work on `device`.
    pub fn running(device: Device) -> Self {
        Self(Some(Arc::new(Running { device, times: Default::default() })))
    }

    /// Runs `work` and adds its duration to `phase`. Measurements inside `work` are subtracted,
    /// because they count for their own phases. This includes measurements on threads that `work`
    /// waits for.
    pub fn measure<T>(&self, phase: Phase, work: impl FnOnce() -> T) -> T {
        let Some(running) = &self.0 else { return work() };
        running.synchronise();
        let (begin, before) = (Instant::now(), running.total());
        let result = work();
        running.synchronise();
        let inner = running.total() - before;
        let own = (begin.elapsed().as_nanos() as u64).saturating_sub(inner);
        running.times[phase as usize].fetch_add(own, Ordering::Relaxed);
        result
    }

    /// Returns the times since the last call, and sets them to zero. All are zero if the clock is
    /// off.
    pub fn take(&self) -> PhaseTimes {
        self.0.as_ref().map_or_else(PhaseTimes::default, |running| {
            std::array::from_fn(|i| {
                Duration::from_nanos(running.times[i].swap(0, Ordering::Relaxed))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{self, sleep};

    use super::*;

    fn milliseconds(times: &PhaseTimes, phase: Phase) -> u128 {
        times[phase as usize].as_millis()
    }

    #[test]
    fn inner_measurements_do_not_count_for_the_outer_phase() {
        let clock = PhaseClock::running(Device::Cpu);
        let begin = Instant::now();
        clock.measure(Phase::Backward, || {
            sleep(Duration::from_millis(20));
            let inner = clock.clone();
            let hook = move || inner.measure(Phase::Hooks, || sleep(Duration::from_millis(60)));
            thread::spawn(hook).join().expect("the hook ends");
        });
        let whole = begin.elapsed();
        let times = clock.take();
        let [backward, hooks] =
            [Phase::Backward, Phase::Hooks].map(|phase| milliseconds(&times, phase));
        assert!(backward >= 20 && hooks >= 60, "{times:?}");
        let sum: Duration = times.iter().sum();
        assert!(sum <= whole && sum.as_millis() + 10 >= whole.as_millis(), "{sum:?} of {whole:?}");
        assert_eq!(clock.take(), PhaseTimes::default());
    }

    #[test]
    fn a_clock_that_is_off_only_runs_the_work() {
        let clock = PhaseClock::default();
        assert_eq!(clock.measure(Phase::Data, || 7), 7);
        assert_eq!(clock.take(), PhaseTimes::default());
    }

    #[test]
    fn the_order_of_the_phases_is_the_order_of_their_times() {
        for (i, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, i);
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
        }
    }
}
