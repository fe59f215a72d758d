//! Sizes in bytes, for people.

/// Formats a number of bytes with a decimal unit, e.g. `32 kB` or `1.5 GB`.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_the_unit_that_fits() {
        let shown = [7, 32_100, 1_500_000, 12_000_000_000].map(size);
        assert_eq!(shown, ["7 B", "32 kB", "1.5 MB", "12.0 GB"]);
    }
}
