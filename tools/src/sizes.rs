//! Numbers of tokens and amounts of memory as the command line takes them.

use std::str::FromStr;

/// A number of tokens or positions: `4096`, `32k`, `128K`, `1m`. `k` is 1024 and `m` 1024², in either case: these
/// are lengths of contexts, which come in powers of two.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    let (number, unit) = split(text);
    let factor = match unit {
        "" => 1u64,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        _ => return Err(format!("the unit `{unit}` is unknown; use k (1024) or m (1024²), as in 128k")),
    };
    let whole: u64 = parse(number)?;
    let product = whole.checked_mul(factor).and_then(|n| usize::try_from(n).ok());
    // Tokens are numbered in u32, and one number stands for none.
    product.filter(|&n| n < u32::MAX as usize).ok_or_else(|| format!("{text} is more than 2^32 - 2"))
}

/// An amount of memory: `16GiB`, `12.6GB`, `500MB` or a number of bytes. GB are 10^9, GiB 2^30, in any case.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(format!("the unit `{unit}` is unknown; use GB (10^9) or GiB (2^30)")),
    };
    let total = match number.contains('.') {
        true => Some(parse::<f64>(number)? * factor as f64).filter(|total| *total < 1e18).map(|total| total as u64),
        false => parse::<u64>(number)?.checked_mul(factor),
    };
    let possible = |total: &u64| (1..1_000_000_000_000_000_000).contains(total);
    total.filter(possible).ok_or_else(|| format!("{text} is not an amount of memory"))
}

/// The number and the unit behind it.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len()));
    (number.trim_end(), unit)
}

/// Digits, of fractions with a point: no sign, exponent or infinity.
fn parse<T: FromStr>(number: &str) -> Result<T, String> {
    let plain = number.bytes().all(|c| c.is_ascii_digit() || c == b'.');
    let parsed = number.parse().ok().filter(|_| plain);
    parsed.ok_or_else(|| format!("`{number}` is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_counted_in_powers_of_two() {
        for (text, expected) in [
            ("0", 0),
            ("1", 1),
            ("4096", 4096),
            ("32k", 32_768),
            ("128K", 131_072),
            ("1m", 1 << 20),
            (" 2 M ", 2 << 20),
        ] {
            assert_eq!(count(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn gb_are_powers_of_ten_and_gib_of_two() {
        for (text, expected) in [
            ("16GiB", 16 << 30),
            ("16gib", 16 << 30),
            ("12.6GB", 12_600_000_000),
            ("0.5 GB", 500_000_000),
            ("80 GB", 80_000_000_000),
            ("500MB", 500_000_000),
            ("1.5MiB", 3 << 19),
            ("12", 12),
            ("7b", 7),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            " ",
            "k",
            "GB",
            "-1",
            "+1",
            "1e9",
            "inf",
            "nan",
            "0x10",
            "1.2.3",
            "1,5GB",
            "1 2",
            "12GX",
            "12Gb/s",
            "4294967295m",
            "99999999999999999999",
            "18446744073709551615k",
            "９GB",
            "1\u{0}",
            "🦀",
        ] {
            assert!(count(text).is_err(), "count takes `{text}`");
        }
        for text in [
            "",
            "GB",
            "0",
            "0GB",
            "-1GB",
            "+1GB",
            "1e9",
            "1e3GB",
            "infGB",
            "nanGB",
            "..GB",
            "1.2.3GB",
            "1,5GB",
            "16G",
            "16 G",
            "99999999999999999999GB",
            "99999999999999.5TB",
            "18446744073709551615KiB",
            "1GB1",
            "🦀GB",
        ] {
            assert!(bytes(text).is_err(), "bytes takes `{text}`");
        }
    }
}
