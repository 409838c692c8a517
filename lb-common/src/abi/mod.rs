//! Layouts of every map's keys and values, shared by the kernel and the agent.
//!
//! All structs are `repr(C)` without implicit padding (uninitialised padding in a key is another key), sizes are
//! asserted, integers are in host byte order unless their type says otherwise. Who writes and who reads each map
//! stands in `lb-ebpf/src/maps.rs`.

mod announced;
mod backend;
mod counters;
mod flow;
mod fragment;
mod frontend;
mod moved;
mod next_hop;
mod segment;
mod service;
mod settings;
mod target;

pub use announced::{Announced, AnnouncedKey};
pub use backend::{Backend, Mode, backend_state};
pub use counters::{BackendCount, FrontendCount, Reason};
pub use flow::{Flow, Hop, Tuple, flow_state};
pub use fragment::{Fragment, FragmentKey};
pub use frontend::{Frontend, FrontendKey, SourceKey};
pub use moved::{MOVED_WORDS, Moved};
pub use next_hop::NextHop;
pub use segment::{Segment, TAG_PRESENT, TAG_SERVICE, tag};
pub use service::{NO_OWNER, OWNERS, Region, Service, owner, service_flag, slot_of};
pub use settings::{Bucket, FILTER_WORDS, Settings, Tunnel, filter_bit, leaving_bit, setting_flag};
pub use target::TargetKey;
