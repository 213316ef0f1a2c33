//! `strftime_now`: a given time in the caller's format, in UTC and English.

use std::fmt::Write;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The years 0001 to 9999, as Python's `datetime` has them.
const UNIX_S_MIN: i64 = -62_135_596_800;
const UNIX_S_MAX: i64 = 253_402_300_799;

struct Date {
    year: i64,
    /// From 0.
    month: usize,
    /// From 1.
    day: i64,
    /// From 0, Sunday.
    weekday: usize,
    /// From 1.
    year_day: i64,
    second: i64,
}

/// Days to a date. Source: Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
fn date(unix_s: i64) -> Date {
    let unix_s = unix_s.clamp(UNIX_S_MIN, UNIX_S_MAX);
    let (days, second) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let from_march = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * from_march + 2) / 153;
    let day = from_march - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = year_of_era + era * 400 + i64::from(month < 2);
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    // March 1 is day 60 of a year, or 61 of a leap year.
    let year_day = if month < 2 { from_march - 305 } else { from_march + 60 + i64::from(leap) };
    let weekday = (days + 4).rem_euclid(7) as usize;
    Date { year, month: month as usize, day, weekday, year_day, second }
}

/// `unix_s` in `format`, with the codes of Python's `strftime`; codes that are none stay as they are.
pub(super) fn strftime(unix_s: i64, format: &str) -> String {
    let date = date(unix_s);
    let (hour, minute, second) = (date.second / 3600, date.second / 60 % 60, date.second % 60);
    let hour_of_12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let code = letters.next();
        // `%-d`: without leading zeros.
        let (plain, code) = if code == Some('-') { (true, letters.next()) } else { (false, code) };
        let width = |two: usize| if plain { 0 } else { two };
        let _ = match code {
            Some('Y') => write!(out, "{:0w$}", date.year, w = width(4)),
            Some('y') => write!(out, "{:0w$}", date.year % 100, w = width(2)),
            Some('m') => write!(out, "{:0w$}", date.month + 1, w = width(2)),
            Some('d') => write!(out, "{:0w$}", date.day, w = width(2)),
            Some('e') => write!(out, "{:w$}", date.day, w = width(2)),
            Some('j') => write!(out, "{:0w$}", date.year_day, w = width(3)),
            Some('H') => write!(out, "{hour:0w$}", w = width(2)),
            Some('I') => write!(out, "{hour_of_12:0w$}", w = width(2)),
            Some('M') => write!(out, "{minute:0w$}", w = width(2)),
            Some('S') => write!(out, "{second:0w$}", w = width(2)),
            Some('p') => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('B') => write!(out, "{}", MONTHS[date.month]),
            Some('b' | 'h') => write!(out, "{}", &MONTHS[date.month][..3]),
            Some('A') => write!(out, "{}", DAYS[date.weekday]),
            Some('a') => write!(out, "{}", &DAYS[date.weekday][..3]),
            Some('w') => write!(out, "{}", date.weekday),
            Some('F') => write!(out, "{:04}-{:02}-{:02}", date.year, date.month + 1, date.day),
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('s') => write!(out, "{unix_s}"),
            Some('f') => write!(out, "000000"),
            Some('z') => write!(out, "+0000"),
            Some('Z') => write!(out, "UTC"),
            Some('%') => write!(out, "%"),
            Some(other) => write!(out, "%{}{other}", if plain { "-" } else { "" }),
            None => write!(out, "%"),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_read_as_pythons() {
        let format = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %I%p %-d %e|%%|%Q|%";
        let expected = "2024-02-29 13:07:09 Thu Thursday Feb February 060 24 01PM 29 29|%|%Q|%";
        assert_eq!(strftime(1_709_212_029, format), expected);
        assert_eq!(strftime(0, "%d %b %Y %I %p %j"), "01 Jan 1970 12 AM 001");
        assert_eq!(strftime(-1, "%F %T"), "1969-12-31 23:59:59");
        assert_eq!(strftime(1_735_603_200, "%F %j"), "2024-12-31 366");
        assert_eq!(strftime(1_767_139_200, "%F %j %a"), "2025-12-31 365 Wed");
    }

    #[test]
    fn an_absurd_time_is_clamped_to_the_years_there_are() {
        assert_eq!(strftime(i64::MAX, "%F"), "9999-12-31");
        assert_eq!(strftime(i64::MIN, "%F"), "0001-01-01");
    }
}
