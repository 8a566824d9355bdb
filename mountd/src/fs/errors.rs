//! Errors of what was accepted, and refused later: each open file is told once, whoever else was
//! told before.
//!
//! The kernel asks at every close(2) of a descriptor, also of copies that a child has and never
//! looks at. So what is told there is told once more to who waits for the disk.

use p2pfs::wire::errno::Errno;

/// What went wrong with one node.
#[derive(Debug, Default)]
pub(crate) struct Errors {
    count: u64,
    /// The first that nobody had been told when it came: it says why.
    error: Option<Errno>,
    /// Somebody was told of the last one.
    told: bool,
}

/// How many an open file has been told of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    told: u64,
    synced: u64,
}

/// When an open file is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum At {
    /// By what it writes next.
    Write,
    /// By `fsync`.
    Sync,
    /// By closing one of its descriptors.
    Close,
}

impl Errors {
    pub(crate) fn keep(&mut self, error: Errno) {
        if self.told || self.error.is_none() {
            self.error = Some(error);
        }
        self.told = false;
        self.count += 1;
    }

    /// Where a file begins that is opened now: what nobody has been told of is told to it.
    pub(crate) fn marks(&self) -> Marks {
        let untold = self.count > 0 && !self.told;
        let mark = self.count - u64::from(untold);
        Marks { told: mark, synced: mark }
    }

    /// What an open file has not been told of yet.
    pub(crate) fn tell(&mut self, marks: &mut Marks, at: At) -> Result<(), Errno> {
        let mark = if at == At::Sync { marks.synced } else { marks.told };
        let Some(error) = self.error.filter(|_| mark < self.count) else { return Ok(()) };
        marks.told = self.count;
        if at != At::Close {
            marks.synced = self.count;
        }
        self.told = true;
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_open_file_is_told_once_and_the_first_error_says_why() {
        let mut errors = Errors::default();
        let (mut one, mut other) = (errors.marks(), errors.marks());
        errors.keep(Errno::EDQUOT);
        errors.keep(Errno::EIO);
        assert_eq!(errors.tell(&mut one, At::Sync), Err(Errno::EDQUOT));
        assert_eq!(errors.tell(&mut one, At::Sync), Ok(()));
        assert_eq!(errors.tell(&mut one, At::Close), Ok(()));
        assert_eq!(errors.tell(&mut other, At::Write), Err(Errno::EDQUOT));
        assert_eq!(errors.tell(&mut other, At::Sync), Ok(()));
        errors.keep(Errno::EIO);
        assert_eq!(errors.tell(&mut one, At::Write), Err(Errno::EIO));
    }

    #[test]
    fn what_is_told_at_a_close_is_told_to_who_waits_for_the_disk() {
        let mut errors = Errors::default();
        let mut marks = errors.marks();
        errors.keep(Errno::ENOSPC);
        assert_eq!(errors.tell(&mut marks, At::Close), Err(Errno::ENOSPC));
        assert_eq!(errors.tell(&mut marks, At::Close), Ok(()));
        assert_eq!(errors.tell(&mut marks, At::Write), Ok(()));
        assert_eq!(errors.tell(&mut marks, At::Sync), Err(Errno::ENOSPC));
        assert_eq!(errors.tell(&mut marks, At::Sync), Ok(()));
    }

    #[test]
    fn who_opens_a_file_is_told_what_nobody_was_told() {
        let mut errors = Errors::default();
        errors.keep(Errno::EIO);
        let mut first = errors.marks();
        assert_eq!(errors.tell(&mut first, At::Close), Err(Errno::EIO));
        let mut second = errors.marks();
        assert_eq!(errors.tell(&mut second, At::Sync), Ok(()));
    }
}
