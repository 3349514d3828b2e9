//! Any answers of a server about a session: what is made of them can be set up again, and no value breaks out of
//! its quotes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::protocol::parameters::{ParameterSet, Tracked};
use pgweir::protocol::state::{Pins, Question, SessionState};
use pgweir::sql::state::{Parts, Touched};
use pgweir::sql::statements;

const KINDS: [&str; 8] =
    ["setting", "custom", "role", "authorization", "prepared", "lock", "temporary", "channel"];

type Row = (u8, Option<String>, Option<String>);

fn told(rows: Vec<Row>, before: &SessionState) -> SessionState {
    let touched = Touched { parts: Parts::TOLD, ..Touched::default() };
    let rows = rows.into_iter().map(|(kind, name, value)| {
        vec![Some(KINDS[usize::from(kind) % KINDS.len()].to_owned()), name, value]
    });
    Question::new(&touched, before)
        .read(rows, (before, Pins::empty()), Some("app"), (&Tracked::new([]), &ParameterSet::default()))
        .state
}

fuzz_target!(|input: (Vec<Row>, Vec<Row>)| {
    // A text ends at its first NUL.
    let has_nul = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains('\0'));
    if input.0.iter().chain(&input.1).any(|(_, name, value)| has_nul(name) || has_nul(value)) {
        return;
    }
    let one = told(input.0, &SessionState::default());
    let other = told(input.1, &one);
    let clean = SessionState::default();
    for (from, to) in [(&one, &other), (&other, &one), (&clean, &one), (&one, &clean)] {
        let (undo, redo) = from.toward(to);
        let sent = format!("{undo}{redo}");
        let ends = sent.matches(";").count();
        assert!(statements(sent.as_bytes()).len() <= ends, "{sent}");
    }
    assert_eq!(clean.toward(&clean), Default::default());
    assert_eq!(one.toward(&clean).1, "");
});
