//! What a plugin sees: the five kinds, and the values that pass between them and the engine.
//!
//! Traits and plain data only. The engine (`train`, `model`, `eval`) uses these; nothing here uses the engine.

mod adapter;
mod dataset;
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
mod tap;
mod targets;
mod transform;

pub use adapter::{
    AdaptedLinear, AdaptedPart, AdaptedResidual, Adapter, AdapterPlugin, Frozen, Fused, FusedSite, LinearSite, PeftFile, PromptPlaces, TargetModules,
};
pub use dataset::{Dataset, DatasetPlugin, PairIter, PreferencePair, RowIter, SplitInfo, Text};
pub use init::Init;
pub use intervention::{Completions, Directions, GradMap, Intervention, InterventionPlugin, Loss, Needs, OutputGrad, Partial, States, StepInfo};
pub use message::{Message, TemplateArgs, json_kind};
pub use model::{LinearInfo, ModelInfo, Site};
pub(crate) use pairs::ROUNDING;
pub use pairs::{Counted, Logprobs, Pairs, SequenceNll, Sides, TapStates, TokenLogprobs, TokenSides, TokenStates, precision};
pub use parameter::{Axis, Parameter};
pub use part::{PartInfo, Rows};
pub use peft_config::PeftConfig;
pub use plugin::Plugin;
pub(crate) use product::linear;
pub use tap::{Layers, Pooling, Tap, TapPlugin};
pub(crate) use targets::pattern_fits;
pub use targets::{Patterns, Selected, Selection, Targets};
pub use transform::{Around, Transform, TransformCx, TransformPlugin};
