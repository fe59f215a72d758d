//! How a field declares its flags on the command line, beside its documentation.

use serde::{Deserialize, Serialize};

/// The name under which a field's schema holds its flags. [`schema`](super::schema) leaves them
/// out.
pub(super) const FLAGS: &str = "flags";

/// Flags that belong together: a command takes all flags of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Group {
    /// The model, and how it is computed.
    Model,
    /// The saved values that training starts from.
    Start,
    /// The recipe and the plugins.
    Method,
    /// The preference pairs.
    Data,
    /// How the run trains.
    Training,
    /// What a run writes.
    Output,
}

/// A flag that sets a field of the experiment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flag {
    /// Path of the field, e.g. `train.seed`.
    pub path: String,
    /// Name of the flag, without dashes. It is the field's own name unless the field declares
    /// another one.
    pub name: String,
    /// The flags that it belongs to.
    pub group: Group,
    /// Heading of the help under which it is shown.
    pub heading: String,
    /// Name of its value in the help, e.g. `DIR`.
    pub value: String,
    /// The value that a flag without a value sets.
    pub switch: Option<String>,
    /// The help. It is the field's documentation unless the field declares another one.
    pub help: String,
    /// True if a value may begin with a hyphen.
    pub hyphens: bool,
    /// True if the field takes numbers only.
    pub number: bool,
    /// True if the field takes a list, and the flag one item of it.
    pub list: bool,
    /// The field that the plugins of this section share, if the flag sets one.
    pub(super) field: String,
}

impl Flag {
    /// The flag of a field of the same name. The help calls its value `value`.
    pub(super) fn new(group: Group, value: &str) -> Self {
        Self {
            path: String::new(),
            name: String::new(),
            group,
            heading: format!("{group:?}"),
            value: value.to_owned(),
            switch: None,
            help: String::new(),
            hyphens: false,
            number: false,
            list: false,
            field: String::new(),
        }
    }

    /// A flag without a value, which sets the field to `value`.
    pub(super) fn switch(group: Group, name: &str, value: &str) -> Self {
        Self { switch: Some(value.to_owned()), ..Self::new(group, "").named(name) }
    }

    /// The same flag under another name.
    pub fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// The same flag with another help.
    pub fn help(self, help: &str) -> Self {
        Self { help: help.to_owned(), ..self }
    }

    /// The same flag under another heading of the help.
    pub(super) fn under(self, heading: &str) -> Self {
        Self { heading: heading.to_owned(), ..self }
    }

    /// The flag of a field that plugins of the section share.
    pub(super) fn of(self, field: &str) -> Self {
        Self { field: field.to_owned(), ..self }
    }

    /// The same flag, with values that may begin with a hyphen.
    pub(super) fn hyphens(self) -> Self {
        Self { hyphens: true, ..self }
    }
}
