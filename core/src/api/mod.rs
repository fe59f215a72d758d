//! The plugin API: one trait for each of the five kinds of plugin, and the values that the engine
//! exchanges with them.
//!
//! This module only contains traits and plain data. The engine (`train`, `model`, `eval`) uses
//! them; nothing here uses the engine.

mod adapter;
mod dataset;
mod fit;
mod frozen;
mod init;
mod intervention;
mod message;
mod model;
mod pairs;
mod parameter;
mod part;
mod peft_config;
mod plugin;
mod product;
mod side;
mod tap;
mod targets;
mod transform;
mod weight;

pub use adapter::{
    AdaptedLinear, AdaptedPart, AdaptedResidual, Adapter, AdapterPlugin, AdapterSource, Fused,
    FusedSite, LinearSite, PeftFile, PromptPlaces, TargetModules,
};
pub use dataset::{
    Dataset, DatasetPlugin, PairIdentity, PairIter, PreferencePair, RowIter, SplitInfo, Text,
};
pub use fit::{BlockEdit, EditTime, PairStates, SiteStates, Statistics};
pub use frozen::Frozen;
pub use init::Init;
pub use intervention::{
    Directions, GradMap, Intervention, InterventionPlugin, Loss, Needs, OutputGrad, ParameterGrad,
    Partial, RunInfo, States, StepInfo,
};
pub use message::{Message, TemplateArgs, json_kind};
pub use model::{LinearInfo, ModelInfo, PartInfo, Site};
pub(crate) use pairs::ROUNDING;
pub use pairs::{
    Counted, Logprobs, Pairs, PerSide, SequenceNll, TapStates, TokenLogprobs, TokenStates,
    precision,
};
pub use parameter::{Axis, Parameter};
pub use part::Rows;
pub use peft_config::PeftConfig;
pub use plugin::Plugin;
pub(crate) use product::linear;
pub use side::{Completions, Side, Sides};
pub use tap::{Layers, Pooling, Tap, TapPlugin, TokenPooling};
pub(crate) use targets::pattern_fits;
pub use targets::{Patterns, Selected, Selection, Targets};
pub use transform::{Around, Transform, TransformCx, TransformPlugin};
pub(crate) use weight::{Encoded, Weight};
