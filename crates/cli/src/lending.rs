//! When its owner lends this machine: the hours of `provider --serve-between`, and `phalanx pause`, which outlives a restart.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use jiff::{Timestamp, ToSpan, Zoned};
use serde::{Deserialize, Serialize};

use crate::place::{self, DataOption};
use crate::terminal::say;

/// How often hours and pause are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY_MINUTES: u16 = 24 * 60;

/// Hours in which a machine serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// One bit for each day on which it begins, Monday first.
    days: u8,
    /// Minutes of the day. Where it ends before it begins, it ends on the next day.
    from: u16,
    to: u16,
}

impl Window {
    /// Whether it is open on this day (Monday is 0) at this minute.
    fn is_open(&self, day: u8, minute: u16) -> bool {
        let begins = |day: u8| self.days & (1 << (day % 7)) != 0;
        if self.from < self.to {
            return begins(day) && (self.from..self.to).contains(&minute);
        }
        (begins(day) && minute >= self.from) || (begins(day + 6) && minute < self.to)
    }
}

/// Reads `22:00-07:00`, `sat 10:00-18:00`, `mon-fri 19:00-24:00`.
pub(crate) fn parse_window(text: &str) -> Result<Window, String> {
    let wrong = |what: &str| {
        format!("{text:?}: {what}; hours are as in 22:00-07:00, or with days as in \"mon-fri 19:00-24:00\"")
    };
    let lower = text.trim().to_ascii_lowercase();
    let (days, hours) = lower.rsplit_once(' ').map_or((None, lower.as_str()), |(d, h)| (Some(d.trim()), h));
    let day = |name: &str| {
        let at = DAYS.iter().position(|day| *day == name.trim());
        at.ok_or_else(|| wrong(&format!("{:?} is none of mon, tue, wed, thu, fri, sat, sun", name.trim())))
    };
    let days = match days {
        None => 0x7f,
        Some(days) => {
            let (first, last) = days.split_once('-').unwrap_or((days, days));
            let (first, last) = (day(first)?, day(last)?);
            let count = (last + 7 - first) % 7;
            (0..=count).fold(0, |bits, step| bits | 1 << ((first + step) % 7))
        }
    };
    let minute = |time: &str| {
        let (hour, minute) = time.split_once(':')?;
        let two = |text: &str| (text.len() <= 2).then(|| text.parse::<u16>().ok()).flatten();
        let (hour, minute) = (two(hour)?, two(minute)?);
        let at = hour * 60 + minute;
        (minute < 60 && at <= DAY_MINUTES).then_some(at)
    };
    let (from, to) = hours.split_once('-').ok_or_else(|| wrong("there is no - between two times"))?;
    let time = |text: &str| minute(text).ok_or_else(|| wrong(&format!("{text:?} is no time of day")));
    let (from, to) = (time(from)?, time(to)?);
    if from == to || from == DAY_MINUTES {
        return Err(wrong("that is no span (the whole day is 00:00-24:00)"));
    }
    Ok(Window { days, from, to })
}

/// What `phalanx pause` keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pause {
    /// Seconds since 1970; nothing: until `phalanx resume`.
    until: Option<i64>,
}

/// Why a machine does not serve at this moment, or nothing where it does. Hours are local time.
fn withheld(windows: &[Window], pause: Option<Pause>, now: &Zoned) -> Option<String> {
    match pause {
        Some(Pause { until: None }) => return Some("paused by its owner".to_owned()),
        Some(Pause { until: Some(until) }) if until > now.timestamp().as_second() => {
            let end = Timestamp::from_second(until).map(|end| end.to_zoned(now.time_zone().clone()));
            return Some(match end {
                Ok(end) => format!("paused by its owner until {}", end.strftime("%Y-%m-%d %H:%M")),
                Err(_) => "paused by its owner".to_owned(),
            });
        }
        _ => {}
    }
    let open = |at: &Zoned| {
        let day = at.weekday().to_monday_zero_offset() as u8;
        windows.iter().any(|window| window.is_open(day, at.hour() as u16 * 60 + at.minute() as u16))
    };
    if windows.is_empty() || open(now) {
        return None;
    }
    let until =
        opening(windows, now).map_or_else(String::new, |at| format!(" until {}", at.strftime("%a %H:%M")));
    Some(format!("outside of its owner's hours{until}"))
}

/// When the next window opens, where none is open. Windows repeat each week.
fn opening(windows: &[Window], now: &Zoned) -> Option<Zoned> {
    let begins = |window: &Window, ahead: i64| {
        let date = now.date().checked_add(ahead.days()).ok()?;
        let day = date.weekday().to_monday_zero_offset();
        let (hour, minute) = ((window.from / 60) as i8, (window.from % 60) as i8);
        // A time that a change of clocks leaves out is the next that there is.
        let at = || date.at(hour, minute, 0, 0).to_zoned(now.time_zone().clone()).ok();
        if window.days & (1 << day) != 0 { at() } else { None }
    };
    let all = windows.iter().flat_map(|window| (0..=7).filter_map(move |ahead| begins(window, ahead)));
    all.filter(|at| at > now).min()
}

/// One machine's hours and pause.
pub(crate) struct Lending {
    windows: Vec<Window>,
    file: PathBuf,
}

impl Lending {
    pub(crate) fn new(windows: Vec<Window>, folder: &Path) -> Self {
        Self { windows, file: pause_file(folder) }
    }

    /// Why it does not serve now, or nothing.
    fn now(&self) -> Option<String> {
        withheld(&self.windows, read(&self.file), &Zoned::now())
    }

    /// Until it serves; `tell` hears why it does not, each time that this changes.
    pub(crate) async fn begins(&self, mut tell: impl FnMut(&str)) {
        let mut told = String::new();
        while let Some(why) = self.now() {
            if why != told {
                tell(&why);
                told = why;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Until it does not serve any more; says why.
    pub(crate) async fn ends(&self) -> String {
        loop {
            if let Some(why) = self.now() {
                return why;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn pause_file(folder: &Path) -> PathBuf {
    folder.join("pause.json")
}

/// A file that cannot be read is a pause: its owner wanted one.
fn read(file: &Path) -> Option<Pause> {
    match std::fs::read(file) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).unwrap_or(Pause { until: None })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(_) => Some(Pause { until: None }),
    }
}

/// `phalanx pause`.
#[derive(clap::Args)]
pub(crate) struct PauseOptions {
    /// For so long, as in 90m, 2h, "1d 12h" [default: until `phalanx resume`].
    #[arg(long = "for", value_name = "SPAN", value_parser = parse_span)]
    span: Option<jiff::Span>,
    #[command(flatten)]
    data: DataOption,
}

fn parse_span(text: &str) -> Result<jiff::Span, String> {
    let wrong = || format!("{text:?} is no span: as in 90m, 2h, 1d12h");
    let span: jiff::Span = text.parse().map_err(|_| wrong())?;
    if span.is_positive() { Ok(span) } else { Err(wrong()) }
}

pub(crate) fn pause(options: &PauseOptions) -> anyhow::Result<ExitCode> {
    let folder = options.data.make()?;
    let until = match options.span {
        Some(span) => {
            let end = Zoned::now().checked_add(span).context("that is too far in the future")?;
            Some(end.timestamp().as_second())
        }
        None => None,
    };
    let pause = Pause { until };
    place::write_private(&pause_file(&folder), &serde_json::to_vec(&pause)?)?;
    let why = withheld(&[], Some(pause), &Zoned::now()).unwrap_or_default();
    say(format!(
        "This machine is {why}. Its provider (with data in {}) finishes what it computes, for 30 s at most; what takes \
         longer goes on elsewhere. `phalanx resume` ends the pause.",
        folder.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// `phalanx resume`.
#[derive(clap::Args)]
pub(crate) struct ResumeOptions {
    #[command(flatten)]
    data: DataOption,
}

pub(crate) fn resume(options: &ResumeOptions) -> anyhow::Result<ExitCode> {
    let file = pause_file(&options.data.folder()?);
    match std::fs::remove_file(&file) {
        Ok(()) => say("The pause is over: this machine's provider joins again.")?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            say(format!("This machine was not paused ({} is not there).", file.display()))?;
        }
        Err(error) => return Err(error).with_context(|| format!("removing {}", file.display())),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Zoned {
        text.parse().expect("a time with its zone")
    }

    fn windows(texts: &[&str]) -> Vec<Window> {
        texts.iter().map(|text| parse_window(text).expect("hours")).collect()
    }

    #[test]
    fn hours_are_open_as_written_and_pass_midnight_into_the_next_day() {
        let open = |texts: &[&str], now: &str| withheld(&windows(texts), None, &at(now)).is_none();
        // 2026-11-20 is a Friday.
        for (text, now, expected) in [
            ("09:00-17:00", "2026-11-20T09:00[Europe/Berlin]", true),
            ("09:00-17:00", "2026-11-20T17:00[Europe/Berlin]", false),
            ("22:00-07:00", "2026-11-20T23:59[UTC]", true),
            ("22:00-07:00", "2026-11-20T06:59[UTC]", true),
            ("22:00-07:00", "2026-11-20T07:00[UTC]", false),
            ("fri 22:00-07:00", "2026-11-21T06:00[UTC]", true),
            ("fri 22:00-07:00", "2026-11-20T06:00[UTC]", false),
            ("sat-sun 00:00-24:00", "2026-11-20T23:59[UTC]", false),
            ("Sat-Sun 00:00-24:00", "2026-11-21T00:00[UTC]", true),
            ("sat-mon 8:30-9:00", "2026-11-23T08:30[UTC]", true),
            ("sat-mon 8:30-9:00", "2026-11-24T08:30[UTC]", false),
        ] {
            assert_eq!(open(&[text], now), expected, "{text} at {now}");
        }
        assert!(open(&["09:00-10:00", "12:00-13:00"], "2026-11-20T12:30[UTC]"), "either is enough");
        assert!(open(&[], "2026-11-20T12:30[UTC]"), "without hours it always serves");
    }

    #[test]
    fn why_and_until_when_is_said() {
        let now = at("2026-11-20T12:00[UTC]");
        let why = |texts: &[&str], pause| withheld(&windows(texts), pause, &now);
        assert_eq!(
            why(&["mon 09:00-17:00"], None).as_deref(),
            Some("outside of its owner's hours until Mon 09:00")
        );
        assert_eq!(why(&[], Some(Pause { until: None })).as_deref(), Some("paused by its owner"));
        let end = now.timestamp().as_second() + 90 * 60;
        let paused = Some(Pause { until: Some(end) });
        assert_eq!(why(&[], paused).as_deref(), Some("paused by its owner until 2026-11-20 13:30"));
        assert_eq!(why(&[], Some(Pause { until: Some(end - 90 * 60) })), None, "it is over by itself");
    }

    #[test]
    fn the_next_opening_is_what_a_look_at_each_minute_of_a_week_finds() {
        let mut state = 5u64;
        let mut below = |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let mut closed = 0;
        for _ in 0..60 {
            let count = 1 + below(3);
            let windows: Vec<Window> = (0..count)
                .map(|_| {
                    let (from, span) = (below(1440) as u16, 1 + below(1438) as u16);
                    Window { days: 1 + below(127) as u8, from, to: (from + span) % 1440 }
                })
                .filter(|window| window.from != window.to)
                .collect();
            let now =
                at("2026-11-16T00:00[UTC]").checked_add((below(7 * 1440) as i64).minutes()).expect("a week");
            let is_open = |at: &Zoned| withheld(&windows, None, at).is_none();
            if windows.is_empty() || is_open(&now) {
                continue;
            }
            closed += 1;
            let minute = |ahead: i64| now.checked_add(ahead.minutes()).expect("a week");
            let expected = (1..=7 * 1440).map(minute).find(is_open);
            assert_eq!(opening(&windows, &now), expected, "{windows:?} at {now}");
        }
        assert!(closed > 5, "{closed}");
        // By night the clock jumps from two to three: what would open between opens then, or soon after.
        let spring = at("2026-03-29T01:30[Europe/Berlin]");
        let next = opening(&windows(&["02:30-06:00"]), &spring).expect("it opens");
        assert_eq!(next.strftime("%a %H:%M").to_string(), "Sun 03:30");
    }

    #[test]
    fn what_are_no_hours_is_refused_with_an_example() {
        for text in [
            "",
            "9-17",
            "25:00-26:00",
            "09:60-10:00",
            "10:00-10:00",
            "24:00-07:00",
            "fry 10:00-11:00",
            "10:00",
            "-",
            "１0:00-11:00",
        ] {
            let refused = parse_window(text).expect_err(text);
            assert!(refused.contains("22:00-07:00"), "{refused}");
        }
        for text in ["", "soon", "-2h", "0h", "2"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
        assert!(["90m", "2h", "1d 12h", "2 hours"].iter().all(|text| parse_span(text).is_ok()));
    }
}
