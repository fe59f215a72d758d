//! Recipes: files of settings that form a layer of the configuration.

#[cfg(test)]
mod tests;

use reprpo_plugin::recipe;

recipe!(include_str!("dpo.toml"));
recipe!(include_str!("reprpo_side.toml"));
recipe!(include_str!("reprpo_ortho.toml"));
recipe!(include_str!("reprpo_hra.toml"));
