//! What is left out, and why: values, which become Warning events, a metric and lines of `millrace status`.

use crate::cluster::facts::{Kind, ObjectKey};

/// An object, or a part of it, that is not served.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Skip {
    pub kind: Kind,
    pub object: ObjectKey,
    pub reason: Reason,
    /// What, where in the object, and the fix.
    pub message: String,
}

/// Reasons of Warning events (interface.md section 4), one word each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// Another Service has the frontend (contract A1.8).
    FrontendConflict,
    /// An address of a node as VIP.
    NodeAddressRefused,
    /// Neither TCP nor UDP (contract A2.8).
    UnsupportedProtocol,
    /// No VIP can have this address.
    InvalidAddress,
    /// A slice's address of the other family (contract A3.3).
    IncorrectIpVersion,
    /// An endpoint that nothing may be sent to (contract A3.14).
    InvalidEndpoint,
    /// A source range that is none (contract A9.6).
    InvalidSourceRange,
    /// VIPs of a family without a source range of that family are closed (contract A9.4).
    SourceRangesLackFamily,
    /// Annotation `millrace.io/forwarding-mode` names no mode.
    InvalidForwardingMode,
    /// A map is full (contract A13.5).
    MapsFull,
}

impl Reason {
    /// `CamelCase`, as events have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FrontendConflict => "FrontendConflict",
            Self::NodeAddressRefused => "NodeAddressRefused",
            Self::UnsupportedProtocol => "UnsupportedProtocol",
            Self::InvalidAddress => "InvalidAddress",
            Self::IncorrectIpVersion => "IncorrectIPVersion",
            Self::InvalidEndpoint => "InvalidEndpoint",
            Self::InvalidSourceRange => "InvalidSourceRange",
            Self::SourceRangesLackFamily => "SourceRangesLackFamily",
            Self::InvalidForwardingMode => "InvalidForwardingMode",
            Self::MapsFull => "MapsFull",
        }
    }
}

/// Skips of one Service, as they are found.
#[derive(Debug)]
pub(super) struct Skips {
    service: ObjectKey,
    found: Vec<Skip>,
}

impl Skips {
    pub(super) fn of(service: &ObjectKey) -> Self {
        Self {
            service: service.clone(),
            found: Vec::new(),
        }
    }

    /// Of the Service itself.
    pub(super) fn service(&mut self, reason: Reason, message: impl Into<String>) {
        self.push(Kind::Service, self.service.clone(), reason, message.into());
    }

    pub(super) fn slice(&mut self, slice: &ObjectKey, reason: Reason, message: impl Into<String>) {
        self.push(Kind::EndpointSlice, slice.clone(), reason, message.into());
    }

    fn push(&mut self, kind: Kind, object: ObjectKey, reason: Reason, message: String) {
        let skip = Skip {
            kind,
            object,
            reason,
            message,
        };
        // One port after the other meets the same endpoints.
        if !self.found.contains(&skip) {
            self.found.push(skip);
        }
    }

    pub(super) fn into_found(self) -> Vec<Skip> {
        self.found
    }
}
