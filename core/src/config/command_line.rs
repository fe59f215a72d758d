//! The command-line flags that the fields of the experiment declare.

use std::sync::LazyLock;

use super::Experiment;
use super::fields::{Field, fields};
use super::flag::Flag;

/// The flags that the fields of the experiment declare, in the order of the fields.
pub fn flags() -> &'static [Flag] {
    static FLAGS: LazyLock<Vec<Flag>> = LazyLock::new(declared);
    &FLAGS
}

fn declared() -> Vec<Flag> {
    let defaults = Experiment::default().to_json().as_object().cloned().unwrap_or_default();
    let of = |field: &Field, section: &str| {
        field.flags.iter().map(|flag| completed(flag.clone(), field, section)).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for field in fields(&schemars::schema_for!(Experiment).to_value(), &defaults) {
        all.extend(of(&field, ""));
        all.extend(field.fields.iter().flat_map(|inner| of(inner, &field.name)));
    }
    all
}

/// Derives the unset parts of a flag from the field that declares it. `section` is the field's
/// section, or empty for a top-level field.
fn completed(mut flag: Flag, field: &Field, section: &str) -> Flag {
    let (own, shared) = (field.name.as_str(), flag.field.as_str());
    let (path, name) = match (section, shared) {
        ("", "") => (own.to_owned(), own),
        ("", shared) => (format!("{own}.{shared}"), shared),
        (section, _) => (format!("{section}.{own}"), own),
    };
    let name = name.replace('_', "-");
    if shared.is_empty() {
        (flag.number, flag.list) = (field.is_number(), field.is_list());
    }
    flag.path = path;
    if flag.name.is_empty() {
        flag.name = name;
    }
    if flag.help.is_empty() {
        flag.help = described(field);
    }
    flag
}

/// Builds the help text of a flag from the documentation and the possible values of its field.
fn described(field: &Field) -> String {
    let words: Vec<String> = field.choices.iter().map(|word| format!("`{}`", word.value)).collect();
    let text = field.description.trim_end_matches('.');
    match (words.split_last(), text.split_once("; none = ")) {
        (Some((last, rest)), _) if !rest.is_empty() => {
            format!("{text}: {} or {last}.", rest.join(", "))
        }
        // If the field defaults to `none`, the text after `none = ` describes what happens without
        // the flag.
        (_, Some((text, none))) if field.default.is_null() => {
            format!("{text}. Defaults to {none}.")
        }
        _ => field.description.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_follow_from_the_declarations_of_the_fields() {
        let all = flags();
        let of = |name: &str| all.iter().find(|flag| flag.name == name).expect(name);
        let seed = of("seed");
        assert_eq!(
            (seed.path.as_str(), seed.help.as_str(), seed.number),
            ("train.seed", "Seed for initial values, pair order and dropout.", true)
        );
        assert_eq!(of("dtype").help, "Precision of the frozen model: `auto`, `f32` or `bf16`.");
        assert_eq!(
            (of("init-adapter").path.as_str(), of("init-adapter").heading.as_str()),
            ("init_adapter", "Model")
        );
        assert_eq!((of("layers").path.as_str(), of("layers").number), ("tap.layers", false));
        assert_eq!(
            (of("no-eval").path.as_str(), of("no-eval").switch.as_deref()),
            ("eval.enabled", Some("false"))
        );
        assert!(
            all.iter().any(|flag| flag.path == "eval.splits" && flag.name == "split" && flag.list)
        );
        assert!(all.iter().all(|flag| !flag.help.is_empty()), "{all:?}");
        assert!(
            all.iter().all(|flag| flag.switch.is_some() == flag.value.is_empty()),
            "a flag must either take a value or be a switch: {all:?}"
        );
    }
}
