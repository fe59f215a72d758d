//! Plugins that are loaded at run time: the binary interface of a plugin library, and the loader.
//!
//! The code of a method is the same in the binary and in a library. The method's attribute creates
//! the registry entry. A [`guard`](crate::guard) wraps all objects that the method builds. A
//! library only has to invoke [`export_plugin!`](crate::export_plugin).
//!
//! A loaded library has its own copy of this crate, with its own statics and type ids. The host and
//! the library may only exchange values if the fingerprint guarantees their memory layout. They
//! must not rely on type ids. Configuration is passed as JSON text. A panic is caught on the side
//! where it occurred.

mod abi;
mod folder;
mod guest;
mod host;
mod load;

pub use abi::{Fingerprint, PluginDecl};
pub use folder::{folder, installed};
pub use load::load;
