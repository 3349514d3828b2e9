//! The rules as a table: requests and answers in, what is owed out.
