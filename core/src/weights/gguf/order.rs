//! The order of tensor rows in llama.cpp. It may differ from Hugging Face's order.

/// The order of a tensor's rows in the file, compared to Hugging Face's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The order is the same.
    Same,
    /// In each head, rows that are rotated together are adjacent. Among the first `rotated` rows,
    /// row i of the first half becomes row 2·i. Row i of the second half becomes row 2·i + 1. The
    /// remaining rows keep their positions.
    Pairs {
        /// Number of heads.
        heads: usize,
        /// Number of rows in each head that are rotated.
        rotated: usize,
    },
    /// All queries come first, then all keys, then all values. In Hugging Face's order, the
    /// queries, keys and values of each head are adjacent. The field is the number of heads.
    Thirds(usize),
    /// The matrix is transposed.
    Transposed,
}

impl Order {
    /// Number of heads, and number of equal parts that each head is divided into. The number of
    /// rows must be divisible by their product.
    fn groups(self) -> Option<(usize, usize)> {
        match self {
            Self::Same | Self::Transposed => None,
            Self::Pairs { heads, .. } => Some((heads, 2)),
            Self::Thirds(heads) => Some((heads, 3)),
        }
    }

    /// Returns `None` if `rows` can be divided evenly into heads and their parts. Otherwise,
    /// returns the number of heads.
    pub fn misfit(self, rows: i64) -> Option<usize> {
        let (heads, parts) = self.groups()?;
        let groups = heads
            .checked_mul(parts)
            .and_then(|groups| i64::try_from(groups).ok())
            .filter(|groups| *groups > 0);
        if groups.is_some_and(|groups| rows % groups == 0) { None } else { Some(heads) }
    }

    /// Returns the size of a group of adjacent rows. Rows are only permuted within their group.
    /// Returns `None` if rows are not permuted.
    pub fn together(self, rows: usize) -> Option<usize> {
        match self {
            Self::Same | Self::Transposed => None,
            Self::Pairs { heads, .. } => Some(rows / heads),
            Self::Thirds(_) => Some(rows),
        }
    }

    /// Converts the row index `r` in Hugging Face's order to the file's order. `rows` is the number
    /// of rows. Both indices may also be relative to the start of a group, see
    /// [`together`](Self::together).
    pub fn row_of(self, r: usize, rows: usize) -> usize {
        match self {
            Self::Same | Self::Transposed => r,
            Self::Pairs { heads, rotated } => {
                let head = rows / heads;
                let (start, within) = (r / head * head, r % head);
                // If `rotated` is out of range, the whole head is rotated.
                let rotated = if (2..=head).contains(&rotated) { rotated } else { head };
                if within >= rotated {
                    r
                } else {
                    start + within % (rotated / 2) * 2 + within / (rotated / 2)
                }
            }
            Self::Thirds(heads) => {
                let d = rows / heads / 3;
                let (head, part, within) = (r / (3 * d), r / d % 3, r % d);
                (part * heads + head) * d + within
            }
        }
    }
}
