//! Learning-rate schedules. Each one gives the same values as the schedule of the same name in
//! transformers.

use crate::config::{Schedule, TrainConfig};

/// Returns the learning rate of step `step` (from 0) in a run of `steps` steps.
pub fn learning_rate(config: &TrainConfig, step: usize, steps: usize) -> f64 {
    let warmup =
        if config.warmup < 1.0 { (config.warmup * steps as f64).ceil() } else { config.warmup };
    let (t, total) = (step as f64, steps as f64);
    if t < warmup {
        return config.lr * t / warmup.max(1.0);
    }
    let progress = (t - warmup) / (total - warmup).max(1.0);
    config.lr
        * match config.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => (1.0 - progress).max(0.0),
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Schedule::Wsd => {
                let decay = (config.decay * total).ceil().max(1.0);
                let into = (t - (total - decay)) / decay;
                if into <= 0.0 {
                    1.0
                } else {
                    0.5 * (1.0 + (std::f64::consts::PI * into.min(1.0)).cos())
                }
            }
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule, warmup: f64) -> Vec<f64> {
        let config =
            TrainConfig { lr: 1.0, schedule, warmup, decay: 0.4, ..TrainConfig::default() };
        (0..10).map(|s| (learning_rate(&config, s, 10) * 1000.0).round() / 1000.0).collect()
    }

    #[test]
    fn each_schedule_has_the_expected_learning_rates() {
        assert_eq!(rates(Schedule::Constant, 0.0), [1.0; 10]);
        assert_eq!(rates(Schedule::Constant, 2.0)[..3], [0.0, 0.5, 1.0]);
        assert_eq!(
            rates(Schedule::Linear, 0.0),
            [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
        );
        assert_eq!(rates(Schedule::Linear, 0.2)[..4], [0.0, 0.5, 1.0, 0.875]);
        assert_eq!(rates(Schedule::Cosine, 0.0)[5], 0.5);
        assert_eq!(
            rates(Schedule::Wsd, 0.1),
            [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.854, 0.5, 0.146]
        );
    }
}
