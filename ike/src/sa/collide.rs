//! Collisions of exchanges as pure tables (RFC 7296 §2.8.1, §2.8.2, §2.25).

/// What the peer asks for, as far as collisions go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Asked {
    /// A new child.
    CreateChild,
    /// A rekey of a child.
    RekeyChild,
    /// A rekey of the IKE SA.
    RekeyIke,
}

/// What we have on its way at that moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Ours {
    /// Nothing, or a liveness check.
    Nothing,
    /// A new child.
    CreateChild,
    /// A rekey of the child that the peer asks about.
    RekeySameChild,
    /// A rekey of another child.
    RekeyOtherChild,
    /// The deletion of the child that the peer asks about.
    DeleteSameChild,
    /// The deletion of another child.
    DeleteOtherChild,
    /// A rekey of the IKE SA.
    RekeyIke,
    /// The deletion of the IKE SA.
    DeleteIke,
}

/// What to answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Verdict {
    /// As if nothing were on its way.
    Proceed,
    /// Do it, and remember that one of the two new SAs is redundant: the nonces decide.
    ProceedAndCompare,
    /// TEMPORARY_FAILURE: the peer shall try again.
    Later,
}

/// The table of RFC 7296 §2.25.1 and §2.25.2.
pub(crate) const fn verdict(asked: Asked, ours: Ours) -> Verdict {
    match (asked, ours) {
        (_, Ours::DeleteIke) => Verdict::Later,
        (_, Ours::Nothing) => Verdict::Proceed,
        // "If a peer receives a request to rekey a Child SA that it is currently rekeying, it SHOULD reply as usual, and
        // SHOULD prepare to close redundant SAs."
        (Asked::RekeyChild, Ours::RekeySameChild) => Verdict::ProceedAndCompare,
        (Asked::RekeyChild, Ours::DeleteSameChild) => Verdict::Later,
        (Asked::RekeyIke, Ours::RekeyIke) => Verdict::ProceedAndCompare,
        (Asked::CreateChild | Asked::RekeyChild, Ours::RekeyIke) => Verdict::Later,
        (Asked::RekeyIke, _) => Verdict::Later,
        (Asked::CreateChild | Asked::RekeyChild, _) => Verdict::Proceed,
    }
}

/// Which of two SAs that were made at the same time stays.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Winner {
    /// The one that we initiated.
    Ours,
    /// The one that the peer initiated.
    Theirs,
}

/// "The SA created with the lowest of the four nonces SHOULD be closed by the endpoint that created it" (RFC 7296
/// §2.8.1). Nonces are compared octet by octet; each argument is the nonce pair of one exchange.
pub(crate) fn winner(ours: (&[u8], &[u8]), theirs: (&[u8], &[u8])) -> Winner {
    if ours.0.min(ours.1) < theirs.0.min(theirs.1) { Winner::Theirs } else { Winner::Ours }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_rfc_7296_2_25() {
        use Asked::*;
        use Verdict::*;
        let ours = [
            Ours::Nothing,
            Ours::CreateChild,
            Ours::RekeySameChild,
            Ours::RekeyOtherChild,
            Ours::DeleteSameChild,
            Ours::DeleteOtherChild,
            Ours::RekeyIke,
            Ours::DeleteIke,
        ];
        let table = [
            (CreateChild, [Proceed, Proceed, Proceed, Proceed, Proceed, Proceed, Later, Later]),
            (RekeyChild, [Proceed, Proceed, ProceedAndCompare, Proceed, Later, Proceed, Later, Later]),
            (Asked::RekeyIke, [Proceed, Later, Later, Later, Later, Later, ProceedAndCompare, Later]),
        ];
        for (asked, row) in table {
            for (o, want) in ours.into_iter().zip(row) {
                assert_eq!(verdict(asked, o), want, "{asked:?} x {o:?}");
            }
        }
    }

    #[test]
    fn the_lowest_of_four_nonces_loses_wherever_it_stands() {
        let (a, b, c, d) = (&b"a"[..], &b"b"[..], &b"c"[..], &b"d"[..]);
        for (x, y) in [(a, c), (c, a)] {
            assert_eq!(winner((x, y), (b, d)), Winner::Theirs);
            assert_eq!(winner((b, d), (x, y)), Winner::Ours);
        }
        // Both ends come to the same verdict.
        assert_ne!(winner((a, d), (b, c)), winner((b, c), (a, d)));
    }
}
