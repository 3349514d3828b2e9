//! [`Table`]: what a SHOW answers, and its way onto the wire.

use bytes::BytesMut;

use crate::wire::originate::{self, ColumnType};

/// The names and types of a table's columns, in order.
pub(crate) type Columns = &'static [(&'static str, ColumnType)];
/// One value in text format; `None` is NULL.
pub(crate) type Value = Option<String>;

/// One result set of the console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Names and types, in PgBouncer's order.
    pub columns: &'static [(&'static str, ColumnType)],
    /// The rows; each is as long as `columns`.
    pub rows: Vec<Vec<Option<String>>>,
}

impl Table {
    pub(crate) fn new(columns: Columns, rows: impl IntoIterator<Item = Vec<Value>>) -> Table {
        let rows: Vec<_> = rows.into_iter().collect();
        debug_assert!(rows.iter().all(|row| row.len() == columns.len()));
        Table { columns, rows }
    }

    /// Writes RowDescription and the rows; CommandComplete is the caller's.
    pub fn encode(&self, out: &mut BytesMut) {
        originate::row_description(self.columns, out);
        for row in &self.rows {
            originate::data_row(row, out);
        }
    }
}

pub(crate) fn text(value: impl Into<String>) -> Value {
    Some(value.into())
}

/// A value of an `int4` column; what does not fit is shown as the largest that does.
pub(crate) fn int4(value: impl TryInto<i32>) -> Value {
    Some(value.try_into().unwrap_or(i32::MAX).to_string())
}

/// A value of an `int8` or `numeric` column.
pub(crate) fn number(value: impl ToString) -> Value {
    Some(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_one_row_description_and_its_rows() {
        const COLUMNS: Columns = &[("key", ColumnType::Text), ("n", ColumnType::Int4)];
        let table = Table::new(COLUMNS, [vec![text("a"), int4(7)], vec![None, int4(u64::MAX)]]);
        let mut out = BytesMut::new();
        table.encode(&mut out);
        let expected: &[u8] = b"T\0\0\0\x30\0\x02key\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0\
            n\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0\
            D\0\0\0\x10\0\x02\0\0\0\x01a\0\0\0\x017\
            D\0\0\0\x18\0\x02\xff\xff\xff\xff\0\0\0\x0a2147483647";
        assert_eq!(&out[..], expected);
    }
}
