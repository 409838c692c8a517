//! A VIP answers pings.

use anyhow::Result;
use etherparse::Ipv4Header;
use lb_common::{abi::Reason, pipeline::Verdict};
use lb_tests::{
    both::Both,
    datagrams::{LINK, Message, headers, icmp, is_v4},
};

use super::{
    assert_checksums,
    icmp::{ENDS, ROUTER, addresses},
    ip, with_both,
};

/// An echo request to `vip` with a payload of odd length.
fn ping(both: &Both, client: &str, vip: &str) -> Vec<u8> {
    let kind = if ip(vip).is_ipv4() { 8 } else { 128 };
    let message = Message {
        kind,
        code: 0,
        word: 0x1234_0007,
    };
    let macs = [ROUTER, both.uplinks[0].0];
    icmp(macs, [ip(client), ip(vip)], message, &[0x5a; 57])
}

/// A2.12
#[test]
fn a_vip_answers_a_ping() -> Result<()> {
    with_both(|both| {
        for (client, _, vips) in ENDS {
            for vip in vips {
                let came = ping(both, client, vip);
                let outcome = both.run(&came)?;
                assert_eq!(outcome.verdict, Verdict::Transmit);
                assert_eq!(outcome.reason(), Some(Reason::Echo));
                assert_checksums(&outcome.frame);
                assert_eq!(addresses(&outcome.frame[LINK..]), (ip(vip), ip(client)));
                assert_eq!(
                    (&outcome.frame[..6], &outcome.frame[6..12]),
                    (&came[6..12], &came[..6])
                );
                let l4 = headers(&came);
                let reply = if is_v4(&came) { 0 } else { 129 };
                assert_eq!(outcome.frame[l4..l4 + 2], [reply, 0]);
                assert_eq!(outcome.frame[l4 + 4..], came[l4 + 4..]);
            }
        }
        Ok(())
    })
}

#[test]
fn pings_that_nobody_is_owed_are_not_answered() -> Result<()> {
    with_both(|both| {
        for (client, _, vips) in ENDS {
            let own = if ip(client).is_ipv4() {
                "10.0.0.1"
            } else {
                "2001:db8:1::1"
            };
            let hosts = ping(both, client, own);
            assert_eq!(
                both.run(&hosts)?.verdict,
                Verdict::NotOurs,
                "the host's own"
            );
            for nobody in if ip(client).is_ipv4() {
                ["0.0.0.0", "224.0.0.1", "255.255.255.255"]
            } else {
                ["::", "ff02::1", "::1"]
            } {
                let outcome = both.run(&ping(both, nobody, vips[0]))?;
                assert_eq!(
                    outcome.verdict,
                    Verdict::Drop(Reason::NotAnswered),
                    "{nobody}"
                );
            }
            let cut = &ping(both, client, vips[0])[..60];
            assert_eq!(both.run(cut)?.verdict, Verdict::Drop(Reason::Malformed));
        }
        // IP options would have to be turned round.
        let (client, _, vips) = ENDS[0];
        let mut frame = ping(both, client, vips[0]);
        let (mut header, _) = Ipv4Header::from_slice(&frame[LINK..])?;
        header.options = [1, 1, 1, 0].into();
        header.total_len += 4;
        frame.splice(LINK..LINK + 20, header.to_bytes());
        let outcome = both.run(&frame)?;
        assert_eq!(outcome.verdict, Verdict::Drop(Reason::NotAnswered));
        Ok(())
    })
}

#[test]
fn pings_are_limited() -> Result<()> {
    with_both(|both| {
        let mut settings = both.settings;
        (settings.reject_rate, settings.reject_burst) = (0, 0);
        both.set(settings)?;
        both.host.reject_tokens.set(0);
        for (client, _, vips) in ENDS {
            let outcome = both.run(&ping(both, client, vips[1]))?;
            assert_eq!(outcome.verdict, Verdict::Drop(Reason::RejectLimited));
        }
        Ok(())
    })
}
