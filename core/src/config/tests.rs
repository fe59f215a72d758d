//! Tests which layer's value takes effect, and the errors for invalid values.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::*;
use crate::api::*;
use crate::error::{Error, Result};
use crate::registry::{
    AdapterEntry, DatasetEntry, Entry, InterventionEntry, Kind, Registry, TapEntry, TransformEntry,
};

macro_rules! plugin {
    ($kind:ident, $entry:ident, $plugin:ident, $name:literal $(, $alias:literal)*) => {
        impl Plugin for $plugin {
            const NAME: &'static str = $name;
            const ALIASES: &'static [&'static str] = &[$($alias),*];
            const SUMMARY: &'static str = "For tests";
            const EXPLAIN: &'static str = "";
            const REFERENCE: &'static str = "";
        }
        inventory::submit! { Entry::$kind(&$entry) }
    };
}

/// Defines configuration structs without fields.
macro_rules! nothing {
    ($($plugin:ident)*) => {$(
        #[derive(Default, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        struct $plugin {}
    )*};
}

nothing!(Plain Swift Patch Stiff Straight Fixed);

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Strong {
    /// Strength, in nats.
    beta: f64,
    /// Rank; none = full.
    rank: Option<usize>,
}

impl Default for Strong {
    fn default() -> Self {
        Self { beta: 0.1, rank: Some(8) }
    }
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Stream {
    layers: String,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Lines {
    path: String,
    data_dir: Option<String>,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Sheet {
    path: String,
    data_dir: Option<String>,
}

/// Configuration of an adapter that can be saved.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Tune {
    r: u32,
    alpha: f64,
    dropout: f64,
    pattern: Patterns<u32>,
    /// A list whose order does not matter.
    #[schemars(extend("uniqueItems" = true))]
    layers: Option<Vec<usize>>,
}

static PLAIN: InterventionEntry = InterventionEntry::of::<Plain>(ORIGIN, VERSION);
static STRONG: InterventionEntry = InterventionEntry::of::<Strong>(ORIGIN, VERSION);
static SWIFT: InterventionEntry =
    InterventionEntry::of::<Swift>(ORIGIN, VERSION).learning_rate(2e-3);
static PATCH: AdapterEntry = AdapterEntry::of::<Patch>("PATCH", ORIGIN, VERSION);
static TUNE: AdapterEntry =
    AdapterEntry::of::<Tune>("TUNE", ORIGIN, VERSION).adjustable(&["dropout"]);
static STIFF: AdapterEntry =
    AdapterEntry::of::<Stiff>("STIFF", ORIGIN, VERSION).learning_rate_factor(3.0);
static STRAIGHT: TransformEntry = TransformEntry::of::<Straight>(ORIGIN, VERSION);
static STREAM: TapEntry = TapEntry::of::<Stream>(ORIGIN, VERSION);
static FIXED: DatasetEntry = DatasetEntry::of::<Fixed>(ORIGIN, VERSION);
static LINES: DatasetEntry = DatasetEntry::of::<Lines>(ORIGIN, VERSION)
    .argument("path")
    .extensions(&["jsonl", "rows", "jsonl.gz"])
    .stdin(true);
static SHEET: DatasetEntry =
    DatasetEntry::of::<Sheet>(ORIGIN, VERSION).argument("path").extensions(&["rows"]);

const ORIGIN: &str = env!("CARGO_PKG_NAME");
const VERSION: &str = env!("CARGO_PKG_VERSION");

plugin!(Intervention, PLAIN, Plain, "plain");
plugin!(Intervention, STRONG, Strong, "strong");
plugin!(Intervention, SWIFT, Swift, "swift");
plugin!(Adapter, PATCH, Patch, "patch");
plugin!(Adapter, TUNE, Tune, "tune", "tuner");
plugin!(Adapter, STIFF, Stiff, "stiff");
plugin!(Transform, STRAIGHT, Straight, "none");
plugin!(Tap, STREAM, Stream, "stream", "river");
plugin!(Dataset, FIXED, Fixed, "fixed");
plugin!(Dataset, LINES, Lines, "lines");
plugin!(Dataset, SHEET, Sheet, "sheet");

fn refuse<T>() -> Result<T> {
    Err(Error::new("only for tests of the configuration"))
}

macro_rules! interventions {
    ($($plugin:ident)*) => {$(
        impl InterventionPlugin for $plugin {
            fn build(self, _: &ModelInfo) -> Result<Box<dyn Intervention>> {
                refuse()
            }
        }
    )*};
}
interventions!(Plain Strong Swift);

macro_rules! adapters {
    ($($plugin:ident)*) => {$(
        impl AdapterPlugin for $plugin {
            fn build(self) -> Result<Box<dyn Adapter>> {
                refuse()
            }
            fn from_peft(_: &str) -> Result<Self> {
                refuse()
            }
        }
    )*};
}
adapters!(Patch Stiff);

impl AdapterPlugin for Tune {
    fn build(self) -> Result<Box<dyn Adapter>> {
        refuse()
    }
    fn from_peft(json: &str) -> Result<Self> {
        let peft = PeftConfig::parse(json)?;
        Ok(Self {
            r: peft.need("r")?,
            alpha: peft.need("alpha")?,
            pattern: peft.need("pattern")?,
            layers: peft.get("layers")?,
            dropout: 0.0,
        })
    }
}

impl TransformPlugin for Straight {
    fn build(self, _: &TransformCx<'_>, _: &mut Init) -> Result<Box<dyn Transform>> {
        refuse()
    }
}

impl TapPlugin for Stream {
    fn build(self) -> Result<Box<dyn Tap>> {
        refuse()
    }
}

macro_rules! datasets {
    ($($plugin:ident)*) => {$(
        impl DatasetPlugin for $plugin {
            fn build(self) -> Result<Box<dyn Dataset>> {
                refuse()
            }
        }
    )*};
}
datasets!(Fixed Lines Sheet);

const DEFAULTS: &str = r#"
model = "tiny"
intervention = "strong"
adapter = "patch"
transform = "none"
tap = "stream"
dataset = "fixed"
"#;

fn resolve(fill: impl FnOnce(&mut Layering<'_>) -> Result<()>) -> Result<Resolved> {
    let registry = Registry::builtin()?;
    let mut layers = Layering::new(&registry);
    layers.defaults(DEFAULTS)?;
    fill(&mut layers)?;
    layers.resolve()
}

fn good(fill: impl FnOnce(&mut Layering<'_>)) -> Resolved {
    resolve(|l| {
        fill(l);
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e:?}"))
}

fn bad(fill: impl FnOnce(&mut Layering<'_>) -> Result<()>) -> String {
    format!("{:?}", resolve(fill).expect_err("an error"))
}

fn set(assignment: &str) -> String {
    bad(|l| l.set(assignment))
}

fn environment(l: &mut Layering<'_>, name: &str, value: &str) {
    l.environment([(name.to_owned(), value.to_owned())]);
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::with_suffix(".toml").expect("a file");
    std::fs::write(file.path(), text).expect("written");
    file
}

#[test]
fn every_layer_overrides_the_layers_below() {
    let config = file("[train]\nlr = 2.0");
    type Layer<'a> = (&'a dyn Fn(&mut Layering<'_>), f64, String);
    let layers: [Layer<'_>; 4] = [
        (
            &|l| l.file(config.path()).expect("a file"),
            2.0,
            format!("file {}", config.path().display()),
        ),
        (
            &|l| environment(l, "REPRPO_TRAIN__LR", "3.0"),
            3.0,
            "environment REPRPO_TRAIN__LR".into(),
        ),
        (&|l| l.flag("--lr", "train.lr", "4.0"), 4.0, "flag --lr".into()),
        (&|l| l.set("train.lr=5.0").expect("a path"), 5.0, "--set".into()),
    ];
    // For every subset of the layers, the highest layer in the subset takes effect.
    for chosen in 0u8..16 {
        let present: Vec<_> = layers
            .iter()
            .enumerate()
            .filter(|(i, _)| chosen & (1 << i) != 0)
            .map(|(_, l)| l)
            .collect();
        let r = good(|l| present.iter().for_each(|(add, ..)| add(l)));
        let (value, origin) =
            present.last().map_or((5e-4, "default"), |(_, v, o)| (*v, o.as_str()));
        assert_eq!(
            (r.experiment.train.lr, r.origins.get("train.lr").map(ToString::to_string).as_deref()),
            (value, Some(origin))
        );
    }
}

#[test]
fn the_origin_of_a_plugins_defaults_is_the_plugin() {
    let r = good(|l| l.flag("--intervention", "intervention", "strong"));
    assert_eq!(r.experiment.intervention.json(), r#"{"beta":0.1,"rank":8}"#);
    let origin = |path: &str| r.origins.get(path).map(ToString::to_string).unwrap_or_default();
    assert_eq!(origin("intervention.name"), "flag --intervention");
    assert_eq!(origin("intervention.beta"), "default of strong");
    assert_eq!(origin("adapter.name"), "default");
    assert_eq!(origin("model"), "default");
}

#[test]
fn the_default_learning_rate_is_the_interventions_times_the_adapters_factor() {
    let of = |intervention: &str, adapter: &str, set: Option<&str>| {
        let r = good(|l| {
            l.flag("--intervention", "intervention", intervention);
            l.flag("--adapter", "adapter", adapter);
            set.into_iter().for_each(|s| l.set(s).expect("a path"));
        });
        (
            r.experiment.train.lr,
            r.origins.get("train.lr").map(ToString::to_string).unwrap_or_default(),
        )
    };
    assert_eq!(of("strong", "patch", None), (5e-4, "default".to_owned()));
    assert_eq!(of("swift", "patch", None), (2e-3, "default of swift".to_owned()));
    assert_eq!(of("strong", "stiff", None), (1.5e-3, "default of stiff".to_owned()));
    assert_eq!(of("swift", "stiff", None), (6e-3, "default of swift × stiff".to_owned()));
    // A value that the user sets overrides the default.
    assert_eq!(of("swift", "stiff", Some("train.lr=1e-5")), (1e-5, "--set".to_owned()));
}

#[test]
fn text_is_converted_to_the_type_of_its_field() {
    let r = good(|l| {
        l.flag("--layers", "tap.layers", "10");
        environment(l, "REPRPO_INTERVENTION__RANK", "none");
        l.set("eval.max_pairs=null").expect("a path");
        l.set("transform=none").expect("a path");
        l.set("model=123").expect("a path");
        l.set("eval.splits=[\"test\"]").expect("a path");
    });
    assert_eq!(r.experiment.tap.config["layers"], json!("10"));
    assert_eq!(r.experiment.intervention.config["rank"], Value::Null);
    assert_eq!(r.experiment.eval.max_pairs, None);
    assert_eq!(r.experiment.model, "123");
    assert_eq!(r.experiment.eval.splits, Some(vec!["test".to_owned()]));
}

#[test]
fn an_alias_becomes_the_name() {
    assert_eq!(good(|l| l.flag("--tap", "tap", "river")).experiment.tap.name, "stream");
}

#[test]
fn a_written_experiment_is_read_back_unchanged() {
    let r = good(|l| {
        for s in [
            "eval.max_pairs=none",
            "train.eps=1e-12",
            "train.seed=9223372036854775807",
            "model=a\"b\\c\n#'''",
            "intervention.beta=1e300",
        ] {
            l.set(s).expect("a path");
        }
    });
    let written = file(&r.experiment.to_toml());
    let registry = Registry::builtin().expect("plugins");
    assert_eq!(
        Experiment::read(written.path(), &registry)
            .unwrap_or_else(|e| panic!("{e:?}\n{}", r.experiment.to_toml())),
        r.experiment
    );
    let commented = file(&r.to_toml_with_origins());
    assert_eq!(Experiment::read(commented.path(), &registry).expect("comments"), r.experiment);
    assert!(
        r.to_toml_with_origins().contains("[train]\nlr = 0.0005"),
        "{}",
        r.to_toml_with_origins()
    );
}

#[test]
fn numbers_in_pythons_notation_are_accepted_everywhere() {
    let r = good(|l| {
        l.set("train.lr=.0001").expect("a path");
        l.set("intervention.beta=+1.e-1").expect("a path");
        l.flag("--seed", "train.seed", "+7");
        environment(l, "REPRPO_TRAIN__WARMUP", ".5");
    });
    let train = &r.experiment.train;
    assert_eq!((train.lr, train.seed, train.warmup), (0.0001, 7, 0.5));
    assert_eq!(r.experiment.intervention.config["beta"], json!(0.1));
    assert!(set("train.lr=.x").contains("expected a number"), "`.x` is not a number");
}

#[test]
fn a_data_set_is_chosen_by_name_text_or_file() {
    let of = |text: &str| good(|l| l.flag("--dataset", "dataset", text)).experiment.dataset;
    assert_eq!(
        (of("fixed").name.as_str(), of("lines:a b").config["path"].clone()),
        ("fixed", json!("a b"))
    );
    let pairs = tempfile::NamedTempFile::with_suffix(".JSONL").expect("a file");
    let path = pairs.path().to_string_lossy().into_owned();
    assert_eq!((of(&path).name.as_str(), of(&path).config["path"].clone()), ("lines", json!(path)));
    let packed = tempfile::NamedTempFile::with_suffix(".jsonl.GZ").expect("a file");
    let path = packed.path().to_string_lossy().into_owned();
    assert_eq!((of(&path).name.as_str(), of(&path).config["path"].clone()), ("lines", json!(path)));
    assert_eq!((of("-").name.as_str(), of("-").config["path"].clone()), ("lines", json!("-")));
    // The first setting selects `lines` and its path `x`. Selecting another data set afterwards
    // discards the path.
    let r = good(|l| {
        l.flag("--dataset", "dataset", "lines:x");
        l.set("dataset=fixed").expect("a path");
    });
    assert_eq!(r.experiment.dataset.json(), "{}");
}

#[test]
fn another_plugin_than_that_of_a_run_ignores_the_fields_in_the_runs_file() {
    let text = "[dataset]\nname = \"lines\"\npath = \"x\"\n";
    let record =
        "[record]\nfolder = \".\"\ndata = {}\n[record.model]\nsha256 = \"00\"\nof = \"m\"\n";
    let chosen = |text: &str, name: &str| {
        let config = file(text);
        resolve(|l| {
            l.file(config.path())?;
            l.flag("--dataset", "dataset", name);
            Ok(())
        })
    };
    let of_run = format!("{text}{record}");
    let other = chosen(&of_run, "fixed").expect("it resolves").experiment.dataset;
    assert_eq!((other.name.as_str(), other.json().as_str()), ("fixed", "{}"));
    let same = chosen(&of_run, "lines").expect("it resolves").experiment.dataset;
    assert!(same.config["path"].as_str().is_some_and(|path| path.ends_with('x')));
    // The user's own file is not ignored.
    let e = format!("{:?}", chosen(text, "fixed").expect_err("an error"));
    assert!(e.contains("dataset `fixed` has no field `path`"), "{e}");
}

#[test]
fn errors_about_data_sets_explain_the_choices() {
    let of = |text: &str| {
        bad(|l| {
            l.flag("--dataset", "dataset", text);
            Ok(())
        })
    };
    assert_eq!(
        of("fixd"),
        "unknown dataset `fixd`\n  hint: did you mean `fixed`?\n  hint: valid: fixed, lines, \
            sheet\n  hint: supported file extensions: .jsonl, .jsonl.gz, .rows"
    );
    assert_eq!(
        of("fixed:x"),
        "dataset `fixed` does not take a value after a colon, but was given `x`\n  hint: write \
            `--dataset fixed`, and set its fields with `--set dataset.FIELD=VALUE`"
    );
    assert_eq!(
        of("gone.jsonl"),
        "there is no file `gone.jsonl`\n  hint: check the path; relative paths are resolved \
            against the current folder"
    );
    assert!(
        of("a/b.jsonl.gz").starts_with("there is no file `a/b.jsonl.gz`"),
        "it is not a repository"
    );
    assert!(
        of("my pairs.rows")
            .contains("`--dataset 'lines:my pairs.rows'` or `--dataset 'sheet:my pairs.rows'`"),
        "the command in the hint must be quoted for a shell"
    );
    assert_eq!(
        of("pairs.csv"),
        "no dataset can open `pairs.csv`\n  hint: supported file extensions: \
            .jsonl, .jsonl.gz, .rows"
    );
    assert_eq!(
        of("pairs.rows"),
        "several datasets can read `pairs.rows`: lines, sheet\n  hint: choose one with \
            `--dataset lines:pairs.rows` or `--dataset sheet:pairs.rows`"
    );
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(
        of(&folder.path().to_string_lossy()),
        format!(
            "`{}` is a folder, not a file of preference pairs\n  hint: supported file \
                extensions: .jsonl, .jsonl.gz, .rows",
            folder.path().display()
        )
    );
    let e = bad(|l| {
        environment(l, "REPRPO_DATASET", "fixd");
        Ok(())
    });
    assert!(
        e.starts_with(
            "`dataset` in environment REPRPO_DATASET cannot be used\n  because \
        unknown dataset `fixd`"
        ),
        "{e}"
    );
}

#[test]
fn the_error_for_an_unknown_field_names_the_nearest_field() {
    assert_eq!(
        set("modle=x"),
        "unknown configuration field `modle` (--set)\n  hint: did you mean `model`?\n  hint: \
            valid: adapter, attention, cache, dataset, deterministic, device, dtype, eval, \
            init_adapter, init_transform, intervention, model, out, plugins, quantize_base, \
            recipe, shard_base, tap, tf32, train, transform"
    );
    assert_eq!(
        set("eval.token=1"),
        "unknown configuration field `eval.token` (--set)\n  hint: did you mean `eval.tokens`?\n  \
            hint: valid: eval.completion_tokens, eval.completions, eval.enabled, eval.instruction, \
            eval.kl, eval.max_pairs, eval.overlap, eval.score, eval.shifts, eval.splits, \
            eval.states, eval.suite, eval.tokens"
    );
    assert!(set("lr=1").contains("hint: did you mean `train.lr`?"));
    assert!(set("trian.lr=1").contains("hint: did you mean `train.lr`?"));
    assert_eq!(
        set("intervention.bta=1"),
        "intervention `strong` has no field `bta` (--set)\n  hint: did you mean \
            `intervention.beta`?\n  hint: valid: intervention.beta, intervention.rank"
    );
    assert_eq!(
        bad(|l| {
            l.flag("--data-dir", "dataset.data_dir", "x");
            Ok(())
        }),
        "dataset `fixed` has no field `data_dir` (flag --data-dir)\n  hint: `lines`, `sheet` have \
            that field, but the dataset is `fixed` by default\n  hint: `fixed` has no fields"
    );
    let e = bad(|l| {
        l.set("intervention.beta=1")?;
        l.flag("--intervention", "intervention", "plain");
        Ok(())
    });
    assert_eq!(
        e,
        "intervention `plain` has no field `beta` (--set)\n  hint: `strong` has that field, but \
            the intervention is `plain` by flag --intervention\n  hint: `plain` has no fields"
    );
}

#[test]
fn the_error_for_an_unknown_variable_names_the_nearest_variable() {
    let of = |name: &str| {
        bad(|l| {
            environment(l, name, "1");
            Ok(())
        })
    };
    assert!(of("REPRPO_TRAIN__LRR").starts_with(
        "the environment variable `REPRPO_TRAIN__LRR` \
        does not name a configuration field\n  hint: did you mean `REPRPO_TRAIN__LR`?\n  hint: \
        valid: REPRPO_TRAIN__ACCUMULATE, "
    ));
    assert!(of("REPRPO_MODLE").starts_with(
        "the environment variable `REPRPO_MODLE` does not name a \
            configuration field\n  hint: did you mean `REPRPO_MODEL`?\n"
    ));
    good(|l| environment(l, "REPRPO_CACHE", "/x"));
    good(|l| environment(l, "PATH", "/x"));
}

#[test]
fn errors_about_values_name_the_origin() {
    assert_eq!(
        set("train.lr=abc"),
        "`train.lr` is not valid (--set)\n  because invalid type: string \"abc\", expected a \
            number\n  hint: see `reprpo config schema` for all fields"
    );
    assert_eq!(
        set("intervention.beta=abc"),
        "`intervention.beta` of intervention `strong` is not valid (--set)\n  because invalid \
            type: string \"abc\", expected a number\n  hint: see `reprpo explain strong` for its \
            fields"
    );
    assert_eq!(set("train.lr=0"), "`train.lr` is 0 (--set), but must be greater than 0");
    assert_eq!(
        set("train.lr=nan"),
        "`train.lr` is not valid (--set)\n  because invalid type: string \"NaN\", expected a \
            number\n  hint: see `reprpo config schema` for all fields"
    );
    assert_eq!(
        set("device=gpu"),
        "`device` is `gpu` (--set), but must be `auto`, `cpu`, `cuda` or `cuda:N`"
    );
    assert_eq!(
        set("train.max_pairs=0"),
        "`train.max_pairs` is 0 (--set), but must be 1 or more, or `none`"
    );
    assert_eq!(
        set("dtype=f16"),
        "`dtype` is not valid (--set)\n  because `f16` is not supported: gradients underflow to 0 \
            because of its small range, and loss scaling would change the gradients that methods \
            read; choose `f32`, or `bf16` on a GPU of compute capability 8.0 or above\n  hint: see \
            `reprpo config schema` for all fields"
    );
    assert_eq!(
        set("dtype=fp8"),
        "`dtype` is not valid (--set)\n  because unknown variant `fp8`, expected one of `auto`, \
            `f32`, `bf16`\n  hint: see `reprpo config schema` for all fields"
    );
    for (setting, error) in [
        (
            "train.keep_best=true",
            "`train.keep_best` is true (--set), but must be false unless `train.validate_every` \
                is set",
        ),
        (
            "train.patience=3",
            "`train.patience` is 3 (--set), but must be `none` unless `train.validate_every` is \
                set",
        ),
        (
            "train.validation_pairs=8",
            "`train.validation_pairs` is 8 (--set), but must be `none` unless \
                `train.validate_every` is set",
        ),
        (
            "train.validate_every=0",
            "`train.validate_every` is 0 (--set), but must be 1 or more, or `none`",
        ),
    ] {
        assert_eq!(set(setting), error);
    }
    assert_eq!(
        set("train=3"),
        "`train` in --set is a section, not a value\n  hint: set one of its fields, e.g. `train.lr`"
    );
    assert_eq!(
        set("train.lr"),
        "`--set train.lr` is not an assignment\n  hint: write `--set train.lr=3e-5`"
    );
    assert!(set("train.lr.x=1").starts_with("`train.lr` is not valid"), "{}", set("train.lr.x=1"));
    assert!(
        set("model.x=1").starts_with("unknown configuration field `model.x` (--set)"),
        "{}",
        set("model.x=1")
    );
    assert!(
        set("intervention.name.x=1").starts_with("intervention `strong` has no field `name.x`"),
        "{}",
        set("intervention.name.x=1")
    );
}

#[test]
fn errors_about_files_name_the_file_and_the_line() {
    let broken = file("[train]\nlr = = 1\n");
    assert!(bad(|l| l.file(broken.path())).starts_with(&format!(
        "the configuration file `{}` is not TOML\n  because line 2, column 6: ",
        broken.path().display()
    )));
    assert!(
        bad(|l| l.file(std::path::Path::new("gone.toml")))
            .starts_with("cannot read the configuration file `gone.toml`\n  because No such file")
    );
    let number = file("intervention = 3");
    assert!(bad(|l| l.file(number.path())).starts_with("`intervention` in file "));
    let table = file("[model]\nx = 1");
    assert!(
        bad(|l| l.file(table.path())).starts_with("unknown configuration field `model.x` (file ")
    );
}

#[test]
fn without_defaults_a_plugin_must_be_chosen() {
    let registry = Registry::builtin().expect("plugins");
    let e = Layering::new(&registry).resolve().expect_err("an error");
    assert_eq!(
        format!("{e:?}"),
        "no intervention is chosen\n  hint: choose one with `--intervention NAME` (see \
            `reprpo list interventions`)"
    );
}

#[test]
fn the_schema_describes_every_plugin() {
    let schema = schema(&Registry::builtin().expect("plugins")).expect("a schema");
    for kind in Kind::ALL {
        assert!(
            schema["properties"][kind.name()]["anyOf"].as_array().is_some_and(|a| !a.is_empty()),
            "{schema:#}"
        );
    }
    let strong = schema["properties"]["intervention"]["anyOf"]
        .as_array()
        .expect("choices")
        .iter()
        .find(|s| s["title"] == "strong")
        .expect("strong");
    assert_eq!(strong["properties"]["beta"]["description"], "Strength, in nats.");
}

proptest::proptest! {
    #[test]
    fn no_assignment_panics(path in "[a-z_.]{0,20}", value in ".{0,20}") {
        let _ = resolve(|l| l.set(&format!("{path}={value}")));
    }

    #[test]
    fn no_field_panics(section in "(train|eval|intervention|tap|dataset)",
        field in "(lr|seed|splits|beta|layers|name|path|rank)",
        value in "[\\[\\]{}\"'a-z0-9.=,# -]{0,12}") {
        let _ = resolve(|l| l.set(&format!("{section}.{field}={value}")));
    }
}

const RECIPE: &str = r#"
[recipe]
name = "mild_mix"
summary = "for tests"
reference = "this test"

[intervention]
name = "strong"
beta = 0.7

[train]
lr = 1.5
batch = 3
"#;

crate::recipe!(RECIPE);

#[test]
fn a_recipe_overrides_the_defaults_and_nothing_else() {
    let config = file("recipe = \"mild_mix\"\n[train]\nbatch = 8");
    let r = good(|l| {
        l.file(config.path()).expect("a file");
        l.set("intervention.rank=4").expect("a path");
    });
    let value = |path: &str| {
        r.experiment
            .to_json()
            .pointer(&format!("/{}", path.replace('.', "/")))
            .cloned()
            .expect("a value")
    };
    let origin = |path: &str| r.origins.get(path).map(ToString::to_string).unwrap_or_default();
    for (path, expected, from) in [
        ("recipe", json!("mild_mix"), format!("file {}", config.path().display())),
        ("train.lr", json!(1.5), "recipe mild_mix".into()),
        ("train.batch", json!(8), format!("file {}", config.path().display())),
        ("train.accumulate", json!(2), "default".into()),
        ("intervention.name", json!("strong"), "recipe mild_mix".into()),
        ("intervention.beta", json!(0.7), "recipe mild_mix".into()),
        ("intervention.rank", json!(4), "--set".into()),
        ("model", json!("tiny"), "default".into()),
    ] {
        assert_eq!((value(path), origin(path)), (expected, from), "{path}");
    }
    // The flag replaces the recipe's intervention, so the recipe's values for that intervention are
    // discarded.
    let r = good(|l| {
        l.flag("--recipe", "recipe", "mild_mix");
        l.flag("--intervention", "intervention", "plain");
    });
    assert_eq!((r.experiment.intervention.json().as_str(), r.experiment.train.lr), ("{}", 1.5));
    // A later choice of a recipe replaces an earlier one, and `none` means no recipe.
    let none = good(|l| {
        l.file(config.path()).expect("a file");
        l.set("recipe=none").expect("a path");
    });
    assert_eq!(
        (none.experiment.recipe, none.experiment.train.lr, none.experiment.train.batch),
        (None, 5e-4, Batch::Pairs(8))
    );
    assert_eq!(good(|l| environment(l, "REPRPO_RECIPE", "mild_mix")).experiment.train.lr, 1.5);
}

#[test]
fn an_experiment_with_a_recipe_is_read_back_unchanged() {
    let r = good(|l| {
        l.flag("--recipe", "recipe", "mild_mix");
        l.set("intervention=plain").expect("a path");
        l.set("train.lr=2.5").expect("a path");
    });
    let written = file(&r.experiment.to_toml());
    assert_eq!(
        Experiment::read(written.path(), &Registry::builtin().expect("plugins"))
            .expect("an experiment"),
        r.experiment
    );
}

#[test]
fn the_error_for_an_unknown_recipe_names_the_nearest_recipe() {
    assert_eq!(
        bad(|l| {
            l.flag("--recipe", "recipe", "mild-mix");
            Ok(())
        }),
        "unknown recipe `mild-mix`\n  hint: did you mean `mild_mix`?\n  hint: valid: mild_mix\n  \
            hint: run `reprpo list recipes` for a description of each\n  hint: no plugin libraries \
            are loaded; load one with `--plugin FILE`"
    );
    assert!(
        set("recipe=gone")
            .starts_with("`recipe` in --set cannot be used\n  because unknown recipe `gone`"),
        "{}",
        set("recipe=gone")
    );
    let number = file("recipe = 3");
    assert!(bad(|l| l.file(number.path())).starts_with("`recipe` in file "));
    assert!(
        set("recipe.name=x").starts_with("unknown configuration field `recipe.name`"),
        "{}",
        set("recipe.name=x")
    );
}

/// A saved adapter of type `tune` with r = 16.
fn saved_adapter() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let config = json!({ "peft_type": "TUNE", "r": 16, "alpha": 32.0, "pattern": { "a": 4 },
        "layers": [0, 2] });
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).expect("written");
    let tensor = tch::Tensor::zeros([1], (tch::Kind::Float, tch::Device::Cpu));
    crate::weights::write_safetensors(
        &dir.path().join("adapter_model.safetensors"),
        &[("base_model.x".to_owned(), tensor)],
    )
    .expect("written");
    dir
}

fn starts_from(l: &mut Layering<'_>, dir: &tempfile::TempDir) {
    l.flag("--init-adapter", "init_adapter", dir.path().to_str().expect("UTF-8"));
    l.start_from_adapter();
}

#[test]
fn a_saved_adapter_sets_the_adapter_fields_and_is_their_origin() {
    let dir = saved_adapter();
    let r = good(|l| starts_from(l, &dir));
    assert_eq!(r.experiment.adapter.name, "tune");
    assert_eq!(
        r.experiment.adapter.json(),
        r#"{"r":16,"alpha":32.0,"dropout":0.0,"pattern":{"a":4},"layers":[0,2]}"#
    );
    let origin =
        |r: &Resolved, path: &str| r.origins.get(path).map(ToString::to_string).unwrap_or_default();
    for field in ["adapter.name", "adapter.r", "adapter.dropout", "adapter.pattern"] {
        assert_eq!(origin(&r, field), format!("adapter {}", dir.path().display()));
    }
    // A setting that agrees with the saved adapter is accepted, however the value is written.
    let again = [
        "adapter.name=tuner",
        "adapter.r=16",
        "adapter.alpha=32",
        "adapter.pattern={a=4}",
        "adapter.layers=[2, 0]",
    ];
    let same = good(|l| {
        starts_from(l, &dir);
        again.iter().for_each(|s| l.set(s).expect("a path"));
    });
    assert_eq!(same.experiment.adapter, r.experiment.adapter);
    // An adjustable field may differ from the saved adapter.
    let changed = good(|l| {
        starts_from(l, &dir);
        l.set("adapter.dropout=0.5").expect("a path");
    });
    assert_eq!(changed.experiment.adapter.config["dropout"], json!(0.5));
    assert_eq!(
        (origin(&changed, "adapter.dropout"), origin(&changed, "adapter.r")),
        ("--set".to_owned(), origin(&r, "adapter.r"))
    );
    // Without `start_from_adapter`, the adapter's files are not read and need not exist. The
    // configuration of a finished run is read in this way.
    assert_eq!(
        good(|l| l.flag("--init-adapter", "init_adapter", "/no/such/folder"))
            .experiment
            .adapter
            .name,
        "patch"
    );
    assert_eq!(good(|l| l.start_from_adapter()).experiment.adapter.name, "patch");
}

#[test]
fn a_setting_that_contradicts_a_saved_adapter_is_refused_with_both_values_and_their_origins() {
    let dir = saved_adapter();
    let place = dir.path().display();
    let with = |fill: &dyn Fn(&mut Layering<'_>)| {
        bad(|l| {
            starts_from(l, &dir);
            fill(l);
            Ok(())
        })
    };
    let e = with(&|l| l.flag("--adapter", "adapter", "patch"));
    assert!(
        e.starts_with(&format!(
            "`adapter.name` is `patch` (flag --adapter), but the adapter \
        in `{place}` is of type `tune`"
        )),
        "{e}"
    );
    let e = with(&|l| l.set("adapter.r=2").expect("a path"));
    assert!(
        e.starts_with(&format!(
            "`adapter.r` is `2` (--set), but the adapter in `{place}` was saved with `16`"
        )),
        "{e}"
    );
    assert!(e.contains("only `adapter.dropout` can be changed"), "{e}");
    let e = with(&|l| environment(l, "REPRPO_ADAPTER__ALPHA", "8"));
    assert!(
        e.contains("`adapter.alpha` is `8` (environment REPRPO_ADAPTER__ALPHA)")
            && e.contains("`32.0`"),
        "{e}"
    );
    let config = file("[adapter]\nlayers = [0]");
    let e = with(&|l| l.file(config.path()).expect("a file"));
    assert!(
        e.contains(&format!("`adapter.layers` is `[0]` (file {})", config.path().display())),
        "{e}"
    );
    let e = with(&|l| l.set("adapter.pattern.b=2").expect("a path"));
    assert!(
        e.contains(r#"`adapter.pattern` is `{"a":4,"b":2}` (--set)"#) && e.contains(r#"`{"a":4}`"#),
        "{e}"
    );
    // An unknown field is reported as usual.
    assert!(with(&|l| l.set("adapter.rr=2").expect("a path")).contains("has no field `rr`"));
    assert!(
        with(&|l| l.flag("--init-adapter", "init_adapter", "/no/such/folder"))
            .contains("/no/such/folder")
    );
}

#[test]
fn the_saved_adapter_of_a_run_replaces_the_adapter_in_the_runs_file() {
    let dir = saved_adapter();
    let config = file("[adapter]\nname = \"tune\"\nr = 3\npattern = { b = 1 }\n[train]\nlr = 2.0");
    let of_run = |l: &mut Layering<'_>| {
        l.file(config.path())?;
        l.adapter(dir.path())
    };
    let r = resolve(of_run).expect("it resolves");
    assert_eq!(
        (&r.experiment.adapter.config["r"], &r.experiment.adapter.config["pattern"]),
        (&json!(16), &json!({ "a": 4 }))
    );
    assert_eq!(r.experiment.train.lr, 2.0);
    let e = bad(|l| {
        of_run(l)?;
        l.set("adapter.r=2")
    });
    assert!(e.contains("`adapter.r` is `2` (--set)"), "{e}");
}
