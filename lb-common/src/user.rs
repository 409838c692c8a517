//! `aya::Pod` for the map types. Each is `repr(C)`, `Copy`, made of integers only and free of implicit padding.
#![expect(
    unsafe_code,
    reason = "aya::Pod is an unsafe trait; the layouts are asserted in abi"
)]

use crate::{
    abi::{
        Announced, AnnouncedKey, Backend, BackendCount, Bucket, Flow, Fragment, FragmentKey,
        Frontend, FrontendCount, FrontendKey, NextHop, Segment, Service, Settings, SourceKey,
        TargetKey, Tuple,
    },
    bytes::{V4, V6},
};

macro_rules! pod {
    ($($type:ty),+ $(,)?) => {$(
        // SAFETY: repr(C), 'static, integers only, no implicit padding (sizes asserted in abi).
        unsafe impl aya::Pod for $type {}
    )+};
}

pod!(
    Announced,
    AnnouncedKey<V4>,
    AnnouncedKey<V6>,
    Backend,
    BackendCount,
    Bucket,
    Flow<V4>,
    Flow<V6>,
    Fragment<V4>,
    Fragment<V6>,
    FragmentKey<V4>,
    FragmentKey<V6>,
    Frontend,
    FrontendCount,
    FrontendKey<V4>,
    FrontendKey<V6>,
    NextHop,
    Segment,
    Service,
    Settings,
    SourceKey<V4>,
    SourceKey<V6>,
    TargetKey<V4>,
    TargetKey<V6>,
    Tuple<V4>,
    Tuple<V6>,
);
