//! A page as Chromium understands it: its document after the scripts ran, written out again.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// What the browser made of a page.
pub struct Page(String);

impl Page {
    /// Opens a file; `fragment` comes behind its address.
    pub fn open(file: &Path, fragment: &str) -> Self {
        let profile = tempfile::tempdir().expect("a directory for the browser");
        let output = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("file://{}{fragment}", file.display()))
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .output()
            .expect("chromium is installed: run tests/setup");
        let dom = String::from_utf8(output.stdout).expect("UTF-8");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && dom.contains("</html>"),
            "{said}\n{dom}"
        );
        let source = fs::read_to_string(file).expect("it was read");
        for outside in [
            "http-equiv=\"refresh\"",
            "<link",
            "<iframe",
            "<img",
            "<script ",
            "url(",
            "@import",
        ] {
            assert!(
                !source.contains(outside),
                "the page needs something else: {outside}"
            );
        }
        Self(dom)
    }

    /// All of it, as HTML.
    pub fn html(&self) -> &str {
        &self.0
    }

    /// What the page's script noted when it failed.
    pub fn script_error(&self) -> Option<&str> {
        let at = self.0.find("id=\"script-error\"")?;
        Some(&self.0[at..(at + 300).min(self.0.len())])
    }

    /// An attribute of the first tag that begins with `tag`.
    pub fn attribute(&self, tag: &str, name: &str) -> Option<String> {
        let tag = &self.0[self.0.find(tag)?..];
        let tag = &tag[..tag.find('>')?];
        let value = tag.split_once(&format!(" {name}=\""))?.1;
        Some(value[..value.find('"')?].to_owned())
    }

    /// Bars in the picture.
    pub fn bars(&self) -> usize {
        self.0.matches("<g class=\"bar ").count()
    }

    /// Rows of a table.
    pub fn rows(&self, table: &str) -> usize {
        let (_, rest) = self
            .0
            .split_once(&format!(" id=\"{table}\">"))
            .expect("the table");
        let body = rest.split_once("<tbody>").expect("its body").1;
        body[..body.find("</tbody>").expect("its end")]
            .matches("<tr")
            .count()
    }
}
