//! Recipes: named sets of settings. A recipe is one layer of a run's configuration.

#[cfg(test)]
mod tests;

use reprpo_plugin::recipe;

recipe!(include_str!("dpo.toml"));
recipe!(include_str!("genies_mms.toml"));
recipe!(include_str!("repeng.toml"));
recipe!(include_str!("reprpo_side.toml"));
recipe!(include_str!("reprpo_ortho.toml"));
recipe!(include_str!("reprpo_hra.toml"));
