//! Arguments of `reprpo selftest`.

use clap::{Args, ValueEnum};
use reprpo_core::selftest::{Options, Section};

/// Test that everything computes correctly on this machine, and measure how fast.
///
/// It makes its models and data on the spot, and needs no network and no files. Runs with every
/// plugin and architecture on the device are compared with the same runs on the CPU. The exit code
/// is 1 if anything disagrees.
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
    /// Run every check. Without it, a selection is run, which takes about a minute.
    #[arg(long, help_heading = "Checks")]
    pub full: bool,
    /// Also compare the speed with TRL and PEFT, if `python3` has them.
    #[arg(long, help_heading = "Checks")]
    pub peer: bool,
    /// Run only this section; can be given more than once.
    #[arg(long, value_name = "SECTION", value_enum, help_heading = "Checks")]
    pub only: Vec<Only>,
    /// Print the report as a JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

impl SelftestArgs {
    /// The extent of the test.
    pub fn options(&self) -> Options {
        let only = self.only.iter().map(|only| only.0).collect();
        Options { device: self.device.clone(), full: self.full, peer: self.peer, only }
    }
}

/// A section by its name.
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
