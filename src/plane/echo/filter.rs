//! What the kernel lets into a socket: only what bears the beginning of a probe's data, so that others' pings and strangers who find a
//! port wake nobody.

use std::io;

use nix::libc;
use socket2::{SockFilter, Socket};

use crate::quality::wire::{HEAD_LEN, MAGIC};

/// What stands before the header of the upper protocol where the kernel begins to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behind {
    /// Nothing.
    Nothing,
    /// The header of IPv4.
    Ipv4,
}

/// Lets nothing pass but packets with [`MAGIC`] behind the header of the upper protocol, and this token behind that if one is given.
///
/// # Errors
/// What the kernel says.
pub fn attach(socket: &Socket, behind: Behind, token: Option<u64>) -> io::Result<()> {
    socket.attach_filter(&program(behind, token))
}

/// A program for the kernel (`linux/filter.h`). What is too short is dropped by the loading itself.
fn program(behind: Behind, token: Option<u64>) -> Vec<SockFilter> {
    const HEADER_LEN: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
    const WORD: u16 = (libc::BPF_LD | libc::BPF_W) as u16;
    const EQUALS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let words = std::iter::once(u64::from_be_bytes(MAGIC)).chain(token);
    let words: Vec<u32> = words.flat_map(|v| [(v >> 32) as u32, v as u32]).collect();
    let (mut out, mode) = match behind {
        Behind::Nothing => (Vec::new(), libc::BPF_ABS),
        Behind::Ipv4 => (vec![SockFilter::new(HEADER_LEN, 0, 0, 0)], libc::BPF_IND),
    };
    let mut left = words.len() as u8 * 2;
    for (word, at) in words.into_iter().zip((HEAD_LEN as u32..).step_by(size_of::<u32>())) {
        left -= 2;
        out.push(SockFilter::new(WORD | mode as u16, 0, 0, at));
        // What is not equal goes to the last step.
        out.push(SockFilter::new(EQUALS, 0, left + 1, word));
    }
    out.extend([SockFilter::new(ANSWER, 0, 0, u32::MAX), SockFilter::new(ANSWER, 0, 0, 0)]);
    out
}
