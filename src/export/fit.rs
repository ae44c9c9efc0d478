//! Which of our algorithms a peer can be told of, in its words.

use cygnet_model::addke::{AddKe, AdditionalOffer, keyword};
use cygnet_model::proposal::{EspProposal, IkeProposal};
use cygnet_model::suite::{Encr, Group, Integ, Prf};

use super::ExportError;
use super::mirror::Mirror;

/// What a format calls algorithms; `None`: it does not know them.
pub struct Words {
    /// Ciphers of the IKE SA.
    pub ike: fn(Encr) -> Option<&'static str>,
    /// Ciphers of ESP.
    pub esp: fn(Encr) -> Option<&'static str>,
    /// Integrity of the IKE SA.
    pub ike_integ: fn(Integ) -> Option<&'static str>,
    /// Integrity of ESP.
    pub esp_integ: fn(Integ) -> Option<&'static str>,
    /// Pseudorandom functions.
    pub prf: fn(Prf) -> Option<&'static str>,
    /// Key exchanges.
    pub group: fn(Group) -> Option<&'static str>,
    /// Additional key exchanges of an IKE SA (RFC 9370).
    pub ike_more: fn(AddKe, Group) -> Option<&'static str>,
    /// The same of ESP.
    pub esp_more: fn(AddKe, Group) -> Option<&'static str>,
}

/// For formats that know no additional key exchange.
pub fn none(_: AddKe, _: Group) -> Option<&'static str> {
    None
}

/// Additional key exchanges that a proposal names, each with its methods. `None` among them: it may be left out.
pub type More = Vec<(AddKe, Vec<Option<&'static str>>)>;

/// What is left of a proposal, in the words of the format and in our order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fit {
    /// Ciphers, at least one.
    pub encrs: Vec<&'static str>,
    /// Integrity algorithms; none exactly with AEADs.
    pub integs: Vec<&'static str>,
    /// Pseudorandom functions; none in ESP.
    pub prfs: Vec<&'static str>,
    /// Key exchanges; none in ESP without PFS.
    pub groups: Vec<&'static str>,
    /// Additional key exchanges.
    pub more: More,
    /// Acceptable extended sequence numbers.
    pub esn: Vec<bool>,
}

/// Keeps what the format knows and collects what it does not.
fn keep<T: Copy>(
    all: &[T],
    word: fn(T) -> Option<&'static str>,
    ours: fn(T) -> &'static str,
    lost: &mut Vec<String>,
) -> Option<Vec<&'static str>> {
    let mut kept = Vec::new();
    for one in all {
        match word(*one) {
            Some(w) => kept.push(w),
            None => lost.push(ours(*one).to_owned()),
        }
    }
    (!kept.is_empty() || all.is_empty()).then_some(kept)
}

/// The same of additional key exchanges. One that may be left out is left out where the format knows no method of it.
fn keep_more(
    offer: &AdditionalOffer,
    word: fn(AddKe, Group) -> Option<&'static str>,
    lost: &mut Vec<String>,
) -> Option<More> {
    let mut kept = More::new();
    let mut all_are_known = true;
    for (which, methods) in offer.iter().filter(|(_, methods)| !methods.is_empty()) {
        let mut words = Vec::new();
        for method in methods {
            match method.map(|group| (group, word(which, group))) {
                Some((group, None)) => lost.push(keyword(which, Some(group))),
                Some((_, known)) => words.push(known),
                None => words.push(None),
            }
        }
        all_are_known &= !words.is_empty();
        if words.iter().any(Option::is_some) {
            kept.push((which, words));
        }
    }
    all_are_known.then_some(kept)
}

fn encr_name(e: Encr) -> &'static str {
    e.info().keyword
}

/// The proposals of the IKE SA, at least one.
pub fn ike(mirror: &Mirror<'_>, words: &Words, notes: &mut Vec<String>) -> Result<Vec<Fit>, ExportError> {
    let mut lost = Vec::new();
    let one = |p: &IkeProposal, lost: &mut Vec<String>| {
        // All kinds are looked at, so that all that is lacking is told.
        let encrs = keep(&p.encrs, words.ike, encr_name, lost);
        let integs = keep(&p.integs, words.ike_integ, Integ::keyword, lost);
        let prfs = keep(&p.prfs, words.prf, Prf::keyword, lost);
        let groups = keep(&p.groups, words.group, Group::keyword, lost);
        let more = keep_more(&p.additional, words.ike_more, lost);
        Some(Fit {
            encrs: encrs?,
            integs: integs?,
            prfs: prfs?,
            groups: groups?,
            more: more?,
            esn: Vec::new(),
        })
    };
    let fits: Vec<Fit> = mirror.ike.proposals.iter().filter_map(|p| one(p, &mut lost)).collect();
    told(mirror, "IKE", fits, lost, notes)
}

/// The proposals of ESP, at least one.
pub fn esp(mirror: &Mirror<'_>, words: &Words, notes: &mut Vec<String>) -> Result<Vec<Fit>, ExportError> {
    let mut lost = Vec::new();
    let one = |p: &EspProposal, lost: &mut Vec<String>| {
        let encrs = keep(&p.encrs, words.esp, encr_name, lost);
        let integs = keep(&p.integs, words.esp_integ, Integ::keyword, lost);
        let groups = keep(&p.groups, words.group, Group::keyword, lost);
        let more = keep_more(&p.additional, words.esp_more, lost);
        Some(Fit {
            encrs: encrs?,
            integs: integs?,
            prfs: Vec::new(),
            groups: groups?,
            more: more?,
            esn: p.esn.clone(),
        })
    };
    let fits: Vec<Fit> = mirror.esp.proposals.iter().filter_map(|p| one(p, &mut lost)).collect();
    told(mirror, "ESP", fits, lost, notes)
}

fn told(
    mirror: &Mirror<'_>,
    protocol: &'static str,
    fits: Vec<Fit>,
    lost: Vec<String>,
    notes: &mut Vec<String>,
) -> Result<Vec<Fit>, ExportError> {
    let mut lacks: Vec<String> = Vec::new();
    lost.into_iter().for_each(|word| {
        if !lacks.contains(&word) {
            lacks.push(word);
        }
    });
    let (product, lacks) = (mirror.product(), lacks.join(", "));
    if fits.is_empty() {
        return Err(ExportError::NoCommonAlgorithm { product, protocol, lacks });
    }
    if !lacks.is_empty() {
        notes.push(format!("{protocol}: {product} does not know {lacks}; its proposals do without"));
    }
    // What is left out may have been all that they differed in.
    let mut kept: Vec<Fit> = Vec::new();
    fits.into_iter().for_each(|fit| {
        if !kept.contains(&fit) {
            kept.push(fit);
        }
    });
    Ok(kept)
}

/// For formats whose one word for a hash means integrity and PRF: beside other ciphers than AEADs, the hashes that a proposal
/// has in both places. `same` compares a word for integrity with one for a PRF.
pub fn coupled(
    mut fits: Vec<Fit>,
    same: fn(&str, &str) -> bool,
    mirror: &Mirror<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<Fit>, ExportError> {
    let count = fits.len();
    for f in fits.iter_mut().filter(|f| !f.integs.is_empty()) {
        f.integs.retain(|i| f.prfs.iter().any(|p| same(i, p)));
        if f.integs.is_empty() {
            f.encrs.clear();
        }
    }
    fits.retain(|f| !f.encrs.is_empty());
    let product = mirror.product();
    if fits.is_empty() {
        let lacks = "a PRF other than that of the integrity algorithm".to_owned();
        return Err(ExportError::NoCommonAlgorithm { product, protocol: "IKE", lacks });
    }
    if fits.len() < count {
        notes.push(format!(
            "IKE: {product} has no PRF other than that of the integrity algorithm; its proposals do without"
        ));
    }
    Ok(fits)
}

/// For formats that name one algorithm of each kind in a proposal: the first of each.
pub fn first_of_each(
    fits: Vec<Fit>,
    protocol: &str,
    mirror: &Mirror<'_>,
    notes: &mut Vec<String>,
) -> Vec<Fit> {
    let cut = |list: &[&'static str]| list.first().copied().into_iter().collect::<Vec<_>>();
    let several = fits.iter().any(|f| {
        [&f.encrs, &f.integs, &f.prfs, &f.groups].iter().any(|l| l.len() > 1)
            || f.more.iter().any(|(_, words)| words.len() > 1)
    });
    let first = |words: &[Option<&'static str>]| words.first().copied().into_iter();
    if several {
        notes.push(format!(
            "{protocol}: {} names one algorithm of each kind in a proposal; it has our first choice of each",
            mirror.product()
        ));
    }
    (fits.iter())
        .map(|f| Fit {
            encrs: cut(&f.encrs),
            integs: cut(&f.integs),
            prfs: cut(&f.prfs),
            groups: cut(&f.groups),
            more: f.more.iter().map(|(which, words)| (*which, first(words).collect())).collect(),
            esn: f.esn.clone(),
        })
        .collect()
}

/// What formats have that know one PFS for all ESP proposals.
pub struct Pfs {
    /// Its group; `None`: there is no PFS.
    pub group: Option<&'static str>,
    /// The additional key exchanges beside it.
    pub more: Vec<(AddKe, &'static str)>,
}

impl Pfs {
    /// Our first choice.
    fn of(fit: &Fit) -> Self {
        let first = |words: &[Option<&'static str>]| words.first().copied().flatten();
        Self {
            group: fit.groups.first().copied(),
            more: fit.more.iter().filter_map(|(which, words)| Some((*which, first(words)?))).collect(),
        }
    }

    /// Whether a proposal allows it.
    fn fits(&self, fit: &Fit) -> bool {
        let word = |which| self.more.iter().find(|(w, _)| *w == which).map(|(_, word)| *word);
        let offered = |which: AddKe| fit.more.iter().find(|(w, _)| *w == which).map(|(_, words)| words);
        self.group.map_or(fit.groups.is_empty(), |g| fit.groups.contains(&g))
            && AddKe::all()
                .all(|which| offered(which).map_or(word(which).is_none(), |w| w.contains(&word(which))))
    }
}

/// For formats with one PFS group for all ESP proposals: the group, and the proposals that allow it.
pub fn one_pfs(fits: Vec<Fit>, mirror: &Mirror<'_>, notes: &mut Vec<String>) -> (Pfs, Vec<Fit>) {
    let pfs = fits.first().map_or(Pfs { group: None, more: Vec::new() }, Pfs::of);
    let several = |f: &Fit| f.groups.len() > 1 || f.more.iter().any(|(_, words)| words.len() > 1);
    let more = fits.iter().any(|f| several(f) || !pfs.fits(f));
    let kept: Vec<Fit> = fits.into_iter().filter(|f| pfs.fits(f)).collect();
    if more {
        let beside: String = pfs.more.iter().map(|(_, word)| format!(" with {word}")).collect();
        let word = pfs.group.map_or_else(|| "none".to_owned(), |g| format!("{g}{beside}, our first choice"));
        notes.push(format!("PFS: {} has one group for all proposals: {word}", mirror.product()));
    }
    (pfs, kept)
}

/// Whether extended sequence numbers are left to a peer that has none, and a note if they are not.
pub fn without_esn(fits: &[Fit], mirror: &Mirror<'_>) -> Result<(), ExportError> {
    if fits.iter().any(|f| f.esn.contains(&false)) {
        return Ok(());
    }
    let lacks = "esn (add noesn to a proposal)".to_owned();
    Err(ExportError::NoCommonAlgorithm { product: mirror.product(), protocol: "ESP", lacks })
}

/// The group's number.
pub fn number(g: Group) -> &'static str {
    match g {
        Group::Modp1024 => "2",
        Group::Modp1536 => "5",
        Group::Modp2048 => "14",
        Group::Modp3072 => "15",
        Group::Modp4096 => "16",
        Group::Modp6144 => "17",
        Group::Modp8192 => "18",
        Group::Ecp256 => "19",
        Group::Ecp384 => "20",
        Group::Ecp521 => "21",
        Group::X25519 => "31",
        Group::MlKem512 => "35",
        Group::MlKem768 => "36",
        Group::MlKem1024 => "37",
    }
}
