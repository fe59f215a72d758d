//! What an author of a plugin depends on: the traits, the derives and tch, at the versions that fit
//! the engine.
#![doc = ""]
#![doc = include_str!("../../README.md")]

pub mod testkit;

pub use reprpo_core::files::{is_lfs_pointer, lfs_pointer};
#[doc(hidden)]
pub use reprpo_core::inventory;
pub use reprpo_core::{api, error, export_plugin, hub, plugin, recipe, registry};
pub use reprpo_macros::{adapter, choice, dataset, intervention, tap, transform};
pub use {schemars, serde, serde_json, tch, tracing};

/// Everything that a method's file usually needs.
pub mod prelude {
    pub use reprpo_core::api::*;
    pub use reprpo_core::error::{Context, Error, Result};
    pub use reprpo_macros::{adapter, choice, dataset, intervention, tap, transform};
    pub use schemars::{self, JsonSchema};
    pub use serde::{self, Deserialize, Serialize};
    pub use tch::{Kind, Tensor};
}
