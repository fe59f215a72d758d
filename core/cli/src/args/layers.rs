//! The layers below the flags.

use reprpo_core::Result;
use reprpo_core::config::Layering;

use crate::App;

/// The layer of the binary's own defaults.
///
/// # Errors
/// Fails if they are not TOML.
pub fn defaults<'r>(app: &App<'r>) -> Result<Layering<'r>> {
    let mut layers = Layering::new(app.registry);
    layers.defaults(app.defaults)?;
    Ok(layers)
}

/// Adds the process's environment.
pub fn environment(layers: &mut Layering<'_>) {
    // A variable that is not text is not a setting.
    layers.environment(
        std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }),
    );
}
