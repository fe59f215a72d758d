//! Correction of p values for several tests.

/// A number that is not a p value.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("p value {index} must be between 0 and 1, got {value}")]
pub struct InvalidPValue {
    /// Position in the list, from 0.
    pub index: usize,
    /// The invalid value.
    pub value: f64,
}

/// Adjusts p values by Holm's step-down method (Holm 1979), in the order of the input.
///
/// Rejecting all hypotheses with an adjusted value of at most α keeps the probability of one or
/// more false rejections at α or below, for any dependence between the tests.
///
/// # Errors
/// Fails if a value is not between 0 and 1.
pub fn holm(p_values: &[f64]) -> Result<Vec<f64>, InvalidPValue> {
    if let Some(index) = p_values.iter().position(|p| !(0.0..=1.0).contains(p)) {
        return Err(InvalidPValue { index, value: p_values[index] });
    }
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut largest = 0.0_f64;
    for (rank, &i) in order.iter().enumerate() {
        largest = largest.max((p_values.len() - rank) as f64 * p_values[i]).min(1.0);
        adjusted[i] = largest;
    }
    Ok(adjusted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjusted_values_equal_values_computed_by_hand() {
        // Sorted: 0.005·5 = 0.025, 0.01·4 = 0.04, 0.03·3 = 0.09, 0.04·2 = 0.08 → 0.09, 0.6.
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005, 0.6]).expect("valid");
        for (a, b) in adjusted.iter().zip([0.04, 0.09, 0.09, 0.025, 0.6]) {
            assert!((a - b).abs() < 1e-12, "{a} {b}");
        }
        assert_eq!(holm(&[0.5, 0.9]), Ok(vec![1.0, 1.0]));
        assert_eq!(holm(&[]), Ok(vec![]));
    }

    #[test]
    fn a_value_that_is_not_a_probability_is_named() {
        assert_eq!(holm(&[0.1, 1.5]), Err(InvalidPValue { index: 1, value: 1.5 }));
        assert!(holm(&[f64::NAN]).is_err());
    }
}
