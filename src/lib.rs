//! The cygnet daemon and its command line.
