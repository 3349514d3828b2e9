//! What becomes of each client message.
