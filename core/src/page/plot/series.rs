//! Series: their colours, the shapes of their marks, and legends.

use crate::page::html::escape;

/// Number of colours in the style sheet.
const COLOURS: usize = 8;
/// Number of shapes.
const SHAPES: usize = 6;

/// The appearance of a series. Up to 24 series differ in colour or shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series(pub usize);

impl Series {
    /// Class of the elements of the series.
    pub fn class(self) -> String {
        format!("s{}", self.0 % COLOURS)
    }

    /// The shape of a mark at a position, as SVG.
    pub fn mark(self, (x, y): (f64, f64), size: f64) -> String {
        let polygon = |points: &[(f64, f64)]| {
            let points: Vec<String> = points
                .iter()
                .map(|(dx, dy)| format!("{:.1},{:.1}", x + dx * size, y + dy * size))
                .collect();
            format!("<polygon points=\"{}\"/>", points.join(" "))
        };
        match self.0 % SHAPES {
            0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{size:.1}\"/>"),
            1 => polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            2 => polygon(&[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)]),
            3 => polygon(&[(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)]),
            4 => polygon(&[(0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)]),
            _ => polygon(&[
                (-0.4, -1.1),
                (0.4, -1.1),
                (0.4, -0.4),
                (1.1, -0.4),
                (1.1, 0.4),
                (0.4, 0.4),
                (0.4, 1.1),
                (-0.4, 1.1),
                (-0.4, 0.4),
                (-1.1, 0.4),
                (-1.1, -0.4),
                (-0.4, -0.4),
            ]),
        }
    }
}

/// A legend of the named series.
pub fn legend<'a>(names: impl IntoIterator<Item = (Series, &'a str)>) -> String {
    let items: String = names
        .into_iter()
        .map(|(series, name)| {
            format!(
                "<li><svg class=\"key\" viewBox=\"0 0 16 16\" aria-hidden=\"true\"><title>mark\
                 </title><g class=\"{} mark\">{}</g></svg>{}</li>\n",
                series.class(),
                series.mark((8.0, 8.0), 5.0),
                escape(name)
            )
        })
        .collect();
    format!("<ul class=\"legend\">\n{items}</ul>\n")
}
