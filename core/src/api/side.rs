//! The two sides of a preference pair: the chosen and the rejected completion.

use tch::Tensor;

/// One of the two completions of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The preferred completion y⁺.
    Chosen,
    /// The other completion y⁻.
    Rejected,
}

impl Side {
    /// Both sides, the chosen one first.
    pub const BOTH: [Self; 2] = [Self::Chosen, Self::Rejected];

    /// `chosen` or `rejected`, as in the names of metrics and columns.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::Rejected => "rejected",
        }
    }
}

/// A value for each side of a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sides<T = Tensor> {
    /// The value for the chosen completion.
    pub chosen: T,
    /// The value for the rejected completion.
    pub rejected: T,
}

impl<T> Sides<T> {
    /// Calls `value` for each side, the chosen one first.
    pub fn of(mut value: impl FnMut(Side) -> T) -> Self {
        let chosen = value(Side::Chosen);
        Self { chosen, rejected: value(Side::Rejected) }
    }

    /// Calls `value` for each side, the chosen one first.
    ///
    /// # Errors
    /// Fails if `value` does.
    pub fn try_of<E>(mut value: impl FnMut(Side) -> Result<T, E>) -> Result<Self, E> {
        let chosen = value(Side::Chosen)?;
        Ok(Self { chosen, rejected: value(Side::Rejected)? })
    }

    /// The value of one side.
    pub const fn get(&self, side: Side) -> &T {
        match side {
            Side::Chosen => &self.chosen,
            Side::Rejected => &self.rejected,
        }
    }

    /// A mutable reference to the value of one side.
    pub const fn get_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Chosen => &mut self.chosen,
            Side::Rejected => &mut self.rejected,
        }
    }

    /// References to both values.
    pub const fn as_ref(&self) -> Sides<&T> {
        Sides { chosen: &self.chosen, rejected: &self.rejected }
    }

    /// Applies `f` to both values.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> Sides<U> {
        Sides { chosen: f(self.chosen), rejected: f(self.rejected) }
    }

    /// Applies `f` to both values.
    ///
    /// # Errors
    /// Fails if `f` does.
    pub fn try_map<U, E>(self, mut f: impl FnMut(T) -> Result<U, E>) -> Result<Sides<U>, E> {
        Ok(Sides { chosen: f(self.chosen)?, rejected: f(self.rejected)? })
    }

    /// Combines the values of `self` and `other` into a tuple for each side.
    pub fn zip<U>(self, other: Sides<U>) -> Sides<(T, U)> {
        Sides { chosen: (self.chosen, other.chosen), rejected: (self.rejected, other.rejected) }
    }
}

impl<T> IntoIterator for Sides<T> {
    type Item = (Side, T);
    type IntoIter = std::array::IntoIter<(Side, T), 2>;

    /// Iterates over both sides and their values, the chosen one first.
    fn into_iter(self) -> Self::IntoIter {
        [(Side::Chosen, self.chosen), (Side::Rejected, self.rejected)].into_iter()
    }
}

/// A subset of the two completions of a pair, e.g. those whose log-probabilities a method needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Completions {
    /// Neither.
    #[default]
    None,
    /// Only the chosen completion.
    Chosen,
    /// Only the rejected completion.
    Rejected,
    /// Both completions.
    Both,
}

impl Completions {
    /// True if the set contains `side`.
    pub fn has(self, side: Side) -> bool {
        match side {
            Side::Chosen => matches!(self, Self::Chosen | Self::Both),
            Side::Rejected => matches!(self, Self::Rejected | Self::Both),
        }
    }

    /// True if the set is not empty.
    pub fn any(self) -> bool {
        self != Self::None
    }

    /// The sides in the set, the chosen one first.
    pub fn sides(self) -> impl Iterator<Item = Side> {
        Side::BOTH.into_iter().filter(move |side| self.has(*side))
    }

    /// The union of two sets.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match Sides::of(|side| self.has(side) || other.has(side)) {
            Sides { chosen: true, rejected: true } => Self::Both,
            Sides { chosen: true, rejected: false } => Self::Chosen,
            Sides { chosen: false, rejected: true } => Self::Rejected,
            Sides { chosen: false, rejected: false } => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zip_joins_the_values_of_the_same_side() {
        let words = Sides::of(Side::name);
        let joined =
            words.zip(Sides { chosen: 1, rejected: 2 }).map(|(word, n)| format!("{word} {n}"));
        assert_eq!(
            joined,
            Sides { chosen: "chosen 1".to_owned(), rejected: "rejected 2".to_owned() }
        );
        assert_eq!(joined.get(Side::Rejected), "rejected 2");
        assert_eq!(
            Sides::try_of(|side| if side == Side::Chosen { Ok(()) } else { Err(side) }),
            Err(Side::Rejected)
        );
    }

    #[test]
    fn a_union_contains_the_sides_of_both_sets() {
        use Completions::{Both, Chosen, None, Rejected};
        assert_eq!(
            [None.or(None), Chosen.or(Rejected), Rejected.or(None), Both.or(Chosen)],
            [None, Both, Rejected, Both]
        );
        assert!(Rejected.has(Side::Rejected) && !Rejected.has(Side::Chosen) && !None.any());
        assert_eq!(Both.sides().collect::<Vec<_>>(), Side::BOTH);
    }
}
