//! Single values from text: what paths and queries carry, and what JSON strings carry for kinds that are not text.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use prost_reflect::{Kind, Value};

use super::{expected, number};

const ANY_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, ANY_PADDING);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, ANY_PADDING);

/// Reads `text` as a value of `kind`. The error is the rule that it breaks.
pub fn from_text(kind: &Kind, text: &str) -> Result<Value, String> {
    if is_integer(kind) && has_leading_zero(text) {
        // 0644 is another number to whoever wrote it
        return Err(format!("must be {}, decimal and without leading zeros", expected(kind)));
    }
    let value = match kind {
        Kind::Double => float(text).map(Value::F64),
        Kind::Float => text.parse().ok().or_else(|| float(text).and_then(single)).map(Value::F32),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => text.parse().ok().map(Value::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => text.parse().ok().map(Value::I64),
        Kind::Uint32 | Kind::Fixed32 => text.parse().ok().map(Value::U32),
        Kind::Uint64 | Kind::Fixed64 => text.parse().ok().map(Value::U64),
        Kind::Bool => text.parse().ok().map(Value::Bool),
        Kind::String => Some(Value::String(text.to_owned())),
        Kind::Bytes => base64(text).map(|bytes| Value::Bytes(bytes.into())),
        Kind::Enum(kind) => number(kind, text).map(Value::EnumNumber),
        Kind::Message(_) => None,
    };
    value.ok_or_else(|| format!("must be {}", expected(kind)))
}

fn is_integer(kind: &Kind) -> bool {
    use Kind::{Fixed32, Fixed64, Int32, Int64, Sfixed32, Sfixed64, Sint32, Sint64, Uint32, Uint64};
    matches!(kind, Int32 | Int64 | Uint32 | Uint64 | Sint32 | Sint64 | Fixed32 | Fixed64 | Sfixed32 | Sfixed64)
}

fn has_leading_zero(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']);
    digits.len() > 1 && digits.starts_with('0')
}

/// Reads a whole number as a value of `kind`.
pub fn from_integer(kind: &Kind, integer: i128) -> Result<Value, String> {
    let value = match kind {
        Kind::Double => Some(Value::F64(integer as f64)),
        Kind::Float => Some(Value::F32(integer as f32)),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => integer.try_into().ok().map(Value::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => integer.try_into().ok().map(Value::I64),
        Kind::Uint32 | Kind::Fixed32 => integer.try_into().ok().map(Value::U32),
        Kind::Uint64 | Kind::Fixed64 => integer.try_into().ok().map(Value::U64),
        Kind::Enum(kind) => {
            let number = i32::try_from(integer).ok();
            number.filter(|number| kind.get_value(*number).is_some()).map(Value::EnumNumber)
        }
        Kind::Bool | Kind::String | Kind::Bytes | Kind::Message(_) => None,
    };
    value.ok_or_else(|| format!("must be {}", expected(kind)))
}

/// Reads a number with a fraction or an exponent as a value of `kind`; `1e3` is a whole number too.
pub fn from_float(kind: &Kind, number: f64) -> Result<Value, String> {
    match kind {
        Kind::Double => Ok(Value::F64(number)),
        Kind::Float => single(number).map(Value::F32).ok_or_else(|| format!("must be {}", expected(kind))),
        // the casts saturate, far outside of every 64-bit range, where the check by kind refuses them
        _ if number.fract() == 0.0 => from_integer(kind, number as i128),
        _ => Err(format!("must be {}", expected(kind))),
    }
}

fn float(text: &str) -> Option<f64> {
    match text {
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        // Rust reads more words than JSON knows
        _ => text.parse().ok().filter(|number: &f64| number.is_finite()),
    }
}

fn single(number: f64) -> Option<f32> {
    let narrow = number as f32;
    (narrow.is_finite() || !number.is_finite()).then_some(narrow)
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let engine = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    engine.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_bounded_by_their_kind() {
        assert_eq!(from_integer(&Kind::Uint32, 4_294_967_295), Ok(Value::U32(u32::MAX)));
        assert!(from_integer(&Kind::Uint32, 4_294_967_296).is_err());
        assert!(from_integer(&Kind::Uint64, -1).is_err());
        assert_eq!(from_float(&Kind::Uint64, 1e3), Ok(Value::U64(1000)));
        assert!(from_float(&Kind::Uint64, 18_446_744_073_709_551_616.0).is_err());
        assert!(from_float(&Kind::Int32, 0.5).is_err());
        assert!(from_float(&Kind::Float, 1e300).is_err());
        assert_eq!(from_text(&Kind::Uint64, "18446744073709551615"), Ok(Value::U64(u64::MAX)));
        assert!(from_text(&Kind::Double, "inf").is_err());
        for octal in ["0644", "0o644", "00", "-07"] {
            assert!(from_text(&Kind::Int32, octal).unwrap_err().contains("without leading zeros"), "{octal}");
        }
        assert_eq!(from_text(&Kind::Uint32, "0"), Ok(Value::U32(0)));
        assert_eq!(from_text(&Kind::Double, "0.5"), Ok(Value::F64(0.5)));
    }

    #[test]
    fn base64_is_read_in_both_alphabets_with_and_without_padding() {
        for text in ["+/8=", "+/8", "-_8", "-_8="] {
            assert_eq!(from_text(&Kind::Bytes, text), Ok(Value::Bytes(vec![0xfb, 0xff].into())), "{text}");
        }
        assert!(from_text(&Kind::Bytes, "%").is_err());
    }
}
