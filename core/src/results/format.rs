//! Formats numbers for tables and plots.

use super::figures::Figure;

/// The sign for a missing value.
pub(crate) const MISSING: &str = "–";

/// Formats a number with a fixed number of digits after the point, with a true minus sign.
pub fn number(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return MISSING.to_owned();
    }
    let text = format!("{value:.digits$}");
    let zero = text.bytes().all(|b| !b.is_ascii_digit() || b == b'0');
    match text.strip_prefix('-') {
        Some(rest) if zero => rest.to_owned(),
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

/// Formats a number with its sign, or without a sign if it rounds to zero.
pub fn signed(value: f64, digits: usize) -> String {
    let text = number(value, digits);
    let zero = text.bytes().all(|b| !b.is_ascii_digit() || b == b'0');
    if zero || text.starts_with('−') || text == MISSING { text } else { format!("+{text}") }
}

/// Formats a p value.
pub fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".to_owned() } else { format!("{p:.3}") }
}

/// Formats an optional number.
pub(crate) fn optional(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| MISSING.to_owned(), show)
}

/// Formats a figure with its interval, if it has one.
pub(crate) fn with_interval(figure: Option<&Figure>, show: impl Fn(f64) -> String) -> String {
    let Some(figure) = figure else { return MISSING.to_owned() };
    match figure.interval() {
        Some((low, high)) => format!("{} [{}, {}]", show(figure.mean), show(low), show(high)),
        None => show(figure.mean),
    }
}

/// Formats a learning rate, e.g. `3e-4`.
pub(crate) fn rate(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 { format!("{value:e}") } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_true_minus_signs_and_no_negative_zero() {
        assert_eq!([number(-1.25, 1), number(-0.01, 1), number(f64::NAN, 1)], ["−1.2", "0.0", "–"]);
        assert_eq!([signed(2.0, 1), signed(-2.0, 1), signed(0.004, 2)], ["+2.0", "−2.0", "0.00"]);
        assert_eq!([p_value(0.0004), p_value(0.0425)], ["< 0.001", "0.043"]);
        assert_eq!([rate(3e-4), rate(0.5)], ["3e-4", "0.5"]);
    }
}
