//! The order of rows in llama.cpp's tensors, which differs from Hugging Face's for some tensors.

/// The order of a tensor's rows in the file, compared with Hugging Face's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The order is the same.
    Same,
    /// The two rows of a head that rotate together are adjacent: row i of the first half is row
    /// 2·i, and row i of the second half is row 2·i + 1. Only the first `rotated` rows of a head
    /// rotate; the others keep their positions.
    Pairs {
        /// Number of heads.
        heads: usize,
        /// Number of rows of each head that rotate.
        rotated: usize,
    },
    /// The file has all queries, then all keys, then all values. In Hugging Face's order, the
    /// queries, keys and values of a head are adjacent. The field is the number of heads.
    Thirds(usize),
    /// The matrix is transposed.
    Transposed,
}

impl Order {
    /// Number of heads, and number of equal parts of each head. The rows must be divisible by their
    /// product.
    fn groups(self) -> Option<(usize, usize)> {
        match self {
            Self::Same | Self::Transposed => None,
            Self::Pairs { heads, .. } => Some((heads, 2)),
            Self::Thirds(heads) => Some((heads, 3)),
        }
    }

    /// Returns the number of heads if `rows` cannot be divided evenly among them, else `None`.
    pub fn misfit(self, rows: i64) -> Option<usize> {
        let (heads, parts) = self.groups()?;
        let groups = heads
            .checked_mul(parts)
            .and_then(|groups| i64::try_from(groups).ok())
            .filter(|groups| *groups > 0);
        if groups.is_some_and(|groups| rows % groups == 0) { None } else { Some(heads) }
    }

    /// Number of adjacent rows that are only reordered among themselves; `None` if rows are not
    /// reordered.
    pub fn together(self, rows: usize) -> Option<usize> {
        match self {
            Self::Same | Self::Transposed => None,
            Self::Pairs { heads, .. } => Some(rows / heads),
            Self::Thirds(_) => Some(rows),
        }
    }

    /// The index in the file of Hugging Face's row `r` of `rows`. Both indices may also be relative
    /// to a group of rows that are only reordered among themselves.
    pub fn row_of(self, r: usize, rows: usize) -> usize {
        match self {
            Self::Same | Self::Transposed => r,
            Self::Pairs { heads, rotated } => {
                let head = rows / heads;
                let (start, within) = (r / head * head, r % head);
                // If `rotated` is not a valid number of rows, all rows of the head rotate.
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
