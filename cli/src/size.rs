//! Sizes as people write them.

/// Bytes from a text such as `10GiB`, `512MiB`, `1.5TiB`, `64KB` or `1048576`.
///
/// Binary units are KiB, MiB, GiB, TiB (or Ki, Mi, Gi, Ti); decimal ones KB, MB, GB, TB. A bare
/// `G` is refused, because tools disagree on what it means and a volume's size can't be guessed.
///
/// # Errors
/// A text for people when it is no size, is ambiguous, is not a whole number of bytes or does not
/// fit in 64 bits.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim();
    let factor: u128 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "m" | "g" | "t" => {
            let upper = unit.to_ascii_uppercase();
            return Err(format!(
                "'{text}' is ambiguous: write {number}{upper}iB (1024-based) or {number}{upper}B \
                 (1000-based)"
            ));
        }
        _ => {
            return Err(format!(
                "'{text}' is not a size: '{unit}' is no unit; write for instance 10GiB, 512MiB or \
                 a number of bytes"
            ));
        }
    };
    let bad = || format!("'{text}' is not a size; write for instance 10GiB or 512MiB");
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || fraction.len() > 12 {
        return Err(bad());
    }
    let whole: u128 = whole.parse().map_err(|_| bad())?;
    let too_big = || format!("'{text}' is more than 64 bits of bytes can say");
    let mut bytes = whole.checked_mul(factor).ok_or_else(too_big)?;
    if !fraction.is_empty() {
        let scale = 10u128.pow(fraction.len() as u32);
        let part = fraction.parse::<u128>().map_err(|_| bad())? * factor;
        if !part.is_multiple_of(scale) {
            return Err(format!("'{text}' is not a whole number of bytes"));
        }
        bytes += part / scale;
    }
    u64::try_from(bytes).map_err(|_| too_big())
}

/// Bytes for people: `10 GiB`, `1.5 MiB`, `512 B`. Rounded to one decimal.
pub fn show_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = format!("{value:.1}");
    format!("{} {}", text.strip_suffix(".0").unwrap_or(&text), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("10GiB", 10 << 30),
            ("10 gib", 10 << 30),
            ("512Mi", 512 << 20),
            ("1.5TiB", 3 << 39),
            ("64KB", 64_000),
            ("2TB", 2_000_000_000_000),
            ("16777215TiB", 16_777_215 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_a_reason() {
        for (text, part) in [
            ("", "not a size"),
            ("GiB", "not a size"),
            ("-1GiB", "no unit"),
            ("10G", "write 10GiB"),
            ("10QiB", "no unit"),
            ("1.2.3GiB", "not a size"),
            ("0.0001KiB", "whole number"),
            ("16777216TiB", "64 bits"),
            ("999999999999999999999999999999999999999999", "not a size"),
            ("340282366920938463463374607431768211455TiB", "64 bits"),
        ] {
            let error = parse_size(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_shown() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(4096), "4 KiB");
        assert_eq!(show_size(1536 << 10), "1.5 MiB");
        assert_eq!(show_size(10 << 30), "10 GiB");
        assert_eq!(show_size(u64::MAX), "16 EiB");
    }
}
