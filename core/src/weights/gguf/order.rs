//! Where llama.cpp's tensors differ from Hugging Face's in more than their name: rows in another
//! order, and norms with another origin.

/// In which order a tensor stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Hugging Face's.
    Same,
    /// In each head, the two rows that rotate together are neighbours: (half, i) is row 2·i + half.
    /// Only the first `turned` rows of a head rotate. The others keep their places.
    Pairs {
        /// Number of heads.
        heads: usize,
        /// Number of rows of each head that rotate.
        turned: usize,
    },
    /// All queries, then all keys, then all values, where Hugging Face has each of so many heads'
    /// three together.
    Thirds(usize),
    /// Rows and columns change places.
    Transposed,
}

impl Order {
    /// How many equal groups of rows it takes to put them in order.
    fn groups(self) -> Option<(usize, usize)> {
        match self {
            Self::Same | Self::Transposed => None,
            Self::Pairs { heads, .. } => Some((heads, 2)),
            Self::Thirds(heads) => Some((heads, 3)),
        }
    }

    /// The heads that cannot share so many rows evenly, where they cannot.
    pub fn misfit(self, rows: i64) -> Option<usize> {
        let (heads, parts) = self.groups()?;
        let groups = heads
            .checked_mul(parts)
            .and_then(|groups| i64::try_from(groups).ok())
            .filter(|groups| *groups > 0);
        if groups.is_some_and(|groups| rows % groups == 0) { None } else { Some(heads) }
    }

    /// How many of so many rows change places among themselves, and with no others.
    pub fn together(self, rows: usize) -> Option<usize> {
        match self {
            Self::Same | Self::Transposed => None,
            Self::Pairs { heads, .. } => Some(rows / heads),
            Self::Thirds(_) => Some(rows),
        }
    }

    /// The row of the file that is row `r` of Hugging Face's `rows`. Both may be counted from the
    /// start of rows that change places among themselves.
    pub fn row_of(self, r: usize, rows: usize) -> usize {
        match self {
            Self::Same | Self::Transposed => r,
            Self::Pairs { heads, turned } => {
                let head = rows / heads;
                let (start, within) = (r / head * head, r % head);
                // If the head is smaller than `turned`, all of its rows rotate.
                let turned = if (2..=head).contains(&turned) { turned } else { head };
                if within >= turned {
                    r
                } else {
                    start + within % (turned / 2) * 2 + within / (turned / 2)
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
