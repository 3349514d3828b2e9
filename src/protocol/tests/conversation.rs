//! Random conversations with a server that answers by PostgreSQL's rules, delivered in random pieces
//! and at random times: the client sees what it must, and the server is free exactly when it is.

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest::sample::Index;

use super::{Talk, message};
use crate::protocol::{Answer, RequestKind};

/// Whether the server can do what it is asked, and what comes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Good,
    Bad,
    /// Describe: no rows. Execute: the portal is suspended. Query: it begins a transaction.
    Other,
    CopyIn,
    /// COPY fails before its data is read.
    CopyInFails,
    CopyOut,
}

/// One message on its way to the server.
#[derive(Clone, Copy, Debug)]
enum Sent {
    Request(RequestKind, Answer, Outcome),
    /// `false`: a row that makes the COPY fail.
    CopyData(bool),
}

/// PostgreSQL, as far as its main loop goes.
#[derive(Default)]
struct Server {
    /// Extended-protocol messages are ignored up to a Sync.
    skipping: bool,
    /// A COPY that reads its data, and whether a simple Query began it.
    copy: Option<bool>,
    in_transaction: bool,
    failed: bool,
    /// Messages came behind the last Sync.
    batch_open: bool,
    /// What it wrote, and what of it the client must see.
    output: Vec<u8>,
    owed_to_client: Vec<u8>,
}

impl Server {
    fn write(&mut self, word: &str, answer: Answer) {
        let bytes = message(word);
        if answer != Answer::Synthesize {
            self.output.extend(&bytes);
        }
        if answer != Answer::Discard {
            self.owed_to_client.extend(&bytes);
        }
    }

    fn ready(&mut self, answer: Answer) {
        let word = match (self.in_transaction, self.failed) {
            (false, _) => "ZI",
            (true, false) => "ZT",
            (true, true) => "ZE",
        };
        self.batch_open = false;
        self.write(word, answer);
    }

    fn fail(&mut self, answer: Answer, simple: bool) {
        self.copy = None;
        self.failed = true;
        // The error of a message of ours in an extended batch is the client's, too.
        self.write("E", if simple { answer } else { Answer::Forward });
        match simple {
            true => self.ready(answer),
            false => self.skipping = true,
        }
    }

    fn handle(&mut self, sent: Sent) {
        if let Some(simple) = self.copy {
            return self.handle_copy(sent, simple);
        }
        let Sent::Request(kind, answer, outcome) = sent else { return };
        match kind {
            RequestKind::CopyEnd => {}
            RequestKind::Sync => {
                self.skipping = false;
                self.ready(answer);
            }
            _ if self.skipping => {}
            RequestKind::Query => self.query(answer, outcome),
            RequestKind::FunctionCall if outcome == Outcome::Bad => self.fail(answer, true),
            RequestKind::FunctionCall => {
                self.write("V", answer);
                self.ready(answer);
            }
            _ => self.extended(kind, answer, outcome),
        }
    }

    fn query(&mut self, answer: Answer, outcome: Outcome) {
        match outcome {
            Outcome::Bad => return self.fail(answer, true),
            Outcome::CopyIn | Outcome::CopyInFails => {
                self.write("G", answer);
                self.copy = Some(true);
                if outcome == Outcome::CopyInFails {
                    self.fail(answer, true);
                }
                return;
            }
            Outcome::CopyOut => ["H", "d", "c", "C"].iter().for_each(|word| self.write(word, answer)),
            Outcome::Good => {
                ["T", "D", "D", "C", "C"].iter().for_each(|word| self.write(word, answer));
                (self.in_transaction, self.failed) = (false, false);
            }
            Outcome::Other => {
                self.write("C", answer);
                (self.in_transaction, self.failed) = (true, false);
            }
        }
        self.ready(answer);
    }

    fn extended(&mut self, kind: RequestKind, answer: Answer, outcome: Outcome) {
        self.batch_open = true;
        if outcome == Outcome::Bad && answer != Answer::Synthesize {
            return self.fail(answer, false);
        }
        let words: &[&str] = match (kind, outcome) {
            (RequestKind::Parse, _) => &["1"],
            (RequestKind::Bind, _) => &["2"],
            (RequestKind::Close, _) => &["3"],
            (RequestKind::Describe, Outcome::Other) => &["t", "n"],
            (RequestKind::Describe, _) => &["T"],
            (RequestKind::Execute, Outcome::Other) => &["D", "s"],
            (RequestKind::Execute, Outcome::CopyOut) => &["H", "d", "d", "c", "C"],
            (RequestKind::Execute, Outcome::CopyIn | Outcome::CopyInFails) => &["G"],
            _ => &["D", "N", "D", "C"],
        };
        words.iter().for_each(|word| self.write(word, answer));
        match (kind, outcome) {
            (RequestKind::Execute, Outcome::CopyIn) => self.copy = Some(false),
            (RequestKind::Execute, Outcome::CopyInFails) => self.fail(answer, false),
            _ => {}
        }
    }

    fn handle_copy(&mut self, sent: Sent, simple: bool) {
        match sent {
            Sent::CopyData(true) | Sent::Request(RequestKind::Sync, ..) => {}
            Sent::CopyData(false) => self.fail(Answer::Forward, simple),
            Sent::Request(_, _, Outcome::Bad) => self.fail(Answer::Forward, simple),
            Sent::Request(..) => {
                self.copy = None;
                self.write("C", Answer::Forward);
                if simple {
                    self.ready(Answer::Forward);
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        !self.skipping && !self.in_transaction && !self.batch_open && self.copy.is_none()
    }
}

fn request() -> impl Strategy<Value = Vec<Sent>> {
    use RequestKind::*;
    let one = |kind, answer, outcome| vec![Sent::Request(kind, answer, outcome)];
    let outcome = prop::sample::select(vec![
        Outcome::Good,
        Outcome::Good,
        Outcome::Good,
        Outcome::Bad,
        Outcome::Other,
        Outcome::CopyOut,
    ]);
    let kind = prop::sample::select(vec![
        Query,
        Parse,
        Bind,
        Describe,
        Execute,
        Close,
        Sync,
        Sync,
        Sync,
        FunctionCall,
        CopyEnd,
    ]);
    let made = prop::sample::select(vec![Parse, Close]);
    let own = prop::sample::select(vec![Parse, Close, Query]);
    prop_oneof![
        8 => (kind, outcome.clone()).prop_map(move |(kind, outcome)| one(kind, Answer::Forward, outcome)),
        1 => made.prop_map(move |kind| one(kind, Answer::Synthesize, Outcome::Good)),
        1 => (own, outcome).prop_map(move |(kind, outcome)| one(kind, Answer::Discard, outcome)),
        2 => copy_in(),
    ]
}

/// A COPY with its data, and Syncs where client libraries put them.
fn copy_in() -> impl Strategy<Value = Vec<Sent>> {
    let begin = prop::sample::select(vec![RequestKind::Query, RequestKind::Execute]);
    let outcome = prop::sample::select(vec![
        Outcome::CopyIn,
        Outcome::CopyIn,
        Outcome::CopyIn,
        Outcome::CopyInFails,
        Outcome::Bad,
    ]);
    let end = prop::sample::select(vec![Outcome::Good, Outcome::Good, Outcome::Bad]);
    let data = prop::collection::vec(prop::bool::weighted(0.9), 0..4);
    (begin, outcome, data, any::<[bool; 3]>(), end).prop_map(|(begin, outcome, data, syncs, end)| {
        let sync = Sent::Request(RequestKind::Sync, Answer::Forward, Outcome::Good);
        let mut sent = vec![Sent::Request(begin, Answer::Forward, outcome)];
        sent.extend(syncs[0].then_some(sync));
        sent.extend(data.into_iter().map(Sent::CopyData));
        sent.extend(syncs[1].then_some(sync));
        sent.push(Sent::Request(RequestKind::CopyEnd, Answer::Forward, end));
        if begin == RequestKind::Execute || syncs[2] {
            sent.push(sync);
        }
        sent
    })
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// The client sends the next message.
    Ask,
    /// The server handles the next message.
    Answer,
    /// Some of the server's bytes arrive.
    Deliver(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![Just(Step::Ask), Just(Step::Answer), any::<Index>().prop_map(Step::Deliver)]
}

#[derive(Default)]
struct Conversation {
    talk: Talk,
    server: Server,
    on_its_way: VecDeque<Sent>,
    delivered: usize,
}

impl Conversation {
    fn ask(&mut self, sent: Sent) {
        let pipeline = &mut self.talk.pipeline;
        match sent {
            // As `Upstream` does: the server would throw it away.
            Sent::CopyData(_) if pipeline.is_skipping() => return,
            Sent::Request(kind, ..) if pipeline.is_skipping() && kind != RequestKind::Sync => return,
            Sent::CopyData(_) => {}
            Sent::Request(kind, answer, _) => pipeline.push(kind, answer),
        }
        self.on_its_way.push_back(sent);
        // A session writes what is answered here at once.
        self.talk.hear(b"").expect("nothing is not out of step");
    }

    fn answer(&mut self) {
        if let Some(sent) = self.on_its_way.pop_front() {
            self.server.handle(sent);
        }
    }

    fn deliver(&mut self, count: usize) {
        let bytes = &self.server.output[self.delivered..][..count];
        if let Err(error) = self.talk.hear(bytes) {
            assert!(self.talk.pipeline.is_in_doubt(), "the server keeps step: {error}");
        }
        self.delivered += count;
    }

    /// Answers made here may come before this server has come so far.
    fn check(&self) {
        let (seen, owed) = (&self.talk.seen, &self.server.owed_to_client);
        assert!(owed.starts_with(seen) || seen.starts_with(owed), "the client sees something else");
        // What is left of a COPY that failed is not answered.
        let is_inert =
            |sent: &Sent| matches!(sent, Sent::CopyData(_) | Sent::Request(RequestKind::CopyEnd, ..));
        let all_done = self.on_its_way.iter().all(is_inert) && self.delivered == self.server.output.len();
        assert_eq!(self.talk.pipeline.is_idle(), all_done && self.server.is_idle());
        if self.talk.pipeline.is_idle() {
            assert_eq!((self.talk.pipeline.owed(), seen), (0, owed));
        }
    }

    /// Whether there is no more to check, because nobody knows what the server will send.
    fn is_in_doubt(&self) -> bool {
        let in_doubt = self.talk.pipeline.is_in_doubt();
        assert!(!in_doubt || !self.talk.pipeline.is_idle());
        in_doubt
    }

    fn take(&mut self, step: &Step, messages: &mut impl Iterator<Item = Sent>) {
        match step {
            Step::Ask => messages.next().into_iter().for_each(|sent| self.ask(sent)),
            Step::Answer => self.answer(),
            Step::Deliver(index) => self.deliver(index.index(self.left() + 1)),
        }
    }

    fn left(&self) -> usize {
        self.server.output.len() - self.delivered
    }

    /// Lets everything happen that is still to come.
    fn finish(&mut self) {
        while !self.on_its_way.is_empty() {
            self.answer();
        }
        self.deliver(self.left());
    }
}

/// Plays the steps, then whatever is left over, and then what ends any batch and any transaction.
fn play(messages: Vec<Sent>, steps: Vec<Step>) {
    let mut conversation = Conversation::default();
    let mut messages = messages.into_iter();
    for step in steps {
        conversation.take(&step, &mut messages);
        if conversation.is_in_doubt() {
            return;
        }
        conversation.check();
    }
    messages.for_each(|sent| conversation.ask(sent));
    conversation.finish();
    if conversation.is_in_doubt() {
        return;
    }
    conversation.check();
    for kind in [RequestKind::Sync, RequestKind::Query] {
        conversation.ask(Sent::Request(kind, Answer::Forward, Outcome::Good));
        conversation.finish();
        conversation.check();
    }
    assert!(conversation.talk.pipeline.is_idle(), "the server is given back in the end");
}

fn hear_at_cuts(messages: &[Vec<Sent>], cuts: &[Index]) -> (Vec<u8>, usize, bool) {
    let mut conversation = Conversation::default();
    messages.iter().flatten().for_each(|sent| conversation.ask(*sent));
    while !conversation.on_its_way.is_empty() {
        conversation.answer();
    }
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(conversation.left() + 1)).collect();
    cuts.sort_unstable();
    for cut in cuts {
        conversation.deliver(cut - conversation.delivered);
    }
    conversation.deliver(conversation.left());
    if conversation.is_in_doubt() {
        return (Vec::new(), 0, false);
    }
    let pipeline = &conversation.talk.pipeline;
    (conversation.talk.seen, pipeline.owed(), pipeline.is_idle())
}

proptest! {
    #[test]
    fn the_client_sees_what_it_must_and_the_server_is_free_when_it_is(
        messages in prop::collection::vec(request(), 0..12),
        steps in prop::collection::vec(step(), 0..80),
    ) {
        play(messages.concat(), steps);
    }

    #[test]
    fn any_cut_of_the_servers_bytes_gives_the_same(
        messages in prop::collection::vec(request(), 0..12),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        prop_assert_eq!(hear_at_cuts(&messages, &cuts), hear_at_cuts(&messages, &[]));
    }

    #[test]
    fn any_bytes_from_a_server_are_passed_on_or_refused(
        requests in prop::collection::vec(request(), 0..8),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut conversation = Conversation::default();
        requests.concat().into_iter().for_each(|sent| conversation.ask(sent));
        let _ = conversation.talk.hear(&bytes);
    }

    #[test]
    fn messages_in_any_order_are_passed_on_or_refused(
        requests in prop::collection::vec(request(), 0..8),
        words in prop::collection::vec(prop::sample::select(
            "1 2 3 C Cdiscard D d c G H W I E Eduplicate V n N A t S s ZI ZT ZE T".split(' ').collect::<Vec<_>>(),
        ), 0..20),
    ) {
        let mut conversation = Conversation::default();
        requests.concat().into_iter().for_each(|sent| conversation.ask(sent));
        for word in words {
            if conversation.talk.hear(&message(word)).is_err() {
                break;
            }
        }
    }
}
