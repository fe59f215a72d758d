//! Quantiles and probabilities of the normal, t and χ² distributions.

use statrs::distribution::{ChiSquared, ContinuousCDF};
use statrs::function::beta::beta_reg;
use statrs::function::erf::erfc;

/// Degrees of freedom from which the t distribution is replaced with the normal distribution. The
/// quantiles then differ by less than 1e-5.
const NORMAL: f64 = 1e6;

/// Φ(x), the distribution function of the standard normal distribution.
pub(super) fn normal_cdf(x: f64) -> f64 {
    0.5 * erfc(-x / std::f64::consts::SQRT_2)
}

/// P(|T| > t) of the t distribution with `df` > 0 degrees of freedom, for t ≥ 0.
pub(super) fn two_sided_p(t: f64, df: f64) -> f64 {
    if df >= NORMAL {
        return erfc(t / std::f64::consts::SQRT_2);
    }
    beta_reg(df / 2.0, 0.5, df / (df + t * t))
}

/// The t > 0 with P(|T| > t) = p, for 0 < p < 1 and `df` > 0 degrees of freedom.
pub(super) fn two_sided_t(p: f64, df: f64) -> f64 {
    // Newton's method for log P as a function of log t. This function is concave, and nearly a
    // straight line in the tails.
    let target = p.ln();
    let (mut low, mut high) = (-60.0_f64, 700.0_f64);
    let mut x = 0.5_f64;
    for _ in 0..200 {
        let value = two_sided_p(x.exp(), df);
        let error = value.ln() - target;
        if error > 0.0 {
            low = x;
        } else {
            high = x;
        }
        let step = 1e-5;
        let slope = (two_sided_p((x + step).exp(), df).ln() - value.ln()) / step;
        let newton = x - error / slope;
        let next = if newton > low && newton < high { newton } else { 0.5 * (low + high) };
        if (next - x).abs() < 1e-12 {
            return next.exp();
        }
        x = next;
    }
    x.exp()
}

/// The means of χ²(df)/df over `n` ranges of equal probability, approximated by the quantiles at
/// their centres. A quadrature with equal weights.
pub(super) fn scaled_chi_squared(df: f64, n: usize) -> Vec<f64> {
    match ChiSquared::new(df) {
        Ok(chi) => (0..n).map(|i| chi.inverse_cdf((i as f64 + 0.5) / n as f64) / df).collect(),
        // Only for degrees of freedom that are not positive and finite.
        Err(_) => vec![1.0; n],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a / b - 1.0).abs() < 1e-7, "{a} {b}");
    }

    #[test]
    fn quantiles_equal_those_of_scipy() {
        // scipy.stats.t.isf(p / 2, df)
        for (p, df, t) in [
            (0.05, 1.0, 12.706204736174705),
            (0.05, 2.0, 4.302652729749464),
            (0.05, 2.5, 3.5746548420036834),
            (0.05, 59.0, 2.000995378088268),
            (0.05, 20000.0, 1.9600826051581353),
            (1e-9, 4.0, 278.3097799244099),
            (1e-30, 249.0, 13.262028396282624),
            (0.9, 3.0, 0.1365981993536989),
            (0.05, f64::INFINITY, 1.959963984540054),
        ] {
            close(two_sided_t(p, df), t);
            close(two_sided_p(t, df), p);
        }
    }

    #[test]
    fn probabilities_equal_those_of_scipy() {
        // scipy.stats.norm.cdf(x)
        close(normal_cdf(-1.96), 0.024997895148220435);
        close(normal_cdf(0.3), 0.6179114221889526);
        close(normal_cdf(-9.0), 1.1285884059538324e-19);
    }

    #[test]
    fn the_nodes_are_quantiles_of_chi_squared() {
        // scipy.stats.chi2.ppf([0.25, 0.75], df) / df
        for (df, nodes) in [(2.0, [0.28768207, 1.38629436]), (59.5, [0.87100612, 1.11681396])] {
            for (a, b) in scaled_chi_squared(df, 2).into_iter().zip(nodes) {
                assert!((a - b).abs() < 1e-7, "{a} {b}");
            }
        }
    }
}
