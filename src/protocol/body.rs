//! [`Body`]: a message of a client that is on its way.

/// The client message whose header was read, while its body still comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Body {
    left: u32,
    is_dropped: bool,
}

impl Body {
    /// `left` bytes are still to come, and none of them goes on if `is_dropped`.
    pub fn new(left: usize, is_dropped: bool) -> Self {
        Body { left: u32::try_from(left).expect("the longest message has 1 GB"), is_dropped }
    }

    /// Takes what belongs to it from the next `available` bytes; returns how many that are.
    #[inline]
    pub fn pass(&mut self, available: usize) -> usize {
        let passed = self.left.min(u32::try_from(available).unwrap_or(u32::MAX));
        self.left -= passed;
        passed as usize
    }

    /// Whether nothing of it is still to come.
    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    /// Whether it does not go on, because the server would ignore the message.
    pub fn is_dropped(&self) -> bool {
        self.is_dropped
    }

    /// Whether the server has a part of the message, and waits for the rest.
    pub fn is_half_sent(&self) -> bool {
        !self.is_over() && !self.is_dropped
    }
}
