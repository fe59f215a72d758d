//! Command-line flags. A field declares its flags next to its documentation.

use serde::{Deserialize, Serialize};

/// The key for a field's flags in the schema of the field. The published [`schema`](super::schema)
/// does not contain this key.
pub(super) const FLAGS: &str = "flags";

/// A group of flags. A command accepts either all flags of a group or none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Group {
    /// The model, its device and its precision.
    Model,
    /// The saved adapter and transforms that training starts from.
    Start,
    /// The recipe, the intervention, the adapter, the transform and the tap.
    Method,
    /// The preference pairs.
    Data,
    /// The training loop.
    Training,
    /// The evaluation after training.
    Evaluation,
    /// The values that are kept for later runs.
    Cache,
    /// The files that a run writes.
    Output,
}

/// A flag that sets a field of the experiment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flag {
    /// Path of the field, e.g. `train.seed`.
    pub path: String,
    /// Name of the flag, without dashes. Defaults to the name of the field.
    pub name: String,
    /// Group that the flag belongs to.
    pub group: Group,
    /// Heading in the help under which the flag is listed.
    pub heading: String,
    /// Placeholder for the value in the help, e.g. `DIR`.
    pub value: String,
    /// The value to which the flag sets the field; `None` if the flag takes an argument.
    pub switch: Option<String>,
    /// The help text. Defaults to the documentation of the field.
    pub help: String,
    /// True if the value may begin with a hyphen.
    pub hyphens: bool,
    /// True if the field only takes numbers.
    pub number: bool,
    /// True if the field takes a list. The value of the flag then becomes a list with one item.
    pub list: bool,
    /// True if the flag can be given several times, and its values form a list.
    pub repeats: bool,
    /// The field of the chosen plugin that the flag sets, e.g. `data_dir` for `--data-dir`. Empty
    /// for other flags.
    pub(super) field: String,
}

impl Flag {
    /// Creates a flag that is named after its field. `value` is the placeholder for the value in
    /// the help.
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
            repeats: false,
            field: String::new(),
        }
    }

    /// Creates a flag that takes no value and sets the field to `value`.
    pub(super) fn switch(group: Group, name: &str, value: &str) -> Self {
        Self { switch: Some(value.to_owned()), ..Self::new(group, "").named(name) }
    }

    /// Changes the name of the flag.
    pub fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// Changes the help text.
    pub fn help(self, help: &str) -> Self {
        Self { help: help.to_owned(), ..self }
    }

    /// Changes the heading under which the help lists the flag.
    pub(super) fn under(self, heading: &str) -> Self {
        Self { heading: heading.to_owned(), ..self }
    }

    /// Makes the flag set a field of the chosen plugin, e.g. `data_dir` of the data set.
    pub(super) fn of(self, field: &str) -> Self {
        Self { field: field.to_owned(), ..self }
    }

    /// Allows the flag to be given several times.
    pub(super) fn repeated(self) -> Self {
        Self { repeats: true, ..self }
    }

    /// Allows values that begin with a hyphen.
    pub(super) fn hyphens(self) -> Self {
        Self { hyphens: true, ..self }
    }
}
