//! The only crate that a plugin depends on. It provides the traits and attributes, and re-exports
//! tch and other crates in the versions that the engine uses.
#![doc = ""]
#![doc = include_str!("../../../docs/plugins.md")]

pub mod testkit;

pub use reprpo_core::files::{is_lfs_pointer, lfs_pointer};
#[doc(hidden)]
pub use reprpo_core::inventory;
pub use reprpo_core::{api, error, export_plugin, hub, plugin, recipe, registry, suite};
pub use reprpo_macros::{adapter, choice, dataset, intervention, tap, transform};
pub use {schemars, serde, serde_json, tch, tracing};

/// The items that the source file of a method usually needs.
pub mod prelude {
    pub use reprpo_core::api::*;
    pub use reprpo_core::error::{Context, Error, Result};
    pub use reprpo_macros::{adapter, choice, dataset, intervention, tap, transform};
    pub use schemars::{self, JsonSchema};
    pub use serde::{self, Deserialize, Serialize};
    pub use tch::{Kind, Tensor};
}
