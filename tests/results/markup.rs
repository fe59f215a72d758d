//! A check that a page is well-formed XML, apart from its document type.

/// An element of a page.
#[derive(Clone, Debug)]
pub struct Element {
    pub name: String,
    pub attributes: Vec<(String, String)>,
    /// Names of the child elements.
    pub children: Vec<String>,
}

impl Element {
    pub fn has(&self, name: &str, value: &str) -> bool {
        self.attributes.iter().any(|(n, v)| n == name && v == value)
    }
}

/// Returns all elements of a page.
///
/// # Errors
/// Describes the first place that is not well-formed.
pub fn elements(page: &str) -> Result<Vec<Element>, String> {
    let mut rest = page.strip_prefix("<!DOCTYPE html>").ok_or("the document type is missing")?;
    let (mut all, mut open): (Vec<Element>, Vec<usize>) = (Vec::new(), Vec::new());
    while let Some(at) = rest.find('<') {
        entities(&rest[..at])?;
        if rest[..at].contains('>') {
            return Err(format!("a stray `>` before {:.60}", &rest[at..]));
        }
        let end = rest[at..].find('>').ok_or("a tag is not closed")? + at;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            let last = open.pop().ok_or_else(|| format!("`{name}` was never opened"))?;
            if all[last].name != name {
                return Err(format!("`{}` is closed by `{name}`", all[last].name));
            }
            continue;
        }
        let (tag, is_empty) = match tag.strip_suffix('/') {
            Some(tag) => (tag, true),
            None => (tag, false),
        };
        let name: String = tag.chars().take_while(|c| c.is_alphanumeric()).collect();
        if name.is_empty() {
            return Err(format!("a tag without a name: {tag}"));
        }
        let attributes = attributes(&tag[name.len()..])?;
        if let Some(parent) = open.last() {
            all[*parent].children.push(name.clone());
        }
        let is_style = name == "style";
        all.push(Element { name, attributes, children: Vec::new() });
        if !is_empty {
            open.push(all.len() - 1);
        }
        if is_style {
            // A style sheet may contain `>`.
            rest = &rest[rest.find("</style>").ok_or("the style sheet is not closed")?..];
        }
    }
    if open.is_empty() { Ok(all) } else { Err(format!("{} elements are open", open.len())) }
}

/// Parses ` name="value"` pairs.
fn attributes(mut text: &str) -> Result<Vec<(String, String)>, String> {
    let mut found: Vec<(String, String)> = Vec::new();
    while !text.trim().is_empty() {
        let wrong = || format!("an attribute is not well-formed: {text}");
        let body = text.strip_prefix([' ', '\n']).ok_or_else(wrong)?;
        let (name, value) = body.split_once("=\"").ok_or_else(wrong)?;
        let (value, after) = value.split_once('"').ok_or_else(wrong)?;
        entities(value)?;
        if found.iter().any(|(known, _)| known == name) || name.contains(char::is_whitespace) {
            return Err(wrong());
        }
        found.push((name.to_owned(), value.to_owned()));
        text = after;
    }
    Ok(found)
}

/// Checks that every `&` begins a known entity.
fn entities(text: &str) -> Result<(), String> {
    for part in text.split('&').skip(1) {
        let name = part.split(';').next().unwrap_or_default();
        if !["amp", "lt", "gt", "quot", "#39"].contains(&name) {
            return Err(format!("an unknown entity: &{part:.20}"));
        }
    }
    Ok(())
}

#[test]
fn pages_that_are_not_well_formed_are_found() {
    let page = |body: &str| elements(&format!("<!DOCTYPE html><p>{body}</p>"));
    assert_eq!(page("a &amp; <br/><i class=\"x\">b</i>").expect("elements").len(), 3);
    for wrong in ["<b>", "</b>", "a & b", "a > b", "<i class=x>b</i>", "<i a=\"1\" a=\"2\"/>"] {
        assert!(page(wrong).is_err(), "{wrong}");
    }
}
