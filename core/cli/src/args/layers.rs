//! The configuration layers below the flags: the binary's defaults and the environment.

use reprpo_core::Result;
use reprpo_core::config::Layering;

use crate::App;

/// Creates a layering whose lowest layer is the binary's defaults.
///
/// # Errors
/// Fails if the defaults are not valid TOML.
pub fn defaults<'r>(app: &App<'r>) -> Result<Layering<'r>> {
    let mut layers = Layering::new(app.registry);
    layers.defaults(app.defaults)?;
    layers.launched(app.world.size());
    Ok(layers)
}

/// Adds the environment variables of this process as a layer.
pub fn environment(layers: &mut Layering<'_>) {
    // Variables that are not valid UTF-8 cannot be settings and are skipped.
    layers.environment(
        std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }),
    );
}
