//! Plugins at run time: the interface of a shared library, and the loader.
//!
//! A method is the same whether it is linked in or loaded: its attribute makes its registry entry,
//! everything that is made of it stands behind a [`guard`](crate::guard), and only
//! [`export_plugin!`](crate::export_plugin) is added for a library. A loaded library has its own
//! copy of this crate, with its own statics and its own identities of types; so what crosses the
//! boundary is layout that the fingerprint vouches for, and never a type's identity: configuration
//! crosses as JSON text, and a panic is caught on the side that raised it.

mod abi;
mod folder;
mod guest;
mod host;
mod load;

pub use abi::{Fingerprint, PluginDecl};
pub use folder::{folder, installed};
pub use load::load;
