//! The system calls of a sandbox as a profile that a Docker Engine takes (`--security-opt seccomp=`), for the library
//! libseccomp, by which runc and crun compile it.
//!
//! A call has one list of rules there, and what the list lacks gets the default answer: "all but these" cannot be said where
//! arguments are looked at. Nor can it by "not equal", which takes the upper half of an argument into account that the
//! kernel drops. So the arguments that are left over are listed, as bits: each rule is a set of bits and what they are.

use std::{collections::BTreeMap, io};

use serde_json::{Value, json};
use syscalls::Sysno;

use super::{Condition, PROFILE, Profile, Rule, allowed, forbidden};

/// The profile for this machine, in JSON.
pub fn profile() -> io::Result<String> {
    let profile: Profile = serde_json::from_str(PROFILE)?;
    let (allowed, forbidden) = (allowed(&profile), forbidden(&profile));
    let (mut absent, mut refused, mut free, mut conditional) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for call in Sysno::iter() {
        let number = i64::from(call.id());
        let (rules, exceptions) = (allowed.get(&number), forbidden.get(&number));
        match (rules, exceptions) {
            (_, Some(exceptions)) if exceptions.is_empty() => refused.push(call.name()),
            (None, _) => absent.push(call.name()),
            (Some(rules), None) if rules.is_empty() => free.push(call.name()),
            (Some(rules), exceptions) => {
                let mut parts = Vec::new();
                split(rules, exceptions.map_or(&[], Vec::as_slice), Part::default(), &mut parts);
                conditional.extend(parts.iter().map(|part| part.entry(call.name())));
            }
        }
    }
    let mut entries = vec![
        json!({"names": free, "action": "SCMP_ACT_ALLOW"}),
        json!({"names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM}),
        json!({"names": absent, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}),
    ];
    entries.extend(conditional);
    let profile = json!({
        // what is newer than this list; the runtimes of containers answer ENOSYS there by themselves
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": [architecture()?],
        "syscalls": entries,
    });
    Ok(profile.to_string())
}

/// libseccomp's word for this machine's own calls; those of others end the process, as they do without it.
fn architecture() -> io::Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("SCMP_ARCH_X86_64"),
        "aarch64" => Ok("SCMP_ARCH_AARCH64"),
        "riscv64" => Ok("SCMP_ARCH_RISCV64"),
        other => Err(io::Error::new(io::ErrorKind::Unsupported, format!("no seccomp profile for {other}"))),
    }
}

/// Some of all arguments: for each argument bits that are looked at, and what they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Part(BTreeMap<u8, (u32, u32)>);

impl Part {
    /// Whether the condition holds for all of the part or for none; `Err` has a bit that decides which.
    fn decides(&self, condition: &Condition) -> Result<bool, (u8, u32)> {
        let Condition { argument, mask, value, negated } = *condition;
        let (known, bits) = self.0.get(&argument).copied().unwrap_or_default();
        if (bits ^ value) & known & mask != 0 {
            return Ok(negated);
        }
        match mask & !known {
            0 => Ok(!negated),
            // from the top: what is no small number is none of the values that are looked for
            unknown => Err((argument, 1 << unknown.ilog2())),
        }
    }

    /// Whether any of the rules holds, in the same way: by a bit of the first argument that matters.
    fn decides_any(&self, rules: &[Rule]) -> Result<bool, (u8, u32)> {
        let mut undecided = Vec::new();
        for rule in rules {
            let conditions: Vec<_> = rule.iter().map(|condition| self.decides(condition)).collect();
            if conditions.iter().all(|decided| *decided == Ok(true)) {
                return Ok(true);
            }
            if !conditions.contains(&Ok(false)) {
                undecided.extend(conditions.into_iter().filter_map(Result::err));
            }
        }
        undecided.into_iter().min_by_key(|(argument, _)| *argument).map_or(Ok(false), Err)
    }

    fn with(&self, argument: u8, bit: u32, set: bool) -> Self {
        let mut part = self.clone();
        let (known, bits) = part.0.entry(argument).or_default();
        *known |= bit;
        *bits |= if set { bit } else { 0 };
        part
    }

    fn entry(&self, name: &str) -> Value {
        let bits = |(argument, (mask, value)): (&u8, &(u32, u32))| json!({"index": argument, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"});
        json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": self.0.iter().map(bits).collect::<Vec<_>>()})
    }
}

/// Splits a part until each has one answer, and keeps those that are allowed.
fn split(rules: &[Rule], exceptions: &[Rule], part: Part, parts: &mut Vec<Part>) {
    let allowed = if rules.is_empty() { Ok(true) } else { part.decides_any(rules) };
    let undecided = match (allowed, part.decides_any(exceptions)) {
        (Ok(false), _) | (_, Ok(true)) => return,
        (Ok(true), Ok(false)) => return parts.push(part),
        // the exceptions last: most of what no rule allows is not looked at further
        (Err(bit), _) | (_, Err(bit)) => bit,
    };
    for set in [false, true] {
        split(rules, exceptions, part.with(undecided.0, undecided.1, set), parts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel is asked, and whether both ways of saying it answer the same.
    #[test]
    fn profile_allows_what_the_programs_do_and_nothing_else() {
        let source: Profile = serde_json::from_str(PROFILE).unwrap();
        let (allowed, forbidden) = (allowed(&source), forbidden(&source));
        let told: Value = serde_json::from_str(&profile().unwrap()).unwrap();
        let interesting = [0, 1, 2, 3, 8, 9, 16, 17, 38, 39, 40, 45, 46, 0x20000, 0x2_0008, 0x1000_0000, 0x7e02_0000];
        let mut arguments: Vec<u64> = interesting.into_iter().chain([1 << 31, u64::from(u32::MAX)]).collect();
        // the upper half, which the kernel drops
        arguments.extend(arguments.clone().iter().map(|argument| argument | 1 << 32));
        let mut conditional = 0;
        for call in Sysno::iter() {
            let number = i64::from(call.id());
            let looked_at = |rules: Option<&Vec<Rule>>| rules.is_some_and(|rules| !rules.is_empty());
            let many = looked_at(allowed.get(&number)) || looked_at(forbidden.get(&number));
            conditional += usize::from(many);
            let some = if many { arguments.as_slice() } else { &[7] };
            for first in some {
                for second in some {
                    for third in [0, 9, *second] {
                        let arguments = [*first, *second, third];
                        let natively = allowed.get(&number).is_some_and(|rules| holds(rules, &arguments))
                            && !forbidden.get(&number).is_some_and(|rules| holds(rules, &arguments));
                        assert_eq!(says(&told, call.name(), &arguments), natively, "{call} {arguments:x?}");
                    }
                }
            }
        }
        assert!(conditional > 8, "{conditional} calls are allowed with some arguments only");
    }

    fn holds(rules: &[Rule], arguments: &[u64]) -> bool {
        let condition = |condition: &Condition| {
            let argument = arguments[usize::from(condition.argument)] as u32;
            (argument & condition.mask == condition.value) != condition.negated
        };
        rules.is_empty() || rules.iter().any(|rule| rule.iter().all(condition))
    }

    fn says(profile: &Value, name: &str, arguments: &[u64]) -> bool {
        let number = |value: &Value| value.as_u64().unwrap();
        let argument = |rule: &Value| {
            let argument = arguments[usize::try_from(number(&rule["index"])).unwrap()];
            assert_eq!(rule["op"], "SCMP_CMP_MASKED_EQ");
            argument & number(&rule["value"]) == number(&rule["valueTwo"])
        };
        let entries = profile["syscalls"].as_array().unwrap().iter();
        let mut named = entries.filter(|entry| entry["names"].as_array().unwrap().iter().any(|other| other == name));
        named.any(|entry| {
            entry["action"] == "SCMP_ACT_ALLOW" && entry["args"].as_array().into_iter().flatten().all(argument)
        })
    }

    #[test]
    fn profile_is_small_enough_for_each_container_to_be_given_one() {
        let profile = profile().unwrap();
        let entries = profile.matches("SCMP_CMP_MASKED_EQ").count();
        assert!(entries < 600 && profile.len() < 100_000, "{entries} conditions, {} bytes", profile.len());
    }
}
