//! `cargo xtask demo`: the balancer at work between real clients and servers, shown step by step.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_tests::demo::run()
}
