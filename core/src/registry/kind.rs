//! The kinds of plugin.

/// The five kinds of plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A training objective.
    Intervention,
    /// A trainable change to linear modules or blocks.
    Adapter,
    /// A map that is applied to states.
    Transform,
    /// A selection of sites at which states are read.
    Tap,
    /// A source of preference pairs.
    Dataset,
}

impl Kind {
    /// All kinds, in the order in which listings show them.
    pub const ALL: [Kind; 5] =
        [Kind::Intervention, Kind::Adapter, Kind::Transform, Kind::Tap, Kind::Dataset];

    /// Name of the kind, e.g. `intervention`. It is also the name of its section in the
    /// configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Intervention => "intervention",
            Kind::Adapter => "adapter",
            Kind::Transform => "transform",
            Kind::Tap => "tap",
            Kind::Dataset => "dataset",
        }
    }

    /// Plural of the name, e.g. `interventions`.
    pub fn plural(self) -> String {
        format!("{}s", self.name())
    }
}
