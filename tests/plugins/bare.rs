//! The command without built-in methods and data sets, so that everything it lists comes from
//! plugins.

fn main() -> std::process::ExitCode {
    reprpo_cli::main(include_str!("../../methods/defaults.toml"))
}
