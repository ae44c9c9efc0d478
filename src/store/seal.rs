//! How the file is sealed: its header, the key that belongs to it, and frames.
//!
//! ```text
//!  header   magic 8 | version 2 | plane 1 | boot 16 | host 16 | life 32
//!  frame    length 4 | tag of the length 16 | sealed records | tag 16
//! ```
//!
//! AES-256-GCM, RFC 5116; the key comes by HKDF-SHA-256 (RFC 5869) from the host's secret with the life number as salt
//! and the whole header as info. Each file has a random life number, so that no two files share a key, and frames
//! count within their file: no nonce meets its key twice. The length has a tag of its own, so that a frame with another
//! length is told from one that was cut off.

use std::io::{self, Read};

use cygnet_model::plane::PlaneKind;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::hkdf::{HKDF_SHA256, Salt};
use zeroize::Zeroizing;

/// First octets of every file.
const MAGIC: [u8; 8] = *b"cygnsas\0";
/// Of the file and of everything in it.
pub const VERSION: u16 = 1;
const TAG_LEN: usize = 16;
const LENGTH_LEN: usize = 4;
/// Octets that a frame has beside its records.
pub const FRAME_OVERHEAD: usize = LENGTH_LEN + 2 * TAG_LEN;
/// Longest content of a frame in octets.
pub const MAX_FRAME: usize = super::record::MAX_VALUE + 4096;
/// Length of the header in octets.
pub const HEADER_LEN: usize = 8 + 2 + 1 + 16 + 16 + 32;

/// Whose files can be read: one host, and one boot of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// A digest of what names the machine.
    machine: [u8; 16],
    /// Names the boot, whose clock the times in the file follow.
    boot: [u8; 16],
}

impl Host {
    /// From the texts that name a machine and a boot.
    pub fn of(machine: &str, boot: &str) -> Self {
        Self { machine: short(machine), boot: short(boot) }
    }
}

fn short(text: &str) -> [u8; 16] {
    let digest = digest(&SHA256, text.trim().as_bytes());
    digest.as_ref().first_chunk().copied().unwrap_or_default()
}

/// Why a file is not used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// There is none.
    #[error("there is none")]
    Absent,
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// Somebody else may have read or written it.
    #[error("it belongs to somebody else, or others may read it")]
    Permissions,
    /// It is something else.
    #[error("it is something else")]
    Format,
    /// Another version wrote it.
    #[error("it has version {0}, and this daemon reads version {VERSION}")]
    Version(u16),
    /// The host has been started since.
    #[error("the host was started anew since it was written")]
    OtherBoot,
    /// Another host wrote it.
    #[error("another host wrote it")]
    OtherHost,
    /// Somebody else wrote or changed it, or the secret is another one.
    #[error("it was changed, or sealed with another secret")]
    Forged,
    /// It ends before its first record.
    #[error("it was cut off before its first record")]
    Cut,
}

impl Refused {
    /// The name in logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Unreadable(_) => "unreadable",
            Self::Permissions => "permissions",
            Self::Format => "format",
            Self::Version(_) => "version",
            Self::OtherBoot => "other_boot",
            Self::OtherHost => "other_host",
            Self::Forged => "forged",
            Self::Cut => "cut",
        }
    }
}

/// The header of a new file.
pub fn header(host: &Host, plane: PlaneKind, life: &[u8; 32]) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    let plane = [u8::from(plane == PlaneKind::Userspace)];
    let fields: [&[u8]; 6] = [&MAGIC, &VERSION.to_be_bytes(), &plane, &host.boot, &host.machine, life];
    let octets = fields.into_iter().flatten();
    out.iter_mut().zip(octets).for_each(|(to, from)| *to = *from);
    out
}

/// What a header says, once it is known to be of this version, host and boot.
fn look(mut header: &[u8], host: &Host) -> Result<(PlaneKind, [u8; 32]), Refused> {
    use super::record::take;
    let from = &mut header;
    if take(from) != Some(MAGIC) {
        return Err(Refused::Format);
    }
    match take(from).map(u16::from_be_bytes) {
        Some(VERSION) => {}
        Some(other) => return Err(Refused::Version(other)),
        None => return Err(Refused::Format),
    }
    let plane = match take(from) {
        Some([0]) => PlaneKind::Kernel,
        Some([1]) => PlaneKind::Userspace,
        _ => return Err(Refused::Format),
    };
    let (boot, machine) = (take(from), take(from));
    if machine != Some(host.machine) {
        return Err(Refused::OtherHost);
    }
    if boot != Some(host.boot) {
        return Err(Refused::OtherBoot);
    }
    Ok((plane, take(from).ok_or(Refused::Format)?))
}

/// Seals or opens the frames of one file, in their order.
pub struct Frames {
    key: LessSafeKey,
    next: u64,
}

impl Frames {
    /// For a file with this header, which holds the life number.
    fn of(secret: &[u8; 32], header: &[u8; HEADER_LEN]) -> Self {
        let life = header.last_chunk::<32>().map_or(&[][..], |life| life.as_slice());
        let prk = Salt::new(HKDF_SHA256, life).extract(secret);
        let info = [&header[..]];
        let okm = prk.expand(&info, &AES_256_GCM);
        // One block of SHA-256 is the key, which HKDF can always give.
        let key = okm.map(UnboundKey::from).expect("HKDF gives up to 255 blocks");
        Self { key: LessSafeKey::new(key), next: 0 }
    }

    /// For a new file.
    pub fn begin(secret: &[u8; 32], header: &[u8; HEADER_LEN]) -> Self {
        Self::of(secret, header)
    }

    /// Nonces of a frame: one for its length, one for its content.
    fn nonces(&mut self) -> [Nonce; 2] {
        let first = self.next * 2;
        self.next += 1;
        [first, first + 1].map(|n| {
            let [a, b, c, d, e, f, g, h] = n.to_be_bytes();
            Nonce::assume_unique_for_key([0, 0, 0, 0, a, b, c, d, e, f, g, h])
        })
    }

    /// Appends the frame of `content`, at most [`MAX_FRAME`] octets, to `out`.
    pub fn seal(&mut self, content: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let len = u32::try_from(content.len()).map_err(io::Error::other)?.to_be_bytes();
        let [for_length, for_content] = self.nonces();
        let broken = |_| io::Error::other("a frame could not be sealed");
        let tag = self.key.seal_in_place_separate_tag(for_length, Aad::from(len), &mut []).map_err(broken)?;
        let mut text = Zeroizing::new(content.to_vec());
        let end =
            self.key.seal_in_place_separate_tag(for_content, Aad::from(len), &mut text).map_err(broken)?;
        out.reserve(FRAME_OVERHEAD + text.len());
        out.extend_from_slice(&len);
        out.extend_from_slice(tag.as_ref());
        out.extend_from_slice(&text);
        out.extend_from_slice(end.as_ref());
        Ok(())
    }

    /// The content of the next frame.
    fn open(&mut self, from: &mut impl Read) -> Result<Next, Refused> {
        let mut head = [0; LENGTH_LEN + TAG_LEN];
        match fill(from, &mut head)? {
            0 => return Ok(Next::End),
            n if n < head.len() => return Ok(Next::Cut),
            _ => {}
        }
        let [for_length, for_content] = self.nonces();
        let mut rest = head.as_slice();
        let (Some(len), Some(tag)) =
            (super::record::take::<LENGTH_LEN>(&mut rest), super::record::take::<TAG_LEN>(&mut rest))
        else {
            return Err(Refused::Format);
        };
        self.key
            .open_in_place_separate_tag(for_length, Aad::from(len), Tag::from(tag), &mut [], 0..)
            .map_err(|_| Refused::Forged)?;
        // It is proven, and so is its bound; a wrong one would be ours.
        let size = u32::from_be_bytes(len) as usize;
        if size > MAX_FRAME {
            return Err(Refused::Format);
        }
        let mut text = Zeroizing::new(vec![0; size + TAG_LEN]);
        if fill(from, &mut text)? < text.len() {
            return Ok(Next::Cut);
        }
        self.key.open_in_place(for_content, Aad::from(len), &mut text).map_err(|_| Refused::Forged)?;
        text.truncate(size);
        Ok(Next::Frame(text))
    }
}

enum Next {
    Frame(Zeroizing<Vec<u8>>),
    /// The file ends where a frame ends.
    End,
    /// The file ends within a frame, as a process leaves it that was killed while it wrote.
    Cut,
}

/// Reads until the buffer is full or there is no more.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, Refused> {
    let mut at = 0;
    while let Some(rest) = buffer.get_mut(at..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Refused::Unreadable(e.to_string())),
        }
    }
    Ok(at)
}

/// What a frame holds, and where it begins in its file.
pub struct Frame {
    /// Offset of its length.
    pub at: u64,
    /// Records.
    pub content: Zeroizing<Vec<u8>>,
}

/// Walks through a file.
pub struct Reader<R> {
    from: R,
    frames: Frames,
    plane: PlaneKind,
    /// Where the next frame begins.
    at: u64,
    cut: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// As the header says; whether it is genuine shows at the first frame.
    pub fn open(mut from: R, secret: &[u8; 32], host: &Host) -> Result<Self, Refused> {
        let mut header = [0; HEADER_LEN];
        let got = fill(&mut from, &mut header)?;
        if got < HEADER_LEN {
            let begins = MAGIC.iter().zip(&header).take(got).all(|(a, b)| a == b);
            return Err(if begins { Refused::Cut } else { Refused::Format });
        }
        let (plane, _) = look(&header, host)?;
        Ok(Self { from, frames: Frames::of(secret, &header), plane, at: HEADER_LEN as u64, cut: false })
    }

    /// Which data plane wrote the file.
    pub const fn plane(&self) -> PlaneKind {
        self.plane
    }

    /// Whether the file ended within a frame.
    pub const fn was_cut(&self) -> bool {
        self.cut
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// If what follows is not what was written.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Refused> {
        match self.frames.open(&mut self.from)? {
            Next::Frame(content) => {
                let at = self.at;
                self.at += (content.len() + FRAME_OVERHEAD) as u64;
                Ok(Some(Frame { at, content }))
            }
            Next::End => Ok(None),
            Next::Cut => {
                self.cut = true;
                Ok(None)
            }
        }
    }
}
