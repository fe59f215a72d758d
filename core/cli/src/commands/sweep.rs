//! `reprpo sweep`: reads a study, runs it and prints its tables.

mod input;
mod launch;

use std::io::BufRead;
use std::path::{Path, PathBuf};

use reprpo_core::config::Experiment;
use reprpo_core::error::{Context, quoted};
use reprpo_core::files::write_whole;
use reprpo_core::study::plan::most_steps;
use reprpo_core::study::runner::Board;
use reprpo_core::study::sampler::{self, Channel, Conversation};
use reprpo_core::study::{self, Plan, Results, State, Study};
use reprpo_core::{Error, Result};
use serde_json::Value;

use input::plan;
use launch::Launch;

use crate::App;
use crate::args::SweepArgs;

pub fn run(args: &SweepArgs, app: &App<'_>) -> Result<()> {
    let mut plan = plan(args, app)?;
    refuse_environment(&plan)?;
    let out = folder(args, &plan)?;
    if plan.file.is_none() {
        plan.name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
    }
    let plan = plan;
    let runner = Launch::new(args, &plan)?;
    let resolver = |base: &[_], over: &[_]| {
        let mut flags = args.experiment.clone();
        flags.output.remove("out");
        let mut resolved = flags.resolve_within(app, base, over)?;
        runner.share_values(&mut resolved.experiment, &out);
        Ok(resolved)
    };
    // Resolve every experiment before the first run. A mistake is then reported immediately, not
    // after hours of training.
    let experiments = plan.resolve_all(&resolver)?;
    if args.dry_run {
        return app.printer.data(&describe(&plan, &experiments, &out));
    }
    let lock = lock(&out)?;
    study::wait_for_workers(&out, || {
        app.printer.note("waiting for runs of an earlier process, which write their checkpoints");
    })?;
    let external = plan.search.as_ref().is_some_and(|s| s.sampler == sampler::Kind::External);
    let conversation = external.then(|| Conversation::open(Box::new(Lines), &out)).transpose()?;
    if let Some(conversation) = &conversation {
        conversation.borrow_mut().send(&study::start(&plan))?;
    }
    let command: Vec<String> = std::env::args().collect();
    let results = {
        let mut runner = runner.runner(&plan, &out, &experiments, app)?;
        let mut monitor = app.printer.monitor();
        let jobs = args.jobs.unwrap_or(1);
        let mut board = Board::new(monitor.as_mut(), plan.most_runs(), jobs);
        let study = Study {
            plan: &plan,
            folder: &out,
            command: &command,
            registry: app.registry,
            resolver: &resolver,
            conversation,
        };
        study.run(runner.as_mut(), &mut board)?
    };
    drop(lock);
    report(args, &plan, &results, &out, external, app)
}

/// Writes and prints the results.
fn report(
    args: &SweepArgs,
    plan: &Plan,
    results: &Results,
    out: &Path,
    external: bool,
    app: &App<'_>,
) -> Result<()> {
    let total = results.runs.len();
    if results.submitted {
        if results.found > 0 {
            app.printer.note(&format!("{} of {total} runs are finished", results.found));
        }
        return Ok(());
    }
    let json = study::json(plan, results);
    write_whole(&out.join("summary.json"), format!("{json:#}\n").as_bytes())?;
    write_whole(&out.join("summary.md"), study::text_of(plan, results, true).as_bytes())?;
    if results.found == total {
        app.printer.note(&format!("nothing to do: {total} of {total} runs are finished"));
    } else if results.found > 0 {
        let found = results.found;
        app.printer.note(&format!("{found} of {total} runs were already finished"));
    }
    app.printer.note(&format!("the study is in `{}`", out.display()));
    let text = study::text_of(plan, results, false);
    match (args.json, external) {
        // An external sampler reads stdout.
        (_, true) => app.printer.note(&text),
        (true, false) => app.printer.json(&json)?,
        (false, false) => app.printer.data(&text)?,
    }
    let failed = results.runs.values().filter(|run| run.state != State::Finished).count();
    let hint = || {
        format!(
            "see the errors above; to run only what is missing, repeat the command with `--out {}`",
            quoted(out)
        )
    };
    match (failed, results.errors.first()) {
        (0, None) => Ok(()),
        (0, Some((group, error))) => {
            let group = &plan.groups[*group];
            Err(Error::new(format!("the search of `{}` failed: {error}", group.name)).hint(
                format!(
                    "look at the runs in `{}`; a method that is not trained needs `search = false`",
                    quoted(out)
                ),
            ))
        }
        (failed, _) => Err(Error::new(format!("{failed} of {total} runs failed")).hint(hint())),
    }
}

/// Refuses environment variables that set a field which the study varies. The processes of the runs
/// would otherwise use the value of the variable.
fn refuse_environment(plan: &Plan) -> Result<()> {
    for field in plan.varied() {
        let name = format!("REPRPO_{}", field.replace('.', "__").to_uppercase());
        if std::env::var_os(&name).is_some() {
            return Err(Error::new(format!(
                "the study varies `{field}`, but the environment variable `{name}` sets it"
            ))
            .hint(format!("unset it: `unset {name}`")));
        }
    }
    Ok(())
}

/// Returns the folder of the study: `--out`, `runs/NAME` for a study file, or the first unused name
/// `runs/sweep-N` for a grid.
fn folder(args: &SweepArgs, plan: &Plan) -> Result<PathBuf> {
    let out = match args.experiment.output.get("out") {
        Some(out) => PathBuf::from(out),
        None if plan.file.is_some() => Path::new("runs").join(&plan.name),
        None => {
            let mut names = (1u32..).map(|n| Path::new("runs").join(format!("sweep-{n}")));
            return names
                .find(|p| !p.exists())
                .ok_or_else(|| Error::internal("there is no unused folder name in `runs`"));
        }
    };
    if out.join("config.toml").exists() {
        return Err(Error::new(format!(
            "`{}` is the folder of a run, not of a study",
            out.display()
        ))
        .hint("choose a different `--out`"));
    }
    Ok(out)
}

/// Locks the folder of the study, so that only one process runs it.
fn lock(out: &Path) -> Result<std::fs::File> {
    std::fs::create_dir_all(out)
        .within(|| format!("cannot create the folder `{}`", out.display()))?;
    let path = out.join(".lock");
    let file =
        std::fs::File::create(&path).within(|| format!("cannot write `{}`", path.display()))?;
    match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::new(format!("another process is running the study in `{}`", out.display()))
                .hint("wait for it to finish, or choose a different `--out`"))
        }
        // Some file systems do not support locks.
        Err(std::fs::TryLockError::Error(_)) | Ok(()) => Ok(file),
    }
}

/// The plan as text, for `--dry-run`.
fn describe(plan: &Plan, experiments: &[Experiment], out: &Path) -> String {
    let mut lines =
        vec![format!("`{}`: at most {} runs in `{}`", plan.name, plan.most_runs(), out.display())];
    if let Some(search) = &plan.search {
        lines.push(format!(
            "search: sampler `{}`, seed {}, selects on {}",
            search.sampler.name(),
            search.seed,
            match search.select_on_shift {
                true => "the SHIFTED SET `oos`",
                false => "held-out training pairs",
            }
        ));
    }
    for (group, experiment) in plan.groups.iter().zip(experiments) {
        let searched = plan.search.as_ref().filter(|_| !group.space.is_empty());
        let (search, points) = searched.map_or((String::new(), 1), |search| {
            let (runs, cost) = search.cost(&group.space);
            let points = if plan.all_points { search.points(&group.space) } else { 1 };
            let cost = match (cost - runs as f64).abs() > 1e-9 {
                true => format!(" at the cost of {cost:.1} full ones"),
                false => String::new(),
            };
            (format!("{runs} runs of the search{cost}, "), points)
        });
        let finals = points * group.seeds.len();
        let steps = most_steps(experiment).map_or_else(
            || "a number of steps that depends on the data".to_owned(),
            |steps| format!("at most {steps} steps"),
        );
        lines.push(format!(
            "  {}: {search}{finals} final run{}, each with {steps}; {} and `{}` on `{}`",
            group.name,
            if finals == 1 { "" } else { "s" },
            experiment.methods(),
            experiment.dataset.name,
            experiment.model,
        ));
    }
    lines.join("\n")
}

/// The connection to an external sampler: stdin and stdout.
struct Lines;

impl Channel for Lines {
    fn send(&mut self, message: &Value) -> Result<()> {
        use std::io::Write;

        let mut out = std::io::stdout().lock();
        writeln!(out, "{message}")
            .and_then(|()| out.flush())
            .map_err(|e| Error::new("the external sampler closed the connection").because(e))
    }

    fn receive(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        let read =
            read.map_err(|e| Error::new("cannot read from the external sampler").because(e))?;
        Ok((read > 0).then_some(line))
    }
}
