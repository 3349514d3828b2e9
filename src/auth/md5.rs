//! The md5 login, both ways. It is only as good as PostgreSQL's: kept because clients still use it.

use md5::{Digest, Md5};

/// What `pg_authid` stores after `md5`, and what both sides prove that they know: 32 hex digits.
pub(super) fn stored_digest(password: &[u8], user: &str) -> [u8; 32] {
    hex(Md5::new().chain_update(password).chain_update(user))
}

/// The answer to AuthenticationMD5Password: `md5` and 32 hex digits, without a NUL.
pub(super) fn response(stored_digest: &[u8; 32], salt: [u8; 4]) -> [u8; 35] {
    let mut text = *b"md500000000000000000000000000000000";
    text[3..].copy_from_slice(&hex(Md5::new().chain_update(stored_digest).chain_update(salt)));
    text
}

fn hex(hash: Md5) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(hash.finalize()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_and_response_are_those_of_postgresql() {
        // The digest of `password` for `md5_user`, and the answer to the salt 2a3d8fe0; the same
        // vector as in rust-postgres.
        let digest = stored_digest(b"password", "md5_user");
        assert_eq!(&digest, b"7cd2b9a92689eab2e58caf2da80afa15");
        assert_eq!(&response(&digest, [0x2a, 0x3d, 0x8f, 0xe0]), b"md562af4dd09bbb41884907a838a3233294");
    }
}
