//! Moments in the forms of Docker: RFC 3339 in documents, Go's `Time.String()` in tables.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECONDS_OF_A_DAY: i64 = 86_400;
const NANOSECONDS: i128 = 1_000_000_000;

/// A moment, in nanoseconds since 1970 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i128);

impl Moment {
    /// The present.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// This moment minus `span`.
    pub fn before(self, span: Duration) -> Self {
        Self(self.0 - span.as_nanos() as i128)
    }

    /// A moment by the seconds since 1970, and nanoseconds.
    pub fn from_unix(seconds: i64, nanoseconds: u32) -> Self {
        Self(i128::from(seconds) * NANOSECONDS + i128::from(nanoseconds))
    }

    /// As Go prints a time: `2026-11-29 09:47:26.5 +0000 UTC`.
    pub fn in_go(self) -> String {
        let (date, time) = self.parts();
        format!("{date} {time} +0000 UTC")
    }

    /// The date, and the time without trailing zeros of the fraction.
    fn parts(self) -> (String, String) {
        let seconds = self.0.div_euclid(NANOSECONDS) as i64;
        let nanoseconds = self.0.rem_euclid(NANOSECONDS);
        let (day, second) = (
            seconds.div_euclid(SECONDS_OF_A_DAY),
            seconds.rem_euclid(SECONDS_OF_A_DAY),
        );
        let (year, month, day) = date_of(day);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let fraction = match nanoseconds {
            0 => String::new(),
            nanoseconds => format!(".{nanoseconds:09}")
                .trim_end_matches('0')
                .to_owned(),
        };
        (
            format!("{year:04}-{month:02}-{day:02}"),
            format!("{hour:02}:{minute:02}:{second:02}{fraction}"),
        )
    }
}

impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Self(since.as_nanos() as i128),
            Err(error) => Self(-(error.duration().as_nanos() as i128)),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (date, time) = self.parts();
        write!(f, "{date}T{time}Z")
    }
}

/// A text that is no moment.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidMoment;

impl FromStr for Moment {
    type Err = InvalidMoment;

    /// Reads RFC 3339 and its shorter forms: without a fraction, a zone (then UTC), seconds, or a
    /// time of the day.
    fn from_str(text: &str) -> Result<Self, InvalidMoment> {
        read(text).ok_or(InvalidMoment)
    }
}

fn read(text: &str) -> Option<Moment> {
    let (date, time) = text.split_once('T').unwrap_or((text, ""));
    let date: Vec<_> = date.split('-').map(digits).collect::<Option<_>>()?;
    let &[year, month, day] = &date[..] else {
        return None;
    };
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year > 9999 {
        return None;
    }
    let (time, offset) = zone(time)?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    if fraction.len() > 9 {
        return None;
    }
    let nanoseconds = digits(&format!("{fraction:0<9}"))?;
    let parts = time
        .split(':')
        .filter(|part| !time.is_empty() || !part.is_empty());
    let parts: Vec<_> = parts.map(digits).collect::<Option<_>>()?;
    let (hour, minute, second) = match parts[..] {
        [] => (0, 0, 0),
        [hour] => (hour, 0, 0),
        [hour, minute] => (hour, minute, 0),
        [hour, minute, second] => (hour, minute, second),
        _ => return None,
    };
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = day_of(year, month, day) * SECONDS_OF_A_DAY + hour * 3600 + minute * 60 + second;
    let nanoseconds = u32::try_from(nanoseconds).ok()?;
    Some(Moment::from_unix(seconds - offset, nanoseconds))
}

/// The time without its zone, and the zone's seconds east of UTC.
fn zone(time: &str) -> Option<(&str, i64)> {
    if let Some(time) = time.strip_suffix('Z') {
        return Some((time, 0));
    }
    let Some(at) = time.find(['+', '-']) else {
        return Some((time, 0));
    };
    let (hours, minutes) = time[at + 1..].split_once(':')?;
    let east = digits(hours)? * 3600 + digits(minutes)? * 60;
    let sign = if time[at..].starts_with('-') { -1 } else { 1 };
    Some((&time[..at], sign * east))
}

fn digits(text: &str) -> Option<i64> {
    let is_number =
        !text.is_empty() && text.len() <= 9 && text.bytes().all(|it| it.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. A year begins in March here, so that
/// the leap day is its last.
fn day_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse of [`day_of`].
fn date_of(day: i64) -> (i64, i64, i64) {
    let day = day + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_docker_does() {
        let moment = Moment::from_unix(1_700_493_042, 120_000_000);
        assert_eq!(moment.to_string(), "2023-11-20T15:10:42.12Z");
        assert_eq!(moment.in_go(), "2023-11-20 15:10:42.12 +0000 UTC");
        let leap = Moment::from_unix(951_782_400, 0);
        assert_eq!(leap.to_string(), "2000-02-29T00:00:00Z");
        assert_eq!(Moment::from_unix(-1, 0).to_string(), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn short_forms_and_zones_are_read() {
        for (text, expected) in [
            ("2023-11-20T15:10:42.12Z", "2023-11-20T15:10:42.12Z"),
            ("2023-11-20T17:10:42+02:00", "2023-11-20T15:10:42Z"),
            ("2023-11-20T15:10", "2023-11-20T15:10:00Z"),
            ("2023-11-20", "2023-11-20T00:00:00Z"),
            ("2024-02-29T23:59:59-00:01", "2024-03-01T00:00:59Z"),
        ] {
            assert_eq!(text.parse::<Moment>().unwrap().to_string(), expected);
        }
        for text in [
            "",
            "yesterday",
            "2023-13-01",
            "2023-11-20T25:00",
            "10m",
            "2023-11-20T1:2:3:4",
        ] {
            assert_eq!(text.parse::<Moment>(), Err(InvalidMoment), "{text}");
        }
    }

    #[test]
    fn days_and_dates_are_inverse() {
        for day in (-200_000..200_000).step_by(37) {
            let (year, month, date) = date_of(day);
            assert_eq!(day_of(year, month, date), day);
        }
    }
}
