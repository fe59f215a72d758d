//! Row format options, shared by the `file` and `hub` data sets.

use reprpo_plugin::prelude::*;

use super::row::Columns;
use super::source::Reading;

/// Options for parsing rows: column names, delimiter, and how to handle invalid rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", default)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub struct Format {
    /// Column of the prompt. With `none`, the prompt is the common prefix of both completions.
    pub prompt_column: Option<String>,
    /// Column of the chosen completion.
    pub chosen_column: String,
    /// Column of the rejected completion.
    pub rejected_column: String,
    /// Column that names the cluster of a pair; pairs of the same cluster count as dependent in
    /// confidence intervals. Default: `example_id` if it exists, otherwise the prompt. `--cluster`
    /// sets it.
    pub cluster_column: Option<String>,
    /// Field delimiter. With `none`, it is a comma in `.csv` files and a tab in `.tsv` files.
    pub delimiter: Option<char>,
    /// How to handle a row that is not a valid pair, for example because a completion is missing.
    pub bad_rows: BadRows,
    /// Maximum size of a row in MiB. A larger row is always an error.
    pub max_row_mib: usize,
}

/// How to handle a row that is not a valid pair.
#[choice]
pub enum BadRows {
    /// Stops with an error that names the file and the row.
    #[default]
    Error,
    /// Skips the row, and reports the number of skipped rows.
    Skip,
}

impl Default for Format {
    fn default() -> Self {
        let Columns { prompt, chosen, rejected, cluster } = Columns::default();
        Self {
            prompt_column: prompt,
            chosen_column: chosen,
            rejected_column: rejected,
            cluster_column: cluster,
            delimiter: None,
            bad_rows: BadRows::default(),
            max_row_mib: Reading::default().longest >> 20,
        }
    }
}

impl Format {
    /// Checks the fields and converts them to the options for reading a file.
    ///
    /// # Errors
    /// Fails if the delimiter or the maximum row size is invalid, or if the same column is set for
    /// two of prompt, chosen and rejected.
    pub fn reading(&self) -> Result<Reading> {
        let delimiter = self.delimiter.map(|d| {
            let refused = || {
                Error::new(format!("`delimiter` must be one ASCII character, got `{d}`"))
                    .hint("choose a character other than a quote or a line break")
            };
            u8::try_from(d)
                .ok()
                .filter(|d| d.is_ascii() && !matches!(d, b'"' | b'\n' | b'\r'))
                .ok_or_else(refused)
        });
        if !(1..=1024).contains(&self.max_row_mib) {
            return Err(Error::new(format!(
                "`max_row_mib` must be between 1 and 1024, got {}",
                self.max_row_mib
            )));
        }
        let (prompt, chosen, rejected) =
            (self.prompt_column.clone(), self.chosen_column.clone(), self.rejected_column.clone());
        if chosen == rejected
            || prompt.as_ref() == Some(&chosen)
            || prompt.as_ref() == Some(&rejected)
        {
            let twice =
                if chosen == rejected { &rejected } else { prompt.as_ref().unwrap_or(&chosen) };
            return Err(Error::new(format!("the column `{twice}` is used twice"))
                .hint("set three different columns for prompt, chosen and rejected"));
        }
        let columns = Columns { prompt, chosen, rejected, cluster: self.cluster_column.clone() };
        Ok(Reading {
            columns,
            delimiter: delimiter.transpose()?,
            longest: self.max_row_mib << 20,
            skip: self.bad_rows == BadRows::Skip,
        })
    }
}
