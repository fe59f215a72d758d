//! Values of `--coefficient`.

/// Reads the coefficient of an adapter's change. −0 is read as 0.
///
/// # Errors
/// Fails if the text is not a finite number.
pub fn coefficient(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value + 0.0),
        Ok(_) => Err("a coefficient must be a finite number".to_owned()),
        Err(_) if text.contains(',') => {
            Err("this command takes a single coefficient; `reprpo eval` takes a list".to_owned())
        }
        Err(_) => Err("a coefficient must be a number, such as 0.5 or -1".to_owned()),
    }
}
