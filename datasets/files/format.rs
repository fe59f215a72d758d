//! Configuration of the format of rows, shared by the data sets `file` and `hub`.

use reprpo_plugin::prelude::*;

use super::row::Columns;
use super::source::Reading;

/// Columns, delimiters, and the treatment of rows that are not pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", default)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub struct Format {
    /// Column of the prompt; `none` = the common beginning of both completions is the prompt.
    pub prompt_column: Option<String>,
    /// Column of the chosen completion.
    pub chosen_column: String,
    /// Column of the rejected completion.
    pub rejected_column: String,
    /// Delimiter between the fields of a line; none = a comma in `.csv`, a tab in `.tsv`.
    pub delimiter: Option<char>,
    /// How to treat a row that is not a pair, for example because a completion is missing.
    pub bad_rows: BadRows,
    /// Maximum size of a row in MiB. Reading stops with an error at a longer row.
    pub max_row_mib: usize,
}

/// How to treat a row that is not a pair.
#[choice]
pub enum BadRows {
    /// Fails, and names the place of the row.
    #[default]
    Error,
    /// Skips the row, and reports the number of skipped rows.
    Skip,
}

impl Default for Format {
    fn default() -> Self {
        let Columns { prompt, chosen, rejected } = Columns::default();
        Self {
            prompt_column: prompt,
            chosen_column: chosen,
            rejected_column: rejected,
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
    /// Fails if the delimiter or the size is invalid, or if two parts of a pair have the same
    /// column.
    pub fn reading(&self) -> Result<Reading> {
        let delimiter = self.delimiter.map(|d| {
            let refused = || {
                Error::new(format!("`delimiter` must be one ASCII character, got `{d}`"))
                    .hint("quotes and line breaks are not valid delimiters either")
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
            return Err(Error::new(format!(
                "the column `{twice}` is used for two parts of a pair"
            ))
            .hint("set three different columns for prompt, chosen and rejected"));
        }
        let columns = Columns { prompt, chosen, rejected };
        Ok(Reading {
            columns,
            delimiter: delimiter.transpose()?,
            longest: self.max_row_mib << 20,
            skip: self.bad_rows == BadRows::Skip,
        })
    }
}
