//! Accuracy on a shifted distribution, relative to the accuracy after training on it (GENIES,
//! Clymer et al. 2023).

/// Elicitation: `accuracy` / `tuned`.
///
/// `accuracy` is the accuracy of a method on the target distribution. `tuned` is the tuned
/// capability: the accuracy of a model that was trained on the target distribution itself. Returns
/// `None` if `tuned` is 0 or if a value is not between 0 and 1.
pub fn elicitation(accuracy: f64, tuned: f64) -> Option<f64> {
    let valid = is_share(accuracy) && is_share(tuned) && tuned > 0.0;
    valid.then(|| accuracy / tuned)
}

/// Differential elicitation: (`accuracy` − `zero_shot`) / `tuned`.
///
/// `zero_shot` is the accuracy of the base model on the target distribution. Returns `None` if
/// `tuned` is 0 or if a value is not between 0 and 1.
pub fn differential_elicitation(accuracy: f64, zero_shot: f64, tuned: f64) -> Option<f64> {
    let valid = is_share(accuracy) && is_share(zero_shot) && is_share(tuned) && tuned > 0.0;
    valid.then(|| (accuracy - zero_shot) / tuned)
}

fn is_share(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elicitation_is_relative_to_the_tuned_capability() {
        // Published accuracies of openllama-3b from us_history_textbook to us_history_fiction.
        let (lora, zero_shot, tuned) = (0.949, 0.712, 0.997);
        assert_eq!(elicitation(lora, tuned), Some(lora / tuned));
        let gain = differential_elicitation(lora, zero_shot, tuned).expect("valid");
        assert!((gain - 0.237 / 0.997).abs() < 1e-12);
        assert!(differential_elicitation(0.3, 0.4, 0.8).expect("valid") < 0.0);
    }

    #[test]
    fn without_a_tuned_capability_there_is_no_elicitation() {
        assert_eq!(elicitation(0.5, 0.0), None);
        assert_eq!(elicitation(f64::NAN, 0.5), None);
        assert_eq!(differential_elicitation(0.5, 1.5, 0.5), None);
    }
}
