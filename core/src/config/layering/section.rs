//! A section of the experiment.

use crate::config::fields::Field;
use crate::registry::Entry;

/// The valid fields of a section.
#[derive(Debug)]
pub(super) struct Section {
    pub fields: Vec<Field>,
    /// The plugin that the section configures, if any.
    pub plugin: Option<Entry>,
}
