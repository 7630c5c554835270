//go:build unix && !linux

package s3test

import "syscall"

func endWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
