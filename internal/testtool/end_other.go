//go:build unix && !linux

package testtool

import "syscall"

func endWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
