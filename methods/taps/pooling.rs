//! How a tap pools the tokens of a completion.

use reprpo_plugin::prelude::{self, *};

use super::outliers::WithoutOutliers;

/// How the tokens of one completion become one vector.
#[choice]
pub enum Pooling {
    /// The mean over the completion's tokens.
    #[default]
    Completion,
    /// The mean over the prompt's and the completion's tokens.
    All,
    /// The last token.
    Last,
    /// The mean over the positions that both sequences of the pair have, prompt included.
    Common,
    /// The mean over prompt and completion without the tokens whose transformed state is longer
    /// than one standard deviation above the sequence's mean, as the original project pools.
    Original,
}

impl Pooling {
    /// The engine's pooling over the same tokens.
    pub fn tokens(self) -> prelude::Pooling {
        match self {
            Self::Completion => prelude::Pooling::Completion,
            Self::All | Self::Original => prelude::Pooling::All,
            Self::Last => prelude::Pooling::Last,
            Self::Common => prelude::Pooling::Common,
        }
    }

    /// The pooling of transformed states that replaces the mean; `None` for the mean.
    pub fn of_states(self) -> Option<Box<dyn TokenPooling>> {
        (self == Self::Original).then(|| Box::new(WithoutOutliers) as _)
    }
}
