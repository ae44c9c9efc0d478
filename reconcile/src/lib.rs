//! From what the kernel holds to what it shall hold: one way for policies, rules, routes, links, classes and filters.
//!
//! ```text
//!   wanted ──┐
//!   seen ────┼─▶ plan ─▶ steps in phases ─▶ carried out, phase by phase
//!   ours? ───┘                                │ refused, or the answer was lost
//!      ▲                                      ▼
//!      └────────────── look again ◀───────────┘
//! ```
//!
//! [`plan()`] is a pure function: nothing is remembered that could be seen. So a daemon that was killed in the midst of it,
//! a step that was refused, and an object that somebody else removed are all the same case: what is there is seen, and the
//! rest is planned. [`bring()`] is that loop.
//!
//! A kind of object is data with a place, an order and a word about packets ([`Object`]); what it takes to make one is the
//! business of whoever carries the steps out. No I/O here, and no clock: the caller says when.

#![forbid(unsafe_code)]

mod bring;
mod object;
mod plan;
#[cfg(feature = "test-util")]
pub mod testing;

pub use bring::{Stuck, World, bring};
pub use object::{Effect, Object, Step};
pub use plan::{At, Outcome, Plan, plan, plan_at};
