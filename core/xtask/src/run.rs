//! `cargo xtask demo` and `cargo xtask test`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::{Options, libtorch, model, paths, progress};

/// Default arguments of the demo. `--out` and the user's arguments follow. The user's arguments
/// override the defaults.
///
/// The demo enables the DPO term, because the hidden-state terms need more than 300 pairs to change
/// the model's preferences.
const DEMO_ARGS: [&str; 15] = [
    "run",
    "--intervention",
    "prefvec",
    "--adapter",
    "hra",
    "--model",
    "smollm2-135m-instruct",
    "--dataset",
    "synthetic",
    "--set",
    "intervention.lambda_dpo=1",
    "--set",
    "train.max_pairs=300",
    "--set",
    "train.lr=2e-3",
];

/// Sets up libtorch and a small model, builds `reprpo`, and trains the model on the data set
/// `synthetic`.
pub fn demo(options: &Options, args: &[String]) -> Result<ExitCode> {
    let libtorch = libtorch::set_up(options)?;
    model::set_up(model::default(), options)?;
    if let Some(failed) = finish(cargo(&libtorch).args(["build", "--release"]))? {
        return Ok(failed);
    }
    let checkout = paths::checkout();
    let mut reprpo = Command::new(paths::target().join("release/reprpo"));
    reprpo.current_dir(&checkout).args(DEMO_ARGS);
    if !names_out(args) {
        reprpo
            .arg("--out")
            .arg(free_folder(Path::new("runs"), |folder| checkout.join(folder).exists()));
    }
    Ok(finish(reprpo.args(args))?.unwrap_or(ExitCode::SUCCESS))
}

/// Sets up libtorch and a small model, and runs all tests.
pub fn test(options: &Options, args: &[String]) -> Result<ExitCode> {
    let libtorch = libtorch::set_up(options)?;
    model::set_up(model::default(), options)?;
    // The examples are a separate workspace, as they would be for a plugin author. `one-binary`
    // links plugins that the other examples build as shared libraries, so it needs a separate
    // build.
    let runs: [(&str, &[&str]); 3] = [
        (".", &["test", "--workspace"]),
        ("plugins/examples", &["test"]),
        ("plugins/examples", &["test", "-p", "one-binary"]),
    ];
    for (folder, command) in runs {
        let mut cargo = cargo(&libtorch);
        if let Some(failed) =
            finish(cargo.current_dir(paths::checkout().join(folder)).args(command).args(args))?
        {
            return Ok(failed);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns a command that runs cargo in the checkout, with `LIBTORCH` set to `libtorch`.
pub fn cargo(libtorch: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Override the inherited `LIBTORCH`, because it takes precedence over the configuration. Cargo
    // set the variable before the setup changed the configuration.
    cargo.current_dir(paths::checkout()).env("LIBTORCH", libtorch);
    // Unset the variables that cargo set for xtask. A plain `cargo build` does not set these
    // variables, and some crates are rebuilt when one of them changes.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(describes_this_package) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Returns true for variables with which cargo describes the current package, such as
/// `CARGO_PKG_NAME`.
fn describes_this_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| variable.starts_with(start))
}

/// Runs a command and waits for it to finish. Returns `None` on success, or else the exit code that
/// xtask should return.
pub fn finish(command: &mut Command) -> Result<Option<ExitCode>> {
    let words: Vec<_> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    progress::line(&format!("$ {}", words.join(" ")));
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run `{}`", words[0]))?;
    if status.success() {
        return Ok(None);
    }
    progress::line(&format!("error: `{}` failed: {status}", words[0]));
    Ok(Some(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .map_or(ExitCode::FAILURE, ExitCode::from),
    ))
}

fn names_out(args: &[String]) -> bool {
    args.iter().any(|arg| arg == "--out" || arg.starts_with("--out="))
}

/// Returns the first unused path among `demo`, `demo-2`, `demo-3`, … in `runs`, so that a demo
/// never overwrites an earlier one.
fn free_folder(runs: &Path, taken: impl Fn(&Path) -> bool) -> PathBuf {
    let names = std::iter::once("demo".to_owned()).chain((2..).map(|n| format!("demo-{n}")));
    names
        .map(|name| runs.join(name))
        .find(|folder| !taken(folder))
        .expect("the sequence of names is infinite")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_takes_the_next_free_folder() {
        assert_eq!(free_folder(Path::new("runs"), |_| false), Path::new("runs/demo"));
        let taken = [Path::new("runs/demo"), Path::new("runs/demo-2")];
        assert_eq!(
            free_folder(Path::new("runs"), |folder| taken.contains(&folder)),
            Path::new("runs/demo-3")
        );
    }

    #[test]
    fn only_variables_about_this_package_are_removed_for_cargo() {
        assert!(
            describes_this_package("CARGO_MANIFEST_DIR")
                && describes_this_package("CARGO_PKG_VERSION_MAJOR")
        );
        assert!(
            !describes_this_package("CARGO_TARGET_DIR")
                && !describes_this_package("CARGO_HOME")
                && !describes_this_package("LIBTORCH")
        );
    }

    #[test]
    fn an_out_flag_of_the_user_is_recognised() {
        assert!(names_out(&["--out".into(), "x".into()]));
        assert!(names_out(&["--out=x".into()]));
        assert!(!names_out(&["--seed".into(), "1".into()]));
    }
}
