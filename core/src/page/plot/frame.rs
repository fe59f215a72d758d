//! The frame of a plot: the axes with ticks, grid lines and titles.

use super::axis::Axis;
use super::svg::{Anchor, Svg};

/// Size of a panel.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 270.0;
/// Space around the area of the data.
const LEFT: f64 = 54.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 46.0;

/// A panel with two axes.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The image.
    pub svg: Svg,
    x: Axis,
    y: Axis,
}

impl Frame {
    /// Draws the axes, grid lines and titles. `heading` is drawn above the plot. `description` is
    /// the text alternative.
    pub fn new(heading: &str, description: &str, x: Axis, y: Axis) -> Self {
        let mut svg = Svg::new(WIDTH, HEIGHT, heading, description);
        svg.text((LEFT, 18.0), Anchor::Start, "heading", heading);
        let mut frame = Self { svg, x, y };
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for (value, label) in frame.y.ticks.clone() {
            let y = frame.y(value);
            frame.svg.line((LEFT, y), (right, y), "grid");
            frame.svg.text((LEFT - 7.0, y + 4.0), Anchor::End, "tick", &label);
        }
        for (value, label) in frame.x.ticks.clone() {
            let x = frame.x(value);
            frame.svg.line((x, TOP), (x, bottom), "grid");
            frame.svg.text((x, bottom + 16.0), Anchor::Middle, "tick", &label);
        }
        frame.svg.line((LEFT, bottom), (right, bottom), "axis");
        frame.svg.line((LEFT, TOP), (LEFT, bottom), "axis");
        let (x_title, y_title) = (frame.x.title.clone(), frame.y.title.clone());
        frame.svg.text((0.5 * (LEFT + right), HEIGHT - 8.0), Anchor::Middle, "title", &x_title);
        frame.svg.vertical_text((13.0, 0.5 * (TOP + bottom)), "title", &y_title);
        frame
    }

    /// Horizontal position of a value.
    pub fn x(&self, value: f64) -> f64 {
        LEFT + self.x.at(value) * (WIDTH - LEFT - RIGHT)
    }

    /// Vertical position of a value.
    pub fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.at(value) * (HEIGHT - TOP - BOTTOM)
    }

    /// Position of a point.
    pub fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (self.x(x), self.y(y))
    }

    /// Draws a vertical line across the plot, if the value is on the axis.
    pub fn vertical(&mut self, value: f64, class: &str) {
        if self.x.contains(value) {
            let x = self.x(value);
            self.svg.line((x, TOP), (x, HEIGHT - BOTTOM), class);
        }
    }

    /// Draws a horizontal line across the plot, if the value is on the axis.
    pub fn horizontal(&mut self, value: f64, class: &str) {
        if self.y.contains(value) {
            let y = self.y(value);
            self.svg.line((LEFT, y), (WIDTH - RIGHT, y), class);
        }
    }

    /// Draws the part of the line y = x that lies in the plot. Both axes must be linear.
    pub fn diagonal(&mut self, class: &str) {
        let (x, y) = (self.x.ends(), self.y.ends());
        let (low, high) = (x.0.max(y.0), x.1.min(y.1));
        if high > low {
            let (from, to) = (self.at((low, low)), self.at((high, high)));
            self.svg.line(from, to, class);
        }
    }

    /// Draws a line through the points with finite coordinates.
    pub fn path(&mut self, points: &[(f64, f64)], class: &str) {
        let points: Vec<(f64, f64)> = points
            .iter()
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .map(|p| self.at(*p))
            .collect();
        self.svg.path(&points, class);
    }
}
