//! The kinds of plugin.

/// The five kinds of plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A training objective.
    Intervention,
    /// A trainable change of linear modules.
    Adapter,
    /// A map of activations.
    Transform,
    /// A place where activations are read.
    Tap,
    /// A source of preference pairs.
    Dataset,
}

impl Kind {
    /// All of them, in the order in which people meet them.
    pub const ALL: [Kind; 5] =
        [Kind::Intervention, Kind::Adapter, Kind::Transform, Kind::Tap, Kind::Dataset];

    /// `intervention`: the word, and the section of the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Intervention => "intervention",
            Kind::Adapter => "adapter",
            Kind::Transform => "transform",
            Kind::Tap => "tap",
            Kind::Dataset => "dataset",
        }
    }

    /// `interventions`.
    pub fn plural(self) -> String {
        format!("{}s", self.name())
    }
}
