//! What machines say that try whether one reaches the other, one value of each.

/// All of it, by name.
pub(crate) fn messages() -> Vec<(&'static str, wire::link::ProbeMessage<'static>)> {
    use wire::link::ProbeMessage::{Bulk, Hello, Ping, Pong, Took};
    vec![
        ("probe_hello", Hello { busy: true }),
        ("probe_ping", Ping(7)),
        ("probe_pong", Pong(7)),
        ("probe_bulk", Bulk { last: true, filler: b"xyz" }),
        ("probe_took", Took(65_536)),
    ]
}
