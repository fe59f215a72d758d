//! Settings that belong together: each recipe is a file of values, a layer of the configuration.

#[cfg(test)]
mod tests;

use reprpo_plugin::recipe;

recipe!(include_str!("dpo.toml"));
recipe!(include_str!("reprpo_side.toml"));
recipe!(include_str!("reprpo_ortho.toml"));
recipe!(include_str!("reprpo_hra.toml"));
