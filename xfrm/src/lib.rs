//! cygnet-xfrm
