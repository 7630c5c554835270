package vault

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// background gives the thread of the calling goroutine, which keeps it to its end,
// a lower priority than that of those who wait for an answer.
func background() {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 10) // else it competes
}
