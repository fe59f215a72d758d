//! Settings that belong together: each recipe is a file of values, a layer of the configuration.

#[cfg(test)]
mod tests;

use reprpo_plugin::register;

register!(recipe: include_str!("dpo.toml"));
register!(recipe: include_str!("reprpo_side.toml"));
register!(recipe: include_str!("reprpo_ortho.toml"));
register!(recipe: include_str!("reprpo_hra.toml"));
