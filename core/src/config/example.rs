//! The example in a plugin's documentation. `reprpo explain` shows it as a command, and the
//! conformance tests run it.

use super::{Layering, plugin_fields};
use crate::error::{Result, quoted};
use crate::registry::{DatasetEntry, Entry, TypedEntry};

/// The name of a plugin, and values for some of its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    kind: &'static str,
    /// The plugin's name, or `NAME:TEXT` for a data set.
    choice: String,
    /// Names and values of fields. Values are written as in `--set FIELD=VALUE`.
    set: Vec<(String, String)>,
}

impl Example {
    /// The example that the plugin declares. If the plugin declares none, the example sets the
    /// plugin's first numeric or boolean field to its default.
    ///
    /// # Errors
    /// Fails if the plugin's defaults are not a JSON object.
    pub fn of(entry: Entry) -> Result<Self> {
        let about = entry.about();
        let fields = plugin_fields(about)?;
        let mut set: Vec<(String, String)> = about
            .example
            .iter()
            .map(|&(field, value)| (field.to_owned(), value.to_owned()))
            .collect();
        if set.is_empty() {
            let settable = fields.iter().find(|f| f.default.is_number() || f.default.is_boolean());
            set.extend(settable.map(|f| (f.name.clone(), f.default.to_string())));
        }
        let mut choice = about.name.to_owned();
        if let Some(argument) = DatasetEntry::of_entry(entry).and_then(|data| data.argument) {
            let default = || {
                fields
                    .iter()
                    .find(|f| f.name == argument)
                    .and_then(|f| f.default.as_str())
                    .filter(|text| !text.is_empty())
            };
            let text = match set.iter().position(|(field, _)| field == argument) {
                Some(i) => set.remove(i).1,
                None => default().unwrap_or("TEXT").to_owned(),
            };
            choice = format!("{choice}:{text}");
        }
        Ok(Self { kind: entry.kind().name(), choice, set })
    }

    /// The command line, quoted for a shell.
    pub fn command(&self) -> String {
        let mut command = format!("reprpo run --{} {}", self.kind, quoted(&self.choice));
        for (field, value) in &self.set {
            command
                .push_str(&format!(" --set {}", quoted(format!("{}.{field}={value}", self.kind))));
        }
        command
    }

    /// Adds the flags of [`command`](Self::command) to `layering`, as if the user had given them.
    ///
    /// # Errors
    /// Fails if a field has no name.
    pub fn apply(&self, layering: &mut Layering<'_>) -> Result<()> {
        layering.flag(&format!("--{}", self.kind), self.kind, &self.choice);
        self.set
            .iter()
            .try_for_each(|(field, value)| layering.set(&format!("{}.{field}={value}", self.kind)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(choice: &str, set: &[(&str, &str)]) -> Example {
        Example {
            kind: "dataset",
            choice: choice.to_owned(),
            set: set.iter().map(|&(f, v)| (f.to_owned(), v.to_owned())).collect(),
        }
    }

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        assert_eq!(
            example("x:a.jsonl", &[("seed", "3"), ("b", "-1.5")]).command(),
            "reprpo run --dataset x:a.jsonl --set dataset.seed=3 --set dataset.b=-1.5"
        );
        assert_eq!(
            example("x", &[("l", r#"["a", "it's"]"#)]).command(),
            r#"reprpo run --dataset x --set 'dataset.l=["a", "it'\''s"]'"#
        );
    }
}
