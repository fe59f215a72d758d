//! Pooling of the tokens of a completion.

use reprpo_plugin::prelude::{self, *};

use super::outliers::WithoutOutliers;

/// Methods that combine the tokens of a completion into one vector.
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
    /// The mean over prompt and completion, as in the original project: without tokens whose
    /// transformed state has a norm of more than one standard deviation above the mean norm.
    Original,
}

impl Pooling {
    /// Returns the plugin API's pooling over the same tokens.
    pub fn tokens(self) -> prelude::Pooling {
        match self {
            Self::Completion => prelude::Pooling::Completion,
            Self::All | Self::Original => prelude::Pooling::All,
            Self::Last => prelude::Pooling::Last,
            Self::Common => prelude::Pooling::Common,
        }
    }

    /// Returns the pooling of transformed states that replaces the mean, or `None` if the mean is
    /// used.
    pub fn of_states(self) -> Option<Box<dyn TokenPooling>> {
        (self == Self::Original).then(|| Box::new(WithoutOutliers) as _)
    }
}
