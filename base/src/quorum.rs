//! Quorum sizes of a group of `3f + 1`.
//!
//! Three quorums mean three different things where protocols are combined, so each is asked for by
//! its meaning and not by a formula at the place of use.

/// The group's size and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorums {
    n: usize,
}

impl Quorums {
    /// The quorums of a group of `n`; `None` unless `n = 3f + 1` with `f >= 1`.
    #[must_use]
    pub fn of(n: usize) -> Option<Quorums> {
        (n >= 4 && n % 3 == 1 && n <= usize::from(u16::MAX)).then_some(Quorums { n })
    }

    /// How many members there are.
    #[must_use]
    pub fn n(self) -> usize {
        self.n
    }

    /// How many members may be Byzantine.
    #[must_use]
    pub fn f(self) -> usize {
        (self.n - 1) / 3
    }

    /// `f + 1`: at least one of them is correct (a *weak certificate*).
    #[must_use]
    pub fn weak(self) -> usize {
        self.f() + 1
    }

    /// `2f + 1`: any two such sets share a correct member (a *quorum certificate*).
    #[must_use]
    pub fn strong(self) -> usize {
        2 * self.f() + 1
    }

    /// `2f` prepares that, beside the primary's pre-prepare, make a *prepared* certificate.
    #[must_use]
    pub fn prepares(self) -> usize {
        2 * self.f()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_3f_plus_1() {
        for n in 0..40 {
            let quorums = Quorums::of(n);
            assert_eq!(quorums.is_some(), [4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 37].contains(&n), "{n}");
            if let Some(q) = quorums {
                assert_eq!(q.n(), 3 * q.f() + 1);
                assert!(2 * q.strong() - q.n() > q.f(), "two quorums share a correct member");
                assert!(q.n() - q.f() >= q.strong(), "the correct members alone are a quorum");
            }
        }
    }
}
