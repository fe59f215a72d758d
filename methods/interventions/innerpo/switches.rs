//! Checks of the fields: their ranges, and that the selected variant and mode read them.

use reprpo_plugin::prelude::*;

use super::original::OuterLoss;
use super::{Dpo, Inner, InnerPo, Mode, Rejected};
use crate::interventions::original::Variant;
use crate::interventions::ranges::{above_zero, within, zero_or_more};

impl InnerPo {
    /// Checks that each field is valid, and that the selected variant and mode read the fields that
    /// are set.
    ///
    /// # Errors
    /// Fails if a number is out of range, or if a field would be ignored.
    pub(super) fn check(&self) -> Result<()> {
        if self.mode == Mode::Dpo && self.variant == Variant::Default {
            return Err(Error::new(
                "`mode = \"dpo\"` is only possible with `variant = \"original\"`",
            )
            .hint("use `--intervention dpo`"));
        }
        self.check_unread()?;
        if self.variant == Variant::Original && self.mode == Mode::Innerdpo {
            zero_or_more("original_trust_region", self.original_trust_region.unwrap_or(0.0))?;
        } else if let Some(tau) = self.original_trust_region {
            above_zero("original_trust_region", tau)?;
        }
        zero_or_more("alpha", self.alpha())?;
        for (field, value) in [
            ("inner_beta", self.inner_beta),
            ("tau", self.tau),
            ("original_beta", self.original_beta),
            ("original_eps", self.original_eps),
        ] {
            value.map_or(Ok(()), |value| above_zero(field, value))?;
        }
        if self.topk_n == Some(0) {
            return Err(Error::new("`intervention.topk_n` must be at least 1, got 0"));
        }
        if let Some(p) = self.original_p {
            within("original_p", p as f64, p == 1 || p == 2, "1 or 2")?;
        }
        if let Some(e) = self.original_label_smoothing {
            let valid = (0.0..1.0).contains(&e);
            within("original_label_smoothing", e, valid, "at least 0 and less than 1")?;
        }
        if self.dpo.sorts() {
            return Err(Error::new(
                "`intervention.dpo.loss_type` cannot be `aot` or `aot_unpaired`, because pairs \
                    without a preference direction are left out, and these types sort all pairs",
            )
            .hint("choose another loss type"));
        }
        if self.token_constraint && self.rejected == Rejected::Detach {
            return Err(Error::new(
                "`intervention.token_constraint` has no gradient with `rejected = \"detach\"`",
            )
            .hint("leave out one of the two"));
        }
        Ok(())
    }

    /// Returns an error if a field is set that the selected variant and mode do not read.
    fn check_unread(&self) -> Result<()> {
        let read = self.read_fields();
        let set = [
            ("alpha", self.alpha.is_some()),
            ("inner", self.inner.is_some()),
            ("inner_beta", self.inner_beta.is_some()),
            ("tau", self.tau.is_some()),
            ("topk_n", self.topk_n.is_some()),
            ("token_constraint", self.token_constraint),
            ("rejected", self.rejected != Rejected::Train),
            ("dpo", self.dpo != Dpo::default()),
            ("original_dpo_loss", self.original_dpo_loss.is_some()),
            ("original_beta", self.original_beta.is_some()),
            ("original_align_method", self.original_align_method.is_some()),
            ("original_trust_region", self.original_trust_region.is_some()),
            ("original_clamp_bottom", self.original_clamp_bottom),
            ("original_inner_weights", self.original_inner_weights),
            ("original_token_constraint", self.original_token_constraint),
            ("original_detach_rejected", self.original_detach_rejected),
            ("original_p", self.original_p.is_some()),
            ("original_eps", self.original_eps.is_some()),
            ("original_filter_sinks", self.original_filter_sinks),
            ("original_label_smoothing", self.original_label_smoothing.is_some()),
            ("original_policy_weights", self.original_policy_weights),
        ];
        match set.iter().find(|(field, is_set)| *is_set && !read.contains(field)) {
            None => Ok(()),
            Some((field, _)) => Err(Error::new(format!(
                "`intervention.{field}` is set, but {} does not read it",
                self.described()
            ))
            .hint(format!("it reads {}", read.join(", ")))),
        }
    }

    /// Describes the variant, the mode and the functions, which select the fields that are read.
    fn described(&self) -> String {
        let mode = match self.mode {
            Mode::Innerdpo => "innerdpo",
            Mode::Topk => "topk",
            Mode::Topkl => "topkl",
            Mode::Dpo => "dpo",
        };
        match self.variant {
            Variant::Default => match (self.mode, self.inner.unwrap_or_default()) {
                (Mode::Innerdpo, Inner::Ratio) => format!("mode `{mode}` with `inner = \"ratio\"`"),
                (Mode::Innerdpo, Inner::Symlog) => {
                    format!("mode `{mode}` with `inner = \"symlog\"`")
                }
                _ => format!("mode `{mode}`"),
            },
            Variant::Original => {
                let loss = match self.mode {
                    Mode::Innerdpo | Mode::Dpo => match self.outer_loss() {
                        OuterLoss::Simper => " with `simper`",
                        OuterLoss::Ipo => " with `ipo`",
                        OuterLoss::Dpo => " with `dpo`",
                    },
                    Mode::Topk | Mode::Topkl => "",
                };
                format!("mode `{mode}` of `original`{loss}")
            }
        }
    }

    /// The fields that the selected variant and mode read.
    fn read_fields(&self) -> Vec<&'static str> {
        if self.variant == Variant::Default {
            let mut read = vec!["alpha", "tau", "rejected", "dpo"];
            match (self.mode, self.inner.unwrap_or_default()) {
                (Mode::Innerdpo, Inner::Sigmoid) => {
                    read.extend(["inner", "inner_beta", "token_constraint"]);
                }
                (Mode::Innerdpo, _) => read.extend(["inner", "token_constraint"]),
                _ => read.push("topk_n"),
            }
            return read;
        }
        let of_states = ["original_filter_sinks", "original_detach_rejected"];
        match self.mode {
            Mode::Innerdpo => {
                let mut read = vec!["alpha", "original_dpo_loss", "original_p", "original_eps"];
                read.extend(of_states);
                if self.outer_loss() != OuterLoss::Simper {
                    read.extend([
                        "original_beta",
                        "original_align_method",
                        "original_trust_region",
                        "original_inner_weights",
                        "original_token_constraint",
                    ]);
                    if self.original_trust_region.is_some_and(|tau| tau > 0.0) {
                        read.push("original_clamp_bottom");
                    }
                }
                if self.outer_loss() == OuterLoss::Dpo {
                    read.push("original_label_smoothing");
                }
                read
            }
            Mode::Topk | Mode::Topkl => {
                let mut read = vec!["topk_n", "original_trust_region"];
                read.extend(of_states);
                if self.mode == Mode::Topkl {
                    read.push("original_eps");
                }
                read
            }
            Mode::Dpo => {
                let mut read = vec!["original_dpo_loss", "original_policy_weights"];
                if self.outer_loss() != OuterLoss::Simper {
                    read.push("original_beta");
                }
                read
            }
        }
    }
}
