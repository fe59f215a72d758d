//! Which build of the core this is.
//!
//! A crate of its own, so that a change of the core's sources repeats this build script and not the
//! C++ of the core's.

/// `key=value` parts with `;` between: everything on which the layout and the meaning of the plugin
/// interface depend, but for the layout itself. A plugin is loaded where its own is the same to the
/// byte.
///
/// Levels of optimisation and debug assertions are not among them: a release plugin runs in a debug
/// host.
pub const FINGERPRINT: &str = env!("REPRPO_FINGERPRINT");

/// The release of tch whose tensors pass between a plugin and its host.
pub const TCH_VERSION: &str = include_str!("tch-version");
