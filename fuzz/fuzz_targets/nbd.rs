#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhdkit_testkit::fuzz::nbd(data));
