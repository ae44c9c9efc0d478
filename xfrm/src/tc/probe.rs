//! Which parts of traffic control the kernel has, and whether it has xfrm interfaces. Runs on the loopback interface
//! of a namespace that was made for it.

use super::{ClassSpec, Handle, HtbRates, TCA_KIND, TCA_OPTIONS, Tc, TcMessage};
use crate::codec::Writer;
use crate::error::NetlinkError;
use crate::socket::{NLM_F_CREATE, NLM_F_EXCL, Request};
use crate::tc::{FilterSpec, Traffic};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWTFILTER: u16 = 44;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_XFRM_LINK: u16 = 1;
const IFLA_XFRM_IF_ID: u16 = 2;
/// `TCA_FW_CLASSID` and `TCA_FLOWER_CLASSID`.
const CLASSID: u16 = 1;
const ETH_P_IP: u16 = 0x0800;
const LOOPBACK: u32 = 1;

/// Answers with the kernel's words where it refused.
pub(crate) struct ClassifierProbe {
    pub xfrm_interface: Result<(), String>,
    pub htb: Result<(), String>,
    pub classifiers: Vec<(&'static str, Result<(), String>)>,
}

impl ClassifierProbe {
    /// Tries everything on the loopback interface, which must be one that nobody uses.
    pub fn run(tc: &mut Tc) -> Self {
        let words = |r: Result<(), NetlinkError>| r.map_err(|e| e.to_string());
        let class = ClassSpec { handle: Handle::class(1), rates: HtbRates::cap(1_000_000) };
        let htb = words(tc.add_root(LOOPBACK).and_then(|()| tc.put_class(LOOPBACK, &class, 1500)));
        let with_htb = |r: Result<(), NetlinkError>| {
            words(r).map_err(|e| {
                if htb.is_err() { "not asked: there is no HTB to put it on".to_owned() } else { e }
            })
        };
        let source = std::net::IpAddr::from([127, 0, 0, 1]);
        let classifiers = vec![
            (
                "u32",
                with_htb(tc.add_filter(
                    LOOPBACK,
                    &FilterSpec { source, traffic: Traffic::All, class: class.handle },
                )),
            ),
            ("fw", with_htb(tc.simple_filter("fw", 7))),
            ("flower", with_htb(tc.simple_filter("flower", 0))),
        ];
        Self { xfrm_interface: words(tc.xfrm_interface()), htb, classifiers }
    }
}

impl Tc {
    fn simple_filter(&mut self, kind: &str, handle: u32) -> Result<(), NetlinkError> {
        let preference: u32 = if kind == "fw" { 1 } else { 2 };
        let info = preference << 16 | u32::from(ETH_P_IP.to_be());
        let message = TcMessage { interface: LOOPBACK, handle: Handle(handle), parent: Handle::OURS, info };
        let mut w = message.writer();
        w.attr_text(TCA_KIND, kind);
        w.nest(TCA_OPTIONS, |w| w.attr_u32(CLASSID, Handle::class(1).0));
        self.socket.request(&Request::new(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, w))
    }

    fn xfrm_interface(&mut self) -> Result<(), NetlinkError> {
        let mut w = Writer::new();
        w.raw(&[0; 16]);
        w.attr_text(IFLA_IFNAME, "cyg-probe");
        w.nest(IFLA_LINKINFO, |w| {
            w.attr_text(IFLA_INFO_KIND, "xfrm");
            w.nest(IFLA_INFO_DATA, |w| {
                w.attr_u32(IFLA_XFRM_LINK, LOOPBACK);
                w.attr_u32(IFLA_XFRM_IF_ID, 1);
            });
        });
        self.socket.request(&Request::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, w))
    }
}
