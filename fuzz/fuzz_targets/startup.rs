//! Any first packet is read or refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::wire::startup;

fuzz_target!(|input: (Option<u8>, &[u8])| {
    let (protocol_minor, body) = input;
    let _ = startup::parse(body);
    if let Some(minor) = protocol_minor {
        let _ = startup::parse(&[&[0, 3, 0, minor][..], body].concat());
    }
});
