//! Any bytes from a server, in any pieces, whatever was asked: passed on or refused, never a panic, and
//! the same however they are cut.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pgweir::protocol::statements::{Change, Interner, Statement};
use pgweir::protocol::{Answer, OutOfStep, Pipeline, RequestKind, Stop};

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Request {
    Query,
    OwnQuery,
    Parse,
    OwnParse,
    MadeParse,
    Duplicate,
    Bind,
    Describe,
    Execute,
    Close,
    MadeClose,
    Sync,
    FunctionCall,
    CopyEnd,
}

fn statement() -> std::sync::Arc<Statement> {
    Interner::default().intern(b"select\0\0\0", b"")
}

fn push(pipeline: &mut Pipeline, request: Request) {
    let name = || Box::from(*b"s");
    match request {
        Request::Query => pipeline.push(RequestKind::Query, Answer::Forward),
        Request::OwnQuery => pipeline.push(RequestKind::Query, Answer::Discard),
        Request::Parse => pipeline.push(RequestKind::Parse, Answer::Forward),
        Request::OwnParse => {
            pipeline.push_with_change(RequestKind::Parse, Answer::Discard, Change::ServerParse(1));
        }
        Request::MadeParse => {
            let change = Change::ClientParse { name: name(), statement: statement(), sent: false };
            pipeline.push_with_change(RequestKind::Parse, Answer::Synthesize, change);
        }
        Request::Duplicate => {
            let change = Change::Duplicate { name: name() };
            pipeline.push_with_change(RequestKind::Parse, Answer::Forward, change);
        }
        Request::Bind => pipeline.push(RequestKind::Bind, Answer::Forward),
        Request::Describe => pipeline.push(RequestKind::Describe, Answer::Forward),
        Request::Execute => pipeline.push(RequestKind::Execute, Answer::Forward),
        Request::Close => pipeline.push(RequestKind::Close, Answer::Forward),
        Request::MadeClose => pipeline.push(RequestKind::Close, Answer::Synthesize),
        Request::Sync => pipeline.push(RequestKind::Sync, Answer::Forward),
        Request::FunctionCall => pipeline.push(RequestKind::FunctionCall, Answer::Forward),
        Request::CopyEnd => pipeline.push(RequestKind::CopyEnd, Answer::Forward),
    }
}

/// What the client sees of these pieces, or why the server is closed.
fn receive<'a>(
    requests: &[Request],
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Result<(Vec<u8>, usize, bool), OutOfStep> {
    let mut pipeline = Pipeline::default();
    requests.iter().for_each(|request| push(&mut pipeline, *request));
    let (mut carry, mut seen) = (Vec::new(), Vec::new());
    for piece in pieces {
        carry.extend_from_slice(piece);
        loop {
            let received = pipeline.receive(&carry)?;
            seen.extend_from_slice(&carry[received.forward]);
            carry.drain(..received.consumed);
            match received.stop {
                Stop::NeedMore => break,
                Stop::Synthesized(bytes) => seen.extend_from_slice(bytes),
                _ => {}
            }
        }
    }
    Ok((seen, pipeline.owed(), pipeline.is_idle()))
}

fuzz_target!(|input: (Vec<Request>, u8, &[u8])| {
    let (requests, piece, bytes) = input;
    let whole = receive(&requests, std::iter::once(bytes)).map_err(drop);
    let cut = receive(&requests, bytes.chunks(usize::from(piece) + 1).chain([&[][..]])).map_err(drop);
    assert_eq!(whole, cut);
});
