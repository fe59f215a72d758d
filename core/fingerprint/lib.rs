//! The fingerprint of this build of the core.
//!
//! This is a separate crate so that the core's C++ code is not recompiled when the core's sources
//! change. Only the build script of this crate runs again.

/// The fingerprint, as `key=value` parts separated by `;`. The parts identify everything that
/// determines the layout and the meaning of the plugin interface, such as the compiler and the
/// sources. A host only loads plugins whose fingerprint is identical to its own. The host also
/// compares a hash of the actual memory layout.
///
/// Optimisation levels and debug assertions are not included, so a release build of a plugin works
/// with a debug build of the host.
pub const FINGERPRINT: &str = env!("REPRPO_FINGERPRINT");

/// The version of tch, whose tensors are passed between a plugin and its host.
pub const TCH_VERSION: &str = include_str!("tch-version");
