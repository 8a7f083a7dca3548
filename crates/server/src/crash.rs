//! Ends this process in the middle of what it does with a session, for tests of what a crash leaves behind. Builds for
//! development do so when [`VARIABLE`] names a step, as `<step>:before` or `<step>:after`; release builds never do.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use cloud_sandbox_session::steps::{Moment, Probe, Step};

/// What names the step.
const VARIABLE: &str = "CLOUD_SANDBOX_CRASH_AT";

/// What watches the steps of sessions in this process; `None` unless it is to end at one of them.
pub fn probe() -> anyhow::Result<Option<Arc<dyn Probe>>> {
    if !cfg!(debug_assertions) {
        return Ok(None);
    }
    let given = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let crash =
        given.map(|text| Crash::parse(&text)).transpose().with_context(|| format!("failed to read {VARIABLE}"))?;
    Ok(crash.map(|crash| Arc::new(crash) as Arc<dyn Probe>))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Crash {
    step: Step,
    moment: Moment,
}

impl Crash {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (word, moment) =
            text.split_once(':').with_context(|| format!("`{text}` is not <step>:before or <step>:after"))?;
        let moment = match moment {
            "before" => Moment::Before,
            "after" => Moment::After,
            _ => bail!("`{moment}` is neither before nor after"),
        };
        let Some(step) = Step::ALL.iter().copied().find(|step| step.as_str() == word) else {
            let all: Vec<_> = Step::ALL.iter().map(|step| step.as_str()).collect();
            bail!("`{word}` is no step; steps are {}", all.join(", "))
        };
        Ok(Self { step, moment })
    }

    fn is_at(self, step: Step, moment: Moment) -> bool {
        self == Self { step, moment }
    }
}

#[tonic::async_trait]
impl Probe for Crash {
    async fn at(&self, step: Step, moment: Moment) {
        if self.is_at(step, moment) {
            let when = if moment == Moment::Before { "before" } else { "after" };
            eprintln!("ends {when} the step {}, as {VARIABLE} says", step.as_str());
            std::process::abort();
        }
    }

    fn repeats(&self, _: Step) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_can_be_named_before_and_after() {
        for step in Step::ALL.iter().copied() {
            for (word, moment) in [("before", Moment::Before), ("after", Moment::After)] {
                let crash = Crash::parse(&format!("{}:{word}", step.as_str())).unwrap();
                assert_eq!(crash, Crash { step, moment });
                let met = Step::ALL.iter().flat_map(|step| [(*step, Moment::Before), (*step, Moment::After)]);
                assert_eq!(met.filter(|(step, moment)| crash.is_at(*step, *moment)).count(), 1);
            }
        }
    }

    #[test]
    fn what_names_no_step_or_no_moment_is_an_error_that_says_so() {
        for (text, wrong) in
            [("save", "<step>:before"), ("save:during", "`during`"), ("sav:before", "`sav`"), (":", "``")]
        {
            let error = Crash::parse(text).unwrap_err().to_string();
            assert!(error.contains(wrong), "{text}: {error}");
        }
        assert!(Crash::parse("sav:before").unwrap_err().to_string().contains("begin_save, save, note_saved"));
    }
}
