//! Pools the states of a completion's tokens into one vector.

use reprpo_plugin::prelude::{self, *};

use super::outliers::WithoutOutliers;

/// How the states of a completion's tokens are pooled into one vector.
#[choice]
pub enum Pooling {
    /// The mean over the completion's tokens.
    #[default]
    Completion,
    /// The mean over the prompt's and the completion's tokens.
    All,
    /// The last token.
    Last,
    /// The mean over the positions that exist in both sequences of the pair, including the prompt.
    Common,
    /// The mean over prompt and completion, as in the original project. It leaves out tokens whose
    /// transformed states have norms more than one standard deviation above the mean.
    Original,
}

impl Pooling {
    /// Returns the [`Pooling`](prelude::Pooling) of the plugin API that covers the same tokens.
    pub fn tokens(self) -> prelude::Pooling {
        match self {
            Self::Completion => prelude::Pooling::Completion,
            Self::All | Self::Original => prelude::Pooling::All,
            Self::Last => prelude::Pooling::Last,
            Self::Common => prelude::Pooling::Common,
        }
    }

    /// Returns a pooling that depends on the transformed states, or `None` if the pooling only
    /// depends on token positions.
    pub fn of_states(self) -> Option<Box<dyn TokenPooling>> {
        (self == Self::Original).then(|| Box::new(WithoutOutliers) as _)
    }
}
