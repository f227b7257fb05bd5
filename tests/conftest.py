"""What holds for every test: a closed terminal is heard, as it is by a user's processes, also where the tests run under
nohup."""

import signal

if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(
        signal.SIGHUP, lambda number, frame: None
    )  # the tests stay; the programs that they start are born with the default
