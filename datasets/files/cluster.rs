//! The cluster of a pair: the value of the column that the user chose, or of `example_id`.

use reprpo_plugin::error::{nearest, quoted};
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::Value;

use super::row::{Columns, Row};

/// Column that names the cluster if the user chose none. It is the number of the question in data
/// sets with several pairs per question, such as GENIES.
pub const EXAMPLE_ID: &str = "example_id";

impl Columns {
    /// Returns the column that names the cluster of a pair, given the names of all columns in the
    /// file. Returns `None` if the pairs with the same prompt form a cluster.
    ///
    /// # Errors
    /// Fails if the user chose a column that does not exist. The error lists the existing columns
    /// and suggests the nearest one.
    pub fn cluster_column<'a>(
        &self,
        there: impl IntoIterator<Item = &'a str>,
    ) -> Result<Option<&str>> {
        let there: Vec<String> = there.into_iter().map(str::to_owned).collect();
        let exists = |column: &str| there.iter().any(|name| name == column);
        let Some(column) = self.cluster.as_deref() else {
            return Ok(Some(EXAMPLE_ID).filter(|column| exists(column)));
        };
        if exists(column) {
            return Ok(Some(column));
        }
        let mut e = Error::new(format!("there is no column `{column}` for the clusters"));
        if let Some(near) = nearest(column, &there) {
            e = e.hint(format!("did you mean `{near}`? set it with `--cluster {}`", quoted(near)));
        }
        Err(e.hint(format!("existing columns: {}", there.join(", "))))
    }

    /// Returns the name of the cluster of a row, or `None` if the pairs with the same prompt form a
    /// cluster.
    ///
    /// # Errors
    /// Fails if the user chose a column that the row does not have or that is empty.
    pub fn cluster_of(&self, row: &Row) -> Result<Option<String>> {
        let Some(column) = self.cluster_column(row.keys().map(String::as_str))? else {
            return Ok(None);
        };
        let name = match row.get(column) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()).filter(|text| !text.is_empty()),
            Some(other) => Some(other.to_string()),
        };
        if name.is_none() && self.cluster.is_some() {
            return Err(Error::new(format!("`{column}` is empty, so the pair has no cluster"))
                .hint("choose a different column with `--cluster COLUMN`"));
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use reprpo_plugin::serde_json::json;

    use super::super::row::pairs;
    use super::*;

    fn cluster(row: Value, column: Option<&str>) -> Result<Option<String>> {
        let Value::Object(cells) = row else { panic!("{row} is not a row") };
        let columns = Columns { cluster: column.map(str::to_owned), ..Columns::default() };
        let mut all = pairs(cells.into_iter().collect(), &columns)?;
        Ok(all.remove(0).cluster)
    }

    fn row(example_id: Value, topic: Value) -> Value {
        json!({"prompt": "p", "chosen": "c", "rejected": "r", "example_id": example_id,
            "topic": topic})
    }

    #[test]
    fn the_example_is_the_cluster_unless_another_column_is_chosen() {
        let of = |column| cluster(row(json!(7), json!("sky")), column).unwrap();
        assert_eq!(of(None).as_deref(), Some("7"));
        assert_eq!(of(Some("topic")).as_deref(), Some("sky"));
        assert_eq!(of(Some("prompt")).as_deref(), Some("p"));
        let without = json!({"prompt": "p", "chosen": "c", "rejected": "r"});
        assert_eq!(cluster(without, None).unwrap(), None);
        assert_eq!(cluster(row(Value::Null, json!("sky")), None).unwrap(), None);
    }

    #[test]
    fn all_pairs_of_a_genies_row_are_in_its_cluster() {
        let scored = json!({"prompt": "p", "responses": {"a": 1, "b": 0, "c": 0}, "id": "q9"});
        let Value::Object(cells) = scored else { panic!("not a row") };
        let columns = Columns { cluster: Some("id".to_owned()), ..Columns::default() };
        let all = pairs(cells.into_iter().collect(), &columns).unwrap();
        assert_eq!(all.iter().filter(|pair| pair.cluster.as_deref() == Some("q9")).count(), 2);
    }

    #[test]
    fn an_unknown_column_is_an_error_that_lists_the_others() {
        let e = cluster(row(json!(7), json!("sky")), Some("topics")).unwrap_err();
        assert_eq!(
            format!("{e:?}"),
            "there is no column `topics` for the clusters\n  hint: did you mean `topic`? set it \
                with `--cluster topic`\n  hint: existing columns: prompt, chosen, rejected, \
                example_id, topic"
        );
        let e = cluster(row(json!(7), Value::Null), Some("topic")).unwrap_err();
        assert_eq!(e.message(), "`topic` is empty, so the pair has no cluster");
    }
}
