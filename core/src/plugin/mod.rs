//! Plugins that are loaded at run time: the binary interface of a plugin library, and the loader.
//!
//! A method has the same code whether it is linked into the binary or loaded from a library. Its
//! attribute creates the registry entry, and a [`guard`](crate::guard) wraps all objects that it
//! builds. A library only has to invoke [`export_plugin!`](crate::export_plugin).
//!
//! A loaded library has its own copy of this crate, with its own statics and type ids. The host and
//! the library may exchange values whose memory layout the fingerprint guarantees, but must not
//! rely on type ids. Configuration is passed as JSON text. A panic is caught on the side where it
//! occurred.

mod abi;
mod folder;
mod guest;
mod host;
mod load;

pub use abi::{Fingerprint, PluginDecl};
pub use folder::{folder, installed};
pub use load::load;
