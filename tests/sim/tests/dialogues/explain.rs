//! What both ends can tell of a negotiation afterwards: offered, wanted, chosen or refused, and why.

use cygnet_ike::FailureReason;
use cygnet_ike::account::{Account, Item, Outcome, Party, Role, Stage, Standing, Topic, Verdict, Why};
use cygnet_ike::policy::RemoteId;
use cygnet_ike::wire::Identity;
use cygnet_ike::{Command, TunnelPolicy};
use cygnet_model::SecretBytes;
use cygnet_sim::{Lab, Link, TUNNEL, net, policy};

use crate::secs;

/// A laboratory of two policies that differ, after a while.
fn differing(change: impl FnOnce(&mut [TunnelPolicy; 2])) -> Lab {
    let mut both = [policy(0, 1), policy(1, 1)];
    change(&mut both);
    let mut lab = Lab::new(7, Link::GOOD, both);
    lab.run(secs(8));
    lab
}

fn last(lab: &Lab, side: usize) -> &Account {
    lab.gateways[side].accounts.last().expect("an account")
}

fn item(a: &Account, topic: Topic) -> &Item {
    a.items.iter().find(|i| i.topic == topic).expect("an item of that topic")
}

/// The topics that were refused.
fn refused(a: &Account) -> Vec<Topic> {
    let refused = |i: &&Item| matches!(i.verdict, Verdict::Refused { .. });
    a.items.iter().filter(refused).map(|i| i.topic).collect()
}

fn outcome(a: &Account) -> (Stage, Role, Standing, Option<(Party, FailureReason)>) {
    let how = match &a.outcome {
        Outcome::Agreed => None,
        Outcome::Refused { by, reason, .. } => Some((*by, *reason)),
        Outcome::Unanswered { .. } => Some((Party::Peer, FailureReason::PeerUnreachable)),
    };
    (a.stage, a.role, a.standing, how)
}

/// Why it was refused, in a line.
fn detail(a: &Account) -> &str {
    match &a.outcome {
        Outcome::Refused { detail, .. } => detail,
        other => unreachable!("{other:?}"),
    }
}

use Standing::{Authenticated, Claimed};

#[test]
fn both_ends_of_a_tunnel_that_came_up_say_what_was_chosen_and_why() {
    let lab = differing(|both| {
        both[0].proposals =
            vec!["aes128gcm16-prfsha256-ecp384".parse().unwrap(), both[0].proposals[0].clone()];
        both[1].children[0].local = vec![net("10.2.0.0/16")];
    });
    let (ours, theirs) = (last(&lab, 0), last(&lab, 1));
    assert_eq!(outcome(ours), (Stage::Auth, Role::Initiator, Authenticated, None));
    assert_eq!(outcome(theirs), (Stage::Auth, Role::Responder, Authenticated, None));
    let proposal = item(ours, Topic::IkeProposal);
    assert_eq!(&*proposal.ours, "aes128gcm16-prfsha256-ecp384, aes256gcm16-prfsha384-x25519-ecp384");
    let chosen = "aes256gcm16-prfsha384-x25519".into();
    assert_eq!(proposal.verdict, Verdict::Chosen(chosen, Why::PeersChoice));
    let answered = item(theirs, Topic::IkeProposal);
    assert_eq!(answered.theirs.as_deref(), Some(&*proposal.ours), "what one offers the other has seen");
    assert!(matches!(&answered.verdict, Verdict::Chosen(_, Why::OurFirst)), "{answered:?}");
    let nets = item(theirs, Topic::OurNetworks);
    assert_eq!((&*nets.ours, nets.theirs.as_deref()), ("10.2.0.0/16", Some("10.2.0.0/24")));
    assert_eq!(nets.verdict, Verdict::Chosen("10.2.0.0/24".into(), Why::Narrowed));
    assert_eq!(refused(ours), []);
    assert!(
        matches!(&item(ours, Topic::PeerIdentity).verdict, Verdict::Chosen(who, Why::Configured) if &**who == "ID_IPV4_ADDR \"192.0.2.2\"")
    );
}

#[test]
fn proposals_without_anything_in_common_are_shown_at_both_ends() {
    let lab = differing(|both| both[0].proposals = vec!["aes128-sha256-modp2048".parse().unwrap()]);
    // 1 -> 0  IKE_SA_INIT { N(NO_PROPOSAL_CHOSEN) }, which anybody may have sent.
    let told = last(&lab, 0);
    let reason = FailureReason::NoProposalChosen;
    assert_eq!(outcome(told), (Stage::Init, Role::Initiator, Claimed, Some((Party::Peer, reason))));
    assert_eq!(refused(told), [Topic::IkeProposal, Topic::KeyExchange]);
    let words = "NO_PROPOSAL_CHOSEN; we offered aes128-sha256-prfsha256-modp2048";
    assert!(detail(told).ends_with(words), "{told:?}");
    let seen = last(&lab, 1);
    assert_eq!(outcome(seen), (Stage::Init, Role::Responder, Claimed, Some((Party::We, reason))));
    let proposal = item(seen, Topic::IkeProposal);
    // In the words of the configuration, so that it can be copied.
    let copied: cygnet_model::proposal::IkeProposal = proposal.theirs.as_deref().unwrap().parse().unwrap();
    assert_eq!(copied, "aes128-sha256-modp2048".parse().unwrap());
    let Verdict::Refused { why, .. } = &proposal.verdict else { panic!("{proposal:?}") };
    assert!(why.contains("encryption: the peer offers aes128, we want aes256gcm16"), "{why}");
    assert_eq!(&*item(seen, Topic::KeyExchange).ours, "x25519, ecp384");
    assert_eq!(item(seen, Topic::KeyExchange).theirs.as_deref(), Some("modp2048"));
}

#[test]
fn a_group_that_we_do_not_offer_is_named_by_whoever_is_asked_for_it() {
    let mut both = [policy(0, 1), policy(1, 1)];
    both[0].proposals = vec!["aes256gcm16-prfsha384-x25519".parse().unwrap()];
    let mut lab = Lab::new(7, Link::GOOD, both);
    // Somebody between the two answers with N(INVALID_KE_PAYLOAD) for group 20.
    lab.tap = Some(Box::new(|side, bytes| {
        use cygnet_ike::wire::{Header, Notify, NotifyType, Payloads, Writer};
        if side == 0 {
            return Some(bytes);
        }
        let (header, _) = Header::decode(&bytes).unwrap();
        let mut w = Writer::message(&Header { spi_r: 0, ..header });
        let n = Notify::new(NotifyType::INVALID_KE_PAYLOAD, 20u16.to_be_bytes().to_vec());
        Payloads { notifies: vec![n], ..Payloads::default() }.encode(&mut w);
        Some(w.finish())
    }));
    lab.run(secs(5));
    let told = last(&lab, 0);
    let why = Some((Party::Peer, FailureReason::InvalidKe));
    assert_eq!(outcome(told), (Stage::Init, Role::Initiator, Claimed, why));
    let group = item(told, Topic::KeyExchange);
    assert_eq!((&*group.ours, group.theirs.as_deref()), ("x25519", Some("ecp384")));
    assert_eq!(refused(told), [Topic::KeyExchange]);
    let words = "wants key exchange group ecp384; we offered aes256gcm16-prfsha384-x25519";
    assert!(detail(told).ends_with(words), "{told:?}");
}

#[test]
fn names_that_differ_are_shown_beside_each_other() {
    let lab = differing(|both| {
        both[0].local_id = Identity::fqdn("berlin.example");
        both[1].remote_id = Identity::fqdn("paris.example").into();
    });
    let seen = last(&lab, 1);
    let reason = FailureReason::UnknownIdentity;
    assert_eq!(outcome(seen), (Stage::Auth, Role::Responder, Claimed, Some((Party::We, reason))));
    let peer = item(seen, Topic::PeerIdentity);
    assert_eq!(&*peer.ours, "ID_FQDN \"paris.example\"");
    assert_eq!(peer.theirs.as_deref(), Some("ID_FQDN \"berlin.example\""));
    assert_eq!(refused(seen), [Topic::PeerIdentity]);
    // The answer does not say which of the three it was.
    let told = last(&lab, 0);
    let reason = FailureReason::AuthenticationFailed;
    assert_eq!(outcome(told), (Stage::Auth, Role::Initiator, Claimed, Some((Party::Peer, reason))));
    assert_eq!(refused(told), [Topic::OurIdentity, Topic::PeerIdentity, Topic::Authentication]);
}

#[test]
fn a_responder_of_another_name_is_refused_by_the_initiator() {
    let lab = differing(|both| {
        both[0].remote_id = RemoteId::Is(Identity::fqdn("paris.example"));
        both[1].local_id = Identity::fqdn("lyon.example");
        // It answers to whoever asks for somebody else, as many do.
        both[1].remote_id = RemoteId::Any;
    });
    // The responder takes no request for a name that it does not have.
    let seen = last(&lab, 1);
    assert_eq!(refused(seen), [Topic::OurIdentity]);
    let own = item(seen, Topic::OurIdentity);
    assert_eq!(
        (&*own.ours, own.theirs.as_deref()),
        ("ID_FQDN \"lyon.example\"", Some("ID_FQDN \"paris.example\""))
    );
}

#[test]
fn another_key_is_a_matter_of_authentication_and_no_proof_of_anything() {
    let lab = differing(|both| both[1].psk = SecretBytes::copy_of(b"another key altogether"));
    let seen = last(&lab, 1);
    let reason = FailureReason::AuthenticationFailed;
    assert_eq!(outcome(seen), (Stage::Auth, Role::Responder, Claimed, Some((Party::We, reason))));
    assert_eq!(refused(seen), [Topic::Authentication]);
    // What IKE_SA_INIT had chosen is told, too.
    assert!(matches!(&item(seen, Topic::IkeProposal).verdict, Verdict::Chosen(..)));
    let all = format!("{:?}", lab.gateways[1].accounts);
    assert!(!all.contains("another key altogether") && !all.contains("correct horse"), "{all}");
}

#[test]
fn networks_that_do_not_meet_are_shown_at_both_ends() {
    let lab = differing(|both| both[1].children[0].local = vec![net("10.9.0.0/24")]);
    let reason = FailureReason::TsUnacceptable;
    let (told, seen) = (last(&lab, 0), last(&lab, 1));
    assert_eq!(outcome(seen).3, Some((Party::We, reason)));
    assert_eq!((seen.standing, refused(seen)), (Authenticated, vec![Topic::OurNetworks]));
    let nets = item(seen, Topic::OurNetworks);
    assert_eq!((&*nets.ours, nets.theirs.as_deref()), ("10.9.0.0/24", Some("10.2.0.0/24")));
    assert_eq!((told.standing, outcome(told).3), (Authenticated, Some((Party::Peer, reason))));
    assert_eq!(refused(told), [Topic::OurNetworks, Topic::PeerNetworks], "the peer does not say which");
}

#[test]
fn pfs_at_one_end_is_told_before_and_at_the_first_rekey() {
    let mut lab = differing(|both| {
        both[0].children[0].proposals = vec!["aes256gcm16".parse().unwrap()];
        both[1].children[0].proposals = vec!["aes256gcm16-x25519".parse().unwrap()];
    });
    assert_eq!(outcome(last(&lab, 0)), (Stage::Auth, Role::Initiator, Authenticated, None));
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(secs(2));
    let of = |side: usize| {
        let accounts = lab.gateways[side].accounts.iter();
        accounts.rev().find(|a| a.stage == Stage::RekeyChild).expect("an account of the rekey")
    };
    let seen = of(1);
    assert_eq!(outcome(seen).3, Some((Party::We, FailureReason::NoProposalChosen)));
    let group = item(seen, Topic::ChildKeyExchange);
    assert_eq!((&*group.ours, group.theirs.as_deref()), ("x25519", Some("none")));
    assert_eq!(refused(seen), [Topic::ChildKeyExchange]);
    let told = of(0);
    assert_eq!(outcome(told).3, Some((Party::Peer, FailureReason::NoProposalChosen)));
    assert_eq!(refused(told), [Topic::EspProposal, Topic::ChildKeyExchange]);
}

#[test]
fn rekeys_of_both_kinds_are_told_by_both_ends() {
    let mut lab = differing(|_| {});
    for (command, stage) in
        [(Command::RekeyChildren(TUNNEL), Stage::RekeyChild), (Command::RekeyIke(TUNNEL), Stage::RekeyIke)]
    {
        lab.command(0, command);
        lab.run(secs(2));
        assert_eq!(outcome(last(&lab, 0)), (stage, Role::Initiator, Authenticated, None));
        assert_eq!(outcome(last(&lab, 1)), (stage, Role::Responder, Authenticated, None));
    }
}

/// Who repeats a request for a shorter time than a refusal is doubted still says why it gave up.
#[test]
fn a_refusal_is_told_although_the_last_repetition_was_over_before_it_was_believed() {
    let lab = differing(|both| {
        both[0].proposals = vec!["aes128-sha256-modp2048".parse().unwrap()];
        both[0].retransmit.tries = 2;
    });
    let reason = FailureReason::NoProposalChosen;
    assert_eq!(outcome(last(&lab, 0)).3, Some((Party::Peer, reason)));
}

#[test]
fn silence_is_told_as_silence() {
    let mut lab = Lab::new(7, Link::GOOD, [policy(0, 1), policy(1, 1)]);
    lab.tap = Some(Box::new(|side, bytes| (side == 1).then_some(bytes)));
    lab.run(secs(60));
    let told = last(&lab, 0);
    assert!(
        matches!(&told.outcome, Outcome::Unanswered { detail } if detail.contains("IKE_SA_INIT")),
        "{told:?}"
    );
    assert_eq!((told.standing, refused(told)), (Claimed, vec![]));
    assert!(lab.gateways[1].accounts.is_empty());
}

#[test]
fn a_flood_of_refused_strangers_makes_few_accounts() {
    let mut lab = differing(|both| both[1].proposals = vec!["aes128-sha256-modp2048".parse().unwrap()]);
    let before = lab.gateways[1].accounts.len();
    for _ in 0..200 {
        lab.command(0, Command::Reset(TUNNEL));
        lab.run(std::time::Duration::from_millis(20));
    }
    let (told, refused) = (lab.gateways[1].accounts.len() - before, lab.gateways[1].events.len());
    assert!(refused >= 200, "{refused} refusals");
    // 32 at once, and ten a second.
    assert!((32..=80).contains(&told), "{told} accounts of {refused} refusals");
}
