//! SHOW PINS, which PgBouncer does not have: the clients that keep their server connections.

use jiff::tz::TimeZone;

use super::connections::time;
use super::table::{Columns, Table, Value, number, text};
use crate::wire::originate::ColumnType::{Int8, Text};

/// One client that keeps its server connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PinView {
    /// The client's number, as in SHOW CLIENTS.
    pub client_id: u64,
    /// Its database.
    pub database: String,
    /// Its user.
    pub user: String,
    /// Why; several reasons are separated by commas.
    pub reason: String,
    /// Since when, microseconds of Unix time.
    pub since_us: i64,
    /// The server's number, as in SHOW SERVERS; `None` while it is asked for more.
    pub server_id: Option<u64>,
}

const PINS: Columns = &[
    ("client_id", Int8),
    ("database", Text),
    ("user", Text),
    ("reason", Text),
    ("since", Text),
    ("server_id", Int8),
];

/// SHOW PINS
pub(super) fn pins(views: &[PinView], zone: &TimeZone) -> Table {
    Table::new(PINS, views.iter().map(|view| pin(view, zone)))
}

fn pin(view: &PinView, zone: &TimeZone) -> Vec<Value> {
    vec![
        number(view.client_id),
        text(&view.database),
        text(&view.user),
        text(&view.reason),
        time(view.since_us, zone),
        view.server_id.and_then(number),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn show_pins_says_who_keeps_a_server_and_why() {
        let view = PinView {
            client_id: 7,
            reason: "listen, cursor".into(),
            server_id: Some(9),
            ..PinView::default()
        };
        let table = pins(&[view], &TimeZone::UTC);
        let expected = ["7", "", "", "listen, cursor", "1970-01-01 00:00:00 UTC", "9"];
        assert_eq!(table.rows, [expected.map(|value| Some(value.to_owned())).to_vec()]);
    }
}
