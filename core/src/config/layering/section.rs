//! A section of the experiment.

use crate::config::fields::Field;
use crate::registry::Entry;

/// The fields that a section may hold.
#[derive(Debug)]
pub(super) struct Section {
    pub fields: Vec<Field>,
    /// The plugin whose fields these are.
    pub plugin: Option<Entry>,
}
