//! Fuzz targets: each is a plain function of octets that fails by panicking, so that any driver can call it.
//!
//! A target does more than to look for panics: it holds the decoder against its encoder, against a naive version of
//! itself, or against the bounds of its input. `tests/replay.rs` runs every target over `corpus/TARGET/` and over seeded
//! mutations of it; README.md says how to replay one input, and how to run a target for long under libFuzzer.

mod control;
mod endpoint;
mod esp;
mod ike;
mod input;
mod offload;
mod recording;
mod saved;
mod sealed;
mod tc;
mod text;
mod xfrm;

pub use control::{bandwidth_saved, control_request, control_response, kept_file, kept_records};
pub use endpoint::endpoint;
pub use esp::{esp_inner, esp_natt, esp_open, esp_replay, esp_seal};
pub use ike::{ike_header, ike_identity, ike_narrow, ike_payloads, ike_selectors};
pub use offload::{esp_coalesce, esp_segment};
pub use recording::recording;
pub use saved::ike_saved;
pub use sealed::{ike_open, ike_seal};
pub use tc::{tc_class, tc_filter, tc_qdisc};
pub use text::{config, import, proposal, psk, units};
pub use xfrm::{netlink_attributes, netlink_messages, xfrm_event, xfrm_policy, xfrm_state};

/// What the seed generators and the targets agree on.
pub mod fixed {
    pub use crate::control::place;
    pub use crate::esp::{sa, suites};
    pub use crate::sealed::{channel, ike_suites};
}

/// A target.
pub type Target = fn(&[u8]);

/// Every target under its name, which is also that of its corpus.
pub const TARGETS: [(&str, Target); 35] = [
    ("bandwidth_saved", bandwidth_saved),
    ("config", config),
    ("control_request", control_request),
    ("control_response", control_response),
    ("endpoint", endpoint),
    ("esp_coalesce", esp_coalesce),
    ("esp_inner", esp_inner),
    ("esp_natt", esp_natt),
    ("esp_open", esp_open),
    ("esp_replay", esp_replay),
    ("esp_seal", esp_seal),
    ("esp_segment", esp_segment),
    ("ike_header", ike_header),
    ("ike_identity", ike_identity),
    ("ike_narrow", ike_narrow),
    ("ike_open", ike_open),
    ("ike_payloads", ike_payloads),
    ("ike_saved", ike_saved),
    ("ike_seal", ike_seal),
    ("ike_selectors", ike_selectors),
    ("import", import),
    ("kept_file", kept_file),
    ("kept_records", kept_records),
    ("netlink_attributes", netlink_attributes),
    ("netlink_messages", netlink_messages),
    ("proposal", proposal),
    ("psk", psk),
    ("recording", recording),
    ("tc_class", tc_class),
    ("tc_filter", tc_filter),
    ("tc_qdisc", tc_qdisc),
    ("units", units),
    ("xfrm_event", xfrm_event),
    ("xfrm_policy", xfrm_policy),
    ("xfrm_state", xfrm_state),
];
