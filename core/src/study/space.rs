//! The fields that a search varies, and the values that it may choose.

use serde_json::{Value, json};

use crate::config::{Assignment, Origin};

/// The values of a field, by the field's name, in the order of the search's fields.
pub type Point = Vec<(String, Value)>;

/// The values that a search may choose for a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// One of these values.
    List(Vec<Value>),
    /// A number from `low` to `high`, both included.
    Range {
        /// Smallest value.
        low: f64,
        /// Largest value.
        high: f64,
        /// True if the logarithm of the value is uniform, and not the value itself.
        log: bool,
        /// True if the value is a whole number.
        integer: bool,
    },
}

/// A field that a search varies.
#[derive(Clone, Debug)]
pub struct Dimension {
    /// The field, e.g. `train.lr`.
    pub field: String,
    /// The values to choose from.
    pub values: Values,
    /// The place in the study file that names the field.
    pub origin: Origin,
}

impl Dimension {
    /// Number of values; `None` for a range.
    pub fn count(&self) -> Option<usize> {
        match &self.values {
            Values::List(list) => Some(list.len()),
            Values::Range { .. } => None,
        }
    }

    /// Maps a number in [0, 1] to a value. For a list, every value has an equal share of [0, 1].
    /// Numbers of a range have four significant digits, so that they can be written in a name.
    pub fn value(&self, unit: f64) -> Value {
        let unit = unit.clamp(0.0, 1.0);
        match &self.values {
            Values::List(list) => {
                let index = ((unit * list.len() as f64) as usize).min(list.len().saturating_sub(1));
                list.get(index).cloned().unwrap_or_default()
            }
            Values::Range { low, high, log, integer } => {
                let number = match log {
                    true => (low.ln() + unit * (high.ln() - low.ln())).exp(),
                    false => low + unit * (high - low),
                };
                match integer {
                    true => json!(number.round().clamp(*low, *high) as i64),
                    false => json!(four_digits(number).clamp(*low, *high)),
                }
            }
        }
    }

    /// The inverse of [`value`](Self::value): the middle of the share of a list's value, and the
    /// position in a range. `None` if the value is not one of the dimension.
    pub fn unit(&self, value: &Value) -> Option<f64> {
        match &self.values {
            Values::List(list) => {
                let index = list.iter().position(|of_list| of_list == value)?;
                Some((index as f64 + 0.5) / list.len() as f64)
            }
            Values::Range { low, high, log, .. } => {
                let number = value.as_f64().filter(|number| (*low..=*high).contains(number))?;
                Some(match (low == high, log) {
                    (true, _) => 0.5,
                    (false, true) => (number.ln() - low.ln()) / (high.ln() - low.ln()),
                    (false, false) => (number - low) / (high - low),
                })
            }
        }
    }

    /// The values that are resolved before the first run: all values of a list, and both ends of a
    /// range.
    pub fn probes(&self) -> Vec<Value> {
        match &self.values {
            Values::List(list) => list.clone(),
            Values::Range { .. } => vec![self.value(0.0), self.value(1.0)],
        }
    }

    /// Says at which end of the searched values `value` is: `smallest` or `largest`. `None` if
    /// larger and smaller values were searched, or if the values are not numbers.
    pub fn end(&self, value: &Value) -> Option<&'static str> {
        let value = value.as_f64()?;
        let (low, high) = match &self.values {
            Values::List(list) => {
                let numbers: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
                let numbers = numbers.filter(|numbers| numbers.len() > 1)?;
                let fold = |f: fn(f64, f64) -> f64| numbers.iter().copied().reduce(f);
                (fold(f64::min)?, fold(f64::max)?)
            }
            // Almost at the end of a range is at its end.
            Values::Range { .. } => {
                let unit = self.unit(&json!(value)).unwrap_or(0.5);
                return [(unit < 0.02, "smallest"), (unit > 0.98, "largest")]
                    .into_iter()
                    .find_map(|(is_end, name)| is_end.then_some(name));
            }
        };
        match value {
            value if value <= low => Some("smallest"),
            value if value >= high => Some("largest"),
            _ => None,
        }
    }

    /// The dimension as JSON, for an external sampler.
    pub fn json(&self) -> Value {
        match &self.values {
            Values::List(list) => json!({ "choices": list }),
            Values::Range { low, high, log, integer } => {
                json!({ "low": low, "high": high, "log": log, "integer": integer })
            }
        }
    }
}

/// Rounds to four significant digits.
fn four_digits(number: f64) -> f64 {
    format!("{number:.3e}").parse().unwrap_or(number)
}

/// Returns all points of a space of lists, the last dimension varying fastest; `None` if a
/// dimension is a range.
pub fn grid(space: &[Dimension]) -> Option<Vec<Point>> {
    space.iter().try_fold(vec![Point::new()], |points, dimension| {
        let Values::List(list) = &dimension.values else { return None };
        let extended = points.iter().flat_map(|point| {
            list.iter().map(|value| {
                let mut point = point.clone();
                point.push((dimension.field.clone(), value.clone()));
                point
            })
        });
        Some(extended.collect())
    })
}

/// The assignments of a point.
pub fn assignments(space: &[Dimension], point: &Point) -> Vec<Assignment> {
    let origin = |field: &str| {
        let dimension = space.iter().find(|dimension| dimension.field == field);
        dimension.map_or(Origin::Chosen, |dimension| dimension.origin.clone())
    };
    point.iter().map(|(f, value)| Assignment::new(f, value.clone(), origin(f))).collect()
}

/// A value as text, without the quotes of a string.
pub fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dimension(values: Values) -> Dimension {
        Dimension { field: "train.lr".into(), values, origin: Origin::Set }
    }

    fn range(low: f64, high: f64, log: bool, integer: bool) -> Dimension {
        dimension(Values::Range { low, high, log, integer })
    }

    #[test]
    fn a_number_in_the_unit_interval_becomes_a_value_and_back() {
        let rate = range(1e-5, 1e-3, true, false);
        assert_eq!([0.0, 0.5, 1.0].map(|u| rate.value(u)), [1e-5, 1e-4, 1e-3].map(|v| json!(v)));
        assert!((rate.unit(&json!(1e-4)).unwrap() - 0.5).abs() < 1e-12);
        assert_eq!(rate.unit(&json!(2e-3)), None);
        assert_eq!(range(0.0, 1.0, false, false).value(1.0 / 3.0), json!(0.3333));
        assert_eq!(range(1.0, 8.0, false, true).value(0.5), json!(5));
        let list = dimension(Values::List(vec![json!("a"), json!("b"), json!("c"), json!("d")]));
        assert_eq!([0.0, 0.3, 0.999, 1.0].map(|u| text(&list.value(u))), ["a", "b", "d", "d"]);
        assert_eq!(list.unit(&json!("b")), Some(0.375));
    }

    #[test]
    fn the_ends_of_the_searched_values_are_recognised() {
        let list = dimension(Values::List(vec![json!(3e-5), json!(1e-5), json!(1e-4)]));
        let end = |value: f64| list.end(&json!(value));
        assert_eq!([end(1e-5), end(3e-5), end(1e-4)], [Some("smallest"), None, Some("largest")]);
        let rate = range(1e-5, 1e-3, true, false);
        assert_eq!(rate.end(&json!(9.9e-4)), Some("largest"));
        assert_eq!(rate.end(&json!(5e-4)), None);
        assert_eq!(dimension(Values::List(vec![json!("x")])).end(&json!("x")), None);
    }

    #[test]
    fn the_last_dimension_of_a_grid_varies_fastest() {
        let list = |field: &str, values: &[i64]| Dimension {
            field: field.into(),
            values: Values::List(values.iter().map(|v| json!(v)).collect()),
            origin: Origin::Set,
        };
        let points = grid(&[list("a", &[1, 2]), list("b", &[3, 4])]).unwrap();
        let values = |point: &Point| point.iter().map(|(_, v)| text(v)).collect::<String>();
        assert_eq!(points.iter().map(values).collect::<Vec<_>>(), ["13", "14", "23", "24"]);
        assert!(grid(&[range(0.0, 1.0, false, false)]).is_none());
    }
}
