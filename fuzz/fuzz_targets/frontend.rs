//! Any bytes from a client, in any pieces: taken or refused, and the same however they are cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::protocol::Pipeline;
use pgweir::protocol::body::Body;
use pgweir::protocol::functions::Functions;
use pgweir::protocol::state::SessionState;
use pgweir::protocol::statements::{Interner, ServerStatements};
use pgweir::protocol::upstream::{Rules, StatementCounts, Stop, Upstream};
use pgweir::wire::Malformed;

/// What the server gets of these pieces, or why the client is sent away.
fn take<'a>(pieces: impl Iterator<Item = &'a [u8]>, tracking: bool) -> Result<(Vec<u8>, usize), Malformed> {
    let mut pipeline = Pipeline::default();
    pipeline.watching = true;
    let mut server = ServerStatements::new(2);
    let (mut client, mut unnamed_present) = (None, false);
    let (mut counts, mut body) = (StatementCounts::default(), Body::default());
    let interner = Interner::default();
    let (mut carry, mut sent) = (Vec::new(), Vec::new());
    for piece in pieces {
        carry.extend_from_slice(piece);
        let mut upstream = Upstream {
            pipeline: &mut pipeline,
            server: &mut server,
            client: &mut client,
            unnamed_present: &mut unnamed_present,
            interner: &interner,
            tracking,
            counts: &mut counts,
            rules: Rules::default(),
            state: &SessionState::default(),
            parameters: &Default::default(),
            listens: None,
            functions: &Functions::default(),
            definitions: 0,
        };
        let taken = upstream.take(&carry, &mut body, &mut sent)?;
        sent.extend_from_slice(&carry[taken.forward]);
        carry.drain(..taken.consumed);
        if taken.stop == Stop::Terminate {
            break;
        }
    }
    Ok((sent, pipeline.owed()))
}

fuzz_target!(|input: (bool, u8, &[u8])| {
    let (tracking, piece, bytes) = input;
    let whole = take(std::iter::once(bytes), tracking);
    let cut = take(bytes.chunks(usize::from(piece) + 1), tracking);
    assert_eq!(whole, cut);
});
