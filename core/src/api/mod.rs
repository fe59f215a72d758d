//! What a plugin sees: the five kinds, and the values that pass between them and the engine.
//!
//! Traits and plain data only. The engine (`train`, `model`, `eval`) uses these; nothing here uses the engine.

mod adapter;
mod dataset;
mod intervention;
mod model;
mod pairs;
mod plugin;
mod tap;
mod transform;

pub use adapter::{AdaptedLinear, Adapter, AdapterPlugin, Frozen, Init, LinearSite, Parameter, PeftConfig, Targets};
pub use dataset::{Dataset, DatasetPlugin, Message, PairIter, PreferencePair, SplitInfo, Text};
pub use intervention::{Completions, Intervention, InterventionPlugin, Loss, Needs, StepInfo};
pub use model::{LinearInfo, ModelInfo, Site};
pub use pairs::{Logprobs, Pairs, Sides, TapStates, TokenLogprobs};
pub use plugin::Plugin;
pub use tap::{Layers, Pooling, Tap, TapPlugin};
pub use transform::{Transform, TransformCx, TransformPlugin};
