//! Looks for bytes that [`Target::Requests`] fails on.
#![no_main]

use lb_tests::hostile::Target;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| Target::Requests.run(bytes));
