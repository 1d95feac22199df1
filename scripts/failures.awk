#!/usr/bin/awk -f
# What a log of cargo-nextest says of the tests that failed, in few lines: their names, and where and why they panicked.

/^ *Summary \[/ { summary = 1; next }
!summary { next }
/^ *(FAIL|TIMEOUT|SIGABRT|SIGSEGV|SIG[A-Z]+|ABORT|LEAK-FAIL) \[/ { sub(/^ */, ""); print "  " substr($0, 1, 200); left = 0; next }
/panicked at / { left = 4 }
left && !/^ *$/ && !/stack backtrace:|note: run with/ { sub(/^ */, ""); print "    " substr($0, 1, 240); left-- }
/stack backtrace:/ { left = 0 }
