//! [`Interner`]: equal values of many sessions, kept once, so that "nothing differs" is one pointer comparison
//! on the way of a query.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// Every value in use, once.
pub struct Interner<T>(Mutex<HashSet<Arc<T>>>);

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Interner(Mutex::default())
    }
}

impl<T: Eq + Hash> Interner<T> {
    /// The one pointer for this value.
    pub fn intern(&self, value: T) -> Arc<T> {
        let mut values = self.0.lock();
        if let Some(known) = values.get(&value) {
            return Arc::clone(known);
        }
        // Cleaning when the table would grow keeps it within a constant factor of what is in use.
        if values.len() == values.capacity() {
            values.retain(|value| Arc::strong_count(value) > 1);
        }
        let value = Arc::new(value);
        values.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_pointer_and_unused_ones_go() {
        let interner = Interner::default();
        let first = interner.intern("a".to_owned());
        assert!(Arc::ptr_eq(&first, &interner.intern("a".to_owned())));
        for number in 0..5_000 {
            interner.intern(number.to_string());
        }
        assert!(interner.0.lock().len() < 100);
    }
}
