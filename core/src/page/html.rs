//! Escaping, and small pieces of HTML.

/// Escapes text for the content of an element or for a quoted attribute. Characters that XML does
/// not allow are replaced.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            '\r' => {}
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// An element with a class. `content` must already be escaped.
pub fn tag(name: &str, class: &str, content: &str) -> String {
    if class.is_empty() {
        format!("<{name}>{content}</{name}>\n")
    } else {
        format!("<{name} class=\"{class}\">{content}</{name}>\n")
    }
}

/// Escapes text, writes the parts in backticks as code, and begins with a capital letter.
pub fn prose(text: &str) -> String {
    let mut parts = text.split('`');
    let first = parts.next().unwrap_or_default();
    let mut letters = first.chars();
    let capital = letters.next().map(char::to_uppercase).into_iter().flatten();
    let mut out = escape(&capital.chain(letters).collect::<String>());
    for (i, part) in parts.enumerate() {
        if i % 2 == 0 {
            out += &format!("<code>{}</code>", escape(part));
        } else {
            out += &escape(part);
        }
    }
    out
}

/// A table that can be scrolled sideways, with its heading above it. The contents must already be
/// escaped. `label` is the name for screen readers.
pub fn table(heading: &str, label: &str, head: &str, rows: &str) -> String {
    format!(
        "<div class=\"table-heading\">{heading}</div>\n<div class=\"scroll\" tabindex=\"0\" \
         role=\"region\" aria-label=\"{label}\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n\
         {rows}</tbody></table></div>\n"
    )
}

/// A section with a heading. `content` must already be escaped.
pub fn section(id: &str, heading: &str, content: &str) -> String {
    format!("<section id=\"{id}\">\n<h2>{}</h2>\n{content}</section>\n", escape(heading))
}

/// A figure of several panels. `caption` and the panels must already be escaped.
pub fn figure(caption: &str, legend: &str, panels: &[String]) -> String {
    // Four panels are two rows of two, and not a row of three with one more.
    let even = if panels.len() == 4 { " even" } else { "" };
    let panels: String =
        panels.iter().map(|panel| format!("<div class=\"panel\">{panel}</div>\n")).collect();
    format!(
        "<figure>\n{legend}<div class=\"panels{even}\">\n{panels}</div>\n<figcaption>{caption}\
         </figcaption>\n</figure>\n"
    )
}

/// Numbers for unique ids on a page.
#[derive(Debug, Default)]
pub struct Ids(usize);

impl Ids {
    /// Returns the next number.
    pub fn next(&mut self) -> usize {
        self.0 += 1;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_begins_with_a_capital_and_marks_code() {
        assert_eq!(prose("the split `a<b` is new"), "The split <code>a&lt;b</code> is new");
    }

    #[test]
    fn markup_and_control_characters_are_escaped() {
        assert_eq!(
            escape("<b a=\"x\" b='y'>&\u{1b}[0m\r\n"),
            "&lt;b a=&quot;x&quot; b=&#39;y&#39;&gt;&amp;\u{fffd}[0m\n"
        );
    }
}
