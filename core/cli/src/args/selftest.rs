//! Arguments of `reprpo selftest`.

use clap::{Args, ValueEnum};
use reprpo_core::selftest::{Options, Section};

/// Test that reprpo computes correctly on this machine, and measure its speed.
///
/// The test generates its own models and data, so it needs no network and no files. For every
/// plugin and architecture, a run on the device is compared with the same run on the CPU. The exit
/// code is 1 if a check fails.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  reprpo selftest
  reprpo selftest --device cuda:0 --full --peer
  reprpo selftest --device cuda:0 --only attention --only methods
  reprpo --plugin libtwist.so selftest --only methods --only promises")]
pub struct SelftestArgs {
    /// The device to test: `auto`, `cpu`, `cuda` or `cuda:N`.
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Checks")]
    pub device: String,
    /// Run all checks. By default, only a subset is run, which takes about a minute.
    #[arg(long, help_heading = "Checks")]
    pub full: bool,
    /// Also compare the speed with TRL and PEFT, if they are installed for `python3`.
    #[arg(long, help_heading = "Checks")]
    pub peer: bool,
    /// Run only this section; may be repeated.
    #[arg(long, value_name = "SECTION", value_enum, help_heading = "Checks")]
    pub only: Vec<Only>,
    /// Print the report as a JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

impl SelftestArgs {
    /// Converts the flags to the options of the self-test.
    pub fn options(&self) -> Options {
        let only = self.only.iter().map(|only| only.0).collect();
        Options { device: self.device.clone(), full: self.full, peer: self.peer, only }
    }
}

/// A section of the test, given by name on the command line.
#[derive(Clone, Copy, Debug)]
pub struct Only(Section);

impl ValueEnum for Only {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [Only; Section::ALL.len()] = {
            let mut all = [Only(Section::Doctor); Section::ALL.len()];
            let mut i = 0;
            while i < all.len() {
                all[i] = Only(Section::ALL[i]);
                i += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.name()))
    }
}
