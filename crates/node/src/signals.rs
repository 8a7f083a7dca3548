//! Signals by name and number, as Linux has them on x86-64 and ARM (signal(7)).

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// SIGKILL's number.
pub(crate) const KILL: i32 = 9;

/// The name of a number: `SIGKILL`. Real-time signals have numbers only: `SIG35`.
pub(crate) fn name(number: i32) -> String {
    let known = usize::try_from(number - 1).ok().and_then(|index| NAMES.get(index));
    known.map_or_else(|| format!("SIG{number}"), |name| format!("SIG{name}"))
}

/// The number of a name, with or without `SIG`.
pub(crate) fn number(name: &str) -> Option<i32> {
    let short = name.strip_prefix("SIG").unwrap_or(name);
    let index = NAMES.iter().position(|known| *known == short)?;
    i32::try_from(index + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_and_without_their_prefix() {
        assert_eq!((number("SIGINT"), number("TERM"), number("SIGSYS")), (Some(2), Some(15), Some(31)));
        for wrong in ["", "SIG", "SIGFOO", "sigint", "9", "SIGSIGINT"] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_number_has_a_name_that_is_read_back() {
        for signal in 1..=31 {
            assert_eq!(number(&name(signal)), Some(signal));
        }
        assert_eq!(name(35), "SIG35");
        assert_eq!(name(KILL), "SIGKILL");
    }
}
