//! Standard output and standard error: text, tables, JSON, and the log.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

/// Prints a line. Fails where nobody reads any more.
pub(crate) fn say(line: impl AsRef<str>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line.as_ref().as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Prints text as it comes, without a line's end.
pub(crate) fn say_part(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints a model's text as it comes: on a terminal, without what would command it.
pub(crate) fn say_answer(text: &str) -> anyhow::Result<()> {
    if io::stdout().is_terminal() { say_part(&printable(text)) } else { say_part(text) }
}

/// A model's text without what would command the terminal (escape sequences above all).
fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| !c.is_control() || c == '\n' || c == '\t') {
        return Cow::Borrowed(text);
    }
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Prints a value as JSON, for scripts.
pub(crate) fn say_json(value: &impl Serialize) -> anyhow::Result<()> {
    say(serde_json::to_string_pretty(value)?)
}

/// Prints rows under a header, as wide as the terminal.
pub(crate) fn say_table(header: &[&str], rows: Vec<Vec<String>>) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    let text: Vec<_> = table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    say(text.join("\n"))
}

/// Whether a person is there to type.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Whether an error only says that the reader of our output has left (`phalanx status | head`).
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Starts the log on standard error: warnings, unless `filter` says otherwise.
pub(crate) fn start_log(filter: Option<&str>) {
    let filter = EnvFilter::try_new(filter.unwrap_or("warn")).unwrap_or_else(|error| {
        eprintln!("warning: the log filter is not understood ({error}); logging warnings");
        EnvFilter::new("warn")
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_does_not_command_the_terminal() {
        assert_eq!(printable("one\n\ttwo"), "one\n\ttwo");
        assert_eq!(printable("a\u{1b}[2Jb\r"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
