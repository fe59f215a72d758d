//! An SVG image.

use crate::page::html::{Ids, escape};

/// The side of a text that is at its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The left side.
    Start,
    /// The centre.
    Middle,
    /// The right side.
    End,
}

/// An SVG image, which grows by elements. Coordinates are in units of about one pixel.
#[derive(Clone, Debug)]
pub struct Svg {
    width: f64,
    height: f64,
    title: String,
    description: String,
    body: String,
}

impl Svg {
    /// Creates an empty image. Screen readers read the title and the description.
    pub fn new(width: f64, height: f64, title: &str, description: &str) -> Self {
        Self {
            width,
            height,
            title: title.to_owned(),
            description: description.to_owned(),
            body: String::new(),
        }
    }

    /// Draws a line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.body += &format!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" \
             y2=\"{y2:.1}\"/>\n"
        );
    }

    /// Draws a line through several points.
    pub fn path(&mut self, points: &[(f64, f64)], class: &str) {
        if points.len() < 2 {
            return;
        }
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.body += &format!("<polyline class=\"{class}\" points=\"{}\"/>\n", points.join(" "));
    }

    /// Writes a text.
    pub fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.body += &format!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}\
             </text>\n",
            escape(text)
        );
    }

    /// Writes a text that runs upwards, centred at its position.
    pub fn vertical_text(&mut self, (x, y): (f64, f64), class: &str, text: &str) {
        self.body += &format!(
            "<text class=\"{class}\" transform=\"translate({x:.1} {y:.1}) rotate(-90)\" \
             text-anchor=\"middle\">{}</text>\n",
            escape(text)
        );
    }

    /// Draws a shape, given as SVG, with a text that is shown under the pointer.
    pub fn shape(&mut self, shape: &str, class: &str, hint: &str) {
        let hint = if hint.is_empty() {
            String::new()
        } else {
            format!("<title>{}</title>", escape(hint))
        };
        self.body += &format!("<g class=\"{class}\">{hint}{shape}</g>\n");
    }

    /// Returns the element.
    pub fn finish(self, ids: &mut Ids) -> String {
        let id = ids.next();
        let (w, h) = (self.width, self.height);
        format!(
            "<svg viewBox=\"0 0 {w:.0} {h:.0}\" role=\"img\" aria-labelledby=\"t{id} d{id}\">\n\
             <title id=\"t{id}\">{}</title>\n<desc id=\"d{id}\">{}</desc>\n{}</svg>\n",
            escape(&self.title),
            escape(&self.description),
            self.body
        )
    }
}
