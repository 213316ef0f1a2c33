//! The tree's source files, and a rough reading of Rust that is enough for habits: where tests begin, how long a
//! function is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    // As `cargo run` says now: a folder of builds may be shared by checkouts, one of which has built this program.
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&folder).parent().expect("xtask lies in the workspace").to_owned()
}

/// A text file of the tree.
pub(crate) struct SourceFile {
    /// Relative to the root, with `/`.
    pub(crate) path: String,
    /// What it holds.
    pub(crate) text: String,
}

impl SourceFile {
    /// Whether the file exists only for tests.
    pub(crate) fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs")
    }

    /// The lines before the file's own test module.
    pub(crate) fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
            .map(|(index, line)| (index + 1, line))
    }
}

/// Every file below `folder` (relative to `root`) with the extension, in order of path.
pub(crate) fn files(root: &Path, folder: &str, extension: &str) -> anyhow::Result<Vec<SourceFile>> {
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        if !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if path.is_dir() {
                if !matches!(name, "target" | "node_modules" | ".git" | "fixtures" | "__pycache__") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == extension) {
                let text =
                    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
                let relative = path.strip_prefix(root).expect("walked from the root");
                found.push(SourceFile { path: relative.to_string_lossy().replace('\\', "/"), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// The functions of a file that `rustfmt` has formatted: (line, name, lines from `fn` to its closing brace).
pub(crate) fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let mut open: Vec<(usize, String, usize)> = Vec::new();
    let mut done = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words = line.trim_start();
        if let Some(name) = function_name(words)
            && !words.ends_with(';')
            && !words.ends_with('}')
        {
            open.push((index, name, indent));
        } else if words == "}" || words == ";" {
            while let Some((start, name, depth)) = open.pop() {
                match depth.cmp(&indent) {
                    std::cmp::Ordering::Equal => {
                        done.push((start + 1, name, index - start + 1));
                        break;
                    }
                    std::cmp::Ordering::Less => {
                        open.push((start, name, depth));
                        break;
                    }
                    // A declaration over several lines that had no body.
                    std::cmp::Ordering::Greater => {}
                }
            }
        }
    }
    done
}

fn function_name(words: &str) -> Option<String> {
    let before = words.split("fn ").next()?;
    let qualifiers = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\""];
    if !words.contains("fn ") || !before.split_whitespace().all(|w| qualifiers.contains(&w)) {
        return None;
    }
    let name = words.split("fn ").nth(1)?;
    Some(name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_as_long_as_from_its_name_to_its_brace() {
        let text = "impl A {\n    pub fn one(\n        a: u8,\n    ) -> u8 {\n        a\n    }\n\n    fn two();\n}\nasync fn three() {\n}\n";
        assert_eq!(functions(text), [(2, "one".into(), 5), (10, "three".into(), 2)]);
    }
}
