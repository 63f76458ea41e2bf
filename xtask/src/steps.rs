//! A run of named steps: a heading and a duration for each, a table at the end.

use std::time::{Duration, Instant};

/// The steps done so far.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<Step>,
}

struct Step {
    name: String,
    passed: bool,
    took: Duration,
    note: String,
}

impl Steps {
    /// Does one step: `action` gives a note for the table, or what went wrong. A panic is a failure
    /// too. Gives whether it passed.
    pub(crate) fn run(&mut self, name: &str, action: impl FnOnce() -> anyhow::Result<String>) -> bool {
        println!("\n=== {name}");
        let start = Instant::now();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(action));
        let took = start.elapsed();
        let (passed, note) = match result {
            Ok(Ok(note)) => (true, note),
            Ok(Err(error)) => (false, format!("{error:#}")),
            Err(panic) => (false, message(panic.as_ref())),
        };
        println!("=== {name}: {} in {}", word(passed), clock(took));
        if !passed {
            println!("    {note}");
        }
        // One line a step in the table; the whole text is above.
        let note = note.lines().next().unwrap_or_default().chars().take(100).collect();
        self.done.push(Step { name: name.to_owned(), passed, took, note });
        passed
    }

    /// Prints the table and the closing line. Gives whether all passed.
    pub(crate) fn finish(self) -> bool {
        let width = self.done.iter().map(|step| step.name.len()).max().unwrap_or(0);
        println!();
        for step in &self.done {
            println!("{:width$}  {:6}  {:>8}  {}", step.name, word(step.passed), clock(step.took), step.note);
        }
        let passed = self.done.iter().filter(|step| step.passed).count();
        let total: Duration = self.done.iter().map(|step| step.took).sum();
        println!("\n{passed} passed, {} failed ({})", self.done.len() - passed, clock(total));
        passed == self.done.len()
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}

fn word(passed: bool) -> &'static str {
    if passed { "ok" } else { "FAILED" }
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 { format!("{:.1} s", time.as_secs_f64()) } else { format!("{}:{:02}", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_and_a_panic_are_both_failures() {
        let mut steps = Steps::default();
        assert!(steps.run("good", || Ok("fine".to_owned())));
        assert!(!steps.run("bad", || anyhow::bail!("it is wrong")));
        assert!(!steps.run("worse", || panic!("it fell over")));
        let notes: Vec<_> = steps.done.iter().map(|step| step.note.as_str()).collect();
        assert_eq!(notes, ["fine", "it is wrong", "it fell over"]);
        assert!(!steps.finish());
        assert!(Steps::default().finish());
    }
}
