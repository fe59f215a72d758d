//! Loads a page in headless Chromium, if it is installed.

use std::path::Path;
use std::process::Command;

/// The layout of a page in a browser.
#[derive(Debug)]
pub struct Layout {
    /// Width of the content, in pixels. If it exceeds the width of the window, the whole page
    /// scrolls sideways.
    pub scroll_width: u32,
    /// Number of plots with a visible size.
    pub visible_plots: u32,
}

/// Lays the page out in a window of this width. Returns `None` if there is no browser.
pub fn layout(page: &Path, width: u32) -> Option<Layout> {
    let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success())
    });
    let Some(browser) = found else {
        eprintln!("skipped: Chromium is not installed");
        return None;
    };
    // Old headless browsers have a smallest window width of 500 pixels, so the page is laid out in
    // a frame. The script belongs to the test; the page has none.
    let outer = page.with_file_name("outer.html");
    let name = page.file_name().expect("a name").to_string_lossy().into_owned();
    let script = format!(
        "<!DOCTYPE html><body><iframe id='f' src='{name}' style='width:{width}px;height:900px;\
         border:0'></iframe><pre id='out'></pre><script>document.getElementById('f').onload = \
         function () {{ const d = this.contentDocument; const plots = \
         [...d.querySelectorAll('svg[role=img]')].filter(s => s.getBoundingClientRect().width > \
         200 && s.getBoundingClientRect().height > 50); document.getElementById('out').textContent \
         = 'width=' + d.documentElement.scrollWidth + ' plots=' + plots.length; }};</script></body>"
    );
    std::fs::write(&outer, script).expect("the file is written");
    let output = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        .args(["--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", page.with_file_name("browser").display()))
        .arg(format!("file://{}", outer.display()))
        .output()
        .expect("the browser runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, found) = text.split_once("<pre id=\"out\">").unwrap_or_else(|| panic!("{text}"));
    let found = found.split('<').next().unwrap_or_default();
    let number = |key: &str| -> u32 {
        let (_, after) = found.split_once(&format!("{key}=")).unwrap_or_else(|| panic!("{text}"));
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    };
    Some(Layout { scroll_width: number("width"), visible_plots: number("plots") })
}
