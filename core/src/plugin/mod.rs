//! Plugins that are loaded at run time: the binary interface of a plugin library, and the loader.
//!
//! The code of a method is the same whether it is linked in or loaded. Its attribute creates the
//! registry entry, and a [`guard`](crate::guard) wraps all objects that it builds. A library only
//! has to invoke [`export_plugin!`](crate::export_plugin).
//!
//! A loaded library has its own copy of this crate, with its own statics and type ids. The two
//! copies may therefore exchange values whose memory layout the fingerprint guarantees, but must
//! not rely on type ids. Configuration is passed as JSON text, and a panic is caught on the side
//! where it occurred.

mod abi;
mod folder;
mod guest;
mod host;
mod load;

pub use abi::{Fingerprint, PluginDecl};
pub use folder::{folder, installed};
pub use load::load;
