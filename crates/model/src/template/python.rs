//! Methods that Python's texts, lists and maps have and templates call.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat;

/// What `minijinja-contrib` knows, and a few more that templates in use call.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if value.kind() == ValueKind::String
        && let Some(text) = value.as_str()
    {
        match name {
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)));
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)));
            }
            "title" => {
                let () = from_args(args)?;
                return Ok(Value::from(title(text)));
            }
            "partition" | "rpartition" => {
                let (mark,): (&str,) = from_args(args)?;
                return Ok(partition(text, mark, name == "rpartition"));
            }
            "rsplit" if !args.is_empty() => {
                let (mark, count): (&str, Option<usize>) = from_args(args)?;
                return Ok(rsplit(text, mark, count));
            }
            _ => {}
        }
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

/// Capital letters where a word begins, small ones inside; a word ends at whatever is no letter.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for letter in text.chars() {
        if inside {
            out.extend(letter.to_lowercase());
        } else {
            out.extend(letter.to_uppercase());
        }
        inside = letter.is_alphabetic();
    }
    out
}

fn partition(text: &str, mark: &str, last: bool) -> Value {
    let at = if last { text.rsplit_once(mark) } else { text.split_once(mark) };
    let parts = match at {
        Some((before, after)) => [before, mark, after],
        None if last => ["", "", text],
        None => [text, "", ""],
    };
    parts.into_iter().map(Value::from).collect()
}

fn rsplit(text: &str, mark: &str, count: Option<usize>) -> Value {
    let mut parts: Vec<&str> = match count {
        Some(count) => text.rsplitn(count.saturating_add(1), mark).collect(),
        None => text.rsplit(mark).collect(),
    };
    parts.reverse();
    parts.into_iter().map(Value::from).collect()
}
