//! Reads the study file or the grid, and the flags that change them.

use reprpo_core::error::Context;
use reprpo_core::registry::{Entry, Kind};
use reprpo_core::study::Plan;
use reprpo_core::study::file::{StudyFile, is_study};
use reprpo_core::study::sampler::{self, Settings};
use reprpo_core::{Error, Result};

use crate::App;
use crate::args::SweepArgs;

/// Reads the study file or the grid, and `--over`.
pub fn plan(args: &SweepArgs, app: &App<'_>) -> Result<Plan> {
    let overs: Vec<(String, Vec<String>)> =
        args.over.iter().map(|text| axis_of_flag(text, app)).collect::<Result<_>>()?;
    let Some(path) = &args.study else {
        if overs.is_empty() {
            return Err(Error::new("the sweep has no fields to vary")
                .hint("give a study file, or `--over adapter=lora,hra`"));
        }
        refuse_search_flags(args)?;
        return Plan::of_grid("sweep", &overs);
    };
    let within = || format!("cannot read the study `{}`", path.display());
    let text = std::fs::read_to_string(path).within(within)?;
    let mut table: toml::Table = toml::from_str(&text)
        .map_err(|e| Error::new(format!("`{}` is not TOML", path.display())).because(e))?;
    if !is_study(&table) {
        refuse_search_flags(args)?;
        table.remove("plugins");
        let axes = table.iter().map(|(field, value)| axis_of_file(field, value, app));
        let mut axes: Vec<_> =
            axes.collect::<Result<_>>().within(|| format!("in `{}`", path.display()))?;
        axes.extend(overs);
        if axes.is_empty() {
            return Err(Error::new(format!("`{}` has no fields to vary", path.display()))
                .hint("write one line per field, e.g. `adapter = [\"lora\", \"hra\"]`"));
        }
        return Plan::of_grid("sweep", &axes);
    }
    let mut file = StudyFile::read(path, &text, &table)?;
    match &mut file.search {
        None => refuse_search_flags(args)?,
        Some(search) => override_search(search, args)?,
    }
    Plan::of_study(file, &overs).within(|| format!("in the study `{}`", path.display()))
}

fn override_search(search: &mut Settings, args: &SweepArgs) -> Result<()> {
    if let Some(name) = &args.sampler {
        search.sampler = sampler::Kind::named(name)?;
    }
    search.trials = args.trials.or(search.trials);
    search.select_on_shift |= args.select_on_shift;
    if search.sampler == sampler::Kind::External && args.json {
        return Err(Error::new("`--json` cannot be used with an external sampler")
            .hint("the sampler reads stdout; the summary is in the study's `summary.json`"));
    }
    Ok(())
}

fn refuse_search_flags(args: &SweepArgs) -> Result<()> {
    let given = [
        ("--sampler", args.sampler.is_some()),
        ("--trials", args.trials.is_some()),
        ("--select-on-shift", args.select_on_shift),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((flag, _)) => Err(Error::new(format!("`{flag}` needs a study with a `[search]`"))
            .hint("write the searched fields in `[search.fields]` of a study file")),
    }
}

/// Parses `FIELD=V1,V2`, or `KIND=all` for every plugin of a kind.
fn axis_of_flag(text: &str, app: &App<'_>) -> Result<(String, Vec<String>)> {
    let malformed = || {
        Error::new(format!("`--over` must be `FIELD=V1,V2`, got `{text}`"))
            .hint("write `--over adapter=lora,hra`, or `--over adapter=all`")
    };
    let (field, values) = text.split_once('=').ok_or_else(malformed)?;
    let values: Vec<String> = values.split(',').map(|v| v.trim().to_owned()).collect();
    if field.trim().is_empty() || values.iter().any(String::is_empty) {
        return Err(malformed());
    }
    expanded(field.trim(), values, app)
}

/// Reads one entry of a grid file.
fn axis_of_file(field: &str, value: &toml::Value, app: &App<'_>) -> Result<(String, Vec<String>)> {
    let text = |v: &toml::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let values = match value {
        toml::Value::Array(values) => values.iter().map(text).collect(),
        toml::Value::Table(_) => {
            return Err(Error::new(format!("`{field}` in the grid is a table, not a list"))
                .hint(format!(
                    "write one line per field, e.g. `\"{field}.lr\" = [1e-4, 1e-3]`, and put \
                        values that all runs share into `--config FILE`"
                ))
                .hint("a study file has a table `[base]`, `[methods.NAME]` or `[search]`"));
        }
        value => vec![text(value)],
    };
    expanded(field, values, app)
}

fn expanded(field: &str, mut values: Vec<String>, app: &App<'_>) -> Result<(String, Vec<String>)> {
    if values == ["all"] {
        let Some(kind) = Kind::ALL.into_iter().find(|k| k.name() == field) else {
            return Err(Error::new(format!("`all` is not a valid value for `{field}`"))
                .hint(format!("use `all` only for: {}", Kind::ALL.map(Kind::name).join(", "))));
        };
        // An adapter that is made of other runs needs their folders, so `all` leaves it out.
        let runs = |entry: &Entry| !matches!(entry, Entry::Adapter(a) if a.needs_sources());
        values = app.registry.of(kind).filter(runs).map(|e| e.about().name.to_owned()).collect();
    }
    if values.is_empty() {
        return Err(Error::new(format!("`{field}` has no values to sweep over")));
    }
    Ok((field.to_owned(), values))
}
