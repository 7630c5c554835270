package testtool

import "syscall"

// endWithUs lets the system kill the process when the thread that started it
// ends.
func endWithUs() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
