//! Looks for bytes that [`Target::Frames`] fails on.
#![no_main]

use lb_tests::hostile::Target;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| Target::Frames.run(bytes));
