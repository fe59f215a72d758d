//! Arguments of `reprpo selftest`.

use clap::{Args, ValueEnum};
use reprpo_core::selftest::{Options, Section};

/// Test whether everything computes rightly on this machine, and how fast.
///
/// The models and the data are made on the spot, so that this needs no network and no files. The
/// exit code is 1 if anything disagrees.
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
    /// Run every check. Without it, a selection runs that takes about a minute.
    #[arg(long, help_heading = "Checks")]
    pub full: bool,
    /// Also measure TRL and PEFT, if `python3` has them.
    #[arg(long, help_heading = "Checks")]
    pub peer: bool,
    /// Run only this section; may be given again.
    #[arg(long, value_name = "SECTION", value_enum, help_heading = "Checks")]
    pub only: Vec<Only>,
    /// Print the result as a JSON object.
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
