//! How the rows of files are read: what every data set of files lets its user say.

use reprpo_plugin::prelude::*;

use super::row::Columns;
use super::source::Reading;

/// Columns, delimiters, and what becomes of rows that are no pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "reprpo_plugin::serde", default)]
#[schemars(crate = "reprpo_plugin::schemars")]
pub struct Format {
    /// Column of the prompt; `none` = the beginning that both completions share is the prompt.
    pub prompt_column: Option<String>,
    /// Column of the preferred completion.
    pub chosen_column: String,
    /// Column of the other completion.
    pub rejected_column: String,
    /// What stands between the fields of a line; none = a comma in `.csv`, a tab in `.tsv`.
    pub delimiter: Option<char>,
    /// How to treat a row that is not a pair, such as one whose completion is missing.
    pub bad_rows: BadRows,
    /// Most MiB of a row; a longer one is an error before it is in memory.
    pub max_row_mib: usize,
}

/// How to treat a row that is not a pair.
#[choice]
pub enum BadRows {
    /// It ends the run, with its place.
    #[default]
    Error,
    /// It is passed over; how many were is told.
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
    /// The same, checked.
    ///
    /// # Errors
    /// A delimiter or a length that cannot be, or one column for two parts of a pair.
    pub fn reading(&self) -> Result<Reading> {
        let delimiter = self.delimiter.map(|d| {
            let refused = || {
                Error::new(format!("the `delimiter` is `{d}`"))
                    .hint("valid: one ASCII character, no quote and no line break")
            };
            u8::try_from(d)
                .ok()
                .filter(|d| d.is_ascii() && !matches!(d, b'"' | b'\n' | b'\r'))
                .ok_or_else(refused)
        });
        if !(1..=1024).contains(&self.max_row_mib) {
            return Err(Error::new(format!("`max_row_mib` is {}", self.max_row_mib))
                .hint("valid: 1 to 1024"));
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
                "the column `{twice}` is named for two parts of a pair"
            ))
            .hint("prompt, chosen and rejected are three columns"));
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
