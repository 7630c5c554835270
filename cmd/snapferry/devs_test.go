package main

import (
	"os/exec"
	"sync"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

// devs are the dev commands that scripts run.
var devs = &running{cmds: map[*testscript.TestScript]*exec.Cmd{}}

type running struct {
	mu   sync.Mutex
	cmds map[*testscript.TestScript]*exec.Cmd
}

func (r *running) put(ts *testscript.TestScript, cmd *exec.Cmd) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cmds[ts] = cmd
}

func (r *running) stop(ts *testscript.TestScript) {
	r.mu.Lock()
	cmd := r.cmds[ts]
	delete(r.cmds, ts)
	r.mu.Unlock()
	if cmd == nil {
		return
	}
	ts.Check(cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Wait(); err != nil {
		ts.Fatalf("dev: %v", err)
	}
}
