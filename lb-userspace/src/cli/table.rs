//! Tables as people read them: no borders, two blanks between columns, numbers short.

use comfy_table::{Table, presets};

/// Rows below a header, each line without blanks at its end.
pub(super) fn table<'a, Row: IntoIterator<Item = String>>(
    header: impl IntoIterator<Item = &'a str>,
    rows: impl IntoIterator<Item = Row>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Three digits at most: `12`, `999`, `1.2k`, `96k`, `1.8M`.
pub(super) fn short(number: f64) -> String {
    let mut scaled = number;
    for unit in ["", "k", "M", "G", "T"] {
        let digits = usize::from(!unit.is_empty() && scaled < 9.95);
        if scaled < 999.5 || unit == "T" {
            return format!("{scaled:.digits$}{unit}");
        }
        scaled /= 1000.0;
    }
    unreachable!("the last unit returns")
}

/// The two largest units that matter: `12s`, `2m13s`, `3h`, `3d4h`.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let (whole, part) = match seconds {
        0..60 => ((seconds, "s"), (0, "")),
        60..600 => ((minutes, "m"), (seconds % 60, "s")),
        600..3600 => ((minutes, "m"), (0, "")),
        3600..86_400 => ((hours, "h"), (minutes % 60, "m")),
        86_400..864_000 => ((days, "d"), (hours % 24, "h")),
        _ => ((days, "d"), (0, "")),
    };
    if part.0 == 0 {
        format!("{}{}", whole.0, whole.1)
    } else {
        format!("{}{}{}{}", whole.0, whole.1, part.0, part.1)
    }
}

pub(super) fn percent(share: f64, digits: usize) -> String {
    format!("{:.digits$}%", share * 100.0)
}

/// `-` for what is not there.
pub(super) fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (12.4, "12"),
            (999.4, "999"),
            (999.6, "1.0k"),
            (1234.0, "1.2k"),
            (9949.0, "9.9k"),
            (9960.0, "10k"),
            (96_012.0, "96k"),
            (412_300.0, "412k"),
            (999_900.0, "1.0M"),
            (14_880_000.0, "15M"),
            (5e15, "5000T"),
        ];
        for (number, text) in cases {
            assert_eq!(short(number), text);
        }
    }

    #[test]
    fn ages_have_two_units_at_most() {
        let cases = [
            (0, "0s"),
            (59, "59s"),
            (120, "2m"),
            (133, "2m13s"),
            (1800, "30m"),
            (10_800, "3h"),
            (11_520, "3h12m"),
            (273_600, "3d4h"),
            (259_200, "3d"),
            (2_000_000, "23d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let shown = table(["NAME", "N"], [row("default/web", "1"), row("x", "12345")]);
        assert_eq!(shown, "NAME         N\ndefault/web  1\nx            12345");
    }
}
