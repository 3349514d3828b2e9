//! [`KeyTails`]: the rest of a long cancel key, made from the key's first eight bytes.

use std::fmt;

use rand::{CryptoRng, Rng};
use subtle::ConstantTimeEq;

use super::scram;

/// Bytes of a tail: with the four bytes of secret before them, the secret has 32, as PostgreSQL 18's has.
pub const TAIL_BYTES: usize = 28;

/// Nobody can make a tail who does not know this, and no client's tail has to be kept. One for the process.
#[derive(Clone)]
pub struct KeyTails([u8; 32]);

impl KeyTails {
    /// Tails unlike those of any other process.
    pub fn new(rng: &mut impl CryptoRng) -> Self {
        KeyTails(rng.random())
    }

    /// The tail of a key that begins with this.
    pub fn tail(&self, head: &[u8; 8]) -> [u8; TAIL_BYTES] {
        let code = scram::hmac(&self.0, &[b"cancel key", head]).0;
        *code.first_chunk().expect("the code has 32 bytes")
    }

    /// Whether it is the key's tail, in a time that does not tell where it differs.
    pub fn fits(&self, head: &[u8; 8], tail: &[u8]) -> bool {
        self.tail(head).ct_eq(tail).into()
    }
}

impl fmt::Debug for KeyTails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyTails(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn a_tail_fits_its_own_head_in_its_own_process_alone() {
        let [one, two] = [1, 2].map(|seed| KeyTails::new(&mut StdRng::seed_from_u64(seed)));
        let (head, other) = ([7; 8], [8; 8]);
        let tail = one.tail(&head);
        assert!(one.fits(&head, &tail));
        assert!(!one.fits(&other, &tail) && !two.fits(&head, &tail));
        for at in 0..TAIL_BYTES {
            let mut wrong = tail;
            wrong[at] ^= 1;
            assert!(!one.fits(&head, &wrong), "byte {at}");
        }
        assert!(!one.fits(&head, &tail[1..]) && !one.fits(&head, b""));
        assert!(!one.fits(&head, &[&tail[..], b"\0"].concat()));
    }
}
