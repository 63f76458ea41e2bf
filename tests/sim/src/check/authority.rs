//! I4, authority: only what its client signed is done, and nothing for a stranger.

use std::collections::{BTreeMap, BTreeSet};

use base::{Digest, PublicKey};

use super::Verdict;

/// Who signed what.
#[derive(Debug)]
pub(crate) struct Authority {
    known: BTreeSet<PublicKey>,
    signed: BTreeMap<Digest, PublicKey>,
}

impl Authority {
    /// Nobody signed anything; the service knows these principals.
    pub(crate) fn new(principals: &[PublicKey]) -> Authority {
        Authority { known: principals.iter().copied().collect(), signed: BTreeMap::new() }
    }

    /// A client signed this operation.
    pub(crate) fn signed(&mut self, op: Digest, client: PublicKey) {
        self.signed.insert(op, client);
    }

    /// An operation was applied as if `who` had signed it.
    pub(crate) fn applied(&self, op: Digest, who: &PublicKey) -> Verdict {
        if !self.known.contains(who) {
            return Err(format!("an operation of {who:?}, whom nobody knows, was applied"));
        }
        match self.signed.get(&op) {
            Some(signer) if signer == who => Ok(()),
            Some(signer) => Err(format!("an operation that {signer:?} signed was applied as if it were {who:?}'s")),
            None => Err(format!("an operation was applied that {who:?} never signed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KNOWN_MAX, known_principals, principal_secret};

    #[test]
    fn an_invented_operation_is_caught() {
        let principals = known_principals();
        let stranger = principal_secret(KNOWN_MAX).public();
        let mut authority = Authority::new(&principals);
        let (op, other) = (Digest([1; 32]), Digest([2; 32]));
        authority.signed(op, principals[0]);
        authority.signed(other, stranger);
        assert!(authority.applied(op, &principals[0]).is_ok());
        assert!(authority.applied(op, &principals[1]).is_err());
        assert!(authority.applied(Digest([3; 32]), &principals[0]).is_err());
        assert!(authority.applied(other, &stranger).is_err());
    }
}
