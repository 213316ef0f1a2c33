//! Files with deployments: one, several documents, or a list of them.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use fleet::deployment::Spec;
use serde_json::Value;

use crate::declared;

/// Every deployment in a file; `-` is standard input. All are checked.
///
/// # Errors
/// The first that is not one, with its number and what is wrong.
pub(super) fn read(file: &Path) -> anyhow::Result<Vec<Spec>> {
    let (shown, text) = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
        ("standard input".to_owned(), text)
    } else {
        let shown = file.display().to_string();
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {shown}"))?;
        (shown, text)
    };
    parse(&text).with_context(|| format!("{shown} is not as it should be"))
}

fn parse(text: &str) -> anyhow::Result<Vec<Spec>> {
    let mut found = Vec::new();
    for document in declared::documents(text)? {
        match document {
            Value::Array(list) => found.extend(list),
            Value::Object(mut fields) if fields.len() == 1 && fields.contains_key("deployments") => {
                match fields.remove("deployments") {
                    Some(Value::Array(list)) => found.extend(list),
                    _ => bail!("deployments: expected a list"),
                }
            }
            other => found.push(other),
        }
    }
    if found.is_empty() {
        bail!("it has no deployment");
    }
    let mut specs: Vec<Spec> = Vec::new();
    for (at, value) in found.into_iter().enumerate() {
        let spec: Spec = declared::typed(value).with_context(|| format!("deployment {}", at + 1))?;
        spec.check().with_context(|| format!("deployment {} ({:?})", at + 1, spec.name))?;
        if specs.iter().any(|other| other.name == spec.name) {
            bail!("two deployments are called {:?}", spec.name);
        }
        specs.push(spec);
    }
    Ok(specs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_many_and_lists_are_read_and_what_is_wrong_is_named() {
        let names =
            |text: &str| -> Vec<String> { parse(text).unwrap().into_iter().map(|spec| spec.name).collect() };
        assert_eq!(names("name: a\nmodel: m\n"), ["a"]);
        assert_eq!(names("# two\n---\nname: a\nmodel: m\n---\nname: b\nmodel: m\nreplicas: 2\n"), ["a", "b"]);
        assert_eq!(names("deployments:\n- {name: a, model: m}\n- {name: b, model: m}\n"), ["a", "b"]);
        assert_eq!(names(r#"{"name": "a", "model": "m"} {"name": "b", "model": "m"}"#), ["a", "b"]);
        assert_eq!(names(r#"[{"name": "a", "model": "m"}]"#), ["a"]);
        let wrong = [
            ("", "no deployment"),
            ("name: a\n", "missing field `model`"),
            ("name: a\nmodel: m\nreplica: 2\n", "unknown field `replica`"),
            ("name: a\nmodel: m\nname: b\n", "duplicate mapping key: name"),
            ("name: a\nmodel: m\n---\nname: a\nmodel: other\n", "two deployments are called"),
            ("name: a b\nmodel: m\n", "is no name"),
            ("name: a\nmodel: m\nshape: star\n", "is no shape"),
        ];
        for (text, reason) in wrong {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }
}
