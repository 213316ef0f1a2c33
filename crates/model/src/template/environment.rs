//! The Jinja environment that chat templates are written for.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value, escape_formatter};

/// Columns or items that a template may ask of one filter: a line of text has fewer.
const COUNT_MAX: usize = 1000;

use super::{json, python};

/// What a template said with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

pub(super) fn environment(fuel: u64) -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the delimiters are Jinja's own"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    // In debug mode errors would carry the conversation.
    environment.set_debug(false);
    environment.set_fuel(Some(fuel));
    // Would show whatever the template can see.
    environment.remove_global("debug");
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", string);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    // Their own would take any amount of memory in one step.
    environment.add_filter("indent", indent);
    environment.add_filter("batch", |state: &State, value: Value, count: usize, rest: Option<Value>| {
        minijinja::filters::batch(state, value, within(count)?, rest)
    });
    environment.add_filter("slice", |state: &State, value: Value, count: usize, rest: Option<Value>| {
        minijinja::filters::slice(state, value, within(count)?, rest)
    });
    environment.add_filter("format", |state: &mut State, text: &Value, values: Rest<ValueOrKwargs>| {
        minijinja::filters::format(state, narrow(text)?, values)
    });
    // Here `none` would be one.
    environment.add_test("iterable", |value: &Value| {
        value.is_undefined() || (!value.is_none() && value.try_iter().is_ok())
    });
    environment.set_formatter(|out, state, value| {
        if value.kind() == ValueKind::Number && !value.is_integer() {
            let number = f64::try_from(value.clone())?;
            return Ok(out.write_str(&json::float(number))?);
        }
        escape_formatter(out, state, value)
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
    });
    environment
}

/// Columns, items and the like that a filter is asked for in a template, if they are not absurdly many.
fn within(count: usize) -> Result<usize, Error> {
    if count <= COUNT_MAX {
        return Ok(count);
    }
    let detail = format!("{count} is more than the {COUNT_MAX} that a chat template may ask of a filter");
    Err(Error::new(ErrorKind::InvalidOperation, detail))
}

/// A format (`%5d`) whose widths are those of columns, and no argument's.
fn narrow(text: &Value) -> Result<&Value, Error> {
    let format = text.as_str().unwrap_or_default();
    let widest = format.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    if widest <= 3 && !format.contains('*') {
        return Ok(text);
    }
    let detail = "a chat template may format with widths below 1000 that are written out";
    Err(Error::new(ErrorKind::InvalidOperation, detail))
}

/// Jinja's `indent`: each line but the first and those without text begins with `width` spaces, or with that text.
fn indent(
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let flag = |given: Option<bool>, name: &str| match given {
        Some(flag) => Ok(Some(flag)),
        None => kwargs.get::<Option<bool>>(name),
    };
    let (first, blank) = (flag(first, "first")?, flag(blank, "blank")?);
    let width = match width {
        Some(width) => Some(width),
        None => kwargs.get::<Option<Value>>("width")?,
    };
    kwargs.assert_all_used()?;
    let spaces = match width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(spaces) => spaces[..within(spaces.len())?].to_owned(),
            None => " ".repeat(within(usize::try_from(width)?)?),
        },
    };
    let mut out = String::with_capacity(text.len());
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            out.push('\n');
        }
        let begins =
            if number == 0 { first.unwrap_or(false) } else { !line.is_empty() || blank == Some(true) };
        out.push_str(if begins { &spaces } else { "" });
        out.push_str(line);
    }
    Ok(out)
}

/// A value as Python's `str` writes it.
fn string(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => Ok(value.clone()),
        ValueKind::Number if !value.is_integer() => {
            Ok(Value::from(json::float(f64::try_from(value.clone())?)))
        }
        _ => Ok(Value::from(value.to_string())),
    }
}

/// HTML's marks as Jinja escapes them, asked for by name; nothing is escaped otherwise.
fn escape(value: &Value) -> Result<Value, Error> {
    let text = string(value)?;
    let mut out = String::new();
    for letter in text.as_str().unwrap_or_default().chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            _ => out.push(letter),
        }
    }
    Ok(Value::from(out))
}

/// `tojson` as transformers has it: Python's `json.dumps`, without Jinja's escapes for HTML.
fn tojson(value: &Value, indent: Option<usize>, kwargs: Kwargs) -> Result<String, Error> {
    let style = json::Style {
        indent: match indent {
            Some(indent) => Some(indent),
            None => kwargs.get("indent")?,
        },
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators: match kwargs.get::<Option<Vec<String>>>("separators")? {
            Some(two) => match <[String; 2]>::try_from(two) {
                Ok(two) => Some(two),
                Err(_) => {
                    return Err(Error::new(ErrorKind::InvalidOperation, "separators must be two texts"));
                }
            },
            None => None,
        },
    };
    kwargs.assert_all_used()?;
    json::to_json(value, &style)
}

/// `{% generation %}` marks the model's own words for training: here it is a block like any other, so that the marks'
/// whitespace control stays.
pub(super) fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(begin) = rest.find("{%") {
        let (before, tag) = rest.split_at(begin);
        out.push_str(before);
        // Behind the two that open it: in `{%}` the tag has not ended yet.
        let Some(end) = tag[2..].find("%}") else {
            out.push_str(tag);
            return out;
        };
        let (tag, after) = tag.split_at(2 + end + 2);
        let inner = &tag[2..tag.len() - 2];
        match inner.trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
