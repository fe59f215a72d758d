//! Flags that set fields of the experiment, generated from the field declarations.

use std::marker::PhantomData;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use reprpo_core::config::{Flag, Group, Layering, flags};

/// A set of flags that can be added to a command.
pub trait FlagSet {
    /// The flags, in the order in which `--help` lists them. They are generated from the field
    /// declarations, but an implementation may change their names and help texts.
    fn flags() -> Vec<Flag>;
}

/// The flags of one group.
fn of_group(group: Group) -> Vec<Flag> {
    flags().iter().filter(|flag| flag.group == group).cloned().collect()
}

/// Returns the flag that sets the field at `path`.
///
/// # Panics
/// Panics if the field does not declare a flag.
pub fn of_field(path: &str) -> Flag {
    flags()
        .iter()
        .find(|flag| flag.path == path)
        .cloned()
        .unwrap_or_else(|| panic!("the field `{path}` does not declare a flag"))
}

macro_rules! group {
    ($($(#[$doc:meta])* $set:ident = $flags:expr;)*) => {
        $($(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $set;

        impl FlagSet for $set {
            fn flags() -> Vec<Flag> {
                $flags
            }
        })*
    };
}

group! {
    /// The model, its device and its precision.
    ModelFlags = of_group(Group::Model);
    /// The saved adapter and transforms that training starts from.
    StartFlags = of_group(Group::Start);
    /// The recipe, the intervention, the adapter, the transform and the tap.
    MethodFlags = of_group(Group::Method);
    /// The tap and its layers.
    TapFlags = vec![of_field("tap"), of_field("tap.layers")];
    /// The settings of the training loop.
    TrainingFlags = of_group(Group::Training);
    /// The settings of the evaluation after training.
    EvaluationFlags = of_group(Group::Evaluation);
    /// The values that are kept for later runs.
    CacheFlags = of_group(Group::Cache);
    /// The files that a run writes.
    OutputFlags = of_group(Group::Output);
    /// The base model of a run or an adapter.
    BaseModel = vec![of_field("model").help("Base model. Defaults to the base model of \
        the run or the adapter.")];
    /// The model whose tokenizer is used.
    TokenizerModel = vec![of_field("model").help("Model whose tokenizer and chat template are \
        used: a known name, a folder, a GGUF file, or a Hugging Face repository.")];
    /// The adapter to score with.
    LoadedAdapter = vec![of_field("init_adapter").named("load-adapter").help("Adapter in PEFT \
        format to score with: a folder or a Hugging Face repository.")];
}

/// The values given for the flags of `S`.
#[derive(Clone, Debug)]
pub struct FieldFlags<S> {
    given: Vec<(Flag, String)>,
    set: PhantomData<S>,
}

impl<S> FieldFlags<S> {
    /// The text given for the field at `path`, if any.
    pub fn get(&self, path: &str) -> Option<&str> {
        self.given.iter().find(|(flag, _)| flag.path == path).map(|(_, text)| text.as_str())
    }

    /// Removes the value given for the field at `path`.
    pub fn remove(&mut self, path: &str) {
        self.given.retain(|(flag, _)| flag.path != path);
    }

    /// Adds the given values to `layers`.
    pub fn apply(&self, layers: &mut Layering<'_>) {
        self.given
            .iter()
            .for_each(|(flag, text)| apply(layers, &format!("--{}", flag.name), flag, text));
    }
}

/// Adds the value `text` of a flag to `layers`. `shown` is the flag's name in error messages.
pub fn apply(layers: &mut Layering<'_>, shown: &str, flag: &Flag, text: &str) {
    if flag.list && !flag.repeats {
        layers.flag(shown, &flag.path, &serde_json::json!([text]).to_string());
    } else {
        layers.flag(shown, &flag.path, text);
    }
}

/// The clap argument of a flag. Its id is the path of the field.
pub fn argument(flag: &Flag) -> Arg {
    // Remove the last full stop, as clap does for doc comments.
    let help = flag.help.strip_suffix('.').unwrap_or(&flag.help).to_owned();
    let arg = Arg::new(flag.path.clone())
        .long(flag.name.clone())
        .help(help)
        .help_heading(flag.heading.clone());
    match flag.switch {
        Some(_) => arg.action(ArgAction::SetTrue),
        None => {
            let arg = arg.value_name(flag.value.clone());
            let arg = if flag.repeats { arg.action(ArgAction::Append) } else { arg };
            arg.allow_negative_numbers(flag.hyphens && flag.number)
                .allow_hyphen_values(flag.hyphens && !flag.number)
        }
    }
}

/// Returns the value given for a flag on the command line, if any. The values of a flag that can be
/// repeated are a JSON list.
pub fn given(matches: &ArgMatches, flag: &Flag) -> Option<String> {
    if matches.value_source(&flag.path) != Some(ValueSource::CommandLine) {
        return None;
    }
    if flag.repeats {
        let all: Vec<&String> = matches.get_many(&flag.path)?.collect();
        return Some(serde_json::json!(all).to_string());
    }
    flag.switch.clone().or_else(|| matches.get_one(&flag.path).cloned())
}

impl<S: FlagSet> Args for FieldFlags<S> {
    fn augment_args(command: Command) -> Command {
        command.args(S::flags().iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<S: FlagSet> FromArgMatches for FieldFlags<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = S::flags()
            .into_iter()
            .filter_map(|flag| given(matches, &flag).map(|text| (flag, text)));
        Ok(Self { given: given.collect(), set: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
