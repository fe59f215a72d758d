//! The comparison as CSV.

use super::methods::described;
use super::summary::Summary;

/// Formats the comparison as CSV, with one row per number.
///
/// The columns are table, method, values, seeds, split, metric, value, low, high and remark.
pub fn csv(summary: &Summary) -> String {
    let mut text = "table,method,values,seeds,split,metric,value,low,high,remark\n".to_owned();
    let mut line = |cells: [String; 10]| {
        let quoted = cells.map(|cell| {
            if cell.contains([',', '"', '\n', '\r']) {
                format!("\"{}\"", cell.replace('"', "\"\""))
            } else {
                cell
            }
        });
        text += &(quoted.join(",") + "\n");
    };
    let n = |v: Option<f64>| v.map_or_else(String::new, |v| v.to_string());
    for warning in &summary.warnings {
        let mut cells: [String; 10] = Default::default();
        (cells[0], cells[9]) = ("warning".to_owned(), warning.clone());
        line(cells);
    }
    for split in &summary.splits {
        let cells = |metric: &str, value: Option<f64>| -> [String; 10] {
            let (table, split) = ("base".to_owned(), split.split.clone());
            let none = String::new;
            let metric = metric.to_owned();
            [table, none(), none(), none(), split, metric, n(value), none(), none(), none()]
        };
        line(cells("pairs", Some(split.pairs as f64)));
        line(cells("clusters", split.clusters.map(|c| c as f64)));
        line(cells("accuracy", split.base_accuracy));
    }
    for figures in &summary.methods {
        let values = described(&figures.values);
        let seeds = figures.seeds.len().to_string();
        for s in &figures.splits {
            let mut put = |metric: &str, value: [Option<f64>; 3], remark: &str| {
                if value[0].is_some() {
                    let [mean, low, high] = value.map(n);
                    let (method, table) = (figures.method.clone(), "methods".to_owned());
                    let (split, metric) = (s.split.clone(), metric.to_owned());
                    let (values, seeds) = (values.clone(), seeds.clone());
                    let remark = remark.to_owned();
                    line([table, method, values, seeds, split, metric, mean, low, high, remark]);
                }
            };
            for (metric, figure) in [
                ("accuracy", &s.accuracy),
                ("points", &s.points),
                ("margin_gain", &s.margin_gain),
                ("perplexity_ratio", &s.perplexity_ratio),
                ("kl", &s.kl),
            ] {
                if let Some(f) = figure {
                    put(metric, [Some(f.mean), f.low, f.high], f.remark.unwrap_or_default());
                }
            }
            let lengths = &s.by_length;
            for (metric, value) in [
                ("elicitation", s.elicitation),
                ("differential_elicitation", s.differential_elicitation),
                ("calibration_error", s.calibration.as_ref().and_then(|c| c.rms)),
                ("expected_calibration_error", s.calibration.as_ref().and_then(|c| c.expected)),
                ("published_calibration_error", s.calibration.as_ref().and_then(|c| c.published)),
                ("accuracy_longer_right", lengths.chosen_longer.accuracy),
                ("accuracy_shorter_right", lengths.rejected_longer.accuracy),
                ("accuracy_equal_length", lengths.equal.accuracy),
            ] {
                put(metric, [value, None, None], "");
            }
        }
    }
    for test in &summary.tests.tests {
        let remark = test.remark.clone().unwrap_or_default();
        let difference = test.difference.as_ref();
        for (metric, value) in [
            ("difference", difference.map(|d| d.mean)),
            ("p", test.p),
            ("p_holm", test.p_holm),
            ("detectable", test.detectable),
        ] {
            let ends = |end: Option<f64>| if metric == "difference" { n(end) } else { n(None) };
            line([
                "tests".to_owned(),
                test.method.clone(),
                String::new(),
                test.seeds.len().to_string(),
                test.split.clone(),
                metric.to_owned(),
                n(value),
                ends(difference.and_then(|d| d.low)),
                ends(difference.and_then(|d| d.high)),
                remark.clone(),
            ]);
        }
    }
    for point in &summary.curves.points {
        let ratio = ("", "perplexity_ratio", point.log_ratio.map(f64::exp));
        let gains = point.gains.iter().map(|(s, v)| (s.as_str(), "points", Some(*v)));
        for (split, metric, value) in std::iter::once(ratio).chain(gains) {
            let mut cells: [String; 10] = Default::default();
            cells[0] = "search".to_owned();
            cells[1].clone_from(&point.method);
            cells[2] = described(&point.values);
            cells[3] = point.seeds.len().to_string();
            let split = if split.is_empty() { &summary.curves.matched_on } else { split };
            (cells[4], cells[5], cells[6]) = (split.to_owned(), metric.to_owned(), n(value));
            line(cells);
        }
    }
    for method in &summary.curves.matched {
        for split in &summary.splits {
            let gain = method.gains.iter().find(|g| g.split == split.split);
            let mut cells: [String; 10] = Default::default();
            cells[0] = "matched".to_owned();
            cells[1].clone_from(&method.method);
            cells[4].clone_from(&split.split);
            cells[5] = "points".to_owned();
            cells[6] = n(gain.and_then(|g| g.points));
            cells[9] = method.remark.clone().unwrap_or_default();
            line(cells);
        }
    }
    text
}
