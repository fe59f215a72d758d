//! The fingerprint of this build of the core.
//!
//! This is a separate crate so that a change to the core's sources only reruns the build script of
//! this crate, and does not recompile the core's C++ code.

/// The fingerprint, as `key=value` parts separated by `;`. The parts identify the compiler, the
/// sources and everything else that determines the layout and the meaning of the plugin interface.
/// A plugin can only be loaded if its fingerprint is identical to the host's. The host also
/// compares a hash of the actual memory layout.
///
/// Optimisation levels and debug assertions are not included, so a release build of a plugin works
/// with a debug build of the host.
pub const FINGERPRINT: &str = env!("REPRPO_FINGERPRINT");

/// The version of tch, whose tensors are passed between a plugin and its host.
pub const TCH_VERSION: &str = include_str!("tch-version");
