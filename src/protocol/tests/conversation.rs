//! Random conversations with a server that answers by PostgreSQL's rules.
